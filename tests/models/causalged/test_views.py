"""What measured genes say about a gene: equal to slow references, and no gene has a part in its own prediction.

p spots, m measured genes, G genes of the reference, q cells.
"""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import nnls

from stgen.experts._weight import non_negative
from stgen.models.causalged import _sets, _views
from stgen.models.causalged._reference import summarise
from stgen.models.causalged._sets import Axes, identities, known, training_sets
from stgen.models.causalged._views import (
    NEIGHBOURHOODS,
    Hints,
    Predictor,
    Spots,
    gene_folds,
    left_out_views,
    standard_view,
)

Q, G, M, P = 150, 24, 14, 90
MEASURED = np.array([20, 3, 5, 0, 7, 11, 2, 13, 17, 23, 8, 1, 19, 10])


def make_cells(seed=0):
    """Log-normalised cells of four types, genes 4 and 5 constant, 5 at 0."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(4, size=Q)
    x = np.log1p(rng.poisson(np.exp(rng.normal(0.5, 1.0, (4, G)))[kind])).astype(np.float32)
    x[:, 4], x[:, 5] = 1.5, 0.0
    return x


def blocks_of(x, size):
    """Rows in blocks, as the reference gives them."""
    return lambda: (sparse.csr_matrix(x[i : i + size]) for i in range(0, len(x), size))


def make_reference(x=None, size=1000, **changes):
    options = {"n_metacells": 12, "n_axes": 3, "seed": 0, **changes}
    return summarise(blocks_of(make_cells() if x is None else x, size), MEASURED, **options)


def make_spots(seed=0, *, n_sample=P):
    """Measured genes of spots in two sections; the first 60 and the last 30 spots are near each other."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(P, 3)) @ rng.normal(size=(3, M))
    x = np.maximum(base + rng.normal(0, 0.5, (P, M)) + 1, 0).astype(np.float32)
    near = np.empty((P, max(NEIGHBOURHOODS)), dtype=np.int64)
    for rows in (np.arange(60), np.arange(60, P)):
        for i in rows:
            others = rng.permutation(rows[rows != i])[: max(NEIGHBOURHOODS)]
            near[i] = i
            near[i, : len(others)] = others
    return Spots(x, near, np.sort(rng.permutation(P)[:n_sample]))


@pytest.fixture(scope="module")
def reference():
    return make_reference()


@pytest.fixture(scope="module")
def spots():
    return make_spots()


def slow_correlation(x, y):
    sd = x.std() * y.std()
    return 0.0 if sd == 0 else ((x - x.mean()) * (y - y.mean())).mean() / sd


# the reference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 150, 49, 7])
def test_a_summary_equals_a_dense_one_whatever_the_blocks(size):
    x = make_cells().astype(np.float64)
    made = make_reference(size=size)
    gram = [[slow_correlation(x[:, i], x[:, j]) for j in range(G)] for i in MEASURED]
    np.testing.assert_allclose(made.gram, gram, atol=2e-5)
    np.testing.assert_allclose(made.facts[:, 0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.facts[:, 1], x.std(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(made.facts[:, 2], (x > 0).mean(0).astype(np.float32))
    whole = make_reference(size=1000)
    for part in ("gram", "metacells", "facts", "axes"):
        np.testing.assert_allclose(getattr(made, part), getattr(whole, part), atol=1e-4)


def labelled(x, monkeypatch, **changes):
    """A summary, and the metacell of every cell."""
    from stgen.models.causalged import _reference

    found = []

    class Spy(_reference.KMeans):
        def predict(self, X):
            found.append(super().predict(X))
            return found[-1]

    monkeypatch.setattr(_reference, "KMeans", Spy)
    return make_reference(x, size=40, **changes), np.concatenate(found)


def test_metacells_are_means_of_standardised_cells(monkeypatch):
    x = make_cells().astype(np.float64)
    made, label = labelled(make_cells(), monkeypatch)
    sd = np.where(x.std(0) > 1e-8, x.std(0), np.inf)
    z = (x - x.mean(0)) / sd
    mean = np.stack([z[label == k].mean(0) for k in range(label.max() + 1)])
    np.testing.assert_allclose(made.metacells, mean, atol=1e-4)
    share = np.bincount(label) / len(label)
    np.testing.assert_allclose(made.facts[:, 3], share @ mean**2, atol=1e-4)
    assert (made.facts[:, 3] <= 1 + 1e-4).all()


def test_metacells_are_looked_for_in_measured_genes_alone(monkeypatch):
    """Other genes have no part in who is alike, nor in axes."""
    x, label = make_cells(), []
    other = x.copy()
    others = np.setdiff1d(np.arange(G), MEASURED)
    other[:, others] = np.random.default_rng(3).exponential(size=(Q, len(others)))
    made = []
    for one in (x, other):
        with monkeypatch.context() as patch:
            summary, found = labelled(one, patch)
        made.append(summary)
        label.append(found)
    np.testing.assert_array_equal(*label)
    np.testing.assert_array_equal(made[0].axes, made[1].axes)
    np.testing.assert_array_equal(made[0].gram[:, MEASURED], made[1].gram[:, MEASURED])
    np.testing.assert_array_equal(made[0].metacells[:, MEASURED], made[1].metacells[:, MEASURED])


def test_axes_are_orthonormal_and_their_sign_is_settled(reference):
    np.testing.assert_allclose(reference.axes.T @ reference.axes, np.eye(3), atol=1e-5)
    assert ((reference.axes**3).sum(0) >= 0).all()
    x = reference.metacells[:, MEASURED].astype(np.float64)
    kept = reference.axes.astype(np.float64)
    best = (np.linalg.svd(x, compute_uv=False)[:3] ** 2).sum()
    assert ((kept.T @ x) ** 2).sum() == pytest.approx(best, rel=1e-4)


def test_constant_genes_are_0_everywhere(reference):
    column = MEASURED.tolist().index(5)
    assert not reference.gram[:, [4, 5]].any() and not reference.gram[column].any()
    assert not reference.metacells[:, [4, 5]].any()
    for part in ("gram", "metacells", "facts", "axes"):
        assert np.isfinite(getattr(reference, part)).all()


def test_more_axes_than_metacells_are_filled_with_0():
    made = make_reference(n_axes=20)
    assert made.axes.shape == (len(made.metacells), 20)
    np.testing.assert_allclose(made.axes[:, len(made.metacells) :], 0, atol=1e-6)
    assert np.isfinite(made.axes).all()


def test_metacells_are_a_fifth_of_the_cells_at_most():
    assert len(make_reference(n_metacells=400).metacells) <= Q // 5
    assert len(make_reference(n_metacells=5).metacells) <= 5


def test_a_seed_gives_one_summary_and_the_global_random_state_is_left_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = make_reference(seed=4), make_reference(seed=4)
    np.testing.assert_array_equal(one.metacells, other.metacells)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_zeros_that_are_stored_are_zeros():
    x = make_cells()
    stored = sparse.csr_matrix(x + 1)
    stored.data -= 1
    made = summarise(lambda: iter([stored]), MEASURED, 12, 3, 0)
    np.testing.assert_array_equal(made.facts[:, 2], (x > 0).mean(0).astype(np.float32))


# neighbourhoods -----------------------------------------------------------------------------------------------------


def test_neighbourhoods_are_means_of_a_spot_and_its_nearest():
    spots = make_spots(n_sample=50)
    x = spots.x.astype(np.float64)
    rows = np.array([7, 0, 89, 7])
    for number, k in enumerate(NEIGHBOURHOODS):
        mean = np.stack([x[[i, *spots.near[i, :k]]].mean(0) for i in range(P)])
        sample = mean[spots.sample]
        expected = (mean - sample.mean(0)) / sample.std(0)
        np.testing.assert_allclose(spots.of_sample[number], expected[spots.sample], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(spots.rows(rows)[number], expected[rows], rtol=1e-3, atol=1e-4)


def test_sparse_spots_have_the_neighbourhoods_of_dense_ones(spots):
    thin = Spots(sparse.csr_matrix(spots.x), spots.near, spots.sample)
    for one, other in zip(thin.rows(np.arange(P)), spots.rows(np.arange(P)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(thin.expression(np.array([5, 2])), spots.x[[5, 2]])


def test_spots_do_not_depend_on_which_are_asked_for_with_them(spots):
    together, alone = spots.rows(np.arange(P)), spots.rows(np.array([41]))
    for one, other in zip(together, alone):
        np.testing.assert_allclose(one[[41]], other, rtol=1e-5, atol=1e-6)
    for one, other in zip(spots.rows(spots.sample), spots.of_sample):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1.7])
def test_a_constant_gene_counts_for_nothing(value, spots):
    x = spots.x.copy()
    x[:, 2] = value
    made = Spots(x, spots.near, spots.sample)
    for one in made.rows(np.arange(P)):
        np.testing.assert_allclose(one[:, 2], 0, atol=1e-5)
        assert np.isfinite(one).all()


# views --------------------------------------------------------------------------------------------------------------

WANTED = np.array([4, 6, 9, 12])
USE = np.array([1, 2, 5, 8, 13])


KERNELS = {"steep": lambda rho: np.exp(2.0 * (rho - 1)), "correlation": lambda rho: rho}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_view_is_kernel_ridge_regression(name, reference, spots):
    """Written out: prediction z (K + 0.3)⁻¹ k(wanted), K between looked-at genes, from their correlations."""
    predictor, kernel = Predictor.make(reference, MEASURED, USE, WANTED), KERNELS[name]
    gram = reference.gram.astype(np.float64)
    own, to_wanted = np.empty((5, 5)), np.empty((5, 4))
    for i, a in enumerate(USE):
        for j, b in enumerate(USE):
            own[i, j] = kernel(gram[a, MEASURED[b]]) + 0.3 * (i == j)
        for j, b in enumerate(WANTED):
            to_wanted[i, j] = kernel(gram[a, b])
    first = list(KERNELS).index(name) * len(NEIGHBOURHOODS)
    views = list(predictor.views(spots.of_sample))
    for number in range(len(NEIGHBOURHOODS)):
        z = spots.of_sample[number][:, USE].astype(np.float64)
        expected = z @ np.linalg.inv(own) @ to_wanted
        np.testing.assert_allclose(views[first + number], expected, rtol=1e-3, atol=1e-4)


def test_the_mixture_view_is_a_mean_of_metacells(reference, spots):
    predictor = Predictor.make(reference, MEASURED, USE, WANTED)
    share = predictor.mixture(spots.of_sample[1])
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)
    assert (share >= 0).all()
    z, cells = spots.of_sample[1][3, USE], reference.metacells[:, MEASURED[USE]]
    cosine = [
        0 if not one.any() else one @ z / np.linalg.norm(one) / np.linalg.norm(z)
        for one in cells.astype(float)
    ]
    by_hand = np.exp(10 * np.array(cosine))
    np.testing.assert_allclose(share[3], by_hand / by_hand.sum(), rtol=1e-3, atol=1e-6)
    views = list(predictor.views(spots.of_sample))
    np.testing.assert_allclose(
        views[1 - len(NEIGHBOURHOODS)], share @ reference.metacells[:, WANTED], rtol=1e-4, atol=1e-5
    )


def test_a_spot_without_any_signal_is_a_mixture_of_all(reference):
    predictor = Predictor.make(reference, MEASURED, USE, WANTED)
    share = predictor.mixture(np.zeros((2, M), dtype=np.float32))
    np.testing.assert_allclose(share, 1 / len(reference.metacells), rtol=1e-5)


def test_hints_of_the_sample_are_those_of_its_rows():
    reference, spots = make_reference(), make_spots(n_sample=50)
    weight = np.linspace(0, 1, _views.N_VIEWS)
    hints = Hints(Predictor.make(reference, MEASURED, np.arange(M), WANTED), spots.of_sample, weight)
    np.testing.assert_allclose(hints.rows(spots.rows(spots.sample)), hints.of_sample, rtol=1e-4, atol=1e-4)
    views = np.stack([standard_view(one) for one in hints.predictor.views(spots.of_sample)])
    np.testing.assert_allclose(hints.of_sample, np.tensordot(weight, views, 1), rtol=1e-3, atol=1e-4)


def test_hints_of_spots_that_are_all_alike_are_0(reference):
    alike = [np.full((300, M), 0.3, dtype=np.float32)] * len(NEIGHBOURHOODS)
    predictor, weight = Predictor.make(reference, MEASURED, USE, WANTED), np.ones(_views.N_VIEWS)
    hints, axes = Hints(predictor, alike, weight), Axes(reference, predictor, alike)
    np.testing.assert_allclose(hints.of_sample, 0, atol=1e-3)
    np.testing.assert_allclose(axes.of_sample, 0, atol=1e-3)


def test_standard_views_have_mean_0_and_variance_1_or_are_0():
    rng = np.random.default_rng(0)
    views = (rng.normal(size=(3, 50, 4)) * 5 + 2).astype(np.float32)
    views[1, :, 2] = 7
    made = np.stack([standard_view(one) for one in views])
    np.testing.assert_allclose(made.mean(1), 0, atol=1e-6)
    expected = np.ones((3, 4))
    expected[1, 2] = 0
    np.testing.assert_allclose(made.std(1), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_non_negative_least_squares_on_all_genes_and_spots(seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(60, 5)).astype(np.float32)
    views = np.stack([truth * rng.normal() + rng.normal(size=truth.shape) for _ in range(8)])
    views = np.stack([standard_view(one) for one in views.astype(np.float32)])
    design, goal = views.reshape(8, -1).T.astype(np.float64), truth.ravel().astype(np.float64)
    expected = nnls(design, goal)[0]
    made = non_negative(views, truth)
    assert (made >= 0).all() and (made == 0).any()
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_views_that_say_nothing_get_no_weight():
    views, truth = np.zeros((8, 20, 3), dtype=np.float32), np.ones((20, 3), dtype=np.float32)
    np.testing.assert_array_equal(non_negative(views, truth), 0)
    copies = np.repeat(np.random.default_rng(0).normal(size=(1, 20, 3)).astype(np.float32), 8, axis=0)
    made = non_negative(copies, 0.5 * copies[0])
    assert made.sum() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("n", [3, 10, 23])
def test_folds_are_a_partition_in_about_equal_parts(n):
    folds = gene_folds(n, 1)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(n))
    assert len(folds) == min(5, n) and max(map(len, folds)) - min(map(len, folds)) <= 1
    for one, other in zip(folds, gene_folds(n, 1)):
        np.testing.assert_array_equal(one, other)


# no gene helps to predict itself ------------------------------------------------------------------------------------


def poisoned(spots, genes):
    """The same spots with noise for some genes; those of the others are the same bits."""
    x = spots.x.copy()
    x[:, genes] = np.random.default_rng(9).exponential(3, (P, len(genes))).astype(np.float32)
    return Spots(x, spots.near, spots.sample)


@pytest.mark.parametrize("fold", range(5))
def test_views_of_a_fold_do_not_depend_on_its_values(fold, reference, spots):
    folds = gene_folds(M, 0)
    other = poisoned(spots, folds[fold])
    made, same = (
        left_out_views(reference, MEASURED, one.of_sample, np.arange(M), folds) for one in (spots, other)
    )
    np.testing.assert_array_equal(made[:, :, folds[fold]], same[:, :, folds[fold]])
    elsewhere = np.setdiff1d(np.arange(M), folds[fold])
    assert not np.allclose(made[:, :, elsewhere], same[:, :, elsewhere], atol=1e-3)


@pytest.mark.parametrize("fold", range(5))
def test_the_set_of_a_fold_does_not_depend_on_the_folds_values(fold, reference, spots):
    """Hints of its targets and of its context, and residuals of its context, given weights and scale."""
    folds, weight = gene_folds(M, 0), np.full(_views.N_VIEWS, 0.2)
    scale = np.ones(6, dtype=np.float32)
    other = poisoned(spots, folds[fold])
    made, same = (
        training_sets(reference, MEASURED, one.of_sample, folds, weight, scale, 20, targets=True)[0]
        for one in (spots, other)
    )
    for name in ("identity", "is_target"):
        assert torch.equal(getattr(made, name), getattr(same, name))
    assert torch.equal(made.hint[fold], same.hint[fold])
    assert torch.equal(made.residual[fold], same.residual[fold])
    # its targets are what was poisoned; and sets of other folds see it
    assert not torch.allclose(made.target[fold], same.target[fold], atol=1e-3)
    another = (fold + 1) % 5
    assert not torch.allclose(made.hint[another], same.hint[another], atol=1e-3)


def test_targets_are_no_context_and_context_is_no_target(reference, spots):
    folds, weight = gene_folds(M, 0), np.full(_views.N_VIEWS, 0.2)
    sets, scale = training_sets(reference, MEASURED, spots.of_sample, folds, weight, None, 12, targets=True)
    batch = sets.batch(torch.arange(12))
    assert len(sets) == 12 and batch["hint"].shape == (12, M, 6) and (scale > 0).all()
    for row in range(12):
        targets = batch["is_target"][row]
        assert targets.nonzero()[:, 0].tolist() == folds[row % 5].tolist()
        assert not batch["residual"][row, targets].any() and batch["residual"][row, ~targets].any()
        assert not batch["target"][row, ~targets].any() and batch["target"][row, targets].any()
    of_targets = sets.target[sets.is_target]
    np.testing.assert_allclose(of_targets.std(0, unbiased=False), 1, rtol=1e-4)
    without, _ = training_sets(reference, MEASURED, spots.of_sample, folds, weight, scale, 12, targets=False)
    assert "target" not in without.batch(torch.arange(2))
    assert torch.equal(without.hint, sets.hint) and torch.equal(without.residual, sets.residual)


def test_what_is_known_of_measured_genes_is_left_out_and_weighed(reference, spots):
    folds = gene_folds(M, 0)
    seen = known(reference, MEASURED, spots.of_sample, folds)
    views = left_out_views(reference, MEASURED, spots.of_sample, np.arange(M), folds)
    np.testing.assert_array_equal(seen.views, views)
    np.testing.assert_array_equal(seen.weight, non_negative(views, spots.of_sample[0]))
    np.testing.assert_allclose(seen.hint, np.tensordot(seen.weight, views, 1), rtol=1e-4, atol=1e-5)


def test_unmeasured_genes_of_the_reference_have_no_part_in_hints_of_others(reference, spots):
    """A gene's hint does not depend on which other genes are wanted."""
    weight = np.full(_views.N_VIEWS, 0.2)
    both, one = (
        Hints(Predictor.make(reference, MEASURED, np.arange(M), wanted), spots.of_sample, weight).of_sample
        for wanted in (WANTED, WANTED[[2]])
    )
    np.testing.assert_allclose(both[:, [2]], one, rtol=1e-4, atol=1e-5)


# latents ------------------------------------------------------------------------------------------------------------


def make_axes(reference, spots):
    return Axes(reference, Predictor.make(reference, MEASURED, np.arange(M), WANTED), spots.of_sample)


def test_latents_are_ridge_coefficients_of_a_pattern(reference, spots):
    axes, rng = make_axes(reference, spots), np.random.default_rng(0)
    pattern = rng.normal(size=(P, 5))
    a = axes.of_sample.astype(np.float64)
    expected = np.linalg.solve(a.T @ a / P + 0.05 * np.eye(6), a.T @ pattern / P).T
    np.testing.assert_allclose(axes.latents(pattern), expected, rtol=1e-3, atol=1e-4)


def test_latents_recover_planted_coefficients_but_for_the_penalty(reference, spots, monkeypatch):
    planted = np.random.default_rng(1).normal(size=(6, 5))
    near = make_axes(reference, spots)
    shrunk = near.latents(near.of_sample @ planted).T
    assert (np.linalg.norm(shrunk, axis=0) < np.linalg.norm(planted, axis=0)).all()
    monkeypatch.setattr(_sets, "RIDGE", 1e-7)
    axes = make_axes(reference, spots)
    np.testing.assert_allclose(axes.latents(axes.of_sample @ planted).T, planted, rtol=2e-2, atol=2e-2)


def test_axes_of_the_sample_are_those_of_its_rows_with_mean_0_and_variance_1():
    reference, spots = make_reference(), make_spots(n_sample=50)
    axes = make_axes(reference, spots)
    np.testing.assert_allclose(axes.rows(spots.rows(spots.sample)), axes.of_sample, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(axes.of_sample.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(axes.of_sample.std(0), 1, rtol=1e-4)


def test_identities_are_profiles_along_axes_and_facts(reference):
    made = identities(reference, WANTED)
    assert made.shape == (4, 3 + 4) and made.dtype == np.float32
    for row, gene in enumerate(WANTED):
        profile = [float(reference.metacells[:, gene] @ axis) for axis in reference.axes.T]
        np.testing.assert_allclose(made[row, :3], profile, rtol=1e-3, atol=1e-4)
        mean, sd, detected, between = reference.facts[gene]
        facts = [np.log(mean + 1e-3), np.log(sd + 1e-3), 2 * detected - 1, 2 * between - 1]
        np.testing.assert_allclose(made[row, 3:], facts, rtol=1e-4, atol=1e-4)
