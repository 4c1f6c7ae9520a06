"""CausalGeD on AnnData: held-out genes are never seen, order means nothing, and odd data is answered."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stgen as stg
from stgen import _keys
from stgen.models.causalged import _imputation, _tables
from stgen.models.causalged._calibration import Regression, level, widening
from stgen.models.causalged._views import Hints, Predictor
from stgen.testing import changed_slots

TINY = {"width": 16, "n_layers": 2, "n_heads": 2, "n_axes": 4}
SHORT = {"max_epochs": 1, "batch_size": 64, "accelerator": "cpu"}
QUICK = {"n_samples": 4, "n_steps": 5}
SECTIONS = {"library_key": _keys.LIBRARY}
MARK = _keys.REFERENCE_MARK


def make_tissue(**changes):
    small = {"n_sections": 3, "n_patients": 3, "spots_per_section": 60, "n_genes": 40}
    return stg.datasets.toy_tissue(**{**small, **changes})


def make_reference(tissue, **changes):
    return stg.datasets.toy_reference(tissue, **{"n_cells": 200, **changes})


def make_panel(tissue):
    """Every other gene is measured."""
    return tissue[:, ::2].copy()


def fit(panel, reference, *, setup=SECTIONS, of_reference=None, train=SHORT, **changes):
    """A model of copies."""
    torch.set_num_threads(1)
    panel, reference = panel.copy(), reference.copy()
    stg.models.CausalGeD.setup_anndata(panel, **setup)
    stg.models.CausalGeD.setup_reference(reference, **(of_reference or {}))
    model = stg.models.CausalGeD(panel, reference, **{**TINY, **changes})
    model.train(**train)
    return model


def turned_up(model):
    """The same model with a network that says something, and all of it is added."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        model.module.answer.weight.normal_(std=0.3, generator=generator)
        model.module.share.fill_(1.0)
    return model


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def reference(tissue):
    return make_reference(tissue)


@pytest.fixture(scope="module")
def panel(tissue):
    return make_panel(tissue)


@pytest.fixture(scope="module")
def fitted(panel, reference):
    return fit(panel, reference)


@pytest.fixture(scope="module")
def loud(panel, reference):
    return turned_up(fit(panel, reference))


@pytest.fixture(scope="module")
def silent(panel, reference):
    return fit(panel, reference, use_network=False)


def dense(adata):
    return adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)


def with_counts(adata, change):
    """A copy whose counts are ``change(counts)``."""
    changed = adata.copy()
    changed.X = sparse.csr_matrix(change(dense(adata).astype(np.float32)))
    return changed


def with_places(adata, change):
    changed = adata.copy()
    changed.obsm[_keys.SPATIAL] = change(np.array(adata.obsm[_keys.SPATIAL], dtype=np.float64))
    return changed


def poisoned(adata, genes):
    """A copy with other counts of these genes."""

    def change(counts):
        counts[:, genes] = np.random.default_rng(5).poisson(50, (len(counts), int(np.sum(genes))))
        return counts

    return with_counts(adata, change)


def assert_same(made, other, *, exact=True, atol=1e-4):
    """Two answers agree, name by name."""
    assert set(made.obs_names) == set(other.obs_names) and set(made.var_names) == set(other.var_names)
    other = other[made.obs_names, made.var_names]
    for name in (None, *made.layers):
        one, same = (table.X if name is None else table.layers[name] for table in (made, other))
        if exact:
            np.testing.assert_array_equal(one, same)
        else:
            np.testing.assert_allclose(one, same, rtol=1e-3, atol=atol)
    for column in made.var:
        one, same = made.var[column], other.var[column]
        if exact or column == "verdict":
            assert one.tolist() == same.tolist()
        else:
            np.testing.assert_allclose(one, same, rtol=1e-3, atol=1e-4)


def assert_sound(made):
    """Finite, not negative, with ordered intervals and a verdict for every gene."""
    assert np.isfinite(made.X).all() and (made.X >= 0).all()
    ends = [made.layers[name] for name in ("lower_90", "lower_50", "upper_50", "upper_90")]
    for one, other in itertools.pairwise(ends):
        assert (one <= other).all()
    assert (ends[0] >= 0).all()
    for layer in made.layers.values():
        assert np.isfinite(layer).all() and (layer >= 0).all()
    assert made.var.notna().all().all()
    assert set(made.var["verdict"]) <= {"use", "weak", "do not use"}
    assert (made.var["low"] <= made.var["predictability"]).all()
    assert (made.var["predictability"] <= made.var["high"]).all()


# held-out genes -----------------------------------------------------------------------------------------------------


def test_noise_in_place_of_held_out_genes_changes_no_bit(tissue, reference, loud):
    """They are not needed: a panel is cut from what was measured, trained on and imputed."""
    held = ~tissue.var_names.isin(make_panel(tissue).var_names)
    other = make_panel(poisoned(tissue, held))
    made = turned_up(fit(other, reference)).impute(**QUICK)
    assert set(made.var_names) == set(tissue.var_names[held])
    assert_same(made, loud.impute(**QUICK))


def test_genes_that_are_asked_for_have_no_part_in_what_is_measured(tissue, fitted):
    """Nor in a new section: genes that the model does not read may hold anything."""
    held = ~tissue.var_names.isin(fitted.measured_genes)
    whole = tissue[:, np.r_[np.flatnonzero(~held), np.flatnonzero(held)[:5]]].copy()
    other = poisoned(whole, np.arange(whole.n_vars) >= (~held).sum())
    made, same = (fitted.impute(one, **QUICK) for one in (whole, other))
    assert made.n_vars == held.sum() - 5
    assert_same(made, same)


def test_spots_for_testing_have_no_part_in_training(tissue, reference):
    panel = make_panel(tissue)
    roles = dict(zip(["s1", "s2", "s3"], (_keys.TRAIN, _keys.TRAIN, _keys.TEST)))
    panel.obs[_keys.SPLIT] = panel.obs[_keys.LIBRARY].astype(str).map(roles)
    gone = (panel.obs[_keys.SPLIT] == _keys.TEST).to_numpy()

    def change(counts):
        counts[gone] = 7
        return counts

    setup, train = {**SECTIONS, "split_key": _keys.SPLIT}, {**SHORT, "max_epochs": 1}
    models = [fit(one, reference, setup=setup, train=train) for one in (panel, with_counts(panel, change))]
    assert_same(*(model.impute(panel, **QUICK) for model in models))


# hints and network --------------------------------------------------------------------------------------------------


def hints_of(model, adata):
    """What the linear views say, put together by hand."""
    module, reference = model.module, model._reference()
    spots, here = model._spots(adata, module.measured, float(module.statistic("total")))
    genes = [module.measured[i] for i in here]
    # rows of the correlations are measured genes: those that are there
    reference = dataclasses.replace(reference, gram=reference.gram[here])
    wanted = np.array([i for i, gene in enumerate(module.genes) if gene not in genes])
    predictor = Predictor.make(
        reference, np.array([module.genes.index(gene) for gene in genes]), np.arange(len(genes)), wanted
    )
    hints = Hints(predictor, spots.of_sample, module.statistic("weight").numpy().astype(np.float64))
    mean, sd = level(
        Regression.unpacked(module.statistic("level").numpy().astype(np.float64)), reference.facts[wanted]
    )
    pattern = hints.rows(spots.rows(np.arange(adata.n_obs)))
    return np.maximum(mean + sd * widening(hints.of_sample.std(axis=0)) * pattern, 0)


def test_without_a_network_the_answer_is_that_of_the_views(silent):
    made = silent.impute(**QUICK)
    assert made.uns[_keys.CAUSALGED]["share"] == 0
    np.testing.assert_allclose(made.X, hints_of(silent, silent.adata), rtol=1e-3, atol=1e-4)
    assert_same(made, silent.impute(n_samples=1, n_steps=2, n_sets=5, random_state=9))


def test_an_untrained_network_adds_nothing(panel, reference):
    """Its answer is 0 from the start: what is generated is noise, of which validation genes take nothing."""
    for seed in range(3):
        model = fit(panel, reference, train={**SHORT, "max_epochs": 1, "lr": 1e-12}, random_state=seed)
        views = fit(panel, reference, train=SHORT, random_state=seed, use_network=False)
        assert_same(model.impute(**QUICK), views.impute(**QUICK), exact=False)


def test_what_the_network_adds_lies_along_the_axes_of_spots(loud, silent):
    """A hint, and something of rank L at most."""
    made, views = loud.impute(**QUICK).X, silent.impute(**QUICK).X
    inside = (made > 0) & (views > 0)
    whole = inside.all(axis=0)
    assert whole.sum() > TINY["n_axes"]
    added = (made - views)[:, whole]
    size = np.linalg.svd(added, compute_uv=False)
    assert size[0] > 1 and size[TINY["n_axes"]] < 1e-4 * size[0]


# order means nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sets", [1, 4])
def test_permuting_genes_and_spots_permutes_the_result(n_sets, panel, loud):
    rng = np.random.default_rng(3)
    other = panel[rng.permutation(panel.n_obs), rng.permutation(panel.n_vars)].copy()
    made, same = (loud.impute(one, n_sets=n_sets, **QUICK) for one in (panel, other))
    assert list(same.obs_names) == list(other.obs_names)
    assert_same(made, same, exact=False)


@pytest.mark.parametrize("n_sets", [1, 4])
def test_the_order_in_which_genes_are_asked_for_means_nothing(n_sets, loud):
    genes = [gene for gene in loud.reference_genes if gene not in loud.measured_genes]
    asked = list(np.random.default_rng(1).permutation(genes))
    made, same = (loud.impute(genes=one, n_sets=n_sets, **QUICK) for one in (genes, asked))
    assert list(same.var_names) == asked
    assert_same(made, same, exact=False)
    assert_same(made, loud.impute(n_sets=n_sets, **QUICK))


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_spots_are_answered_in_batches_of_any_size(batch_size, loud):
    assert_same(loud.impute(**QUICK), loud.impute(batch_size=batch_size, **QUICK), exact=False, atol=1e-5)


@pytest.mark.parametrize("convert", [sparse.csc_matrix, sparse.csr_matrix, lambda x: x.toarray()])
def test_layouts_of_counts_mean_nothing(convert, panel, fitted):
    other = panel.copy()
    other.X = convert(panel.X)
    assert_same(fitted.impute(panel, **QUICK), fitted.impute(other, **QUICK), exact=False, atol=1e-5)


def test_zeros_that_are_stored_are_zeros(panel, reference, silent):
    """On both sides."""

    def stored(adata):
        full = adata.copy()
        full.X = sparse.csr_matrix(dense(adata) + 1)
        full.X.data -= 1
        assert full.X.nnz == full.n_obs * full.n_vars
        return full

    model = fit(stored(panel), stored(reference), use_network=False)
    assert_same(model.impute(**QUICK), silent.impute(**QUICK), exact=False)


# sections -----------------------------------------------------------------------------------------------------------


def test_sections_are_not_mixed_in_neighbourhoods(panel, loud, reference):
    """Where they lie means nothing to each other: apart, or on top of each other."""
    number = panel.obs[_keys.LIBRARY].cat.codes.to_numpy()

    def pile(xy):
        for s in range(3):
            xy[number == s] -= xy[number == s].min(axis=0) - 17 * s
        return xy

    def away(xy):
        return pile(xy) + 1e6 * number[:, None]

    piled, apart = with_places(panel, pile), with_places(panel, away)
    assert_same(loud.impute(piled, **QUICK), loud.impute(apart, **QUICK))
    near = loud._spots(piled, loud.measured_genes, 1000.0)[0].near
    np.testing.assert_array_equal(number[near], np.repeat(number[:, None], near.shape[1], axis=1))
    # where nobody knows of sections, it does matter
    one_section = [one.copy() for one in (apart, piled)]
    for one in one_section:
        del one.obs[_keys.LIBRARY]
    model = fit(one_section[0], reference, setup={}, use_network=False)
    made, mixed = (model.impute(one, **QUICK).X for one in one_section)
    assert not np.allclose(made, mixed, atol=1e-3)


def test_a_new_section_is_answered(tissue, panel, loud):
    new = make_panel(make_tissue(random_state=8))
    made = loud.impute(new, **QUICK)
    assert_sound(made)
    assert list(made.obs_names) == list(new.obs_names)


def test_a_panel_that_lacks_some_genes_is_read_from_those_it_has(panel, loud):
    lacking = panel[:, [i for i in range(panel.n_vars) if i not in (0, 7, 8)]].copy()
    with pytest.warns(UserWarning, match=r"17 of the model's 20 genes are here; 3 are not, such as gene_001"):
        made = loud.impute(lacking, **QUICK)
    assert_sound(made)
    # those that are not there are imputed with the others
    assert {"gene_001", "gene_015", "gene_017"} <= set(made.var_names) and made.n_vars == 23
    full = loud.impute(panel, **QUICK)
    both = made[:, full.var_names].X
    assert np.corrcoef(both.ravel(), full.X.ravel())[0, 1] > 0.9


def test_a_panel_that_lacks_genes_is_answered_by_correlations_of_those_it_has(panel, silent):
    lacking = panel[:, [i for i in range(panel.n_vars) if i not in (0, 7, 8)]].copy()
    with pytest.warns(UserWarning, match="17 of the model's 20 genes are here"):
        made, expected = silent.impute(lacking, **QUICK), hints_of(silent, lacking)
    np.testing.assert_allclose(made.X, expected, rtol=1e-3, atol=1e-4)


def test_less_than_half_of_the_genes_is_refused(panel, fitted):
    with pytest.raises(ValueError, match=r"At least 50% of the model's genes are needed; 9 of 20 are here"):
        fitted.impute(panel[:, :9].copy())


# what is asked for --------------------------------------------------------------------------------------------------


def test_what_is_made_is_labelled(panel, fitted):
    made = fitted.impute(**QUICK)
    assert isinstance(made, ad.AnnData) and made.shape == (panel.n_obs, 20)
    assert made.X.dtype == np.float32
    assert list(made.obs_names) == list(panel.obs_names)
    assert list(made.var_names) == [g for g in fitted.reference_genes if g not in fitted.measured_genes]
    columns = {"predictability", "low", "high", "gain", "gain_low", "gain_high", "verdict"}
    assert columns <= set(made.var)
    assert {"sd", "lower_50", "upper_50", "lower_90", "upper_90"} <= set(made.layers)
    assert made.uns[_keys.CAUSALGED]["n_measured"] == 20
    total = np.median(np.asarray(panel.X.sum(axis=1)).ravel())
    assert made.uns[_keys.CAUSALGED]["target_total"] == pytest.approx(total)
    assert_sound(made)


def test_intervals_can_be_left_out(fitted):
    made, without = fitted.impute(**QUICK), fitted.impute(intervals=False, **QUICK)
    assert [name for name in without.layers if name] == ["sd"]  # anndata 0.13 lists X as None
    np.testing.assert_array_equal(made.X, without.X)


def test_intervals_cover_held_out_genes(tissue, fitted):
    """Of the same tissue: about as often as they say."""
    made = fitted.impute(**QUICK)
    counts = dense(tissue).astype(np.float64)
    total = counts[:, tissue.var_names.isin(fitted.measured_genes)].sum(axis=1, keepdims=True)
    scale = made.uns[_keys.CAUSALGED]["target_total"]
    truth = np.log1p(counts / total * scale)[:, tissue.var_names.get_indexer(made.var_names)]
    for mass in (50, 90):
        inside = (truth >= made.layers[f"lower_{mass}"]) & (truth <= made.layers[f"upper_{mass}"])
        assert abs(inside.mean() - mass / 100) < 0.15


def test_it_knows_more_than_chance_on_held_out_genes():
    tissue = make_tissue(n_sections=1, n_patients=1, spots_per_section=200, n_genes=60)
    model = fit(make_panel(tissue), make_reference(tissue, n_cells=400), use_network=False)
    made = model.impute(**QUICK)
    counts = dense(tissue)[:, tissue.var_names.get_indexer(made.var_names)]
    score = [np.corrcoef(np.log1p(one), other)[0, 1] for one, other in zip(counts.T, made.X.T)]
    assert np.mean(score) > 0.15


@pytest.mark.parametrize("n_sets", [2, 5, 100])
def test_genes_are_generated_in_sets(n_sets, loud):
    made, plain = loud.impute(n_sets=n_sets, **QUICK), loud.impute(**QUICK)
    assert_sound(made)
    assert not np.allclose(made.X, plain.X, atol=1e-4)


def test_genes_that_are_named_come_first(loud):
    """Those of the first set do not see the others; so they are made as if the others were not there."""
    genes = [gene for gene in loud.reference_genes if gene not in loud.measured_genes]
    seen = []
    run = loud.module.impute

    def spy(batch, *, step, **rest):
        seen.append(step)
        return run(batch, step=step, **rest)

    first = [genes[11], genes[3]]
    names = loud.impute(genes=genes, order=first, n_sets=10, **QUICK)
    loud.module.impute = spy
    try:
        loud.impute(genes=genes, order=first, n_sets=10, **QUICK)
    finally:
        del loud.module.impute
    assert torch.bincount(seen[0])[1:].tolist() == [2] * 10
    rank = _imputation.generation_order(first, genes, np.arange(20), 0)
    assert [genes[i] for i in rank[:2]] == first and sorted(rank) == list(range(20))
    plain = loud.impute(genes=genes, n_sets=10, **QUICK)
    assert not np.allclose(names.X, plain.X, atol=1e-4)


def test_genes_that_can_be_predicted_best_come_first_unless_said_otherwise(loud, monkeypatch):
    seen = []
    run = _imputation.generation_order

    def spy(*args):
        seen.append(run(*args))
        return seen[-1]

    monkeypatch.setattr(_imputation, "generation_order", spy)
    made = loud.impute(**QUICK)
    loud.impute(order="random", **QUICK)
    loud.impute(order="random", random_state=1, **QUICK)
    assert made.var["predictability"].to_numpy()[seen[0]].tolist() == sorted(made.var["predictability"])[::-1]
    assert not np.array_equal(seen[1], seen[0]) and not np.array_equal(seen[1], seen[2])


def test_a_gene_named_twice_in_the_order_counts_once(loud):
    genes = [gene for gene in loud.reference_genes if gene not in loud.measured_genes]
    rank = _imputation.generation_order([genes[3], genes[3]], genes, np.arange(20), 0)
    assert sorted(rank) == list(range(20))


def test_a_set_sees_the_sets_before_it_however_many_genes_there_are(loud, monkeypatch):
    """As `n_sets` says: also where genes do not fit into one pass."""
    genes = [gene for gene in loud.reference_genes if gene not in loud.measured_genes]
    whole = loud.impute(genes=genes, n_sets=2, **QUICK)
    monkeypatch.setattr(_imputation, "GENES_AT_ONCE", 10)
    assert_same(whole, loud.impute(genes=genes, n_sets=2, **QUICK), exact=False)


# seeds --------------------------------------------------------------------------------------------------------------


def test_noise_belongs_to_a_seed_a_gene_and_a_draw(loud):
    made = loud.impute(**QUICK)
    assert_same(made, loud.impute(**QUICK))
    other = loud.impute(random_state=1, **QUICK)
    assert not np.allclose(made.X, other.X, atol=1e-4)


def test_more_draws_leave_less_to_chance(loud):
    def apart(n):
        one, other = (loud.impute(n_samples=n, n_steps=4, random_state=s).X for s in (1, 2))
        return np.square(one - other).mean()

    assert apart(64) < 0.3 * apart(4)


def test_one_seed_gives_one_training_and_another_another(panel, reference, fitted):
    state, noise = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    same, other = fit(panel, reference), fit(panel, reference, random_state=1)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(noise, np.random.get_state()[1])  # noqa: NPY002
    weights = [model.module.state_dict() for model in (fitted, same, other)]
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    assert not torch.equal(weights[0]["pool.query"], weights[2]["pool.query"])


# odd data -----------------------------------------------------------------------------------------------------------


def constant(counts):
    counts[:, 2], counts[:, 5] = 3, 0
    return counts


def empty(counts):
    counts[[0, 17, 59]] = 0
    return counts


def lonely(counts):
    counts[:] = 0
    counts[np.arange(len(counts)), np.arange(len(counts)) % counts.shape[1]] = 1
    return counts


def alike(counts):
    counts[:] = counts[0]
    return counts


ODD = {"constant and silent genes": constant, "spots without counts": empty, "one count a spot": lonely}


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_odd_counts_are_learned_from_and_answered(name, panel, reference, loud):
    odd = with_counts(panel, ODD[name])
    assert_sound(turned_up(fit(odd, reference)).impute(**QUICK))
    assert_sound(loud.impute(odd, **QUICK))


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_spots_that_are_all_alike_are_all_answered_alike(panel, loud):
    made = loud.impute(with_counts(panel, alike), **QUICK)
    assert_sound(made)
    np.testing.assert_allclose(made.X, np.broadcast_to(made.X[0], made.shape), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_genes_that_no_cell_of_the_reference_has_are_answered(panel, reference):
    """Measured or not."""

    def silence(counts):
        counts[:, [0, 1, 2, 3]] = 0
        counts[:, [8, 9]] = 2
        return counts

    assert_sound(turned_up(fit(panel, with_counts(reference, silence))).impute(**QUICK))


@pytest.mark.parametrize("n_spots", [1, 2, 5])
def test_few_spots_are_answered(n_spots, panel, loud):
    made = loud.impute(panel[:n_spots].copy(), **QUICK)
    assert made.n_obs == n_spots
    assert_sound(made)


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_two_spots_are_enough_to_train(panel, reference):
    assert_sound(fit(panel[:2].copy(), reference).impute(**QUICK))


def test_some_spots_on_top_of_each_other_are_answered(panel, loud):
    def pile(xy):
        xy[10:20] = xy[10]
        return xy

    assert_sound(loud.impute(with_places(panel, pile), **QUICK))


def test_a_small_reference_is_enough(panel, tissue):
    made = fit(panel, make_reference(tissue, n_cells=12)).impute(**QUICK)
    assert_sound(made)


def test_logs_are_taken_as_they_are(panel, reference, silent):
    """Log-normalised by hand, on both sides, they give what counts give."""

    def logged(adata, genes, total):
        counts = dense(adata).astype(np.float64)
        size = counts[:, adata.var_names.isin(genes)].sum(axis=1, keepdims=True)
        kept = size[:, 0] > 0
        made = adata[kept].copy()
        made.X = sparse.csr_matrix(np.log1p(counts[kept] / size[kept] * total).astype(np.float32))
        return made

    totals = np.asarray(panel.X.sum(axis=1)).ravel()
    cells = dense(reference)[:, reference.var_names.isin(panel.var_names)].sum(axis=1)
    model = fit(
        logged(panel, panel.var_names, np.median(totals)),
        logged(reference, panel.var_names, np.median(cells[cells > 0])),
        setup={**SECTIONS, "expression": "log"},
        of_reference={"expression": "log"},
        use_network=False,
    )
    assert_same(model.impute(**QUICK), silent.impute(**QUICK), exact=False, atol=2e-3)


def test_counts_may_lie_in_layers(panel, reference, silent):
    def layered(adata):
        moved = adata.copy()
        moved.layers["raw"] = adata.X.copy()
        moved.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
        return moved

    model = fit(
        layered(panel),
        layered(reference),
        setup={**SECTIONS, "layer": "raw"},
        of_reference={"layer": "raw"},
        use_network=False,
    )
    assert_same(model.impute(**QUICK), silent.impute(**QUICK), exact=False)


def test_measured_genes_beyond_a_number_are_chosen_by_variety(panel, reference, monkeypatch):
    monkeypatch.setattr(_tables, "MAX_MEASURED", 12)
    model = fit(panel, reference)
    assert len(model.measured_genes) == 12
    detected = (dense(panel) > 0).mean(axis=0)
    chosen = panel.var_names.isin(model.measured_genes)
    variance = detected * (1 - detected)
    assert variance[chosen].min() >= variance[~chosen].max()
    made = model.impute(**QUICK)
    assert_sound(made)
    # those that are left out are measured all the same
    assert not set(made.var_names) & set(panel.var_names)


def test_genes_that_the_reference_lacks_are_said_and_not_used(panel, reference):
    smaller = reference[:, [i for i in range(40) if i not in (0, 2)]].copy()
    with pytest.warns(UserWarning, match=r"2 measured genes are not in the reference.*gene_001, gene_003"):
        model = fit(panel, smaller)
    assert model.measured_genes == list(panel.var_names[2:])
    # also not through spots' totals: they may hold anything
    other = poisoned(panel, panel.var_names.isin(["gene_001", "gene_003"]))
    assert_same(model.impute(panel, **QUICK), model.impute(other, **QUICK))


# the user's data ----------------------------------------------------------------------------------------------------


def test_the_users_data_keeps_all_but_the_documented_marks(panel, reference):
    mine, cells = panel.copy(), reference.copy()
    before = mine.copy(), cells.copy()
    stg.models.CausalGeD.setup_anndata(mine, **SECTIONS)
    stg.models.CausalGeD.setup_reference(cells)
    assert changed_slots(before[1], cells) == [f"uns[{MARK!r}]"]
    model = stg.models.CausalGeD(mine, cells, **TINY)
    model.train(**SHORT)
    model.impute(**QUICK)
    assert changed_slots(before[0], mine, ignore=_keys.SETUP_MARKS) == []
    assert changed_slots(before[1], cells) == [f"uns[{MARK!r}]"]
    new = panel.copy()
    model.impute(new, **QUICK)
    assert changed_slots(panel, new) == []


def test_what_is_made_is_no_view_of_the_users_data(panel, fitted):
    mine = panel.copy()
    made = fitted.impute(mine, **QUICK)
    made.obs["note"] = 1
    made.X[:] = 0
    assert changed_slots(panel, mine) == []


def test_a_view_or_a_file_is_answered_like_what_it_is_of(tmp_path, panel, fitted):
    view = panel[panel.obs[_keys.LIBRARY] == "s1"]
    made = fitted.impute(view.copy(), **QUICK)
    assert_same(fitted.impute(view, **QUICK), made)
    view.copy().write_h5ad(tmp_path / "panel.h5ad")
    backed = ad.read_h5ad(tmp_path / "panel.h5ad", backed="r")
    assert_same(fitted.impute(backed, **QUICK), made, exact=False, atol=1e-5)
    backed.file.close()


def test_statistics_are_taken_from_a_sample_by_name(panel, loud, monkeypatch):
    """All spots are answered from it, whatever their order."""
    monkeypatch.setattr(_tables, "N_SAMPLE", 70)
    other = panel[np.random.default_rng(2).permutation(panel.n_obs)].copy()
    made, same = (loud.impute(one, **QUICK) for one in (panel, other))
    assert_sound(made)
    assert_same(made, same, exact=False)
    spots, _ = loud._spots(panel, loud.measured_genes, 1000.0)
    assert len(spots.sample) == 70 and len(spots.of_sample[0]) == 70


def test_nothing_is_said_where_all_is_well(panel, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(panel, reference).impute(**QUICK)


def test_a_loaded_model_knows_its_genes_and_needs_no_reference(tmp_path, panel, loud):
    loud.save(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert all(name.endswith((".json", ".safetensors")) for name in files)
    back = stg.models.CausalGeD.load(tmp_path / "model", panel.copy(), accelerator="cpu")
    assert back.reference_genes == loud.reference_genes and back.measured_genes == loud.measured_genes
    back.train(**{**SHORT, "max_epochs": 1})
    assert_sound(back.impute(**QUICK))
    assert isinstance(back.impute(**QUICK).var, pd.DataFrame)
