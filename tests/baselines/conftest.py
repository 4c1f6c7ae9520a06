from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tissue() -> SimpleNamespace:
    """Three sections; histology knows part of the counts, place another part."""
    rng = np.random.default_rng(0)
    n, n_genes = 90, 8
    section = np.repeat(["a", "b", "c"], n // 3)
    xy = rng.uniform(0, 1000, (n, 2))
    histology = rng.normal(size=(n, 5)).astype(np.float32)
    effect = histology[:, :2] @ rng.normal(size=(2, n_genes)) * 0.5 + np.sin(xy[:, :1] / 150) * 0.5
    counts = rng.poisson(np.exp(1.5 + effect) * rng.gamma(20, 1 / 20, (n, 1))).astype(float)
    return SimpleNamespace(
        histology=histology, counts=counts, xy=xy, section=section, train=section != "c", test=section == "c"
    )
