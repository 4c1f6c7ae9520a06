"""Patches: every spot in one, none too large, sections apart, whatever the order of rows."""

import numpy as np
import pytest

from stgen.data._patches import MAX_SPOTS, patches


def hexagonal(n_rows, n_columns, pitch=100.0):
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    return np.stack([pitch * (column + 0.5 * (row % 2)), pitch * np.sqrt(0.75) * row], axis=1)


def same_partition(a, b):
    return len(np.unique(np.stack([a, b]), axis=1).T) == len(np.unique(a)) == len(np.unique(b))


def test_patches_are_small_compact_and_of_one_section():
    xy = np.vstack([hexagonal(20, 15), hexagonal(10, 40)])
    section = np.repeat([0, 1], [300, 400])
    patch = patches(xy, section)
    names, size = np.unique(patch, return_counts=True)
    np.testing.assert_array_equal(names, np.arange(len(names)))
    assert size.max() <= MAX_SPOTS and size.min() >= MAX_SPOTS // 2
    for name in names:
        rows = patch == name
        assert len(np.unique(section[rows])) == 1
        assert np.ptp(xy[rows], axis=0).max() <= 100 * MAX_SPOTS / 2


def test_the_order_of_rows_and_the_origin_do_not_matter():
    xy, section = np.vstack([hexagonal(12, 12)] * 2), np.repeat([0, 1], 144)
    order = np.random.default_rng(0).permutation(288)
    shifted = xy + np.where(section[:, None] == 1, [1e5, -3e4], 0.0)
    assert same_partition(patches(shifted[order], section[order]), patches(xy, section)[order])


def test_units_of_one_section_have_patches_of_their_own():
    xy, unit = hexagonal(20, 20), np.random.default_rng(0).integers(5, size=400)
    patch = patches(xy, None, unit)
    assert all(len(np.unique(unit[patch == name])) == 1 for name in np.unique(patch))
    assert np.unique(patch, return_counts=True)[1].max() <= MAX_SPOTS


@pytest.mark.parametrize("n", [0, 1, MAX_SPOTS])
def test_few_spots_are_one_patch(n):
    np.testing.assert_array_equal(patches(hexagonal(1, n), None), np.zeros(n))


def test_spots_at_one_place_are_halved_too():
    assert np.unique(patches(np.zeros((100, 2)), None), return_counts=True)[1].max() <= MAX_SPOTS
