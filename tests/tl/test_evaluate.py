"""Evaluation that cannot lie: what it refuses, what it says, what it writes."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen import _keys, metrics
from stgen.baselines import CoordinateKNN, RidgeOnHistology, SectionMean
from stgen.tl import evaluate
from stgen.tl._evaluation_table import verdicts

N_GENES = 12
SECTIONS = ("a1", "a2", "b1", "b2")


@pytest.fixture
def adata() -> ad.AnnData:
    """Two patients with two sections each; patient a is for training. Two spots of b2 are nearly empty."""
    rng = np.random.default_rng(0)
    n = 4 * 60
    section = np.repeat(SECTIONS, 60)
    histology = rng.normal(size=(n, 6)).astype(np.float32)
    place = rng.uniform(0, 2000, (n, 2))
    rate = np.exp(3.5 + 0.6 * histology[:, :2] @ rng.normal(size=(2, N_GENES)))
    rate *= rng.gamma(20, 1 / 20, (n, 1))
    rate[-2:] /= 200
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(rate).astype(np.int32)),
        obs=pd.DataFrame(
            {
                _keys.LIBRARY: pd.Categorical(section),
                _keys.PATIENT: [s[0] for s in section],
                _keys.SPLIT: np.where(np.char.startswith(section, "a"), _keys.TRAIN, _keys.TEST),
            },
            index=[f"spot{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=["CCL3/L1/L3", *(f"g{i}" for i in range(1, N_GENES))]),
        obsm={_keys.SPATIAL: place, _keys.HISTOLOGY: histology},
    )
    adata.layers["good"] = rate.astype(np.float32)
    adata.layers["noise"] = rng.gamma(2, 1, (n, N_GENES))
    return adata


def run(adata, predictions="good", **changes):
    return evaluate(adata, predictions, **({"baselines": "nulls", "n_boot": 100, "min_counts": 50} | changes))


def row(table, method="good", metric="pearson", scale="normalized", section="mean"):
    found = table.query("method == @method and metric == @metric and scale == @scale and section == @section")
    assert len(found) == 1
    return found.iloc[0]


# what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["pearson", "spearman", "ssim", "js", "rmse", "mae", "zscore_rmse"])
def test_value_is_the_metric_per_section_then_averaged(adata, metric):
    table = run(adata, metrics=[metric])
    counts = adata.X.toarray()
    target = metrics.panel_target(counts[:120])
    expected = []
    for name in ("b1", "b2"):
        rows = (adata.obs[_keys.LIBRARY] == name).to_numpy() & (counts.sum(axis=1) >= 50)
        truth = metrics.normalize_panel(counts[rows], target=target)
        prediction = metrics.normalize_panel(adata.layers["good"][rows], target=target)
        expected.append(getattr(metrics, metric)(truth, prediction).mean())
        assert row(table, metric=metric, section=name)["value"] == pytest.approx(expected[-1], abs=1e-6)
    assert row(table, metric=metric)["value"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_raw_scale_stands_beside_the_normalized_one_and_depth_rules_it(adata):
    table = run(adata)
    assert set(table["scale"]) == {"normalized", "raw"}
    oracle = [row(table, method="depth oracle", scale=scale)["value"] for scale in ("normalized", "raw")]
    assert oracle[0] < oracle[1]
    counts = adata.X.toarray()
    b1 = slice(120, 180)
    raw = metrics.pearson(np.log1p(counts[b1]), np.log1p(adata.layers["good"][b1])).mean()
    assert row(table, scale="raw", section="b1")["value"] == pytest.approx(raw, abs=1e-6)


def test_headline_comes_first_with_nulls_beside_it(adata):
    table = run(adata, ["noise", "good"])
    head = table.iloc[:6]
    assert head["method"].tolist() == [
        "noise",
        "good",
        "section mean",
        "coordinate kNN",
        "depth oracle",
        "neighbours' truth",
    ]
    assert head["kind"].tolist() == ["model", "model", "null", "null", "oracle", "oracle"]
    assert set(head["metric"]) == {"pearson"} and set(head["scale"]) == {"normalized"}
    assert set(head["section"]) == {"mean"}


def test_good_prediction_gains_and_noise_does_not(adata, caplog):
    with caplog.at_level(logging.WARNING, "stgen"):
        table = run(adata, ["good", "noise"])
    good, noise = row(table), row(table, method="noise")
    assert good["gain_low"] > 0.2 and good["verdict"] == "use"
    assert good["gain_low"] < good["gain"] < good["gain_high"]
    assert noise["gain_low"] < 0 and noise["verdict"] != "use"
    (message,) = caplog.messages
    assert message.startswith("noise does not beat the null")


def test_gain_is_over_the_best_null_and_an_undefined_correlation_counts_as_zero(adata):
    table = run(adata)
    mean, knn, good = (row(table, method=m) for m in ("section mean", "coordinate kNN", "good"))
    assert np.isnan(mean["value"]) and mean["n_undefined"] == 2 * N_GENES
    best = max(0, knn["value"])
    assert good["best_null"] == ("coordinate kNN" if knn["value"] > 0 else "section mean")
    assert good["gain"] == pytest.approx(good["value"] - best)
    rmse = [row(table, method=m, metric="rmse")["value"] for m in ("section mean", "coordinate kNN", "good")]
    assert row(table, metric="rmse")["gain"] == pytest.approx(min(rmse[:2]) - rmse[2])


def test_leaving_hard_genes_blank_does_not_raise_the_gain(adata):
    adata.layers["blank"] = adata.layers["good"].copy()
    adata.layers["blank"][:, 3] = np.nan
    adata.layers["constant"] = np.log1p(adata.X.toarray())
    adata.layers["constant"][:, :] = 1.0
    table = run(adata, ["good", "blank", "constant"], scale={"constant": "raw"})
    assert row(table, method="blank")["n_undefined"] == 2
    assert row(table, method="blank")["gain"] < row(table)["gain"]
    assert row(table, method="constant")["gain"] <= 0
    assert adata.var["evaluation_blank_verdict"].iloc[3] != "use"
    assert np.isnan(adata.var["evaluation_blank_score"].iloc[3])


def test_undefined_genes_of_the_truth_are_counted_and_get_no_verdict(adata):
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(N_GENES) != 2))
    table = run(adata)
    assert row(table)["n_undefined"] == 2 and row(table)["n_genes"] == N_GENES
    assert adata.var["evaluation_good_verdict"].iloc[2] == "undefined"
    assert adata.var[["evaluation_good_gain", "evaluation_good_gain_low"]].iloc[2].isna().all()


def test_near_empty_spots_are_dropped_and_the_number_is_told(adata):
    table = run(adata)
    assert row(table, section="b1")["n_dropped"] == 0
    assert row(table, section="b2")["n_dropped"] == 2
    assert row(table)["n_dropped"] == 2 and row(table)["n_spots"] == 118
    with pytest.raises(ValueError, match=r"120 of 120 evaluated spots have fewer than 1e\+06 counts"):
        run(adata, min_counts=1e6)


def test_numbers_that_flatter_are_marked_by_their_name_and_bring_no_gain(adata):
    table = run(adata)
    top = row(table, metric="pearson_top10")
    scores = [np.sort(s)[-10:].mean() for s in _pearson_by_section(adata)]
    assert top["value"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert np.isnan(top["gain"]) and top["verdict"] == ""
    within = row(table, metric="pearson_within_spot")
    assert within["best_null"] == "section mean" and within["gain"] > 0
    assert "pearson_top50" not in set(table["metric"])


def _pearson_by_section(adata):
    counts = adata.X.toarray()
    target = metrics.panel_target(counts[:120])
    for rows in (slice(120, 180), slice(180, 238)):
        truth = metrics.normalize_panel(counts[rows], target=target)
        yield metrics.pearson(truth, metrics.normalize_panel(adata.layers["good"][rows], target=target))


def test_one_section_is_flagged_and_its_interval_is_over_blocks(adata):
    adata.obs.loc[adata.obs[_keys.LIBRARY] == "b2", _keys.SPLIT] = "buffer"
    table = run(adata)
    assert row(table)["interval"] == "blocks" and "one section" in row(table)["flags"]
    assert row(table)["gain_low"] > 0
    assert np.isnan(row(table, metric="rmse")["gain_low"])
    assert "sections under 100 spots: b1" in row(table)["flags"]


def test_verdict_follows_the_rule():
    gain = np.array([0.2, 0.1, -0.3, np.nan])
    answer = verdicts(gain, np.array([0.1, -0.1, -0.4, np.nan]), np.array([0.3, 0.3, -0.1, np.nan]))
    assert answer.tolist() == ["use", "weak", "do not use", "undefined"]


def test_gene_results_lie_in_var(adata):
    # taken as it is: divided by a common total, noise would share in what the good genes know
    adata.layers["mixed"] = metrics.normalize_panel(adata.layers["good"], target=400)
    adata.layers["mixed"][:, 6:] = adata.layers["noise"][:, 6:]
    table = run(adata, "mixed", n_boot=200, scale="normalized")
    var = adata.var.filter(like="evaluation_mixed_")
    assert [c.removeprefix("evaluation_mixed_") for c in var] == [
        "score",
        "gain",
        "gain_low",
        "gain_high",
        "verdict",
    ]
    verdict = var["evaluation_mixed_verdict"].to_numpy()
    assert (verdict[:6] == "use").all() and (verdict[6:] != "use").sum() >= 5
    assert var["evaluation_mixed_score"].mean() == pytest.approx(row(table, method="mixed")["value"])
    assert (var["evaluation_mixed_gain_low"] <= var["evaluation_mixed_gain"]).all()
    assert (var["evaluation_mixed_gain"] <= var["evaluation_mixed_gain_high"]).all()


# what is compared --------------------------------------------------------------------------------------------------


def test_default_baselines_get_histology_with_the_models_neighbours(adata):
    adata.uns["good"] = {"params": {"n_neighbors": 3}}
    table = run(
        adata, baselines=[RidgeOnHistology(scale="normalized"), SectionMean()], histology_key=_keys.HISTOLOGY
    )
    assert adata.uns[_keys.EVALUATION]["params"]["n_neighbors"] == 3
    with_three = row(table, method="ridge")["value"]
    assert with_three > 0.4
    ridge = [RidgeOnHistology(scale="normalized")]
    assert row(run(adata, baselines=ridge, n_neighbors=0), method="ridge")["value"] != with_three
    assert np.isnan(row(table, method="ridge", scale="raw")["value"])
    assert row(table)["best_baseline"] == "ridge"
    assert row(table)["gain_over_baseline"] == pytest.approx(row(table)["value"] - with_three)


def test_all_default_baselines_run_once_per_scale(adata):
    table = run(adata[:, :4].copy(), baselines=True, metrics=["pearson"])
    names = table.query("section == 'mean' and metric == 'pearson'").groupby("scale")["method"].apply(list)
    assert names["normalized"] == names["raw"]
    assert set(names["raw"]) >= {"ridge", "MLP", "count classifier", "section mean"}
    assert row(table, method="count classifier", scale="raw")["value"] > 0.2
    assert row(table, method="MLP", scale="raw")["value"] > 0.2


def test_without_histology_only_nulls_and_oracles_run(adata):
    del adata.obsm[_keys.HISTOLOGY]
    assert set(run(adata, baselines=True)["kind"]) == {"model", "null", "oracle"}
    with pytest.raises(KeyError, match=r"obsm\['X_histology'\] does not exist, and a baseline needs it"):
        run(adata, baselines=[RidgeOnHistology()])


def test_nothing_is_learned_from_test_rows(adata, monkeypatch):
    """Neither the target of the normalized scale nor any fit changes with the truth that is scored."""
    from stgen.tl import _evaluate

    seen = []

    def fit_predict(baselines, *args, **kwargs):
        answer = _fit_predict(baselines, *args, **kwargs)
        seen.append(answer)
        return answer

    _fit_predict = _evaluate.fit_predict
    monkeypatch.setattr(_evaluate, "fit_predict", fit_predict)
    poisoned = adata.copy()
    counts = poisoned.X.toarray()
    counts[120:-2] = np.random.default_rng(3).poisson(40, counts[120:-2].shape)
    poisoned.X = sparse.csr_matrix(counts)
    for data in (adata, poisoned):
        run(data, baselines=[SectionMean(), CoordinateKNN(), RidgeOnHistology()])
    for first, second in zip(seen[:3], seen[3:]):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    targets = [data.uns[_keys.EVALUATION]["params"]["target"] for data in (adata, poisoned)]
    assert targets[0] == targets[1]


def test_prediction_of_some_genes_in_another_order_is_joined_by_name(adata):
    whole = run(adata)
    order = [5, 3, 1, 0, 8]
    adata.obsm["part"] = adata.layers["good"][:, order]
    adata.uns["part"] = {"genes": np.array(adata.var_names[order])}
    run(adata, "part")
    on_part = adata.var["evaluation_part_verdict"]
    assert (on_part == "not evaluated").sum() == N_GENES - 5
    sub = adata[:, sorted(order)].copy()
    sub.layers["part"] = sub.layers["good"]
    del sub.obsm["part"], sub.uns["part"]
    # near-empty spots are judged over all genes, so the rows must be chosen alike
    keep = np.asarray(adata.X.sum(axis=1)).ravel() >= 50
    run(sub[keep].copy(), "part", min_counts=0)
    assert row(run(adata, "part"), method="part")["value"] == pytest.approx(
        row(run(sub[keep].copy(), "part", min_counts=0), method="part")["value"]
    )
    assert row(whole)["n_genes"] == N_GENES
    together = run(adata, ["good", "part"])
    assert row(together)["n_genes"] == 5 and "5 genes common" in row(together)["flags"]


def test_normalized_and_raw_predictions_are_used_as_what_they_are(adata):
    counts = adata.layers["good"].astype(float)
    adata.layers["log"] = np.log1p(counts)
    adata.layers["norm"] = metrics.normalize_panel(counts, target=100)
    adata.uns["norm"] = {"params": {"scale": "normalized"}}
    table = run(adata, ["good", "log", "norm"], scale={"log": "raw"})
    good = row(table)["value"]
    assert row(table, method="log")["value"] == pytest.approx(good, abs=1e-5)
    assert row(table, method="norm")["value"] == pytest.approx(good, abs=0.02)
    raw = row(table, method="norm", scale="raw")
    assert np.isnan(raw["value"]) and raw["n_undefined"] == 2 * N_GENES


# what it refuses ---------------------------------------------------------------------------------------------------


def test_shared_patient_is_refused_or_flagged(adata):
    adata.obs.loc[adata.obs[_keys.LIBRARY] == "a2", _keys.SPLIT] = _keys.TEST
    with pytest.raises(ValueError, match=r"Patient a is in both training and evaluation.*Split by patient"):
        run(adata)
    table = run(adata, allow_shared_patients=True)
    assert (table["flags"].str.contains("patient shared with training: a")).all()
    adata.obs[_keys.PATIENT] = "x"
    adata.obs["who"] = adata.obs[_keys.LIBRARY].astype(str)
    assert "shared" not in run(adata, patient_key="who")["flags"].iloc[0]


def test_validation_rows_count_as_seen(adata):
    adata.obs.loc[adata.obs_names[:60], _keys.PATIENT] = "b"
    adata.obs.loc[adata.obs_names[:60], _keys.SPLIT] = _keys.VALIDATION
    with pytest.raises(ValueError, match="Patient b is in both"):
        run(adata)


def test_shared_section_is_refused_even_if_patients_are_unknown(adata):
    del adata.obs[_keys.PATIENT]
    assert "patients unknown" in run(adata)["flags"].iloc[0]
    adata.obs.loc[adata.obs_names[:10], _keys.SPLIT] = _keys.TEST
    with pytest.raises(ValueError, match="Section a1 is in both training and evaluation"):
        run(adata)


def test_slide_the_model_was_trained_on_is_refused_or_flagged(adata):
    adata.uns["good"] = {"params": {"train_sections": np.array(["b1", "z9"])}}
    with pytest.raises(ValueError, match=r"The model behind 'good' was trained on b1 \(uns\['good'\]\)"):
        run(adata)
    assert "good was trained on b1" in run(adata, allow_shared_patients=True)["flags"].iloc[0]
    adata.uns["noise"] = {"params": {"of": "good"}}
    with pytest.raises(ValueError, match=r"The model behind 'noise' was trained on b1"):
        run(adata, "noise")


def test_values_that_are_not_measured_counts_are_no_truth(adata):
    with pytest.raises(
        ValueError, match=r"layers\['noise'\] must hold counts.*name the layer .* with `truth=`"
    ):
        run(adata, truth="noise")
    adata.layers["imputed"] = np.round(adata.layers["good"])
    adata.uns["imputed"] = {"params": {}}
    with pytest.raises(ValueError, match=r"layers\['imputed'\] is itself a prediction"):
        run(adata, truth="imputed")
    with pytest.raises(KeyError, match=r"layers\['nothing'\] does not exist; layers has \['good', 'noise'"):
        run(adata, truth="nothing")


def test_truth_may_lie_in_a_layer(adata):
    before = row(run(adata))["value"]
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.zeros(adata.shape)
    assert row(run(adata, truth="counts"))["value"] == before


def test_missing_split_or_test_rows_name_the_remedy(adata):
    with pytest.raises(KeyError, match=r"obs\['nothing'\] does not exist.*stg.pp.split.*split_key=None"):
        run(adata, split_key="nothing")
    table = run(adata, split_key=None)
    assert set(table["kind"]) == {"model"} and "no training rows" in table["flags"].iloc[0]
    assert row(table)["verdict"] == "" and np.isnan(row(table)["gain"])
    adata.obs[_keys.SPLIT] = _keys.TRAIN
    with pytest.raises(ValueError, match=r"calls no spot 'test'; it has train"):
        run(adata)


def test_genes_lost_by_name_are_refused_or_reported(adata):
    adata.obsm["part"] = adata.layers["good"][:, :4]
    adata.uns["part"] = {"genes": np.array(["g1", "g2", "g3", "unknown"])}
    assert "1 of 4 genes of part are not in the truth" in run(adata, "part")["flags"].iloc[0]
    adata.uns["part"] = {"genes": np.array(["g1", "g2", "g3", "GRCh38_G9"])}
    with pytest.warns(
        UserWarning,
        match=r"^1 of 4 genes of part are not in the truth\. 1 of them is there when upper and lower case are ignored and "
        r"without the genome prefix \(GRCh38_G9 – g9\)",
    ):
        run(adata, "part")
    adata.uns["part"] = {"genes": np.array(["G1", "G2", "G3", "G4"])}
    with pytest.raises(
        ValueError, match=r"same kind of gene names\. 4 of them are there when upper and lower case are"
    ):
        run(adata, "part")
    adata.uns["part"] = {"genes": np.array(["ENSG1", "ENSG2", "ENSG3", "g1"])}
    with pytest.raises(ValueError, match=r"Only 1 of the 4 genes of 'part' are in `var_names`; at least 50%"):
        run(adata, "part")
    adata.uns["part"] = {"genes": np.array(["g1"])}
    with pytest.raises(ValueError, match=r"shape \(240, 4\), but uns\['part'\]\['genes'\] names 1"):
        run(adata, "part")
    del adata.uns["part"]
    with pytest.raises(KeyError, match=r"obsm\['part'\] has no list of its genes"):
        run(adata, "part")


def test_spot_without_a_prediction_is_an_error(adata):
    adata.layers["good"][150:153] = np.nan
    with pytest.raises(
        ValueError, match=r"'good' has no prediction \(only NaN\) for 3 of 118 evaluated spots"
    ):
        run(adata)


def test_negative_counts_are_told_what_they_may_be(adata):
    adata.layers["good"] = adata.layers["good"] - 50
    with pytest.raises(ValueError, match=r"'good' is taken for counts but has negative values.*'normalized'"):
        run(adata)


def test_arguments_are_checked(adata):
    with pytest.raises(KeyError, match=r"There is no prediction 'nothing': layers has \['good', 'noise'\]"):
        run(adata, "nothing")
    with pytest.raises(ValueError, match="one key or several different ones"):
        run(adata, ["good", "good"])
    with pytest.raises(ValueError, match=r"list of names out of pearson.*'accuracy'"):
        run(adata, metrics=["accuracy"])
    with pytest.raises(ValueError, match="True, False, 'nulls' or a list"):
        run(adata, baselines="some")
    with pytest.raises(ValueError, match=r"must be one of 'counts', 'normalized', 'raw'; got 'log'"):
        run(adata, scale="log")
    with pytest.raises(TypeError, match="Expected an AnnData; got ndarray"):
        run(adata.layers["good"])
    adata.obsm[_keys.HISTOLOGY][200] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_histology'\] must be finite; 1 of"):
        run(adata, baselines=True)
    with pytest.raises(KeyError, match=r"obsm\['um'\] does not exist"):
        run(adata, spatial_key="um")


def test_overlapping_sections_without_their_column_are_noticed(adata):
    adata.obs = adata.obs.rename(columns={_keys.LIBRARY: "slide"}).drop(columns=_keys.PATIENT)
    with pytest.raises(ValueError, match="slide"):
        run(adata)
    assert set(run(adata, groups="slide")["section"]) == {"mean", "b1", "b2"}


# what it writes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_the_disk(adata, tmp_path, kind):
    table = run(adata, ["good", "noise"])
    path = tmp_path / f"x.{kind}"
    getattr(adata, f"write_{kind}")(path)
    again = getattr(ad, f"read_{kind}")(path)
    record = again.uns[_keys.EVALUATION]
    pd.testing.assert_frame_equal(pd.DataFrame(dict(record["table"]))[list(table)], table, check_dtype=False)
    assert record["genes"][0] == "CCL3/L1/L3"
    assert record["pearson_normalized"].shape == (len(record["methods"]), N_GENES)
    assert again.var["evaluation_good_verdict"].tolist() == adata.var["evaluation_good_verdict"].tolist()


def test_nothing_else_is_changed_and_twice_is_once(adata):
    before = adata.copy()
    first = run(adata)
    pd.testing.assert_frame_equal(run(adata), first)
    assert set(adata.uns) == {_keys.EVALUATION}
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.var) == [
        f"evaluation_good_{w}" for w in ("score", "gain", "gain_low", "gain_high", "verdict")
    ]
    assert (adata.X != before.X).nnz == 0
    assert set(adata.layers) == set(before.layers) and set(adata.obsm) == set(before.obsm)
    for key in ("good", "noise"):
        np.testing.assert_array_equal(adata.layers[key], before.layers[key])


def test_failed_call_leaves_no_trace(adata):
    with pytest.raises(KeyError):
        run(adata, baselines=[RidgeOnHistology()], histology_key="nothing")
    assert not adata.uns and adata.var.empty


@pytest.mark.parametrize("make", ["dense", "csc", "view", "permuted"])
def test_containers_and_orders_give_the_same_scores(adata, make, tmp_path):
    expected = run(adata.copy())
    if make == "dense":
        adata.X = adata.X.toarray()
    elif make == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif make == "view":
        adata = adata[np.arange(adata.n_obs)]
    elif make == "permuted":
        rng = np.random.default_rng(1)
        adata = adata[rng.permutation(adata.n_obs)][:, rng.permutation(adata.n_vars)].copy()
    found = run(adata)
    np.testing.assert_allclose(found["value"], expected["value"], atol=1e-6)
    np.testing.assert_allclose(found["gain"], expected["gain"], atol=1e-6)


def test_backed_truth_is_read_where_it_lies(adata, tmp_path):
    expected = row(run(adata))["value"]
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert row(run(backed))["value"] == pytest.approx(expected, abs=1e-6)


def test_seed_decides_and_is_recorded(adata):
    first = run(adata, random_state=1)
    pd.testing.assert_frame_equal(run(adata, random_state=1), first)
    assert adata.uns[_keys.EVALUATION]["params"]["random_state"] == 1
    assert row(run(adata, random_state=2))["gain_low"] != row(first)["gain_low"]


def test_spots_that_a_model_was_trained_on_are_not_scored_unsaid(adata):
    """Without names of sections the record of the prediction still says how many spots the model had seen."""
    adata.uns["good"] = {"seen_in_training": {"n_spots": 120}, "params": {}}
    with pytest.raises(ValueError, match=r"trained on 120 of these spots .* Name the column .* `split_key=`"):
        run(adata, split_key=None)
    table = run(adata, split_key=None, allow_shared_patients=True)
    assert table["flags"].str.contains("good was trained on 120 spots of this AnnData").all()
    assert run(adata)["flags"].str.contains("good was trained on 120 spots").any()
    del adata.uns["good"]
    assert not run(adata, split_key=None)["flags"].str.contains("was trained on").any()
