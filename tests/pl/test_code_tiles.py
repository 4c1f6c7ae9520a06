"""Example tiles stand in the row of their code."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stgen.pl import code_tiles


@pytest.fixture
def tiles():
    """40 tiles; every pixel of a tile is the number of its spot."""
    return np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 8, 8, 3))


def drawn(ax):
    """Row of the grid to the spots whose tiles stand there, from left to right."""
    rows: dict[int, list[int]] = {}
    for image in ax.images:
        left, _, _, top = image.get_extent()
        rows.setdefault(int(top), []).append((left, int(np.asarray(image.get_array())[0, 0, 0])))
    return {row: [spot for _, spot in sorted(found)] for row, found in rows.items()}


def labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_rows_are_codes_by_use_and_show_their_own_tiles(tiles):
    codes = np.repeat([7, 3, 5], [10, 24, 6])
    ax = code_tiles(codes, tiles, n_tiles=4)
    assert labels(ax) == ["3  (60 %)", "7  (25 %)", "5  (15 %)"]
    found = drawn(ax)
    for row, code in enumerate([3, 7, 5]):
        assert len(found[row]) == 4
        assert (codes[found[row]] == code).all()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    ax.figure.canvas.draw()


def test_examples_are_spread_over_the_spots_and_the_same_every_time(tiles):
    codes = np.zeros(40, int)
    assert drawn(code_tiles(codes, tiles, n_tiles=4)) == {0: [5, 15, 25, 35]}
    assert drawn(code_tiles(codes, tiles, n_tiles=4)) == drawn(code_tiles(codes, tiles, n_tiles=4))


def test_rare_codes_have_fewer_tiles_and_further_codes_are_counted(tiles):
    codes = np.r_[np.zeros(29), np.ones(7), [2, 2, 3, np.nan]]
    ax = code_tiles(codes, tiles, n_codes=3, n_tiles=5)
    assert {row: len(found) for row, found in drawn(ax).items()} == {0: 5, 1: 5, 2: 2}
    assert labels(ax)[2] == "2  (5 %)"
    assert ax.get_xlabel() == "1 more code, 2 % of spots"


def test_categories_missing_values_and_an_index_of_names_are_read(tiles):
    codes = pd.Series(
        pd.Categorical(["b"] * 20 + [None] * 10 + ["a"] * 10, categories=["a", "b", "unused"]),
        index=[f"s{i}" for i in range(40)],
    )
    ax = code_tiles(codes, tiles)
    assert labels(ax) == ["b  (50 %)", "a  (25 %)"]
    assert max(drawn(ax)[0]) < 20 and min(drawn(ax)[1]) >= 30


def test_only_tiles_that_are_drawn_are_read(tiles):
    class Lazy:
        shape = tiles.shape
        read: list[int] = []

        def __getitem__(self, spot):
            self.read.append(spot)
            return tiles[spot]

    lazy = Lazy()
    code_tiles(np.zeros(40, int), lazy, n_tiles=3)
    assert len(lazy.read) == 3


def test_tiles_may_be_a_list_of_several_sizes_and_of_floats_to_one():
    several = [np.full((n, n, 3), n / 10) for n in (4, 6, 8)]
    ax = code_tiles(["x", "x", "y"], several)
    assert [image.get_array().shape[0] for image in ax.images] == [4, 6, 8]
    extents = np.array([image.get_extent() for image in ax.images])
    np.testing.assert_allclose(extents[:, 1] - extents[:, 0], 1)


def test_own_axes_are_used(tiles):
    _, mine = plt.subplots()
    assert code_tiles(np.zeros(40, int), tiles, ax=mine) is mine


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (np.zeros((40, 2)), lambda t: t, r"one code per spot; its shape is \(40, 2\).*`codes\[:, 0\]`"),
        (np.zeros(39), lambda t: t, "the same spots; got 39 codes and 40 tiles"),
        (np.full(40, np.nan), lambda t: t, "has no code: all 40 values are missing"),
        (np.zeros(40), lambda t: np.moveaxis(t, -1, 1), r"shape \(3, 8, 8\). Move the channels to the end"),
        (np.zeros(40), lambda t: t[..., 0], r"height × width × 3 \(RGB\); that of spot 3 has shape \(8, 8\)"),
        (np.zeros(40), lambda t: t.astype(np.uint16), "that of spot 3 is uint16 from 3 to 3"),
        (
            np.zeros(40),
            lambda t: t.astype(float),
            "floats from 0 to 1; that of spot 3 is float64 from 3 to 3",
        ),
    ],
)
def test_errors_say_what_is_wrong(tiles, codes, change, message):
    with pytest.raises(ValueError, match=message):
        code_tiles(codes, change(tiles))


def test_numbers_are_checked(tiles):
    with pytest.raises(ValueError, match="`n_tiles` must be a whole number, at least 1; got 0"):
        code_tiles(np.zeros(40), tiles, n_tiles=0)
