"""Both sides as tables: which genes they share, cells log-normalised block by block, spots with their neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stgen import _keys
from stgen._warn import warn
from stgen.data._expression import ExpressionField, ExpressionTable
from stgen.data._fields import CoordinatesField
from stgen.data._loaders import Batches, name_keys
from stgen.data._names import align_genes, check_unique, some, spelling_hint
from stgen.data._windows import neighbour_index

from ._views import N_SAMPLE, NEIGHBOURHOODS, Spots

if TYPE_CHECKING:
    from anndata import AnnData

Ints = NDArray[np.int64]

MIN_SHARED = 10
"""Genes that both sides must have at least."""
MAX_MEASURED = 1000
"""Measured genes that are looked at; of more, the most variable ones."""


def check_reference(adata: AnnData, reference: AnnData) -> None:
    """Raise unless the reference is set up and shares enough genes; say which measured genes it lacks."""
    if _keys.REFERENCE_MARK not in reference.uns:
        raise ValueError(
            "The reference is not set up. Run `CausalGeD.setup_reference(reference)`, with "
            "`expression='log'` if it holds log-normalised values, then `CausalGeD(adata, reference)`."
        )
    check_unique(
        reference.var_names, "Gene names of the reference", "Run `reference.var_names_make_unique()`."
    )
    shared = adata.var_names.intersection(reference.var_names)
    if len(shared) < min(MIN_SHARED, adata.n_vars):
        try:
            align_genes(list(adata.var_names), reference.var_names, var=reference.var)
        except ValueError as error:
            raise ValueError(
                f"At least {MIN_SHARED} genes must be in both the spatial data and the reference; {len(shared)} "
                f"are. The spatial data has {some(adata.var_names)}; the reference has "
                f"{some(reference.var_names)}. {error}"
            ) from None
    if len(shared) < MIN_SHARED:
        raise ValueError(
            f"At least {MIN_SHARED} genes must be in both the spatial data and the reference; {len(shared)} are."
        )
    if len(shared) < adata.n_vars:
        alone = adata.var_names.difference(reference.var_names)
        warn(
            f"{len(alone)} measured genes are not in the reference and are not used: {some(alone)}.{spelling_hint(alone, reference.var_names)}"
        )


def panel_of(adata: AnnData, reference: AnnData, field: ExpressionField) -> tuple[list[str], float]:
    """Measured genes that the reference has too, in the order of ``adata``, and the median total over them."""
    known = set(reference.var_names.astype(str))
    shared = [gene for gene in adata.var_names.astype(str) if gene in known]
    table = ExpressionTable.read(adata, field, shared)
    if len(shared) > MAX_MEASURED:
        detected = np.asarray((table.values > 0).mean(axis=0)).ravel()
        variance = detected * (1 - detected)
        chosen = np.sort(np.argsort(-variance, kind="stable")[:MAX_MEASURED])
        shared = [shared[i] for i in chosen]
        table = ExpressionTable.read(adata, field, shared)
    totals = table.totals()
    if not totals.any():
        raise ValueError(
            "No spot has any expression of a gene that the reference has: there is nothing to learn from."
        )
    return shared, float(np.median(totals)) or 1.0


def read_spots(
    adata: AnnData,
    expression: ExpressionField,
    place: CoordinatesField,
    genes: Sequence[str],
    target_total: float,
) -> tuple[Spots, Ints]:
    """Measured genes of spots, and which of ``genes`` these are."""
    xy, section = place.read(adata)
    table = ExpressionTable.read(adata, expression, genes, target_total=target_total)
    parts = (batch["expression"].numpy() for batch in Batches(table, np.arange(len(table))))
    x = sparse.vstack([sparse.csr_matrix(part) for part in parts], format="csr")
    near = None if xy is None else neighbour_index(xy, section, n_neighbors=max(NEIGHBOURHOODS))
    # a sample by name, whatever the order of rows
    sample = np.argsort(name_keys(adata.obs_names), kind="stable")[:N_SAMPLE]
    return Spots(x, near, sample), table.here


class ReferenceTable:
    """A reference, log-normalised block by block."""

    def __init__(self, values: Any, genes: list[str], measured: np.ndarray, total: float | None) -> None:
        self.values, self.genes, self.measured, self.total = values, genes, measured, total

    @classmethod
    def read(cls, reference: AnnData, shared: Sequence[str]) -> ReferenceTable:
        """Check and read; ``shared`` genes make up a cell's total."""
        mark = reference.uns[_keys.REFERENCE_MARK]
        field = ExpressionField(str(mark["layer"]) or None, scale=str(mark["expression"]))
        field.facts(reference)
        genes = [str(gene) for gene in reference.var_names]
        measured = align_genes(list(shared), genes)
        values = field.matrix(reference)
        if field.scale == "log":
            return cls(values, genes, measured, None)
        totals = np.asarray(values[:, measured].sum(axis=1)).ravel()
        if not (totals > 0).any():
            raise ValueError("No cell of the reference has a count of a gene that the spatial data measured.")
        if (n := int((totals > 0).sum())) < MIN_SHARED:
            raise ValueError(
                f"At least {MIN_SHARED} cells of the reference must have a count of a gene that the spatial data measured; "
                f"{n} of {len(totals)} have. Is it the same species and the same spelling of names?"
            )
        return cls(values, genes, measured, float(np.median(totals[totals > 0])))

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """Cells × genes, a thousand cells at a time; of counts, cells without a measured count are left out."""
        for start in range(0, self.values.shape[0], 1000):
            x = sparse.csr_matrix(self.values[start : start + 1000]).astype(np.float32)
            if self.total is not None:
                total = np.asarray(x[:, self.measured].sum(axis=1)).ravel()
                x = sparse.diags(self.total / np.maximum(total[total > 0], 1e-9)) @ x[total > 0]
                x = sparse.csr_matrix(x).log1p()
            if x.shape[0]:
                yield x
