"""How much of each gene morphology shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.data._names import some
from stgen.get import gene_capture as captured_of

from ._axes import FAINT, INK, KIND_COLORS, one_axes, quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

COLOR = KIND_COLORS["model"]


def gene_capture(
    adata: AnnData,
    *,
    n_genes: int = 30,
    genes: Sequence[str] | None = None,
    key: str = _keys.GENST_REPORT,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of every gene that the image captures, with its interval, most captured on top.

    Behind it stand two shares of the gene's *measured* variance: a tick for how much of it is reproducible (the
    reliability) and a ring for how much of it survives the gene's own codes (the square of the ceiling). Where the tick
    is far left, little can be known about the gene; where the ring is, codes lose it before the image is asked.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.genst_report` wrote to.
    n_genes
        Number of genes to draw, the most captured.
    genes
        Genes to draw instead.
    key
        Key of the report.
    ax
        Axes to draw on.

    Returns
    -------
    Axes. Genes whose counts are too noisy for a captured share are drawn last, without one.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> stg.models.GenST.setup_anndata(adata, library_key="section", split_key="split")
    >>> model = stg.models.GenST(adata)
    >>> model.train(max_epochs=4)
    >>> stg.tl.genst_report(adata, model=model)
    >>> ax = stg.pl.gene_capture(adata)
    """
    table = captured_of(adata, key)
    n_all, shown = len(table), _chosen(table, genes, n_genes)
    ax = one_axes(ax, 5.4, 1.5 + 0.2 * len(shown))
    y = np.arange(len(shown))[::-1]
    captured, low, high = (shown[name].to_numpy() for name in ("captured", "captured_low", "captured_high"))
    ax.hlines(y, 0, 1, color=FAINT, linewidth=0.5, zorder=0)
    ax.scatter(
        shown["reliability"].clip(lower=0),
        y,
        marker="|",
        s=60,
        color=INK,
        linewidths=1.2,
        label="reliability",
    )
    ax.scatter(
        shown["ceiling"].clip(lower=0) ** 2,
        y,
        s=22,
        facecolors="none",
        edgecolors="#8a8a8a",
        linewidths=1,
        label="ceiling², own codes",
    )
    ax.hlines(y, low, high, color=COLOR, linewidth=2, alpha=0.45)
    ax.scatter(captured, y, s=26, color=COLOR, zorder=3, linewidths=0, label="captured, 95 % interval")
    for height in y[np.isnan(captured)]:
        ax.text(0.01, height, "too noisy", va="center", fontsize="small", style="italic", color=INK)
    ax.set_yticks(y, list(shown.index))
    # a share ends at 1; an interval that goes on says that the data cannot tell, and is cut
    right = 1.06 * float(np.nanmax([1.0, *captured]))
    cut = high > right
    ax.scatter(np.full(cut.sum(), right), y[cut], marker=">", s=22, color=COLOR, alpha=0.6, clip_on=False)
    ax.set(xlim=(-0.02, right), ylim=(-0.8, len(shown) - 0.2))
    ax.set_xlabel(
        "captured: share of reproducible variance\nreliability, ceiling²: share of measured variance"
    )
    if genes is None and n_all > len(shown):
        title = f"{len(shown)} of {n_all} genes, the most captured"
        ax.set_title(title, fontsize="small", loc="left", pad=18, color=INK)  # above the legend
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
        columnspacing=1,
        borderpad=0,
    )
    quiet(ax)
    return ax


def _chosen(table: pd.DataFrame, genes: Sequence[str] | None, n_genes: int) -> pd.DataFrame:
    """Genes to draw, in the order of the table: most captured first."""
    if genes is not None:
        names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        missing = [gene for gene in names if gene not in table.index]
        if missing:
            raise KeyError(f"The report has no gene {some(missing)}; it has {some(table.index)}.")
        if not names:
            raise ValueError("`genes` names no gene. Leave it out to draw the most captured ones.")
        return table[table.index.isin(names)]
    if int(n_genes) != n_genes or n_genes < 1:
        raise ValueError(f"`n_genes` must be a whole number, at least 1; got {n_genes!r}.")
    return table.iloc[:n_genes]
