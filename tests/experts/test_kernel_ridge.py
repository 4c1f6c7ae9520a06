"""Regression over genes, and mixtures of profiles, beside slow references."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from stgen.experts._kernel_ridge import coefficients, likeness
from stgen.experts._mixture import mixture, unit_length


@pytest.mark.parametrize("steepness", [None, 0.5, 2.0])
def test_wanted_patterns_are_those_of_kernel_ridge_over_genes(steepness):
    rng = np.random.default_rng(0)
    profile, pattern = rng.normal(size=(40, 9)), rng.normal(size=(15, 6))
    profile = (profile - profile.mean(axis=0)) / profile.std(axis=0)
    kernel = likeness(profile.T @ profile / 40, steepness)
    slow = KernelRidge(alpha=0.3, kernel="precomputed").fit(kernel[:6, :6], pattern.T)
    found = pattern @ coefficients(kernel[:6, :6], kernel[:6, 6:], 0.3)
    np.testing.assert_allclose(found, slow.predict(kernel[6:, :6]).T, rtol=1e-8)


def test_an_exponential_kernel_never_falls_to_nought_and_keeps_the_order_of_correlations():
    correlation = np.linspace(-1, 1, 9)
    alike = likeness(correlation, 2.0)
    assert alike.min() > 0 and (np.diff(alike) > 0).all() and alike[-1] == 1
    np.testing.assert_array_equal(likeness(correlation), correlation)


def test_a_spot_is_a_mixture_of_the_profiles_it_looks_like():
    profiles = unit_length(np.eye(3))
    weight = mixture(np.array([[5.0, 0, 0], [1, 1, 0], [0, 0, 0]]), profiles, 10.0)
    e = np.exp(10.0)
    np.testing.assert_allclose(weight[0], np.array([e, 1, 1]) / (e + 2))
    np.testing.assert_allclose(weight[1, 0], weight[1, 1])
    np.testing.assert_allclose(weight[2], 1 / 3)
    # how bright a spot is does not say what it looks like
    np.testing.assert_allclose(mixture(np.array([[0.5, 0, 0]]), profiles, 10.0), weight[:1])
