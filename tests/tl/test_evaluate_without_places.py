"""Scores of a table without places: what looks at places is left out and said, all else is as with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys
from stgen.baselines import CoordinateKNN

HOW = {"baselines": "nulls", "min_counts": 1, "n_boot": 20, "metrics": ["pearson", "rmse", "morans_i_gap"]}
PLACES = ("coordinate kNN", "neighbours' truth")


def make(n_test):
    adata = stg.datasets.toy_tissue(
        n_sections=4, n_patients=4, spots_per_section=100, n_genes=12, panel_total=300.0, histology="none"
    )
    stg.pp.split(adata, by="patient", validation=0, test=[f"p{4 - i}" for i in range(n_test)])
    rng = np.random.default_rng(0)
    adata.layers["mine"] = rng.poisson(adata.X.toarray()).astype(np.float32)
    adata.layers["other"] = rng.poisson(adata.X.toarray() + 5).astype(np.float32)
    return adata


def scored(adata, keys="mine", **how):
    return stg.tl.evaluate(adata, keys, scale="counts", **{**HOW, **how})


@pytest.fixture
def lost():
    adata = make(2)
    del adata.obsm[_keys.SPATIAL]
    return adata


def test_what_needs_no_places_scores_as_with_places(lost):
    with pytest.warns(UserWarning, match=r"obsm\['spatial'\] does not exist: nulls, .* are left out"):
        found = scored(lost)
    assert not set(PLACES) & set(found["method"]) and "section mean" in set(found["method"])
    assert found["flags"].str.contains("no places").all()
    expected = scored(make(2))
    keys = ["method", "metric", "scale", "section"]
    both = found.merge(expected, on=keys, suffixes=("", "_placed"))
    both = both[both["metric"] != "morans_i_gap"]
    assert len(both) > 20
    pd.testing.assert_series_equal(both["value"], both["value_placed"], check_names=False)
    assert found.loc[found["metric"] == "morans_i_gap", "value"].isna().all()


def test_intervals_are_over_sections_and_one_section_has_none(lost):
    with pytest.warns(UserWarning, match="does not exist"):
        row = scored(lost).iloc[0]
    assert (row["method"], row["metric"], row["interval"]) == ("mine", "pearson", "sections")
    assert row["gain_low"] < row["gain"] < row["gain_high"] and row["verdict"] == "use"
    one = make(1)
    del one.obsm[_keys.SPATIAL]
    with pytest.warns(UserWarning, match="does not exist"):
        row = scored(one, ["mine", "other"]).iloc[0]
    assert np.isnan([row["gain_low"], row["gain_high"]]).all()
    assert (row["interval"], row["verdict"]) == ("", "undefined")
    assert set(one.var["evaluation_mine_verdict"]) == {"undefined"}
    assert (stg.get.comparison(one)["interval"] == "").any()


def test_a_baseline_that_needs_places_is_refused(lost):
    with (
        pytest.warns(UserWarning, match="does not exist"),
        pytest.raises(KeyError, match=r"There are no places, and a baseline needs them; obsm has"),
    ):
        scored(lost, baselines=[CoordinateKNN()])


def test_a_key_that_is_named_must_exist(lost):
    with pytest.raises(KeyError, match=r"obsm\['um'\] does not exist"):
        scored(lost, spatial_key="um")
