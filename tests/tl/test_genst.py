"""One call from H&E to normalised expression: what is written, on which scale, and what is refused at the door.

The road from a call to a result is the one of `genar_predict`, whose tests walk all of it.
"""

from __future__ import annotations

import gc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {"n_tokens": 3, "n_codes": 6, "n_image_tokens": 4, "n_image_codes": 6, "hidden": 8, "nonlinear": False}
SHORT = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu"}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT, "n_paths": 2}
SLASH = ["CCL3/L1/L3", "HLA-A/B"]
WRITTEN = ["genst", "genst_counts", "genst_sd"]


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
    stg.tl.genst_predict(new, train_on=train, save=path, **FAST)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return stg.models.GenST.load(folder, accelerator="cpu")


def bare(adata):
    """A section that has an image alone: no X, no genes, no columns."""
    inputs = {key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.HISTOLOGY)}
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm=inputs)


def unchanged(before, after):
    from stgen.testing import changed_slots

    return changed_slots(before, after)


# what is written ---------------------------------------------------------------------------------------------


def test_genes_that_are_var_names_make_layers(model, new):
    before = new.copy()
    assert stg.tl.genst_predict(new, model=model) is None
    assert [key for key in new.layers if key] == WRITTEN
    assert all(new.layers[key].dtype == np.float32 for key in WRITTEN)
    np.testing.assert_array_equal(new.layers["genst"], model.predict(before))
    np.testing.assert_array_equal(new.layers["genst_counts"], model.predict(before, statistic="mean"))
    np.testing.assert_array_equal(
        new.layers["genst_sd"], model.predict(before, statistic="sd", random_state=0)
    )
    for key in WRITTEN:
        del new.layers[key], new.uns[key]
    assert not unchanged(before, new)


def test_the_most_probable_code_is_another_answer_and_counts_stay(model, new):
    expected = new.copy()
    stg.tl.genst_predict(expected, model=model)
    stg.tl.genst_predict(new, model=model, decode="code")
    np.testing.assert_array_equal(new.layers["genst"], model.predict(new, decode="code"))
    assert not np.array_equal(new.layers["genst"], expected.layers["genst"])
    for key in WRITTEN[1:]:
        np.testing.assert_array_equal(new.layers[key], expected.layers[key])
    assert new.uns["genst"]["params"]["decode"] == "code"


def test_genes_in_another_order_come_back_in_the_order_of_var_names(model, new):
    permuted = new[:, ::-1].copy()
    stg.tl.genst_predict(permuted, model=model)
    stg.tl.genst_predict(new, model=model)
    for key in WRITTEN:
        np.testing.assert_allclose(permuted.layers[key], new.layers[key][:, ::-1], rtol=1e-5)
    assert list(permuted.uns["genst"]["genes"]) == list(permuted.var_names)


def test_a_section_without_genes_gets_arrays_and_the_names_of_their_genes(model, new):
    image = bare(new)
    stg.tl.genst_predict(image, model=model)
    assert sorted(image.obsm) == sorted([_keys.SPATIAL, _keys.HISTOLOGY, *WRITTEN])
    assert all(list(image.uns[key]["genes"]) == model.genes for key in WRITTEN)
    np.testing.assert_array_equal(image.obsm["genst"], model.predict(new))


def test_some_genes_keep_the_values_they_have_among_all(model, new):
    stg.tl.genst_predict(new, model=model, genes=["gene_005", SLASH[0]])
    assert list(new.uns["genst"]["genes"]) == ["gene_005", SLASH[0]]
    np.testing.assert_allclose(new.obsm["genst"], model.predict(new)[["gene_005", SLASH[0]]], rtol=1e-5)
    stg.tl.genst_predict(new, model=model)  # and make place for all
    assert not set(WRITTEN) & set(new.obsm)


def test_copy_leaves_the_original_alone(model, new):
    before = new.copy()
    changed = stg.tl.genst_predict(new, model=model, copy=True, key_added="he")
    assert not unchanged(before, new)
    assert {"he", "he_counts", "he_sd"} <= set(changed.layers)


@pytest.mark.parametrize("key", WRITTEN)
def test_what_is_not_a_prediction_of_this_method_is_not_replaced(key, model, new):
    new.layers[key], new.uns[key] = new.X.toarray(), {"method": "GenAR", "params": {}}
    before = new.copy()
    with pytest.raises(ValueError, match=rf"layers\['{key}'\] exists and is not a prediction of GenST"):
        stg.tl.genst_predict(new, model=model)
    assert not unchanged(before, new)


# scales and provenance ---------------------------------------------------------------------------------------


def test_the_record_says_how_it_was_made(model, folder, new):
    stg.tl.genst_predict(new, model=folder, random_state=7, n_paths=2, histology_key=_keys.HISTOLOGY)
    record = new.uns["genst"]
    assert record["method"] == "GenST"
    assert {name: record["params"][name] for name in ("decode", "n_paths", "random_state")} == {
        "decode": "soft",
        "n_paths": 2,
        "random_state": 7,
    }
    assert record["target_total"] == float(model.module.target_total)
    assert record["model"]["path"] == str(folder)
    assert record["model"]["n_training_spots"] == 98
    assert record["model"]["config"]["n_codes"] == 6
    assert record["model"]["encoder"] == "simulated descriptors"
    assert list(record["train_sections"]) == ["s1", "s2"]
    assert list(record["train_patients"]) == ["p1", "p2"]
    assert record["versions"]["stgen"] == stg.__version__
    assert record["seen_in_training"] == {}
    for key in WRITTEN[1:]:
        assert new.uns[key]["params"]["of"] == "genst"
        assert list(new.uns[key]["train_patients"]) == ["p1", "p2"]


def test_every_result_says_its_scale(model, new):
    stg.tl.genst_predict(new, model=model)
    assert [new.uns[key]["scale"] for key in WRITTEN] == ["normalized", "counts", "counts"]


def test_normalised_values_add_up_to_the_total_that_the_record_names(model, new):
    stg.tl.genst_predict(new, model=model)
    total = np.expm1(new.layers["genst"]).sum(axis=1)
    # the mean of logs lies below the log of the mean
    assert 0.5 < np.median(total) / new.uns["genst"]["target_total"] < 1.2


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("where", ["layers", "obsm"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files_also_with_genes_that_hold_a_slash(kind, where, model, new, tmp_path):
    adata = new if where == "layers" else bare(new)
    stg.tl.genst_predict(adata, model=model, n_paths=2)
    path = tmp_path / f"result.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    for key in WRITTEN:
        pd.testing.assert_frame_equal(stg.get.prediction(back, key), stg.get.prediction(adata, key))
    assert SLASH[0] in stg.get.prediction(back, "genst")
    assert back.uns["genst"]["scale"] == "normalized"


def test_two_models_are_evaluated_side_by_side(tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p4"], validation=["p3"])
    stg.tl.genst_predict(adata, train_on=adata, **FAST)
    stg.tl.genar_predict(
        adata,
        train_on=adata,
        model_kwargs={"width": 16, "n_layers": 1, "n_heads": 2, "scales": None},
        train_kwargs={**SHORT, "max_epochs": 1},
        n_paths=2,
    )
    table = stg.tl.evaluate(
        adata, ["genar", "genst", "genst_counts"], min_counts=1, baselines="nulls", n_boot=20
    )
    known = table.dropna(subset="value").groupby("method")["scale"].unique().map(set)
    # depth is gone from normalised expression, so nothing can be said about raw counts
    assert known["genst"] == {"normalized"}
    assert known["genst_counts"] == known["genar"] == {"normalized", "raw"}
    assert not table["flags"].str.contains("other units").any()
    pairs = stg.get.comparison(adata)
    assert {"genar", "genst", "genst_counts"} <= {*pairs["method"], *pairs["other"]}
    axes = stg.pl.gene_maps(adata, "gene_005", prediction=["genar", "genst"], section="s4")
    assert axes.shape == (1, 3)


def test_evaluation_refuses_counts_of_a_model_that_saw_the_section(model, tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    with pytest.warns(UserWarning, match="was trained on .*patient p2"):
        stg.tl.genst_predict(adata, model=model, n_paths=2)
    assert list(adata.uns["genst"]["seen_in_training"]["patients"]) == ["p2"]
    for key in ("genst", "genst_counts"):
        with pytest.raises(ValueError, match=rf"The model behind '{key}' was trained on s2"):
            stg.tl.evaluate(adata, key, min_counts=1, baselines=False)


# training ----------------------------------------------------------------------------------------------------


def test_neither_marks_nor_tables_stay(train, new):
    before_train, before_new = train.copy(), new.copy()
    gc.collect()
    stg.tl.genst_predict(new, train_on=train, **FAST)
    gc.collect()
    assert not unchanged(before_train, train)
    for key in WRITTEN:
        del new.layers[key], new.uns[key]
    assert not unchanged(before_new, new)
    GenST = stg.models.GenST
    held = [*GenST._setup_adata_manager_store.values()]
    held += [manager for store in GenST._per_instance_manager_store.values() for manager in store.values()]
    assert not [manager for manager in held if manager.adata.n_obs == train.n_obs]


def test_an_interrupted_training_writes_and_keeps_nothing(train, new, tmp_path, monkeypatch, recwarn):
    from stgen.train._plan import TrainingPlan

    def stop(plan):
        if plan._in_last_phase:
            raise KeyboardInterrupt

    before, step = new.copy(), TrainingPlan.on_train_epoch_end
    monkeypatch.setattr(TrainingPlan, "on_train_epoch_end", lambda plan: (step(plan), stop(plan)))
    with pytest.raises(
        KeyboardInterrupt, match=r"no model is kept and nothing is written.*`GenST\(adata\).train\(\)`"
    ):
        stg.tl.genst_predict(new, train_on=train, save=tmp_path / "model", **FAST)
    assert not [one for one in recwarn if "can be used" in str(one.message)]
    assert not (tmp_path / "model").exists()
    assert (set(new.obsm), set(new.layers), set(new.uns)) == (
        set(before.obsm),
        set(before.layers),
        set(before.uns),
    )


def test_one_seed_gives_one_result_and_the_kept_model_the_same(train, new, tmp_path):
    again, other = new.copy(), new.copy()
    stg.tl.genst_predict(new, train_on=train, random_state=3, save=tmp_path / "kept", **FAST)
    stg.tl.genst_predict(again, model=tmp_path / "kept", random_state=3, n_paths=2)
    for key in WRITTEN:
        np.testing.assert_array_equal(new.layers[key], again.layers[key])
    stg.tl.genst_predict(again, train_on=train, random_state=3, **FAST)
    stg.tl.genst_predict(other, train_on=train, random_state=4, **FAST)
    np.testing.assert_array_equal(new.layers["genst"], again.layers["genst"])
    assert not np.array_equal(new.layers["genst"], other.layers["genst"])


def test_counts_of_the_new_section_are_not_read(model, new):
    poisoned = new.copy()
    poisoned.X = np.full(new.shape, np.nan)
    for one in (new, poisoned):
        stg.tl.genst_predict(one, model=model, n_paths=2)
    for key in WRITTEN:
        np.testing.assert_array_equal(new.layers[key], poisoned.layers[key])


def test_test_rows_of_the_training_object_are_not_read(tissue):
    adata = tissue.copy()
    stg.pp.split(adata, by="patient", test=["p4"], validation=["p3"])
    poisoned = adata.copy()
    X = adata.X.toarray()
    X[(adata.obs[_keys.SPLIT] == _keys.TEST).to_numpy()] = 500
    poisoned.X = sparse.csr_matrix(X)
    for one in (adata, poisoned):
        stg.tl.genst_predict(one, train_on=one, n_genes=8, **FAST)
    assert list(adata.uns["genst"]["genes"]) == list(poisoned.uns["genst"]["genes"])
    for key in WRITTEN:
        np.testing.assert_array_equal(adata.obsm[key], poisoned.obsm[key])


def test_named_genes_of_named_sections_are_the_panel(tissue, new):
    sections = {name: tissue[tissue.obs[_keys.LIBRARY] == key] for name, key in (("A", "s1"), ("B", "s2"))}
    panel = ["gene_007", SLASH[1], "gene_003"]
    stg.tl.genst_predict(new, train_on=sections, genes=panel, **FAST)
    assert list(new.uns["genst"]["genes"]) == panel
    assert list(new.uns["genst"]["train_sections"]) == ["s1", "s2"]


# errors ------------------------------------------------------------------------------------------------------


def negative(X):
    X[0, 0] = -1


def missing(X):
    X[0, 0] = np.nan


def fractions(X):
    X += 0.5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (negative, "X must hold counts; found negative"),
        (missing, "X must hold counts; found 1 values that are NaN"),
        (fractions, "X must hold counts; found 100% .* not whole numbers"),
    ],
)
def test_training_on_what_is_not_counts_is_refused(spoil, message, train, new):
    X = train.X.toarray().astype(np.float32)
    spoil(X)
    train.X = X
    before = new.copy()
    with pytest.raises(ValueError, match=message):
        stg.tl.genst_predict(new, train_on=train, **FAST)
    assert not unchanged(before, new)


@pytest.mark.parametrize("way", ["model", "train_on"])
def test_histology_of_another_width_is_refused_before_training(way, model, train, new, monkeypatch):
    monkeypatch.setattr(stg.models.GenST, "train", lambda *_, **__: pytest.fail("it trained first"))
    new.obsm[_keys.HISTOLOGY] = new.obsm[_keys.HISTOLOGY][:, :7]
    how = {"model": model} if way == "model" else {"train_on": train, **FAST}
    with pytest.raises(ValueError, match="must have the 48 features the model was fitted with; it has 7"):
        stg.tl.genst_predict(new, **how)


@pytest.mark.parametrize("option", ["n_codes", "n_image_codes"])
def test_fewer_training_spots_than_codes_are_refused_before_anything_is_prepared(
    option, train, new, monkeypatch
):
    from stgen.models.genst._network import GenSTNetwork

    monkeypatch.setattr(GenSTNetwork, "prepare", lambda *_: pytest.fail("it prepared first"))
    train.obs[_keys.SPLIT] = [_keys.TRAIN] * 20 + [_keys.VALIDATION] * 78
    before = new.copy()
    message = (
        rf"{option}=21 needs at least as many training spots.* found 20\. Train on more .* lower `{option}`"
    )
    with pytest.raises(ValueError, match=message):
        stg.tl.genst_predict(new, train_on=train, **{**FAST, "model_kwargs": {**TINY, option: 21}})
    assert not unchanged(before, new)


def test_as_many_training_spots_as_codes_suffice(train, new):
    stg.tl.genst_predict(new, train_on=train, **{**FAST, "model_kwargs": {**TINY, "n_codes": 98}})
    assert np.isfinite(new.layers["genst"]).all()


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({}, ValueError, r"Give `model` \(a fitted GenST, .* or `train_on` .*, and not both"),
        ({"model": 3}, TypeError, "`model` must be a fitted GenST, the folder of one or its hub id; got int"),
        ({"model": "no such folder"}, FileNotFoundError, "There is no folder 'no such folder'"),
        ({"model": "m", "save": "s"}, ValueError, "`save` keeps a model that is trained here"),
        ({"model": "m", "decode": "hard"}, ValueError, "`decode` must be one of 'soft', 'code'; got 'hard'"),
        ({"model": "m", "n_paths": 0}, ValueError, "`n_paths` must be at least 1; got 0"),
        ({"model": "m", "batch_size": 0}, ValueError, "`batch_size` must be at least 1; got 0"),
        ({"model": "m", "key_added": "a/b"}, ValueError, "`key_added` must be a name without '/'"),
        ({"train_on": []}, ValueError, "`train_on` is empty"),
    ],
    ids=str,
)
def test_a_call_that_makes_no_sense_is_refused(how, kind, message, new):
    before = new.copy()
    with pytest.raises(kind, match=message):
        stg.tl.genst_predict(new, **how)
    assert not unchanged(before, new)


def test_genes_the_model_does_not_know_are_refused(model, new):
    with pytest.raises(ValueError, match=r"among the 12 that the model predicts, .* 1 of 1 are not: EPCAM"):
        stg.tl.genst_predict(new, model=model, genes=["EPCAM"])
    assert "genst" not in new.layers


def test_a_model_of_another_kind_says_so(tissue, new, tmp_path):
    train = tissue[tissue.obs[_keys.LIBRARY] == "s1"].copy()
    stg.models.GenAR.setup_anndata(train, library_key=_keys.LIBRARY)
    stg.models.GenAR(train, width=16, n_layers=1, n_heads=2, scales=None).save(tmp_path / "genar")
    with pytest.raises(ValueError, match="holds a GenAR, not a GenST"):
        stg.tl.genst_predict(new, model=tmp_path / "genar")


# pixels ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut():
    """Three sections whose tiles are cut from their images; the embedding is there too."""
    adata = stg.datasets.toy_tissue(
        n_sections=3, n_patients=3, spots_per_section=36, n_genes=10, histology="images"
    )
    stg.pp.histology_tiles(adata, "hires", library_key=_keys.LIBRARY, tile_px=32)
    if _keys.HISTOLOGY not in adata.obsm:
        adata.obsm[_keys.HISTOLOGY] = np.random.default_rng(0).normal(size=(adata.n_obs, 5))
    return adata


@pytest.fixture
def sections(cut):
    """Two that train, each an AnnData of its own, and a new one that is nothing but tiles and places."""
    one, two, new = (cut[cut.obs[_keys.LIBRARY] == f"s{i}"].copy() for i in (1, 2, 3))
    obsm = {key: new.obsm[key] for key in (_keys.SPATIAL, _keys.TILES)}
    bare = ad.AnnData(
        obs=pd.DataFrame(index=new.obs_names), obsm=obsm, uns={_keys.TILES: new.uns[_keys.TILES]}
    )
    return one, two, bare


@pytest.fixture(scope="module")
def of_pixels(cut, tmp_path_factory):
    """A model that was trained on tiles of several sections and kept, and what its call wrote."""
    path = tmp_path_factory.mktemp("pixels") / "model"
    one, two, new = (cut[cut.obs[_keys.LIBRARY] == f"s{i}"].copy() for i in (1, 2, 3))
    before = one.copy()
    stg.tl.genst_predict(new, train_on=[one, two], tiles_key=_keys.TILES, save=path, **FAST)
    assert not unchanged(before, one)
    return stg.models.GenST.load(path, accelerator="cpu"), new


def renamed(adata, key="cut"):
    adata = adata.copy()
    adata.obsm[key], adata.uns[key] = adata.obsm.pop(_keys.TILES), adata.uns.pop(_keys.TILES)
    return adata


def larger(adata):
    adata = adata.copy()
    adata.obsm[_keys.TILES] = adata.obsm[_keys.TILES].repeat(2, axis=1).repeat(2, axis=2)
    return adata


def test_naming_tiles_trains_on_pixels_of_all_sections(of_pixels, sections):
    model, new = of_pixels
    assert model.preset == "pixels"
    assert model.config.back_end == "pixels"
    assert model._facts["tiles"]["tile_um"] == new.uns[_keys.TILES]["params"]["tile_um"]
    assert list(new.uns["genst"]["train_sections"]) == ["s1", "s2"]
    params = new.uns["genst"]["params"]
    assert params["tiles_key"] == _keys.TILES
    assert "histology_key" not in params
    assert new.uns["genst"]["model"]["tile_um"] == model._facts["tiles"]["tile_um"]
    image = sections[2]
    stg.tl.genst_predict(image, model=model, n_paths=2)
    for key in WRITTEN:
        np.testing.assert_allclose(image.obsm[key], new.layers[key], rtol=1e-5)


def test_tiles_of_sections_follow_their_spots(sections):
    from stgen.tl._training_sections import Slots, training_table

    one, two, _ = (renamed(section) for section in sections)
    slots = Slots(None, None, _keys.SPATIAL, None, None, None, tiles="cut")
    table, _ = training_table([one, two], slots, genes=None, n_genes=None)
    np.testing.assert_array_equal(table.obsm["cut"], np.concatenate([one.obsm["cut"], two.obsm["cut"]]))
    assert table.obsm["cut"].dtype == np.uint8
    assert table.uns["cut"]["params"]["tile_um"] == one.uns["cut"]["params"]["tile_um"]
    assert _keys.HISTOLOGY not in table.obsm
    table, _ = training_table(one, slots, genes=None, n_genes=None)
    assert np.shares_memory(table.obsm["cut"], one.obsm["cut"])  # tiles are large


def test_tiles_are_read_from_the_key_that_is_named(of_pixels, sections):
    model, _ = of_pixels
    image, other = sections[2], renamed(sections[2])
    stg.tl.genst_predict(image, model=model, n_paths=2)
    stg.tl.genst_predict(other, model=model, n_paths=2, tiles_key="cut")
    np.testing.assert_array_equal(other.obsm["genst"], image.obsm["genst"])
    assert other.uns["genst"]["params"]["tiles_key"] == "cut"
    assert model._fields[0].key == _keys.TILES


@pytest.mark.parametrize(
    ("given", "preset"),
    [({}, "pixels"), ({"back_end": "pixels"}, "pixels"), ({"preset": "pixels", "n_codes": 5}, "pixels")],
    ids=str,
)
def test_the_preset_for_pixels_is_taken_by_itself(given, preset):
    from stgen.tl._genst import _kwargs_for_image

    assert _kwargs_for_image("tiles", given) == {**given, "preset": preset}
    assert _kwargs_for_image(None, {"n_codes": 5}) == {"n_codes": 5}


def test_a_config_of_ones_own_is_taken_as_it_is():
    from stgen.tl._genst import _kwargs_for_image

    config = stg.models.GenSTConfig(back_end="pixels")
    assert _kwargs_for_image("tiles", {"config": config}) == {"config": config}
    with pytest.raises(ValueError, match="`model_kwargs` ask for back_end='features'"):
        _kwargs_for_image("tiles", {"config": stg.models.GenSTConfig()})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"tiles_key": "tiles", "model_kwargs": {"back_end": "features"}},
            "`tiles_key='tiles'` names tiles; .* ask for back_end='features'.* Leave `tiles_key` out, or ask for",
        ),
        (
            {"model_kwargs": {"preset": "pixels"}},
            "`model_kwargs` ask for back_end='pixels', which reads tiles. Name them: `tiles_key=\"tiles\"`",
        ),
        (
            {"tiles_key": "tiles", "histology_key": _keys.HISTOLOGY},
            r"Give `histology_key` \(an embedding\) or `tiles_key` \(tiles\), and not both; got 'X_histology' and 'tiles'",
        ),
        (
            {"tiles_key": _keys.HISTOLOGY},
            r"Section 'A': obsm\['X_histology'\] must be spots × p × p × 3; .* an embedding, not tiles: cut tiles with",
        ),
        (
            {"histology_key": "tiles"},
            r"Section 'A': obsm\['tiles'\] must be spots × features; .* Embed the tiles first",
        ),
    ],
    ids=str,
)
def test_training_on_an_embedding_and_tiles_mixed_up_is_refused(how, message, sections):
    one, two, new = sections
    before = new.copy()
    with pytest.raises(ValueError, match=message):
        stg.tl.genst_predict(new, train_on={"A": one, "B": two}, **how)
    assert not unchanged(before, new)


def test_a_model_of_the_other_kind_of_image_is_refused(model, of_pixels, cut):
    new = cut[cut.obs[_keys.LIBRARY] == "s3"].copy()
    of_embedding, of_tiles = model, of_pixels[0]
    for call in (stg.tl.genst_predict, stg.tl.genst_report):
        with pytest.raises(
            ValueError, match=r"fitted on tiles; `histology_key='tiles'` names .* Name tiles: `tiles_key="
        ):
            call(new, model=of_tiles, histology_key="tiles")
        with pytest.raises(
            ValueError, match=r"fitted on a histology embedding; `tiles_key='tiles'` .* Embed them with"
        ):
            call(new, model=of_embedding, tiles_key="tiles")
        with pytest.raises(ValueError, match=r"and not both; got 'X' and 'tiles'"):
            call(new, model=of_tiles, histology_key="X", tiles_key="tiles")


@pytest.mark.parametrize("way", ["model", "train_on"])
def test_tiles_that_are_missing_or_of_another_size_are_refused_before_training(
    way, of_pixels, sections, monkeypatch
):
    monkeypatch.setattr(stg.models.GenST, "train", lambda *_, **__: pytest.fail("it trained first"))
    one, two, new = sections
    how = {"model": of_pixels[0]} if way == "model" else {"train_on": [one, two], **FAST}
    missing = r"obsm\['tiles'\] does not exist.* Cut tiles with .*, or name yours with `tiles_key=`"
    with pytest.raises(KeyError, match=missing):
        stg.tl.genst_predict(renamed(new), tiles_key="tiles", **how)
    size = r"fitted on tiles of 32 × 32 pixels; those of obsm\['tiles'\] are 64 × 64\. Cut them alike"
    with pytest.raises(ValueError, match=size):
        stg.tl.genst_predict(larger(new), tiles_key="tiles", **how)


def test_a_section_whose_tiles_are_missing_or_of_another_size_is_named(sections):
    one, two, new = sections
    with pytest.raises(KeyError, match=r"Section 'B': obsm\['tiles'\] does not exist"):
        stg.tl.genst_predict(new, train_on={"A": one, "B": renamed(two)}, tiles_key="tiles")
    with pytest.raises(ValueError, match=r"Section 'B': .* 64 × 64\. Cut them alike"):
        stg.tl.genst_predict(new, train_on={"A": one, "B": larger(two)}, tiles_key="tiles")


def test_a_report_of_pixels_reads_the_tiles_that_are_named(of_pixels, cut):
    model, _ = of_pixels
    adata = renamed(cut[cut.obs[_keys.LIBRARY] == "s3"])
    stg.tl.genst_report(adata, model=model, tiles_key="cut", n_boot=20, n_halvings=2, n_permutations=2)
    assert adata.uns["genst_report"]["params"]["tiles_key"] == "cut"
    assert adata.var["genst_captured"].notna().any()
    adata.obsm[_keys.TILES] = adata.obsm["cut"]
    np.testing.assert_array_equal(
        adata.obsm["genst_codes_histology"], model.codes(adata, modality="histology")
    )
