"""Level, intervals and trust: equal to slow references, and as often right as they say."""

import numpy as np
import pandas as pd
import pytest

from stgen.models.causalged import _calibration
from stgen.models.causalged._calibration import (
    Intervals,
    Regression,
    Z,
    fit_level,
    fit_trust,
    level,
    level_features,
    pearson,
    trust,
    trust_features,
    widening,
)

K, N = 5, 60


@pytest.fixture
def genes():
    """Features of genes, the third of them constant, and two outcomes."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, K)) * [1, 10, 0, 0.1, 3] + [0, 5, 2, 1, -4]
    outcome = features[:, :2] @ [[0.5, 0.1], [0.1, 0.0]] + rng.normal(0, 0.3, (N, 2))
    return features, outcome


def slow_ridge(x, y, penalty):
    """Offset and coefficients of standardised features, by the normal equations."""
    return np.linalg.solve(x.T @ x + penalty * np.diag([0.0] + [1.0] * (x.shape[1] - 1)), x.T @ y)


def standardised(features):
    sd = features.std(0)
    z = (features - features.mean(0)) / np.where(sd > 0, sd, 1)
    return np.column_stack([np.ones(len(z)), z])


# the regression -----------------------------------------------------------------------------------------------------


def test_a_regression_is_ridge_on_standardised_features(genes):
    features, outcome = genes
    x = standardised(features)
    expected = x @ slow_ridge(x, outcome, 3.0)
    np.testing.assert_allclose(Regression.fit(features, outcome)(features), expected, atol=1e-8)


@pytest.mark.parametrize("penalty", [3.0, 30.0])
def test_its_error_is_that_of_leaving_out_gene_after_gene(genes, penalty):
    features, outcome = genes
    x, error = standardised(features), np.empty_like(outcome)
    for i in range(N):
        others = np.arange(N) != i
        error[i] = outcome[i] - x[i] @ slow_ridge(x[others], outcome[others], penalty)
    made = Regression.fit(features, outcome, penalty=penalty)
    np.testing.assert_allclose(made.error, np.sqrt((error**2).mean(0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_regression_is_packed_and_unpacked(genes, dtype):
    """Weights of a network are float32."""
    features, outcome = genes
    made = Regression.fit(features, outcome)
    assert np.isinf(made.unit).sum() == 1
    back = Regression.unpacked(made.packed().astype(dtype).astype(np.float64))
    rtol = 1e-12 if dtype is np.float64 else 1e-4
    for name in ("mean", "unit", "weight", "error"):
        np.testing.assert_allclose(getattr(back, name), getattr(made, name), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(back(features), made(features), rtol=10 * rtol, atol=1e-5)


def test_a_constant_feature_has_no_part(genes):
    features, outcome = genes
    made, other = Regression.fit(features, outcome), features.copy()
    other[:, 2] = -1000
    np.testing.assert_array_equal(made(other), made(features))


def test_fewer_genes_than_features_are_no_error():
    rng = np.random.default_rng(1)
    made = Regression.fit(rng.normal(size=(3, K)), rng.normal(size=(3, 2)))
    assert np.isfinite(made.weight).all() and np.isfinite(made.error).all()


# the level ----------------------------------------------------------------------------------------------------------


def make_facts(n=N, seed=0):
    """Facts of a reference as `summarise` finds them: mean, sd, share of cells, share between metacells."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(1.0, 0.5, n)
    return np.stack([mean, 0.2 + 0.8 * mean, 1 - np.exp(-mean), rng.uniform(0, 1, n)], 1).astype(np.float32)


def test_a_level_that_follows_from_the_reference_is_found():
    facts, rng = make_facts(), np.random.default_rng(2)
    mean, sd = 0.3 + 0.7 * facts[:, 0], 0.1 + 0.5 * facts[:, 1]
    x = (mean + sd * rng.normal(size=(4000, N))).astype(np.float32)
    found_mean, found_sd = level(fit_level(facts, x), facts)
    assert np.corrcoef(found_mean, mean)[0, 1] > 0.97 and np.corrcoef(found_sd, sd)[0, 1] > 0.9
    assert np.median(np.abs(found_mean - mean)) < 0.1 and np.median(np.abs(np.log(found_sd / sd))) < 0.2


def test_a_level_is_never_negative_nor_absurd():
    facts = make_facts()
    regression = fit_level(facts, np.abs(np.random.default_rng(0).normal(size=(50, N))).astype(np.float32))
    far = np.array([[1e4, 1e4, 1, 1], [0, 0, 0, 0], [-50, 0, 0, 0]], dtype=np.float32)
    far[2, 0] = 0
    mean, sd = level(regression, far)
    assert (mean >= 0).all() and (sd > 0).all()
    assert (sd <= np.exp(3) * 1.001).all() and (sd >= np.exp(-7) * 0.999).all()


def test_level_features_are_finite_for_genes_that_no_cell_has():
    assert np.isfinite(level_features(np.zeros((2, 4), dtype=np.float32))).all()


def test_a_shrunk_pattern_is_widened_half_way():
    strength = np.array([1.0, 0.25, 0.04], dtype=np.float32)
    np.testing.assert_allclose(widening(strength) * strength, np.sqrt(strength), rtol=1e-5)
    assert np.isfinite(widening(np.zeros(3, dtype=np.float32))).all()


# intervals ----------------------------------------------------------------------------------------------------------


def simulate(seed, n=400, m=50):
    """Predictions, and what is measured there: more spread where more is predicted, never below 0."""
    rng = np.random.default_rng(seed)
    predicted = rng.gamma(2.0, 0.6, (n, m)).astype(np.float32)
    truth = np.maximum(predicted + (0.02 + 0.3 * predicted) * rng.normal(size=(n, m)), 0)
    return predicted, truth.astype(np.float32)


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_intervals_cover_what_they_say_on_new_data(mass):
    bands = Intervals.fit(*simulate(0), seed=0)
    predicted, truth = simulate(1)
    low, high = bands.at(predicted, 0.5 - mass / 2), bands.at(predicted, 0.5 + mass / 2)
    assert ((truth >= low) & (truth <= high)).mean() == pytest.approx(mass, abs=0.015)
    # and wherever they are: for small and for large predictions
    for part in np.array_split(np.argsort(predicted.ravel()), 4):
        inside = ((truth >= low) & (truth <= high)).ravel()[part]
        assert inside.mean() == pytest.approx(mass, abs=0.04)


def test_quantiles_are_ordered_everywhere():
    bands = Intervals.fit(*simulate(0), seed=0)
    predicted = np.linspace(-1, 30, 500, dtype=np.float32)
    ends = np.stack([bands.at(predicted, p) for p in (0.05, 0.25, 0.5, 0.75, 0.95)])
    assert (np.diff(ends, axis=0) >= 0).all() and np.isfinite(ends).all()
    assert (bands.spread(predicted) > 0).all()


def test_the_spread_is_that_of_truths():
    bands = Intervals.fit(*simulate(0, n=4000), seed=0)
    predicted, truth = simulate(3, n=4000)
    near = np.abs(predicted - 1.0) < 0.05
    assert bands.spread(np.array([1.0], dtype=np.float32))[0] == pytest.approx(truth[near].std(), rel=0.06)


@pytest.mark.parametrize("value", [0.0, 1.3])
def test_predictions_that_are_all_the_same_have_the_intervals_of_the_truths(value):
    _, truth = simulate(0)
    same = np.full_like(truth, value)
    bands = Intervals.fit(same, truth, seed=0)
    low, high = (bands.at(same[:1, :1], p)[0, 0] for p in (0.05, 0.95))
    assert np.isfinite([low, high]).all() and low <= high


def test_few_pairs_are_no_error():
    x = np.array([[0.1, 0.4], [0.3, 0.2]], dtype=np.float32)
    bands = Intervals.fit(x, x, seed=0)
    assert len(bands.centre) == 4 and np.isfinite(bands.at(x, 0.9)).all()


def test_of_many_pairs_some_are_drawn_by_seed(monkeypatch):
    monkeypatch.setattr(_calibration, "MAX_PAIRS", 1000)
    predicted, truth = simulate(0)
    one, same, other = (Intervals.fit(predicted, truth, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.quantile, same.quantile)
    assert not np.array_equal(one.quantile, other.quantile)
    whole = simulate(0, n=2000)
    np.testing.assert_allclose(
        one.at(np.float32([1.0]), 0.5), np.median(whole[1][np.abs(whole[0] - 1) < 0.05]), atol=0.25
    )


# trust --------------------------------------------------------------------------------------------------------------


def test_pearson_is_numpys_per_gene_and_0_where_one_side_is_constant():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (0.5 * x + rng.normal(size=x.shape)).astype(np.float32)
    made = pearson(x, y)
    for i in range(6):
        assert made[i] == pytest.approx(np.corrcoef(x[:, i], y[:, i])[0, 1], abs=1e-6)
    x[:, 0], y[:, 1] = 3.0, 0.0
    assert pearson(x, y)[:2].tolist() == [0, 0]
    assert np.isfinite(pearson(x[:1], y[:1])).all()


def constant(score, gain, error):
    """A regression that says the same of every gene."""
    weight = np.zeros((7, 2))
    weight[0] = score, gain
    return Regression(np.zeros(6), np.ones(6), weight, np.array(error, dtype=float))


VERDICTS = {
    "above 0": (0.2, 0.1, "use"),
    "holds 0": (0.05, 0.1, "weak"),
    "holds 0 from below": (-0.05, 0.1, "do not use"),
    "expected to be 0": (0.0, 0.1, "do not use"),
    "below 0": (-0.2, 0.1, "do not use"),
    "certainly 0": (0.0, 0.0, "do not use"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_is_that_of_the_interval_of_the_gain(name):
    gain, error, verdict = VERDICTS[name]
    table = trust(constant(0.6, gain, [0.1, error]), np.zeros((2, 6)), ["a", "b"], np.ones(2, bool))
    assert table["verdict"].tolist() == [verdict] * 2
    assert list(table.index) == ["a", "b"] and table.index.name == "gene"
    np.testing.assert_allclose(table["gain_low"], gain - Z * error)
    np.testing.assert_allclose(table["gain_high"], gain + Z * error)
    np.testing.assert_allclose(table["low"], 0.6 - Z * 0.1)
    np.testing.assert_allclose(table["high"], 0.6 + Z * 0.1)


def test_a_gene_that_no_cell_of_the_reference_has_is_not_to_be_used():
    table = trust(constant(0.6, 0.4, [0.1, 0.1]), np.zeros((2, 6)), ["a", "b"], np.array([True, False]))
    assert table["verdict"].tolist() == ["use", "do not use"]
    assert table["predictability"].tolist() == [0.6, 0.0]


def test_correlations_are_kept_between_minus_1_and_1():
    table = trust(constant(1.4, 0.2, [0.5, 0.1]), np.zeros((1, 6)), ["a"], np.ones(1, bool))
    assert table[["predictability", "low", "high"]].abs().max().max() <= 1


def make_outcomes(n_genes, seed, n_spots=150):
    """Hints of genes that are predicted the better the stronger they are, and a null of their own."""
    rng = np.random.default_rng(seed)
    facts, share = make_facts(n_genes, seed), rng.uniform(0.1, 0.9, n_genes)
    truth, other, common = (rng.normal(size=(n_spots, n_genes)) for _ in range(3))
    hint = (share * truth + np.sqrt(1 - share**2) * other) * share
    shared = 0.2 * truth + common
    features = trust_features(facts, hint.std(0).astype(np.float32), share.astype(np.float32))
    return features, *(part.astype(np.float32) for part in (hint, truth, shared))


def test_trust_holds_for_genes_that_were_not_there():
    """The score is ordered right, and 80 % intervals hold about 80 % of correlations and gains."""
    regression = fit_trust(*make_outcomes(120, 0))
    features, hint, truth, shared = make_outcomes(400, 1)
    table = trust(regression, features, [f"g{i}" for i in range(400)], np.ones(400, bool))
    score = pearson(hint, truth)
    gain = score - np.maximum(pearson(shared, truth), 0)
    assert np.corrcoef(table["predictability"], score)[0, 1] > 0.8
    for found, low, high in ((score, "low", "high"), (gain, "gain_low", "gain_high")):
        inside = (table[low] <= found) & (found <= table[high])
        assert 0.7 < inside.mean() < 0.9
    assert isinstance(table, pd.DataFrame) and table.notna().all().all()


def test_the_gain_is_over_the_mean_of_measured_genes_but_never_over_less_than_nothing():
    features, hint, truth, shared = make_outcomes(80, 2)
    made, against = (fit_trust(features, hint, truth, one) for one in (shared, -truth))
    score, gain = against(features).T
    np.testing.assert_allclose(score, gain, atol=1e-9)
    assert (made(features)[:, 1] < made(features)[:, 0]).mean() > 0.9


def test_trust_features_are_finite_for_genes_that_no_cell_has():
    zeros = np.zeros(2, dtype=np.float32)
    assert np.isfinite(trust_features(np.zeros((2, 4), dtype=np.float32), zeros, zeros)).all()
