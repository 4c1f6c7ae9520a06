"""Imputed genes come back as an AnnData that scanpy goes on with; truth comes on their scale."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys
from stgen.get._imputed import read_imputation, true_expression

N, TARGET = 20, 30.0
GENES = ["A/B", "i1", "i2"]
COLUMNS = ["predictability", "low", "high", "gain", "gain_low", "gain_high", "verdict"]


@pytest.fixture
def adata():
    """A section as `tl.causalged_impute` leaves it: three imputed genes, one measured gene that was not read."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(4.0, (N, 4)).astype(np.float32)),
        obs=pd.DataFrame({_keys.LIBRARY: "s1"}, index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame(index=["g1", "g2", "g3", "alone"]),
        obsm={_keys.SPATIAL: rng.uniform(0, 200, (N, 2)), "X_pca": rng.normal(size=(N, 2))},
    )
    adata.obsm["causalged"] = rng.gamma(2, size=(N, 3)).astype(np.float32)
    table = {name: np.array([0.5, 0.2, 0.0]) + i / 10 for i, name in enumerate(COLUMNS[:-1])}
    table["verdict"] = np.array(["use", "weak", "do not use"], dtype=object)
    genes = np.array(GENES, dtype=object)
    adata.uns["causalged"] = {
        "method": "CausalGeD",
        "genes": genes,
        "panel": np.array(["g1", "g2", "g3"], dtype=object),
        "scale": "normalized",
        "table": table,
        "params": {"expression": "counts", "target_total": TARGET},
    }
    for end in ("sd", "lower_90", "upper_90"):
        adata.obsm[f"causalged_{end}"] = rng.gamma(1, size=(N, 3)).astype(np.float32)
        adata.uns[f"causalged_{end}"] = {"method": "CausalGeD", "genes": genes, "params": {"of": "causalged"}}
    adata.uns[_keys.SPATIAL_UM] = {"um_per_unit": 1.0}
    return adata


def totals(adata):
    return adata[:, ["g1", "g2", "g3"]].X.toarray().astype(float).sum(axis=1, keepdims=True)


def test_imputed_genes_are_an_anndata(adata):
    before = adata.copy()
    out = stg.get.imputed(adata)
    assert list(out.var_names) == GENES
    np.testing.assert_array_equal(out.X, adata.obsm["causalged"])
    assert set(filter(None, out.layers)) == {"sd", "lower_90", "upper_90"}
    np.testing.assert_array_equal(out.layers["sd"], adata.obsm["causalged_sd"])
    assert list(out.var) == COLUMNS
    assert list(out.var["verdict"]) == ["use", "weak", "do not use"]
    assert list(out.var["verdict"].cat.categories) == ["use", "weak", "do not use"]
    assert out.var.loc["A/B", "predictability"] == 0.5
    assert set(out.obsm) == {_keys.SPATIAL, "X_pca"}
    assert list(out.obs[_keys.LIBRARY]) == ["s1"] * N
    assert _keys.SPATIAL_UM in out.uns
    out.X[:], out.obsm["X_pca"][:] = 0, 0
    out.uns["causalged"]["params"]["target_total"] = 1.0
    assert not stg.testing.changed_slots(before, adata)  # nothing is shared


def test_measured_genes_come_on_the_same_scale(adata):
    out = stg.get.imputed(adata, with_measured=True)
    assert list(out.var_names) == ["g1", "g2", "g3", "alone", *GENES]
    expected = np.log1p(adata.X.toarray() * TARGET / np.maximum(totals(adata), 1))
    np.testing.assert_allclose(out[:, :4].X, expected, rtol=1e-5)
    np.testing.assert_array_equal(out[:, GENES].X, adata.obsm["causalged"])
    assert out.X.dtype == np.float32
    assert list(out.var["verdict"][:4]) == ["measured"] * 4
    assert out.var["gain"].isna().tolist() == [True] * 4 + [False] * 3
    assert np.isnan(out.layers["sd"][:, :4]).all()


def test_logs_are_taken_as_they_are(adata):
    adata.X = np.log1p(adata.X.toarray())
    adata.uns["causalged"]["params"] = {"expression": "log"}
    out = stg.get.imputed(adata, with_measured=True)
    np.testing.assert_allclose(out[:, :4].X, adata.X, rtol=1e-6)


def test_what_comes_back_can_be_written(adata, tmp_path):
    out = stg.get.imputed(adata, with_measured=True)
    out.write_h5ad(tmp_path / "imputed.h5ad")
    back = ad.read_h5ad(tmp_path / "imputed.h5ad")
    np.testing.assert_array_equal(back.X, out.X)
    assert list(back.var_names) == list(out.var_names)


def test_a_table_of_a_file_is_read_as_it_was(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(stg.get.imputed(back).var, stg.get.imputed(adata).var)


def test_what_is_no_imputation_is_refused(adata):
    with pytest.raises(KeyError, match=r"uns\['mine'\] holds no imputation; uns has .*causalged_impute"):
        stg.get.imputed(adata, "mine")
    with pytest.raises(KeyError, match=r"uns\['causalged_sd'\] holds no imputation"):
        stg.get.imputed(adata, "causalged_sd")


def test_totals_need_the_genes_that_were_read(adata):
    less = adata[:, ["g1", "alone"]].copy()
    assert stg.get.imputed(less).n_vars == 3
    with pytest.raises(
        ValueError, match=r"3 measured genes .*; 2 of them are no longer .*: g2, g3\. Use the one"
    ):
        stg.get.imputed(less, with_measured=True)


# truth -------------------------------------------------------------------------------------------------------


@pytest.fixture
def truth(adata):
    """All genes of the spots, and more of both, in another order."""
    rng = np.random.default_rng(1)
    names = ["x", "i2", "A/B", "i1"]
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(3.0, (N + 2, 4)).astype(np.float32)),
        obs=pd.DataFrame(index=["other", *adata.obs_names[::-1], "another"]),
        var=pd.DataFrame(index=names),
    )


@pytest.mark.parametrize("kind", ["anndata", "table", "key"])
def test_truth_is_found_by_name_and_divided_by_measured_totals(kind, adata, truth):
    counts = truth[adata.obs_names, ["i1", "A/B"]].X.toarray()
    given = truth
    if kind == "table":
        given = truth.to_df()
    elif kind == "key":
        adata.obsm["known"], given = counts, "known"
        adata.uns["known"] = {"genes": np.array(["i1", "A/B"], dtype=object)}
    found = read_imputation(adata, "causalged")
    values = true_expression(adata, found, pd.Index(["i1", "A/B"]), given)
    np.testing.assert_allclose(values, np.log1p(counts * TARGET / np.maximum(totals(adata), 1)), rtol=1e-6)


def test_the_same_barcodes_of_another_section_are_no_truth(adata, truth):
    found, genes = read_imputation(adata, "causalged"), pd.Index(["i1"])
    truth.obs[_keys.LIBRARY] = "s1"
    expected = true_expression(adata, found, genes, truth)  # nothing contradicts
    adata.obs[_keys.LIBRARY] = "s1"
    np.testing.assert_array_equal(true_expression(adata, found, genes, truth), expected)
    adata.obs[_keys.LIBRARY] = ["s2"] * 3 + ["s1"] * (adata.n_obs - 3)
    with pytest.raises(
        ValueError, match=r"3 of 20 have the same name and are of another section, such as .*'s2' .* 's1'"
    ):
        true_expression(adata, found, genes, truth)


def test_truth_that_does_not_fit_is_refused(adata, truth):
    found, genes = read_imputation(adata, "causalged"), pd.Index(["i1"])
    with pytest.raises(KeyError, match="`truth` has no gene i1; it has 1, such as x"):
        true_expression(adata, found, genes, truth[:, ["x"]])
    with pytest.raises(ValueError, match=r"`truth` must have all spots of `adata`; 1 of 20 are not .* c3"):
        true_expression(adata, found, genes, truth[truth.obs_names != "c3"])
    truth.X = truth.X * 0.5
    with pytest.raises(ValueError, match="measured expression must hold counts"):
        true_expression(adata, found, genes, truth)
    with pytest.raises(
        TypeError, match=r"`truth` must be an AnnData or a table of the same spots.*got ndarray"
    ):
        true_expression(adata, found, genes, np.zeros((N, 1)))
