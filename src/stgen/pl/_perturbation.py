"""Effects of a perturbation by distance from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.get._perturbation import perturbation as read

from ._axes import FAINT, INK, one_axes, quiet
from ._colors import CATEGORY_COLORS

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@shared_doc
def perturbation(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = _keys.GEST_PERTURB,
    n_genes: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draw what a perturbation does to genes by the distance from it: one line for each gene, a point for each ring.

    Filled points are called High or Low at the false discovery rate asked for; open points are not. Bars are ± one
    standard error as the null gives it. Thin grey lines are all other genes.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_perturb` wrote to.
    genes
        Genes to draw. ``None`` takes those with the smallest p in any ring.
    key
        Key of the results.
    n_genes
        How many, where ``genes`` does not say.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=300, unit="cells")
    >>> adata.obs["middle"] = abs(adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0)).max(axis=1) < 40
    >>> stg.tl.gest_perturb(
    ...     adata, region="middle", mode="inhibit", genes="gene_001", null="sham", train_kwargs={"max_epochs": 1}
    ... )
    >>> ax = stg.pl.perturbation(adata)
    """
    everything = read(adata, key)
    null = everything.attrs.get("null", "none")
    if genes is None:
        names = everything.sort_values("p", kind="stable")["gene"].drop_duplicates().tolist()[:n_genes]
    else:
        names = read(adata, key, genes=genes)["gene"].drop_duplicates().tolist()
    everything = everything[everything["n_cells"] > 0]
    ax = one_axes(ax, 6.2, 3.8)
    ax.axhline(0, color=FAINT, linewidth=1, zorder=0)
    for name, rows in everything.groupby("gene", sort=False):
        if name not in names:
            ax.plot(_middle(rows), rows["effect"], color=FAINT, linewidth=0.6, alpha=0.6, zorder=0)
    shift = np.linspace(-0.5, 0.5, len(names)) if len(names) > 1 else np.zeros(1)
    width = float((everything["to_um"] - everything["from_um"]).min()) if len(everything) else 1.0
    for i, name in enumerate(names):
        rows = everything[everything["gene"] == name]
        color = CATEGORY_COLORS[i % len(CATEGORY_COLORS)]
        x, y = _middle(rows) + 0.35 * width * shift[i], rows["effect"].to_numpy(dtype=np.float64)
        ax.errorbar(
            x,
            y,
            yerr=_standard_error(rows),
            color=color,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=0,
            label=str(name),
        )
        is_called = (rows["call"] != "n.s.").to_numpy()
        face = np.where(is_called, color, "white")
        ax.scatter(x, y, s=26, c=list(face), edgecolors=color, linewidths=1.2, zorder=3)
    edges = np.unique(everything[["from_um", "to_um"]].to_numpy())
    ax.set_xticks(edges, [f"{edge:.0f}" for edge in edges])
    ax.set_xlabel("distance from the region, µm (ring edges)", color=INK)
    ax.set_ylabel("effect, log-normalised", color=INK)
    n_called = int(everything.loc[everything["call"] != "n.s.", "gene"].nunique())
    ax.set_title(
        f"{n_called} of {everything['gene'].nunique()} genes called, null: {null}", fontsize="medium"
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small", borderpad=0)
    quiet(ax)
    return ax


def _middle(rows: pd.DataFrame) -> np.ndarray:
    return ((rows["from_um"] + rows["to_um"]) / 2).to_numpy(dtype=np.float64)


def _standard_error(rows: pd.DataFrame) -> np.ndarray:
    """An effect over its z; nothing where there is no z."""
    effect, z = rows["effect"].to_numpy(dtype=np.float64), rows["z"].to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(effect / z)
    return np.where(np.isfinite(error), error, 0.0)
