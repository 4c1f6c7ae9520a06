"""Experts on coordinates: what is averaged, and which cells a network is stopped by."""

import numpy as np
import torch

from stgen.experts._coordinate_mlp import CoordinatePerceptrons
from stgen.experts._inverse_distance import distance_weights, nearest

RNG = np.random.default_rng(0)


def test_distance_weights_equal_a_loop_over_places():
    known, xy = RNG.random((30, 2)), RNG.random((5, 2))
    made = distance_weights(*nearest(known, xy, 8), 30, power=2.0, least=0.1).toarray()
    for row, place in zip(made, xy, strict=True):
        distance = np.linalg.norm(known - place, axis=1)
        expected = np.where(distance <= np.sort(distance)[7], np.maximum(distance, 0.1) ** -2.0, 0)
        np.testing.assert_allclose(row, expected / expected.sum())


def test_fewer_cells_than_asked_for_are_all_averaged():
    known = RNG.random((3, 2))
    made = distance_weights(*nearest(known, RNG.random((4, 2)), 10), 3, power=1.0, least=0.1)
    assert made.shape == (4, 3) and made.nnz == 12
    np.testing.assert_allclose(made.sum(axis=1), 1)


def test_a_network_never_learns_from_the_cells_it_is_stopped_by():
    """Poison: two cells that the first network leaves out, and the second learns from, change places."""
    xy, values = RNG.random((60, 2)), RNG.normal(size=(60, 2))
    left_out = [np.arange(60) < 10, (np.arange(60) >= 10) & (np.arange(60) < 20)]
    expert = CoordinatePerceptrons(n_octaves=1, width=8, max_epochs=1, patience=1)
    first = expert.fit(xy, values, left_out, [0, 1]).networks
    # in pairs, lest the mean and the scale of all cells change
    poisoned = values.copy()
    poisoned[[2, 3]] = values[[3, 2]]
    again = expert.fit(xy, poisoned, left_out, [0, 1]).networks
    same = [
        all(torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in zip(first, again, strict=True)
    ]
    assert same == [True, False]


def test_without_a_network_the_mean_of_all_cells_answers():
    xy, values = RNG.random((4, 2)), RNG.normal(size=(4, 3))
    made = CoordinatePerceptrons(n_octaves=0, patience=1).fit(xy, values, [], [])
    np.testing.assert_allclose(
        made.predict(RNG.random((2, 2))), np.repeat(values.mean(axis=0)[None], 2, axis=0)
    )
