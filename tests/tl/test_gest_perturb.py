"""What a change of some cells does around them, in one call: what is written, what is refused before training."""

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
SHAM = {"mode": "activate", "genes": "gene_003", "null": "sham", "n_shams": 3}
N = 150


@pytest.fixture(scope="module")
def tissue():
    import torch

    torch.set_num_threads(1)
    adata = stg.datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=N, n_genes=12, unit="cells", histology="none"
    )
    adata.var_names = ["CCL3/L1/L3", *adata.var_names[1:]]
    xy = adata.obsm[_keys.SPATIAL]
    adata.obs["middle"] = (np.abs(xy - xy.mean(axis=0)) < 30).all(axis=1)
    return adata


@pytest.fixture
def new(tissue):
    return tissue.copy()


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "model"
    stg.tl.gest_niche_embed(tissue.copy(), save=path, **FAST)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return stg.models.GeST.load(folder, accelerator="cpu")


def unchanged(before, after):
    from stgen.testing import changed_slots

    return changed_slots(before, after)


def test_the_table_is_that_of_the_model_and_nothing_else_changes(model, new):
    before = new.copy()
    assert stg.tl.gest_perturb(new, region="middle", model=model, **SHAM) is None
    expected = model.perturb(before, region="middle", random_state=0, **SHAM)
    found = stg.get.perturbation(new)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found.attrs["share_changed"] == expected.attrs["share_changed"]
    del new.uns["gest_perturb"]
    assert not unchanged(before, new)


def test_without_a_model_the_cells_themselves_train_one(new):
    stg.tl.gest_perturb(new, region="middle", **SHAM, **FAST)
    record = new.uns["gest_perturb"]
    assert record["model"]["n_training_spots"] == N
    assert record["params"]["region"] == "middle"
    assert record["params"]["n_region"] == new.obs["middle"].sum()
    assert record["params"]["genes"] == "gene_003"
    assert record["params"]["null"] == "sham"


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files(kind, model, new, tmp_path):
    degs = {"CCL3/L1/L3": "High", "gene_004": "n.s."}
    stg.tl.gest_perturb(
        new, region=new.obs["middle"].to_numpy(), model=model, rings_um=[0, 20, 60], degs=degs, **SHAM
    )
    path = tmp_path / f"result.{kind}"
    getattr(new, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    one, other = stg.get.perturbation(new), stg.get.perturbation(back)
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert one.attrs == other.attrs
    assert set(other.attrs["comparison"]["n_genes"]) == {2}
    assert list(back.uns["gest_perturb"]["params"]["rings_um"]) == [0, 20, 60]


def test_a_result_replaces_one_of_its_kind_and_nothing_else(model, new):
    for _ in range(2):
        stg.tl.gest_perturb(new, region="middle", model=model, **SHAM)
    new.uns["mine"] = {"note": "mine"}
    with pytest.raises(ValueError, match=r"uns\['mine'\] exists and is not a perturbation of GeST"):
        stg.tl.gest_perturb(new, region="middle", model=model, key_added="mine", **SHAM)


def test_copy_leaves_the_original_alone(model, new):
    before = new.copy()
    changed = stg.tl.gest_perturb(new, region="middle", model=model, copy=True, **SHAM)
    assert not unchanged(before, new)
    assert "gest_perturb" in changed.uns


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({"region": np.zeros(N, dtype=bool)}, ValueError, "`region` holds no cell"),
        ({"region": np.ones(N, dtype=bool)}, ValueError, "`region` holds all 150 cells"),
        ({"region": np.arange(3)}, ValueError, "True or False for each of the 150 cells"),
        ({"region": "roi"}, KeyError, r"obs\['roi'\] does not exist"),
        ({"genes": ["EPCAM"]}, ValueError, "must be in the model's panel of 12 genes; EPCAM is not"),
        ({"mode": "delete"}, ValueError, "`mode` must be one of 'activate', 'inhibit', 'replace'"),
        ({"mode": "replace"}, ValueError, "needs a `profile` or a `cell_type`"),
        ({"null": "none"}, ValueError, "`null` must be one of 'tissue', 'sham'; got 'none'"),
        ({"labels_key": "type"}, KeyError, r"obs\['type'\] does not exist"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
    ],
    ids=str,
)
def test_a_question_that_makes_no_sense_is_refused_before_training(how, kind, message, new, monkeypatch):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    before = new.copy()
    with pytest.raises(kind, match=message):
        stg.tl.gest_perturb(new, **{"region": "middle", **SHAM, **how}, **FAST)
    assert not unchanged(before, new)
