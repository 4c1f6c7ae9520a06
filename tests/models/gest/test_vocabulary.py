"""GeST's cell vocabulary against slow references: components, words, profiles, and what they lose."""

import math
import warnings

import numpy as np
import pytest
import torch

from stgen.models.gest import _vocabulary as vocabulary_module
from stgen.models.gest._vocabulary import (
    Vocabulary,
    default_n_meta_cells,
    fit_vocabulary,
)
from stgen.nn import _kmeans as kmeans_module
from stgen.nn._kmeans import _filled, _lloyd, kmeans, nearest_centre, spread_rows

T = 12


def cells(n=400, n_genes=T, *, n_types=8, noise=0.3, seed=0):
    """Log-normalised expression of cells of a few types."""
    generator = torch.Generator().manual_seed(seed)
    types = 3 * torch.rand(n_types, n_genes, generator=generator)
    of = torch.randint(n_types, (n,), generator=generator)
    return torch.relu(types[of] + noise * torch.randn(n, n_genes, generator=generator))


def fit(x, *, chunk=64, seed=0, **options):
    return fit_vocabulary(lambda: x.split(chunk), seed=seed, **options)


def brute_force(vocabulary, x):
    """Nearest centre of one cell at a time."""
    pcs = (x - vocabulary.mean).double() @ vocabulary.components.double().T
    return torch.stack([(vocabulary.centres.double() - cell).square().sum(1).argmin() for cell in pcs])


def same(one, other, **tolerance):
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **tolerance)


# principal components --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widest", [1000, 5], ids=["covariance", "randomised"])
@pytest.mark.parametrize("shape", [(300, 40), (30, 40), (300, 8)], ids=str)
def test_components_are_those_of_a_singular_value_decomposition(monkeypatch, widest, shape):
    monkeypatch.setattr(vocabulary_module, "_WIDEST_COVARIANCE", widest)
    x = cells(*shape, noise=0.05)
    vocabulary = fit(x, n_components=6, n_meta_cells=8)
    torch.testing.assert_close(vocabulary.mean, x.mean(0))
    components = vocabulary.components
    torch.testing.assert_close(components @ components.T, torch.eye(6), atol=1e-5, rtol=0)
    axes = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False).Vh[:6].float()
    overlap = (components * axes).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(vocabulary.pcs(x), (x - x.mean(0)) @ components.T, atol=1e-5, rtol=1e-5)


def test_there_are_no_more_components_than_genes_or_cells():
    assert fit(cells(100)).sizes()["n_components"] == T
    assert fit(cells(9)).sizes()["n_components"] == 9


def test_components_of_a_wide_table_come_from_its_sample(monkeypatch):
    """Rows that the sample leaves out decide nothing but the mean."""
    monkeypatch.setattr(vocabulary_module, "_WIDEST_COVARIANCE", 5)
    x = cells(500)
    sampled, all_rows = (fit(x, max_rows=rows, n_components=4, n_meta_cells=8) for rows in (250, 500))
    torch.testing.assert_close(sampled.mean, all_rows.mean)
    assert ((sampled.components * all_rows.components).sum(1) > 0.9).all()


# words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_cell_gets_its_nearest_meta_cell(seed):
    x = cells(seed=seed)
    vocabulary = fit(x, n_meta_cells=30, n_components=5)
    assert torch.equal(vocabulary.assign(x), brute_force(vocabulary, x))
    new = cells(seed=seed + 10)
    assert torch.equal(vocabulary.assign(new), brute_force(vocabulary, new))


def test_a_word_does_not_depend_on_the_batch(monkeypatch):
    x = cells(n=300, noise=1)
    vocabulary = fit(x, n_meta_cells=40)
    together = vocabulary.assign(x)
    assert torch.equal(together, torch.cat([vocabulary.assign(row) for row in x.split(1)]))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(together[order], vocabulary.assign(x[order]))
    monkeypatch.setattr(kmeans_module, "_SLICE", 1)
    assert torch.equal(together, vocabulary.assign(x))


def test_no_cells_get_no_words():
    assert fit(cells(50)).assign(torch.zeros(0, T)).shape == (0,)


@pytest.mark.parametrize(
    "options", [{}, {"max_rows": 100}, {"n_meta_cells": 60}, {"n_components": 2}], ids=str
)
def test_profiles_are_means_of_members_and_nobody_is_left_out(options):
    x = cells(noise=1)
    vocabulary = fit(x, **options)
    label = vocabulary.assign(x)
    assert torch.equal(vocabulary.size, label.bincount(minlength=len(vocabulary.size)))
    assert vocabulary.size.min() > 0 and vocabulary.size.sum() == len(x)
    means = torch.stack([x[label == k].mean(0) for k in range(len(vocabulary.size))])
    torch.testing.assert_close(vocabulary.profiles, means, atol=1e-5, rtol=1e-5)


def test_centres_are_components_of_profiles():
    """Where all cells were seen, up to the gain at which k-means stops."""
    vocabulary = fit(cells(noise=0.1), n_meta_cells=8)
    torch.testing.assert_close(vocabulary.centres, vocabulary.pcs(vocabulary.profiles), atol=1e-4, rtol=0)


def test_the_default_is_one_for_fifty_cells_within_bounds():
    expected = {10: 16, 1000: 20, 5000: 100, 10**6: 512}
    assert {n: default_n_meta_cells(n) for n in expected} == expected
    assert len(fit(cells(1000, noise=1)).size) == 20


# k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_types_that_lie_apart_become_the_meta_cells(seed):
    x = cells(n=600, n_types=20, noise=0.02)
    vocabulary = fit(x, n_meta_cells=20, seed=seed)
    assert vocabulary.quantization(lambda: [x])["r2"] > 0.999


def naive_kmeans(points, k, *, seed):
    """Lloyd from random points, without seeding, slices or repair."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:k]]
    for _ in range(50):
        label = torch.cdist(points, centres).argmin(1)
        found = [points[label == i] for i in range(k)]
        centres = torch.stack([m.mean(0) if len(m) else centres[i] for i, m in enumerate(found)])
    return torch.cdist(points, centres).min(1).values.square().sum()


@pytest.mark.parametrize("k", [5, 25])
def test_clusters_are_as_tight_as_the_best_of_ten_naive_runs(k):
    points = cells(n=500, noise=0.8).double()
    found = kmeans(points, k, torch.Generator().manual_seed(0))
    assert found.inertia <= 1.01 * min(naive_kmeans(points, k, seed=seed) for seed in range(10))


@pytest.mark.parametrize("n_lost", [1, 5, 9])
def test_a_centre_without_cells_moves_to_where_it_helps(n_lost):
    points = cells(n=200, noise=0.5).double()
    centres = points[:10].clone()
    centres[:n_lost] = 1e3 + torch.arange(n_lost)[:, None]
    filled, found = _filled(points, centres)
    assert found.label.bincount(minlength=10).min() > 0
    assert torch.equal(found.label, nearest_centre(points, filled).label)
    assert found.distance.sum() < nearest_centre(points, centres).distance.sum()
    assert torch.equal(filled[n_lost:], centres[n_lost:])


def test_moving_a_centre_never_takes_the_only_cell_of_another():
    points = torch.tensor([[0.0], [0.1], [50.0], [9.0]]).double()
    centres = torch.tensor([[0.05], [40.0], [9.0], [1e6]]).double()  # the second is far from its only cell
    filled, found = _filled(points, centres)
    assert found.label.bincount(minlength=4).tolist() == [1, 1, 1, 1]
    assert torch.equal(filled[1], centres[1])


def test_a_cluster_that_loses_its_cells_on_the_way_gets_others():
    points = torch.tensor([[1, 10], [4, 4], [2, 2], [2, 11], [6, 4], [10, 5], [5, 2], [10, 1]]).double()
    centres = torch.tensor([[4, 10], [11, 1], [0, 9], [4, 9]]).double()
    first = nearest_centre(points, centres).label
    means = torch.stack([points[first == k].mean(0) for k in range(4)])
    assert nearest_centre(points, means).label.bincount(minlength=4).min() == 0, (
        "the case needs a cluster that empties"
    )
    assert _lloyd(points, centres).label.bincount(minlength=4).min() > 0


def test_centres_that_no_cell_is_near_are_no_words(monkeypatch):
    def with_a_stray(points, k, generator):
        found = kmeans(points, k, generator)
        return found._replace(centres=torch.cat([torch.full_like(found.centres[:1], 1e3), found.centres]))

    x = cells(noise=1)
    expected = fit(x, n_meta_cells=20, levels=())
    monkeypatch.setattr(vocabulary_module, "kmeans", with_a_stray)
    same(fit(x, n_meta_cells=20, levels=()), expected, atol=1e-6, rtol=1e-6)


def test_rows_of_the_sample_are_spread():
    for n, m in [(1000, 1000), (1000, 37), (5, 1), (10**10, 1000)]:
        rows = spread_rows(n, m, torch.Generator().manual_seed(0))
        edge = torch.arange(m + 1) * n // m
        assert ((edge[:-1] <= rows) & (rows < edge[1:])).all()


@pytest.mark.parametrize("max_rows", [200, 100])
def test_a_sample_loses_little(max_rows):
    x = cells(n=3000, noise=0.5)
    whole = fit(x, n_meta_cells=20).quantization(lambda: [x])["r2"]
    part = fit(x, n_meta_cells=20, max_rows=max_rows).quantization(lambda: [x])["r2"]
    assert part > whole - 0.03


# seeds and chunks ------------------------------------------------------------------------------------------------


def test_one_seed_one_vocabulary_whatever_the_global_random_state():
    x = cells(noise=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        one = fit(x, max_rows=200, seed=3)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(2)
        same(one, fit(x, max_rows=200, seed=3), atol=0, rtol=0)
    assert not torch.equal(one.centres, fit(x, max_rows=200, seed=4).centres)


@pytest.mark.parametrize("widest", [1000, 5], ids=["covariance", "randomised"])
@pytest.mark.parametrize("max_rows", [1000, 150])
def test_the_size_of_batches_does_not_matter(monkeypatch, widest, max_rows):
    monkeypatch.setattr(vocabulary_module, "_WIDEST_COVARIANCE", widest)
    x = cells(n=300, noise=1)
    one, *others = (fit(x, chunk=chunk, max_rows=max_rows, n_components=5) for chunk in (300, 7, 64))
    for other in others:
        same(one, other, atol=1e-5, rtol=1e-5)


def test_empty_batches_do_not_matter():
    x = cells(60)
    with_gaps = fit_vocabulary(lambda: [x[:0], x[:30], x[:0], x[30:], x[:0]], seed=0)
    same(with_gaps, fit(x), atol=1e-5, rtol=1e-5)


# coarser words ---------------------------------------------------------------------------------------------------


def test_coarser_clusters_have_as_many_members_as_asked_for():
    vocabulary = fit(cells(n=2000, n_types=40), n_meta_cells=40)
    assert vocabulary.coarse.shape == (3, 40)
    assert vocabulary.level_sizes == [15, 10, 5]
    for labels, level in zip(vocabulary.coarse, (15, 10, 5), strict=True):
        assert labels.unique().tolist() == list(range(level))


def test_a_level_has_no_more_clusters_than_there_are_meta_cells():
    vocabulary = fit(cells(), n_meta_cells=7, levels=(15, 3))
    assert vocabulary.level_sizes == [7, 3]
    assert fit(cells(), n_meta_cells=7, levels=()).coarse.shape == (0, 7)


def test_coarser_clusters_join_what_is_near():
    types = torch.tensor([0.0, 10.0, 20.0])[:, None] + torch.tensor([0.0, 1.0, 2.0])
    x = types.reshape(-1, 1).repeat_interleave(20, 0) * torch.ones(T)
    vocabulary = fit(x, n_meta_cells=9, levels=(3,))
    block = (vocabulary.profiles[:, 0] / 10).floor()
    assert len({(int(label), int(of)) for label, of in zip(vocabulary.coarse[0], block, strict=True)}) == 3


# odd tables ------------------------------------------------------------------------------------------------------


def test_there_are_never_more_meta_cells_than_distinct_cells():
    x = cells(6).repeat(50, 1)
    vocabulary = fit(x)
    assert len(vocabulary.size) == 6 and (vocabulary.size == 50).all()
    assert vocabulary.quantization(lambda: [x])["rmse"] < 1e-5
    with pytest.warns(UserWarning, match=r"Asked for 10 meta cells, but only 6 cells of the sample differ"):
        assert len(fit(x, n_meta_cells=10).size) == 6


@pytest.mark.parametrize("n", [1, 2, 5, 15])
def test_fewer_cells_than_meta_cells_are_all_words(n):
    x = cells(n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary = fit(x)
    assert sorted(vocabulary.assign(x).tolist()) == list(range(n))
    torch.testing.assert_close(vocabulary.profiles[vocabulary.assign(x)], x)


def test_distinct_cells_among_many_twins_are_found():
    """Seeding looks at some of the cells, and at all of them where those are too much alike."""
    x = torch.cat([cells(1).repeat(3000, 1), cells(3, seed=1)])
    assert len(fit(x, n_meta_cells=4).size) == 4


def test_constant_genes_are_harmless():
    x = torch.cat([cells(), torch.full((400, 1), 1.7), torch.zeros(400, 1)], dim=1)
    vocabulary = fit(x, n_meta_cells=10)
    assert (vocabulary.components[: T - 1, T:].abs() < 1e-6).all()
    torch.testing.assert_close(vocabulary.profiles[:, T:], torch.tensor([1.7, 0.0]).expand(10, 2))
    report = vocabulary.quantization(lambda: x.split(50))
    assert report["r2_per_gene"].isnan().tolist() == [False] * T + [True, True]
    assert math.isfinite(report["r2"])


def test_cells_that_are_all_alike_are_one_word():
    vocabulary = fit(torch.ones(100, T))
    assert vocabulary.size.tolist() == [100] and vocabulary.level_sizes == [1, 1, 1]
    assert math.isnan(vocabulary.quantization(lambda: [torch.ones(5, T)])["r2"])


# what is lost ----------------------------------------------------------------------------------------------------


def test_the_report_equals_a_direct_computation():
    vocabulary, new = fit(cells(noise=1), n_meta_cells=25), cells(n=130, noise=1, seed=5)
    report = vocabulary.quantization(lambda: new.split(17))
    lost = (new - vocabulary.profiles[vocabulary.assign(new)]).double().square()
    total = (new - new.mean(0)).double().square()
    assert report["r2"] == pytest.approx(1 - (lost.sum() / total.sum()).item())
    assert report["rmse"] == pytest.approx(lost.mean().sqrt().item())
    torch.testing.assert_close(report["r2_per_gene"], 1 - lost.sum(0) / total.sum(0))
    assert torch.equal(report["used"], vocabulary.assign(new).bincount(minlength=25))


def test_more_meta_cells_keep_more():
    x = cells(n=1000, noise=0.8)
    r2 = [fit(x, n_meta_cells=k).quantization(lambda: [x])["r2"] for k in (1, 4, 16, 64, 256)]
    assert r2[0] == pytest.approx(0, abs=1e-6) and np.all(np.diff(r2) > 0)


# keeping ---------------------------------------------------------------------------------------------------------


def test_sizes_and_weights_bring_it_back(tmp_path):
    x = cells(noise=1)
    vocabulary = fit(x, n_meta_cells=21)
    assert vocabulary.sizes() == {"n_genes": T, "n_meta_cells": 21, "n_components": T, "n_levels": 3}
    torch.save(vocabulary.state_dict(), tmp_path / "v.pt")
    back = Vocabulary(**vocabulary.sizes())
    back.load_state_dict(torch.load(tmp_path / "v.pt", weights_only=True))
    same(vocabulary, back, atol=0, rtol=0)
    assert torch.equal(vocabulary.assign(x), back.assign(x))
    assert set(back.state_dict()) == {"mean", "components", "centres", "profiles", "size", "coarse"}
    assert not list(back.parameters())


def test_fitting_in_place_is_fitting():
    x = cells(noise=1)
    own = Vocabulary(T, 3, 2, 3)
    assert own.fit(lambda: x.split(64), n_meta_cells=21, seed=0) is own
    same(own, fit(x, n_meta_cells=21), atol=0, rtol=0)


# errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_meta_cells": 0}, r"`n_meta_cells` must be at least 1; got 0"),
        ({"n_components": 0}, r"`n_components` must be at least 1; got 0"),
        ({"levels": (5, 0)}, r"`levels\[1\]` must be at least 1; got 0"),
        ({"n_meta_cells": 50, "max_rows": 20}, r"`n_meta_cells` \(50\) must not exceed `max_rows` \(20\)"),
    ],
)
def test_impossible_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(cells(), **options)


def test_an_iterator_that_is_used_up_is_named():
    used = iter(cells().split(64))
    with pytest.raises(ValueError, match=r"cells each time they are asked for; found none\. Pass a function"):
        fit_vocabulary(lambda: used, seed=0)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_values_that_are_not_numbers_are_named(strange):
    x = cells()
    x[3, 2] = strange
    with pytest.raises(ValueError, match=r"Expected finite log-normalised expression; found NaN or infinity"):
        fit(x)


def test_other_genes_are_named():
    with pytest.raises(ValueError, match=r"batches of cells × 12 genes; got shape \(400, 11\)"):
        fit_vocabulary(lambda: [cells(), cells()[:, 1:]], seed=0)
    with pytest.raises(ValueError, match=r"batches of cells × 5 genes; got shape \(400, 12\)"):
        Vocabulary(5, 1, 1, 3).fit(lambda: [cells()], seed=0)
    with pytest.raises(
        ValueError, match=r"Expected cells × 12 genes, those of the vocabulary; got shape \(7, 11\)"
    ):
        fit(cells()).assign(torch.zeros(7, 11))


def test_words_before_fitting_are_refused():
    with pytest.raises(RuntimeError, match=r"no meta cells yet; call `fit` or load weights first"):
        Vocabulary(T, 4, 3, 3).assign(cells())


# other machines and real cells -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_vocabulary():
    x = cells()
    there = fit_vocabulary(lambda: x.cuda().split(64), n_meta_cells=8, seed=0)
    assert there.mean.device.type == "cpu"
    same(there, fit(x, n_meta_cells=8), atol=1e-4, rtol=1e-4)
    assert torch.equal(there.cuda().assign(x.cuda()).cpu(), there.cpu().assign(x))


@pytest.mark.real_data
def test_default_words_keep_what_they_did_of_real_cells(data_dir):
    """A cell of 166 genes is mostly noise: twenty words keep a fifth of its variance, also with other seeds."""
    import anndata as ad

    counts = np.asarray(ad.read_h5ad(data_dir / "starmap_mpfc" / "BZ5.h5ad").X.todense(), dtype=np.float64)
    total = counts.sum(1, keepdims=True)
    x = torch.from_numpy(np.log1p(counts / total * np.median(total))).float()
    r2 = [fit(x, seed=seed).quantization(lambda: [x])["r2"] for seed in range(3)]
    assert np.mean(r2) == pytest.approx(0.208, abs=0.01) and np.std(r2) < 0.005
