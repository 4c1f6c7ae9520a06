"""Trees of gene groups: nested for any number of genes, true to planted modules, blind to gene order.

G genes, K scales, d_k groups of scale k.
"""

import numpy as np
import pytest

from stgen.models.genar._hierarchy import (
    check_groups,
    check_scales,
    default_scales,
    gene_hierarchy,
    parents,
)

SIX = (1, 4, 8, 40, 100, 200)


def profiles(n_genes, n_spots=60, seed=0):
    return np.random.default_rng(seed).gamma(2.0, size=(n_spots, n_genes))


def modules(labels, n_spots=80, seed=0):
    """Genes of one module rise and fall together over spots."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n_spots, max(labels) + 1))
    return factor[:, labels] + 0.4 * rng.normal(size=(n_spots, len(labels)))


def partition(row, names):
    """Which names share a group, whatever the groups are called."""
    return {frozenset(names[row == j].tolist()) for j in np.unique(row)}


# -- any number of genes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("n_scales", [3, 6])
@pytest.mark.parametrize("n_genes", [1, 2, 3, 7, 200, 333])
def test_every_group_lies_in_one_parent_and_scales_have_their_numbers_of_groups(n_genes, n_scales, method):
    scales = default_scales(n_genes, n_scales)
    groups = gene_hierarchy(profiles(n_genes), scales, method=method)
    assert groups.shape == (len(scales), n_genes)
    for row, d in zip(groups, scales, strict=True):
        assert np.array_equal(np.unique(row), np.arange(d))
    for coarse, fine, parent in zip(groups, groups[1:], parents(groups)):
        for j in range(fine.max() + 1):
            assert set(coarse[fine == j]) == {parent[j]}
    np.testing.assert_array_equal(check_groups(groups, n_genes).max(1) + 1, scales)


@pytest.mark.parametrize("n_genes", [*range(1, 40), 200, 333, 1000])
def test_default_scales_are_scales(n_genes):
    for n_scales in (1, 2, 3, 6):
        assert check_scales(default_scales(n_genes, n_scales), n_genes)[-1] == n_genes


def test_default_scales_of_the_published_panel_are_the_published_ones():
    assert default_scales(200, 6) == SIX
    assert default_scales(200) == (1, 20, 200)


def test_a_scale_as_fine_as_wanted_splits_to_single_genes():
    groups = gene_hierarchy(profiles(9), range(1, 10))
    assert [len(np.unique(row)) for row in groups] == list(range(1, 10))
    assert sorted(groups[-1]) == list(range(9))


# -- ward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_planted_modules_are_the_groups_of_their_scale(seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 10))
    groups = gene_hierarchy(modules(labels, seed=seed), (1, 4, 40))
    names = np.arange(40)
    assert partition(groups[1], names) == partition(labels, names)


def test_modules_inside_modules_are_found_at_both_scales():
    fine = np.repeat(np.arange(6), 6)
    coarse = fine // 2
    rng = np.random.default_rng(1)
    shared, own = rng.normal(size=(100, 3)), rng.normal(size=(100, 6))
    expression = 2 * shared[:, coarse] + own[:, fine] + 0.3 * rng.normal(size=(100, 36))
    groups = gene_hierarchy(expression, (3, 6, 36))
    names = np.arange(36)
    assert partition(groups[0], names) == partition(coarse, names)
    assert partition(groups[1], names) == partition(fine, names)


def test_a_genes_level_and_spread_do_not_decide_its_group():
    labels = np.tile(np.arange(4), 10)
    expression, rng = modules(labels), np.random.default_rng(0)
    changed = expression * rng.uniform(0.1, 50, 40) + rng.uniform(0, 100, 40)
    names = np.arange(40)
    groups = gene_hierarchy(changed, (1, 4, 40))
    assert partition(groups[1], names) == partition(labels, names)


@pytest.mark.parametrize("scales", [(1, 4, 12, 24), (1, 20, 200)])
def test_permuting_genes_permutes_the_tree(scales):
    """Also where several subtrees have the size that is to be split next."""
    n = scales[-1]
    for seed in range(10):
        expression, order = profiles(n, seed=seed), np.random.default_rng(seed).permutation(n)
        here, there = gene_hierarchy(expression, scales), gene_hierarchy(expression[:, order], scales)
        for a, b in zip(here, there):
            assert partition(a, np.arange(n)) == partition(b, order)


def test_groups_are_balanced_as_far_as_the_tree_allows():
    """The largest subtree is the one that is split."""
    sizes = [np.bincount(row).max() for row in gene_hierarchy(profiles(200), (1, 20, 100, 200))]
    assert sizes[0] == 200 and sizes[-1] == 1
    assert sizes[1] < 40 and sizes[2] <= 4


def test_constant_genes_get_a_group_like_any_other():
    expression = profiles(12)
    expression[:, :3] = 0.0
    groups = gene_hierarchy(expression, (1, 4, 12))
    assert [len(np.unique(row)) for row in groups] == [1, 4, 12]


@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_equal_questions_get_equal_trees_and_leave_the_global_stream_alone(method):
    np.random.seed(7)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = gene_hierarchy(profiles(50), (1, 5, 50), method=method, seed=3)
    np.testing.assert_array_equal(first, gene_hierarchy(profiles(50), (1, 5, 50), method=method, seed=3))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# -- the published construction -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_genes", "scales"), [(200, SIX), (333, (1, 5, 20, 333)), (7, (2, 3, 7))])
def test_kmeans_makes_consecutive_blocks_with_the_published_parents(n_genes, scales):
    groups = gene_hierarchy(profiles(n_genes), scales, method="kmeans")
    in_order = groups[:, np.argsort(groups[-1])]
    assert (np.diff(in_order, axis=1) >= 0).all()
    for parent, coarse, fine in zip(parents(groups), scales[:-1], scales[1:], strict=True):
        assert parent.tolist() == [j * coarse // fine for j in range(fine)]


def test_kmeans_blocks_are_equal_where_the_numbers_divide():
    groups = gene_hierarchy(profiles(200), (1, 4, 8, 40, 200), method="kmeans")
    assert [np.unique(np.bincount(row)).tolist() for row in groups] == [[200], [50], [25], [5], [1]]


def test_kmeans_puts_co_expressed_genes_next_to_each_other():
    """40 genes make 8 clusters, so a planted module of 10 is about two runs of the order, not ten places in it."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 10))
    order = np.argsort(gene_hierarchy(modules(labels), (1, 4, 40), method="kmeans")[-1])
    assert (np.diff(labels[order]) != 0).sum() <= 12


# -- errors --------------------------------------------------------------------------------------------------------


def test_scales_that_do_not_end_with_the_genes_are_refused():
    with pytest.raises(ValueError, match=r"end with the number of genes, 30; got \(1, 10\)"):
        check_scales((1, 10), 30)
    with pytest.raises(ValueError, match=r"end with the number of genes, 30; got \(\)"):
        check_scales((), 30)


@pytest.mark.parametrize("scales", [(5, 5, 30), (10, 5, 30), (0, 30), (-1, 30)])
def test_scales_that_do_not_increase_are_refused(scales):
    with pytest.raises(ValueError, match="must increase from at least 1 group"):
        check_scales(scales, 30)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"must be one of ward, kmeans .*got 'leiden'"):
        gene_hierarchy(profiles(10), (1, 10), method="leiden")


def test_given_groups_with_another_number_of_genes_are_refused():
    with pytest.raises(ValueError, match=r"one column per gene, 10; got shape \(2, 9\)"):
        check_groups(np.zeros((2, 9), dtype=int), 10)


def test_given_groups_that_straddle_their_parents_are_refused():
    with pytest.raises(ValueError, match="group of scale 1 must lie inside one group of scale 0"):
        check_groups([[0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 2, 3]], 4)


def test_given_groups_are_numbered_and_get_the_genes_as_their_last_scale():
    groups = check_groups(np.array([["b", "a", "b", "c"]]), 4)
    assert groups.tolist() == [[1, 0, 1, 2], [0, 1, 2, 3]]
