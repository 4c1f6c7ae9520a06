"""Several predictions at once: the same genes, the same spots, paired differences."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stgen import _keys, get, metrics
from stgen.tl import evaluate

N_GENES = 14
HELD = slice(100, 300)


@pytest.fixture
def adata() -> ad.AnnData:
    """A patient for training and two test sections; predictions in layers and obsm, on three scales."""
    rng = np.random.default_rng(0)
    section = np.repeat(["a1", "b1", "b2"], 100)
    rate = rng.gamma(4, 8, (300, N_GENES)) * rng.gamma(20, 1 / 20, (300, 1))
    adata = ad.AnnData(
        rng.poisson(rate).astype(np.float32),
        obs=pd.DataFrame(
            {
                _keys.LIBRARY: section,
                _keys.PATIENT: [s[0] for s in section],
                _keys.SPLIT: np.where(section == "a1", _keys.TRAIN, _keys.TEST),
            },
            index=[f"spot{i}" for i in range(300)],
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]),
        obsm={_keys.SPATIAL: rng.uniform(0, 2000, (300, 2))},
    )
    adata.layers["genar"] = rate * rng.gamma(20, 1 / 20, rate.shape)
    adata.layers["my_counts"] = rate * rng.gamma(3, 1 / 3, rate.shape)
    some = [5, 3, 1, 0, 8, 9, 12, 11, 2, 4]
    adata.obsm["genst"] = metrics.normalize_panel(rate[:, some] * rng.gamma(8, 1 / 8, (300, 10)), target=300)
    adata.uns["genst"] = {"genes": np.array(adata.var_names[some]), "params": {"scale": "normalized"}}
    return adata


def run(adata, predictions=("genar", "genst", "my_counts"), **changes):
    return evaluate(
        adata, list(predictions), **({"baselines": "nulls", "n_boot": 200, "min_counts": 0} | changes)
    )


def pair(adata, method, other, metric="pearson", scale="normalized"):
    found = get.comparison(adata).query(
        "method == @method and other == @other and metric == @metric and scale == @scale"
    )
    assert len(found) == 1
    return found.iloc[0]


def on_common(adata, key):
    """Slow reference: a prediction on the normalized scale of the ten common genes."""
    names = [g for g in adata.var_names if g in set(adata.uns["genst"]["genes"])]
    place = adata.var_names.get_indexer(names)
    target = metrics.panel_target(adata.X[:100][:, place])
    if key == "truth":
        return metrics.normalize_panel(adata.X[:, place], target=target)
    if key == "genst":
        order = [list(adata.uns["genst"]["genes"]).index(g) for g in names]
        return adata.obsm["genst"][:, order]
    return metrics.normalize_panel(adata.layers[key][:, place], target=target)


def test_predictions_on_other_scales_and_places_are_compared_on_the_genes_they_share(adata):
    table = run(adata)
    assert (table["n_genes"].where(table["metric"] == "pearson", 10) == 10).all()
    for key in ("genar", "genst", "my_counts"):
        by_section = [
            metrics.pearson(on_common(adata, "truth")[rows], on_common(adata, key)[rows]).mean()
            for rows in (slice(100, 200), slice(200, 300))
        ]
        row = table.query(
            "method == @key and metric == 'pearson' and scale == 'normalized' and section == 'mean'"
        )
        assert row["value"].item() == pytest.approx(np.mean(by_section), abs=1e-6)


def test_overlap_of_genes_is_told(adata, caplog):
    with caplog.at_level(logging.WARNING, "stgen"):
        flags = run(adata)["flags"].iloc[0]
    said = "compared on the 10 genes common to all predictions and the truth (genar has 14, genst has 10, my_counts has 14)"
    assert said in flags and said in caplog.text
    assert said in get.comparison(adata)["flags"].iloc[0]


def test_pairs_are_differences_gene_by_gene_averaged_over_sections(adata):
    run(adata)
    truth, a, b = (on_common(adata, key) for key in ("truth", "genar", "my_counts"))
    gains = np.stack(
        [
            metrics.pearson(truth[rows], a[rows]) - metrics.pearson(truth[rows], b[rows])
            for rows in (slice(100, 200), slice(200, 300))
        ]
    )
    row = pair(adata, "genar", "my_counts")
    assert row["gain"] == pytest.approx(gains.mean(), abs=1e-6)
    assert row["gain"] == pytest.approx(row["value"] - row["other_value"])
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert row["share_better"] == (gains > 0).mean()
    assert (row["n_sections"], row["n_better"], row["n_genes"]) == (2, 2, 10)
    assert row["better"] == "genar" and row["interval"] == "sections and blocks"
    rmse = pair(adata, "genar", "my_counts", metric="rmse")
    assert rmse["value"] < rmse["other_value"] and rmse["gain"] > 0  # more is better, also of errors
    assert rmse["gain"] == pytest.approx(rmse["other_value"] - rmse["value"])


def test_order_of_predictions_turns_the_sign_and_nothing_else(adata):
    run(adata)
    one = pair(adata, "genar", "my_counts")
    run(adata, ["my_counts", "genst", "genar"])
    other = pair(adata, "my_counts", "genar")
    assert other["gain"] == pytest.approx(-one["gain"])
    assert other["gain_low"] == pytest.approx(-one["gain_high"])
    assert other["better"] == one["better"]


def test_equal_predictions_are_undecided_with_an_interval_of_zero(adata):
    adata.layers["twin"] = adata.layers["genar"].copy()
    run(adata, ["genar", "twin"])
    row = pair(adata, "genar", "twin")
    assert (row["gain"], row["gain_low"], row["gain_high"], row["better"]) == (0, 0, 0, "undecided")


def test_luck_is_undecided(adata):
    rng = np.random.default_rng(1)
    for name in ("x", "y"):
        adata.layers[name] = rng.gamma(2, 1, adata.shape)
    run(adata, ["x", "y"])
    row = pair(adata, "x", "y")
    assert row["gain_low"] < 0 < row["gain_high"] and row["better"] == "undecided"


def test_a_scale_that_one_cannot_speak_about_is_undefined_not_left_out(adata):
    run(adata)
    row = pair(adata, "genar", "genst", scale="raw")
    assert np.isnan(row["gain"]) and row["better"] == "undefined" and row["n_undefined"] == 20
    assert pair(adata, "genar", "my_counts", scale="raw")["better"] == "genar"


def test_genes_that_one_leaves_blank_take_no_part_in_errors_and_cost_correlation(adata):
    adata.layers["blank"] = adata.layers["genar"].copy()
    adata.layers["blank"][:, 3] = np.nan
    run(adata, ["genar", "blank"])
    assert pair(adata, "genar", "blank", metric="rmse")["n_undefined"] == 2
    row = pair(adata, "genar", "blank")
    assert row["n_undefined"] == 0 and row["gain"] > 0.02


def test_rows_of_pairs_grow_with_pairs_only(adata):
    adata.layers["fourth"] = adata.layers["genar"] + 1
    table = run(adata, ["genar", "genst", "my_counts", "fourth"])
    pairs = get.comparison(adata)
    assert len(pairs) == 6 * 5 * 2  # pairs × metrics × scales
    assert pairs.iloc[0][["metric", "scale"]].tolist() == ["pearson", "normalized"]
    assert set(table["method"]) >= {"genar", "genst", "my_counts", "fourth"}
    assert len(adata.var.columns) == 4 * 5


def test_one_section_has_blocks_for_an_interval(adata):
    adata.obs.loc[adata.obs[_keys.LIBRARY] == "b2", _keys.SPLIT] = "buffer"
    run(adata)
    assert pair(adata, "genar", "my_counts")["interval"] == "blocks"
    rmse = pair(adata, "genar", "my_counts", metric="rmse")
    assert np.isnan(rmse["gain_low"]) and rmse["interval"] == "" and rmse["better"] == "undecided"


def test_part_of_a_normalized_prediction_is_brought_to_the_total_of_the_compared_genes(adata):
    """What is exact over all genes stays exact over some of them."""
    adata.layers["exact"] = metrics.normalize_panel(adata.X, target=1000)
    adata.uns["exact"] = {"scale": "normalized"}
    table = run(adata, ["exact", "genst"], metrics=["pearson", "rmse"])
    assert "exact, normalized over its 14 genes, is brought to their total" in table["flags"].iloc[0]
    exact = table.query("method == 'exact' and section == 'mean' and scale == 'normalized'").set_index(
        "metric"
    )
    assert exact.loc["pearson", "value"] == pytest.approx(1)
    assert exact.loc["rmse", "value"] == pytest.approx(0, abs=1e-6)


def test_other_units_of_a_normalized_prediction_are_flagged(adata):
    adata.layers["cp10k"] = metrics.normalize_panel(adata.X, target=1e4)
    table = run(adata, ["genar", "cp10k"], scale={"cp10k": "normalized"})
    assert "cp10k seems normalized to 1e+04 counts per spot, the truth is to" in table["flags"].iloc[0]
    assert "seems normalized" not in run(adata)["flags"].iloc[0]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_pairs_survive_the_disk(adata, tmp_path, kind):
    run(adata)
    before = get.comparison(adata)
    getattr(adata, f"write_{kind}")(tmp_path / f"x.{kind}")
    again = getattr(ad, f"read_{kind}")(tmp_path / f"x.{kind}")
    pd.testing.assert_frame_equal(get.comparison(again), before, check_dtype=False)


def test_difference_is_said_once_for_each_pair(adata, caplog):
    with caplog.at_level(logging.INFO, "stgen"):
        run(adata)
    said = [message for message in caplog.messages if "against" in message]
    assert len(said) == 3
    assert said[1].startswith("genar against my_counts: +") and said[1].endswith("(better: genar).")


def test_messages_say_what_is_missing(adata):
    with pytest.raises(KeyError, match=r"uns\['evaluation'\] does not exist; uns has \['genst'\]"):
        get.comparison(adata)
    run(adata, ["genar"])
    with pytest.raises(KeyError, match=r"compares no predictions: only \['genar'\] was scored. Name several"):
        get.comparison(adata)
    with pytest.raises(ValueError, match=r"`scale` names \['gneome'\], which are not among the predictions"):
        run(adata, scale={"gneome": "raw"})
    adata.obsm["other"] = adata.layers["genar"][:, 6:8]
    adata.uns["other"] = {"genes": np.array(["g6", "g7"])}
    with pytest.raises(
        ValueError,
        match=r"no gene in common: 'genst' has g5, g3.*'other' has g6, g7. Evaluate them one by one",
    ):
        run(adata, ["genst", "other"])
    adata.layers["genar"][120] = np.nan
    with pytest.raises(
        ValueError, match=r"'genar' has no prediction \(only NaN\) for 1 of 200 evaluated spots"
    ):
        run(adata)
