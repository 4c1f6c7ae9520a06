from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse


def build_slide(
    n_x=8, n_y=6, *, pitch=100.0, origin=(150.0, 150.0), n_genes=5, section="s1", seed=0
) -> AnnData:
    """Spots on a grid, in µm from the corner of the image, with counts."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(n_x) * pitch + origin[0], np.arange(n_y) * pitch + origin[1])
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    counts = rng.poisson(rng.gamma(2, 2, n_genes), (len(xy), n_genes))
    obs = pd.DataFrame({"section": section}, index=[f"{section}_{i}" for i in range(len(xy))])
    adata = AnnData(
        sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )
    adata.obsm["spatial"] = xy
    return adata


def build_coded_image(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x // 256) * 16 + y // 256], axis=2).astype(np.uint8)


def read_place(pixel: np.ndarray) -> tuple[int, int]:
    """Column and row that a pixel of :func:`build_coded_image` names."""
    red, green, blue = (int(value) for value in pixel)
    return red + 256 * (blue // 16), green + 256 * (blue % 16)


def draw_tissue(height: int, width: int, *, n_nuclei: int = 400, seed: int = 0) -> np.ndarray:
    """Pink with dark blue discs."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3))
    image[:] = (225, 170, 200)
    for _ in range(n_nuclei):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 9)
        y0, x0 = int(max(cy - 10, 0)), int(max(cx - 10, 0))
        y, x = np.mgrid[y0 : min(y0 + 20, height), x0 : min(x0 + 20, width)]
        image[y0 : y0 + 20, x0 : x0 + 20][np.hypot(y - cy, x - cx) < radius] = (80, 50, 130)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def same(a, b) -> bool:
    """Whether two AnnData hold the same."""
    return (
        a.obs.equals(b.obs)
        and a.var.equals(b.var)
        and (abs(a.X - b.X)).sum() == 0
        and list(a.obsm) == list(b.obsm)
        and all(np.array_equal(a.obsm[key], b.obsm[key]) for key in a.obsm)
        and repr(dict(a.uns)) == repr(dict(b.uns))
    )


@pytest.fixture
def slide() -> AnnData:
    return build_slide()


@pytest.fixture
def make_slide():
    return build_slide


@pytest.fixture
def coded_image():
    return build_coded_image


@pytest.fixture
def place_of():
    return read_place


@pytest.fixture
def tissue():
    return draw_tissue


@pytest.fixture
def refused():
    """A call that must fail with this message and leave its object as it was."""

    @contextmanager
    def check(adata, error, match):
        before = deepcopy(adata.copy())
        with pytest.raises(error, match=match):
            yield
        assert same(adata, before)

    return check
