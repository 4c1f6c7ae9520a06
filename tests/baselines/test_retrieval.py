"""Contrastive retrieval: it finds profiles by image, answers with measured ones, and sees no test row."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stgen import metrics
from stgen.baselines import ContrastiveRetrieval, SectionMean, fit_predict
from stgen.baselines import _contrastive as contrastive
from stgen.baselines._contrastive import Library, Pairs, TwoEncoders, targets
from stgen.baselines._retrieval import score


@pytest.fixture(scope="module")
def planted() -> SimpleNamespace:
    """Four kinds of spots: the image shows the kind, and each kind has genes of its own."""
    rng = np.random.default_rng(0)
    n, n_genes = 240, 12
    kind = rng.integers(4, size=n)
    histology = rng.normal(size=(4, 10))[kind] + 0.5 * rng.normal(size=(n, 10))
    rate = np.exp(rng.normal(1.5, 0.8, size=(4, n_genes)))
    section = np.repeat(["a", "b", "c"], n // 3)
    return SimpleNamespace(
        histology=histology.astype(np.float32),
        counts=rng.poisson(rate[kind]).astype(float),
        xy=rng.uniform(0, 1000, (n, 2)),
        section=section,
        train=section != "c",
        test=section == "c",
    )


def run(t, baseline, **changes):
    t = SimpleNamespace(**{**vars(t), **changes})
    names = fit_predict([baseline], t.histology, t.counts, t.xy, t.section, train=t.train, test=t.test)
    return names[baseline.name]


def quick(**changes):
    return ContrastiveRetrieval(**{"max_epochs": 9, **changes})


@pytest.mark.parametrize("scale", ["normalized", "raw"])
@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_it_finds_planted_profiles(planted, scale, softness):
    baseline = ContrastiveRetrieval(scale=scale, softness=softness)
    prediction = run(planted, baseline)
    truth = baseline.on_scale(planted.counts[planted.test])
    mean = run(planted, SectionMean(scale=scale))
    assert metrics.pearson(truth, prediction).mean() > 0.5
    assert np.square(truth - prediction).mean() < 0.8 * np.square(truth - mean).mean()


def test_counts_of_test_rows_change_nothing(planted):
    poisoned = planted.counts.copy()
    poisoned[planted.test] = np.random.default_rng(5).poisson(50, poisoned[planted.test].shape)
    np.testing.assert_array_equal(run(planted, quick()), run(planted, quick(), counts=poisoned))


def test_histology_of_other_test_rows_changes_nothing(planted):
    t = planted
    baseline = quick().fit(t.histology[t.train], t.counts[t.train], t.xy[t.train], t.section[t.train])
    whole = baseline.predict(t.histology[t.test], t.xy[t.test], t.section[t.test])
    one = baseline.predict(t.histology[t.test][3:4], t.xy[t.test][3:4], t.section[t.test][3:4])
    np.testing.assert_allclose(one[0], whole[3], rtol=1e-4)


def test_seed_decides_and_global_state_is_left_as_found(planted):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = run(planted, quick(random_state=1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.rand(3)
    np.testing.assert_array_equal(first, run(planted, quick(random_state=1)))
    assert (first != run(planted, quick(random_state=2))).any()


def test_order_of_genes_matters_no_more_than_the_seed(planted):
    order = np.random.default_rng(1).permutation(12)
    plain = run(planted, ContrastiveRetrieval())
    moved = run(planted, ContrastiveRetrieval(), counts=planted.counts[:, order])
    other_seed = run(planted, ContrastiveRetrieval(random_state=3))
    gap = np.abs(moved - plain[:, order]).mean()
    assert gap < 2 * np.abs(other_seed - plain).mean()
    assert metrics.pearson(moved, plain[:, order]).min() > 0.9


def test_answers_lie_among_measured_values_and_a_constant_gene_stays_constant(planted):
    counts = planted.counts.copy()
    counts[:, 4] = 3
    prediction = run(planted, quick(scale="raw"), counts=counts)
    seen = np.log1p(counts[planted.train])
    np.testing.assert_allclose(prediction[:, 4], np.log(4), rtol=1e-6)
    assert (prediction >= seen.min(axis=0) - 1e-5).all() and (prediction <= seen.max(axis=0) + 1e-5).all()


@pytest.mark.parametrize("n_neighbors", [1, 7, 10_000])
def test_weighted_mean_equals_a_slow_loop_in_any_number_of_parts(planted, n_neighbors, monkeypatch):
    y = np.log1p(planted.counts[:60])
    pairs = Pairs(planted.histology[:60], y)
    library = Library(TwoEncoders(10, 12, 8, 16, 0.5), pairs)
    asked = planted.histology[60:75]
    with torch.no_grad():
        x = torch.from_numpy(
            (asked - planted.histology[:60].mean(axis=0)) / planted.histology[:60].std(axis=0)
        )
        near = (library.image(x) @ library.keys_ND.T).numpy()
    slow = np.empty((15, 12))
    for i, similarity in enumerate(near):
        best = np.argsort(-similarity)[:n_neighbors]
        weight = np.exp(similarity[best] / 0.2)
        slow[i] = weight @ y[best] / weight.sum()
    np.testing.assert_allclose(library.answers(asked, n_neighbors, [0.2])[0], slow, atol=1e-4)
    monkeypatch.setattr(contrastive, "MAX_NUMBERS", 100)
    np.testing.assert_allclose(library.answers(asked, n_neighbors, [0.6, 0.2])[1], slow, atol=1e-4)


@pytest.mark.parametrize("n_spots", [2, 3, 7])
def test_few_spots_and_degenerate_columns_give_finite_answers(n_spots):
    rng = np.random.default_rng(0)
    histology = np.c_[rng.normal(size=(n_spots, 3)), np.ones(n_spots)]
    counts = np.c_[rng.poisson(5, (n_spots, 2)), np.zeros(n_spots)]
    for section in (None, ["a"] + ["b"] * (n_spots - 1)):
        baseline = quick().fit(histology, counts, rng.random((n_spots, 2)), section)
        answer = baseline.predict(rng.normal(size=(4, 4)), rng.random((4, 2)), None)
        assert answer.shape == (4, 3) and np.isfinite(answer).all()


def test_steps_are_bounded_when_spots_are_many(planted):
    baseline = ContrastiveRetrieval(max_steps=4)
    run(planted, baseline)
    assert baseline.choice_.n_epochs <= 2  # 160 spots: two batches an epoch
    assert run(planted, ContrastiveRetrieval(max_epochs=1, max_steps=1)).shape == (80, 12)


def test_targets_are_shares_and_like_spots_get_more():
    profile = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 0, 1]])
    torch.testing.assert_close(targets(profile, 0.0), torch.eye(3))
    soft = targets(profile, 1.0)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(3))
    assert soft[0, 1] > 10 * soft[0, 2]
    torch.testing.assert_close(targets(profile, 0.5), (torch.eye(3) + soft) / 2)


def test_score_is_within_sections_and_counts_undefined_as_0():
    truth = np.array([[0.0, 1], [1, 1], [10, 1], [11, 1]])
    section = np.array(["a", "a", "b", "b"])
    assert score(truth, truth, section) == pytest.approx(0.5)
    slide_means = np.repeat([[0.0, 0], [10, 0]], 2, axis=0)
    assert score(truth, slide_means, section) == 0
    assert score(truth[:1], truth[:1], section[:1]) == 0


def test_a_fitted_baseline_can_be_copied(planted):
    baseline = quick()
    expected = run(planted, baseline)
    t = planted
    again = copy.deepcopy(baseline).predict(t.histology[t.test], t.xy[t.test], t.section[t.test])
    np.testing.assert_array_equal(again, expected)


def test_errors_say_what_was_found(planted):
    with pytest.raises(ValueError, match="`n_neighbors` must be at least 1; got 0"):
        ContrastiveRetrieval(n_neighbors=0)
    with pytest.raises(ValueError, match="`softness` must be between 0 and 1; got 2"):
        ContrastiveRetrieval(softness=2)
    with pytest.raises(ValueError, match="`temperature` must be above 0; got 0"):
        ContrastiveRetrieval(temperature=0)
    with pytest.raises(ValueError, match="`max_epochs` and `max_steps` must be at least 1; got 30 and 0"):
        ContrastiveRetrieval(max_steps=0)
    with pytest.raises(RuntimeError, match="'contrastive retrieval' is not fitted"):
        ContrastiveRetrieval().predict(planted.histology, planted.xy, None)
    with pytest.raises(ValueError, match="'contrastive retrieval' needs histology features"):
        ContrastiveRetrieval().fit(None, planted.counts, planted.xy, None)
