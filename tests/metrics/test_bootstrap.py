"""Bootstrap intervals over sections and over spatial blocks."""

import numpy as np
import pytest

from stgen import metrics
from stgen.metrics import _arrays
from stgen.metrics._bootstrap import draw_weights, percentile_interval


def slow_interval(values, groups, n_boot, level, seed):
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    means = []
    for _ in range(n_boot):
        drawn = rng.choice(names, len(names))
        means.append(np.mean(np.concatenate([values[groups == name] for name in drawn])))
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2])


def test_interval_equals_a_slow_loop_up_to_monte_carlo_error():
    rng = np.random.default_rng(0)
    groups = np.repeat(list("abcdefgh"), 3)
    values = rng.normal(size=24) + np.repeat(rng.normal(size=8), 3)
    expected = slow_interval(values, groups, 4000, 0.9, 1)
    found = metrics.bootstrap_interval(values, groups=groups, level=0.9, n_boot=4000)
    np.testing.assert_allclose(found, expected, atol=0.06)
    # rows of one group move together, which alone makes this wider
    low, high = metrics.bootstrap_interval(values, level=0.9)
    assert found[1] - found[0] > high - low


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [
        low <= 0 <= high
        for low, high in (metrics.bootstrap_interval(rng.normal(size=40), n_boot=400) for _ in range(300))
    ]
    assert 0.89 < np.mean(hits) < 0.98


def test_interval_by_hand():
    assert metrics.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = metrics.bootstrap_interval([0.0, 1.0], level=0.5)
    assert (low, high) == (0.0, 1.0)  # the means 0, 1/2, 1 have probabilities 1/4, 1/2, 1/4
    low, high = metrics.bootstrap_interval([0.0, 1.0], level=0.4)
    assert (low, high) == (0.5, 0.5)


def test_columns_are_intervals_of_their_own(monkeypatch):
    values = np.random.default_rng(0).normal(size=(6, 5))
    expected = [metrics.bootstrap_interval(column, n_boot=500) for column in values.T]
    monkeypatch.setattr(_arrays, "BLOCK_VALUES", 1000)
    np.testing.assert_allclose(np.array(metrics.bootstrap_interval(values, n_boot=500)).T, expected)


def test_undefined_values_take_no_part_and_one_section_has_no_interval():
    values = np.array([[1.0, np.nan, np.nan], [2.0, 4.0, np.nan], [3.0, 4.0, 5.0]])
    low, high = metrics.bootstrap_interval(values)
    assert low[0] == 1 and high[0] == 3
    assert low[1] == high[1] == 4
    assert np.isnan(low[2]) and np.isnan(high[2])
    assert np.isnan(metrics.bootstrap_interval([1.0])).all()
    assert np.isnan(metrics.bootstrap_interval([1.0, 2.0], groups=["a", "a"])).all()


def test_seed_decides_and_global_state_is_left_as_found(global_state_untouched):
    values = np.random.default_rng(0).normal(size=9)
    first = metrics.bootstrap_interval(values, n_boot=50, random_state=1)
    assert first == metrics.bootstrap_interval(values, n_boot=50, random_state=1)
    assert first != metrics.bootstrap_interval(values, n_boot=50, random_state=2)


def test_percentiles_skip_missing_draws():
    draws = np.random.default_rng(0).normal(size=(101, 3))
    draws[::3, 1] = np.nan
    draws[:, 2] = np.nan
    low, high = percentile_interval(draws)
    expected = np.nanquantile(draws[:, :2], [0.025, 0.975], axis=0)
    np.testing.assert_allclose([low[:2], high[:2]], expected)
    assert np.isnan(low[2]) and np.isnan(high[2])


def test_blocks_are_compact_and_of_equal_size():
    x, y = (a.ravel() for a in np.meshgrid(np.arange(16.0), np.arange(8.0)))
    xy = np.c_[x, y]
    label = metrics.spatial_blocks(xy, n_blocks=8)
    assert np.bincount(label).tolist() == [16] * 8
    for number in range(8):
        assert np.ptp(xy[label == number], axis=0).tolist() == [3, 3]
    assert len(np.unique(metrics.spatial_blocks(xy[:5], n_blocks=64))) == 2
    assert metrics.spatial_blocks(xy[:1]).tolist() == [0]


def test_draws_of_blocks_equal_resampled_spots(pair):
    truth, prediction = pair
    blocks = np.arange(60) // 6
    weights = draw_weights(10, 7, 0)
    draws = metrics.pearson_draws(truth, prediction, blocks, weights)
    for weight, row in zip(weights.astype(int), draws):
        spots = np.concatenate([np.tile(np.flatnonzero(blocks == b), w) for b, w in enumerate(weight)])
        np.testing.assert_allclose(row, metrics.pearson(truth[spots], prediction[spots]), atol=1e-10)


def test_draw_of_a_constant_prediction_is_zero_and_of_a_constant_truth_nan(pair):
    truth, prediction = pair[0].copy(), pair[1].copy()
    prediction[:, 0] = 1 / 3
    truth[:, 1] = 0.1
    truth[:, 2] = prediction[:, 2] = 0.7
    draws = metrics.pearson_draws(truth, prediction, np.arange(60) // 6, draw_weights(10, 5, 0))
    assert (draws[:, 0] == 0).all()
    assert np.isnan(draws[:, 1:3]).all()
    assert np.isfinite(draws[:, 3:]).all()


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match="`level` must lie between 0 and 1; got 95"):
        metrics.bootstrap_interval([1, 2], level=95)
    with pytest.raises(ValueError, match=r"at least one row; got shape \(0,\)"):
        metrics.bootstrap_interval([])
    with pytest.raises(ValueError, match="group of each of the 2 rows"):
        metrics.bootstrap_interval([1, 2], groups=["a"])
    with pytest.raises(ValueError, match="`n_boot` must be at least 1"):
        metrics.bootstrap_interval([1, 2], n_boot=0)
    with pytest.raises(ValueError, match="spots × 2"):
        metrics.spatial_blocks(np.ones((3, 3)))
