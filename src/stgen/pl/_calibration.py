"""Calibration of predicted count distributions: PIT values should be uniform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from stgen.metrics import pit_deviation

from ._axes import FAINT, INK, KIND_COLORS, one_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def calibration(
    pit: ArrayLike | Mapping[str, ArrayLike], *, n_bins: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the distribution of randomised PIT values.

    Flat is calibrated. A hump in the middle: predicted spreads are too wide; high ends: too narrow; a slope: counts
    are higher or lower than predicted.

    Parameters
    ----------
    pit
        Values of :func:`stgen.metrics.randomized_pit`, any shape; or a dict from names to values, to compare models.
    n_bins
        Number of bins.
    ax
        Axes to draw on.

    Returns
    -------
    Axes. The legend gives the largest distance between the distribution of the values and the uniform one; values that
    are NaN are left out and counted there.

    Examples
    --------
    >>> import numpy as np, stgen as stg
    >>> ax = stg.pl.calibration(np.random.default_rng(0).random(1000))
    """
    named: Mapping[str, Any] = pit if isinstance(pit, Mapping) else {"": pit}
    if not named:
        raise ValueError("`pit` is empty: give values, or a dict from names to values.")
    ax = one_axes(ax, 4.6, 3.2)
    edges = np.linspace(0, 1, n_bins + 1)
    colors = [KIND_COLORS["model"], *(c for kind, c in KIND_COLORS.items() if kind != "model")]
    smallest = np.inf
    for i, (name, values) in enumerate(named.items()):
        values = np.asarray(values, dtype=np.float64).ravel()
        is_known = np.isfinite(values)
        known = values[is_known]
        if not len(known):
            raise ValueError(f"`pit`{f' of {name!r}' if name else ''} has no value that is finite.")
        label = f"{name}: " if name else ""
        label += f"max deviation {pit_deviation(known, n_bins=n_bins):.3f}"
        if not is_known.all():
            label += f", {int((~is_known).sum())} undefined"
        density = np.histogram(known, edges)[0] / len(known) * n_bins
        color = colors[i % len(colors)]
        if len(named) == 1:
            ax.stairs(density, edges, color=color, fill=True, alpha=0.55)
        ax.stairs(density, edges, baseline=None, color=color, linewidth=1.5, label=label)
        smallest = min(smallest, len(known))
    # what bins of independent counts would do; spots of one section are not independent, so this is the least
    spread = 1.96 * np.sqrt(n_bins * (1 - 1 / n_bins) / smallest)
    ax.axhspan(1 - spread, 1 + spread, color=FAINT, alpha=0.5, linewidth=0, zorder=0)
    ax.axhline(1, color=INK, linewidth=1, linestyle="--", label="calibrated")
    ax.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="density")
    ax.set_ylim(0, max(1.4, ax.get_ylim()[1] * 1.15))
    ax.legend(frameon=False, fontsize="small", loc="upper center")
    quiet(ax)
    return ax
