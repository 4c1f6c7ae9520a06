"""Do intervals of imputed genes hold what they say they hold?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.get._imputed import asked_genes, read_imputation, true_expression, truth_genes
from stgen.metrics import interval_coverage

from ._axes import INK, KIND_COLORS, one_axes, quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from stgen.data._predictions import Prediction

MASS_COLORS = {50: KIND_COLORS["baseline"], 90: KIND_COLORS["model"]}


def coverage(
    adata: AnnData,
    *,
    truth: AnnData | pd.DataFrame | str,
    key: str = _keys.CAUSALGED,
    genes: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the calibration of an imputation: what its intervals hold of what was measured, against what they say.

    A dot is a gene and an interval, 50 % or 90 %: the mass that the imputation gives the interval, and the share of spots
    whose measured value lies in it. On the line it is calibrated; below, spots are more surprising than it says. The mass is
    above the nominal one where most values are 0. :func:`stgen.pl.calibration` does the same for whole distributions of
    counts.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to with ``intervals=True``.
    truth
        What was measured of the imputed genes, as in :func:`stgen.pl.imputed`.
    key
        Key of the imputation.
    genes
        Imputed genes to draw. ``None`` takes all that ``truth`` has.
    ax
        Axes to draw on.

    Returns
    -------
    Axes. The legend gives the mean over genes of coverage less mass.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, intervals=True, train_kwargs={"max_epochs": 2})
    >>> ax = stg.pl.coverage(adata, truth=tissue)
    """
    found = read_imputation(adata, key)
    names = found.genes if genes is None else asked_genes(found, genes)
    if genes is None:
        names = names[names.isin(truth_genes(adata, truth))]
    if not len(names):
        raise ValueError("`truth` has none of the imputed genes: there is nothing to compare.")
    table = coverage_of(adata, found, names, truth)
    ax = one_axes(ax, 4.2, 4.2)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated", zorder=1)
    for mass, color in MASS_COLORS.items():
        said, held = table[f"mass_{mass}"], table[f"coverage_{mass}"]
        gap = float((held - said).mean())
        ax.scatter(
            said,
            held,
            s=16 if len(names) < 200 else 7,
            color=color,
            alpha=0.7,
            linewidths=0,
            zorder=2,
            rasterized=len(names) > 5000,
            label=f"{mass} % interval: {gap:+.3f} on average",
        )
        ax.axvline(mass / 100, color=color, linewidth=0.8, alpha=0.5, zorder=0)
    ax.set(xlim=(0.3, 1.02), ylim=(0.3, 1.02), aspect="equal")
    lowest = float(table[["coverage_50", "mass_50"]].min().min())
    if lowest < 0.3:
        ax.set(xlim=(lowest - 0.02, 1.02), ylim=(lowest - 0.02, 1.02))
    ax.set(xlabel="mass that the interval should hold", ylabel="share of measured values inside")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    quiet(ax)
    return ax


def coverage_of(adata: AnnData, found: Prediction, genes: pd.Index, truth: object) -> pd.DataFrame:
    """Genes × (``mass_50``, ``coverage_50``, ``mass_90``, ``coverage_90``)."""
    columns = found.genes.get_indexer(genes)
    measured = true_expression(adata, found, genes, truth)
    table = pd.DataFrame(index=genes)
    for mass in MASS_COLORS:
        part = {}
        for name in ("lower", "upper", "mass"):
            slot = _keys.interval_key(found.key, f"{name}_{mass}")
            if slot not in adata.obsm:
                raise KeyError(
                    f"obsm[{slot!r}] does not exist: this imputation has no intervals. Run `stg.tl.causalged_impute` with "
                    "`intervals=True`."
                )
            part[name] = np.asarray(adata.obsm[slot])[:, columns]
        table[f"mass_{mass}"] = part["mass"].mean(axis=0)
        # intervals are kept in single precision; so is what they are compared with
        table[f"coverage_{mass}"] = interval_coverage(
            measured.astype(np.float32), part["lower"], part["upper"]
        )
    return table
