import numpy as np
import pytest


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Sparse counts and a positive prediction that knows something about them."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 1.0, (60, 12))
    return rng.poisson(rate).astype(float), rate * rng.gamma(5.0, 0.2, rate.shape)


@pytest.fixture
def global_state_untouched():
    """Fails a test that moves numpy's global random state."""
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
