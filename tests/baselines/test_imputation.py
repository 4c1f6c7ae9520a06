"""Baselines of imputation: they equal slow references, never see wanted genes in space, and keep the order of things."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from stgen import metrics
from stgen.baselines import (
    CellTypeMean,
    CosineKNN,
    GeneKernelRidge,
    ImputationBaseline,
    MeanOfThree,
    ReferenceMean,
    RidgeInReference,
    _imputation,
    imputation_baselines,
)
from stgen.baselines._imputation import damped, standardised

EVERY = [type(baseline) for baseline in imputation_baselines()]


class Pair:
    """Spots that are mixtures of the reference's types; the last measured gene is constant."""

    def __init__(self, n_spots: int = 60, n_cells: int = 90, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        profile = rng.gamma(1.5, 1.0, (3, 12))
        self.type = np.array(["a", "b", "c"])[rng.integers(3, size=n_cells)]
        cells = profile[np.searchsorted(["a", "b", "c"], self.type)] + rng.normal(0, 0.3, (n_cells, 12))
        spots = rng.dirichlet(np.ones(3), n_spots) @ profile * 2 + rng.normal(0, 0.2, (n_spots, 12))
        cells, spots = np.maximum(cells, 0), np.maximum(spots, 0)
        self.measured, self.wanted = np.c_[cells[:, :8], np.ones(n_cells)], cells[:, 8:]
        self.spatial, self.truth = np.c_[spots[:, :8], np.ones(n_spots)], spots[:, 8:]

    def predict(self, baseline: ImputationBaseline) -> np.ndarray:
        return baseline.fit(self.spatial, self.measured, self.wanted, self.type).predict()


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


# ------------------------------------------------------------------------------------------------------- what holds


@pytest.mark.parametrize("baseline", EVERY)
def test_a_prediction_has_every_spot_and_gene_and_nothing_negative(pair, baseline):
    answer = pair.predict(baseline())
    assert answer.shape == pair.truth.shape
    assert np.isfinite(answer).all() and (answer >= 0).all()


@pytest.mark.parametrize("baseline", EVERY)
def test_order_of_spots_cells_and_genes_carries_nothing(pair, baseline):
    rng = np.random.default_rng(1)
    spots, cells = rng.permutation(len(pair.spatial)), rng.permutation(len(pair.measured))
    measured, wanted = rng.permutation(pair.measured.shape[1]), rng.permutation(pair.wanted.shape[1])
    again = baseline().fit(
        pair.spatial[spots][:, measured],
        pair.measured[cells][:, measured],
        pair.wanted[cells][:, wanted],
        pair.type[cells],
    )
    assert np.allclose(again.predict(), pair.predict(baseline())[spots][:, wanted])


@pytest.mark.parametrize("baseline", EVERY)
def test_a_wanted_gene_does_not_depend_on_other_wanted_genes(pair, baseline):
    alone = baseline().fit(pair.spatial, pair.measured, pair.wanted[:, :1], pair.type).predict()
    assert np.allclose(alone, pair.predict(baseline())[:, :1])


@pytest.mark.parametrize("baseline", EVERY)
def test_units_of_measured_genes_in_space_carry_nothing(pair, baseline):
    scaled = baseline().fit(pair.spatial * 7 + 2, pair.measured, pair.wanted, pair.type).predict()
    assert np.allclose(scaled, pair.predict(baseline()))


@pytest.mark.parametrize("baseline", EVERY)
def test_blocks_of_spots_and_sparse_input_change_nothing(pair, baseline, monkeypatch):
    whole = pair.predict(baseline())
    monkeypatch.setattr(_imputation, "BLOCK", 7 * len(pair.measured))
    sparse_values = [sparse.csr_matrix(v) for v in (pair.spatial, pair.measured, pair.wanted)]
    assert np.allclose(baseline().fit(*sparse_values, pair.type).predict(), whole)


def test_every_baseline_but_the_mean_finds_the_planted_pattern(pair):
    for baseline in imputation_baselines():
        score = metrics.pearson(pair.truth, pair.predict(baseline))
        assert np.isnan(score).all() if baseline.name == "reference mean" else np.mean(score) > 0.6


def test_names_differ_and_nulls_come_first():
    baselines = imputation_baselines()
    assert len({baseline.name for baseline in baselines}) == len(baselines)
    assert [baseline.kind for baseline in baselines] == ["null"] * 2 + ["baseline"] * 4


# -------------------------------------------------------------------------------------------------- slow references


def test_reference_mean_is_constant_over_spots(pair):
    assert np.allclose(pair.predict(ReferenceMean()), pair.wanted.mean(axis=0))


def test_cell_type_mean_is_the_mean_of_the_type_with_the_largest_cosine(pair):
    baseline = CellTypeMean()
    answer = pair.predict(baseline)
    cells, spots = standardised(pair.measured), standardised(pair.spatial)
    profile = np.stack([cells[pair.type == name].mean(axis=0) for name in "abc"])
    near = cdist(spots, profile, "cosine").argmin(axis=1)
    assert list(baseline.types_[baseline.called_]) == [list("abc")[i] for i in near]
    assert np.allclose(answer, np.stack([pair.wanted[pair.type == "abc"[i]].mean(axis=0) for i in near]))


def test_cosine_knn_is_the_mean_of_the_nearest_cells(pair):
    far = cdist(standardised(pair.spatial), standardised(pair.measured), "cosine")
    slow = np.stack([pair.wanted[np.argsort(row)[:5]].mean(axis=0) for row in far])
    assert np.allclose(pair.predict(CosineKNN(n_cells=5)), slow)
    assert np.allclose(pair.predict(CosineKNN(n_cells=10_000)), pair.wanted.mean(axis=0))


def test_ridge_in_the_reference_is_that_of_scikit_learn(pair):
    slow = Ridge(alpha=3 * pair.measured.shape[1]).fit(standardised(pair.measured), standardised(pair.wanted))
    standard = slow.predict(standardised(pair.spatial))
    answer = RidgeInReference().fit(pair.spatial, pair.measured, pair.wanted)
    assert np.allclose(answer.patterns(), pair.wanted.mean(axis=0) + pair.wanted.std(axis=0) * standard)


def test_gene_kernel_ridge_learns_over_genes(pair):
    """Each spot is a task: a linear regression from profiles over cells, samples are genes."""
    n = len(pair.measured)
    profiles = standardised(pair.measured).T / np.sqrt(n)
    slow = Ridge(alpha=0.3, fit_intercept=False, solver="svd").fit(profiles, standardised(pair.spatial).T)
    standard = slow.predict(standardised(pair.wanted).T / np.sqrt(n)).T
    answer = GeneKernelRidge().fit(pair.spatial, pair.measured, pair.wanted)
    assert np.allclose(answer.patterns(), pair.wanted.mean(axis=0) + pair.wanted.std(axis=0) * standard)


def test_gene_kernel_ridge_is_ridge_in_the_reference_with_another_penalty(pair):
    same = RidgeInReference(penalty=0.3 * len(pair.measured) / pair.measured.shape[1])
    assert np.allclose(pair.predict(same), pair.predict(GeneKernelRidge()))


def test_rbf_kernel_is_a_gaussian_of_the_distance_of_profiles(pair):
    n = len(pair.measured)
    a, b = standardised(pair.measured[:, :8]).T, standardised(pair.wanted).T
    near, there = (np.exp(-cdist(x, a, "sqeuclidean") / (2 * n)) for x in (a, b))
    slow = (there @ np.linalg.solve(near + 0.3 * np.eye(8), standardised(pair.spatial[:, :8]).T)).T
    answer = GeneKernelRidge(kernel="rbf").fit(pair.spatial[:, :8], pair.measured[:, :8], pair.wanted)
    assert np.allclose(standardised(answer.patterns()), standardised(slow))


def test_mean_of_three_averages_standardised_patterns(pair):
    members = (CosineKNN(), RidgeInReference(), GeneKernelRidge())
    z = [standardised(m.fit(pair.spatial, pair.measured, pair.wanted).patterns()) for m in members]
    standard = np.mean(z, axis=0)
    answer = MeanOfThree().fit(pair.spatial, pair.measured, pair.wanted)
    assert np.allclose(answer.patterns(), pair.wanted.mean(axis=0) + pair.wanted.std(axis=0) * standard)


def test_damping_keeps_correlation_and_what_is_not_negative():
    rng = np.random.default_rng(0)
    values = rng.normal([3, 0.5, -1, 0], [0.1, 1, 0.2, 1], (50, 4))
    values[:, 3] = -2
    answer = damped(values)
    assert np.array_equal(answer[:, 0], values[:, 0])
    assert np.corrcoef(answer[:, 1], values[:, 1])[0, 1] == pytest.approx(1)
    assert answer[:, 1].mean() == pytest.approx(values[:, 1].mean()) and answer[:, 1].min() == 0
    assert (answer[:, 2:] == 0).all()


def test_a_constant_column_is_standardised_to_zero():
    assert (standardised(np.full((9, 1), 0.1)) == 0).all()


def test_a_gene_no_cell_has_is_predicted_as_absent(pair):
    wanted = np.c_[pair.wanted, np.zeros(len(pair.wanted))]
    for baseline in imputation_baselines():
        assert (baseline.fit(pair.spatial, pair.measured, wanted, pair.type).predict()[:, -1] == 0).all()


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("baseline", EVERY)
def test_predicting_before_fitting_is_explained(baseline):
    with pytest.raises(RuntimeError, match="is not fitted; call `fit` with spots and reference first"):
        baseline().predict()


def test_shapes_that_do_not_fit_are_named(pair):
    with pytest.raises(ValueError, match="same genes in the same order; got 8 and 9 genes"):
        RidgeInReference().fit(pair.spatial[:, :8], pair.measured, pair.wanted)
    with pytest.raises(ValueError, match="same cells in the same order; got 90 and 89 cells"):
        RidgeInReference().fit(pair.spatial, pair.measured, pair.wanted[1:])
    with pytest.raises(ValueError, match=r"`reference_wanted` must be cells × wanted genes.*\(90, 0\)"):
        RidgeInReference().fit(pair.spatial, pair.measured, pair.wanted[:, :0])
    with pytest.raises(ValueError, match="needs at least 2 cells in the reference; got 1"):
        RidgeInReference().fit(pair.spatial, pair.measured[:1], pair.wanted[:1])


def test_values_that_are_not_finite_are_counted(pair):
    values = pair.spatial.copy()
    values[3, 2] = np.nan
    with pytest.raises(ValueError, match="`spatial_measured` must be finite; 1 of 60 rows"):
        CosineKNN().fit(values, pair.measured, pair.wanted)


def test_missing_cell_types_are_explained(pair):
    with pytest.raises(
        ValueError, match="'cell-type mean' needs `cell_type`, one label for each of the 90 cells"
    ):
        CellTypeMean().fit(pair.spatial, pair.measured, pair.wanted)
    with pytest.raises(ValueError, match=r"one label for each of the 90 cells; got shape \(3,\)"):
        CellTypeMean().fit(pair.spatial, pair.measured, pair.wanted, ["a", "b", "c"])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`n_cells` must be at least 1; got 0"):
        CosineKNN(n_cells=0)
    with pytest.raises(ValueError, match="`penalty` must be above 0; got -1"):
        GeneKernelRidge(penalty=-1)
    with pytest.raises(ValueError, match="`kernel` must be 'linear' or 'rbf'; got 'poly'"):
        GeneKernelRidge(kernel="poly")


# -------------------------------------------------------------------------------------------------------- real data


PUBLISHED = {
    "pair_osmfish_allen": (0.271, 0.278, 0.289, 0.304),
    "pair_merfish_hypothalamus": (0.296, 0.280, 0.283, 0.301),
    "pair_visium_hippocampus": (0.449, 0.499, 0.482, 0.505),
    "pair_pdac_a": (0.251, 0.238, 0.227, 0.258),
}
"""Mean Pearson correlation of kNN, ridge, kernel ridge and their mean as measured before this code was written."""


def log_normalised(counts: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """A spot without a measured count is divided by almost nothing, as it was then."""
    total = counts[:, measured].sum(axis=1)
    return np.log1p(counts / np.maximum(total, 1e-9)[:, None] * np.median(total))


@pytest.mark.real_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_measured_earlier_come_out_again(name):
    if "STGEN_DATA" not in os.environ:
        pytest.skip("set STGEN_DATA to the folder with the real pairs")
    import anndata

    folder = Path(os.environ["STGEN_DATA"]) / name
    spatial, reference = (anndata.read_h5ad(folder / f"{which}.h5ad") for which in ("st", "sc"))
    genes = [gene for gene in spatial.var_names if gene in set(reference.var_names)]
    spots, cells = (sparse.csr_matrix(a[:, genes].X).toarray().astype(float) for a in (spatial, reference))
    kept = np.flatnonzero(((spots > 0).mean(axis=0) > 0.01) & (cells > 0).any(axis=0))
    if len(kept) > 400:
        kept = kept[np.argsort(-np.log1p(spots[:, kept]).var(axis=0), kind="stable")[:400]]
    spots, cells = spots[:, kept], cells[:, kept]
    scores: dict[str, list[float]] = {}
    for measured, wanted in KFold(5, shuffle=True, random_state=0).split(kept):
        s, r = log_normalised(spots, measured), log_normalised(cells, measured)
        for baseline in imputation_baselines()[2:]:
            baseline.fit(s[:, measured], r[:, measured], r[:, wanted])
            scores.setdefault(baseline.name, []).extend(metrics.pearson(s[:, wanted], baseline.predict()))
    found = [np.nanmean(values) for values in scores.values()]
    assert found == pytest.approx(PUBLISHED[name], abs=0.001)
