"""Neighbourhoods: which spots lie around a spot, within its section.

A neighbourhood is a row of row numbers, found with a KD-tree per section; never all pairs. Spots that are
equally far (a grid has many) are told apart by their direction, so that the answer depends on where spots lie
and not on the order of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

# Distances are compared after rounding to this share of the pitch: equal ones differ in the last bits.
_SAME_DISTANCE = 1e-6


def neighbour_index(
    xy: ArrayLike, section: ArrayLike | None = None, *, n_neighbors: int = 6
) -> NDArray[np.int64]:
    """Row numbers of the nearest spots of the same section, nearest first.

    Parameters
    ----------
    xy
        Coordinates, spots × 2.
    section
        Section of every spot, any values. ``None`` means one section.
    n_neighbors
        Neighbours per spot. The spot itself is not among them.

    Returns
    -------
    Array spots × ``n_neighbors``. Where a section has too few other spots, the row ends with the spot's own
    number.

    Notes
    -----
    Of spots at one distance those with the smaller x, then the smaller y come first. Only among spots at
    exactly the same place the order of rows decides.
    """
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"Coordinates must be spots × 2; got shape {xy.shape}.")
    if not np.isfinite(xy).all():
        n_bad = int((~np.isfinite(xy).all(axis=1)).sum())
        raise ValueError(f"Coordinates must be finite; {n_bad} of {len(xy)} spots have NaN or infinite ones.")
    if isinstance(n_neighbors, bool) or int(n_neighbors) != n_neighbors or n_neighbors < 1:
        raise ValueError(f"`n_neighbors` must be a whole number, at least 1; got {n_neighbors!r}.")
    own = np.arange(len(xy), dtype=np.int64)
    index = np.repeat(own[:, None], int(n_neighbors), axis=1)
    for rows in _rows_of_sections(section, len(xy)):
        k = min(int(n_neighbors), len(rows) - 1)
        if k > 0:
            index[rows, :k] = rows[_nearest(xy[rows], k)]
    return index


def neighbour_mean(features: Any, index: NDArray[np.integer]) -> NDArray[Any]:
    """Mean of the features over each spot's neighbours.

    Parameters
    ----------
    features
        Spots × features.
    index
        Neighbours of every spot, from :func:`neighbour_index`. A spot's own number, which fills short rows,
        counts as a neighbour: a spot without neighbours keeps its own features.

    Returns
    -------
    Array like ``features``, one row per row of ``index``.
    """
    features, index = np.asarray(features), np.asarray(index)
    if features.ndim != 2 or index.ndim != 2:
        raise ValueError(
            f"Expected features (spots × features) and an index (spots × neighbours); "
            f"got shapes {features.shape} and {index.shape}."
        )
    kind = features.dtype if features.dtype.kind == "f" else np.dtype(np.float64)
    total = np.zeros((len(index), features.shape[1]), dtype=kind)
    # one neighbour after another: gathering all at once would hold spots × neighbours × features
    for column in index.T:
        total += features[column]
    return total / kind.type(index.shape[1])


def _rows_of_sections(section: ArrayLike | None, n: int) -> list[NDArray[np.int64]]:
    """Row numbers of each section."""
    if section is None:
        return [np.arange(n, dtype=np.int64)]
    # a categorical column would become objects anyway; factorising takes any mixture of values
    codes = np.unique(np.asarray(section).astype(str), return_inverse=True)[1]
    if len(codes) != n:
        raise ValueError(f"`section` must name the section of every spot: {n} spots, {len(codes)} values.")
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _nearest(xy: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The k nearest other spots of each spot of one section."""
    tree = cKDTree(xy)
    n = len(xy)
    answer = np.empty((n, k), dtype=np.int64)
    asking = np.arange(n)
    # a few more than asked for, so that all spots that tie with the k-th are seen
    n_seen = min(n, k + 9)
    width, height = np.ptp(xy, axis=0)
    pitch = max(np.sqrt(width * height / n), width / n, height / n)
    unit = (pitch if pitch > 0 else 1.0) * _SAME_DISTANCE
    while len(asking):
        found = tree.query(xy[asking], k=n_seen)[1]
        nearest, distance = _in_order(xy, asking, found, unit)
        answer[asking] = nearest[:, :k]
        cut_short = (
            (distance[:, k - 1] >= distance[:, -1]) if n_seen < n else np.zeros(len(asking), dtype=bool)
        )
        asking = asking[cut_short]
        n_seen = min(n, 2 * n_seen)
    return answer


def _in_order(
    xy: NDArray[np.float64], asking: NDArray[np.int64], found: NDArray[np.int64], unit: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Spots found around each asking spot by distance, then direction, without the asking spot."""
    offset = xy[found] - xy[asking][:, None]
    distance = np.rint(np.hypot(offset[..., 0], offset[..., 1]) / unit)
    distance[found == asking[:, None]] = np.inf
    offset = np.rint(offset / unit)
    order = np.lexsort((found, offset[..., 1], offset[..., 0], distance), axis=1)
    order = order[:, : found.shape[1] - 1]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(distance, order, axis=1)
