"""What joins the network's answer: averages, squares to rehearse on, a surface and its share."""

from __future__ import annotations

import numpy as np
import pytest

from stgen.baselines import GaussianProcess, unseen_squares
from stgen.experts._coordinate_mlp import CoordinatePerceptrons
from stgen.models.gest._generation import Cells
from stgen.models.gest._interpolation import Interpolation, inverse_distance, squares_like

N, SIDE = 400, 600.0


def cells_of(n, seed=0, side=SIDE):
    return Cells(np.random.default_rng(seed).uniform(0, side, (n, 2)), np.zeros(n, dtype=np.int64))


def test_the_average_equals_a_loop_over_places():
    cells, places = cells_of(40), cells_of(7, seed=1)
    cells.section[30:] = 1
    places.section[5:] = 1
    weight = inverse_distance(cells, places, unit=20.0).toarray()
    for row, (xy, code) in enumerate(zip(*places, strict=True)):
        expected = np.maximum(np.linalg.norm(cells.xy - xy, axis=1), 20.0) ** -1.5 * (cells.section == code)
        np.testing.assert_allclose(weight[row], expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("n_squares", [10, 20, 40])
def test_squares_are_as_large_as_those_that_are_asked_for(n_squares):
    cells = cells_of(6000)
    hidden = unseen_squares(cells.xy, None, n_squares, 0.1, 5) >= 0
    n, share = squares_like(cells.xy[~hidden], cells.xy[hidden])
    size = share * (~hidden).sum() / n
    assert size == pytest.approx(hidden.sum() / n_squares, rel=0.4)
    assert share == pytest.approx(0.1, rel=0.1)


def test_one_large_hole_is_rehearsed_by_one_large_square():
    cells = cells_of(2000)
    hidden = np.abs(cells.xy - SIDE / 2).max(axis=1) < 0.3 * SIDE
    assert squares_like(cells.xy[~hidden], cells.xy[hidden]) == (1, 0.3)


def test_scattered_places_are_rehearsed_by_cells_one_by_one():
    n, share = squares_like(cells_of(2000).xy, cells_of(100, seed=1).xy)
    assert (n, share) == (200, 0.1)


def test_a_surface_is_stopped_by_the_cells_it_never_learns_from():
    xy = cells_of(N).xy
    z = np.sin(4 * xy / SIDE) + np.random.default_rng(1).normal(0, 0.3, (N, 2))
    left_out = [unseen_squares(xy, None, 20, 0.1, seed) >= 0 for seed in range(2)]
    surface = CoordinatePerceptrons(n_octaves=2, patience=10).fit(xy, z, left_out, [0, 1])
    truth = np.sin(4 * xy / SIDE)
    for number, is_out in enumerate(left_out):
        error = np.square(surface.predict(xy[is_out], number) - truth[is_out]).mean()
        assert error < 0.2 * truth[is_out].var()
    both = np.mean([surface.predict(xy, number) for number in range(2)], axis=0)
    np.testing.assert_allclose(surface.predict(xy), both, rtol=1e-5, atol=1e-6)


def interpolation(x, explained, network, beyond=False):
    """Share and answer at places among cells whose expression (n, T) is ``x``; components are the genes themselves."""
    cells, places = cells_of(N), cells_of(60, seed=9)
    found = Interpolation(cells, places, np.full(60, beyond), np.eye(x.shape[1], dtype=np.float32))
    for rows in np.array_split(np.arange(N), 3):
        found.add(rows, x[rows], explained[rows])
    asked = []

    def ask(rows):
        asked.append(rows)
        return network(cells.xy[rows]), np.full(len(rows), beyond)

    share, answer = found.answer(network(places.xy), ask)
    return share, answer, places.xy, asked


def wave(xy):
    return np.stack([np.sin(5 * xy[:, 0] / SIDE), np.cos(4 * xy[:, 1] / SIDE)], axis=1).astype(np.float32)


def test_the_surface_has_half_the_answer_where_it_alone_knows():
    """The network says nothing, and claims to explain every seen cell."""
    x = wave(cells_of(N).xy) + np.random.default_rng(0).normal(0, 0.3, (N, 2)).astype(np.float32)
    share, answer, xy, asked = interpolation(x, x, lambda at: np.zeros((len(at), 2), np.float32))
    assert share == 0.5
    assert np.square(answer - wave(xy) / 2).mean() < 0.02
    assert len(asked) == 4 and all(20 < len(rows) < 60 for rows in asked)


def test_the_surface_is_silent_where_it_is_too_smooth_to_follow():
    fine = lambda at: np.sin(at / 10).astype(np.float32)  # noqa: E731
    x = fine(cells_of(N).xy) + np.random.default_rng(0).normal(0, 0.3, (N, 2)).astype(np.float32)
    share, answer, xy, _ = interpolation(x, fine(cells_of(N).xy), fine)
    assert share < 0.2
    assert np.square(answer - fine(xy)).mean() < 0.02


def test_what_is_unexplained_is_carried_to_places():
    x = wave(cells_of(N).xy)
    _, answer, xy, _ = interpolation(x, 0 * x, lambda at: np.zeros((len(at), 2), np.float32))
    assert np.square(answer - wave(xy)).mean() < 0.05


def test_few_cells_are_averaged_and_no_surface_is_laid():
    cells, places = cells_of(20), cells_of(3, seed=1)
    found = Interpolation(cells, places, np.array([False, False, True]), np.eye(2, dtype=np.float32))
    x = wave(cells.xy)
    found.add(np.arange(20), x, 0 * x)
    share, answer = found.answer(np.ones((3, 2), np.float32), lambda rows: pytest.fail("no rehearsal"))
    assert share == 0
    unit = np.sort(np.linalg.norm(cells.xy[:, None] - cells.xy, axis=2))[:, 1]
    network = np.array([[1], [1], [0]])  # of cells it says nothing, and so it does beyond their windows
    np.testing.assert_allclose(
        answer, network + inverse_distance(cells, places, unit=np.median(unit)) @ x / 2, rtol=1e-5
    )


def test_beyond_the_windows_of_seen_cells_generated_ones_are_not_believed():
    x = wave(cells_of(N).xy)
    wild = lambda at: np.full((len(at), 2), 50.0, np.float32)  # noqa: E731
    _, answer, xy, _ = interpolation(x, x, wild, beyond=True)
    assert np.square(answer - wave(xy)).mean() < 0.05


def test_a_process_laid_again_keeps_its_choices():
    xy = cells_of(300).xy
    values = wave(xy) + np.random.default_rng(0).normal(0, 0.5, (300, 2))
    process = GaussianProcess(n_rounds=1, n_inducing=32).fit(xy, None, values)
    best, first = process.best_.copy(), process.predict(xy, None)
    other = process.refit(xy[:200], None, values[:200]).predict(xy, None)
    np.testing.assert_array_equal(process.best_, best)
    assert not np.allclose(first, other)
    np.testing.assert_allclose(process.refit(xy, None, values).predict(xy, None), first)
