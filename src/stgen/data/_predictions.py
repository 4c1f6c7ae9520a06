"""Where a prediction lies and which genes it has.

A prediction whose genes are exactly ``var_names`` is a layer. Any other is an array in ``obsm`` with its gene list in
``uns[key]["genes"]``, because a table with gene names such as ``CCL3/L1/L3`` could not be written to disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stgen.data._fields import check_unique, some
from stgen.metrics import log_counts, normalize_panel

if TYPE_CHECKING:
    from anndata import AnnData

GENES = "genes"
SCALES = ("counts", "normalized", "raw")


class Prediction(NamedTuple):
    """A prediction as it lies in an AnnData."""

    key: str
    values: Any
    """Spots × genes, dense or sparse."""
    genes: pd.Index
    """Names of its columns."""
    scale: str
    """``"counts"``, ``"normalized"`` or ``"raw"``."""
    record: Mapping[str, Any]
    """What ``uns`` says about it."""

    def block(self, rows: np.ndarray, genes: pd.Index) -> np.ndarray:
        """Dense values of some spots and genes, double precision."""
        columns = self.genes.get_indexer(genes)
        values = self.values[rows]
        values = values.toarray() if sparse.issparse(values) else np.asarray(values)
        return values[:, columns].astype(np.float64)

    def on_scale(self, wanted: str, rows: np.ndarray, genes: pd.Index, *, target: float) -> np.ndarray | None:
        """Values of some spots and genes on the scale that is scored or drawn.

        What is depth-normalised stays as it is, unless only some of its genes are wanted: then it is brought to their
        total, as truth and other predictions are. ``None`` where there is no way to the scale.
        """
        values = self.block(rows, genes)
        if self.scale == "normalized" and wanted == "normalized" and len(genes) < len(self.genes):
            return rescaled(np.expm1(np.maximum(values, 0)), "counts", wanted, target=target)
        return rescaled(values, self.scale, wanted, target=target)


def rescaled(values: np.ndarray, scale: str, wanted: str, *, target: float) -> np.ndarray | None:
    """Predicted values, spots × panel, on another scale; ``None`` from normalized to raw, for the depth is gone."""
    if scale == wanted:
        return values
    if scale == "normalized":
        return None
    counts = np.expm1(np.maximum(values, 0)) if scale == "raw" else values
    is_missing = ~np.isfinite(counts)
    counts = np.where(is_missing, 0, counts)
    on_scale = normalize_panel(counts, target=target) if wanted == "normalized" else log_counts(counts)
    return np.where(is_missing, np.nan, on_scale)


def read_prediction(adata: AnnData, key: str, *, scale: str | None = None) -> Prediction:
    """Find a prediction by the key it was written under.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        A layer, or a key of ``obsm``.
    scale
        What its values are. ``None`` means what ``uns[key]`` says, else counts.
    """
    record = adata.uns.get(key, {})
    record = record if isinstance(record, Mapping) else {}
    if key in adata.layers:
        values, genes = adata.layers[key], adata.var_names
    elif key in adata.obsm:
        values, genes = _from_obsm(adata, key, record)
    else:
        raise KeyError(
            f"There is no prediction {key!r}: layers has {[k for k in adata.layers if k is not None]} and "
            f"obsm has {list(adata.obsm)}."
        )
    params = record.get("params", {})
    said = record.get("scale", params.get("scale") if isinstance(params, Mapping) else None)
    scale = scale or (str(said) if said in SCALES else "counts")
    if scale not in SCALES:
        raise ValueError(f"`scale` of {key!r} must be one of {', '.join(map(repr, SCALES))}; got {scale!r}.")
    check_unique(pd.Index(genes), f"Genes of {key!r}", "Predict every gene once.")
    return Prediction(key, values, pd.Index(genes).astype(str), scale, record)


def _from_obsm(adata: AnnData, key: str, record: Mapping[str, Any]) -> tuple[Any, Any]:
    values = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        return values.to_numpy(), values.columns
    if GENES not in record:
        raise KeyError(
            f"obsm[{key!r}] has no list of its genes: uns[{key!r}][{GENES!r}] does not exist. "
            "Store the names of its columns there, in order."
        )
    genes = np.asarray(record[GENES])
    if values.ndim != 2 or len(genes) != values.shape[1]:
        raise ValueError(
            f"obsm[{key!r}] has shape {values.shape}, but uns[{key!r}][{GENES!r}] names {len(genes)} genes: "
            f"{some(genes)}."
        )
    return values, genes


def evaluation_column(key_added: str, prediction: str, what: str) -> str:
    """Column of ``var`` with one result per gene; ``what``: score, gain, gain_low, gain_high or verdict."""
    return f"{key_added}_{prediction}_{what}"
