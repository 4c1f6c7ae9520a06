"""GeST on AnnData: sections and pools that never meet, unseen cells that are not looked at, and how it says no."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {
    "width": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_meta_cells": 8,
    "n_components": 8,
    "levels": (4,),
    "window_um": 80.0,
}
SHORT = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu"}
SECTIONS = {"library_key": _keys.LIBRARY}
SPLIT = {**SECTIONS, "split_key": _keys.SPLIT}


def make_tissue(**changes):
    """Cells of three sections that lie on top of each other, for training, validation and test."""
    small = {"unit": "cells", "n_sections": 3, "n_patients": 3, "spots_per_section": 100, "n_genes": 16}
    adata = stg.datasets.toy_tissue(**{**small, **changes})
    names = adata.obs[_keys.LIBRARY].unique()
    roles = dict(zip(names, (_keys.TRAIN, _keys.VALIDATION, _keys.TEST)))
    adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
    adata.obs["hidden"] = np.arange(adata.n_obs) % 7 == 0
    return adata


def fit(adata, *, setup=SECTIONS, train=SHORT, **changes):
    torch.set_num_threads(1)
    stg.models.GeST.setup_anndata(adata, **setup)
    model = stg.models.GeST(adata, **{**TINY, **changes})
    model.train(**train)
    return model


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def fitted(tissue):
    return fit(tissue.copy())


@pytest.fixture(scope="module")
def section(tissue):
    return tissue[tissue.obs[_keys.LIBRARY] == "s1"].copy()


def dense(adata):
    return adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)


def with_counts(adata, change):
    """A copy whose counts are ``change(counts)``."""
    changed = adata.copy()
    changed.X = change(dense(adata).astype(np.float64))
    return changed


def with_places(adata, change):
    """A copy whose coordinates are ``change(coordinates)``."""
    changed = adata.copy()
    changed.obsm[_keys.SPATIAL] = change(np.array(adata.obsm[_keys.SPATIAL], dtype=np.float64))
    return changed


def poisoned(adata, rows):
    """A copy whose cells of these rows express something else altogether."""

    def change(counts):
        counts[rows] = 5 * counts[rows][:, ::-1] + 50
        return counts

    return with_counts(adata, change)


def swapped(model, adata, cell):
    """A copy in which this cell is one of another meta cell."""
    word = model.module.words.assign(torch.from_numpy(model.normalized(adata)))
    other = int((word != word[cell]).nonzero()[0, 0])

    def change(counts):
        counts[cell] = counts[other]
        return counts

    return with_counts(adata, change)


def shuffled(adata, seed=1):
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()


def assert_same_cells(one, other, *, atol=1e-5):
    """Two answers of ``generate`` agree, cell by cell."""
    assert set(one.obs_names) == set(other.obs_names)
    other = other[one.obs_names].copy()
    np.testing.assert_allclose(one.X, other.X, rtol=1e-4, atol=atol)
    pd.testing.assert_frame_equal(one.obs, other.obs)


# what a cell may see ------------------------------------------------------------------------------------------------


def test_sections_never_mix(fitted, tissue):
    """Though they lie on top of each other: a section is answered as if the others did not exist."""
    elsewhere = (tissue.obs[_keys.LIBRARY] != "s1").to_numpy()
    other = poisoned(tissue, elsewhere)
    niches, changed = fitted.embed_niches(tissue), fitted.embed_niches(other)
    np.testing.assert_array_equal(niches[~elsewhere], changed[~elsewhere])
    assert (niches[elsewhere] != changed[elsewhere]).any(axis=1).mean() > 0.5
    one, same = (fitted.generate(a, mask="hidden")[~elsewhere[a.obs["hidden"]]] for a in (tissue, other))
    np.testing.assert_array_equal(one.X, same.X)


def test_a_section_is_answered_alone_as_among_others(fitted, tissue, section):
    own = (tissue.obs[_keys.LIBRARY] == "s1").to_numpy()
    np.testing.assert_allclose(
        fitted.embed_niches(section), fitted.embed_niches(tissue)[own], rtol=1e-4, atol=1e-5
    )
    together = fitted.generate(tissue, mask="hidden")
    assert_same_cells(
        fitted.generate(section, mask="hidden"), together[together.obs_names.isin(section.obs_names)]
    )


def test_a_cell_reaches_the_windows_that_hold_it_and_no_other(fitted, section):
    """A niche may join those of the nearest twenty cells; beyond them nothing is felt."""
    xy = section.obsm[_keys.SPATIAL]
    moved = (fitted.embed_niches(section) != fitted.embed_niches(swapped(fitted, section, 17))).any(axis=1)
    near = np.abs(xy - xy[17]).max(axis=1) <= TINY["window_um"] / 2
    joined = np.linalg.norm(xy[:, None] - xy, axis=2).argsort(axis=1)[:, :21]
    assert near.sum() > 1 and moved[near].all()
    assert not moved[~near[joined].any(axis=1)].any() and not moved.all()


@pytest.mark.parametrize("side", [_keys.TEST, _keys.VALIDATION])
def test_pools_of_one_section_never_mix(side, section):
    """Test and validation cells among training cells: neither their expression nor their places train the model."""
    data = section.copy()
    roles = np.array([_keys.TRAIN, _keys.TRAIN, _keys.VALIDATION, _keys.TEST])
    data.obs[_keys.SPLIT] = roles[np.random.default_rng(0).integers(4, size=data.n_obs)]
    rows = np.flatnonzero(data.obs[_keys.SPLIT] == side)
    xy = data.obsm[_keys.SPATIAL]
    inside = rows[
        ~np.isin(rows, np.concatenate([xy.argmin(0), xy.argmax(0)]))
    ]  # the box of the section stays

    def elsewhere(xy):
        xy[inside] = xy.mean(0) + np.random.default_rng(0).uniform(-9, 9, (len(inside), 2))
        return xy

    other = with_places(poisoned(data, rows), elsewhere)
    setup, train = {"split_key": _keys.SPLIT}, {**SHORT, "early_stopping": False}
    one, same = (fit(a.copy(), setup=setup, train=train, window_um=None) for a in (data, other))
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, same.module.state_dict()[name]), name


@pytest.fixture
def laid(monkeypatch):
    """Surfaces are laid through these small sections as well."""
    monkeypatch.setattr("stgen.models.gest._interpolation.LEAST_OF_SURFACE", 50)


@pytest.mark.parametrize("with_surface", [False, True])
def test_a_masked_cells_own_expression_cannot_reach_its_prediction(with_surface, fitted, tissue, request):
    """Bit for bit, even where it is nonsense: squares that are left out to choose by are of seen cells alone."""
    if with_surface:
        request.getfixturevalue("laid")
    hidden = tissue.obs["hidden"].to_numpy()

    def nonsense(counts):
        counts[hidden] = np.nan
        return counts

    answers = [
        fitted.generate(a, mask=hidden)
        for a in (tissue, poisoned(tissue, hidden), with_counts(tissue, nonsense))
    ]
    assert (answers[0].obs["surface_share"] > 0).any() == with_surface
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0].X, other.X)
        pd.testing.assert_frame_equal(answers[0].obs, other.obs)


# unseen cells -------------------------------------------------------------------------------------------------------


def test_generated_cells_are_those_of_the_mask_in_their_order(fitted, tissue):
    from stgen.testing import changed_slots

    before = tissue.copy()
    made = fitted.generate(tissue, mask="hidden")
    assert changed_slots(before, tissue) == []  # seen cells are left alone, and so are the masked ones
    hidden = tissue.obs["hidden"].to_numpy()
    assert list(made.obs_names) == list(tissue.obs_names[hidden])
    assert list(made.var_names) == fitted.genes
    np.testing.assert_array_equal(made.obsm[_keys.SPATIAL], tissue.obsm[_keys.SPATIAL][hidden])
    assert_same_cells(made, fitted.generate(tissue, mask=hidden))
    assert_same_cells(made, fitted.generate(tissue, mask=list(hidden)))
    assert (made.obs["round"] == 1).all() and not made.obs["isolated"].any()
    assert made.obs["n_windows"].between(1, 8).all()


def test_both_read_outs_are_made_of_meta_cells(fitted, tissue):
    made = fitted.generate(tissue, mask="hidden", interpolate=False)
    profiles = fitted.module.words.profiles.numpy()
    np.testing.assert_array_equal(made.layers["picked"], profiles[made.obs["meta_cell"]])
    low, high = profiles.min(0), profiles.max(0)
    np.testing.assert_allclose(made.X, made.X.clip(low, high), atol=1e-4)
    assert not np.allclose(made.X, made.layers["picked"])


@pytest.mark.parametrize("where", ["scattered", "on a lattice", "on top of each other"])
def test_the_order_of_cells_means_nothing(where, fitted, tissue):
    """Also where cells are equally far, and a tree would find some by chance."""
    model, data = fitted, tissue
    if where == "on a lattice":
        data = make_tissue(unit="spots", grid="square", spots_per_section=64, n_sections=1, n_patients=1)
        model = fit(data.copy(), setup={}, window_um=500.0, train={**SHORT, "max_epochs": 5})
    elif where == "on top of each other":

        def pile(xy):
            xy[10:20] = xy[20:30]
            return xy

        data = with_places(tissue, pile)
    made = model.generate(data, mask="hidden", n_windows=3)
    for seed in (1, 2):
        other = shuffled(data, seed)
        assert_same_cells(made, model.generate(other, mask="hidden", n_windows=3))
        niches = pd.DataFrame(model.embed_niches(other), index=other.obs_names).loc[data.obs_names]
        np.testing.assert_allclose(niches, model.embed_niches(data), rtol=1e-4, atol=1e-5)


def test_a_larger_hole_takes_several_rounds_from_its_border_inwards(fitted, section):
    xy = section.obsm[_keys.SPATIAL]
    depth = np.linalg.norm(xy - xy.mean(0), axis=1)
    hole = depth < 85
    made = fitted.generate(section, mask=hole)
    rounds = made.obs["round"].to_numpy()
    assert rounds.max() > 1 and not made.obs["isolated"].any()
    # a cell of a later round was out of reach of every cell seen before
    seen, unseen = xy[~hole], xy[hole]
    for number in range(1, rounds.max() + 1):
        away = np.abs(unseen[rounds >= number][:, None] - seen).max(axis=2).min(axis=1)
        np.testing.assert_array_equal(away <= TINY["window_um"] / 2, rounds[rounds >= number] == number)
        seen = np.concatenate([seen, unseen[rounds == number]])
    first, last = (depth[hole][rounds == number].mean() for number in (1, rounds.max()))
    assert last < first


def test_rounds_can_be_cut_short_and_what_is_left_is_flagged(fitted, section):
    xy = section.obsm[_keys.SPATIAL]
    hole = np.linalg.norm(xy - xy.mean(0), axis=1) < 85
    whole, cut = (fitted.generate(section, mask=hole, max_rounds=n) for n in (100, 1))
    later = (whole.obs["round"] > 1).to_numpy()
    np.testing.assert_array_equal(cut.obs["isolated"], later)
    # what only generated cells reach is interpolated: however many rounds generate it, and wherever they drift
    np.testing.assert_array_equal(cut.X, whole.X)
    alone, alone_cut = (
        fitted.generate(section, mask=hole, max_rounds=n, interpolate=False) for n in (100, 1)
    )
    np.testing.assert_array_equal(alone_cut.X[~later], alone.X[~later])
    assert not np.allclose(alone_cut.X[later], alone.X[later])
    assert np.isfinite(cut.X).all()


def test_isolated_cells_are_answered_by_the_nearest_and_flagged(fitted, section):
    def away(xy):
        xy[[5, 6]] = xy.max(0) + [[3000.0, 0.0], [3010.0, 0.0]]
        return xy

    data, alone = with_places(section, away), np.zeros(section.n_obs, dtype=bool)
    alone[[5, 6, 40]] = True
    made = fitted.generate(data, mask=alone, interpolate=False)
    assert made.obs["isolated"].tolist() == [True, True, False]
    assert made.obs["round"].tolist() == [0, 0, 1]
    assert made.obs["n_windows"].tolist()[:2] == [0, 0]
    xy = data.obsm[_keys.SPATIAL]
    seen = np.flatnonzero(~alone)
    nearest = seen[np.linalg.norm(xy[seen] - xy[5], axis=1).argmin()]
    word = fitted.module.words.assign(torch.from_numpy(fitted.normalized(data[[nearest]].copy())))
    np.testing.assert_allclose(made.X[0], fitted.module.words.profiles[word[0]], rtol=1e-5)


def test_few_seen_cells_are_no_error(fitted, tissue):
    """Each alone in its window: what they reach is answered, the rest is flagged."""
    made = fitted.generate(tissue, mask=np.arange(tissue.n_obs) % 25 > 0)
    assert np.isfinite(made.X).all() and made.obs["n_windows"].min() >= 0
    np.testing.assert_array_equal(made.obs["isolated"], made.obs["n_windows"] == 0)


def test_a_section_without_a_seen_cell_is_refused(fitted, tissue):
    gone = (tissue.obs[_keys.LIBRARY] == "s2").to_numpy()
    with pytest.raises(
        ValueError, match=r"leave some cells of every section to see; it names all of s2.*unmask"
    ):
        fitted.generate(tissue, mask=gone)


def test_new_places_are_answered_like_masked_cells(fitted, tissue):
    """Where the masked cells are not in the data at all."""
    hidden = tissue.obs["hidden"].to_numpy()
    made = fitted.generate(tissue, mask=hidden)
    new = fitted.generate(
        tissue[~hidden].copy(),
        places=tissue.obsm[_keys.SPATIAL][hidden],
        sections=tissue.obs[_keys.LIBRARY][hidden].astype(str).to_numpy(),
    )
    np.testing.assert_allclose(new.X, made.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(new.layers["picked"], made.layers["picked"])
    np.testing.assert_array_equal(new.obs[_keys.LIBRARY], tissue.obs[_keys.LIBRARY][hidden].astype(str))
    np.testing.assert_array_equal(new.obsm[_keys.SPATIAL], made.obsm[_keys.SPATIAL])


def test_places_far_from_any_cell_are_answered_and_flagged(fitted, section):
    places = np.array([[9e3, 9e3], section.obsm[_keys.SPATIAL].mean(0)])
    made = fitted.generate(section, places=places)
    assert made.obs["isolated"].tolist() == [True, False]
    assert np.isfinite(made.X).all()


PLACES = {
    "nothing": ({}, r"Say which cells to generate with `mask`, or give new `places`, and not both"),
    "both": ({"mask": "hidden", "places": [[0.0, 0.0]]}, r"and not both"),
    "NaN": ({"places": [[0.0, np.nan]], "sections": "s1"}, r"`places` must be finite coordinates in µm"),
    "three axes": (
        {"places": [[0.0, 0.0, 0.0, 0.0]], "sections": "s1"},
        r"places × 2.*its shape is \(1, 4\)",
    ),
    "no place": ({"places": np.zeros((0, 2)), "sections": "s1"}, r"`places` must be finite coordinates"),
    "no section": (
        {"places": [[0.0, 0.0]]},
        r"`sections` must name the section of the places; there are 3: s1",
    ),
    "another section": (
        {"places": [[0.0, 0.0]], "sections": "s9"},
        r"one of s1, s2, s3; got 1 names, such as s9",
    ),
    "too few": ({"places": [[0.0, 0.0]] * 3, "sections": ["s1", "s2"]}, r"for each of 3 places.*got 2 names"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_say_nothing_are_refused(name, fitted, tissue):
    question, message = PLACES[name]
    with pytest.raises(ValueError, match=message):
        fitted.generate(tissue, **question)


def test_what_is_unexplained_comes_from_the_cells_around(fitted, tissue):
    """It is added to what windows say, expression stays above 0, and picking is left alone."""
    with_it, without = (fitted.generate(tissue, mask="hidden", interpolate=i) for i in (True, False))
    assert np.abs(with_it.X - without.X).max() > 1e-3
    assert (with_it.X >= 0).all()
    np.testing.assert_array_equal(with_it.layers["picked"], without.layers["picked"])


@pytest.mark.usefixtures("laid")
def test_a_surface_is_laid_section_by_section_whatever_the_order_of_cells(fitted, tissue):
    made = fitted.generate(tissue, mask="hidden")
    assert_same_cells(made, fitted.generate(shuffled(tissue), mask="hidden"))
    alone = tissue[tissue.obs[_keys.LIBRARY] == "s2"].copy()
    here = made.obs_names.isin(alone.obs_names)
    assert_same_cells(made[here].copy(), fitted.generate(alone, mask="hidden"))
    assert made.obs["surface_share"].nunique() > 1


@pytest.mark.usefixtures("laid")
def test_laying_a_surface_leaves_random_generators_alone(fitted, tissue):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made = fitted.generate(tissue, mask="hidden")
    assert torch.equal(before, torch.get_rng_state())
    assert_same_cells(made, fitted.generate(tissue, mask="hidden"))


def test_more_windows_are_averaged_when_asked_for(fitted, tissue):
    one, many = (fitted.generate(tissue, mask="hidden", n_windows=n) for n in (1, 20))
    assert (one.obs["n_windows"] == 1).all()
    assert many.obs["n_windows"].max() > 8
    assert np.abs(one.X - many.X).max() > 1e-4


def test_a_trained_model_knows_more_than_the_mean():
    """Of cells that training never saw; layers are what there is to know."""
    data = make_tissue(n_sections=1, n_patients=1, spots_per_section=400, morphology_share=1.0)
    hidden = data.obs["hidden"].to_numpy()
    model = fit(
        data[~hidden].copy(),
        setup={},
        train={**SHORT, "max_epochs": 12, "lr": 5e-3},
        window_um=None,
        n_meta_cells=12,
    )
    truth = model.normalized(data)
    made = model.generate(data, mask=hidden)
    error = np.square(made.X - truth[hidden]).mean()
    assert error < 0.93 * np.square(truth[~hidden].mean(0) - truth[hidden]).mean()


MASKS = {
    "no such column": ("gone", KeyError, r"obs\['gone'\] does not exist; obs has \['section'"),
    "a column of numbers": (
        "depth",
        ValueError,
        r"`mask` must say True or False for each of the 300 cells; got float",
    ),
    "rows": ([1, 2, 3], ValueError, r"True or False for each of the 300 cells; got int64 of shape \(3,\)"),
    "a mask of other cells": (np.ones(5, bool), ValueError, r"got bool of shape \(5,\)"),
    "all cells": (np.ones(300, bool), ValueError, r"leave some to see; it names 300 of 300"),
    "no cell": (np.zeros(300, bool), ValueError, r"must name some cells .*; it names 0 of 300"),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_says_nothing_is_refused(name, fitted, tissue):
    mask, kind, message = MASKS[name]
    with pytest.raises(kind, match=message):
        fitted.generate(tissue, mask=mask)


@pytest.mark.parametrize("option", ["n_windows", "max_rounds"])
def test_a_question_to_nobody_is_refused(option, fitted, tissue):
    with pytest.raises(ValueError, match=rf"`{option}` must be at least 1; got 0"):
        fitted.generate(tissue, mask="hidden", **{option: 0})


def test_before_training_every_verb_explains_itself(tissue):
    adata = tissue.copy()
    stg.models.GeST.setup_anndata(adata, **SECTIONS)
    model = stg.models.GeST(adata, **TINY)
    for ask in (model.embed_niches, model.normalized, lambda: model.generate(mask="hidden")):
        with pytest.raises(RuntimeError, match=r"GeST is not fitted.*Call `train\(\)` first"):
            ask()


# saved, and elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"logits": "euclid"}, {"quantized": False}], ids=["dot", "euclid", "regression"]
)
def test_a_saved_model_answers_every_question_the_same(changes, fitted, tissue, tmp_path):
    model = fit(tissue.copy(), window_um=None, **changes)
    model.save(tmp_path / "model")
    loaded = stg.models.GeST.load(tmp_path / "model", accelerator="cpu")
    assert loaded.genes == model.genes and loaded.config == model.config
    np.testing.assert_array_equal(loaded.normalized(tissue), model.normalized(tissue))
    np.testing.assert_array_equal(loaded.embed_niches(tissue), model.embed_niches(tissue))
    one, other = (m.generate(tissue, mask="hidden") for m in (model, loaded))
    np.testing.assert_array_equal(one.X, other.X)
    pd.testing.assert_frame_equal(one.obs, other.obs)
    part = tissue[:, :12].copy()
    with pytest.warns(UserWarning, match="12 of the model's 16 genes"):
        one, other = (m.normalized(part) for m in (model, loaded))
    np.testing.assert_array_equal(one, other)


def test_a_new_section_needs_no_columns(fitted):
    """Neither section nor split; other cells, other patient."""
    new = make_tissue(n_sections=1, n_patients=1, random_state=9)
    bare = ad.AnnData(
        new.X,
        obs=pd.DataFrame(index=new.obs_names),
        var=pd.DataFrame(index=new.var_names),
        obsm={_keys.SPATIAL: new.obsm[_keys.SPATIAL]},
    )
    np.testing.assert_array_equal(fitted.embed_niches(new), fitted.embed_niches(bare))
    hidden = new.obs["hidden"].to_numpy()
    assert_same_cells(fitted.generate(new, mask=hidden), fitted.generate(bare, mask=hidden))


def test_a_new_section_moved_on_the_slide_is_the_same_section(fitted, section):
    moved = with_places(section, lambda xy: xy + [20_000.0, -7_000.0])
    np.testing.assert_allclose(fitted.embed_niches(moved), fitted.embed_niches(section), rtol=1e-3, atol=1e-4)


def test_windows_keep_their_width_on_new_sections(fitted, section):
    """A sparser section has fewer cells in a window; where hardly any is left, it is said."""
    before = fitted.module.window_um.clone()
    assert np.isfinite(fitted.embed_niches(with_places(section, lambda xy: 1.5 * xy))).all()
    message = r"A window of 80 µm must hold several cells; the typical one holds 1, the fullest \d\. Are coordinates in µm\?"
    with pytest.raises(ValueError, match=message):
        fitted.embed_niches(with_places(section, lambda xy: 6 * xy))
    assert torch.equal(fitted.module.window_um, before)


def test_a_default_window_follows_the_density_of_training_cells(section):
    one, wide = (
        fit(with_places(section, lambda xy, s=scale: s * xy), setup={}, window_um=None)
        for scale in (1.0, 3.0)
    )
    assert float(wide.module.window_um) == pytest.approx(3 * float(one.module.window_um), rel=1e-3)
    # what counts is how many windows away a cell is
    np.testing.assert_allclose(
        wide.embed_niches(with_places(section, lambda xy: 3 * xy)),
        one.embed_niches(section),
        rtol=0.05,
        atol=0.05,
    )


def test_a_window_keeps_its_nearest_cells(section):
    """The far side of a window that holds the whole section is not among them."""
    far = np.linalg.norm(section.obsm[_keys.SPATIAL] - section.obsm[_keys.SPATIAL][17], axis=1).argmax()
    felt = []
    for max_cells in (5, 512):
        model = fit(section.copy(), setup={}, window_um=1000.0, max_cells=max_cells)
        niches = [model.embed_niches(a)[17] for a in (section, swapped(model, section, far))]
        felt.append(bool((niches[0] != niches[1]).any()))
    assert felt == [False, True]


# genes --------------------------------------------------------------------------------------------------------------


def test_permuted_genes_are_found_by_name(fitted, tissue):
    permuted = tissue[:, np.random.default_rng(0).permutation(tissue.n_vars)].copy()
    np.testing.assert_allclose(fitted.normalized(permuted), fitted.normalized(tissue), rtol=1e-6)
    np.testing.assert_array_equal(fitted.embed_niches(permuted), fitted.embed_niches(tissue))
    assert_same_cells(fitted.generate(permuted, mask="hidden"), fitted.generate(tissue, mask="hidden"))


def test_genes_the_model_does_not_know_change_nothing(fitted, tissue):
    extra = ad.AnnData(
        np.full((tissue.n_obs, 3), 77.0), obs=tissue.obs[[]].copy(), var=pd.DataFrame(index=["A", "B", "C"])
    )
    wider = ad.concat([extra, tissue], axis=1, merge="first")
    wider.obsm[_keys.SPATIAL] = tissue.obsm[_keys.SPATIAL]
    wider.obs = tissue.obs.copy()
    np.testing.assert_allclose(fitted.normalized(wider), fitted.normalized(tissue), rtol=1e-6)


def test_missing_genes_are_filled_and_it_is_said(fitted, tissue):
    """Better than by their means, and those that are there stay on their scale."""
    kept = np.r_[0:5, 8:16]
    part = tissue[:, kept].copy()
    with pytest.warns(
        UserWarning, match=r"13 of the model's 16 genes are here; 3 are not, such as gene_006"
    ) as caught:
        found = fitted.normalized(part)
    assert caught[0].filename == __file__
    whole, gone = fitted.normalized(tissue), np.array([5, 6, 7])
    assert found.shape == whole.shape and np.isfinite(found).all()
    assert np.abs(found[:, kept] - whole[:, kept]).mean() < 0.1
    error = np.square(found - whole)[:, gone].mean()
    assert error < np.square(whole.mean(0) - whole)[:, gone].mean()
    with pytest.warns(UserWarning, match="13 of the model's 16 genes"):
        made = fitted.generate(part, mask="hidden")
    assert list(made.var_names) == fitted.genes


def test_most_niches_stay_when_a_few_genes_are_missing(fitted, tissue):
    with pytest.warns(UserWarning, match="14 of the model's 16 genes"):
        found = fitted.embed_niches(tissue[:, :14].copy())
    whole = fitted.embed_niches(tissue)
    centred = [part - whole.mean(0) for part in (found, whole)]
    likeness = (centred[0] * centred[1]).sum(1) / np.linalg.norm(centred, axis=2).prod(0)
    assert np.median(likeness) > 0.5


def test_fewer_than_half_of_the_genes_are_refused(fitted, tissue):
    message = r"At least 50% of the model's genes are needed; 7 of 16 are here\. 16 genes are expected and 9"
    for ask in (fitted.embed_niches, fitted.normalized, lambda a: fitted.generate(a, mask="hidden")):
        with pytest.raises(ValueError, match=message):
            ask(tissue[:, :7].copy())


# expression ---------------------------------------------------------------------------------------------------------


def test_logs_are_taken_like_the_counts_they_come_from(fitted, tissue):
    logs = with_counts(tissue, lambda counts: fitted.normalized(tissue))
    model = fit(logs, setup={**SECTIONS, "expression": "log"})
    np.testing.assert_array_equal(model.normalized(logs), fitted.normalized(tissue))
    np.testing.assert_allclose(model.embed_niches(logs), fitted.embed_niches(tissue), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["dense", "int32", "csc", "csr_array", "layer", "view", "backed"])
def test_how_counts_lie_changes_nothing(layout, fitted, tissue, tmp_path):
    data, setup, counts = tissue.copy(), dict(SECTIONS), dense(tissue)
    if layout == "layer":
        data.layers["counts"], data.X = data.X.copy(), np.full(data.shape, 0.5)
        setup["layer"] = "counts"
    elif layout == "view":
        wider = ad.concat([data, data[:3].copy()], index_unique="-", merge="same", uns_merge="same")
        wider.obs_names = [*data.obs_names, "a", "b", "c"]
        data = wider[: tissue.n_obs]
    elif layout == "backed":
        data.write_h5ad(tmp_path / "tissue.h5ad")
        data = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
        np.testing.assert_array_equal(fitted.embed_niches(data), fitted.embed_niches(tissue))
        one, other = (fitted.generate(a, mask="hidden") for a in (data, tissue))
        np.testing.assert_array_equal(one.X, other.X)
    else:
        make = {"int32": np.int32, "csc": sparse.csc_matrix, "csr_array": sparse.csr_array}
        data.X = make.get(layout, np.asarray)(counts)
    model = fit(data, setup=setup)
    asked = data if layout == "layer" else tissue
    np.testing.assert_array_equal(model.embed_niches(asked), fitted.embed_niches(tissue))


def spoil(value):
    def change(values):
        values[3, 2] = value
        return values

    return change


LOG = {**SECTIONS, "expression": "log"}
BAD_EXPRESSION = {
    "negative counts": (
        lambda x: x - 5,
        SECTIONS,
        r"X must hold counts; found negative values, the lowest -5",
    ),
    "scaled, as counts": (
        lambda x: (x - x.mean(0)) / x.std(0),
        SECTIONS,
        r"X must hold counts; found negative values",
    ),
    "scaled, as logs": (
        lambda x: (x - x.mean(0)) / x.std(0),
        LOG,
        r"log-normalised expression, which is not negative; found -.*before `sc.pp.scale`",
    ),
    "logs as counts": (np.log1p, SECTIONS, r"not whole numbers.*say `expression='log'`"),
    "counts as logs": (lambda x: 10 * x, LOG, r"no logarithm of a count reaches.*`expression='counts'`"),
    "NaN": (spoil(np.nan), SECTIONS, r"X must hold counts; found 1 values that are NaN or infinite"),
    "NaN in logs": (spoil(np.nan), LOG, r"log-normalised expression; found .*NaN"),
    "no such scale": (np.log1p, {**SECTIONS, "expression": "raw"}, r"one of 'counts', 'log'; got 'raw'"),
}


@pytest.mark.parametrize("name", BAD_EXPRESSION)
def test_expression_that_cannot_be_is_refused_and_left_alone(name, fitted, tissue):
    from stgen.testing import changed_slots

    change, setup, message = BAD_EXPRESSION[name]
    values = change(np.log1p(dense(tissue)) if name == "NaN in logs" else dense(tissue).astype(float))
    data = with_counts(tissue, lambda counts: values)
    before = data.copy()
    with pytest.raises(ValueError, match=message):
        stg.models.GeST.setup_anndata(data, **setup)
    assert changed_slots(before, data, ignore=_keys.SETUP_MARKS) == []
    if setup is SECTIONS:  # also when it comes to a fitted model
        with pytest.raises(ValueError, match=r"X must hold counts; found"):
            fitted.embed_niches(data)


def test_cells_without_counts_are_kept_and_it_is_said(fitted, tissue):
    def empty(counts):
        counts[[0, 9, 150]] = 0
        return counts

    data = with_counts(tissue, empty)
    with pytest.warns(UserWarning, match="3 of 300 cells have no counts in X"):
        model = fit(data)
    for one in (model, fitted):
        assert np.isfinite(one.embed_niches(data)).all()
        assert (one.normalized(data)[[0, 9, 150]] == 0).all()
        assert np.isfinite(one.generate(data, mask="hidden").X).all()


def test_nothing_but_empty_cells_is_one_meta_cell(tissue):
    data = with_counts(tissue, lambda counts: 0 * counts)
    with pytest.warns(UserWarning) as caught:
        model = fit(data)
    told = " ".join(str(one.message) for one in caught)
    assert "300 of 300 cells have no counts" in told and "only 1 cells of the sample differ" in told
    assert np.isfinite(model.embed_niches(data)).all()
    np.testing.assert_allclose(model.generate(data, mask="hidden").X, 0, atol=1e-6)


# places -------------------------------------------------------------------------------------------------------------


def misplaced(xy):
    xy[3, 1] = np.nan
    return xy


BAD_PLACES = {
    "NaN": (
        misplaced,
        SECTIONS,
        r"obsm\['spatial'\] must be finite; 1 of 300 cells have NaN .*Drop these cells",
    ),
    "pixels": (
        lambda xy: 100 * xy,
        SECTIONS,
        r"must be in µm; the median distance .* look like pixels .*`stg.pp.coordinates_in_um`",
    ),
    "millimetres": (
        lambda xy: xy / 1000,
        SECTIONS,
        r"must be in µm; the median distance between neighbouring",
    ),
    "all at one place": (lambda xy: 0 * xy, SECTIONS, r"most cells lie exactly on another cell"),
    "sections that overlap without a key": (
        lambda xy: xy,
        {},
        r"overlap in obsm\['spatial'\]. Say `library_key='section'`",
    ),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_places_that_cannot_be_are_refused(name, fitted, tissue):
    change, setup, message = BAD_PLACES[name]
    data = with_places(tissue, change)
    with pytest.raises(ValueError, match=message):
        stg.models.GeST.setup_anndata(data, **setup)
    if setup:
        for ask in (fitted.embed_niches, lambda a: fitted.generate(a, mask="hidden")):
            with pytest.raises(ValueError, match=message):
                ask(data)


def test_pixels_that_could_be_cells_are_found_by_their_windows(tissue):
    """Ten times too wide is still a distance between cells, but the window that was asked for holds one."""
    data = with_places(tissue, lambda xy: 10 * xy)
    with pytest.raises(
        ValueError, match=r"A window of 80 µm must hold several cells; the typical one holds 1"
    ):
        fit(data)


def test_a_missing_place_or_section_names_what_exists(tissue):
    with pytest.raises(KeyError, match=r"obsm\['xy'\] does not exist; obsm has \['spatial'"):
        stg.models.GeST.setup_anndata(tissue.copy(), spatial_key="xy", **SECTIONS)
    with pytest.raises(KeyError, match=r"obs\['slide'\] does not exist; obs has \['section'"):
        stg.models.GeST.setup_anndata(tissue.copy(), library_key="slide")
    with pytest.raises(KeyError, match=r"obs\['role'\] does not exist.*`stg.pp.split`"):
        stg.models.GeST.setup_anndata(tissue.copy(), split_key="role", **SECTIONS)


def test_cells_on_top_of_each_other_are_fitted_and_answered(tissue):
    def pile(xy):
        xy[:30] = xy[0]
        return xy

    data = with_places(tissue, pile)
    model = fit(data)
    niches = model.embed_niches(data)
    assert np.isfinite(niches).all()
    np.testing.assert_allclose(niches[:30], niches[:1].repeat(30, 0), rtol=1e-3, atol=1e-4)
    assert np.isfinite(model.generate(data, mask="hidden").X).all()


def test_isolated_cells_do_not_end_training(section):
    """Windows of one cell come in batches of their own, as windows of like size do; nothing can be learned there."""

    def scatter(xy):
        xy[:40] = np.stack([np.arange(40) * 500.0 + 2000, np.zeros(40)], axis=1)
        return xy

    data = with_places(section, scatter)
    data.obs[_keys.SPLIT] = np.where(np.arange(data.n_obs) < 8, _keys.VALIDATION, _keys.TRAIN)
    for changes in ({}, {"quantized": False}):
        model = fit(data, setup={"split_key": _keys.SPLIT}, train={**SHORT, "batch_size": 8}, **changes)
        assert np.isfinite(model.history_["train_loss"]).all(axis=None)
        assert np.isfinite(model.embed_niches(data)).all()


# how many -----------------------------------------------------------------------------------------------------------


def test_one_section_without_a_key_is_enough(section, caplog):
    with caplog.at_level(logging.WARNING, logger="stgen"):
        model = fit(section.copy(), setup={})
    assert "No `split_key` was given" in caplog.text
    assert model.embed_niches(section).shape == (section.n_obs, TINY["width"])
    keyed = fit(section.copy(), setup=SECTIONS)
    np.testing.assert_array_equal(keyed.embed_niches(section), model.embed_niches(section))


def test_a_split_chooses_the_epoch(tissue):
    model = fit(tissue.copy(), setup=SPLIT, train={**SHORT, "max_epochs": 3})
    assert "validation_loss" in model.history_
    assert model.card["training_sections"] == ["s1"]
    assert np.isfinite(model.embed_niches(tissue)).all()


@pytest.mark.filterwarnings("ignore:.*genes have the same count")
@pytest.mark.parametrize("n", [2, 3, 10])
def test_fewer_cells_than_a_window_wants_are_all_it_holds(n, section):
    data = section[:n].copy()
    model = fit(data, setup={}, window_um=None, n_meta_cells=None)
    assert model.embed_niches(data).shape == (n, TINY["width"])
    made = model.generate(data, mask=np.arange(n) == 0)
    assert np.isfinite(made.X).all()


TOO_LITTLE = {
    "no cell": (0, 16, r"At least 2 cells are needed; this AnnData has 0"),
    "one cell": (1, 16, r"At least 2 cells are needed; this AnnData has 1"),
    "one gene": (50, 1, r"At least 2 genes are needed; this AnnData has 1"),
}


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_too_little_is_refused(name, section):
    n, genes, message = TOO_LITTLE[name]
    with pytest.raises(ValueError, match=message):
        stg.models.GeST.setup_anndata(section[:n, :genes].copy())


def test_no_cells_have_no_niches(fitted, section):
    with pytest.raises(ValueError, match=r"At least 1 cells are needed; this AnnData has 0"):
        fitted.embed_niches(section[:0].copy())


def test_a_cell_alone_has_no_niche(fitted, section):
    with pytest.raises(
        ValueError, match=r"A window of 80 µm must hold several cells; the typical one holds 1"
    ):
        fitted.embed_niches(section[:1].copy())


def test_sections_of_one_cell_each_have_no_window(section):
    data = section[:6].copy()
    data.obs[_keys.LIBRARY] = pd.Categorical([f"s{i}" for i in range(6)])
    with pytest.raises(ValueError, match=r"A window needs sections of several cells.*Check `library_key`"):
        fit(data, window_um=None)


# options ------------------------------------------------------------------------------------------------------------

ABLATIONS = {
    "regression": {"quantized": False},
    "random order": {"order": 0.0},
    "no place": {"use_place": False},
    "no levels": {"levels": ()},
    "as published": {"distance_bias": False, "augment": False},
    "squared distance": {"logits": "euclid"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_fitted_and_answers(name, tissue):
    model = fit(tissue.copy(), **ABLATIONS[name])
    assert np.isfinite(model.embed_niches(tissue)).all()
    made = model.generate(tissue, mask="hidden")
    assert np.isfinite(made.X).all()
    assert made.X.std(axis=0).max() > 0 or name == "no place"


def test_presets_are_architectures(section):
    data = section.copy()
    stg.models.GeST.setup_anndata(data)
    paper = stg.models.GeST(data, preset="paper")
    assert (paper.config.n_layers, paper.config.n_heads, paper.config.window_um) == (8, 8, 600.0)
    assert stg.models.GeST(data, preset="small").config == stg.models.GeST(data).config
    with pytest.raises(ValueError, match=r"`preset` must be one of 'small', 'paper'; got 'huge'"):
        stg.models.GeST(data, preset="huge")
    with pytest.raises(TypeError, match=r"GeST has no option 'depth'; it has width"):
        stg.models.GeST(data, depth=3)


def test_half_precision_is_close(fitted, tissue):
    model = fit(tissue.copy(), train={**SHORT, "precision": "bf16"})
    np.testing.assert_allclose(model.embed_niches(tissue), fitted.embed_niches(tissue), rtol=0.2, atol=0.1)
