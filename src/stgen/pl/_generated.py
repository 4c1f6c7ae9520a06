"""Generated beside true genes in an unseen region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._names import some, spelling_hint
from stgen.get._generated import generated_rows, measured, read_generation
from stgen.get._niches import places
from stgen.metrics import pearson

from ._axes import INK, cell_size, draw_spots, many_axes, scale_bar, spot_pitch

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

FAINT_ALPHA = 0.25


@shared_doc
def generated(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    key: str = _keys.GEST,
    section: str | None = None,
    groups: str | None = None,
    margin_um: float | None = None,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "magma",
    axes: Any = None,
) -> np.ndarray:
    """Draw genes in and around unseen cells: measured on the left, generated in the middle, one against the other.

    Cells that the model saw are faint and show what was measured in both maps. A row of maps shares its colour limits.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_generate` wrote to, with measured expression of the cells it generated.
    genes
        One gene or several, one row each.
    key
        Key of the generation.
    section
        Which section; needed if cells of several were generated.
    groups
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.
    margin_um
        How far around the generated cells is drawn, µm. By default half the longer side of what they cover.
    spatial_key
        %(spatial_key)s
    cmap
        Colour map.
    axes
        Axes to draw on, three for each gene, row by row.

    Returns
    -------
    Array of axes, genes × 3.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200, unit="cells")
    >>> hole = abs(adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0)).max(axis=1) < 30
    >>> stg.tl.gest_generate(adata, mask=hole, train_kwargs={"max_epochs": 1})
    >>> axes = stg.pl.generated(adata, ["gene_001", "gene_002"])
    """
    found = read_generation(adata, key)
    names = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
    missing = names[~(names.isin(found.genes) & names.isin(adata.var_names))]
    if len(missing) or not len(names):
        both = found.genes[found.genes.isin(adata.var_names)]
        raise KeyError(
            f"`genes` must be measured and generated; {some(missing) or 'none given'} are not. There are {len(both)}, such "
            f"as {some(both)}.{spelling_hint(missing, both)}"
        )
    table = places(adata, spatial_key, groups)
    made = _of_section(table, generated_rows(adata, found), section)
    rows, is_made = _in_view(table, made, margin_um)
    xy = table[["x", "y"]].to_numpy()[rows]
    truth = measured(adata, found, names, rows)
    values = truth.copy()
    values[is_made] = found.block(rows[is_made], names)
    with np.errstate(invalid="ignore"):
        r = pearson(truth[is_made], values[is_made]) if is_made.sum() > 1 else np.full(len(names), np.nan)

    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    axes = many_axes(axes, len(names), 3, 2.8, 2.5 * min(max(height / width, 0.5), 2.0) + 0.5)
    diameter = spot_pitch(xy)
    for i, gene in enumerate(names):
        low, high = _limits(truth[:, i])
        style: dict[str, Any] = {"cmap": cmap, "clim": (low, high)}
        for ax, column, title in ((axes[i, 0], truth, "measured"), (axes[i, 1], values, "generated")):
            spots = _draw(ax, xy, column[:, i], is_made, style)
            ax.set_title(f"{gene}, {title}", fontsize="medium")
        bar = axes[i, 0].figure.colorbar(spots, ax=list(axes[i, :2]), shrink=0.7, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("log-normalised expression", fontsize="small")
        bar.ax.tick_params(labelsize="small")
        _against(axes[i, 2], truth[is_made, i], values[is_made, i], r[i])
    scale_bar(axes[-1, 0], xy)
    for ax in axes[:, :2].ravel():
        ax.set_ylim(axes[-1, 0].get_ylim())
        ax.set_xlim(xy[:, 0].min() - diameter, xy[:, 0].max() + diameter)
    return axes


def _of_section(table: pd.DataFrame, made: np.ndarray, section: str | None) -> np.ndarray:
    """Generated cells of the section that is drawn."""
    if "section" not in table:
        if section is not None:
            raise KeyError("`section` needs `groups`, the column of `obs` that tells sections apart.")
        return made
    names = table["section"].astype(str).to_numpy()[made]
    present = sorted(set(names))
    if section is None and len(present) > 1:
        raise ValueError(
            f"Cells of {len(present)} sections were generated; name one with `section=`: {some(present, 8)}."
        )
    section = present[0] if section is None and present else str(section)
    if section not in present:
        raise KeyError(f"No cell of section {section!r} was generated; those are in {some(present, 8)}.")
    return made[names == section]


def _in_view(table: pd.DataFrame, made: np.ndarray, margin_um: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Cells in and around the generated ones, and which of them were generated."""
    xy = table[["x", "y"]].to_numpy()
    low, high = xy[made].min(axis=0), xy[made].max(axis=0)
    if margin_um is None:
        margin_um = max(0.5 * float((high - low).max()), 5 * spot_pitch(xy))
    inside = ((xy >= low - margin_um) & (xy <= high + margin_um)).all(axis=1)
    if "section" in table:
        names = table["section"].astype(str).to_numpy()
        inside &= names == names[made[0]]
    rows = np.flatnonzero(inside)
    return rows, np.isin(rows, made)


def _limits(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _draw(ax: Axes, xy: np.ndarray, values: np.ndarray, is_made: np.ndarray, style: dict[str, Any]) -> Any:
    """Seen cells faint, generated ones full; a colour bar wants the latter."""
    spots = draw_spots(ax, xy, np.ma.masked_invalid(values), diameter=cell_size(xy), **style)
    alpha = np.where(is_made, 1.0, FAINT_ALPHA)
    spots.set_alpha(alpha)  # type: ignore[arg-type]
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(*style["clim"]), cmap=style["cmap"])


def _against(ax: Axes, truth: np.ndarray, values: np.ndarray, r: float) -> None:
    """Generated against measured, one dot for each cell."""
    both = np.concatenate([truth, values])
    low, high = (
        (float(both.min()), float(both.max())) if np.isfinite(both).all() and len(both) else (0.0, 1.0)
    )
    pad = 0.05 * (high - low or 1.0)
    ax.plot([low, high], [low, high], color="#bbbbbb", linewidth=1, zorder=0)
    ax.scatter(truth, values, s=9, color="#0f7c7c", alpha=0.6, linewidths=0, rasterized=len(truth) > 5000)
    ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    ax.set_aspect("equal")
    ax.set_xlabel("measured", fontsize="small", color=INK)
    ax.set_ylabel("generated", fontsize="small", color=INK)
    ax.set_title(f"r = {r:.2f}, {len(truth)} cells", fontsize="medium")
    ax.tick_params(labelsize="small", colors=INK)
    ax.spines[["top", "right"]].set_visible(False)
