"""Maps of genes: what was measured beside what was predicted, on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import read_counts, some
from stgen.data._names import spelling_hint
from stgen.data._places import library_column, read_xy
from stgen.data._predictions import Prediction, read_prediction, rescaled
from stgen.metrics import panel_target, pearson

from ._axes import draw_spots, many_axes, scale_bar

if TYPE_CHECKING:
    from anndata import AnnData

MEASURED = "measured"
UNITS = {"normalized": "log normalised expression", "raw": "log (count + 1)"}


@shared_doc
def gene_maps(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    prediction: str | Sequence[str] = _keys.GENAR,
    truth: str | None = None,
    section: str | None = None,
    groups: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    scale: str = "normalized",
    prediction_scale: str | Mapping[str, str] | None = None,
    cmap: str = "magma",
    axes: Any = None,
) -> np.ndarray:
    """Draw genes of one section: measured on the left, predictions side by side, with their Pearson correlations.

    A row of maps shares its colour limits (1st to 99th percentile of all its values), so a prediction that is too
    flat looks flat.

    Parameters
    ----------
    adata
        %(adata)s
    genes
        One gene or several, one row each.
    prediction
        Key of a prediction, or several, one column each: a layer, or an array in ``obsm`` with its genes in
        ``uns[key]["genes"]``.
    truth
        Layer of the measured counts. ``None`` means ``X``.
    section
        Which section; needed if there are several.
    groups
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.
    spatial_key
        %(spatial_key)s
    scale
        ``"normalized"`` (log1p of counts divided by the spot's total over the predicted genes) or ``"raw"`` (log1p of
        counts).
    prediction_scale
        What the predicted values are: ``"counts"``, ``"normalized"`` or ``"raw"``; a dict for several predictions that
        differ. ``None`` means what ``uns[key]`` says, else counts.
    cmap
        Colour map.
    axes
        Axes to draw on, one for each map, row by row.

    Returns
    -------
    Array of axes, genes × (1 + predictions).

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=100, n_genes=20)
    >>> adata.layers["mine"] = adata.X.toarray()
    >>> axes = stg.pl.gene_maps(adata, "gene_001", prediction="mine", section="s1")
    >>> axes[0, 1].get_title()
    'mine, r = 1.00'
    """
    if scale not in UNITS:
        raise ValueError(f"`scale` must be one of {', '.join(map(repr, UNITS))}; got {scale!r}.")
    genes = [genes] if isinstance(genes, str) else list(genes)
    keys = [prediction] if isinstance(prediction, str) else list(prediction)
    _check_keys(keys, prediction_scale)
    found = [read_prediction(adata, key, scale=_scale_of(prediction_scale, key)) for key in keys]
    panel = _panel(adata, found, genes)
    rows = _rows(adata, section, groups)
    xy = read_xy(adata, spatial_key)[rows]
    columns = _columns(adata, found, panel, rows, truth, scale)
    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    axes = many_axes(axes, len(genes), len(columns), 2.7, 2.4 * min(max(height / width, 0.4), 2.5) + 0.5)
    place = panel.get_indexer(pd.Index(genes))
    measured = next(iter(columns.values()))
    with np.errstate(invalid="ignore"):
        r = {name: pearson(measured[:, place], values[:, place]) for name, values in columns.items()}
    for i, gene in enumerate(genes):
        values = [column[:, place[i]] for column in columns.values()]
        low, high = _limits(values)
        for j, (name, value) in enumerate(zip(columns, values)):
            spots = draw_spots(axes[i, j], xy, value, cmap=cmap, clim=(low, high))
            title = f"{gene}, measured" if j == 0 else f"{name}, r = {r[name][i]:.2f}"
            axes[i, j].set_title(title, fontsize="medium")
        bar = axes[i, 0].figure.colorbar(spots, ax=list(axes[i]), shrink=0.7, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(UNITS[scale], fontsize="small")
        bar.ax.tick_params(labelsize="small")
    scale_bar(axes[-1, 0], xy)
    for ax in axes[:, :].ravel():
        ax.set_ylim(axes[-1, 0].get_ylim())  # the bar makes room in every map, so that all stay of one size
    return axes


def _check_keys(keys: Sequence[str], scale: str | Mapping[str, str] | None) -> None:
    if not keys or len(set(keys)) < len(keys) or MEASURED in keys:
        raise ValueError(
            f"`prediction` must be one key or several different ones, none of them {MEASURED!r}; got {list(keys)}."
        )
    unknown = [name for name in scale if name not in keys] if isinstance(scale, Mapping) else []
    if unknown:
        raise ValueError(
            f"`prediction_scale` names {unknown}, which are not among the predictions {list(keys)}."
        )


def _scale_of(scale: str | Mapping[str, str] | None, key: str) -> str | None:
    return scale.get(key) if isinstance(scale, Mapping) else scale


def _panel(adata: AnnData, predictions: Sequence[Prediction], genes: Sequence[str]) -> pd.Index:
    """Genes that truth and predictions share: spots are divided by their total."""
    panel = pd.Index(adata.var_names).astype(str)
    for prediction in predictions:
        panel = panel[panel.isin(prediction.genes)]
    missing = [gene for gene in genes if gene not in panel]
    if missing or not genes:
        lacking = [one.key for one in predictions if not set(missing) <= set(one.genes)]
        who = f" (not in {some(lacking)})" if lacking and len(predictions) > 1 else ""
        raise KeyError(
            f"`genes` must be measured and predicted; {some(missing) or 'none given'} are not{who}. "
            f"There are {len(panel)}, such as {some(panel)}.{spelling_hint(missing, panel)}"
        )
    return panel


def _rows(adata: AnnData, section: str | None, groups: str | None) -> np.ndarray:
    groups = library_column(adata, groups, usual=_keys.LIBRARY)
    if groups is None:
        if section is not None:
            raise KeyError("`section` needs `groups`, the column of `obs` that tells sections apart.")
        return np.arange(adata.n_obs)
    column = adata.obs[groups].astype(str).to_numpy()
    names = sorted(set(column))
    if section is None and len(names) > 1:
        raise ValueError(f"There are {len(names)} sections; name one with `section=`: {some(names, 8)}.")
    section = names[0] if section is None else str(section)
    if section not in names:
        raise KeyError(f"obs[{groups!r}] has no section {section!r}; it has {some(names, 8)}.")
    return np.flatnonzero(column == section)


def _columns(
    adata: AnnData,
    predictions: Sequence[Prediction],
    panel: pd.Index,
    rows: np.ndarray,
    truth: str | None,
    scale: str,
) -> Mapping[str, np.ndarray]:
    """Values on the scale that is drawn, spots × panel, measured first."""
    if truth is not None and truth not in adata.layers:
        layers = [key for key in adata.layers if key is not None]
        raise KeyError(f"layers[{truth!r}] does not exist; layers has {layers}.")
    X = adata.X if truth is None else adata.layers[truth]
    found: Any = read_counts(X[rows], adata.var_names.get_indexer(panel))
    counts = np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64)
    has_counts = counts.sum(axis=1) > 0
    target = panel_target(counts[has_counts]) if has_counts.any() else 1.0
    measured = rescaled(counts, "counts", scale, target=target)
    columns = {} if measured is None else {MEASURED: measured}
    for prediction in predictions:
        values = prediction.on_scale(scale, rows, panel, target=target)
        if values is None:
            raise ValueError(
                f"{prediction.key!r} is depth-normalised; it cannot be drawn with `scale='raw'`. Draw all with "
                "`scale='normalized'`."
            )
        columns[prediction.key] = values
    return columns


def _limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    together = np.concatenate(values)
    together = together[np.isfinite(together)]
    if not len(together):
        return 0.0, 1.0
    low, high = np.percentile(together, [1, 99])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
