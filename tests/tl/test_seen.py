"""What a model had seen of the spots it is applied to: the same barcode on another slide is another spot."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import stgen as stg
from stgen import _keys

N = 49
COLUMNS = [_keys.LIBRARY, _keys.PATIENT]
SHORT = {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu", "progress_bar": False}
TINY = {
    "genar": {"width": 16, "n_layers": 1, "n_heads": 2, "scales": None},
    "genst": {"n_tokens": 2, "n_codes": 4, "n_image_tokens": 2, "n_image_codes": 4, "hidden": 8},
    "X_gest": {"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 6},
}
TASKS = {"genar": stg.tl.genar_predict, "genst": stg.tl.genst_predict, "X_gest": stg.tl.gest_niche_embed}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model was trained on"),
    pytest.mark.filterwarnings("ignore:.*codes are used:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*codebook:UserWarning"),
]


@pytest.fixture(scope="module")
def slides():
    """Two slides of Visium: the same barcodes on both."""
    tissue = stg.datasets.toy_tissue(
        n_sections=2, n_patients=2, spots_per_section=N, n_genes=12, panel_total=300.0
    )
    parts = [tissue[tissue.obs[_keys.LIBRARY] == name].copy() for name in ("s1", "s2")]
    for i, one in enumerate(parts):  # tissue lies somewhere else on every slide
        one.obs_names = [f"AAAC{j:04d}-1" for j in range(N)]
        one.obsm[_keys.SPATIAL] = one.obsm[_keys.SPATIAL] + 7.3 * i
    return parts


def plain(adata, *, with_columns):
    adata = adata.copy()
    return (
        adata
        if with_columns
        else ad.AnnData(adata.X, adata.obs.drop(columns=COLUMNS), adata.var, obsm=dict(adata.obsm))
    )


def seen(key, adata, **how):
    if "model" not in how:
        how |= {"model_kwargs": TINY[key], "train_kwargs": SHORT}
    return TASKS[key](adata, copy=True, **how).uns[key].get("seen_in_training", {})


@pytest.mark.parametrize("with_columns", [True, False])
@pytest.mark.parametrize("key", TASKS)
def test_another_slide_with_the_same_barcodes_was_not_seen(key, with_columns, slides):
    one, other = (plain(slide, with_columns=with_columns) for slide in slides)
    assert seen(key, other, train_on=one) == {}


@pytest.mark.parametrize("with_columns", [True, False])
@pytest.mark.parametrize("how", ["itself", "list", "mapping"])
@pytest.mark.parametrize("key", TASKS)
def test_the_training_section_was_seen_however_it_is_given(key, how, with_columns, slides):
    one, other = (plain(slide, with_columns=with_columns) for slide in slides)
    train_on = {"itself": one, "list": [other, one], "mapping": {"first": one, "other": other}}[how]
    if how == "mapping" and with_columns:
        train_on = {"s1": one, "s2": other}
    permuted = one[np.random.default_rng(0).permutation(N)[:40]].copy()
    found = seen(key, permuted, train_on=train_on)
    assert found["n_spots"] == 40
    assert list(found.get("sections", [])) == (["s1"] if with_columns else [])


def test_a_section_of_a_list_that_has_no_name_is_known_in_a_target_that_names_it(slides):
    one, other = (plain(slide, with_columns=False) for slide in slides)
    assert seen("genar", slides[0], train_on=[other, one])["n_spots"] == N
    assert seen("genar", slides[0], train_on={"mine": one})["n_spots"] == N


@pytest.mark.parametrize("key", ["genar", "X_gest"])
def test_a_model_of_this_session_knows_its_spots_after_the_object_was_changed(key, slides):
    kind = {"genar": stg.models.GenAR, "X_gest": stg.models.GeST}[key]
    mine = plain(slides[0], with_columns=False)
    kind.setup_anndata(mine)
    model = kind(mine, **TINY[key])
    model.train(**SHORT)
    mine.obs_names = [f"other{i}" for i in range(N)]
    again, other = (plain(slide, with_columns=False) for slide in slides)
    assert seen(key, again, model=model)["n_spots"] == N
    assert seen(key, other, model=model) == {}


def test_rows_that_a_split_held_out_were_not_seen(slides):
    both = ad.concat(slides, index_unique="-")
    stg.pp.split(both, by="patient", test=["p2"], validation=0)
    assert seen("genar", both, train_on=both) == {}
    held_out = both[both.obs[_keys.PATIENT] == "p2"].copy()
    assert seen("X_gest", held_out, train_on=both) == {}
    learned = both[both.obs[_keys.PATIENT] == "p1"].copy()
    del learned.obs[_keys.SPLIT]
    assert seen("genar", learned, train_on=both)["n_spots"] == N


def test_a_report_knows_the_training_spots_in_another_object(slides):
    one, other = (plain(slide, with_columns=False) for slide in slides)
    stg.models.GenST.setup_anndata(one)
    model = stg.models.GenST(one, nonlinear=False, **TINY["genst"])
    model.train(**SHORT)
    quick = {"n_boot": 5, "n_halvings": 1, "n_permutations": 1, "n_markers": 2, "copy": True}
    with pytest.warns(UserWarning, match="The model was trained on 30 spots of this AnnData"):
        report = stg.tl.genst_report(one[:30].copy(), model=model, **quick)
    assert report.uns["genst_report"]["seen_in_training"] == {"n_spots": 30}
    with pytest.warns(UserWarning, match="trained on 30 of these 30 spots"):
        model.report(one[::-1][:30].copy(), n_boot=5)
    assert not stg.tl.genst_report(other, model=model, **quick).uns["genst_report"]["seen_in_training"]


def test_repeated_barcodes_name_the_way_to_join_sections(slides):
    with pytest.warns(UserWarning, match="Observation names are not unique"):
        both = ad.concat({"a": slides[0], "b": slides[1]}, label="library_id")
    with pytest.raises(
        ValueError, match=r"49 repeat: .* join sections with `anndata.concat\(\.\.\., index_unique="
    ):
        stg.tl.gest_niche_embed(both, library_key="library_id")
