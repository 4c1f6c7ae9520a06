"""Calibration of predicted count distributions."""

import numpy as np
import pytest
from scipy.stats import kstest, poisson

from stgen import metrics


@pytest.fixture
def perfect():
    rng = np.random.default_rng(1)
    rate = rng.gamma(0.5, 1.0, (4000, 3))
    return rng.poisson(rate), rate


def test_pit_of_the_true_distribution_is_uniform(perfect):
    counts, rate = perfect
    pit = metrics.randomized_pit(counts, poisson.cdf(counts - 1, rate), poisson.cdf(counts, rate))
    assert pit.shape == counts.shape
    assert kstest(pit.ravel(), "uniform").pvalue > 0.01
    assert metrics.pit_deviation(pit) < 0.02
    assert (metrics.pit_deviation(pit, axis=0) < 0.03).all()


def test_pit_of_a_wrong_distribution_is_not_uniform(perfect):
    counts, rate = perfect
    for wrong in (rate * 2, rate / 2):
        pit = metrics.randomized_pit(counts, poisson.cdf(counts - 1, wrong), poisson.cdf(counts, wrong))
        assert metrics.pit_deviation(pit) > 0.1


def test_pit_lies_inside_its_step_and_follows_the_seed(global_state_untouched):
    below, at = np.full(1000, 0.2), np.full(1000, 0.7)
    counts = np.ones(1000)
    pit = metrics.randomized_pit(counts, below, at, random_state=3)
    assert 0.2 <= pit.min() < 0.21 and 0.69 < pit.max() <= 0.7
    np.testing.assert_array_equal(pit, metrics.randomized_pit(counts, below, at, random_state=3))
    assert (pit != metrics.randomized_pit(counts, below, at, random_state=4)).any()


def test_pit_deviation_by_hand():
    assert metrics.pit_deviation((np.arange(1000) + 0.5) / 1000) == pytest.approx(0, abs=1e-12)
    assert metrics.pit_deviation(np.zeros(10), n_bins=20) == pytest.approx(0.95)
    assert metrics.pit_deviation(np.full(10, 0.5), n_bins=2) == pytest.approx(0.5)


def test_missing_values_are_not_hidden():
    pit = metrics.randomized_pit([1, np.nan], [0.1, 0.1], [0.5, 0.5])
    assert np.isnan(pit).tolist() == [False, True]
    assert np.isnan(metrics.pit_deviation(pit))
    coverage = metrics.interval_coverage([[1, np.nan]], [[0, 0]], [[2, 2]])
    np.testing.assert_array_equal(coverage, [1, np.nan])


def test_coverage_of_a_perfect_model_equals_its_mass_not_its_label(perfect):
    counts, rate = perfect
    lower, upper = poisson.ppf(0.05, rate), poisson.ppf(0.95, rate)
    coverage = metrics.interval_coverage(counts, lower, upper)
    mass = metrics.interval_mass(poisson.cdf(lower - 1, rate), poisson.cdf(upper, rate))
    np.testing.assert_allclose(coverage, mass, atol=0.01)
    assert (mass > 0.94).all()


def test_coverage_mass_and_width_by_hand():
    counts = np.array([[0, 5], [2, 5], [9, 5], [3, 5]])
    lower, upper = np.zeros((4, 2)), np.full((4, 2), [3.0, 4.0])
    np.testing.assert_array_equal(metrics.interval_coverage(counts, lower, upper), [0.75, 0])
    np.testing.assert_array_equal(metrics.interval_width(lower, upper), [3, 4])
    np.testing.assert_allclose(metrics.interval_mass([[0.1], [0.0]], [[0.9], [1.0]]), [0.9])


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match=r"same shape.*`counts` \(2,\), `cdf_below` \(3,\)"):
        metrics.randomized_pit(np.ones(2), np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="must both lie in"):
        metrics.randomized_pit([1], [0.8], [0.2])
    with pytest.raises(ValueError, match="two bounds swapped"):
        metrics.interval_coverage([[1]], [[2]], [[0]])
    with pytest.raises(ValueError, match="`n_bins` must be at least 2"):
        metrics.pit_deviation([0.5], n_bins=1)
    with pytest.raises(ValueError, match="`pit` is empty"):
        metrics.pit_deviation([])
