"""Which imputed genes can be trusted: what is expected of each, against what a null that knows no reference would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.get._imputed import VERDICTS, asked_genes, read_imputation, verdicts

from ._axes import FAINT, INK, one_axes, quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

VERDICT_COLORS = {"use": "#0f7c7c", "weak": "#d8a13a", "do not use": "#a3a3a3"}
MAX_BARS = 150
"""Genes at most that get an interval each; of more, one stands for all."""


def predictability(
    adata: AnnData,
    *,
    key: str = _keys.CAUSALGED,
    genes: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how well every imputed gene can be predicted, and what it gains over the mean pattern of measured genes.

    A dot is a gene, its colour the verdict: ``"use"`` where the whole interval of the gain is right of 0, ``"weak"`` where
    only the dot is, else ``"do not use"``. Bars are 80 % intervals; for more than 150 genes, one cross stands for the typical gene.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to.
    key
        Key of the imputation.
    genes
        Genes to write names beside.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> ax = stg.pl.predictability(adata, genes="gene_002")
    """
    found = read_imputation(adata, key)
    table = verdicts(found)
    labelled = pd.Index([]) if genes is None else asked_genes(found, genes)
    ax = one_axes(ax, 5.2, 4.2)
    few = len(table) <= MAX_BARS
    for name in reversed(VERDICTS):  # what can be used lies on top
        part = table[table["verdict"] == name]
        if part.empty:
            continue
        color = VERDICT_COLORS[name]
        if few:
            style: dict[str, Any] = {"color": color, "alpha": 0.3, "linewidth": 1, "zorder": 1}
            ax.hlines(part["predictability"], part["gain_low"], part["gain_high"], **style)
            ax.vlines(part["gain"], part["low"], part["high"], **style)
        ax.scatter(
            part["gain"],
            part["predictability"],
            s=22 if few else 9,
            color=color,
            alpha=0.9 if few else 0.6,
            linewidths=0,
            zorder=3,
            rasterized=len(part) > 5000,
            label=f"{name} ({len(part)})",
        )
    if not few:
        _typical_interval(ax, table)
    places = table.loc[labelled, ["gain", "predictability"]].to_numpy(dtype=np.float64)
    for gene, (x, y) in zip(labelled, places):
        ax.annotate(
            str(gene),
            (x, y),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize="small",
            color=INK,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
        )
    ax.axvline(0, color=FAINT, linewidth=1, zorder=0)
    ax.axhline(0, color=FAINT, linewidth=1, zorder=0)
    ax.set_xlabel("gain over the mean of measured genes")
    ax.set_ylabel("expected Pearson correlation")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1],
        labels[::-1],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
        borderpad=0,
    )
    quiet(ax)
    return ax


def _typical_interval(ax: Axes, table: pd.DataFrame) -> None:
    """A cross as wide and high as the median interval, in the corner that genes leave free."""
    width = float((table["gain_high"] - table["gain_low"]).median())
    height = float((table["high"] - table["low"]).median())
    x = max(float(table["gain"].max()), width / 2) + 0.05 * width - width / 2
    y = min(float(table["predictability"].min()), 0.0) - 0.6 * height
    ax.plot([x - width / 2, x + width / 2], [y, y], color=INK, linewidth=1)
    ax.plot([x, x], [y - height / 2, y + height / 2], color=INK, linewidth=1)
    ax.annotate(
        "80 % interval",
        (x, y),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=INK,
    )
    ax.set_ylim(bottom=y - 0.6 * height, top=float(np.max(table["predictability"])) + 0.1)
