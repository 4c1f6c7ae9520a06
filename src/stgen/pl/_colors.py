"""Colours of categories: those that scanpy keeps beside the column, else our own, far apart from their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

CATEGORY_COLORS = (
    "#0f7c7c", "#e08a3c", "#6d5fb0", "#b8c430", "#c8486b", "#3f7fc4", "#8a5a33", "#5fbf8f", "#d9a5c9", "#4d4d4d",
    "#e6c229", "#8fc7e8", "#a33a2c", "#27598c", "#a8a08a", "#d15fb5", "#5b8c3a", "#f2b5a0", "#7c93a8", "#1f3d3a",
)  # fmt: skip
MISSING = "#dddddd"


def category_colors(adata: AnnData, key: str, categories: pd.Index) -> list[Any]:
    """A colour for each category; nothing is written."""
    kept = adata.uns.get(_keys.colors_key(key))
    if kept is not None and len(kept) >= len(categories):
        return [str(color) for color in kept][: len(categories)]
    if len(categories) <= len(CATEGORY_COLORS):
        return list(CATEGORY_COLORS[: len(categories)])
    import matplotlib

    # far more categories than anyone can tell apart: at least neighbours in the legend differ
    hues = (np.arange(len(categories)) * 0.381966) % 1
    return list(matplotlib.colormaps["hsv"](0.03 + 0.94 * hues))


def category_legend(ax: Axes, names: list[str], colors: list[Any], *, title: str, missing: bool) -> None:
    """Names of colours, right of the axes."""
    from matplotlib.lines import Line2D

    names = [*names, *(["none"] if missing else [])]
    colors = [*colors, *([MISSING] if missing else [])]
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=name, markersize=6)
        for name, color in zip(names, colors)
    ]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=1 + (len(names) - 1) // 16,
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="small",
        handletextpad=0.2,
        borderpad=0,
        alignment="left",
    )
