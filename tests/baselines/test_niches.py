"""Niche baselines: the mean is a mean, the clusterer treats every representation alike, labels travel by expression."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stgen import metrics
from stgen.baselines import NeighbourLabels, cell_pcs, cluster_niches, neighbourhood_mean


@pytest.fixture
def stripes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expression of noisy cells, places, and the stripe each lies in."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 600, size=(600, 2))
    region = (xy[:, 0] // 200).astype(int)
    profile = rng.gamma(1.0, 1.0, size=(3, 20))
    return np.log1p(rng.poisson(profile[region] * 1.2)), xy, region


def slow_mean(features: np.ndarray, xy: np.ndarray, section: np.ndarray, k: int) -> np.ndarray:
    """Mean over the k nearest cells of the section by a search of all pairs."""
    out = np.empty_like(features, dtype=float)
    for i, place in enumerate(xy):
        rows = np.flatnonzero(section == section[i])
        nearest = rows[np.argsort(np.hypot(*(xy[rows] - place).T))[:k]]
        out[i] = features[nearest].mean(axis=0)
    return out


@pytest.mark.parametrize("k", [1, 2, 7])
def test_mean_is_that_of_the_nearest_cells_with_the_cell_itself(k):
    rng = np.random.default_rng(1)
    features, xy, section = rng.normal(size=(80, 4)), rng.uniform(size=(80, 2)), rng.integers(0, 2, 80)
    np.testing.assert_allclose(
        neighbourhood_mean(features, xy, section, n_neighbors=k), slow_mean(features, xy, section, k)
    )


def test_neighbourhood_needs_at_least_the_cell():
    with pytest.raises(ValueError, match=r"counts the cell itself and must be at least 1; got 0"):
        neighbourhood_mean(np.zeros((3, 2)), np.zeros((3, 2)), n_neighbors=0)


def test_components_come_from_training_cells_alone(stripes):
    expression, _, _ = stripes
    train = np.arange(len(expression)) < 300
    poisoned = expression.copy()
    poisoned[~train] *= 7
    np.testing.assert_array_equal(
        cell_pcs(expression, train=train)[train], cell_pcs(poisoned, train=train)[train]
    )
    assert cell_pcs(expression).shape == (600, 20)  # no more than genes


def test_components_refuse_what_is_no_expression(stripes):
    expression = stripes[0].copy()
    with pytest.raises(ValueError, match=r"`train` must mark at least one of 600 cells"):
        cell_pcs(expression, train=np.zeros(600, dtype=bool))
    expression[3, 1] = np.nan
    with pytest.raises(ValueError, match="Expression must be finite"):
        cell_pcs(expression)
    with pytest.raises(ValueError, match="cells × genes"):
        cell_pcs(expression[0])


def test_surroundings_say_more_about_a_stripe_than_the_cell(stripes):
    expression, xy, region = stripes
    pcs = cell_pcs(expression)
    alone, around = cluster_niches(pcs, 3), cluster_niches(neighbourhood_mean(pcs, xy), 3)
    assert metrics.ami(region, around) > max(0.7, metrics.ami(region, alone) + 0.05)


def test_clusters_do_not_depend_on_the_unit_of_a_representation(stripes):
    expression, xy, _ = stripes
    around = neighbourhood_mean(cell_pcs(expression), xy)
    first = cluster_niches(around, 3, 1)
    for factor in (1e-4, 1e4):
        assert metrics.ami(first, cluster_niches(around * factor, 3, 1)) == pytest.approx(1)


def test_wide_representations_are_cut_on_their_components():
    rng = np.random.default_rng(2)
    blobs = np.repeat(np.eye(3, 200) * 20, 50, axis=0) + rng.normal(size=(150, 200))
    assert metrics.ami(np.repeat([0, 1, 2], 50), cluster_niches(blobs, 3)) > 0.99


def test_covariance_is_full_only_where_there_are_cells_enough():
    rng = np.random.default_rng(3)
    for n, kind in ((1499, "diag"), (1500, "full")):
        values = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3))
        np.testing.assert_array_equal(cluster_niches(values, 4), cluster_niches(values, 4, covariance=kind))


def test_one_seed_gives_one_answer_and_leaves_the_global_generator_alone(stripes):
    pcs = cell_pcs(stripes[0])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(cluster_niches(pcs, 3, 5), cluster_niches(pcs, 3, 5))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("values", "n", "options", "message"),
    [
        (np.zeros(4), 2, {}, "must be finite, cells × features"),
        (np.full((4, 2), np.inf), 2, {}, "must be finite"),
        (np.zeros((4, 2)), 5, {}, r"between 1 and the number of cells, 4; got 5"),
        (np.zeros((4, 2)), 2, {"covariance": "tied"}, "must be 'auto', 'diag' or 'full'; got 'tied'"),
    ],
)
def test_clusterer_says_what_it_needs(values, n, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_niches(values, n, **options)


def test_labels_travel_to_another_section(stripes):
    expression, xy, region = stripes
    names = np.array(["a", "b", "c"])[region]
    train, test = np.arange(600) < 400, np.arange(600) >= 400
    alone, around = (
        NeighbourLabels(n_neighbors=k).fit(expression[train], names[train], xy[train]) for k in (1, 15)
    )
    found = [metrics.macro_f1(names[test], m.predict(expression[test], xy[test])) for m in (alone, around)]
    assert found[1] > 0.85
    assert found[1] >= found[0]
    probabilities = around.probabilities(expression[test], xy[test])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert list(around.classes_) == ["a", "b", "c"]


def test_cells_without_a_label_are_neighbours_but_not_learned_from(stripes):
    expression, xy, region = stripes
    labels = np.array(["a", "b", "c"], dtype=object)[region]
    hidden = np.arange(600) % 3 == 0
    some = np.where(hidden, None, labels)
    fitted = NeighbourLabels().fit(expression, some, xy)
    lied = NeighbourLabels().fit(expression, np.where(hidden, np.nan, labels), xy)
    np.testing.assert_array_equal(fitted.probabilities(expression, xy), lied.probabilities(expression, xy))
    without = NeighbourLabels().fit(expression[~hidden], labels[~hidden], xy[~hidden])
    assert np.abs(fitted.probabilities(expression, xy) - without.probabilities(expression, xy)).max() > 1e-6


def test_sections_never_share_neighbours(stripes):
    expression, xy, region = stripes
    section = np.where(np.arange(600) < 300, "one", "two")
    far = xy + np.where(section == "two", 1e5, 0.0)[:, None]
    kwargs = {"labels": region.astype(str)}
    together = NeighbourLabels().fit(expression, xy=xy, section=section, **kwargs)
    apart = NeighbourLabels().fit(expression, xy=far, section=section, **kwargs)
    np.testing.assert_allclose(
        together.probabilities(expression, xy, section),
        apart.probabilities(expression, far, section),
        atol=1e-6,
    )


def test_labels_say_what_is_wrong_with_them(stripes):
    expression, xy, region = stripes
    with pytest.raises(ValueError, match=r"at least two classes to be told apart; found \['a'\]"):
        NeighbourLabels().fit(expression, np.repeat("a", 600), xy)
    with pytest.raises(ValueError, match="a label per cell: 600 cells"):
        NeighbourLabels().fit(expression, region[:5], xy)
    with pytest.raises(RuntimeError, match="has not been fitted; call `fit` first"):
        NeighbourLabels().predict(expression, xy)


@pytest.mark.real_data
def test_published_baselines_are_reproduced():
    """AMI and macro-F1 of the two starmap sections as they were measured before this code existed."""
    folder = os.environ.get("STGEN_DATA")
    if folder is None:
        pytest.skip("set STGEN_DATA to the folder of real data")
    import anndata

    sections = {}
    for name in ("BZ5", "BZ9"):
        adata = anndata.read_h5ad(Path(folder) / "starmap_mpfc" / f"{name}.h5ad")
        expression = metrics.normalize_panel(np.asarray(adata.X.todense(), dtype=float))
        sections[name] = expression, adata.obs["region"].astype(str).to_numpy(), adata.obsm["spatial"]
    for name, alone, around in (("BZ5", 0.26, 0.82), ("BZ9", 0.24, 0.52)):
        expression, region, xy = sections[name]
        pcs = cell_pcs(expression)
        for values, published in ((pcs, alone), (neighbourhood_mean(pcs, xy), around)):
            found = np.mean([metrics.ami(region, cluster_niches(values, 4, seed)) for seed in range(5)])
            assert found == pytest.approx(published, abs=0.01)
    for here, there, alone, around in (("BZ5", "BZ9", 0.721, 0.857), ("BZ9", "BZ5", 0.691, 0.936)):
        (train, labels, places), (test, truth, others) = sections[here], sections[there]
        for k, published in ((1, alone), (30, around)):
            named = NeighbourLabels(n_neighbors=k).fit(train, labels, places).predict(test, others)
            assert metrics.macro_f1(truth, named) == pytest.approx(published, abs=0.01)
