"""GenST's report in an AnnData: what is written where, what survives a file, what is refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys

TINY = {"n_tokens": 3, "n_codes": 6, "n_image_tokens": 4, "n_image_codes": 6, "hidden": 8, "nonlinear": False}
QUICK = {"n_boot": 20, "n_halvings": 2, "n_permutations": 3, "n_markers": 4}
COLUMNS = [
    f"genst_{name}"
    for name in ("captured", "captured_low", "captured_high", "r_cross", "ceiling", "reliability", "n_spots")
]
CODES = ["genst_codes", "genst_codes_translated", "genst_codes_histology"]


@pytest.fixture(scope="module")
def tissue():
    """Four sections of four patients."""
    import torch

    torch.set_num_threads(1)
    adata = stg.datasets.toy_tissue(
        n_sections=4, n_patients=4, spots_per_section=49, n_genes=12, panel_total=300.0
    )
    stg.pp.split(adata, by="patient", validation=0, test=["p3", "p4"])
    adata.var_names = ["CCL3/L1/L3", *adata.var_names[1:]]
    return adata


@pytest.fixture(scope="module")
def model(tissue):
    table = tissue.copy()
    setup = {"library_key": _keys.LIBRARY, "patient_key": _keys.PATIENT, "split_key": _keys.SPLIT}
    stg.models.GenST.setup_anndata(table, **setup)
    model = stg.models.GenST(table, random_state=0, **TINY)
    model.train(max_epochs=3, batch_size=32, accelerator="cpu", progress_bar=False)
    return model


@pytest.fixture
def adata(tissue):
    return tissue.copy()


def test_what_is_written_is_what_the_model_reports(adata, model):
    assert stg.tl.genst_report(adata, model=model, **QUICK) is None
    found = model.report(random_state=0, **QUICK)
    for column in COLUMNS:
        np.testing.assert_allclose(adata.var[column], found.genes[column.removeprefix("genst_")], rtol=1e-5)
    record = adata.uns["genst_report"]
    for name in ("codes", "markers", "tokens", "information"):
        assert {key: len(column) for key, column in record[name].items()} == {
            key: len(getattr(found, name)) for key in getattr(found, name)
        }
    assert (record["method"], record["task"], record["intervals"], record["n_spots"]) == (
        "GenST", "a report", "sections and blocks", 98,
    )  # fmt: skip
    assert record["params"]["split_key"] == _keys.SPLIT
    assert record["params"]["n_boot"] == 20
    assert not record["seen_in_training"]
    for slot, side in zip(CODES, ("expression", "translated", "histology"), strict=True):
        np.testing.assert_array_equal(adata.obsm[slot], model.codes(adata, modality=side))


def test_nothing_else_changes(adata, model):
    from stgen.testing import changed_slots

    before = adata.copy()
    stg.tl.genst_report(adata, model=model, **QUICK)
    for column in COLUMNS:
        del adata.var[column]
    for slot in CODES:
        del adata.obsm[slot]
    del adata.uns["genst_report"]
    assert not changed_slots(before, adata)


def test_a_copy_leaves_the_original(adata, model):
    changed = stg.tl.genst_report(adata, model=model, copy=True, **QUICK)
    assert "genst_report" in changed.uns
    assert "genst_report" not in adata.uns
    assert not set(COLUMNS) & set(adata.var)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_report_survives_a_file(adata, model, tmp_path, kind):
    stg.tl.genst_report(adata, model=model, **QUICK)
    path = tmp_path / f"report.{kind}"
    getattr(adata, f"write_{kind}")(path)
    again = getattr(ad, f"read_{kind}")(path)
    pd.testing.assert_frame_equal(stg.get.gene_capture(again), stg.get.gene_capture(adata))
    pd.testing.assert_frame_equal(
        stg.get.code_markers(again), stg.get.code_markers(adata), check_dtype=False, check_column_type=False
    )
    for slot in CODES:
        np.testing.assert_array_equal(again.obsm[slot], adata.obsm[slot])
    stg.tl.genst_report(again, model=model, **QUICK)  # ours, so it may be replaced


def test_a_saved_model_writes_the_same(adata, model, tmp_path):
    model.save(tmp_path / "model")
    other = adata.copy()
    stg.tl.genst_report(adata, model=model, **QUICK)
    stg.tl.genst_report(other, model=tmp_path / "model", **QUICK)
    pd.testing.assert_frame_equal(other.var, adata.var)
    assert other.uns["genst_report"]["model"]["path"] == str(tmp_path / "model")


def test_genes_the_model_does_not_know_stay_empty_and_order_does_not_matter(adata, model):
    stg.tl.genst_report(adata, model=model, **QUICK)
    extra = ad.AnnData(
        np.ones((adata.n_obs, 1), dtype=np.float32), obs=adata.obs, var=pd.DataFrame(index=["new"])
    )
    wider = ad.concat([extra, adata[:, ::-1]], axis=1, merge="first", uns_merge="first")
    wider.obsm = {key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.HISTOLOGY)}
    del wider.uns["genst_report"]
    wider.var = wider.var[[]]
    stg.tl.genst_report(wider, model=model, **QUICK)
    assert np.isnan(wider.var.loc["new", "genst_captured"])
    assert wider.var.loc["new", "genst_n_spots"] == 0
    assert "new" not in stg.get.gene_capture(wider).index
    columns = ["genst_r_cross", "genst_captured"]
    pd.testing.assert_frame_equal(wider.var.loc[adata.var_names, columns], adata.var[columns], rtol=1e-5)


def test_another_key_has_columns_of_its_own(adata, model):
    stg.tl.genst_report(adata, model=model, key_added="breast_report", **QUICK)
    assert "breast_captured" in adata.var
    assert "breast_codes" in adata.obsm
    assert len(stg.get.gene_capture(adata, "breast_report")) == 12


def test_counts_may_lie_in_another_layer_and_rows_may_be_said(adata, model):
    stg.tl.genst_report(adata, model=model, **QUICK)
    expected = adata.var["genst_r_cross"].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = None
    rows = np.flatnonzero(adata.obs[_keys.SPLIT] == "test")
    stg.tl.genst_report(adata, model=model, layer="counts", indices=rows, **QUICK)
    pd.testing.assert_series_equal(adata.var["genst_r_cross"], expected)


def test_training_rows_are_named_and_recorded(adata, model):
    adata.obs[_keys.SPLIT] = "test"
    with pytest.warns(
        UserWarning, match=r"trained on section s1, s2 and patient p1, p2 .* says little about new"
    ):
        stg.tl.genst_report(adata, model=model, **QUICK)
    assert list(adata.uns["genst_report"]["seen_in_training"]["sections"]) == ["s1", "s2"]


def test_what_is_not_a_report_is_not_replaced(adata, model):
    adata.var["genst_captured"] = 1.0
    with pytest.raises(ValueError, match=r"var\['genst_captured'\] exists and is not a report of GenST"):
        stg.tl.genst_report(adata, model=model, **QUICK)
    assert "genst_codes" not in adata.obsm


def test_refusals_say_what_to_do(adata, model):
    with pytest.raises(
        TypeError, match="`model` must be a fitted GenST, the folder of one or its hub id; got int"
    ):
        stg.tl.genst_report(adata, model=3)
    with pytest.raises(KeyError, match=r"obs\['slide'\] does not exist"):
        stg.tl.genst_report(adata, model=model, library_key="slide")
    with pytest.raises(ValueError, match="name without '/'"):
        stg.tl.genst_report(adata, model=model, key_added="a/b")
    with pytest.raises(ValueError, match="gene"):
        stg.tl.genst_report(adata[:, :5].copy(), model=model)
    adata.X = adata.X.toarray() + 0.5
    with pytest.raises(ValueError, match="counts"):
        stg.tl.genst_report(adata, model=model)


def test_markers_by_token_and_number(adata, model):
    stg.tl.genst_report(adata, model=model, **QUICK)
    table = stg.get.code_markers(adata)
    assert list(table) == ["token", "code", "usage", "usage_translated", "rank", "gene", "difference"]
    assert table["token"].is_monotonic_increasing
    assert set(table["gene"]) <= set(adata.var_names)
    some = stg.get.code_markers(adata, token=2, n=1)
    assert set(some["token"]) == {2}
    assert (some["rank"] == 1).all()
    assert some["usage"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="`token` must be from 1 to 3; got 7"):
        stg.get.code_markers(adata, token=7)
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        stg.get.code_markers(adata, n=0)


def test_tables_say_where_there_is_no_report(adata, model):
    for read in (stg.get.gene_capture, stg.get.code_markers):
        with pytest.raises(KeyError, match=r"no report of GenST.*`stg\.tl\.genst_report`"):
            read(adata)
    stg.tl.genst_report(adata, model=model, **QUICK)
    del adata.var["genst_captured"]
    with pytest.raises(KeyError, match="var has no 'genst_captured'"):
        stg.get.gene_capture(adata)
