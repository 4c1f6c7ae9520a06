"""Meta cells among the cells they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.get._niches import meta_cells as read_meta_cells

from ._axes import INK, one_axes
from ._colors import MISSING, category_colors, category_legend

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@shared_doc
def meta_cells(
    adata: AnnData,
    color: str | None = None,
    *,
    key: str = _keys.X_GEST,
    basis: str = _keys.UMAP,
    cmap: str = "magma",
    ax: Axes | None = None,
) -> Axes:
    """Draw meta cells in a UMAP: circles at the median of the cells they stand for, as large as those are many.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_niche_embed` wrote to, with a UMAP (of expression, ``sc.tl.umap``).
    color
        Column of ``obs`` with labels (a circle has the commonest of its cells), a gene of the model (log-normalised mean),
        or ``None``.
    key
        Key of the niche embedding.
    basis
        Key in ``obsm`` of the map; its first two columns are drawn.
    cmap
        Colour map of a gene.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import scanpy as sc, stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200, unit="cells")
    >>> stg.tl.gest_niche_embed(adata, train_kwargs={"max_epochs": 1})
    >>> sc.pp.pca(adata)
    >>> ax = stg.pl.meta_cells(adata, "cell_type", basis="X_pca")
    """
    if basis not in adata.obsm:
        raise KeyError(
            f"obsm[{basis!r}] does not exist; obsm has {list(adata.obsm)}. Run `sc.pp.neighbors` and `sc.tl.umap` first, or "
            "name another map with `basis=`."
        )
    is_label = color is not None and color in adata.obs
    words = read_meta_cells(adata, key, by=color if is_label else None)
    if color is not None and not is_label and color not in words.var_names:
        raise KeyError(
            f"{color!r} is neither a column of `obs` nor a gene of the model; obs has {list(adata.obs.columns)}."
        )
    xy = np.asarray(adata.obsm[basis])[:, :2].astype(np.float64)
    label = adata.obs[_keys.meta_cell_key(key)].to_numpy()
    n_cells = pd.DataFrame(words.obs)["n_cells"].to_numpy()
    there = np.flatnonzero(n_cells > 0)
    n_cells = n_cells[there]
    middle = pd.DataFrame(xy).groupby(label).median().loc[there].to_numpy()

    ax = one_axes(ax, 5.4, 4.6)
    faint: dict[str, Any] = {
        "s": float(np.clip(20_000 / len(xy), 1, 12)),
        "linewidths": 0,
        "rasterized": len(xy) > 5000,
    }
    circles: dict[str, Any] = {
        "s": 260 * n_cells / n_cells.max() + 12,
        "edgecolors": INK,
        "linewidths": 0.8,
        "zorder": 3,
    }
    if is_label:
        column = adata.obs[color].astype("category")
        colors = category_colors(adata, str(color), column.cat.categories)
        own = np.array([*colors, MISSING], dtype=object)
        ax.scatter(xy[:, 0], xy[:, 1], c=list(own[column.cat.codes.to_numpy()]), alpha=0.3, **faint)
        ax.scatter(
            middle[:, 0], middle[:, 1], c=list(own[words.obs[color].cat.codes.to_numpy()[there]]), **circles
        )
        names = [str(name) for name in column.cat.categories]
        category_legend(ax, names, colors, title=str(color), missing=bool(column.isna().any()))
    else:
        ax.scatter(xy[:, 0], xy[:, 1], c="#cccccc", alpha=0.5, **faint)
        if color is None:
            ax.scatter(middle[:, 0], middle[:, 1], c="#0f7c7c", **circles)
        else:
            values = np.asarray(words[:, color].X).ravel()[there]
            drawn = ax.scatter(middle[:, 0], middle[:, 1], c=values, cmap=cmap, **circles)
            bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.7, aspect=18, pad=0.02)
            bar.outline.set_visible(False)
            bar.set_label(f"{color}, log-normalised", fontsize="small")
    name = basis.removeprefix("X_").upper()
    ax.set_xlabel(f"{name}1", fontsize="small", color=INK)
    ax.set_ylabel(f"{name}2", fontsize="small", color=INK)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{len(there)} meta cells of {len(xy)} cells", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
