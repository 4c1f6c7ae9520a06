"""A Gaussian process on coordinates, laid through inducing cells that are spread over the section.

n cells, m places, p values of a cell, r inducing cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from stgen._halving import halved

Floats = NDArray[np.float64]


class Kernel(NamedTuple):
    """A prior over surfaces."""

    shape: str
    """``"rbf"`` (smooth) or ``"matern"`` (3/2: rough)."""
    scale: float
    """Length over which values agree, in mean spacings of cells."""
    stretch: float
    """How much longer that is along y than along x: tissues have layers."""


class InducingProcess:
    """Regression of values (n, p) on the kernel's values at inducing cells, decomposed once for all noises."""

    def __init__(self, xy: Floats, values: Floats, kernel: Kernel, n_inducing: int) -> None:
        self.shape = kernel.shape
        root = np.sqrt(kernel.stretch)
        self.unit = spacing(xy) * kernel.scale * np.array([1 / root, root])
        self.centres = spread(xy, n_inducing)
        value, vector = np.linalg.eigh(self._kernel(self.centres))
        is_kept = value > 1e-7 * value[-1]
        self.whiten = vector[:, is_kept] / np.sqrt(value[is_kept])
        phi = self.features(xy)
        self.mean = values.mean(axis=0)
        self.gram, self.turn = np.linalg.eigh(phi.T @ phi)
        self.projected = self.turn.T @ (phi.T @ (values - self.mean))

    def features(self, xy: Floats) -> Floats:
        """(m, r) of places."""
        return self._kernel(xy) @ self.whiten

    def weights(self, noise: float) -> Floats:
        """(r, p) of features, for noise of this variance in units of the surface's."""
        return self.turn @ (self.projected / (np.maximum(self.gram, 0) + noise)[:, None])

    def _kernel(self, xy: Floats) -> Floats:
        scaled = cdist(xy / self.unit, self.centres / self.unit)
        if self.shape == "rbf":
            return np.exp(-0.5 * scaled**2)
        scaled *= np.sqrt(3)
        return (1 + scaled) * np.exp(-scaled)


def spacing(xy: Floats) -> float:
    """Mean spacing of cells: the side of the square that one cell has to itself."""
    k = min(10, len(xy) - 1)
    if k < 1:
        return 1.0
    distance = cKDTree(xy).query(xy, k=k + 1)[0][:, -1]
    return float(np.median(distance) * np.sqrt(np.pi / k)) or 1.0


def spread(xy: Floats, n: int) -> Floats:
    """At most n different places, spread as cells are: the cell in the middle of each of n compact parts."""
    places = np.unique(xy, axis=0)
    if len(places) <= n:
        return places
    part = halved(places, n)
    size = np.bincount(part)[:, None]
    middle = np.stack([np.bincount(part, weights=axis) for axis in places.T], axis=1) / size
    return places[np.unique(cKDTree(places).query(middle)[1])]
