"""Unseen places, round after round: seen cells answer for the unseen ones around them, and these are then seen.

Only indices and distributions pass here: which windows are asked for which places, and how answers are put together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

_TIED = 16
"""Cells more than asked for that are looked at, because cells of a lattice are equally far."""


@dataclass(frozen=True)
class Filled:
    """What was found for places that were asked for, in their order."""

    probability: np.ndarray
    """(m, K) distribution over meta cells."""
    round: np.ndarray
    """(m,) the round that answered, from 1; 0 where no seen cell was within reach."""
    n_windows: np.ndarray
    """(m,) windows whose answers were averaged."""


def windows_of_round(
    seen_xy: np.ndarray,
    seen_section: np.ndarray,
    xy: np.ndarray,
    section: np.ndarray,
    *,
    reach: float,
    n_windows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Which seen cells answer for which places: pairs (place, seen cell), a place's nearest cells first.

    ``reach`` is half the window's side: a place beyond it in x or y is not in the window of that cell.
    """
    places, cells = [], []
    for code in np.unique(section):
        here, there = np.flatnonzero(section == code), np.flatnonzero(seen_section == code)
        if len(there) == 0:
            continue
        near = _nearest(seen_xy[there], xy[here], n_windows)
        inside = np.abs(seen_xy[there][near] - xy[here][:, None]).max(axis=2) <= reach
        place, rank = np.nonzero(inside)
        places.append(here[place])
        cells.append(there[near[place, rank]])
    empty = np.empty(0, dtype=np.int64)
    return (np.concatenate(places), np.concatenate(cells)) if places else (empty, empty)


def nearest_seen(
    seen_xy: np.ndarray, seen_section: np.ndarray, xy: np.ndarray, section: np.ndarray
) -> np.ndarray:
    """The seen cell nearest to each place, in its section; in a section that has none, of all."""
    found = np.empty(len(xy), dtype=np.int64)
    for code in np.unique(section):
        here, there = np.flatnonzero(section == code), np.flatnonzero(seen_section == code)
        there = there if len(there) else np.arange(len(seen_xy))
        found[here] = there[_nearest(seen_xy[there], xy[here], 1)[:, 0]]
    return found


def _nearest(cells: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """(places, k) nearest cells. Of cells as far, those with the smaller x, then y: not those a tree finds first."""
    n = min(k + _TIED, len(cells))
    distance, near = (part.reshape(len(places), n) for part in cKDTree(cells).query(places, k=n))
    order = np.lexsort((cells[near, 1], cells[near, 0], np.round(distance, 3)), axis=1)
    return np.take_along_axis(near, order, axis=1)[:, :k]
