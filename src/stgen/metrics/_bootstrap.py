"""How sure is a mean over sections, and a gene's gain over a null?

Spots of one section are not independent, and neither are seeds: what is drawn with replacement are whole
sections (``groups``) and, inside a section, whole spatial blocks. All draws of a block bootstrap come from the
sums of the blocks, so a thousand draws cost one matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stgen._by_name import join_rows, named_like, x_and_y
from stgen._halving import halved

from ._arrays import Floats, check_pair, dense, gene_blocks


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    n_boot: int = 10_000,
    random_state: int = 0,
    groups: ArrayLike | None = None,
) -> tuple[Any, Any]:
    """Percentile interval of the mean.

    Parameters
    ----------
    values
        One number per section (or per paired difference), or a matrix with one column per gene.
    level
        Probability of the interval.
    n_boot
        Number of draws.
    random_state
        Seed. The global random state is left as found.
    groups
        What each row belongs to: whole groups are drawn, for instance the section of (section, seed) rows.

    Returns
    -------
    Lower and upper bound: numbers, or arrays with one entry per column. NaN values take no part; with fewer
    than two groups that have a value there is no interval, and both bounds are NaN.

    Examples
    --------
    >>> import stgen as stg
    >>> low, high = stg.metrics.bootstrap_interval([0.02, 0.03, 0.05, 0.01])
    >>> 0.01 <= low < high <= 0.05
    True
    """
    values, groups = join_rows(values=values, groups=groups)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) == 0:
        raise ValueError(
            f"`values` must be a vector or a matrix with at least one row; got shape {array.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1; got {level}.")
    columns = array.reshape(len(array), -1)
    codes = _group_codes(groups, len(array))
    total, size = _sums_by_group(columns, codes)
    weights = draw_weights(total.shape[0], n_boot, random_state)
    low, high = np.empty(columns.shape[1]), np.empty(columns.shape[1])
    for block in gene_blocks((n_boot, columns.shape[1])):
        with np.errstate(invalid="ignore"):
            means = (weights @ total[:, block]) / (weights @ size[:, block])
        low[block], high[block] = percentile_interval(means, level)
    is_enough = (size > 0).sum(axis=0) >= 2
    low, high = np.where(is_enough, low, np.nan), np.where(is_enough, high, np.nan)
    return (float(low[0]), float(high[0])) if array.ndim == 1 else (low, high)


def percentile_interval(draws: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bounds per column of a matrix draws × genes; draws without a value take no part."""
    tail = (1 - level) / 2
    ordered = np.sort(draws, axis=0)  # NaN comes last, so the defined draws are the first rows
    n_defined = (~np.isnan(draws)).sum(axis=0)
    return _quantile_of_sorted(ordered, n_defined, tail), _quantile_of_sorted(ordered, n_defined, 1 - tail)


def draw_weights(n_units: int, n_boot: int, random_state: int | np.random.Generator) -> Floats:
    """How often each unit is drawn in each of the draws, n_boot × n_units."""
    if n_boot < 1:
        raise ValueError(f"`n_boot` must be at least 1; got {n_boot}.")
    generator = np.random.default_rng(random_state)
    return generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_boot).astype(np.float64)


def spatial_blocks(xy: Any, *, n_blocks: int = 16) -> Any:
    """Cut the spots of one section into compact blocks of equal size, by halving along the longer side.

    Parameters
    ----------
    xy
        Coordinates, spots × 2; of a DataFrame the columns x and y, if it has them.
    n_blocks
        Wanted number of blocks, rounded down to a power of two; a block keeps at least two spots.

    Returns
    -------
    Block number of every spot; a Series with the names of a DataFrame.
    """
    given, xy = xy, np.asarray(x_and_y(xy), dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) == 0:
        raise ValueError(f"Coordinates must be spots × 2; got shape {xy.shape}.")
    return named_like(halved(xy, n_blocks), given)


def pearson_draws(truth: Any, prediction: Any, blocks: ArrayLike, weights: Floats) -> Floats:
    """Pearson correlation per gene in every draw of a block bootstrap of one section.

    Parameters
    ----------
    truth, prediction
        Spots × genes.
    blocks
        Block number of every spot, from :func:`spatial_blocks`.
    weights
        How often each block is drawn, n_boot × n_blocks. The same weights pair two predictions.

    Returns
    -------
    n_boot × genes. A constant prediction scores 0, for it shows nothing; a constant truth gives NaN.
    """
    truth, prediction, blocks = join_rows(truth=truth, prediction=prediction, blocks=blocks)
    truth, prediction = check_pair(truth, prediction)
    member = np.eye(weights.shape[1])[:, np.asarray(blocks)]
    n_drawn = weights @ member.sum(axis=1, keepdims=True)
    draws = np.empty((weights.shape[0], truth.shape[1]))
    for genes in gene_blocks((max(weights.shape[0], truth.shape[0]), truth.shape[1])):
        x, y = dense(truth[:, genes]), dense(prediction[:, genes])
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        mean_x, mean_y, xx, yy, xy = (weights @ (member @ m) / n_drawn for m in (x, y, x * x, y * y, x * y))
        variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
        # rounding: what is left of a constant is about eps times the square of the values
        variance_x[variance_x <= 1e-13 * xx.max(axis=0)] = np.nan
        is_flat = variance_y <= 1e-13 * yy.max(axis=0)
        r = (xy - mean_x * mean_y) / np.sqrt(variance_x * np.where(is_flat, 1, variance_y))
        draws[:, genes] = np.where(is_flat & ~np.isnan(variance_x), 0, r)
    return draws


def _group_codes(groups: ArrayLike | None, n_rows: int) -> np.ndarray:
    if groups is None:
        return np.arange(n_rows)
    groups = np.asarray(groups)
    if groups.shape != (n_rows,):
        raise ValueError(
            f"`groups` must name the group of each of the {n_rows} rows; got shape {groups.shape}."
        )
    return np.unique(groups.astype(str), return_inverse=True)[1]


def _sums_by_group(columns: Floats, codes: np.ndarray) -> tuple[Floats, Floats]:
    is_defined = ~np.isnan(columns)
    total, size = np.zeros((codes.max() + 1, columns.shape[1])), np.zeros((codes.max() + 1, columns.shape[1]))
    np.add.at(total, codes, np.where(is_defined, columns, 0))
    np.add.at(size, codes, is_defined)
    return total, size


def _quantile_of_sorted(ordered: Floats, n_defined: np.ndarray, q: float) -> Floats:
    """Linear interpolation, as in numpy; NaN without a defined draw."""
    place = np.maximum(n_defined - 1, 0) * q
    lower = np.floor(place).astype(np.int64)
    upper = np.minimum(lower + 1, np.maximum(n_defined - 1, 0))
    columns = np.arange(ordered.shape[1])
    share = place - lower
    return ordered[lower, columns] * (1 - share) + ordered[upper, columns] * share
