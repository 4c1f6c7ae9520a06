"""The benchmark from H&E to counts: what it writes can be read, nulls stand beside the model, pairs are pairs."""

from __future__ import annotations

import json
import math
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen import metrics
from stgen.datasets import TOY_JUDGE, TOY_JUDGE_SEEDS, TOY_TUNE_SEEDS

BENCHMARK = "histology"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]
COST = ["dataset", "method", "train_seconds", "predict_seconds", "peak_mb"]


@pytest.fixture(scope="module")
def ran(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run on two patients and two seeds, with one epoch, through the command line but for the size of the tissue."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.QUICK, "toy", benchmark.ToySize(2, 1, 40, 12))
        patch.setitem(benchmark.QUICK, "without_place", True)
        out, pictures = folder / "new" / "out.json", folder / "pictures"
        benchmark.main(
            ["--quick", "--seeds", "0,1", "--max-epochs", "1", "--out", str(out), "--figure", str(pictures)]
        )
    written = json.loads(out.read_text())
    return SimpleNamespace(json=written, rows=pd.DataFrame(written["rows"]), pictures=pictures)


def test_json_is_one_object_of_the_stated_form(ran):
    assert list(ran.json) == ["meta", "rows", "costs", "paired"]
    assert {"versions", "command", "seeds", "datasets"} <= set(ran.json["meta"])
    assert ran.json["meta"]["seeds"] == [0, 1]
    assert all(list(row) == ROW for row in ran.json["rows"])
    assert all(list(cost) == COST for cost in ran.json["costs"])
    assert set(ran.rows["kind"]) == {"model", "baseline", "null", "oracle"}
    assert not ran.rows.duplicated(ROW[:-1]).any()


def test_no_folder_of_the_reader_is_written_down(ran):
    command = ran.json["meta"]["command"]
    assert (
        command.startswith("python benchmarks/histology.py --quick --seeds 0,1") and "--out FILE" in command
    )
    assert str(ran.pictures.parent) not in json.dumps(ran.json)


def test_metrics_are_those_of_stgen_on_the_stated_scales(ran):
    names = set(ran.rows["metric"])
    per_gene = {"pearson", "spearman", "rmse", "mae", "ssim"}
    assert per_gene | {"pit_deviation"} <= names & set(metrics.__all__)
    others = {"n_undefined", "pearson_module", "pearson_other", "pcc_10", "nll", "coverage_50", "coverage_90"}
    assert names == per_gene | {"pit_deviation", "pit_deviation_pooled"} | others | {
        "coverage_50_gap",
        "coverage_90_gap",
        "codes_used",
        "perplexity_share",
    }
    scales = ran.rows.groupby("metric")["scale"].agg(set)
    assert all(scales[name] == {"normalized", "raw"} for name in per_gene)
    assert scales["pit_deviation"] == scales["coverage_90"] == {""}


def test_calibration_is_also_told_of_all_held_out_sections_together(ran):
    pooled = ran.rows[ran.rows["metric"] == "pit_deviation_pooled"].set_index("method")
    assert set(pooled["section"]) == {"all sections"} and pooled.index.is_unique
    apart = ran.rows[(ran.rows["metric"] == "pit_deviation") & (ran.rows["method"] == "GenAR")]["value"]
    # a mean of distribution functions is no further from the diagonal than the furthest of them
    assert 0 < pooled.loc["GenAR", "value"] <= apart.max() + 0.01


def test_every_null_and_baseline_stands_beside_the_model(ran, benchmark):
    from stgen.baselines import histology_baselines

    headline = ran.rows[(ran.rows["metric"] == "pearson") & (ran.rows["scale"] == "normalized")]
    n_rows = headline.groupby("method").size()
    assert (n_rows == n_rows["GenAR"]).all() and n_rows["GenAR"] == 4  # 2 held-out patients × 2 seeds
    expected = {one.name for one in histology_baselines()}
    expected |= {"ridge without neighbours", "ridge with place", benchmark.LINEAR, benchmark.UNTRAINED}
    expected |= {"GenAR (counts)", benchmark.NO_PLACE, "contrastive retrieval with place"}
    expected |= {benchmark.GENST, benchmark.GENST_UNTRAINED, benchmark.GENST_NO_PLACE, "GenST (nearest code)"}
    assert expected < set(n_rows.index)


def test_what_is_undefined_is_null_and_counted(ran):
    mean = ran.rows[ran.rows["method"] == "section mean"]
    assert mean.loc[mean["metric"] == "pearson", "value"].isna().all()
    assert (mean.loc[mean["metric"] == "n_undefined", "value"] == 12).all()


def test_toy_tissues_are_those_kept_for_judging(ran, benchmark):
    sections = set(ran.rows["section"]) - {"all sections"}
    assert {name.split("-")[0] for name in sections} == {str(seed) for seed in TOY_JUDGE_SEEDS[:2]}
    assert not set(TOY_JUDGE_SEEDS) & set(TOY_TUNE_SEEDS)
    assert ran.json["meta"]["datasets"]["toy"]["parameters"] == dict(TOY_JUDGE)


def test_paired_differences_are_differences_of_rows(ran):
    headline = ran.rows[(ran.rows["metric"] == "pearson") & (ran.rows["scale"] == "normalized")]
    value = headline.set_index(["method", "section", "seed"])["value"]
    found = {
        entry["against"]: entry
        for entry in ran.json["paired"]
        if (entry["method"], entry["metric"], entry["scale"], entry["genes"])
        == ("GenAR", "pearson", "normalized", "all")
    }
    ridge = found["ridge"]
    assert (value["GenAR"] - value["ridge"]).mean() == pytest.approx(ridge["difference"], abs=1e-5)
    assert ridge["low"] <= ridge["difference"] <= ridge["high"]
    assert ridge["low_genes"] <= ridge["difference"] <= ridge["high_genes"]
    assert (ridge["n_units"], ridge["n_seeds"], ridge["n_genes"]) == (4, 2, 24)
    # the constant null shows nothing: 0, so that the model's own correlation is the gain
    assert found["section mean"]["difference"] == pytest.approx(value["GenAR"].mean(), abs=1e-5)


def test_how_much_more_modules_gain_is_told_beside_both_gains(ran):
    gain = {
        entry["genes"]: entry["difference"]
        for entry in ran.json["paired"]
        if (entry["method"], entry["against"], entry["metric"], entry["scale"])
        == ("GenAR", "ridge", "pearson", "normalized")
    }
    assert gain["module less other"] == pytest.approx(gain["module"] - gain["other"], abs=1e-5)


def test_pictures_are_drawn(ran):
    assert sorted(ran.json["meta"]["pictures"]) == sorted(path.name for path in ran.pictures.iterdir())
    assert len(ran.json["meta"]["pictures"]) == 3


def test_ablations_stand_beside_the_default(benchmark, monkeypatch):
    kept = {name: benchmark.ABLATIONS[name] for name in ("single scale", "one-hot labels")}
    monkeypatch.setattr(benchmark, "ABLATIONS", kept)
    size = benchmark.ToySize(2, 1, 30, 8)
    options = benchmark.Options(
        datasets=("toy",), seeds=(0,), toy=size, max_folds=1, max_epochs=1, ablations=True
    )
    results, _, paired = benchmark.run(options)
    assert {"GenAR", "section mean", "ridge", *kept} < set(results.methods("toy"))
    assert {entry["against"] for entry in paired if entry["method"] in kept} == {"GenAR"}


def test_every_ablation_is_a_model_that_can_be_built(benchmark):
    import dataclasses

    from stgen.models.genar._config import GenARConfig

    for changes in benchmark.ABLATIONS.values():
        dataclasses.replace(GenARConfig(), **changes(100))


def test_calibration_is_read_off_the_distribution(benchmark):
    rng = np.random.default_rng(1)  # not the seed that the randomised PIT draws from
    probability = np.tile(np.array([0.5, 0.3, 0.15, 0.05]), (4000, 5, 1))
    counts = rng.choice(4, size=(4000, 5), p=probability[0, 0])
    read = benchmark.read_distribution(probability.copy(), counts)
    np.testing.assert_allclose(read["at"] - read["below"], probability[0, 0][counts])
    assert (read["lower_90"] == 0).all() and (read["upper_90"] == 2).all()
    np.testing.assert_allclose(read["cdf_upper_90"] - read["cdf_lower_90"], 0.95)
    scores = benchmark.calibration(counts, read)
    assert scores["pit_deviation"] < 0.02 and abs(scores["coverage_90_gap"]) < 0.01
    assert scores["nll"] == pytest.approx(-(probability[0, 0] @ np.log(probability[0, 0])), abs=0.02)
    beyond = benchmark.read_distribution(probability[:1].copy(), np.full((1, 5), 9))
    assert (beyond["below"] == 1).all()  # above the vocabulary: no mass is left


def test_ridge_with_place_finds_a_pattern_of_place_only_where_it_carries_over(benchmark):
    rng = np.random.default_rng(0)
    n = 150
    section = np.repeat(["a", "b", "c"], n)
    xy = rng.uniform(-1000, 1000, (3 * n, 2))
    phase = {"same": [0, 0, 0], "different": [0, 2, 4]}
    train, test, scores = section != "c", section == "c", {}
    for name, shift in phase.items():
        wave = np.sin(xy[:, :1] / 400 + np.repeat(shift, n)[:, None])
        counts = rng.poisson(np.exp(3 + wave * [1, -1, 0.5] + rng.normal(size=(3 * n, 1)) * 0.1))
        features = rng.normal(size=(3 * n, 4))
        ridge = benchmark.RidgeWithPlace().fit(features[train], counts[train], xy[train], section[train])
        prediction = ridge.predict(features[test], xy[test], section[test])
        scores[name] = metrics.pearson(ridge.on_scale(counts[test].astype(float)), prediction).mean()
    assert scores["same"] > 0.9
    assert scores["same"] > scores["different"] + 0.3


def test_an_interval_over_units_and_genes_is_wider_than_one_over_units(benchmark):
    from _report import crossed_interval

    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (1, 50)) + rng.normal(0, 0.05, (8, 50))
    units = np.repeat(["p", "q", "r", "s"], 2)
    low, high = crossed_interval(values, units)
    plain = metrics.bootstrap_interval(values.mean(axis=1), groups=units)
    assert low < plain[0] < values.mean() < plain[1] < high
    values[:, 3] = np.nan  # a gene outside of every panel
    assert np.isfinite(crossed_interval(values, units)).all()
    assert all(math.isnan(bound) for bound in crossed_interval(values[:2], units[:2]))


def test_real_sections_of_one_patient_are_flagged(benchmark, tmp_path, monkeypatch):
    import anndata

    from stgen.datasets import toy_tissue

    adata = toy_tissue(n_sections=2, n_patients=1, spots_per_section=30, n_genes=10, random_state=3)
    is_kept = np.arange(adata.n_obs)[:, None] > 0
    adata.X = sparse.csr_matrix(adata.X.toarray() * is_kept)
    for name in ("s1", "s2"):
        section = adata[adata.obs["section"] == name].copy()
        del section.uns["spatial_um"]
        section.uns["um_per_unit"] = 1.0
        section.write_h5ad(tmp_path / f"{name}.h5ad")
        (tmp_path / f"{name}_patches.h5").touch()
    monkeypatch.setattr(benchmark.stg.pp, "embed_histology", lambda adata, tiles: None)
    dataset = benchmark.read_sections(tmp_path, 5)
    assert isinstance(dataset.adata, anndata.AnnData)
    assert dataset.n_dropped == {"s1": 1, "s2": 0}
    assert dataset.units == ["s1", "s2"] and "PATIENT SHARED WITH TRAINING" in dataset.flags[0]
    fold = benchmark.make_fold(dataset, "s2")
    assert fold.train.n_vars == 5 and set(fold.column("test")) == {"s2"}
    (tmp_path / "s2_patches.h5").unlink()
    with pytest.raises(SystemExit, match=r"s2_patches\.h5 is missing beside s2\.h5ad"):
        benchmark.read_sections(tmp_path, 5)


def test_real_data_without_its_folder_says_what_is_missing(benchmark, tmp_path):
    with pytest.raises(SystemExit, match="--data DIR must say where"):
        benchmark.main(["--datasets", "her2st_he", "--out", str(tmp_path / "out.json")])
