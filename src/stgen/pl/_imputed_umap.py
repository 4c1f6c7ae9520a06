"""Imputed beside measured expression in one embedding: could one be taken for the other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.get._imputed import asked_genes, read_imputation, true_expression, truth_genes

from ._axes import KIND_COLORS, many_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

SOURCE_COLORS = {"measured": "#8c8c8c", "imputed": KIND_COLORS["model"]}
N_COMPONENTS = 30
N_NEIGHBORS = 15
MAX_CLASSES = 20


@shared_doc
def imputed_umap(
    adata: AnnData,
    *,
    truth: AnnData | pd.DataFrame | str,
    key: str = _keys.CAUSALGED,
    genes: Sequence[str] | None = None,
    color: str | None = None,
    max_spots: int = 3000,
    random_state: int = 0,
    axes: Any = None,
) -> np.ndarray:
    """Draw spots twice in one UMAP, by what was measured of the imputed genes and by what was imputed.

    Every spot is a dot of each colour. The title says how many of a dot's 15 nearest neighbours (in 30 principal components)
    are of the other colour: 50 %% if nobody could tell them apart. Imputed values are expectations and have no counting noise,
    so expect less; what is worth seeing is whether they lie beside the same cells, with ``color``. Every gene varies as much
    as it was measured to, on both sides, so that what was imputed too flat stays flat.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to.
    truth
        What was measured of the imputed genes, as in :func:`stgen.pl.imputed`.
    key
        Key of the imputation.
    genes
        Imputed genes to embed. ``None`` takes all that ``truth`` has.
    color
        Column of ``obs``: a second map shows it, such as cell types or regions, for dots of both sources.
    max_spots
        Of more spots, this many are drawn, chosen at random.
    random_state
        %(random_state)s
    axes
        Axes to draw on, two with ``color`` and else one.

    Returns
    -------
    Array of axes, 1 × 1, or 1 × 2 with ``color``.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> axes = stg.pl.imputed_umap(adata, truth=tissue, color="region")
    """
    found = read_imputation(adata, key)
    names = found.genes if genes is None else asked_genes(found, genes)
    if genes is None:
        names = names[names.isin(truth_genes(adata, truth))]
    if len(names) < 3:
        raise ValueError(f"At least 3 imputed genes that `truth` has are needed; there are {len(names)}.")
    if color is not None and color not in adata.obs:
        raise KeyError(f"obs[{color!r}] does not exist; obs has {list(adata.obs)}.")
    if adata.n_obs <= N_NEIGHBORS:
        raise ValueError(f"More than {N_NEIGHBORS} spots are needed; there are {adata.n_obs}.")
    rng = np.random.default_rng(random_state)
    rows = np.sort(rng.permutation(adata.n_obs)[:max_spots])
    values = {
        "measured": true_expression(adata, found, names, truth)[rows],
        "imputed": found.block(rows, names),
    }
    xy, mixing = _embedded(values, random_state)
    source = np.repeat(list(values), len(rows))

    axes = many_axes(axes, 1, 1 if color is None else 2, 4.2, 4.2)
    order = rng.permutation(len(xy))  # no colour lies on top of the other
    dot = {"s": float(np.clip(8000 / len(xy), 2, 14)), "linewidths": 0, "alpha": 0.8, "rasterized": True}
    left = axes[0, 0]
    left.scatter(xy[order, 0], xy[order, 1], c=[SOURCE_COLORS[name] for name in source[order]], **dot)
    _legend(left, SOURCE_COLORS)
    left.set_title(f"{mixing:.0%} of neighbours from the other (50 % if alike)", fontsize="medium")
    if color is not None:
        _colored(axes[0, 1], xy, np.tile(rows, 2), order, adata.obs[color], dot)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _embedded(values: dict[str, np.ndarray], seed: int) -> tuple[np.ndarray, float]:
    """UMAP of both sources together, and the share of neighbours that are of the other source."""
    import scanpy as sc
    from anndata import AnnData

    unit = values["measured"].std(axis=0)
    unit = np.where(unit > 1e-8, unit, np.inf)
    both = AnnData(np.concatenate([one / unit for one in values.values()]).astype(np.float32))
    sc.pp.pca(both, n_comps=min(N_COMPONENTS, both.n_vars - 1, both.n_obs - 1), random_state=seed)
    sc.pp.neighbors(both, n_neighbors=N_NEIGHBORS, random_state=seed)
    sc.tl.umap(both, random_state=seed)
    first, other = both.obsp[_keys.NEIGHBOR_DISTANCES].nonzero()
    half = both.n_obs // 2
    return np.asarray(both.obsm[_keys.UMAP]), float(((first < half) != (other < half)).mean())


def _colored(
    ax: Axes, xy: np.ndarray, rows: np.ndarray, order: np.ndarray, column: pd.Series, dot: dict[str, Any]
) -> None:
    """Dots by a column of ``obs``."""
    import matplotlib

    ax.set_title(str(column.name), fontsize="medium")
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > MAX_CLASSES:
        number = column.to_numpy(dtype=np.float64)[rows]
        dots = ax.scatter(xy[order, 0], xy[order, 1], c=number[order], cmap="viridis", **dot)
        ax.figure.colorbar(dots, ax=ax, shrink=0.6, aspect=18, pad=0.02).outline.set_visible(False)
        return
    label = column.astype(str).to_numpy()[rows]
    names = sorted(set(label))
    palette = matplotlib.colormaps["tab20"]
    colors = {name: palette(i % MAX_CLASSES) for i, name in enumerate(names)}
    ax.scatter(xy[order, 0], xy[order, 1], c=[colors[name] for name in label[order]], **dot)
    _legend(ax, dict(list(colors.items())[:MAX_CLASSES]))


def _legend(ax: Axes, colors: dict[str, Any]) -> None:
    handles = [ax.scatter([], [], s=20, color=color, label=name) for name, color in colors.items()]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0) if len(colors) > 4 else None,
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
    )
