"""Names of niches in one call: who teaches, what is written, what is refused before training."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 8}
SHORT = {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu"}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT}
N = 120
WRITTEN = ["gest_niche", "gest_niche_probability"]


@pytest.fixture(scope="module")
def tissue():
    import torch

    torch.set_num_threads(1)
    return stg.datasets.toy_tissue(
        n_sections=2, n_patients=2, spots_per_section=N, n_genes=20, unit="cells", histology="none"
    )


@pytest.fixture
def known(tissue):
    return tissue[tissue.obs[_keys.LIBRARY] == "s1"].copy()


@pytest.fixture
def new(tissue):
    """A section without labels."""
    adata = tissue[tissue.obs[_keys.LIBRARY] == "s2"].copy()
    del adata.obs["region"]
    return adata


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """A model that knows expression, and no labels."""
    path = tmp_path_factory.mktemp("kept") / "model"
    stg.tl.gest_niche_embed(tissue[tissue.obs[_keys.LIBRARY] == "s1"].copy(), save=path, **FAST)
    return path


@pytest.fixture
def model(folder):
    return stg.models.GeST.load(folder, accelerator="cpu")


def unchanged(before, after):
    from stgen.testing import changed_slots

    return changed_slots(before, after)


def test_a_labelled_section_names_another(known, new, tmp_path):
    before_known, before = known.copy(), new.copy()
    assert stg.tl.gest_annotate(new, train_on=known, labels_key="region", save=tmp_path / "m", **FAST) is None
    model = stg.models.GeST.load(tmp_path / "m", accelerator="cpu")
    expected = model.annotate(before)
    np.testing.assert_allclose(new.obsm["gest_niche_probability"], expected, rtol=1e-5)
    assert list(new.obs["gest_niche"].cat.categories) == list(expected.columns)
    np.testing.assert_array_equal(new.obs["gest_niche"], expected.idxmax(axis=1))
    assert new.uns["gest_niche"]["n_learned"] == 0
    assert list(new.uns["gest_niche"]["train_sections"]) == ["s1"]
    assert new.uns["gest_niche"]["params"]["labels_key"] == "region"
    del new.obs["gest_niche"], new.obsm["gest_niche_probability"], new.uns["gest_niche"]
    assert not unchanged(before, new)
    assert not unchanged(before_known, known)


def test_a_model_that_knows_labels_needs_no_column(known, new, tmp_path):
    again = new.copy()
    stg.tl.gest_annotate(new, train_on=known, labels_key="region", save=tmp_path / "m", **FAST)
    stg.tl.gest_annotate(again, model=tmp_path / "m")
    np.testing.assert_array_equal(new.obsm["gest_niche_probability"], again.obsm["gest_niche_probability"])
    assert "labels_key" not in again.uns["gest_niche"]["params"]


def test_labelled_cells_teach_the_others(known):
    truth = known.obs["region"].astype(str)
    known.obs["some"] = truth.where(np.arange(N) % 3 == 0)
    stg.tl.gest_annotate(known, labels_key="some", **FAST)
    assert known.obs["gest_niche"].notna().all()
    assert known.uns["gest_niche"]["n_learned"] == 40
    assert known.obs["some"].isna().sum() == 80


def test_a_model_is_taught_on_a_copy(known, model):
    assert not model.module.classes
    stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="adata")
    assert not model.module.classes
    assert known.uns["gest_niche"]["n_learned"] == N
    assert known.obs["gest_niche_learned"].all()
    model.learn_labels("region", known)
    with pytest.warns(UserWarning, match="All 120 cells that are named here taught the labels"):
        expected = model.annotate(known)
    assert expected.attrs["n_learned"] == N
    np.testing.assert_allclose(known.obsm["gest_niche_probability"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["itself", "model"])
def test_labels_of_test_rows_are_not_read(way, tissue, model):
    how = {"model": model} if way == "model" else FAST
    adata = tissue.copy()
    adata.obs[_keys.SPLIT] = np.where(adata.obs[_keys.LIBRARY] == "s1", _keys.TRAIN, _keys.TEST)
    poisoned = adata.copy()
    poisoned.obs["region"] = np.where(
        adata.obs[_keys.LIBRARY] == "s1", adata.obs["region"].astype(str), "none"
    )
    for one in (adata, poisoned):
        stg.tl.gest_annotate(one, labels_key="region", **how)
    assert adata.uns["gest_niche"]["n_learned"] == N
    np.testing.assert_array_equal(*(one.obsm["gest_niche_probability"] for one in (adata, poisoned)))
    assert "none" not in set(poisoned.obs["gest_niche"])


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files_and_come_back_as_tables(kind, known, model, tmp_path):
    known.obs["region"] = known.obs["region"].astype(str).replace({"layer_1": "L2/3"})
    stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="adata")
    path = tmp_path / f"result.{kind}"
    getattr(known, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    pd.testing.assert_frame_equal(stg.get.niches(back), stg.get.niches(known), check_dtype=False)
    assert "L2/3" in stg.get.niches(back)
    assert stg.get.confusion(back, "region", with_learned=True).to_numpy().sum() == N
    stg.pl.confusion(back, "region", with_learned=True)
    stg.pl.niches(back)


def test_a_result_replaces_one_of_its_kind_and_nothing_else(known, model):
    for _ in range(2):
        stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="adata")
    known.obsm["mine_probability"] = np.zeros((N, 2))
    for slot, key, name in (
        ("obs", "region", "region"),
        ("uns", _keys.TOY, _keys.TOY),
        ("obsm", "mine_probability", "mine"),
    ):
        with pytest.raises(ValueError, match=rf"{slot}\['{key}'\] exists and is not an annotation of GeST"):
            stg.tl.gest_annotate(
                known, labels_key="cell_type", model=model, learn_from="adata", key_added=name
            )


def test_copy_leaves_the_original_alone(known, model):
    before = known.copy()
    changed = stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="adata", copy=True)
    assert not unchanged(before, known)
    assert "gest_niche" in changed.obs


def one_class(adata):
    adata.obs["region"] = "all"


def no_label(adata):
    adata.obs["region"] = np.nan


def rare_class(adata):
    adata.obs["region"] = ["rare", *["common"] * (N - 1)]


@pytest.mark.parametrize("way", ["model", "itself", "train_on"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_class, r"obs\['region'\] must have at least two classes of 2 cells; found only 'all'"),
        (no_label, r"obs\['region'\] must label some cells; all 120 are missing"),
        (rare_class, "found only 'common'; 'rare' of a single cell each cannot be learned"),
    ],
    ids=["one_class", "no_label", "rare_class"],
)
def test_labels_that_cannot_be_learned_are_refused_before_training(
    way, spoil, message, known, new, model, monkeypatch
):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    spoil(known)
    before = known.copy()
    how = {"model": {"model": model}, "itself": FAST, "train_on": {"train_on": known, **FAST}}[way]
    with pytest.raises(ValueError, match=message):
        stg.tl.gest_annotate(new if way == "train_on" else known, labels_key="region", **how)
    assert not unchanged(before, known)


def test_a_call_that_makes_no_sense_is_refused(known, model):
    with pytest.raises(
        ValueError, match="`labels_key` must name the column of `obs` with the labels to learn"
    ):
        stg.tl.gest_annotate(known, **FAST)
    with pytest.raises(ValueError, match=r"This GeST has learned no labels"):
        stg.tl.gest_annotate(known, model=model)
    with pytest.raises(KeyError, match=r"obs\['no'\] does not exist"):
        stg.tl.gest_annotate(known, labels_key="no", model=model)
    with pytest.raises(KeyError, match=r"obs\['no'\] does not exist"):
        stg.tl.gest_annotate(known, labels_key="no", **FAST)
    known.obs["mine"] = known.obs["region"]
    with pytest.raises(ValueError, match=r"obs\['mine'\] exists and is not an annotation"):
        stg.tl.gest_annotate(known, labels_key="mine", model=model, key_added="mine")


def test_several_labelled_sections_are_compared_within_themselves(tissue, known, new, model, tmp_path):
    """One labelled section says nothing about what differs between sections; several do."""
    model.learn_labels("region", known)
    assert not model.module.head_within_sections
    model.learn_labels("region", tissue)
    assert model.module.head_within_sections
    model.save(tmp_path / "kept")
    again = stg.models.GeST.load(tmp_path / "kept", accelerator="cpu")
    assert again.module.head_within_sections
    np.testing.assert_array_equal(model.annotate(new), again.annotate(new))

    adata = tissue.copy()
    for by_section in (None, False):
        key = f"asked_{by_section}"
        stg.tl.gest_annotate(
            adata, labels_key="region", model=again, by_section=by_section, key_added=key, learn_from="adata"
        )
    assert not np.allclose(adata.obsm["asked_None_probability"], adata.obsm["asked_False_probability"])


def test_within_a_section_level_and_spread_are_no_features():
    from stgen.models.gest._annotation import within_sections

    rng = np.random.default_rng(0)
    features, section = rng.normal(size=(90, 4)), np.repeat([0, 1, 2], 30)
    shifted = features * rng.uniform(1, 3, size=(3, 4))[section] + rng.normal(size=(3, 4))[section]
    plain = within_sections(features, section)
    np.testing.assert_allclose(within_sections(shifted, section), plain, atol=1e-9)
    np.testing.assert_allclose([plain[section == s].mean(0) for s in range(3)], 0, atol=1e-9)
    constant = np.ones((5, 2))
    np.testing.assert_array_equal(within_sections(constant, np.zeros(5, int)), 0 * constant)


def test_a_piece_of_a_section_is_said_to_be_small(tissue, new, model):
    model.learn_labels("region", tissue)
    with pytest.warns(UserWarning, match=r"a section here has only 30 cells.*by_section=False"):
        model.annotate(new[:30].copy())


# ------------------------------------------------------------------------------------------------- labels of its own


@pytest.mark.parametrize("way", ["model", "itself", "train_on"])
def test_cells_are_not_named_by_nothing_but_their_own_labels(way, known, model, monkeypatch):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    how = {"model": {"model": model}, "itself": FAST, "train_on": {"train_on": known, **FAST}}[way]
    before = known.copy()
    with pytest.raises(
        ValueError, match=r"all 120 cells of `adata`.*`train_on=`.*learn_labels.*missing"
    ) as error:
        stg.tl.gest_annotate(known, labels_key="region", **how)
    assert 'learn_from="adata"' in str(error.value)
    assert not unchanged(before, known)


def test_who_taught_is_marked_and_left_out_of_scores(known, model):
    teaches = np.arange(N) % 3 == 0
    truth = known.obs["region"].astype(str)
    known.obs["some"] = truth.where(teaches)
    stg.tl.gest_annotate(known, labels_key="some", model=model)
    np.testing.assert_array_equal(known.obs["gest_niche_learned"], teaches)
    np.testing.assert_array_equal(stg.get.niches(known)["learned"], teaches)
    table = stg.get.confusion(known, "region")
    assert table.to_numpy().sum() == 80
    assert table.attrs["n_learned"] == 40
    called = known.obs["gest_niche"].astype(str)
    agree = (called == truth)[~teaches].sum()
    assert sum(table.loc[name, name] for name in table.index if name in table.columns) == agree
    assert stg.get.confusion(known, "region", with_learned=True).to_numpy().sum() == N
    ax = stg.pl.confusion(known, "region")
    assert ax.get_title() == f"{agree / 80:.0%} of cells agree (40 that taught are left out)"
    with pytest.raises(ValueError, match=r"All 40 cells with a label in obs\['some'\] taught the model"):
        stg.get.confusion(known, "some")


def test_how_many_taught_from_where_is_logged(known, new, model, caplog):
    model.learn_labels("region", known)
    with caplog.at_level("INFO", logger="stgen"):
        stg.tl.gest_annotate(new, model=model)
    assert "Labels were learned from 120 cells, 0 of them among the 120 that are named." in caplog.text


def test_that_most_cells_taught_is_said_aloud(known, model):
    known.obs["most"] = known.obs["region"].astype(str).where(np.arange(N) > 2)
    with pytest.warns(
        UserWarning, match=r"from 117 cells, 117 of them among the 120 that are named: .*'gest_niche_learned'"
    ):
        stg.tl.gest_annotate(known, labels_key="most", model=model)


def test_a_model_taught_on_these_cells_says_so(known, new, model):
    model.learn_labels("region", known)
    with pytest.warns(UserWarning, match="from 120 cells, 120 of them among the 120 that are named"):
        stg.tl.gest_annotate(known, model=model)
    assert known.uns["gest_niche"]["n_learned"] == N
    stg.tl.gest_annotate(new, model=model)
    assert new.uns["gest_niche"]["n_learned"] == 0
    assert "gest_niche_learned" not in new.obs
    assert model.annotate(new).attrs["n_learned"] == 0


def test_the_mark_of_an_earlier_result_does_not_outlive_it(known, new, model):
    known.obs["some"] = known.obs["region"].astype(str).where(np.arange(N) % 3 == 0)
    stg.tl.gest_annotate(known, labels_key="some", model=model)
    assert "gest_niche_learned" in known.obs
    teacher = stg.datasets.toy_tissue(
        n_sections=2,
        n_patients=2,
        spots_per_section=N,
        n_genes=20,
        unit="cells",
        histology="none",
        random_state=5,
    )
    model.learn_labels("region", teacher)
    stg.tl.gest_annotate(known, model=model)
    assert "gest_niche_learned" not in known.obs
    assert stg.get.confusion(known, "region").to_numpy().sum() == N


def test_a_column_of_the_users_is_not_taken_for_the_mark(known, model):
    known.obs["gest_niche_learned"] = "mine"
    with pytest.raises(ValueError, match=r"obs\['gest_niche_learned'\] exists and is not an annotation"):
        stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="adata")


def test_where_to_learn_from_is_one_word(known, model):
    with pytest.raises(ValueError, match="`learn_from` must be \"adata\" or None; got 'target'"):
        stg.tl.gest_annotate(known, labels_key="region", model=model, learn_from="target")


def test_labels_of_the_models_own_test_rows_teach_nothing(tissue):
    adata = tissue.copy()
    adata.obs[_keys.SPLIT] = np.where(adata.obs[_keys.LIBRARY] == "s1", _keys.TRAIN, _keys.TEST)
    stg.models.GeST.setup_anndata(adata, library_key=_keys.LIBRARY, split_key=_keys.SPLIT)
    model = stg.models.GeST(adata, **TINY)
    model.train(**SHORT)
    adata.obs["region"] = np.where(
        adata.obs[_keys.LIBRARY] == "s1", adata.obs["region"].astype(str), "poison"
    )
    named = model.annotate(labels_key="region")
    assert named.attrs["n_learned"] == N
    assert "poison" not in named.columns


# ------------------------------------------------------------------------------------------------------------ classes


def test_a_class_of_one_cell_is_left_out_and_named(known, model):
    region = known.obs["region"].astype(str)
    region.iloc[0], region.iloc[-30:] = "lonely", None
    known.obs["some"] = region
    with pytest.warns(UserWarning) as said:
        stg.tl.gest_annotate(known, labels_key="some", model=model)
    assert any("have a single cell and are left out: 'lonely' (1 cell" in str(one.message) for one in said)
    assert len([one for one in said if "lonely" in str(one.message)]) == 1
    assert "lonely" not in list(known.obs["gest_niche"].cat.categories)
    assert known.uns["gest_niche"]["n_learned"] == N - 31
    assert not known.obs["gest_niche_learned"].iloc[0]
    with pytest.warns(UserWarning, match="'lonely'"):
        model.learn_labels("some", known)
    assert "lonely" not in model.module.classes


def test_a_score_is_not_taken_for_labels(known, model):
    known.obs["score"] = np.linspace(0, 1, N)
    with pytest.raises(ValueError, match=r"obs\['score'\] must hold classes; found 120 different numbers"):
        stg.tl.gest_annotate(known, labels_key="score", model=model)
    known.obs["cell"] = np.arange(N)
    with pytest.raises(ValueError, match="looks like a score"):
        model.learn_labels("cell", known)
    known.obs["leiden"] = np.arange(N) % 40
    model.learn_labels("leiden", known)
    assert len(model.module.classes) == 40
