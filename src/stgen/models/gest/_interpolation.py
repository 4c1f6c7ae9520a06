"""What windows leave unsaid, answered from the rest of the section.

Three things join the network's answer to unseen places. What seen cells express beyond what their own windows say is
*carried*: the mean of an average by inverse distance and of a Gaussian process on coordinates (regression kriging).
Places *beyond* the windows of seen cells get no answer from generated ones, which would drift with every round: there
the network is taken to say what it says of seen cells, averaged by inverse distance. And a *surface* over the whole
section (:mod:`stgen.experts._coordinate_mlp`) takes a share of the answer. How large a share is learned by rehearsal: squares of seen
cells, as large as what is asked for, are left out and asked for in the same way.

Carried by the process, and laid as a surface, are principal components: genes share their patterns.

n seen cells, m places that are asked for, T genes, p components.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from stgen.baselines import GaussianProcess, unseen_squares
from stgen.data._spacing import spot_pitch
from stgen.experts._coordinate_mlp import CoordinatePerceptrons
from stgen.experts._gaussian_process import spacing
from stgen.experts._inverse_distance import distance_weights, nearest
from stgen.experts._weight import cautious
from stgen.nn._random import seed_from

from ._generation import Cells

N_AROUND, POWER = 300, 1.5
"""Nearest cells whose unexplained expression is averaged for a place, and the power of distance they lose weight by."""
N_OF_SURFACE, LEAST_OF_SURFACE = 10_000, 200
"""Cells at most, and at least, through which a process and a surface are laid."""
N_OCTAVES, PATIENCE = 2, 10
"""Of the surface: octaves of plane waves, and epochs without a better error before a network stops."""
N_REHEARSALS = 4
FLATTERY, MOST_SHARE = 3.0, 0.5
"""What the surface's share is multiplied by, because the network has learned from the cells that a rehearsal leaves out
and the surface has not; and the largest share. Chosen on squares of cells that the network had not seen."""
SHARE, MOST_OUT, N_OUT = 0.1, 0.3, 1000
"""Share of the cells that a rehearsal leaves out, at most (for one large square), and cells if they lie in several."""


def inverse_distance(cells: Cells, places: Cells, *, unit: float) -> sparse.csr_matrix:
    """Weights (places × cells) by which the nearest cells are averaged, each row summing to 1.

    Cells nearer than ``unit`` (µm) count as that far.
    """
    rows, columns, values = [], [], []
    for code in np.unique(places.section):
        here, there = np.flatnonzero(places.section == code), np.flatnonzero(cells.section == code)
        if len(there) == 0:
            continue
        # by place, lest rows decide which of the cells that are equally far are looked at
        there = there[np.lexsort(cells.xy[there].T)]
        found = nearest(cells.xy[there], places.xy[here], N_AROUND)
        weight = distance_weights(*found, len(there), power=POWER, least=unit).tocoo()
        rows.append(here[weight.row])
        columns.append(there[weight.col])
        values.append(weight.data)
    shape = (len(places.xy), len(cells.xy))
    if not rows:
        return sparse.csr_matrix(shape)
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape
    )


def squares_like(cells: np.ndarray, places: np.ndarray) -> tuple[int, float]:
    """How many squares of cells to leave out, and their share of the cells, so that they are as deep as what is asked.

    Half of a square's cells lie within .146 of its side from its border.
    """
    depth = float(np.median(cKDTree(cells).query(places)[0])) / spacing(cells) - 0.5
    size, n = max(1.0, (max(depth, 0.0) / 0.146) ** 2), len(cells)
    n_squares = max(1, int(min(SHARE * n, N_OUT) / size))
    return n_squares, min(n_squares * size / n, MOST_OUT)


class Interpolation:
    """What joins the network's answer at places of a section, from seen cells that are fed some at a time.

    Parameters
    ----------
    cells
        In an order that does not depend on that of rows.
    places
        Of the same section.
    beyond
        (m,) places that lie in no window of a seen cell.
    components
        (p, T) orthonormal directions of the principal components.
    """

    def __init__(self, cells: Cells, places: Cells, beyond: np.ndarray, components: np.ndarray) -> None:
        self.cells, self.places, self.beyond, self.components = cells, places, beyond, components
        self._unit = spot_pitch(*cells) or 1.0
        self._at_places = inverse_distance(cells, places, unit=self._unit)
        self._at_beyond = self._at_places[beyond]
        self._average = np.zeros((len(places.xy), components.shape[1]), dtype=np.float32)
        self._said = np.zeros((self._at_beyond.shape[0], components.shape[1]), dtype=np.float32)
        self._z = np.zeros((len(cells.xy), len(components)), dtype=np.float32)
        self._unexplained = np.zeros_like(self._z)

    def add(self, rows: np.ndarray, x: np.ndarray, explained: np.ndarray) -> None:
        """Take in cells ``rows``, each once: their expression (·, T), and what their windows say of it."""
        self._average += self._at_places[:, rows] @ (x - explained)
        self._said += self._at_beyond[:, rows] @ explained
        self._z[rows] = x @ self.components.T
        self._unexplained[rows] = (x - explained) @ self.components.T

    def answer(
        self, network: np.ndarray, ask: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[float, np.ndarray]:
        """The surface's share, and expression at the places (m, T).

        Parameters
        ----------
        network
            (m, T) what the network says there.
        ask
            What the network says (·, T) of cells, given by their rows, when it sees all others; and which of them are
            beyond the windows of those (·,).
        """
        network = network.copy()
        network[self.beyond] = self._said
        if len(self.cells.xy) < LEAST_OF_SURFACE:
            return 0.0, network + self._average / 2
        xy, at = self.cells.xy, self.places.xy
        n_squares, part = squares_like(xy, at)
        drawn = (unseen_squares(xy, None, n_squares, part, seed) >= 0 for seed in range(N_REHEARSALS))
        left_out = [is_out for is_out in drawn if is_out.any() and not is_out.all()]
        kept = np.arange(0, len(xy), -(-len(xy) // N_OF_SURFACE))
        process = GaussianProcess(n_squares=n_squares, share=part).fit(
            xy[kept], None, self._unexplained[kept]
        )
        carried = network + self._average / 2 + process.predict(at, None) @ self.components / 2
        if not left_out:  # cells that lie in piles
            return 0.0, carried
        surface = CoordinatePerceptrons(n_octaves=N_OCTAVES, patience=PATIENCE).fit(
            xy[kept],
            self._z[kept],
            [is_out[kept] for is_out in left_out],
            [seed_from(0, "surface", number) for number in range(len(left_out))],
        )

        agreed, size = [], []
        for number, is_out in enumerate(left_out):
            out, known = np.flatnonzero(is_out), kept[~is_out[kept]]
            said, beyond = ask(out)
            weight = inverse_distance(self.cells.at(~is_out), self.cells.at(out), unit=self._unit)
            answer = said @ self.components.T
            answer[beyond] = weight[beyond] @ (self._z - self._unexplained)[~is_out]
            answer += weight @ self._unexplained[~is_out] / 2
            process.refit(xy[known], None, self._unexplained[known])
            answer += process.predict(xy[out], None) / 2
            gap = surface.predict(xy[out], number) - answer
            agreed.append((gap * (self._z[out] - answer)).sum(axis=1))
            size.append(np.square(gap).sum(axis=1))
        share = cautious(
            np.concatenate(agreed), np.concatenate(size), n_errors=1, times=FLATTERY, most=MOST_SHARE
        )
        gap = surface.predict(at) - carried @ self.components.T
        return share, carried + share * gap @ self.components
