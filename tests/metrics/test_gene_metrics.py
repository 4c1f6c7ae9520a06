"""Metrics per gene: equal to scipy, scikit-learn or a slow loop; exact by hand; NaN where undefined."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr, zscore
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from stgen import metrics
from stgen.metrics import _arrays


def slow_ssim(x, y):
    x, y = x / max(x), y / max(y)
    n, c1, c2 = len(x), 0.01**2, 0.03**2
    mx, my = sum(x) / n, sum(y) / n
    vx = sum((a - mx) ** 2 for a in x) / n
    vy = sum((b - my) ** 2 for b in y) / n
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y)) / n
    sx, sy = vx**0.5, vy**0.5
    return (
        (2 * mx * my + c1)
        / (mx**2 + my**2 + c1)
        * (2 * sx * sy + c2)
        / (vx + vy + c2)
        * (cov + c2 / 2)
        / (sx * sy + c2 / 2)
    )


REFERENCES = {
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "ssim": slow_ssim,
    "js": lambda x, y: jensenshannon(x, y) ** 2,
    "rmse": root_mean_squared_error,
    "mae": mean_absolute_error,
    "zscore_rmse": lambda x, y: root_mean_squared_error(zscore(x), zscore(y)),
}
ALL = sorted(REFERENCES)


@pytest.mark.parametrize("name", ALL)
def test_metric_equals_its_reference(name, pair):
    truth, prediction = pair
    expected = [REFERENCES[name](x, y) for x, y in zip(truth.T, prediction.T)]
    np.testing.assert_allclose(getattr(metrics, name)(truth, prediction), expected, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_and_blocks_change_nothing(name, container, pair, monkeypatch):
    metric = getattr(metrics, name)
    expected = metric(*pair)
    monkeypatch.setattr(_arrays, "BLOCK_VALUES", 150)  # blocks of two genes
    np.testing.assert_allclose(metric(container(pair[0]), pair[1]), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_as_found(name, pair):
    truth, prediction = pair[0].copy(), pair[1].copy()
    prediction[3, 2] = np.inf
    before = prediction.copy()
    getattr(metrics, name)(truth, prediction)
    np.testing.assert_array_equal(truth, pair[0])
    np.testing.assert_array_equal(prediction, before)


BY_HAND = {
    "pearson": [1, -1, 0],
    "spearman": [1, -1, 0],
    "rmse": [np.sqrt(14 / 3), np.sqrt(8 / 3), 1],
    "mae": [2, 4 / 3, 1],
    "zscore_rmse": [0, 2, np.sqrt(2)],
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_metric_is_exact_by_hand(name):
    truth = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 1]])
    prediction = np.array([[2, 3, 0], [4, 2, 1], [6, 1, 2]])
    scores = getattr(metrics, name)(truth, prediction)
    np.testing.assert_allclose(scores, BY_HAND[name], atol=1e-7)


def test_js_is_zero_for_proportional_and_log_two_for_disjoint_maps():
    truth = np.array([[1.0, 1], [3, 0]])
    prediction = np.array([[2.0, 0], [6, 5]])
    np.testing.assert_allclose(metrics.js(truth, prediction), [0, np.log(2)], atol=1e-15)


def test_ssim_by_hand_is_one_for_equal_maps_and_ignores_the_scale():
    x = np.array([[0.0], [1], [4]])
    np.testing.assert_allclose(metrics.ssim(x, x), [1.0])
    np.testing.assert_allclose(metrics.ssim(x, 10 * x), [1.0])
    # two constants: equal after division by the maximum
    np.testing.assert_allclose(metrics.ssim(np.full((3, 1), 2.0), np.full((3, 1), 7.0)), [1.0])


@pytest.mark.parametrize("name", ["pearson", "spearman", "zscore_rmse"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 + 0.1])
def test_constant_gene_is_nan_in_truth_or_prediction(name, constant, pair):
    truth, prediction = pair
    truth, prediction = truth.copy(), prediction.copy()
    truth[:, 0] = constant
    prediction[:, 5] = constant
    scores = getattr(metrics, name)(truth, prediction)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [0, 5]


def test_rounding_noise_of_a_constant_is_still_a_constant(pair):
    prediction = pair[1].astype(np.float32)
    prediction[:, 1] = np.nextafter(np.float32(0.3), np.float32(1))
    prediction[::2, 1] = np.float32(0.3)
    assert np.isnan(metrics.pearson(pair[0], prediction)[1])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_makes_its_gene_nan_and_no_other(name, value, pair):
    prediction = pair[1].copy()
    prediction[7, 3] = value
    assert np.flatnonzero(np.isnan(getattr(metrics, name)(pair[0], prediction))).tolist() == [3]


def test_negative_values_are_no_distribution(pair):
    prediction = pair[1].copy()
    prediction[0, 4] = -1e-3
    assert np.flatnonzero(np.isnan(metrics.js(pair[0], prediction))).tolist() == [4]


def test_all_zero_gene_has_no_map(pair):
    prediction = pair[1].copy()
    prediction[:, 4] = 0
    for metric in (metrics.ssim, metrics.js):
        assert np.flatnonzero(np.isnan(metric(pair[0], prediction))).tolist() == [4]


@pytest.mark.parametrize("name", ["pearson", "spearman", "zscore_rmse"])
def test_one_spot_has_no_correlation(name):
    assert np.isnan(getattr(metrics, name)(np.ones((1, 3)), np.zeros((1, 3)))).all()


def test_correlation_survives_a_large_offset(pair):
    truth, prediction = pair
    np.testing.assert_allclose(
        metrics.pearson(truth + 1e7, prediction), metrics.pearson(truth, prediction), atol=1e-7
    )


def test_zscore_rmse_is_a_function_of_pearson(pair):
    np.testing.assert_allclose(
        metrics.zscore_rmse(*pair), np.sqrt(2 * (1 - metrics.pearson(*pair))), atol=1e-12
    )


@pytest.mark.parametrize("name", ALL)
def test_shape_mismatch_says_both_shapes(name, pair):
    with pytest.raises(ValueError, match=r"same shape, spots × genes; got \(60, 12\) and \(60, 11\)"):
        getattr(metrics, name)(pair[0], pair[1][:, 1:])


def test_vector_is_told_how_to_become_a_matrix(pair):
    with pytest.raises(ValueError, match=r"`truth` must be a matrix.*values\[:, None\]"):
        metrics.pearson(pair[0][:, 0], pair[1][:, 0])


def test_no_spots_is_an_error():
    with pytest.raises(ValueError, match="`truth` has no spots"):
        metrics.rmse(np.ones((0, 3)), np.ones((0, 3)))


def test_text_is_an_error():
    with pytest.raises(ValueError, match="`prediction` must hold real numbers"):
        metrics.rmse(np.ones((1, 1)), np.array([["a"]]))


def test_tables_with_genes_in_another_order_are_joined(pair):
    truth = pd.DataFrame(pair[0], columns=[f"g{i}" for i in range(12)])
    prediction = pd.DataFrame(pair[1], columns=truth.columns)
    np.testing.assert_allclose(metrics.pearson(truth, prediction), metrics.pearson(*pair), rtol=1e-12)
    turned = metrics.pearson(truth, prediction[prediction.columns[::-1]])
    np.testing.assert_allclose(turned, metrics.pearson(*pair), rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"`prediction` must have all genes of `truth`; 1 of 12 .* such as g3;"
    ):
        metrics.pearson(truth, prediction.drop(columns="g3"))
