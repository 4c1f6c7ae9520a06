"""Results come back with their names, whether they lie in a layer or in obsm."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys


@pytest.fixture
def adata():
    """A section with a prediction in both slots, as `tl` writes them."""
    adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=25, n_genes=12)
    rng = np.random.default_rng(0)
    adata.layers["genar"] = rng.gamma(2.0, size=adata.shape).astype(np.float32)
    adata.layers["genar_sd"] = rng.gamma(2.0, size=adata.shape).astype(np.float32)
    adata.obsm["panel"] = rng.gamma(2.0, size=(25, 2)).astype(np.float32)
    adata.obsm["panel_normalized"] = np.log1p(adata.obsm["panel"])
    genes = np.array(["CCL3/L1/L3", "KRT5"], dtype=object)
    groups = {
        "gene": genes,
        "scale_10": np.array([0, 1]),
        "scale_2": np.array([0, 1]),
        "scale_1": np.zeros(2, int),
    }
    adata.uns["panel"] = {"genes": genes, "gene_groups": groups, "params": {"random_state": 0}}
    adata.uns["panel_normalized"] = {"genes": genes, "scale": "normalized"}
    adata.uns["region_colors"] = np.array(["#ff0000"])
    return adata


def test_a_layer_comes_back_with_its_names(adata):
    table = stg.get.prediction(adata)
    assert list(table.columns) == list(adata.var_names)
    assert list(table.index) == list(adata.obs_names)
    np.testing.assert_array_equal(table, adata.layers["genar"])


def test_an_array_comes_back_with_its_names(adata):
    table = stg.get.prediction(adata, "panel")
    assert list(table.columns) == ["CCL3/L1/L3", "KRT5"]
    np.testing.assert_array_equal(table, adata.obsm["panel"])


def test_a_sparse_layer_becomes_a_table(adata):
    adata.layers["sparse"] = sparse.csr_matrix(adata.layers["genar"])
    np.testing.assert_array_equal(stg.get.prediction(adata, "sparse"), adata.layers["genar"])


def test_genes_come_in_the_order_asked_for(adata):
    table = stg.get.prediction(adata, "panel", genes=["KRT5", "CCL3/L1/L3"])
    np.testing.assert_array_equal(table, adata.obsm["panel"][:, ::-1])
    assert list(stg.get.prediction(adata, "panel", genes="KRT5")) == ["KRT5"]


def test_a_gene_that_was_not_predicted_is_named(adata):
    with pytest.raises(ValueError, match=r"'panel' has no gene EPCAM; it has CCL3/L1/L3, KRT5"):
        stg.get.prediction(adata, "panel", genes=["KRT5", "EPCAM"])


def test_a_missing_prediction_names_what_exists(adata):
    with pytest.raises(KeyError, match=r"There is no prediction 'he': layers has \['genar', 'genar_sd'\]"):
        stg.get.prediction(adata, "he")


def test_a_prediction_becomes_an_anndata_that_scanpy_can_use(adata):
    new = stg.get.as_anndata(adata, "genar")
    np.testing.assert_array_equal(new.X, adata.layers["genar"])
    np.testing.assert_array_equal(new.layers["sd"], adata.layers["genar_sd"])
    assert list(new.layers) == ["sd"] or set(new.layers) == {None, "sd"}
    pd.testing.assert_frame_equal(new.obs, adata.obs)
    pd.testing.assert_frame_equal(new.var, adata.var)
    assert set(new.obsm) == {_keys.SPATIAL, _keys.HISTOLOGY, "cell_type_proportions"}
    assert {"region_colors", _keys.SPATIAL_UM} <= set(new.uns)
    sc = pytest.importorskip("scanpy")
    sc.pp.log1p(new)
    sc.pp.pca(new, n_comps=3)
    assert new.obsm["X_pca"].shape == (25, 3)


def test_genes_that_were_not_measured_become_an_anndata(adata):
    new = stg.get.as_anndata(adata, "panel")
    assert list(new.var_names) == ["CCL3/L1/L3", "KRT5"]
    np.testing.assert_array_equal(new.layers["normalized"], adata.obsm["panel_normalized"])
    assert new.uns["panel"]["params"] == {"random_state": 0}


def test_the_new_anndata_shares_nothing(adata):
    before = adata.copy()
    new = stg.get.as_anndata(adata)
    new.X[:] = -1
    new.obsm[_keys.SPATIAL][:] = 0
    new.obs["section"] = "x"
    new.uns[_keys.SPATIAL_UM]["reason"] = "?"
    from stgen.testing import changed_slots

    assert not changed_slots(before, adata)


def test_gene_groups_come_coarse_to_fine_from_an_anndata(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    for one in (adata, ad.read_h5ad(tmp_path / "a.h5ad")):
        groups = stg.get.gene_groups(one, key="panel")
        assert list(groups.columns) == ["scale_1", "scale_2", "scale_10"]
        assert list(groups.index) == ["CCL3/L1/L3", "KRT5"]
        assert groups.index.name == "gene"


def test_gene_groups_come_from_a_model():
    class Model:
        def get_gene_groups(self):
            return pd.DataFrame({"scale_1": [0]}, index=["KRT5"])

    assert stg.get.gene_groups(Model()).loc["KRT5", "scale_1"] == 0


def test_missing_gene_groups_say_where_they_come_from(adata):
    with pytest.raises(KeyError, match=r"uns\['genar'\] holds no gene groups; .* `stg.tl.genar_predict`"):
        stg.get.gene_groups(adata)
    with pytest.raises(TypeError, match="A fitted model or an AnnData is expected; got int"):
        stg.get.gene_groups(3)
