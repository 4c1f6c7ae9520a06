"""Niches, labels and values of cells where the cells lie, one panel for each section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._docs import shared_doc
from stgen._labels import without_cast
from stgen.data._names import some
from stgen.get._niches import places

from ._axes import cell_size, draw_spots, many_axes, scale_bar, spot_pitch
from ._colors import MISSING, category_colors, category_legend

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@shared_doc
def niches(
    adata: AnnData,
    color: str = _keys.GEST_NICHE,
    *,
    sections: str | Sequence[str] | None = None,
    groups: str | None = None,
    layer: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    n_columns: int = 4,
    cmap: str = "viridis",
    axes: Any = None,
) -> np.ndarray:
    """Draw niches in space: cells where they lie, coloured by a column of ``obs`` or by a gene.

    All panels have one scale of length and, for numbers, one of colour (1st to 99th percentile).

    Parameters
    ----------
    adata
        %(adata)s
    color
        Column of ``obs``: categories (colours of ``uns["{color}_colors"]``, where scanpy keeps them) or numbers. Or the
        name of a gene.
    sections
        Sections to draw, in this order. ``None`` draws all.
    groups
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.
    layer
        For a gene: the layer. ``None`` means ``X``.
    spatial_key
        %(spatial_key)s
    n_columns
        Panels in a row.
    cmap
        Colour map of numbers.
    axes
        Axes to draw on, one for each section.

    Returns
    -------
    Array of axes, one for each section.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=100)
    >>> axes = stg.pl.niches(adata, "region")
    """
    values = _values(adata, color, layer)
    table = places(adata, spatial_key, groups)
    where = _panels(table, sections)
    is_label = isinstance(values.dtype, pd.CategoricalDtype)
    drawn = np.concatenate(list(where.values()))
    style, colors = _style(adata, color, values, drawn, cmap)
    numbers = values.cat.codes.to_numpy() if is_label else values.to_numpy(dtype=np.float64)
    shown = np.ma.masked_invalid(np.where(numbers < 0, np.nan, numbers) if is_label else numbers)

    xy = table[["x", "y"]].to_numpy()
    size = np.maximum(np.max([np.ptp(xy[rows], axis=0) for rows in where.values()], axis=0), 1e-9)
    n_columns = min(max(1, n_columns), len(where))
    n_rows = -(-len(where) // n_columns)
    given = axes is not None
    if given:
        n_rows, n_columns = 1, len(where)
    grid = many_axes(axes, n_rows, n_columns, 2.9, 2.7 * min(max(size[1] / size[0], 0.4), 2.5) + 0.4)
    panels = grid.ravel()
    for ax, (name, rows) in zip(panels, where.items()):
        spots = draw_spots(ax, xy[rows], shown[rows], diameter=cell_size(xy[rows]), **style)
        _one_scale(ax, xy[rows], size)
        ax.set_title(name, fontsize="medium")
    for ax in panels[len(where) :]:
        ax.set_axis_off()
    rows = next(iter(where.values()))
    scale_bar(panels[0], xy[rows])
    for ax in panels[1 : len(where)]:  # the bar makes room in every panel, so that all stay of one size
        high = ax.get_ylim()[1]
        ax.set_ylim(high + np.ptp(panels[0].get_ylim()), high)
    if is_label:
        names = [str(name) for name in values.cat.categories]
        last = panels[min(n_columns, len(where)) - 1]
        category_legend(
            last, names, colors, title=color, missing=bool(np.ma.getmaskarray(shown)[drawn].any())
        )
    else:
        bar = panels[0].figure.colorbar(spots, ax=list(panels), shrink=0.7, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(color, fontsize="small")
        bar.ax.tick_params(labelsize="small")
    return panels[: len(where)]


def _values(adata: AnnData, color: str, layer: str | None) -> pd.Series:
    """One value for each cell: categories or numbers."""
    if color in adata.obs:
        column = without_cast(adata.obs[color])
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        return column if is_number else column.astype("category")
    if color in adata.var_names:
        place = int(np.flatnonzero(adata.var_names == color)[0])
        X = adata.X if layer is None else adata.layers[layer]
        block = X[:, [place]]
        values = np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64).ravel()
        return pd.Series(values, index=adata.obs_names)
    raise KeyError(
        f"{color!r} is neither a column of `obs` nor a gene; obs has {list(adata.obs.columns)}. Cluster the niche "
        "embedding (`sc.pp.neighbors` with `use_rep=`, `sc.tl.leiden`) or run `stg.tl.gest_annotate`."
    )


def _panels(table: pd.DataFrame, sections: str | Sequence[str] | None) -> dict[str, np.ndarray]:
    """Rows of each section, by its name."""
    if "section" not in table:
        if sections is not None:
            raise KeyError("`sections` needs `groups`, the column of `obs` that tells sections apart.")
        return {"": np.arange(len(table))}
    column = table["section"]
    known = (
        list(column.cat.categories)
        if isinstance(column.dtype, pd.CategoricalDtype)
        else sorted(column.dropna().unique(), key=str)
    )
    names = column.astype(str).to_numpy()
    present = [str(name) for name in known if (names == str(name)).any()]
    asked = (
        present if sections is None else [sections] if isinstance(sections, str) else list(map(str, sections))
    )
    missing = [name for name in asked if name not in present]
    if missing or not asked:
        raise KeyError(f"There is no section {some(missing) or 'to draw'}; there are {some(present, 8)}.")
    return {name: np.flatnonzero(names == name) for name in asked}


def _style(
    adata: AnnData, color: str, values: pd.Series, drawn: np.ndarray, cmap: str
) -> tuple[dict[str, Any], list[Any]]:
    """Colour map and limits; the colours of categories."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.cat.categories
        colors = category_colors(adata, color, categories)
        return {
            "cmap": ListedColormap(colors or [MISSING]).with_extremes(bad=MISSING),
            "clim": (-0.5, len(colors) - 0.5),
        }, colors
    numbers = values.to_numpy(dtype=np.float64)[drawn]
    numbers = numbers[np.isfinite(numbers)]
    low, high = np.percentile(numbers, [1, 99]) if len(numbers) else (0.0, 1.0)
    return {
        "cmap": matplotlib.colormaps[cmap].with_extremes(bad=MISSING),
        "clim": (low, high if high > low else low + 1),
    }, []


def _one_scale(ax: Axes, xy: np.ndarray, size: np.ndarray) -> None:
    """Limits of the same length in every panel, around the middle of the section."""
    middle = (xy.min(axis=0) + xy.max(axis=0)) / 2
    half = size / 2 + spot_pitch(xy)
    ax.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] + half[1], middle[1] - half[1]))
