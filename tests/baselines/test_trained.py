"""Baselines that are trained: they learn, they agree with themselves, they leave the world as it was."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from stgen import metrics
from stgen.baselines import CountClassifier, MLPOnHistology, fit_predict
from stgen.baselines._mlp import smooth_basis, token_edges, token_values
from stgen.baselines._networks import soft_labels, validation_folds

SMALL = {"max_epochs": 4}


def run(baseline, t):
    names = fit_predict([baseline], t.histology, t.counts, t.xy, t.section, train=t.train, test=t.test)
    return names[baseline.name]


@pytest.mark.parametrize(
    "baseline",
    [
        MLPOnHistology(learning_rate=3e-3, max_epochs=60),
        MLPOnHistology(scale="raw", learning_rate=3e-3, max_epochs=60),
        CountClassifier(width=32, n_blocks=1, learning_rate=1e-2, dropout=0.1, max_epochs=30),
    ],
    ids=lambda b: f"{b.name} {b.scale}",
)
def test_trained_baseline_learns_what_histology_knows(tissue, baseline):
    counts = tissue.counts[tissue.test]
    truth = (
        counts
        if baseline.scale == "counts"
        else baseline.fit(
            tissue.histology[tissue.train], tissue.counts[tissue.train], tissue.xy[tissue.train], None
        ).on_scale(counts)
    )
    prediction = run(baseline, tissue)
    assert prediction.shape == counts.shape
    assert metrics.pearson(truth, prediction).mean() > 0.4
    if baseline.scale == "counts":
        assert prediction.min() >= 0
        assert prediction.mean() == pytest.approx(counts.mean(), rel=0.3)


@pytest.mark.parametrize("kind", [MLPOnHistology, CountClassifier])
def test_seed_decides_and_global_state_is_left_as_found(tissue, kind):
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    first = run(kind(random_state=1, **SMALL), tissue)
    torch.rand(3)
    np.testing.assert_array_equal(first, run(kind(random_state=1, **SMALL), tissue))
    assert (first != run(kind(random_state=2, **SMALL), tissue)).any()
    torch.set_rng_state(torch_state)
    run(kind(**SMALL), tissue)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("kind", [MLPOnHistology, CountClassifier])
def test_prediction_does_not_depend_on_its_batch(tissue, kind):
    t = tissue
    baseline = kind(**SMALL).fit(t.histology, t.counts, t.xy, t.section)
    whole = baseline.predict(t.histology, t.xy, t.section)
    single = baseline.predict(t.histology[7:8], t.xy[7:8], t.section[7:8])
    np.testing.assert_allclose(single[0], whole[7], rtol=1e-5)


def test_whole_sections_are_held_out_where_there_are_two():
    section = np.repeat(["a", "b", "c", "d", "e"], 4)
    folds = list(validation_folds(section, 0))
    assert len(folds) == 3
    assert sorted(np.concatenate(folds)) == list(range(20))
    for fold in folds:
        assert not set(section[fold]) & set(np.delete(section, fold))
    (fold,) = validation_folds(section[:4], 0)
    assert len(fold) == 1


def test_tokens_are_counts_at_first_and_ranges_later():
    edges = token_edges(1000, 24)
    assert edges[:17].tolist() == list(range(17))
    assert edges[-1] == 1001 and len(edges) <= 25
    assert (np.diff(edges) > 0).all()
    assert token_edges(3, 24).tolist() == [0, 1, 2, 3, 4]
    assert token_edges(0, 24).tolist() == [0, 1]
    values = token_values(np.array([[0.0, 1, 1], [5, 7, 0]]), np.array([0, 1, 2, 5, 9]))
    np.testing.assert_allclose(values, [0, 1, 3, 6])


def test_soft_labels_have_mass_one_and_keep_the_count():
    counts = torch.tensor([0.0, 1, 3, 10, 40])
    edges = torch.arange(0.0, 62)
    mass = soft_labels(counts, edges)
    torch.testing.assert_close(mass.sum(-1), torch.ones(5))
    torch.testing.assert_close(mass @ torch.arange(61.0), counts, atol=0.1, rtol=0)
    assert mass[0, 0] > 0.999
    coarse = torch.tensor([0.0, 2, 12])  # counts 0–1 and 2–11; larger ones fall in the last
    torch.testing.assert_close(soft_labels(counts, coarse).sum(-1), torch.ones(5))
    assert soft_labels(counts, coarse)[4, 1] > 0.999


def test_smooth_basis_is_orthogonal():
    basis = smooth_basis(np.arange(12.0), 3)
    np.testing.assert_allclose(basis @ basis.T / 12, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(basis.sum(axis=1), 0, atol=1e-9)
    assert smooth_basis(np.arange(2.0), 3).shape == (1, 2)


def test_panel_of_empty_or_constant_genes_trains():
    rng = np.random.default_rng(0)
    counts = np.zeros((20, 3))
    counts[:, 0] = 4
    for kind in (MLPOnHistology, CountClassifier):
        baseline = kind(**SMALL).fit(rng.normal(size=(20, 2)), counts, rng.random((20, 2)), None)
        assert np.isfinite(baseline.predict(rng.normal(size=(5, 2)), rng.random((5, 2)), None)).all()


def test_importing_baselines_does_not_import_torch():
    code = "import sys, stgen.baselines; print([m for m in ('torch', 'sklearn', 'scvi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
