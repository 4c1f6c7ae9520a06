"""Mean of the nearest measured cells, weighted by a power of the inverse distance.

n cells, m places, k nearest cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def nearest(known: Floats, xy: Floats, k: int) -> tuple[Floats, Ints]:
    """Distances and row numbers (m, k) of the nearest known cells (all, if there are fewer), nearest first."""
    k = min(k, len(known))
    distance, near = cKDTree(known).query(xy, k=k)
    return distance.reshape(len(xy), k), near.reshape(len(xy), k).astype(np.int64)


def distance_weights(distance: Floats, near: Ints, n: int, *, power: float, least: float) -> sparse.csr_array:
    """(m, n) weights of cells in the answer at places, each row summing to 1.

    ``distance`` and ``near`` are those of :func:`nearest`; distances below ``least`` count as that, or a cell at the very
    place would be all of the answer.
    """
    weight = np.maximum(distance, least) ** -power
    weight /= weight.sum(axis=1, keepdims=True)
    start = np.arange(0, weight.size + 1, near.shape[1])
    return sparse.csr_array((weight.ravel(), near.ravel(), start), shape=(len(near), n))
