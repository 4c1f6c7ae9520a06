"""Maps of imputed genes: beside what was measured where somebody did, else beside their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._places import read_xy
from stgen.get._imputed import asked_genes, read_imputation, true_expression, verdicts
from stgen.metrics import pearson

from ._axes import draw_spots, many_axes, scale_bar
from ._gene_maps import _limits, _rows

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

SPREAD_CMAP = "cividis"


@shared_doc
def imputed(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    key: str = _keys.CAUSALGED,
    truth: AnnData | pd.DataFrame | str | None = None,
    section: str | None = None,
    groups: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "magma",
    axes: Any = None,
) -> np.ndarray:
    """Draw imputed genes in space, with the verdict on each in its title.

    With ``truth``: measured on the left, imputed on the right, on shared colour limits (1st to 99th percentile of both),
    with the Pearson correlation. Without: imputed on the left, the standard deviation of what would be measured on the
    right.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to.
    genes
        One gene or several, one row each.
    key
        Key of the imputation.
    truth
        What was measured of these genes: an AnnData or a table with the same spots, counts if the imputation was made from
        counts and log-normalised values otherwise; or the key of an array in ``obsm`` with its genes in
        ``uns[truth]["genes"]``.
    section
        Which section; needed if there are several.
    groups
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.
    spatial_key
        %(spatial_key)s
    cmap
        Colour map of expression.
    axes
        Axes to draw on, two for each gene, row by row.

    Returns
    -------
    Array of axes, genes × 2.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> axes = stg.pl.imputed(adata, ["gene_002", "gene_004"], truth=tissue)
    """
    found = read_imputation(adata, key)
    names = asked_genes(found, genes)
    rows = _rows(adata, section, groups)
    xy = read_xy(adata, spatial_key)[rows]
    values = found.block(rows, names)
    verdict = verdicts(found)["verdict"][names].to_numpy()
    if truth is not None:
        beside = true_expression(adata, found, names, truth)[rows]
        with np.errstate(invalid="ignore"):
            r = pearson(beside, values)
    else:
        spread = np.asarray(adata.obsm[_keys.spread_key(key)])
        beside = spread[rows][:, found.genes.get_indexer(names)].astype(np.float64)

    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    # a bar of its own for each map takes room
    axes = many_axes(
        axes, len(names), 2, 2.7 if truth is not None else 3.3, 2.4 * min(max(height / width, 0.4), 2.5) + 0.5
    )
    for i, gene in enumerate(names):
        left, right = axes[i]
        if truth is not None:
            style: dict[str, Any] = {"cmap": cmap, "clim": _limits([beside[:, i], values[:, i]])}
            draw_spots(left, xy, beside[:, i], **style)
            spots = draw_spots(right, xy, values[:, i], **style)
            left.set_title(f"{gene}, measured", fontsize="medium")
            right.set_title(f"imputed, r = {r[i]:.2f} ({verdict[i]})", fontsize="medium")
            _bar(spots, [left, right], "log-normalised expression")
        else:
            spots = draw_spots(left, xy, values[:, i], cmap=cmap, clim=_limits([values[:, i]]))
            left.set_title(f"{gene}, imputed ({verdict[i]})", fontsize="medium")
            _bar(spots, [left], "log-normalised expression")
            spots = draw_spots(right, xy, beside[:, i], cmap=SPREAD_CMAP, clim=_limits([beside[:, i]]))
            right.set_title("spread", fontsize="medium")
            _bar(spots, [right], "standard deviation")
    scale_bar(axes[-1, 0], xy)
    for ax in axes.ravel():
        ax.set_ylim(axes[-1, 0].get_ylim())  # the bar makes room in every map, so that all stay of one size
    return axes


def _bar(spots: Any, axes: list[Axes], label: str) -> None:
    bar = axes[0].figure.colorbar(spots, ax=axes, shrink=0.7, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="small")
