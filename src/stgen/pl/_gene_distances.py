"""Which genes go together: clustered gene–gene distances, truth beside imputed in one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.get._imputed import asked_genes, read_imputation, true_expression, truth_genes

from ._axes import INK, many_axes

if TYPE_CHECKING:
    from anndata import AnnData

MAX_GENES = 1000
MAX_NAMES = 40


def gene_distances(
    adata: AnnData,
    *,
    key: str = _keys.CAUSALGED,
    truth: AnnData | pd.DataFrame | str | None = None,
    genes: Sequence[str] | None = None,
    cmap: str = "RdBu",
    axes: Any = None,
) -> np.ndarray:
    """Draw the correlation distance (1 − Pearson correlation over spots) between imputed genes, clustered.

    With ``truth``, measured genes are on the left and imputed ones on the right, both in the order of the measured ones
    (average linkage). The title says how well the distances of all pairs agree. Imputed genes are smoother than measured
    ones: expect their distances to be more extreme.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to.
    key
        Key of the imputation.
    truth
        What was measured of these genes, as in :func:`stgen.pl.imputed`. Without it only imputed genes are drawn.
    genes
        Imputed genes to draw. ``None`` means all, with ``truth`` all that it has.
    cmap
        Colour map, from 0 (the same pattern) over 1 (nothing in common) to 2 (opposite patterns).
    axes
        Axes to draw on, two with ``truth`` and else one.

    Returns
    -------
    Array of axes, 1 × 2 or 1 × 1.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> axes = stg.pl.gene_distances(adata, truth=tissue)
    """
    found = read_imputation(adata, key)
    names = found.genes if genes is None else asked_genes(found, genes)
    if truth is not None and genes is None:
        names = names[names.isin(truth_genes(adata, truth))]
    if not 2 <= len(names) <= MAX_GENES:
        raise ValueError(
            f"Distances are drawn between 2 and {MAX_GENES} genes; there are {len(names)}. Name some with `genes=`"
            + (" that `truth` has." if truth is not None else ".")
        )
    values = {"imputed": found.block(np.arange(adata.n_obs), names)}
    if truth is not None:
        values = {"measured": true_expression(adata, found, names, truth)} | values
    distance = {name: correlation_distance(one) for name, one in values.items()}
    order = clustered(next(iter(distance.values())))

    import matplotlib

    colors = matplotlib.colormaps.get_cmap(cmap).with_extremes(bad="#dddddd")
    with_names = len(names) <= MAX_NAMES
    side = max(3.0, 0.12 * len(names)) if with_names else 3.6
    axes = many_axes(axes, 1, len(distance), side + (0.9 if len(distance) == 1 else 0.6), side + 0.3)
    for ax, (name, one) in zip(axes[0], distance.items()):
        image = ax.imshow(one[np.ix_(order, order)], cmap=colors, vmin=0, vmax=2, interpolation="nearest")
        title = name
        if name == "imputed" and truth is not None:
            title += f", distances agree r = {_agreement(*distance.values()):.2f}"
        ax.set_title(title, fontsize="medium")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    first = axes[0, 0]
    if with_names:
        first.set_yticks(range(len(names)), list(names[order]), fontsize="x-small")
        first.tick_params(length=0, colors=INK)
    else:
        first.set_ylabel(f"{len(names)} genes", color=INK)
    bar = first.figure.colorbar(image, ax=list(axes[0]), shrink=0.6, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("1 − correlation", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return axes


def correlation_distance(values: np.ndarray) -> np.ndarray:
    """1 − Pearson correlation between columns; NaN for columns that are constant."""
    x = values - values.mean(axis=0)
    size = np.sqrt(np.square(x).sum(axis=0))
    x = x / np.where(size > 1e-9, size, np.nan)
    distance = np.clip(1.0 - x.T @ x, 0.0, 2.0)
    np.fill_diagonal(distance, np.where(np.isfinite(np.diag(distance)), 0.0, np.nan))
    return distance


def clustered(distance: np.ndarray) -> np.ndarray:
    """Genes in the order of the leaves; constant ones are as far from all as those that have nothing in common."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    filled = np.where(np.isfinite(distance), distance, 1.0)
    np.fill_diagonal(filled, 0.0)
    condensed = squareform((filled + filled.T) / 2, checks=False)
    return leaves_list(linkage(condensed, method="average", optimal_ordering=len(distance) <= 400))


def _agreement(truth: np.ndarray, values: np.ndarray) -> float:
    """Correlation of the distances of all pairs."""
    pairs = np.triu_indices(len(truth), k=1)
    x, y = truth[pairs], values[pairs]
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 2 or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
        return float("nan")
    return float(np.corrcoef(x[both], y[both])[0, 1])
