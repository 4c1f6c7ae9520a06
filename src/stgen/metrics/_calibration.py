"""Is a predicted distribution of counts the distribution of the counts?

Counts are discrete: the probability integral transform is made uniform by a random place inside the step of
the predicted CDF, and an interval is compared with the mass it really has, not with its label (a 90 % interval
of sparse counts holds .97 even when the model is perfect).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stgen._by_name import join_tables, named_like
from stgen._warn import number

from ._arrays import Floats


def randomized_pit(
    counts: ArrayLike, cdf_below: ArrayLike, cdf_at: ArrayLike, *, random_state: int = 0
) -> Any:
    """Randomised probability integral transform: uniform on [0, 1] if the prediction is calibrated.

    Parameters
    ----------
    counts
        Observed counts, spots × genes (any shape).
    cdf_below
        Predicted probability of a count below the observed one, P(Y < y).
    cdf_at
        Predicted probability of a count up to the observed one, P(Y ≤ y).
    random_state
        Seed of the place inside the step. The global random state is left as found.

    Returns
    -------
    One value in [0, 1] per count, under the names of ``counts``.
    """
    given, below, at = join_tables(counts=counts, cdf_below=cdf_below, cdf_at=cdf_at)
    counts, below, at = _same_places(counts=given, cdf_below=below, cdf_at=at)
    slack = 1e-5  # single precision sums of a few thousand probabilities
    if (below < -slack).any() or (at > 1 + slack).any() or (below > at + slack).any():
        raise ValueError(
            "`cdf_below` ≤ `cdf_at` must both lie in [0, 1]; "
            f"got {number(np.nanmin(below), 0)} ≤ cdf_below and cdf_at ≤ {number(np.nanmax(at), 1)}."
        )
    place = np.random.default_rng(random_state).random(counts.shape)
    pit = np.clip(below + place * (at - below), 0, 1)
    return named_like(np.where(np.isfinite(counts), pit, np.nan), given)


def pit_deviation(pit: ArrayLike, *, n_bins: int = 20, axis: int | None = None) -> Any:
    """Largest distance between the distribution of PIT values and the uniform one.

    Parameters
    ----------
    pit
        Values of :func:`randomized_pit`.
    n_bins
        The empirical CDF is compared at the inner edges of this many equal bins.
    axis
        ``None`` takes all values together; 0 gives one deviation per gene.

    Returns
    -------
    ``max |ECDF(u) - u|``; NaN where a value is NaN.
    """
    pit = np.asarray(pit, dtype=np.float64)
    if n_bins < 2:
        raise ValueError(f"`n_bins` must be at least 2; got {n_bins}.")
    if pit.size == 0:
        raise ValueError("`pit` is empty; nothing to compare.")
    edges = np.arange(1, n_bins) / n_bins
    deviation = np.max([np.abs((pit <= edge).mean(axis=axis) - edge) for edge in edges], axis=0)
    deviation = np.where(np.isnan(pit).any(axis=axis), np.nan, deviation)
    return float(deviation) if axis is None else deviation


def interval_coverage(counts: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Share of the counts that lie inside their predicted interval, per gene.

    Compare it with :func:`interval_mass`, not with the interval's label.

    Parameters
    ----------
    counts, lower, upper
        Spots × genes; the bounds belong to the interval.

    Returns
    -------
    One share per gene; NaN where a value is NaN.
    """
    counts, lower, upper = _same_places(counts=counts, lower=lower, upper=upper)
    _check_order(lower, upper)
    is_missing = np.isnan(counts) | np.isnan(lower) | np.isnan(upper)
    is_inside = np.where(is_missing, np.nan, (lower <= counts) & (counts <= upper))
    return is_inside.mean(axis=0)


def interval_mass(cdf_below_lower: ArrayLike, cdf_at_upper: ArrayLike) -> Floats:
    """Probability that the prediction itself gives to its intervals, mean per gene.

    Parameters
    ----------
    cdf_below_lower
        P(Y < lower bound), spots × genes.
    cdf_at_upper
        P(Y ≤ upper bound), spots × genes.

    Returns
    -------
    One mass per gene; NaN where a value is NaN.
    """
    below, at = _same_places(cdf_below_lower=cdf_below_lower, cdf_at_upper=cdf_at_upper)
    return (at - below).mean(axis=0)


def interval_width(lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Mean width of the predicted intervals per gene, in counts.

    Parameters
    ----------
    lower, upper
        Spots × genes.

    Returns
    -------
    One width per gene; NaN where a value is NaN.
    """
    lower, upper = _same_places(lower=lower, upper=upper)
    _check_order(lower, upper)
    return (upper - lower).mean(axis=0)


def _same_places(**values: Any) -> list[Floats]:
    """Arrays of one shape, joined by name where they have names."""
    joined = [np.asarray(value, dtype=np.float64) for value in join_tables(**values)]
    _check_shapes(**dict(zip(values, joined, strict=True)))
    return joined


def _check_shapes(**arrays: Floats) -> None:
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"`{name}` {shape}" for name, shape in shapes.items())
        raise ValueError(f"All arrays must have the same shape, spots × genes; got {found}.")
    if 0 in next(iter(shapes.values())):
        raise ValueError(f"There is nothing to compare: `{next(iter(shapes))}` is empty.")


def _check_order(lower: Floats, upper: Floats) -> None:
    if (lower > upper).any():
        raise ValueError("`lower` must not be above `upper`; were the two bounds swapped?")
