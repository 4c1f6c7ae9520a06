"""Perturbation: nothing done, nothing said; the region is not scored; nulls are nulls; and how it says no."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stgen as stg
from stgen import _keys
from stgen.models.gest import _perturbation as parts

TINY = {
    "width": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_meta_cells": 12,
    "n_components": 8,
    "levels": (4,),
    "window_um": 120.0,
}
SENDER = {"cell_type": "immune", "labels_key": _keys.CELL_TYPE}


@pytest.fixture(scope="module")
def adata():
    adata = stg.datasets.toy_tissue(
        unit="cells", n_sections=2, spots_per_section=300, n_genes=20, histology="none", neighbour_effect=0.0
    )
    xy, first = adata.obsm[_keys.SPATIAL], (adata.obs[_keys.LIBRARY] == "s1").to_numpy()
    adata.obs["spot_of_interest"] = first & (np.linalg.norm(xy - xy[first].mean(axis=0), axis=1) < 40)
    return adata


@pytest.fixture(scope="module")
def model(adata):
    stg.models.GeST.setup_anndata(adata, library_key=_keys.LIBRARY)
    model = stg.models.GeST(adata, **TINY, random_state=0)
    model.train(max_epochs=1, batch_size=32, accelerator="cpu", random_state=0)
    return model


def ask(model, adata=None, **how):
    return model.perturb(adata, **{"region": "spot_of_interest", **how})


# --------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("null", ["tissue", "sham"])
def test_no_change_has_exactly_no_effect(model, adata, null, quantized):
    """A gene that no cell of the region expresses cannot be inhibited there."""
    without = adata.copy()
    without.X = without.X.toarray()
    without.X[adata.obs["spot_of_interest"], 0] = 0
    table = ask(model, without, mode="inhibit", genes="gene_001", null=null, quantized=quantized)
    assert (table["generated"] == 0).all()
    assert (table["effect"] == 0).all()
    assert (table["call"] == "n.s.").all()
    assert table.attrs["share_changed"] == 0


def test_a_table_has_a_row_for_each_gene_and_ring(model, adata):
    table = ask(model, **SENDER, rings_um=[0, 25, 60])
    assert list(table.columns[:4]) == ["gene", "ring", "from_um", "to_um"]
    assert len(table) == 2 * adata.n_vars
    assert table.groupby("ring")["to_um"].first().tolist() == [25, 60]
    assert set(table["call"]) <= set(parts.CALLS)
    np.testing.assert_allclose(table["effect"], table["observed"] * table["dose"])
    assert (table["generated"] != 0).any()
    assert 0 < table.attrs["share_changed"] <= 1
    assert table.attrs["n_pairs"] >= parts.MIN_PAIRS


def test_the_regions_own_cells_are_not_scored(model, adata):
    """Cells of the first ring begin outside the region, however near its cells are to each other."""
    distance = parts.distance_to(
        adata.obsm[_keys.SPATIAL],
        adata.obs[_keys.LIBRARY].cat.codes.to_numpy(),
        np.flatnonzero(adata.obs["spot_of_interest"]),
    )
    outside = ((distance < 60) & ~adata.obs["spot_of_interest"]).sum()
    table = ask(model, **SENDER)
    assert table.groupby("ring")["n_cells"].first().sum() == outside


def test_cells_of_other_sections_and_beyond_the_window_are_not_reached(model, adata):
    """Poison far away: what is generated around the region stays as it was."""
    xy, region = adata.obsm[_keys.SPATIAL], adata.obs["spot_of_interest"].to_numpy()
    first = (adata.obs[_keys.LIBRARY] == "s1").to_numpy()
    far = (parts.distance_to(xy, (~first).astype(int), np.flatnonzero(region)) > 200) | ~first
    poisoned = adata.copy()
    poisoned.X = poisoned.X.toarray()
    poisoned.X[far] = poisoned.X[far][::-1]
    profile = model.normalized()[:50].mean(axis=0)
    how = {"profile": profile, "null": "sham", "n_shams": 1}
    np.testing.assert_allclose(
        ask(model, **how)["generated"], ask(model, poisoned, **how)["generated"], atol=1e-6
    )


@pytest.mark.parametrize("null", ["tissue", "sham"])
def test_equal_seeds_give_equal_tables_and_the_global_state_stays(model, null):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (ask(model, **SENDER, null=null, random_state=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, second)
    assert not first["p"].equals(other["p"])
    np.testing.assert_array_equal(first["generated"], other["generated"])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_calls_are_held_against_a_list_beside_simple_answers(model):
    table = ask(model, **SENDER, degs={"gene_001": "High", "gene_002": "n.s.", "not there": "Low"})
    comparison = table.attrs["comparison"].set_index("method")
    assert (comparison["n_genes"] == 2).all()
    assert comparison.loc["no change", "accuracy"] == 0.5
    assert {"GeST", "copy of the region's own change", "mean shift of neighbours"} <= set(comparison.index)


def test_cells_that_look_changed_are_found_without_labels(model, adata):
    named = (adata.obs[_keys.CELL_TYPE] == "immune").to_numpy()
    profile = pd.Series(model.normalized()[named].mean(axis=0), index=model.genes)
    table = ask(model, profile=profile)
    assert table.attrs["n_pairs"] >= parts.MIN_PAIRS


# ------------------------------------------------------------------------------------------------------- its parts


def test_activation_and_inhibition_follow_their_formulas():
    x = np.random.default_rng(0).random((30, 4))
    rows, rho = np.array([3, 4]), np.array([0.0, 10.0])
    shape = np.exp(-(rho**2) / 50)
    on = parts.region_change(x, rows, rho, mode="activate", genes=np.array([1]), sigma_um=5.0).after
    off = parts.region_change(x, rows, rho, mode="inhibit", genes=np.array([1]), sigma_um=5.0).after
    np.testing.assert_allclose(on[:, 1], np.maximum(x[rows, 1], shape * x[:, 1].max()))
    np.testing.assert_allclose(off[:, 1], x[rows, 1] * (1 - shape))
    for after in (on, off):
        np.testing.assert_array_equal(np.delete(after, 1, axis=1), np.delete(x[rows], 1, axis=1))


def test_q_is_that_of_benjamini_and_hochberg_and_nan_stays():
    p = np.random.default_rng(0).random(100) ** 3
    np.testing.assert_allclose(parts.adjust(p), stats.false_discovery_control(p))
    holes = np.insert(p, 40, np.nan)
    np.testing.assert_allclose(parts.adjust(holes)[np.arange(101) != 40], stats.false_discovery_control(p))
    assert np.isnan(parts.adjust(holes)[40])
    # the definition, written slowly
    rank = np.argsort(np.argsort(p)) + 1
    slow = [
        min(1, min(p[j] * len(p) / rank[j] for j in range(len(p)) if p[j] >= p[i])) for i in range(len(p))
    ]
    np.testing.assert_allclose(parts.adjust(p), slow)


def test_p_of_a_sham_is_uniform_and_of_a_response_small():
    rng = np.random.default_rng(0)
    scale = rng.lognormal(size=(1, 3, 200))
    draws = scale * rng.standard_normal((21, 3, 200))
    p = parts.sham_test(draws[0], draws[1:])[1]
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.01
    draws[0, :, :10] += 30 * scale[0, :, :10]
    p = parts.sham_test(draws[0], draws[1:])[1]
    # 10 of 200 genes and three rings can be called, which 20 draws of each gene alone could not
    assert (parts.adjust(p)[:, :10] < 0.05).all()


def test_p_of_pairs_is_uniform_when_names_can_be_swapped():
    """Differences of any shape and spread that differ between genes, but symmetric."""
    rng = np.random.default_rng(1)
    difference = rng.standard_t(4, size=(4, 300, 250)) * rng.lognormal(size=(4, 1, 250))
    p = parts.tail(parts.sign_flip_z(difference)[0], 299)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.01


def test_z_of_pairs_is_that_of_flipped_signs():
    rng = np.random.default_rng(2)
    difference = rng.standard_normal((1, 40, 3)) + 0.2
    z, spread = parts.sign_flip_z(difference)
    flipped = np.einsum("fp,rpg->frg", rng.choice([-1, 1], (20_000, 40)), difference)
    np.testing.assert_allclose(flipped.std(axis=0), spread, rtol=0.03)
    np.testing.assert_allclose(z, difference.sum(axis=1) / spread)


def test_differences_of_pairs_equal_a_slow_sum():
    rng = np.random.default_rng(3)
    n_pairs, n_rings, n = 5, 2, 60
    answers = parts.Answers(
        rng.integers(2 * n_pairs, size=n),
        rng.integers(9, size=n),
        rng.integers(n_rings, size=n),
        np.empty((n, 1)),
    )
    weight, odd = rng.random(n), rng.standard_normal((9, 3))
    fast, square = parts.paired_differences(answers, weight, odd, n_pairs, n_rings)
    slow, of_squares = np.zeros((n_rings, n_pairs, 3)), np.zeros(n_rings)
    for k, i, r, w in zip(answers.changed, answers.cell, answers.ring, weight):
        slow[r, k % n_pairs] += (1 if k < n_pairs else -1) * w * odd[i]
        of_squares[r] += w**2 if k < n_pairs else 0
    np.testing.assert_allclose(fast, slow)
    np.testing.assert_allclose(square, of_squares)


def test_controls_are_other_cells_nearby_each_used_once():
    rng = np.random.default_rng(4)
    xy, section = rng.uniform(0, 500, (400, 2)), rng.integers(2, size=400)
    instance = rng.random(400) < 0.3
    found, control = parts.pair_up(xy, section, instance, within_um=80, max_pairs=60, rng=rng)
    assert len(found) == 60
    assert instance[found].all() and not instance[control].any()
    assert len(set(control)) == len(control) and len(set(found)) == len(found)
    assert (section[found] == section[control]).all()
    assert (np.linalg.norm(xy[found] - xy[control], axis=1) <= 80).all()


@pytest.mark.parametrize("mode", ["activate", "replace"])
def test_shams_move_the_same_amounts_to_other_genes_of_the_same_cells(mode):
    rng = np.random.default_rng(5)
    x = 5 + rng.random((20, 40))
    rows = np.arange(6)
    how = {"genes": np.array([2, 7])} if mode == "activate" else {"profile": 6 + rng.random(40)}
    change = parts.region_change(x, rows, np.zeros(6), mode=mode, **how)
    delta = change.after - change.before
    for sham in parts.shams_of(change, x.mean(axis=0), n_shams=5, rng=rng, mode=mode):
        moved = sham.after - sham.before
        np.testing.assert_allclose(np.sort(moved, axis=1), np.sort(delta, axis=1))
        assert not np.allclose(moved, delta)
        if mode == "activate":
            assert not moved[:, [2, 7]].any()


# --------------------------------------------------------------------------------------------------- how it says no


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"region": np.zeros(600, bool)}, "`region` holds no cell"),
        ({"region": np.ones(600, bool)}, "`region` holds all 600 cells"),
        ({"region": np.arange(600)}, "`region` must say True or False for each of the 600 cells"),
        ({"mode": "activate", "genes": ["gene_001", "ACTB"], "cell_type": None}, "ACTB.* not. The panel has"),
        ({"mode": "activate", "genes": [], "cell_type": None}, "`genes` names no gene"),
        ({"mode": "kill"}, "`mode` must be one of 'activate', 'inhibit', 'replace'; got 'kill'"),
        ({"null": "none"}, "`null` must be one of 'tissue', 'sham'"),
        ({"mode": "activate"}, "needs `genes`, and neither `profile` nor `cell_type`"),
        ({"cell_type": None}, "needs a `profile` or a `cell_type`"),
        ({"labels_key": None}, "`cell_type` needs `labels_key`"),
        ({"cell_type": "neuron"}, "`cell_type` must be one of obs"),
        ({"cell_type": None, "profile": np.ones(3)}, "expression of the model's 20 genes.*got shape"),
        ({"rings_um": [0, 500]}, "between 0 and 60 µm, half of the model's window"),
        ({"rings_um": [30, 10]}, "rising distances"),
        ({"sigma_um": 10.0}, "`sigma_um` belongs to"),
        ({"alpha": 2}, "`alpha` must be between 0 and 1"),
        ({"n_shams": 0}, "`n_shams` must be at least 1"),
        ({"degs": {"gene_001": "up"}}, "`degs` must say High, Low or n.s.*found up"),
        ({"degs": {"ACTB": "Low"}}, "None of the 1 genes of `degs` is in the panel"),
        ({"mode": "activate", "genes": "gene_001", "cell_type": None, "max_pairs": 5}, "Use `null='sham'`"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(model, how, message):
    with pytest.raises(ValueError, match=message):
        ask(model, **{**SENDER, **how})


def test_a_missing_column_names_what_exists(model):
    with pytest.raises(KeyError, match=r"obs\['roi'\] does not exist; obs has"):
        ask(model, **SENDER, region="roi")


def test_a_region_without_cells_around_it_is_refused(model, adata):
    lonely = (adata.obs[_keys.LIBRARY] == "s1").to_numpy()
    with pytest.raises(ValueError, match="No cell lies within 60 µm of the region"):
        ask(model, **SENDER, region=lonely)
