"""Captured shares: a dot and an interval where the table says, most captured on top."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stgen.pl import gene_capture


@pytest.fixture
def adata():
    """40 genes; the last is too noisy for a share."""
    n = 40
    captured = np.r_[np.random.default_rng(0).uniform(0, 1, n - 1), np.nan]
    var = pd.DataFrame(
        {
            "genst_captured": captured,
            "genst_captured_low": captured - 0.1,
            "genst_captured_high": captured + 0.1,
            "genst_r_cross": np.sqrt(captured),
            "genst_ceiling": 0.8,
            "genst_reliability": np.r_[np.full(n - 1, 0.7), 0.02],
            "genst_n_spots": 100,
        },
        index=[f"g{i}" for i in range(n)],
    )
    uns = {"genst_report": {"codes": {}, "markers": {}}}
    return ad.AnnData(np.zeros((3, n), dtype=np.float32), var=var, uns=uns)


def labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def dots(ax, label):
    found = next(one for one in ax.collections if one.get_label().startswith(label))
    return np.ma.filled(np.ma.asarray(found.get_offsets(), dtype=float), np.nan)


def test_the_most_captured_genes_stand_in_order(adata):
    ax = gene_capture(adata, n_genes=10)
    best = adata.var["genst_captured"].nlargest(10)
    assert labels(ax) == list(best.index)
    place = dots(ax, "captured")
    np.testing.assert_allclose(place[:, 0], best)
    assert (np.diff(place[:, 1]) < 0).all()  # from the top down
    np.testing.assert_allclose(dots(ax, "reliability")[:, 0], 0.7)
    np.testing.assert_allclose(dots(ax, "ceiling")[:, 0], 0.64)
    assert ax.get_title(loc="left") == "10 of 40 genes, the most captured"


def test_intervals_reach_from_low_to_high(adata):
    ax = gene_capture(adata, genes=["g3"])
    ends = [line.get_segments() for line in ax.collections if hasattr(line, "get_segments")][-1]
    value = adata.var.loc["g3", "genst_captured"]
    np.testing.assert_allclose(np.array(ends[0])[:, 0], [value - 0.1, value + 0.1])


def test_genes_that_are_asked_for_are_drawn_and_noisy_ones_say_so(adata):
    ax = gene_capture(adata, genes=["g39", "g5"])
    assert labels(ax) == ["g5", "g39"]
    assert [text.get_text() for text in ax.texts] == ["too noisy"]
    assert ax.get_title(loc="left") == ""


def test_all_genes_fit_and_given_axes_are_used(adata):
    _, ax = plt.subplots()
    assert gene_capture(adata, n_genes=100, ax=ax) is ax
    assert len(labels(ax)) == 40


def test_refusals_say_what_to_do(adata):
    with pytest.raises(KeyError, match="The report has no gene nope"):
        gene_capture(adata, genes=["nope"])
    with pytest.raises(ValueError, match="`genes` names no gene"):
        gene_capture(adata, genes=[])
    with pytest.raises(ValueError, match="`n_genes` must be a whole number, at least 1; got 0"):
        gene_capture(adata, n_genes=0)
    del adata.uns["genst_report"]
    with pytest.raises(KeyError, match=r"`stg\.tl\.genst_report`"):
        gene_capture(adata)
