"""The hierarchy of gene groups, coarse to fine, as an icicle: what lies under a block belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._axes import INK, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gene_groups(
    groups: pd.DataFrame,
    *,
    gene_names: bool | None = None,
    cmap: str = "turbo",
    ax: Axes | None = None,
) -> Axes:
    """Draw which genes share a group at every scale.

    Genes lie from left to right in the order of the hierarchy, scales from top (coarse) to bottom (fine). Groups near
    each other in the hierarchy have similar colours.

    Parameters
    ----------
    groups
        Genes × scales, coarse to fine, with group numbers, as a model's ``get_gene_groups()`` gives it. Genes are the
        index or a column ``gene``.
    gene_names
        Whether to write the names of the genes. ``None`` writes them for up to 120.
    cmap
        Colour map.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import pandas as pd, stgen as stg
    >>> groups = pd.DataFrame({"scale_1": 0, "scale_2": [0, 0, 1], "scale_3": [0, 1, 2]}, index=["CD8A", "CD3E", "KRT5"])
    >>> ax = stg.pl.gene_groups(groups)
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    table = groups.set_index("gene") if "gene" in groups.columns else groups
    if table.empty or not len(table.columns):
        raise ValueError("`groups` must be a table genes × scales; it is empty.")
    # coarse groups first, then finer ones inside them
    order = np.lexsort([pd.factorize(table[column], sort=True)[0] for column in table.columns[::-1]])
    table = table.iloc[order]
    n_genes, n_scales = table.shape
    gene_names = n_genes <= 120 if gene_names is None else gene_names
    ax = one_axes(ax, min(14, max(6, 0.13 * n_genes)), 0.6 + 0.45 * n_scales + (0.7 if gene_names else 0))
    rectangles, color = [], []
    for level, column in enumerate(table.columns):
        start = run_starts(table[column].to_numpy())
        for left, right in zip(start, [*start[1:], n_genes]):
            rectangles.append(Rectangle((left, level), right - left, 0.92))
            color.append((left + right) / 2 / n_genes)
            if right - left >= max(3, n_genes / 40) and n_scales > 1:
                ax.text(
                    (left + right) / 2,
                    level + 0.46,
                    f"{right - left}",
                    ha="center",
                    va="center",
                    fontsize="small",
                )
    width = 0 if n_genes > 400 else 0.5
    blocks = PatchCollection(rectangles, cmap=cmap, edgecolor="white", linewidth=width, alpha=0.65)
    blocks.set_array(np.array(color))
    blocks.set_clim(0, 1)
    ax.add_collection(blocks)
    ax.set(xlim=(0, n_genes), ylim=(n_scales, 0))
    n_groups = [table[column].nunique() for column in table.columns]
    ax.set_yticks(
        np.arange(n_scales) + 0.46,
        [f"{n} group{'s' if n > 1 else ''}" if n < n_genes else f"{n} genes" for n in n_groups],
    )
    if gene_names:
        size = "small" if n_genes <= 60 else "x-small"
        ax.set_xticks(np.arange(n_genes) + 0.5, list(map(str, table.index)), rotation=90, fontsize=size)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{n_genes} genes, in the order of the hierarchy")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, colors=INK)
    return ax


def run_starts(values: np.ndarray) -> list[int]:
    """Where a value differs from the one before."""
    return [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()]
