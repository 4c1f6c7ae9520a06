"""Baselines solved in closed form: equal to slow references, blind to what they must not see."""

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from stgen import metrics
from stgen.baselines import (
    ContrastiveRetrieval,
    CoordinateKNN,
    CountClassifier,
    DepthOracle,
    MLPOnHistology,
    NeighbourTruth,
    RidgeOnHistology,
    SectionMean,
    fit_predict,
    histology_baselines,
)

CLOSED_FORM = [SectionMean, CoordinateKNN, RidgeOnHistology, DepthOracle, NeighbourTruth]


def run(baseline, t, histology=None, counts=None):
    histology = t.histology if histology is None else histology
    counts = t.counts if counts is None else counts
    return fit_predict([baseline], histology, counts, t.xy, t.section, train=t.train, test=t.test)[
        baseline.name
    ]


def on_scale(counts, scale, target):
    return metrics.log_counts(counts) if scale == "raw" else metrics.normalize_panel(counts, target=target)


@pytest.mark.parametrize("scale", ["normalized", "raw"])
def test_section_mean_is_the_training_mean_everywhere(tissue, scale):
    target = metrics.panel_target(tissue.counts[tissue.train])
    expected = on_scale(tissue.counts[tissue.train], scale, target).mean(axis=0)
    prediction = run(SectionMean(scale=scale), tissue)
    np.testing.assert_allclose(prediction, np.tile(expected, (30, 1)))
    assert np.isnan(metrics.pearson(tissue.counts[tissue.test], prediction)).all()


def test_depth_oracle_is_the_log_of_the_true_total(tissue):
    prediction = run(DepthOracle(), tissue)
    total = tissue.counts[tissue.test].sum(axis=1)
    np.testing.assert_allclose(prediction, np.log(total)[:, None] * np.ones(8))


@pytest.mark.parametrize("scale", ["normalized", "raw"])
def test_coordinate_knn_equals_a_slow_loop_in_each_sections_frame(tissue, scale):
    t = tissue
    target = metrics.panel_target(t.counts[t.train])
    frame = t.xy.copy()
    for name in "abc":
        frame[t.section == name] -= frame[t.section == name].mean(axis=0)
    y = on_scale(t.counts, scale, target)[t.train]
    near = np.argsort(cdist(frame[t.test], frame[t.train]), axis=1)[:, :4]
    np.testing.assert_allclose(run(CoordinateKNN(n_neighbors=4, scale=scale), t), y[near].mean(axis=1))


def test_coordinate_knn_does_not_care_where_a_section_lies(tissue):
    before = run(CoordinateKNN(), tissue)
    moved = tissue.xy + np.where(tissue.section == "c", 5000.0, -300.0)[:, None]
    after = fit_predict(
        [CoordinateKNN()], None, tissue.counts, moved, tissue.section, train=tissue.train, test=tissue.test
    )["coordinate kNN"]
    np.testing.assert_allclose(before, after)
    assert run(CoordinateKNN(n_neighbors=1000), tissue).shape == (30, 8)


def test_neighbours_truth_is_the_mean_of_the_nearest_true_values(tissue):
    t = tissue
    y = metrics.normalize_panel(t.counts[t.test], target=metrics.panel_target(t.counts[t.train]))
    distance = cdist(t.xy[t.test], t.xy[t.test])
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :6]
    np.testing.assert_allclose(run(NeighbourTruth(), t), y[near].mean(axis=1))


@pytest.mark.parametrize("n_components", [256, 3])
def test_ridge_equals_leave_one_out_by_hand(tissue, n_components):
    t = tissue
    y = metrics.normalize_panel(t.counts[t.train], target=metrics.panel_target(t.counts[t.train]))
    x, new = t.histology[t.train].astype(float), t.histology[t.test].astype(float)
    x, new = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
    axes = np.linalg.svd(x, full_matrices=False)[2][:n_components].T
    x, new = x @ axes, new @ axes

    def solve(x, y, alpha):
        middle = x.mean(0)
        slope = np.linalg.solve(
            (x - middle).T @ (x - middle) + alpha * np.eye(x.shape[1]), (x - middle).T @ (y - y.mean(0))
        )
        return lambda z: (z - middle) @ slope + y.mean(0)

    alphas = [1.0, 100.0, 1e4]
    errors = []
    for alpha in alphas:
        left_out = [solve(np.delete(x, i, 0), np.delete(y, i, 0), alpha)(x[i]) - y[i] for i in range(len(x))]
        errors.append(np.square(left_out).mean())
    best = alphas[int(np.argmin(errors))]
    ridge = RidgeOnHistology(n_components=n_components, alphas=alphas)
    np.testing.assert_allclose(run(ridge, t), solve(x, y, best)(new), atol=1e-8)
    assert ridge.alpha_ == best


def test_ridge_finds_what_histology_knows_and_survives_constant_and_excess_features(tissue):
    t = tissue
    truth = metrics.normalize_panel(t.counts[t.test])
    plain = metrics.pearson(truth, run(RidgeOnHistology(), t)).mean()
    assert plain > 0.4
    noise = np.random.default_rng(0).normal(size=(90, 200)) * 1e-3
    wide = np.c_[t.histology, np.ones(90), noise]
    assert np.isfinite(run(RidgeOnHistology(), t, histology=wide)).all()


def test_one_gene_and_sparse_counts_work(tissue):
    for kind in CLOSED_FORM:
        assert run(kind(scale="raw"), tissue, counts=tissue.counts[:, :1]).shape == (30, 1)
        np.testing.assert_allclose(
            run(kind(), tissue, counts=sparse.csr_matrix(tissue.counts)), run(kind(), tissue), atol=1e-9
        )


@pytest.mark.parametrize("baseline", histology_baselines(), ids=lambda b: b.name)
def test_only_oracles_see_the_truth(tissue, baseline):
    t = tissue
    if isinstance(baseline, MLPOnHistology | CountClassifier | ContrastiveRetrieval):
        baseline.max_epochs = 3
    poisoned = t.counts.copy()
    poisoned[t.test] = np.random.default_rng(5).poisson(50, (30, 8))
    is_equal = np.array_equal(run(baseline, t), run(baseline, t, counts=poisoned))
    assert is_equal == (baseline.kind != "oracle")


def test_default_set_names_kinds_and_scales():
    table = {(b.name, b.kind, b.scale) for b in histology_baselines(scale="raw")}
    assert table == {
        ("section mean", "null", "raw"),
        ("coordinate kNN", "null", "raw"),
        ("ridge", "baseline", "raw"),
        ("MLP", "baseline", "raw"),
        ("count classifier", "baseline", "counts"),
        ("contrastive retrieval", "baseline", "raw"),
        ("depth oracle", "oracle", "raw"),
        ("neighbours' truth", "oracle", "raw"),
    }
    assert {b.kind for b in histology_baselines(histology=False)} == {"null", "oracle"}


def test_errors_say_what_was_found(tissue):
    t = tissue
    ridge = RidgeOnHistology()
    with pytest.raises(RuntimeError, match="'ridge' is not fitted"):
        ridge.predict(t.histology, t.xy, t.section)
    with pytest.raises(ValueError, match="needs histology features, spots × features; got None"):
        ridge.fit(None, t.counts, t.xy, t.section)
    with pytest.raises(ValueError, match="1 of 90 spots have NaN"):
        bad = t.histology.copy()
        bad[3] = np.nan
        ridge.fit(bad, t.counts, t.xy, t.section)
    with pytest.raises(ValueError, match=r"with 90 spots; got shape \(89, 5\)"):
        ridge.fit(t.histology[1:], t.counts, t.xy, t.section)
    with pytest.raises(ValueError, match="`counts` must be spots × genes with 90 spots"):
        ridge.fit(t.histology, t.counts[1:], t.xy, t.section)
    with pytest.raises(ValueError, match="finite coordinates, spots × 2"):
        ridge.fit(t.histology, t.counts, t.xy * np.nan, t.section)
    with pytest.raises(ValueError, match="section of each of the 90 spots"):
        ridge.fit(t.histology, t.counts, t.xy, ["a"])
    with pytest.raises(ValueError, match="at least 2 training spots; got 1"):
        ridge.fit(t.histology[:1], t.counts[:1], t.xy[:1], None)
    ridge.fit(t.histology, t.counts, t.xy, t.section)
    with pytest.raises(ValueError, match="fitted on 5 histology features; got 4"):
        ridge.predict(t.histology[:, 1:], t.xy, t.section)
    with pytest.raises(ValueError, match="is an oracle and needs the true `counts`"):
        DepthOracle().fit(None, t.counts, t.xy, None).predict(None, t.xy, None)
    with pytest.raises(ValueError, match="'normalized', 'raw'; got 'log'"):
        SectionMean(scale="log")
    with pytest.raises(ValueError, match="'normalized' or 'raw'; got 'log'"):
        histology_baselines(scale="log")
