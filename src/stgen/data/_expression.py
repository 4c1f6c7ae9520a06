"""Expression as an input: counts or log-normalised values, on the scale a model was fitted on.

A model of neighbourhoods reads what its neighbours express, so expression is checked, aligned by gene name and, if it
is counts, divided by each cell's total and logged, block by block. A panel that lacks some of the model's genes is
taken if enough are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stgen._warn import number, warn
from stgen.nn._network import Batch

from ._fields import CountsField, Facts, _value_blocks, check_counts, read_counts
from ._names import align_genes, check_unique, some, spelling_hint

if TYPE_CHECKING:
    from anndata import AnnData

SCALES = ("counts", "log")
MIN_OVERLAP = 0.5
"""Share of a model's genes that other data must have."""
HIGHEST_LOG = 30.0
"""No log1p of a count is larger: e³⁰ molecules do not fit in a cell."""


@dataclass(frozen=True)
class ExpressionField(CountsField):
    """An input: expression, cells × genes, in ``X`` or a layer, as counts or log-normalised."""

    scale: str = "counts"

    is_target: ClassVar[bool] = False

    def facts(self, adata: AnnData) -> Facts:
        if self.scale not in SCALES:
            raise ValueError(
                f"`expression` must be one of {', '.join(map(repr, SCALES))}; got {self.scale!r}."
            )
        if self.scale == "counts":
            try:
                return super().facts(adata)
            except ValueError as error:
                if "whole numbers" in str(error):
                    raise ValueError(f"{error} If they are log-normalised, say `expression='log'`.") from None
                raise
        if adata.n_vars < self.min_genes:
            raise ValueError(f"At least {self.min_genes} genes are needed; this AnnData has {adata.n_vars}.")
        check_unique(adata.var_names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
        X = self.matrix(adata)
        check_logs(X, self.name)
        if _all_whole(X):
            warn(
                f"All values of {self.name} are whole numbers, as raw counts are; `expression='log'` takes them as "
                "log-normalised. Say `expression='counts'` if they are counts."
            )
        self._warn_about_silence(X, adata)
        return {"n_genes": adata.n_vars, "genes": [str(gene) for gene in adata.var_names]}

    def compare(self, facts: Facts, adata: AnnData) -> None:
        shared_genes(facts["genes"], adata)


def check_logs(X: Any, name: str) -> None:
    """Raise unless ``X`` can be log-normalised expression: finite, not negative, not in the thousands."""
    for values in _value_blocks(X):
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{name} must hold log-normalised expression; its dtype is {values.dtype}.")
        if not np.isfinite(values).all():
            n_bad = sum(int((~np.isfinite(some_values)).sum()) for some_values in _value_blocks(X))
            raise ValueError(
                f"{name} must hold log-normalised expression; found {n_bad} values that are NaN or infinite. "
                "Drop these cells or genes."
            )
        if values.min() < 0:
            raise ValueError(
                f"{name} must hold log-normalised expression, which is not negative; found {values.min():g}. "
                "It looks scaled or centred: give the values before `sc.pp.scale`, or counts."
            )
        if values.max() > HIGHEST_LOG:
            raise ValueError(
                f"{name} must hold log-normalised expression; found {number(values.max(), HIGHEST_LOG)}, which no logarithm of a count "
                "reaches. Run `sc.pp.log1p` first, or say `expression='counts'` for raw counts."
            )


def _all_whole(X: Any) -> bool:
    """Whether all values are whole numbers, and not just zeros and ones."""
    highest = 0.0
    for values in _value_blocks(X):
        if (values != np.floor(values)).any():
            return False
        highest = max(highest, float(values.max(initial=0)))
    return highest > 1


def shared_genes(expected: Sequence[str], adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Which of the model's genes the data has, and where; at least half of them."""
    names = adata.var_names.astype(str)
    check_unique(names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    found = names.get_indexer(list(expected))
    here = np.flatnonzero(found >= 0)
    if len(here) < MIN_OVERLAP * len(expected):
        try:
            align_genes(expected, names, var=adata.var)
        except ValueError as error:
            raise ValueError(
                f"At least {MIN_OVERLAP:.0%} of the model's genes are needed; {len(here)} of {len(expected)} are here. "
                f"{error}"
            ) from None
    return here, found[here].astype(np.int64)


@dataclass(frozen=True)
class ExpressionTable:
    """Rows of log-normalised expression, made dense a batch at a time."""

    values: sparse.csr_matrix | np.ndarray
    """n cells × genes that are there, in the order of ``here``; counts or logs."""
    here: np.ndarray
    """Which of the model's genes those are."""
    n_genes: int
    target_total: float | None
    """Total of a normalised cell over the genes that are there; ``None`` for values that are logs already."""

    @classmethod
    def read(
        cls,
        adata: AnnData,
        field: ExpressionField,
        genes: Sequence[str],
        *,
        target_total: float = 1.0,
        gene_share: np.ndarray | None = None,
    ) -> ExpressionTable:
        """Read the model's genes, as far as ``adata`` has them.

        ``target_total`` is the total of a normalised cell over all genes, ``gene_share`` what each gene has of it.
        """
        here, found = shared_genes(genes, adata)
        check = check_counts if field.scale == "counts" else check_logs
        check(field.matrix(adata), field.name)
        if len(here) < len(genes):
            missing = np.delete(np.asarray(genes, dtype=object), here)
            warn(
                f"{len(here)} of the model's {len(genes)} genes are here; {len(missing)} are not, such as "
                f"{some(missing)}. Cells are read from the genes that are.{spelling_hint(missing, adata.var_names)}"
            )
            if gene_share is not None:
                target_total *= float(gene_share[here].sum())
        in_place = np.array_equal(found, np.arange(adata.n_vars))
        values = read_counts(field.matrix(adata), None if in_place else found)
        return cls(values, here, len(genes), target_total if field.scale == "counts" else None)

    def __len__(self) -> int:
        return self.values.shape[0]

    def totals(self) -> np.ndarray:
        """Total of each cell."""
        return np.asarray(self.values.sum(axis=1)).ravel().astype(np.float64)

    def batch(self, rows: Tensor) -> Batch:
        """``expression`` (B, genes that are there), log-normalised."""
        block = self.values[rows.cpu().numpy()]
        x = torch.from_numpy(
            np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float32)
        )
        if self.target_total is not None:
            x = torch.log1p(x * (self.target_total / x.sum(-1, keepdim=True).clamp(min=1.0)))
        return {"index": rows, "expression": x}
