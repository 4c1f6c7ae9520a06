"""How spots lie: their pitch, and whether on a grid. Pitches tell arrays, densities and units apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

N_ASKED = 5000
"""Spots from which a pitch is taken: a few thousand are enough."""


def spot_pitch(xy: NDArray[np.float64], section: NDArray[Any] | None = None) -> float:
    """Median distance to the nearest spot of the same section; NaN if no section has two spots."""
    section = np.zeros(len(xy), dtype=np.int64) if section is None else section
    distances = []
    for code in np.unique(section):
        here = xy[section == code]
        if len(here) > 1:
            distances.append(cKDTree(here).query(here[:: max(1, len(here) // 2000)], k=2)[0][:, 1])
    return float(np.median(np.concatenate(distances))) if distances else float("nan")


class Grid(NamedTuple):
    """How spots lie around a spot."""

    pitch: float
    """Mean distance between neighbours; NaN for fewer than two spots."""
    nearest: float
    """Median distance to the nearest one."""
    is_regular: bool
    """Whether all neighbours are equally far, as on an array."""
    n_neighbors: int
    """Neighbours of most spots: 6 on a hexagonal grid, 4 on a square one."""


def grid_of(xy: NDArray[np.float64]) -> Grid:
    """Pitch and kind of a grid of spots.

    The nearest neighbour alone is biased: of four or six jittered ones it is the closest. So all neighbours of the first
    ring count; the second ring of a square grid begins at 1.41 pitches, of a hexagonal one at 1.73. Their mean, not their
    median: coordinates rounded to pixels have few different distances, and a median picks one of them.
    """
    if len(xy) < 2:
        return Grid(float("nan"), float("nan"), False, 0)
    asked = xy[:: max(1, len(xy) // N_ASKED)]
    distance = cKDTree(xy).query(asked, k=min(7, len(xy)))[0][:, 1:]
    nearest = float(np.median(distance[:, 0]))
    is_near = distance <= 1.25 * nearest  # never empty: the median is among them
    near = distance[is_near]
    pitch = float(near.mean())
    most = int(np.bincount(is_near.sum(axis=1)).argmax())
    return Grid(pitch, nearest, bool(pitch > 0 and near.std() < 0.05 * pitch), most)


def differs(one: Grid, other: Grid) -> bool:
    """Whether two pitches differ more than two tissues do: arrays hardly, cells by their density."""
    least, most = sorted([one.pitch, other.pitch])
    return bool(most > (1.2 if one.is_regular and other.is_regular else 4.0) * least)


def pitch_facts(grids: Mapping[str, Grid]) -> dict[str, Any]:
    """What a model remembers of how its training spots lay: least and largest pitch in µm, and whether on arrays."""
    pitches = [grid.pitch for grid in grids.values() if np.isfinite(grid.pitch)]
    if not pitches:
        return {}
    is_regular = all(grid.is_regular for grid in grids.values())
    return {"pitch_um": [min(pitches), max(pitches)], "is_regular": is_regular}
