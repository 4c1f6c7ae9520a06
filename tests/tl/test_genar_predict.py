"""One call from H&E to counts: what is written, what is left alone, and what the record tells."""

from __future__ import annotations

import copy
import gc
import logging
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "scales": None}
SHORT = {"max_epochs": 1, "batch_size": 16, "accelerator": "cpu"}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT, "n_paths": 2}
SLASH = ["CCL3/L1/L3", "HLA-A/B"]
WRITTEN = ["genar", "genar_sd", "genar_normalized"]


@pytest.fixture(scope="module")
def tissue():
    """Four sections of four patients."""
    import torch

    torch.set_num_threads(1)
    adata = stg.datasets.toy_tissue(
        n_sections=4, n_patients=4, spots_per_section=49, n_genes=12, panel_total=150.0
    )
    adata.var_names = [*SLASH, *adata.var_names[2:]]
    return adata


@pytest.fixture
def train(tissue):
    return tissue[tissue.obs[_keys.LIBRARY].isin(["s1", "s2"])].copy()


@pytest.fixture
def new(tissue):
    return tissue[tissue.obs[_keys.LIBRARY] == "s4"].copy()


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """A model that was trained and kept."""
    path = tmp_path_factory.mktemp("kept") / "model"
    train = tissue[tissue.obs[_keys.LIBRARY].isin(["s1", "s2"])].copy()
    new = bare(tissue[tissue.obs[_keys.LIBRARY] == "s4"])
    stg.tl.genar_predict(new, train_on=train, save=path, **FAST)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return stg.models.GenAR.load(folder, accelerator="cpu")


def bare(adata):
    """A section that has an image alone: no X, no genes, no columns."""
    inputs = {key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.HISTOLOGY)}
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm=inputs)


def unchanged(before, after, ignore=()):
    from stgen.testing import changed_slots

    return changed_slots(before, after, ignore=ignore)


# what is written ---------------------------------------------------------------------------------------------


def test_genes_that_are_var_names_make_layers(model, new):
    before = new.copy()
    assert stg.tl.genar_predict(new, model=model) is None
    assert [key for key in new.layers if key] == WRITTEN
    assert new.layers["genar"].dtype == np.float32
    np.testing.assert_array_equal(new.layers["genar"], model.predict(before))
    np.testing.assert_array_equal(new.layers["genar_sd"], model.predict(before, statistic="sd"))
    np.testing.assert_array_equal(
        new.layers["genar_normalized"], model.predict(before, statistic="normalized")
    )
    for key in WRITTEN:
        del new.layers[key], new.uns[key]
    assert not unchanged(before, new)


def test_genes_in_another_order_come_back_in_the_order_of_var_names(model, new):
    permuted = new[:, ::-1].copy()
    stg.tl.genar_predict(permuted, model=model)
    stg.tl.genar_predict(new, model=model)
    np.testing.assert_array_equal(permuted.layers["genar"], new.layers["genar"][:, ::-1])
    assert list(permuted.uns["genar"]["genes"]) == list(permuted.var_names)


def test_a_section_without_genes_gets_an_array_and_the_names_of_its_genes(model, new):
    image = bare(new)
    stg.tl.genar_predict(image, model=model)
    assert sorted(image.obsm) == sorted([_keys.SPATIAL, _keys.HISTOLOGY, *WRITTEN])
    assert list(image.uns["genar"]["genes"]) == model.genes
    np.testing.assert_array_equal(image.obsm["genar"], model.predict(new))


def test_other_genes_than_var_names_go_to_obsm(model, new):
    stg.tl.genar_predict(new, model=model, genes=["gene_005", SLASH[0]])
    assert new.obsm["genar"].shape == (49, 2)
    assert list(new.uns["genar"]["genes"]) == ["gene_005", SLASH[0]]
    np.testing.assert_allclose(new.obsm["genar"], model.predict(new, genes=["gene_005", SLASH[0]]), rtol=1e-5)


def test_a_result_replaces_the_one_before_wherever_that_lay(model, new):
    stg.tl.genar_predict(new, model=model)
    stg.tl.genar_predict(new, model=model, genes=["gene_005"])
    assert not [key for key in new.layers if key]
    stg.tl.genar_predict(new, model=model, key_added="genar")
    assert sorted(new.obsm) == sorted([_keys.SPATIAL, _keys.HISTOLOGY, "cell_type_proportions"])


@pytest.mark.parametrize("slot", ["layers", "obsm", "uns"])
def test_what_is_not_a_prediction_is_not_replaced(slot, model, new):
    mine = {"layers": new.X.copy(), "obsm": np.zeros((49, 2)), "uns": {"note": "mine"}}[slot]
    getattr(new, slot)["genar_sd"] = mine
    before = new.copy()
    with pytest.raises(
        ValueError, match=rf"{slot}\['genar_sd'\] exists and is not a prediction .* `key_added`"
    ):
        stg.tl.genar_predict(new, model=model)
    assert not unchanged(before, new)


def test_copy_leaves_the_original_alone(model, new):
    before = new.copy()
    changed = stg.tl.genar_predict(new, model=model, copy=True, key_added="he")
    assert not unchanged(before, new)
    assert {"he", "he_sd", "he_normalized"} <= set(changed.layers)


def test_a_view_becomes_an_object_and_its_parent_stays(model, tissue):
    parent = tissue.copy()
    view = parent[parent.obs[_keys.LIBRARY] == "s4"]
    stg.tl.genar_predict(view, model=model)
    assert not view.is_view
    assert "genar" in view.layers
    assert not unchanged(tissue, parent)


@pytest.mark.parametrize("statistic", ["median", "mode"])
def test_another_statistic_is_a_whole_number(statistic, model, new):
    stg.tl.genar_predict(new, model=model, statistic=statistic, n_paths=2)
    assert np.array_equal(new.layers["genar"], np.floor(new.layers["genar"]))
    assert new.uns["genar"]["params"]["statistic"] == statistic


def test_keys_of_the_data_need_not_be_those_of_training(model, new):
    expected = model.predict(new)
    renamed = bare(new)
    renamed.obsm["uni"], renamed.obsm["um"] = renamed.obsm[_keys.HISTOLOGY], renamed.obsm[_keys.SPATIAL]
    del renamed.obsm[_keys.HISTOLOGY], renamed.obsm[_keys.SPATIAL]
    stg.tl.genar_predict(renamed, model=model, histology_key="uni", spatial_key="um")
    np.testing.assert_array_equal(renamed.obsm["genar"], expected)
    assert renamed.uns["genar"]["params"]["histology_key"] == "uni"
    np.testing.assert_array_equal(model.predict(new), expected)  # the model still reads its own keys
    with pytest.raises(KeyError, match=r"obsm\['conch'\] does not exist; obsm has"):
        stg.tl.genar_predict(renamed, model=model, histology_key="conch", spatial_key="um")


# provenance --------------------------------------------------------------------------------------------------


def test_the_record_says_how_it_was_made(model, folder, new):
    stg.tl.genar_predict(new, model=folder, random_state=7, n_paths=2)
    record = new.uns["genar"]
    assert record["params"]["random_state"] == 7
    assert record["params"]["n_paths"] == 2
    assert record["model"]["path"] == str(folder)
    assert record["model"]["n_training_spots"] == 98
    assert record["model"]["config"]["width"] == 16
    assert record["model"]["encoder"] == "simulated descriptors"
    assert list(record["train_sections"]) == ["s1", "s2"]
    assert list(record["train_patients"]) == ["p1", "p2"]
    assert record["versions"]["stgen"] == stg.__version__
    assert record["seen_in_training"] == {}
    assert new.uns["genar_normalized"]["scale"] == "normalized"


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("where", ["layers", "obsm"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files_also_with_genes_that_hold_a_slash(kind, where, model, new, tmp_path):
    adata = new if where == "layers" else bare(new)
    stg.tl.genar_predict(adata, model=model)
    path = tmp_path / f"result.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    for key in WRITTEN:
        pd.testing.assert_frame_equal(stg.get.prediction(back, key), stg.get.prediction(adata, key))
    assert SLASH[0] in stg.get.prediction(back)
    pd.testing.assert_frame_equal(stg.get.gene_groups(back), model.get_gene_groups())
    assert list(back.uns["genar"]["train_sections"]) == ["s1", "s2"]


def test_known_patients_and_sections_are_flagged(model, tissue):
    adata = tissue[tissue.obs[_keys.LIBRARY].isin(["s2", "s4"])].copy()
    with pytest.warns(
        UserWarning, match="The model was trained on section s2 and patient p2 of this AnnData"
    ):
        stg.tl.genar_predict(adata, model=model)
    assert {key: list(names) for key, names in adata.uns["genar"]["seen_in_training"].items()} == {
        "sections": ["s2"],
        "patients": ["p2"],
    }


def test_training_rows_that_a_split_names_are_no_flag(tissue, recwarn):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p4"], validation=["p3"])
    stg.tl.genar_predict(adata, train_on=adata, **FAST)
    assert not [one for one in recwarn if "was trained on" in str(one.message)]
    assert adata.uns["genar"]["model"]["n_training_spots"] == 98
    adata.obs[_keys.PATIENT] = "C"
    with (
        pytest.warns(UserWarning, match="Patient C is in both"),
        pytest.warns(UserWarning, match="was trained on patient C of this AnnData"),
    ):
        stg.tl.genar_predict(adata, train_on=adata, **FAST)


def test_spots_that_were_trained_on_are_counted(train):
    with pytest.warns(UserWarning, match="trained on section s1, s2 and patient p1, p2 and 98 spots"):
        stg.tl.genar_predict(train, train_on=train, **FAST)
    assert train.uns["genar"]["seen_in_training"]["n_spots"] == 98


def test_evaluation_refuses_a_model_that_saw_the_section(model, tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    with pytest.warns(UserWarning, match="was trained on"):
        stg.tl.genar_predict(adata, model=model)
    with pytest.raises(ValueError, match=r"The model behind 'genar' was trained on s2"):
        stg.tl.evaluate(adata, "genar", min_counts=1, baselines=False)


# training ----------------------------------------------------------------------------------------------------


def test_training_sections_are_neither_marked_nor_changed(train, new):
    before_train, before_new = train.copy(), new.copy()
    stg.tl.genar_predict(new, train_on=train, **FAST)
    assert not unchanged(before_train, train)
    for key in WRITTEN:
        del new.layers[key], new.uns[key]
    assert not unchanged(before_new, new)


def test_no_table_stays_in_memory(train, new):
    gc.collect()
    stg.tl.genar_predict(new, train_on=train, **FAST)
    gc.collect()
    GenAR = stg.models.GenAR
    held = [*GenAR._setup_adata_manager_store.values()]
    held += [manager for store in GenAR._per_instance_manager_store.values() for manager in store.values()]
    assert not [manager for manager in held if manager.adata.n_obs == train.n_obs]


def test_one_seed_gives_one_result(train, new):
    other = new.copy()
    for adata in (new, other):
        stg.tl.genar_predict(adata, train_on=train, random_state=3, **FAST)
    for key in WRITTEN:
        np.testing.assert_array_equal(new.layers[key], other.layers[key])
    stg.tl.genar_predict(other, train_on=train, random_state=4, **FAST)
    assert not np.array_equal(new.layers["genar"], other.layers["genar"])


def test_counts_of_the_new_section_are_not_read(train, new):
    poisoned = new.copy()
    poisoned.X = np.full(new.shape, np.nan)
    stg.tl.genar_predict(new, train_on=train, **FAST)
    stg.tl.genar_predict(poisoned, train_on=train, **FAST)
    np.testing.assert_array_equal(new.layers["genar"], poisoned.layers["genar"])


def test_test_rows_of_the_training_object_are_not_read(tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p4"], validation=["p3"])
    poisoned = adata.copy()
    X = adata.X.toarray()
    X[(adata.obs[_keys.SPLIT] == _keys.TEST).to_numpy()] = 500
    poisoned.X = sparse.csr_matrix(X)
    for one in (adata, poisoned):
        stg.tl.genar_predict(one, train_on=one, n_genes=8, **FAST)
    assert list(adata.uns["genar"]["genes"]) == list(poisoned.uns["genar"]["genes"])
    np.testing.assert_array_equal(adata.obsm["genar"], poisoned.obsm["genar"])


def test_a_list_of_sections_is_one_training_set(tissue, train, new):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name] for name in ("s1", "s2")]
    other = new.copy()
    stg.tl.genar_predict(new, train_on=sections, **FAST)
    stg.tl.genar_predict(other, train_on=train, **FAST)
    np.testing.assert_allclose(new.layers["genar"], other.layers["genar"], rtol=1e-4)
    assert list(new.uns["genar"]["train_sections"]) == ["s1", "s2"]


def test_sections_without_a_column_are_named_by_their_place_or_by_you(tissue, new):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    for one in sections:
        del one.obs[_keys.LIBRARY], one.obs[_keys.PATIENT]
        one.obs_names = [f"spot{i}" for i in range(one.n_obs)]  # the same names in both
    stg.tl.genar_predict(new, train_on=sections, **FAST)
    assert list(new.uns["genar"]["train_sections"]) == ["section_1", "section_2"]
    stg.tl.genar_predict(new, train_on=dict(zip("AB", sections)), **FAST)
    assert list(new.uns["genar"]["train_sections"]) == ["A", "B"]
    assert "train_patients" not in new.uns["genar"]


def test_genes_are_those_that_all_sections_have(tissue, new, caplog):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    sections[1] = sections[1][:, 11:2:-1].copy()
    with caplog.at_level(logging.WARNING, logger="stgen"):
        stg.tl.genar_predict(new, train_on=sections, **FAST)
    assert list(new.uns["genar"]["genes"]) == list(tissue.var_names[3:])
    assert "The sections have 12 and 9 genes; only the 9 that all of them have are used." in caplog.text


def test_genes_that_sections_spell_differently_are_pointed_out(tissue, new):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    sections[1].var_names = [*tissue.var_names[:9], *(name.upper() for name in tissue.var_names[9:])]
    with pytest.warns(
        UserWarning,
        match=r"3 of 12 genes are not in every section of `train_on` and are not used\. 3 of them are there when upper and",
    ):
        stg.tl.genar_predict(new, train_on=sections, **FAST)
    assert list(new.uns["genar"]["genes"]) == list(tissue.var_names[:9])


def test_predicted_genes_that_the_spots_spell_differently_are_pointed_out(model, new):
    new.var_names = [*new.var_names[:9], *(f"mm10___{name}" for name in new.var_names[9:])]
    with pytest.warns(
        UserWarning,
        match=r"3 of the 12 predicted genes are not in `var_names`\. 3 of them are there without the genome prefix",
    ):
        stg.tl.genar_predict(new, model=model)


def test_the_panel_is_that_of_gene_panel(train, new):
    stg.pp.gene_panel(train, n_genes=6)
    expected = list(train.uns[_keys.PANEL]["genes"])
    without = train.copy()
    del without.var[_keys.PANEL], without.uns[_keys.PANEL]
    stg.tl.genar_predict(new, train_on=without, n_genes=6, **FAST)
    assert list(new.uns["genar"]["genes"]) == expected
    stg.tl.genar_predict(new, train_on=train, **FAST)  # the panel that is there is taken
    assert sorted(new.uns["genar"]["genes"]) == sorted(expected)


def test_named_genes_are_the_panel(train, new):
    stg.tl.genar_predict(new, train_on=train, genes=["gene_007", SLASH[1], "gene_003"], **FAST)
    assert list(new.uns["genar"]["genes"]) == ["gene_007", SLASH[1], "gene_003"]


@pytest.mark.parametrize("layout", ["dense", "csc", "layer", "backed"])
def test_how_counts_lie_changes_nothing(layout, train, new, tmp_path):
    expected = new.copy()
    stg.tl.genar_predict(expected, train_on=train, **FAST)
    keys = {}
    if layout == "layer":
        train.layers["raw"], train.X, keys = train.X.copy(), np.full(train.shape, 0.5), {"layer": "raw"}
    elif layout == "backed":
        train.write_h5ad(tmp_path / "train.h5ad")
        train = ad.read_h5ad(tmp_path / "train.h5ad", backed="r")
    else:
        train.X = train.X.toarray() if layout == "dense" else sparse.csc_matrix(train.X)
    stg.tl.genar_predict(new, train_on=train, **keys, **FAST)
    np.testing.assert_array_equal(new.layers["genar"], expected.layers["genar"])


def test_a_backed_section_can_be_predicted(model, new, tmp_path):
    new.write_h5ad(tmp_path / "new.h5ad")
    backed = ad.read_h5ad(tmp_path / "new.h5ad", backed="r")
    stg.tl.genar_predict(backed, model=model)
    np.testing.assert_array_equal(backed.layers["genar"], model.predict(new))


def test_the_kept_model_predicts_the_same(train, new, tmp_path):
    again = new.copy()
    stg.tl.genar_predict(new, train_on=train, save=tmp_path / "kept", **FAST)
    assert new.uns["genar"]["model"]["path"] == str(tmp_path / "kept")
    stg.tl.genar_predict(again, model=tmp_path / "kept", n_paths=2)
    for key in WRITTEN:
        np.testing.assert_array_equal(new.layers[key], again.layers[key])


# errors ------------------------------------------------------------------------------------------------------


def ensembl(adata):
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]


def duplicate_genes(adata):
    adata.var_names = ["A", "A", *adata.var_names[2:]]


def other_width(adata):
    adata.obsm[_keys.HISTOLOGY] = adata.obsm[_keys.HISTOLOGY][:, :7]


def pixels(adata):
    adata.obsm[_keys.SPATIAL] = adata.obsm[_keys.SPATIAL] * 100


def nan_histology(adata):
    adata.obsm[_keys.HISTOLOGY] = adata.obsm[_keys.HISTOLOGY].copy()
    adata.obsm[_keys.HISTOLOGY][3, 3] = np.nan


@pytest.mark.parametrize("way", ["model", "train_on"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (ensembl, "The model learned symbols, these look like Ensembl identifiers: rename `var_names`"),
        (duplicate_genes, "Gene names must be unique; 1 repeat: A"),
        (other_width, "must have the 48 features the model was fitted with; it has 7"),
        (pixels, "must be in µm"),
        (nan_histology, "1 of 49 spots have NaN"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_section_that_does_not_fit_is_refused_before_training(
    way, spoil, message, model, train, new, monkeypatch
):
    monkeypatch.setattr(stg.models.GenAR, "train", lambda *_, **__: pytest.fail("it trained first"))
    spoil(new)
    before = new.copy()
    how = {"model": model} if way == "model" else {"train_on": train, **FAST}
    with pytest.raises(ValueError, match=message):
        stg.tl.genar_predict(new, **how)
    assert not unchanged(before, new)


def test_overlap_of_some_genes_is_no_obstacle(model, new):
    part = new[:, 3:].copy()
    stg.tl.genar_predict(part, model=model)
    assert list(part.uns["genar"]["genes"]) == model.genes


def not_counts(train):
    train.X = train.X.toarray() + 0.5


def other_encoder(train):
    train.uns[_keys.HISTOLOGY_PARAMS] = {**train.uns[_keys.HISTOLOGY_PARAMS], "encoder": "resnet50"}


def test_training_on_what_is_not_counts_names_the_section(tissue, new):
    sections = {name: tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")}
    not_counts(sections["s2"])
    before = new.copy()
    with pytest.raises(
        ValueError, match=r"X of section 's2' must hold counts; found 100% .* not whole numbers"
    ):
        stg.tl.genar_predict(new, train_on=sections, **FAST)
    assert not unchanged(before, new)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_encoder, "encoder 'simulated descriptors'; .* comes from 'resnet50'"),
        (other_width, "must have the 48 features"),
        (ensembl, "12 of them are not in this AnnData, .* these look like Ensembl identifiers"),
        (duplicate_genes, "Gene names of section 'section_2' must be unique"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_sections_that_differ_are_not_put_together(spoil, message, tissue, new):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    spoil(sections[1])
    with pytest.raises(ValueError, match=message):
        stg.tl.genar_predict(new, train_on=sections, **FAST)


def test_a_section_given_twice_is_refused(tissue, train, new):
    with pytest.raises(ValueError, match="Section s1 is in two AnnDatas of `train_on`"):
        stg.tl.genar_predict(new, train_on=[train, tissue[:20].copy()], **FAST)


def test_sections_with_different_panels_are_refused(tissue, new):
    sections = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    for one, mask in zip(sections, (np.arange(12) < 5, np.arange(12) > 5)):
        one.var[_keys.PANEL] = mask
    with pytest.raises(ValueError, match=r"different panels in var\['gene_panel'\]. Name one with `genes=`"):
        stg.tl.genar_predict(new, train_on=sections, **FAST)


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({}, ValueError, "Give `model` .* or `train_on` .*, and not both"),
        ({"model": "m", "train_on": "t"}, ValueError, "and not both"),
        ({"model": 3}, TypeError, "`model` must be a fitted GenAR, the folder of one or its hub id; got int"),
        (
            {"model": "no such folder"},
            FileNotFoundError,
            "There is no folder 'no such folder'. Give the folder",
        ),
        ({"model": "m", "save": "s"}, ValueError, "`save` keeps a model that is trained here"),
        (
            {"model": "m", "statistic": "sd"},
            ValueError,
            "`statistic` must be one of 'mean', 'median', 'mode'",
        ),
        ({"model": "m", "key_added": "a/b"}, ValueError, "`key_added` must be a name without '/'"),
        ({"train_on": []}, ValueError, "`train_on` is empty"),
        ({"train_on": [3]}, TypeError, "Expected an AnnData; got int"),
    ],
    ids=str,
)
def test_a_call_that_makes_no_sense_is_refused(how, kind, message, new):
    before = new.copy()
    with pytest.raises(kind, match=message):
        stg.tl.genar_predict(new, **how)
    assert not unchanged(before, new)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["EPCAM"], "among the 12 that the model predicts, .* 1 of 1 are not: EPCAM"),
        (["gene_003", "gene_003"], "`genes` must be unique; 1 repeat"),
    ],
)
def test_genes_the_model_does_not_know_are_refused(genes, message, model, new):
    with pytest.raises(ValueError, match=message):
        stg.tl.genar_predict(new, model=model, genes=genes)
    assert "genar" not in new.layers


def test_an_unfitted_model_says_so(train, new):
    stg.models.GenAR.setup_anndata(train, library_key=_keys.LIBRARY)
    model = stg.models.GenAR(train, **TINY)
    with pytest.raises(RuntimeError, match=r"This GenAR is not fitted"):
        stg.tl.genar_predict(new, model=model)


def test_a_taken_folder_is_refused_before_training(folder, train, new):
    with pytest.raises(
        FileExistsError, match=r"already holds a model\. Choose another folder for `save`, or use"
    ):
        stg.tl.genar_predict(new, train_on=train, save=folder, **FAST)


def test_a_failed_training_changes_nothing(train, new, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    before_train, before = train.copy(), new.copy()
    monkeypatch.setattr(stg.models.GenAR, "train", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stg.tl.genar_predict(new, train_on=train, **FAST)
    assert not unchanged(before, new)
    assert not unchanged(before_train, train)


def test_a_hub_id_is_looked_up(model, new, monkeypatch):
    asked = []
    monkeypatch.setattr(
        stg.models.GenAR, "from_pretrained", lambda name: asked.append(name) or copy.copy(model)
    )
    stg.tl.genar_predict(new, model="owner/name", n_paths=2)
    assert asked == ["owner/name"]
    assert new.uns["genar"]["model"]["path"] == "owner/name"


def test_without_the_hub_package_the_folder_is_named(new, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"There is no folder 'owner/name', .* `pip install .stgen\[hub\]"):
        stg.tl.genar_predict(new, model="owner/name")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_quick_defaults_find_columns_by_their_usual_names(tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p4"], validation=["p3"])
    stg.tl.genar_predict(adata, train_on=adata, **FAST)
    assert adata.uns["genar"]["params"]["library_key"] == _keys.LIBRARY
    assert list(adata.uns["genar"]["train_patients"]) == ["p1", "p2"]
