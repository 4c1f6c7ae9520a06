"""Generated expression beside what was measured, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import read_counts
from stgen.data._names import some, spelling_hint
from stgen.data._predictions import Prediction, read_prediction

from ._niches import places

if TYPE_CHECKING:
    from anndata import AnnData


@shared_doc
def generated(
    adata: AnnData,
    key: str = _keys.GEST,
    *,
    genes: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
) -> pd.DataFrame:
    """Generated cells as a tidy table: one row for each cell and gene.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_generate` wrote to.
    key
        Key of the generation.
    genes
        Genes, in the order wanted. ``None`` means all that were generated.
    spatial_key
        %(spatial_key)s
    library_key
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.

    Returns
    -------
    Table with ``cell``, ``section`` (if there is one), ``x``, ``y``, ``round``, ``n_windows``, ``isolated``, ``gene``,
    ``generated`` and ``measured``, both log-normalised on the scale of the model; ``measured`` is NaN for genes that
    ``adata`` does not have.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200, unit="cells")
    >>> hole = abs(adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0)).max(axis=1) < 30
    >>> stg.tl.gest_generate(adata, mask=hole, train_kwargs={"max_epochs": 1})
    >>> list(stg.get.generated(adata, genes="gene_001"))[-3:]
    ['gene', 'generated', 'measured']
    """
    found = read_generation(adata, key)
    names = found.genes if genes is None else _asked(found, genes)
    rows = generated_rows(adata, found)
    values, truth = found.block(rows, names), measured(adata, found, names, rows)
    table = places(adata[rows], spatial_key, library_key)
    table.insert(0, "cell", table.index)
    for name, column in (
        ("round", _keys.round_key(key)),
        ("n_windows", _keys.n_windows_key(key)),
        ("isolated", _keys.isolated_key(key)),
    ):
        if column in adata.obs:
            kind = bool if name == "isolated" else np.int64
            table[name] = adata.obs[column].to_numpy()[rows].astype(kind)
    table = table.loc[table.index.repeat(len(names))].reset_index(drop=True)
    table["gene"] = pd.Categorical.from_codes(np.tile(np.arange(len(names)), len(rows)), categories=names)
    table["generated"], table["measured"] = values.ravel(), truth.ravel()
    return table


def read_generation(adata: AnnData, key: str) -> Prediction:
    """A generation by its key; other predictions have no cells that were left out."""
    found = read_prediction(adata, key)
    if "target_total" not in found.record.get("params", {}) and "panel" not in found.record:
        raise KeyError(
            f"{key!r} was not written by `stg.tl.gest_generate`: uns[{key!r}] does not say how cells were normalised."
        )
    return found


def _asked(found: Prediction, genes: str | Sequence[str]) -> pd.Index:
    names = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
    missing = names[~names.isin(found.genes)]
    if len(missing):
        raise KeyError(
            f"{found.key!r} has no gene {some(missing)}; it has {some(found.genes)}.{spelling_hint(missing, found.genes)}"
        )
    return names


def generated_rows(adata: AnnData, found: Prediction) -> np.ndarray:
    """Cells that were generated."""
    column = _keys.round_key(found.key)
    if column in adata.obs:
        return np.flatnonzero(adata.obs[column].notna())
    return np.flatnonzero(np.isfinite(np.asarray(found.values[:, 0], dtype=np.float64)))


def measured(adata: AnnData, found: Prediction, genes: pd.Index, rows: np.ndarray) -> np.ndarray:
    """Measured expression of some cells on the scale of the generation; NaN for genes that were not measured."""
    params = found.record["params"]
    layer = params.get("layer")
    X = adata.X if layer is None else adata.layers[str(layer)]
    panel = pd.Index([str(gene) for gene in found.record.get("panel", adata.var_names)])
    panel = panel[panel.isin(adata.var_names)]
    block: Any = read_counts(X[rows], adata.var_names.get_indexer(panel))
    values = np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)
    if "target_total" in params:
        total = np.maximum(values.sum(axis=1, keepdims=True), 1.0)
        values = np.log1p(values * (float(params["target_total"]) / total))
    out = np.full((len(rows), len(genes)), np.nan)
    there = panel.get_indexer(genes)
    out[:, there >= 0] = values[:, there[there >= 0]]
    return out
