import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stgen import _keys


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def adata() -> ad.AnnData:
    """Two sections of a grid, a prediction in a layer and one of three genes in obsm."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(10) * 100.0, np.arange(8) * 100.0)
    xy = np.c_[x.ravel(), y.ravel()]
    rate = rng.gamma(3, 5, (160, 5))
    adata = ad.AnnData(
        rng.poisson(rate).astype(np.float32),
        obs=pd.DataFrame({_keys.LIBRARY: ["a"] * 80 + ["b"] * 80}, index=[f"s{i}" for i in range(160)]),
        var=pd.DataFrame(index=["CCL3/L1/L3", "g1", "g2", "g3", "g4"]),
        obsm={_keys.SPATIAL: np.r_[xy, xy]},
        layers={_keys.GENAR: rate},
    )
    adata.obsm["part"] = rate[:, [2, 0, 1]]
    adata.uns["part"] = {"genes": np.array(["g2", "CCL3/L1/L3", "g1"])}
    return adata


@pytest.fixture(autouse=True)
def layout_works(recwarn):
    """A layout that collapses is a warning of matplotlib's, attributed to whoever draws."""
    yield
    assert not [w for w in recwarn if "layout" in str(w.message)]
