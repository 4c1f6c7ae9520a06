"""The raw and the normalized scale."""

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from stgen import metrics


def test_normalized_scale_equals_scanpy(pair):
    adata = AnnData(pair[0].copy())
    sc.pp.normalize_total(adata, target_sum=37.0)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(metrics.normalize_panel(pair[0], target=37.0), adata.X, atol=1e-6)


def test_default_target_is_the_median_panel_total():
    counts = np.array([[1, 3], [5, 5], [10, 20]])
    assert metrics.panel_target(counts) == 10
    np.testing.assert_allclose(np.expm1(metrics.normalize_panel(counts)).sum(axis=1), [10, 10, 10])


def test_depth_changes_nothing_on_the_normalized_scale(pair):
    depth = np.linspace(0.1, 5, 60)[:, None]
    np.testing.assert_allclose(
        metrics.normalize_panel(pair[0] * depth, target=50), metrics.normalize_panel(pair[0], target=50)
    )


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_counts_stay_sparse(container, pair):
    for scale in (metrics.normalize_panel, metrics.log_counts):
        result = scale(container(pair[0]))
        assert sparse.issparse(result)
        np.testing.assert_allclose(result.toarray(), scale(pair[0]))


def test_empty_spot_stays_zero():
    counts = np.array([[0, 0], [1, 3]])
    np.testing.assert_array_equal(metrics.normalize_panel(counts, target=4)[0], [0, 0])


def test_raw_scale_is_log1p_and_integers_are_left_as_found():
    counts = np.array([[0, 1]], dtype=np.int32)
    np.testing.assert_allclose(metrics.log_counts(counts), [[0, np.log(2)]])
    assert counts.dtype == np.int32


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused(bad):
    with pytest.raises(ValueError, match="`counts` must be finite and not negative"):
        metrics.normalize_panel(np.array([[bad, 1.0]]))


def test_target_must_be_positive():
    with pytest.raises(ValueError, match="`target` must be a panel total above 0; got 0"):
        metrics.normalize_panel(np.ones((2, 2)), target=0)
    with pytest.raises(ValueError, match="drop empty spots first"):
        metrics.normalize_panel(np.zeros((2, 2)))
