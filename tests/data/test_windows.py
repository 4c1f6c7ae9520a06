import numpy as np
import pytest

from stgen.data._windows import neighbour_index, neighbour_mean


def slow_neighbours(xy, section, k):
    """All pairs, one spot at a time, in exact arithmetic of whole numbers."""
    answer = []
    for i, (x, y) in enumerate(xy):
        others = [j for j in range(len(xy)) if j != i and section[j] == section[i]]
        others.sort(key=lambda j: ((xy[j][0] - x) ** 2 + (xy[j][1] - y) ** 2, xy[j][0] - x, xy[j][1] - y))
        answer.append((others + [i] * k)[:k])
    return np.array(answer)


@pytest.mark.parametrize("k", [1, 6, 13])
def test_neighbours_equal_all_pairs_on_a_grid_full_of_ties(k):
    rng = np.random.default_rng(k)
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(8)), axis=-1).reshape(-1, 2)
    xy = rng.permutation(np.concatenate([grid, grid]))
    section = np.where(np.arange(len(xy)) % 2 == 0, "a", "b")
    # no two spots of a section share a place, else rows decide
    keep = [
        i
        for i in range(len(xy))
        if not any((xy[j] == xy[i]).all() and section[j] == section[i] for j in range(i))
    ]
    xy, section = xy[keep], section[keep]
    expected = slow_neighbours(xy.tolist(), section, k)
    np.testing.assert_array_equal(neighbour_index(xy, section, n_neighbors=k), expected)


def test_a_shifted_and_scaled_grid_has_the_same_neighbours():
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(7)), axis=-1).reshape(-1, 2)
    here = neighbour_index(grid, n_neighbors=6)
    np.testing.assert_array_equal(neighbour_index(grid * 100.3 + 12345.678, n_neighbors=6), here)


def test_permuting_spots_permutes_neighbours():
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2) * 200.0
    section = rng.integers(0, 2, len(xy))
    order = rng.permutation(len(xy))
    index = neighbour_index(xy, section, n_neighbors=6)
    np.testing.assert_array_equal(
        order[neighbour_index(xy[order], section[order], n_neighbors=6)], index[order]
    )


def test_no_neighbour_comes_from_another_section_and_none_is_the_spot_itself():
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 100, (300, 2))
    section = rng.choice(["C2", "C3"], 300)
    index = neighbour_index(xy, section, n_neighbors=5)
    assert (section[index] == section[:, None]).all()
    assert (index != np.arange(300)[:, None]).all()
    assert index.dtype == np.int64


def test_short_rows_end_with_the_spot_itself():
    index = neighbour_index([[0, 0], [1, 0], [5, 5]], ["a", "a", "b"], n_neighbors=3)
    np.testing.assert_array_equal(index, [[1, 0, 0], [0, 1, 1], [2, 2, 2]])


def test_spots_at_one_place_are_neighbours_but_never_of_themselves():
    index = neighbour_index(np.zeros((40, 2)), n_neighbors=4)
    assert (index != np.arange(40)[:, None]).all()
    assert all(len(set(row)) == 4 for row in index.tolist())


def test_a_large_section_takes_little_memory_and_time():
    rng = np.random.default_rng(0)
    index = neighbour_index(rng.uniform(0, 1e4, (50_000, 2)), n_neighbors=6)
    assert index.shape == (50_000, 6)


def test_the_mean_equals_gathering_all_at_once():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 7)).astype(np.float32)
    index = rng.integers(0, 50, (50, 6))
    mean = neighbour_mean(features, index)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, features[index].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_the_mean_of_whole_numbers_is_not_rounded():
    np.testing.assert_array_equal(
        neighbour_mean(np.array([[1], [2]]), np.array([[0, 1], [1, 1]])), [[1.5], [2]]
    )


@pytest.mark.parametrize(
    ("xy", "section", "k", "message"),
    [
        ([1, 2, 3], None, 6, r"spots × 2; got shape \(3,\)"),
        ([[0, np.nan], [1, 1]], None, 6, "1 of 2 spots have NaN"),
        ([[0, 0], [1, 1]], ["a"], 6, "2 spots, 1 values"),
        ([[0, 0], [1, 1]], None, 0, "at least 1; got 0"),
    ],
)
def test_bad_input_is_named(xy, section, k, message):
    with pytest.raises(ValueError, match=message):
        neighbour_index(xy, section, n_neighbors=k)
