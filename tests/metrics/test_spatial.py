"""Moran's I."""

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from stgen import metrics


def slow_morans_i(x, xy, k):
    n, top, weight = len(x), 0.0, 0
    z = x - x.mean()
    for i in range(n):
        distance = ((xy - xy[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        for j in np.argsort(distance, kind="stable")[:k]:
            top += z[i] * z[j]
            weight += 1
    return n / weight * top / (z**2).sum()


@pytest.fixture
def tissue():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (80, 2))
    return np.c_[np.sin(xy[:, 0] / 200), rng.random(80), np.ones(80)], xy


def test_morans_i_equals_a_slow_loop(tissue):
    values, xy = tissue
    scores = metrics.morans_i(values, xy, n_neighbors=5)
    np.testing.assert_allclose(scores[:2], [slow_morans_i(values[:, g], xy, 5) for g in range(2)])
    assert np.isnan(scores[2])
    assert scores[0] > 0.7 > 0.3 > abs(scores[1])


def test_morans_i_of_a_graph_equals_scanpy(tissue):
    values = tissue[0][:, :2]
    graph = sparse.random_array((80, 80), density=0.1, rng=np.random.default_rng(1)).tocsr()
    graph = sparse.csr_matrix(graph)
    np.testing.assert_allclose(metrics.morans_i(values, graph), sc.metrics.morans_i(graph, values.T))
    np.testing.assert_allclose(
        metrics.morans_i(sparse.csr_matrix(values), sparse.coo_array(graph)), metrics.morans_i(values, graph)
    )


def test_morans_i_of_a_checkerboard_is_minus_one():
    x, y = (a.ravel() for a in np.meshgrid(range(8), range(8)))
    graph = (np.abs(x[:, None] - x) + np.abs(y[:, None] - y)) == 1
    checkerboard = ((x + y) % 2)[:, None].astype(float)
    np.testing.assert_allclose(metrics.morans_i(checkerboard, sparse.csr_array(graph)), [-1])


def test_sections_do_not_touch(tissue):
    values, xy = tissue
    both = np.r_[values, values + 5]
    section = np.repeat(["a", "b"], 80)
    np.testing.assert_allclose(
        metrics.morans_i(both, np.r_[xy, xy], section=section)[:2], metrics.morans_i(values, xy)[:2]
    )


def test_duplicated_places_and_tiny_sections_work():
    xy = np.zeros((9, 2))
    values = np.arange(9.0)[:, None]
    assert np.isfinite(metrics.morans_i(values, xy, n_neighbors=3)).all()
    section = ["a"] * 7 + ["b"] * 2
    assert np.isfinite(metrics.morans_i(values, xy, section=section, n_neighbors=30)).all()
    with pytest.raises(ValueError, match="at least 2 spots in a section"):
        metrics.morans_i(values[:1], xy[:1])


def test_errors_say_what_was_found(tissue):
    values, xy = tissue
    with pytest.raises(ValueError, match=r"spots × 2, \(80, 2\); got \(79, 2\)"):
        metrics.morans_i(values, xy[1:])
    with pytest.raises(ValueError, match=r"spots × spots, \(80, 80\); got \(3, 3\)"):
        metrics.morans_i(values, sparse.eye_array(3))
    with pytest.raises(ValueError, match="section of each of the 80 spots"):
        metrics.morans_i(values, xy, section=["a"])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.morans_i(values, xy * np.nan)
    with pytest.raises(ValueError, match="`n_neighbors` must be at least 1"):
        metrics.morans_i(values, xy, n_neighbors=0)


def test_on_a_lattice_the_order_of_rows_says_nothing():
    xy = np.stack(np.meshgrid(np.arange(6.0), np.arange(7.0)), axis=-1).reshape(42, 2) * 100
    rng = np.random.default_rng(0)
    values, order = rng.random((42, 3)), rng.permutation(42)
    expected = metrics.morans_i(values, xy, n_neighbors=6)
    np.testing.assert_allclose(metrics.morans_i(values[order], xy[order], n_neighbors=6), expected)
