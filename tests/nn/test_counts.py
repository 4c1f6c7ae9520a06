"""Labels of counts, their losses, and what a count distribution says.

B batch, T tokens, V vocabulary.
"""

import numpy as np
import pytest
import torch
from torch.distributions import NegativeBinomial

from stgen.nn._counts import (
    distribution_moments,
    distribution_quantile,
    gaussian_label,
    label_divergence,
    negative_binomial_slope,
    negative_binomial_table,
    two_hot,
)

SLOPE, WIDTH = 0.01, 0.5


def dense(index, mass, n_tokens):
    """The label over the whole vocabulary; entries named twice add."""
    return torch.zeros(*index.shape[:-1], n_tokens, dtype=mass.dtype).scatter_add(-1, index, mass)


def mean_of(label):
    return label @ torch.arange(label.shape[-1], dtype=label.dtype)


# -- labels ----------------------------------------------------------------------------------------------------


def test_two_hot_keeps_a_fractional_mean_exactly_and_uses_its_two_neighbours():
    value = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 19
    label = dense(*two_hot(value, 20), 20)
    torch.testing.assert_close(label.sum(-1), torch.ones_like(value))
    torch.testing.assert_close(mean_of(label), value)
    for v, row in zip(value.tolist(), label):
        assert set(row.nonzero().flatten().tolist()) <= {int(v), int(v) + 1}


@pytest.mark.parametrize("value", [0.0, 1.0, 7.0, 19.0])
def test_two_hot_puts_all_mass_on_an_integer(value):
    label = dense(*two_hot(torch.tensor([value]), 20), 20)[0]
    assert label[int(value)] == 1
    assert label.sum() == 1


@pytest.mark.parametrize("value", [19.2, 300.0])
def test_two_hot_ends_at_the_vocabularys_upper_end(value):
    label = dense(*two_hot(torch.tensor([value]), 20), 20)[0]
    assert label[19] == 1


@pytest.mark.parametrize("n_tokens", [30, 400])
def test_a_blurred_label_is_a_distribution_and_symmetric_away_from_the_ends(n_tokens):
    count = torch.arange(n_tokens, dtype=torch.float64)
    label = dense(*gaussian_label(count, n_tokens, slope=SLOPE, width=WIDTH), n_tokens)
    torch.testing.assert_close(label.sum(-1), torch.ones_like(count))
    assert (label >= 0).all()
    for y in range(8, n_tokens // 2):
        reach = min(y, n_tokens - 1 - y)
        torch.testing.assert_close(label[y, y - reach : y], label[y, y + 1 : y + reach + 1].flip(0))


def test_a_blurred_label_equals_the_discretised_gaussian_over_the_whole_vocabulary():
    n_tokens = 300
    v = np.arange(n_tokens)
    label = dense(
        *gaussian_label(torch.arange(250).double(), n_tokens, slope=SLOPE, width=WIDTH), n_tokens
    ).numpy()
    for y in range(1, 250):
        sigma = SLOPE * y + WIDTH * y / (1 + y)
        expected = np.exp(-0.5 * ((v - y) / sigma) ** 2)
        np.testing.assert_allclose(label[y], expected / expected.sum(), atol=1e-7)


def test_a_label_of_zero_is_not_blurred():
    label = dense(*gaussian_label(torch.zeros(1), 20, slope=SLOPE, width=WIDTH), 20)[0]
    assert label[0] == 1


def test_a_labels_mean_is_its_count_at_0_and_nearly_so_elsewhere():
    """With σ = .01 y + 1 the published label's mean is .52 at 0 and 1.13 at 1, which no decoding undoes."""
    count = torch.arange(100, dtype=torch.float64)
    bias = mean_of(dense(*gaussian_label(count, 400, slope=SLOPE, width=WIDTH), 400)) - count
    assert bias[0] == 0
    assert bias[1:4].abs().max() < 1e-3
    assert bias.abs().max() < 1e-3


def test_a_constant_blur_is_biased_where_ours_is_not():
    v = np.arange(400)
    for y, published in ((0, 0.52), (1, 1.13)):
        mass = np.exp(-0.5 * ((v - y) / (0.01 * y + 1)) ** 2)
        assert abs(mass @ v / mass.sum() - published) < 0.015


def test_a_wider_window_changes_nothing():
    count = torch.arange(60, dtype=torch.float64)
    fitted = dense(*gaussian_label(count, 100, slope=SLOPE, width=WIDTH), 100)
    wide = dense(*gaussian_label(count, 100, slope=SLOPE, width=WIDTH, half=90), 100)
    torch.testing.assert_close(fitted, wide, rtol=0, atol=1e-7)


# -- losses ------------------------------------------------------------------------------------------------------


def labels(kind, n_tokens, generator):
    value = torch.rand(3, 11, generator=generator, dtype=torch.float64) * (n_tokens - 1)
    value[0, :2] = torch.tensor([0.0, n_tokens - 1])
    if kind == "two_hot":
        return two_hot(value, n_tokens)
    return gaussian_label(value.round(), n_tokens, slope=SLOPE, width=WIDTH)


@pytest.mark.parametrize("kind", ["two_hot", "gaussian"])
@pytest.mark.parametrize("n_tokens", [3, 50, 300])
def test_the_windowed_divergence_equals_the_dense_one_in_value_and_gradient(kind, n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    logits = (3 * torch.randn(3, 11, n_tokens, generator=generator, dtype=torch.float64)).requires_grad_()
    index, mass = labels(kind, n_tokens, generator)
    windowed = label_divergence(logits, index, mass)
    label = dense(index, mass, n_tokens)
    full = (torch.special.xlogy(label, label) - label * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(windowed, full)
    weight = torch.rand(3, 11, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((loss * weight).sum(), logits)[0] for loss in (windowed, full)]
    torch.testing.assert_close(*gradients)


def test_the_divergence_is_0_where_the_prediction_is_the_label_and_positive_elsewhere():
    index, mass = labels("gaussian", 40, torch.Generator().manual_seed(0))
    label = dense(index, mass, 40)
    assert label_divergence(label.clamp(min=1e-300).log(), index, mass).abs().max() < 1e-9
    assert (label_divergence(torch.zeros_like(label), index, mass) > 0.1).all()


def test_table_and_slope_are_a_negative_binomials_log_mass():
    generator = torch.Generator().manual_seed(1)
    log_mean = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    log_dispersion = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
    v = torch.arange(4000, dtype=torch.float64)
    logits = negative_binomial_table(log_dispersion, 4000)
    logits = logits + negative_binomial_slope(log_mean, log_dispersion)[..., None] * v
    reference = NegativeBinomial(log_dispersion.exp()[:, None], logits=(log_mean - log_dispersion)[..., None])
    torch.testing.assert_close(logits.log_softmax(-1), reference.log_prob(v), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("log_mean", "log_dispersion"), [(-30.0, 5.0), (12.0, -3.0), (3.0, 12.0)])
def test_extreme_means_and_dispersions_stay_finite(log_mean, log_dispersion):
    log_mean, log_dispersion = (torch.tensor([x]).requires_grad_() for x in (log_mean, log_dispersion))
    logits = negative_binomial_table(log_dispersion, 50)
    logits = logits + negative_binomial_slope(log_mean, log_dispersion)[..., None] * torch.arange(50)
    logits.log_softmax(-1).sum().backward()
    assert log_mean.grad.isfinite().all() and log_dispersion.grad.isfinite().all()


# -- reading a distribution ---------------------------------------------------------------------------------------


@pytest.fixture
def probability():
    generator = torch.Generator().manual_seed(2)
    return (2 * torch.randn(5, 7, 30, generator=generator, dtype=torch.float64)).softmax(-1)


def test_moments_equal_sums_over_the_vocabulary(probability):
    mean, variance = distribution_moments(probability)
    for i, j in np.ndindex(5, 7):
        p = probability[i, j].numpy()
        m = sum(v * p[v] for v in range(30))
        np.testing.assert_allclose(mean[i, j], m)
        np.testing.assert_allclose(variance[i, j], sum((v - m) ** 2 * p[v] for v in range(30)))


@pytest.mark.parametrize("level", [0.025, 0.5, 0.9, 1.0])
def test_a_quantile_is_the_smallest_count_that_reaches_its_level(probability, level):
    found = distribution_quantile(probability, level)
    for i, j in np.ndindex(5, 7):
        total = 0.0
        for v in range(30):
            total += float(probability[i, j, v])
            if total >= level - 1e-6:
                break
        assert found[i, j] == v


def test_a_certain_count_has_no_variance_and_is_every_quantile():
    certain = torch.nn.functional.one_hot(torch.tensor([0, 4, 9]), 10).float()
    mean, variance = distribution_moments(certain)
    assert mean.tolist() == [0, 4, 9] and variance.tolist() == [0, 0, 0]
    for level in (0.01, 0.5, 1.0):
        assert distribution_quantile(certain, level).tolist() == [0, 4, 9]
