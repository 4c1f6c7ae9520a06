"""What true labels were called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stgen import _keys
from stgen._docs import shared_doc
from stgen.get._niches import confusion as count

from ._axes import INK, one_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@shared_doc
def confusion(
    adata: AnnData,
    truth: str,
    prediction: str = _keys.GEST_NICHE,
    *,
    with_learned: bool = False,
    cmap: str = "Greens",
    ax: Axes | None = None,
) -> Axes:
    """Draw how often each true label was called each label: shares of the cells of a true label.

    Parameters
    ----------
    adata
        %(adata)s
    truth
        Column of ``obs`` with true labels. Cells without one are left out.
    prediction
        Column of ``obs`` with labels that were called.
    with_learned
        Also count cells whose label taught the model; by default they are left out, and the title says how many.
    cmap
        Colour map.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=100)
    >>> ax = stg.pl.confusion(adata, "region", "cell_type")
    """
    cells = count(adata, truth, prediction, with_learned=with_learned)
    share = cells.div(cells.sum(axis=1), axis=0)
    n_rows, n_columns = share.shape
    ax = one_axes(ax, 2.4 + 0.55 * n_columns, 1.7 + 0.45 * n_rows)
    image = ax.imshow(share.to_numpy(), cmap=cmap, vmin=0, vmax=1, aspect="auto")
    if n_rows * n_columns <= 400:
        for (i, j), value in np.ndenumerate(share.to_numpy()):
            if value >= 0.005:
                ax.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize="small",
                    color="white" if value > 0.6 else INK,
                )  # fmt: skip
    ax.set_xticks(range(n_columns), list(cells.columns), rotation=45, ha="right", fontsize="small")
    labels = [f"{name} (n = {n})" for name, n in cells.sum(axis=1).items()]
    ax.set_yticks(range(n_rows), labels, fontsize="small")
    ax.set_xlabel(f"called ({prediction})", color=INK)
    ax.set_ylabel(f"true ({truth})", color=INK)
    both = [name for name in cells.index if name in set(cells.columns)]
    if both:
        agree = np.diag(cells.loc[both, both].to_numpy()).sum() / cells.to_numpy().sum()
        n_learned = cells.attrs["n_learned"]
        left_out = f" ({n_learned} that taught are left out)" if n_learned else ""
        ax.set_title(f"{agree:.0%} of cells agree{left_out}", fontsize="medium")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of the true label", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return ax
