"""A window is what a search of all pairs finds, for any order of rows and anywhere on the slide."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from stgen.data import _grid
from stgen.data._grid import CellGrid, check_window, default_window_um


def slow_window(xy, section, pool, window_um, centre, own_section, own_pool, max_cells):
    """All cells, one window, in exact arithmetic of whole nanometres."""
    away = np.rint(xy * 1000).astype(np.int64) - np.rint(centre * 1000).astype(np.int64)
    inside = (np.abs(away) <= window_um * 500).all(axis=1) & (section == own_section) & (pool == own_pool)
    rows = np.flatnonzero(inside & (pool >= 0))
    away = away[rows]
    order = np.lexsort((rows, away[:, 1], away[:, 0], (away**2).sum(axis=1)))
    return rows[order][:max_cells], len(rows)


def lattice(rng, n):
    """Duplicates, ties and cells on borders."""
    return rng.integers(0, 24, (n, 2)) * 0.5


def scattered(rng, n):
    return rng.uniform(0, 12, (n, 2)).round(3)


def clumped(rng, n):
    """Far and near: strips without cells, and most cells in one."""
    return np.where(rng.random((n, 1)) < 0.1, rng.uniform(0, 5000, (n, 2)), rng.uniform(0, 3, (n, 2))).round(
        3
    )


@pytest.mark.parametrize("window_um", [0.5, 2, 7, 100, 10_000])
@pytest.mark.parametrize("places", [lattice, scattered, clumped])
@pytest.mark.parametrize("max_cells", [1, 6, 1000])
def test_windows_equal_a_search_of_all_pairs(window_um, places, max_cells):
    rng = np.random.default_rng([int(window_um), max_cells])
    for n in (1, 30, 400):
        xy, section, pool = places(rng, n), rng.choice([3, 4, 9], n), rng.integers(-1, 3, n)
        grid = CellGrid(xy, section, window_um=window_um, pool=pool)
        centres = np.concatenate([places(rng, 20), xy[rng.integers(0, n, 20)], [[-3.0, 1e9]]])
        asked, asked_pool = rng.choice([3, 4, 5, 9], len(centres)), rng.integers(-1, 4, len(centres))
        windows, offset = grid.windows_and_offsets(centres, asked, asked_pool, max_cells=max_cells)
        np.testing.assert_array_equal(grid.count(centres, asked, asked_pool), windows.n_inside)
        assert windows.row.shape[1] == windows.size.max()
        for b, centre in enumerate(centres):
            rows, n_inside = slow_window(
                xy, section, pool, window_um, centre, asked[b], asked_pool[b], max_cells
            )
            size = windows.size[b]
            assert (windows.n_inside[b], size) == (n_inside, len(rows))
            np.testing.assert_array_equal(windows.row[b, :size], rows)
            assert (windows.row[b, size:] == -1).all()
            np.testing.assert_allclose(offset[b, :size], xy[rows] - centre, rtol=1e-6, atol=1e-6)
            assert (offset[b, size:] == 0).all()


def test_a_cell_sees_the_window_around_its_own_place():
    rng = np.random.default_rng(0)
    xy, section, pool = lattice(rng, 300), rng.integers(0, 3, 300), rng.integers(-1, 2, 300)
    grid = CellGrid(xy, section, window_um=3, pool=pool)
    rows = rng.permutation(300)
    around, offset = grid.windows_around(rows, max_cells=50)
    expected, expected_offset = grid.windows_and_offsets(xy[rows], section[rows], pool[rows], max_cells=50)
    for found, wanted in zip((*around, offset), (*expected, expected_offset)):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(grid.count_around(rows), expected.n_inside)
    np.testing.assert_array_equal((around.row == rows[:, None]).any(axis=1), pool[rows] >= 0)


def test_permuting_cells_permutes_windows():
    rng = np.random.default_rng(1)
    xy = scattered(rng, 500)
    order = rng.permutation(500)
    here = CellGrid(xy, None, window_um=5).windows(xy, max_cells=20).row
    there = CellGrid(xy[order], None, window_um=5).windows(xy, max_cells=20).row
    assert (here >= 0).all()
    np.testing.assert_array_equal(order[there], here)


@pytest.mark.parametrize("shift", [(0.1, 0.7), (12345.678, -98765.432), (5e8, 5e8)])
def test_the_place_of_a_section_on_the_slide_does_not_matter(shift):
    # in floating point some neighbours at 0.1 or 0.2 lie just inside and others just outside
    xy = np.stack(np.meshgrid(np.arange(12), np.arange(7)), axis=-1).reshape(-1, 2) * 0.1
    here, away = CellGrid(xy, None, window_um=0.4), CellGrid(xy + shift, None, window_um=0.4)
    windows = here.windows(xy, max_cells=25)
    np.testing.assert_array_equal(windows.row, away.windows(xy + shift, max_cells=25).row)
    inner = ((xy > 0.15) & (xy < [0.95, 0.45])).all(axis=1)
    assert (windows.n_inside[inner] == 25).all()


def test_two_pools_never_meet():
    rng = np.random.default_rng(2)
    xy, pool = scattered(rng, 400), rng.integers(-1, 2, 400)
    grid = CellGrid(xy, None, window_um=5, pool=pool)
    for own in (0, 1):
        row = grid.windows(xy, pool=np.full(400, own), max_cells=400).row
        assert (pool[row[row >= 0]] == own).all()
        assert set(row[row >= 0]) == set(np.flatnonzero(pool == own))


def test_no_cells_and_no_centres_are_no_error():
    empty = CellGrid(np.empty((0, 2)), None, window_um=10)
    assert empty.windows([[0.0, 0.0]], max_cells=5).row.shape == (1, 0)
    assert empty.nbytes > 0
    grid = CellGrid([[0.0, 0.0]], None, window_um=10)
    assert grid.windows(np.empty((0, 2)), max_cells=5).row.shape == (0, 0)
    assert len(grid) == 1


def test_a_tiny_window_on_a_wide_section_needs_no_more_strips_than_cells():
    xy = np.random.default_rng(0).uniform(0, 5e5, (100, 2))
    grid = CellGrid(xy, None, window_um=0.01)
    assert grid.nbytes < 10_000
    np.testing.assert_array_equal(grid.windows(xy, max_cells=3).row[:, 0], np.arange(100))


def test_four_bytes_per_coordinate_and_row():
    xy = np.random.default_rng(0).uniform(0, 1e4, (50_000, 2))
    assert CellGrid(xy, np.arange(50_000) % 4, window_um=300).nbytes / 50_000 < 18


@pytest.mark.parametrize(
    ("xy", "options", "message"),
    [
        ([1.0, 2.0], {}, r"Coordinates must be n × 2; got shape \(2,\)"),
        ([[0, np.nan], [0, 0]], {}, r"Coordinates must be finite; 1 of 2"),
        ([[0, 0], [2e6, 0]], {}, r"must be in µm; a section is 2000000 wide.*coordinates_in_um"),
        ([[0, 0]], {"window_um": 0}, r"`window_um` must be above 0 .* got 0"),
        ([[0, 0]], {"window_um": float("nan")}, r"`window_um` must be above 0 .* got nan"),
        ([[0, 0]], {"section": ["a"]}, r"`section` must hold one integer code per row; .*got <U1"),
        ([[0, 0]], {"pool": [0, 1]}, r"`pool` must hold one integer code .* of shape \(2,\)"),
    ],
)
def test_wrong_cells_are_named(xy, options, message):
    with pytest.raises(ValueError, match=message):
        CellGrid(xy, options.pop("section", None), **({"window_um": 10} | options))


def test_wrong_questions_are_named():
    grid = CellGrid([[0.0, 0.0], [1.0, 1.0]], [0, 1], window_um=10)
    with pytest.raises(ValueError, match="`section` must name the section of every centre: there are 2"):
        grid.windows([[0.0, 0.0]], max_cells=3)
    with pytest.raises(ValueError, match="Centres must be finite"):
        grid.windows([[0.0, np.inf]], [0], max_cells=3)
    with pytest.raises(ValueError, match=r"`max_cells` must be a whole number, at least 1; got 0"):
        grid.windows([[0.0, 0.0]], [0], max_cells=0)


# how wide -------------------------------------------------------------------------------------------------------


def median_count(xy, section=None, **options):
    window_um = default_window_um(xy, section, **options)
    section = np.zeros(len(xy), dtype=int) if section is None else section
    return float(np.median(CellGrid(xy, section, window_um=window_um).count(xy, section)))


@pytest.mark.parametrize("scale", [1.0, 13.0])
@pytest.mark.parametrize("hole", [False, True])
def test_the_default_window_holds_about_200_cells(scale, hole):
    xy = np.random.default_rng(0).uniform(0, 800, (8000, 2))
    if hole:  # a ring of tissue, and one cell far from it: no bounding box tells the density
        radius = np.hypot(*(xy - 400).T)
        xy = np.concatenate([xy[(radius < 400) & (radius > 150)], [[3000.0, 3000.0]]])
    assert 160 < median_count(xy * scale) < 240


@pytest.mark.parametrize("pitch", [(200.0, 200.0), (100.0, 86.6)])
def test_windows_of_a_spot_array_hold_at_least_50_spots_but_not_the_array(pitch):
    small = np.stack(np.meshgrid(np.arange(20), np.arange(16)), -1).reshape(-1, 2) * pitch
    assert 80 * 0.4 < median_count(small) <= 320 / 4 * 1.3
    assert median_count(small, n_cells=50) > 30
    large = np.stack(np.meshgrid(np.arange(64), np.arange(78)), -1).reshape(-1, 2) * pitch
    assert 150 < median_count(large) < 250


def test_the_default_window_is_that_of_the_median_section():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 500, (6000, 2))
    section = np.repeat([0, 1, 2], [1000, 4000, 1000])
    alone = default_window_um(xy[section == 0])
    assert default_window_um(xy, section) == pytest.approx(alone, rel=0.1)
    order = rng.permutation(6000)
    few = default_window_um(xy[order], section[order])
    assert few == pytest.approx(default_window_um(xy, section), rel=0.1)


def test_cells_without_company_have_no_default_window():
    with pytest.raises(ValueError, match=r"several cells at different places; got 3 cells in 3 sections"):
        default_window_um(np.zeros((3, 2)), [0, 1, 2])
    with pytest.raises(ValueError, match="none with two places"):
        default_window_um(np.zeros((30, 2)))


def test_a_window_with_one_cell_or_far_too_many_is_noticed():
    with pytest.raises(
        ValueError, match=r"600 µm must hold several cells; .* holds 1, the fullest 2.*pixels"
    ):
        check_window([1, 1, 1, 2], 600)
    with pytest.warns(UserWarning, match=r"600 µm holds 20000 cells.*coordinates_in_um"):
        check_window([20_000] * 3, 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_window([9, 200, 3], 600)
        check_window([], 600)


# compiled code ----------------------------------------------------------------------------------------------------


def test_nowhere_to_keep_compiled_code_is_no_error(monkeypatch):
    njit = _grid.numba.njit

    def read_only(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(_grid.numba, "njit", read_only)
    assert _grid._compiled(lambda x: x + 1)(1) == 2
