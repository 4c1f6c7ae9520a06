"""The benchmark of imputation: hidden genes are handed to nobody, scores are what they say, pairs are pairs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen.models
from stgen import metrics

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARK = "imputation"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]
METRICS = {"pearson", "spearman", "ssim", "js", "rmse"}
BASELINES = {
    "reference mean",
    "cosine kNN",
    "ridge in the reference",
    "gene-wise kernel ridge",
    "mean of three",
}


def write_pair(folder: Path, *, seed: int, volumes: bool = False, cell_type: bool = True) -> None:
    """Three cell types, mixed over a field; one gene that no cell has, one gene too rare in space, one empty spot."""
    rng = np.random.default_rng(seed)
    profile = rng.gamma(1.0, 4.0, (3, 14))
    kind = rng.integers(3, size=80)
    cells = rng.poisson(profile[kind])
    xy = rng.uniform(0, 400, (110, 2))
    share = np.exp(np.stack([xy[:, 0], xy[:, 1], 400 - xy[:, 0]], axis=1) / 60)
    spots = rng.poisson(share / share.sum(axis=1, keepdims=True) @ profile)
    spots[0], cells[:, 2], spots[1:, 3], spots[1, 3] = 0, 0, 0, 1
    genes = [f"g{i}" for i in range(14)]
    folder.mkdir()
    x_type = "volume-normalised counts (published form)" if volumes else "raw_counts"
    anndata.AnnData(
        X=sparse.csr_matrix(spots * 0.37 if volumes else spots.astype(np.int32)),
        obs=pd.DataFrame(index=[f"s{i}" for i in range(110)]),
        var=pd.DataFrame(index=genes),
        obsm={"spatial": xy * 2},
        uns={"um_per_unit": 0.5, "x_type": x_type},
    ).write_h5ad(folder / "st.h5ad")
    anndata.AnnData(
        X=sparse.csr_matrix(cells.astype(np.int32)),
        obs=pd.DataFrame({"cell_type" if cell_type else "plate": kind.astype(str)}, index=[f"c{i}" for i in range(80)]),
        var=pd.DataFrame(index=genes),
        uns={"x_type": "raw_counts"},
    )[:, ::-1].copy().write_h5ad(folder / "sc.h5ad")  # fmt: skip


class Fake:
    """A model with the verbs of CausalGeD that writes down what it is given."""

    given: list[tuple[Any, Any, dict[str, Any]]] = []
    setups: list[dict[str, Any]] = []

    @classmethod
    def setup_anndata(cls, adata: Any, *, expression: str) -> None:
        cls.setups.append({"expression": expression})

    @classmethod
    def setup_reference(cls, reference: Any, *, expression: str) -> None:
        cls.setups.append({"expression": expression})

    def __init__(self, adata: Any, reference: Any, *, random_state: int, **changes: Any) -> None:
        self.adata, self.reference, self.random_state = adata, reference, random_state
        self.given.append((adata, reference, changes))

    def train(self, *, random_state: int) -> None:
        assert random_state == self.random_state

    def impute(self, genes: list[str]) -> anndata.AnnData:
        rng = np.random.default_rng(self.random_state)
        values = rng.gamma(1.0, 1.0, (self.adata.n_obs, len(genes)))
        made = anndata.AnnData(values, obs=self.adata.obs, var=pd.DataFrame(index=genes))
        for level, reach in ((50, 0.5), (90, 50.0)):
            made.layers[f"lower_{level}"], made.layers[f"upper_{level}"] = values - reach, values + reach
        made.layers["mass_90"] = np.full(values.shape, 0.95)
        made.var["predictability"] = np.linspace(0, 1, len(genes))
        made.var["low"], made.var["high"] = -1.0, 1.0
        made.var["verdict"] = "weak"
        return made[:, ::-1].copy()  # genes in an order of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("imputation")
    write_pair(data / "counted", seed=0)
    write_pair(data / "volumes", seed=1, volumes=True, cell_type=False)
    return data


@pytest.fixture(scope="module")
def ran(benchmark: ModuleType, folder: Path) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stgen.models, "CausalGeD", Fake, raising=False)
        patch.setattr(benchmark, "forget", lambda adata: None)  # saves importing scvi-tools
        Fake.given.clear(), Fake.setups.clear()
        out = folder / "new" / "out.json"
        benchmark.main(
            ["--data", str(folder), "--out", str(out), "--datasets", "counted,volumes,toy"]
            + ["--seeds", "0,1", "--folds", "2", "--no-peers"]
        )
    written = json.loads(out.read_text())
    return SimpleNamespace(
        json=written,
        rows=pd.DataFrame(written["rows"]),
        paired=pd.DataFrame(written["paired"]),
        given=list(Fake.given),
        setups=list(Fake.setups),
        data=folder,
    )


# --------------------------------------------------------------------------------------------------------------- form


def test_json_is_one_object_of_the_stated_form(ran):
    assert list(ran.json) == ["meta", "rows", "costs", "paired"]
    assert {"versions", "command", "seeds", "datasets", "meaning"} <= set(ran.json["meta"])
    assert all(list(row) == ROW for row in ran.json["rows"])
    assert not ran.rows.duplicated(ROW[:-1]).any()
    assert set(ran.rows["kind"]) == {"model", "baseline", "null"}
    assert BASELINES | {"CausalGeD", "cell-type mean"} <= set(ran.rows["method"])
    assert set(ran.rows.loc[ran.rows["scale"] == "normalized", "metric"]) == METRICS


def test_no_folder_of_the_reader_is_written_down(ran):
    assert ran.json["meta"]["command"].startswith("python benchmarks/imputation.py --data DIR --out FILE")
    assert str(ran.data) not in json.dumps(ran.json)


def test_every_method_stands_under_every_fold_and_seed(ran):
    pearson = ran.rows[(ran.rows["metric"] == "pearson") & (ran.rows["dataset"] == "counted")]
    found = pearson.groupby("method")[["fold", "seed"]].apply(lambda t: set(map(tuple, t.to_numpy())))
    assert all(places == {(f, s) for f in ("0", "1") for s in (0, 1)} for places in found)


def test_without_cell_types_that_null_alone_is_missing(ran):
    methods = ran.rows.groupby("dataset")["method"].agg(set)
    assert methods["counted"] - methods["volumes"] == {"cell-type mean"}


def test_genes_nobody_can_judge_and_empty_spots_are_counted(ran):
    about = ran.json["meta"]["datasets"]["counted"]
    assert about["n_genes_shared"] == 14 and about["n_genes"] == 12
    assert about["n_dropped_spots"] == {"0": 1, "1": 1}


# ------------------------------------------------------------------------------------------------------------ honesty


def test_the_model_gets_measured_genes_only_and_the_whole_reference(ran, benchmark):
    pair = benchmark.read_pair("counted", ran.data)
    for fold in (0, 1):
        task = benchmark.make_task(pair, fold)
        for adata, reference, _ in ran.given[2 * fold : 2 * fold + 2]:
            assert list(adata.var_names) == list(pair.genes[task.measured])
            assert not set(adata.var_names) & set(task.hidden_genes)
            assert set(reference.var_names) == set(pair.genes)
            assert (adata.X.sum(axis=1) > 0).all()
            assert adata.X.dtype == np.int32 and adata.obsm["spatial"].max() <= 400


def test_what_is_no_count_is_handed_over_logged(ran):
    counted, volumes = ran.setups[0:2], ran.setups[8:10]
    assert counted == [{"expression": "counts"}, {"expression": "counts"}]
    assert volumes == [{"expression": "log"}, {"expression": "counts"}]


def test_hidden_values_in_space_change_no_prediction(benchmark, folder):
    pair = benchmark.read_pair("counted", folder)
    clean = benchmark.make_task(pair, 0)
    poison = np.random.default_rng(0).integers(0, 9999, (len(pair.spots.values), len(clean.wanted)))
    pair.spots.values[:, clean.wanted] = poison
    poisoned = benchmark.make_task(pair, 0)
    assert not np.allclose(clean.truth, poisoned.truth)
    assert (clean.adata().X != poisoned.adata().X).nnz == 0
    assert (clean.reference().X != poisoned.reference().X).nnz == 0
    answers = [[a.prediction for a in benchmark.run_baselines(task)] for task in (clean, poisoned)]
    assert len(answers[0]) == 8
    assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))


def test_depth_comes_from_measured_genes_on_both_sides(benchmark, folder):
    pair = benchmark.read_pair("counted", folder)
    task = benchmark.make_task(pair, 1)
    kept = pair.spots.values[:, task.measured].sum(axis=1) > 0
    counts = pair.spots.values[kept]
    total = counts[:, task.measured].sum(axis=1)
    assert np.allclose(task.truth, np.log1p(counts[:, task.wanted] / total[:, None] * np.median(total)))
    cells = pair.cells.values
    total = cells[:, task.measured].sum(axis=1)
    assert np.allclose(task.log_cells, np.log1p(cells / total[:, None] * np.median(total)))


def test_spots_without_a_measured_count_can_be_kept(benchmark, folder):
    pair = benchmark.read_pair("counted", folder)
    assert len(benchmark.make_task(pair, 0).truth) + 1 == len(
        benchmark.make_task(pair, 0, keep_empty=True).truth
    )


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_those_of_the_library_and_knowing_nothing_scores_nothing(benchmark, folder):
    task = benchmark.make_task(benchmark.read_pair("counted", folder), 0)
    rng = np.random.default_rng(0)
    prediction = rng.gamma(1.0, 1.0, task.truth.shape)
    prediction[:, 0] = 0
    scores = benchmark.score_genes(task, prediction, task.target)
    for name in METRICS:
        expected = getattr(metrics, name)(task.truth, prediction)
        assert np.allclose(scores[name].iloc[1:], expected[1:])
    assert scores["pearson"].iloc[0] == scores["ssim"].iloc[0] == 0
    assert scores["js"].iloc[0] == pytest.approx(np.log(2))


def test_error_is_told_in_the_depth_of_the_spots(benchmark, folder):
    task = benchmark.make_task(benchmark.read_pair("counted", folder), 0)
    deeper = np.log1p(np.expm1(task.truth) * 7)
    assert np.allclose(benchmark.score_genes(task, deeper, 7 * task.target)["rmse"], 0)
    assert "rmse" not in benchmark.score_genes(task, deeper, None)


def test_coverage_is_compared_with_the_mass_of_the_interval(ran):
    own = ran.rows[ran.rows["method"] == "CausalGeD"].groupby("metric")["value"].mean()
    assert own["coverage_90"] == 1
    assert own["coverage_90_gap"] == pytest.approx(0.05)
    assert own["coverage_50_gap"] == pytest.approx(own["coverage_50"] - 0.5)


def test_estimates_of_the_model_are_held_against_what_came_out(ran):
    own = ran.rows[(ran.rows["method"] == "CausalGeD") & (ran.rows["dataset"] == "counted")]
    own = own.groupby("metric")["value"].mean()
    assert own["predictability_coverage"] == 1
    assert -1 <= own["predictability_spearman"] <= 1
    assert own["n_use"] == 0 and np.isnan(own["pearson_use"])
    assert own["pearson_weak"] == pytest.approx(own["pearson"])


def test_differences_are_means_over_genes_of_means_over_seeds(benchmark, folder):
    comparison, rng = benchmark.Comparison(), np.random.default_rng(0)
    pair = benchmark.read_pair("counted", folder)
    gaps: dict[str, list[float]] = {}
    for fold in range(benchmark.N_FOLDS):
        task = benchmark.make_task(pair, fold)
        noise = rng.gamma(1.0, 1.0, task.truth.shape)
        comparison.add(task, (0, 1), benchmark.Answer("rival", "baseline", task.truth + 3 * noise, None))
        for seed in (0, 1):
            made = task.truth + (0.1 + seed) * noise
            comparison.add(task, (seed,), benchmark.Answer("good", "model", made, None))
            gap = metrics.pearson(task.truth, made) - metrics.pearson(task.truth, task.truth + 3 * noise)
            for gene, value in zip(task.hidden_genes, gap, strict=True):
                gaps.setdefault(gene, []).append(value)
    pairs = pd.DataFrame(comparison.paired()).set_index("metric")
    assert pairs.loc["pearson", "difference"] == pytest.approx(np.mean([np.mean(v) for v in gaps.values()]))
    assert pairs.loc["pearson", "n_genes"] == len(pair.genes) and pairs.loc["pearson", "n_seeds"] == 2
    assert pairs.loc[["pearson", "js"], "verdict"].tolist() == ["better", "better"]
    assert pairs.loc["js", "high"] < 0 < pairs.loc["pearson", "low"]
    assert pairs["is_best"].all()


def test_all_takes_real_genes_together_and_leaves_the_toy_apart(ran):
    one = ran.paired[(ran.paired["method"] == "CausalGeD") & (ran.paired["metric"] == "pearson")]
    one = one[one["against"] == "mean of three"].set_index("dataset")
    assert set(one.index) == {"counted", "volumes", "toy", "all"}
    parts = one.loc[["counted", "volumes"]]
    assert one.loc["all", "n_genes"] == parts["n_genes"].sum()
    weighted = (parts["difference"] * parts["n_genes"]).sum() / parts["n_genes"].sum()
    assert one.loc["all", "difference"] == pytest.approx(weighted, abs=1e-5)
    assert one.loc["all", "difference_datasets"] == pytest.approx(parts["difference"].mean(), abs=1e-5)


def test_an_answer_of_another_shape_is_refused(benchmark, folder):
    task = benchmark.make_task(benchmark.read_pair("counted", folder), 0)
    with pytest.raises(ValueError, match="'short' must answer with 109 spots × 3 genes; got"):
        benchmark.Comparison().add(task, (0,), benchmark.Answer("short", "model", np.zeros((3, 6)), None))


# ------------------------------------------------------------------------------------------------------------ what if


def test_without_a_model_baselines_are_run_and_it_is_said(benchmark, folder, monkeypatch, capsys):
    monkeypatch.delitem(stgen.models.__dict__, "CausalGeD", raising=False)
    monkeypatch.setattr(stgen.models, "_WHERE", {})
    sys.modules["_run"]._SAID.clear()
    task = benchmark.make_task(benchmark.read_pair("counted", folder), 0)
    assert list(benchmark.run_causalged(task, 0)) == []
    assert "CausalGeD is not there: only baselines are run" in capsys.readouterr().err


def test_peers_that_are_not_installed_are_named(benchmark, folder, monkeypatch, capsys):
    missing = {name: (f"no_such_{i}", peer) for i, (name, (_, peer)) in enumerate(benchmark.PEERS.items())}
    monkeypatch.setattr(benchmark, "PEERS", missing)
    sys.modules["_run"]._SAID.clear()
    task = benchmark.make_task(benchmark.read_pair("counted", folder), 0)
    assert list(benchmark.run_peers(task, 0)) == []
    said = capsys.readouterr().err
    assert all(f"{name} is not installed" in said for name in ("Tangram", "gimVI", "SpaGE"))


def test_missing_files_and_names_without_overlap_are_explained(benchmark, folder, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(SystemExit, match=r"must hold st\.h5ad and sc\.h5ad; st\.h5ad and sc\.h5ad missing"):
        benchmark.read_pair("half", tmp_path)
    with pytest.raises(SystemExit, match="--data DIR must say where"):
        benchmark.read_pair("half", None)
    spatial = anndata.read_h5ad(folder / "counted" / "st.h5ad")
    other = spatial.copy()
    other.var_names = [f"ENSG{i}" for i in range(14)]
    with pytest.raises(SystemExit, match=r"at least 10 genes.*0 are.*'g0'.*'ENSG0'"):
        benchmark.make_pair("names", spatial, other)


def test_folds_out_of_range_are_refused(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(["--out", str(tmp_path / "x.json"), "--folds", "6"])
    assert "--folds must lie between 1 and 5; got 6" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
def test_figures_measured_earlier_come_out_of_the_benchmark(benchmark):
    if "STGEN_DATA" not in os.environ:
        pytest.skip("set STGEN_DATA to the folder with the real pairs")
    options = benchmark.Options(
        data=Path(os.environ["STGEN_DATA"]),
        datasets=("pair_osmfish_allen", "pair_visium_hippocampus"),
        seeds=(0,),
        with_model=False,
        keep_empty=True,
    )
    comparison = benchmark.run(options)[0]
    osmfish, visium = (comparison.table(name)["pearson"] for name in options.datasets)
    names = ["ridge in the reference", "cosine kNN", "gene-wise kernel ridge", "mean of three"]
    assert osmfish[names].tolist() == pytest.approx([0.278, 0.271, 0.289, 0.304], abs=0.001)
    assert visium[names].tolist() == pytest.approx([0.499, 0.449, 0.482, 0.505], abs=0.001)


@pytest.mark.parametrize("to_store", [False, True])
def test_the_speed_script_times_what_it_says(to_store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import speed_causalged

    training = speed_causalged.trained(60, 20, str(tmp_path / "model"))
    assert training["n_spots"] == 60 and training["seconds"] > 0
    found = speed_causalged.imputed(str(tmp_path / "model"), 70, 20, to_store)
    assert (found["n_spots"], found["n_genes"]) == (70, 50)
    assert found["seconds"] > 0 and found["output_mb"] >= 4 * 70 * 50 / 2**20


def test_gains_by_verdict_count_every_gene_once_and_leave_the_toy_out_of_all(benchmark: ModuleType) -> None:
    comparison = benchmark.Comparison()

    def gains(dataset: str, verdicts: str, values: list[float]) -> None:
        names = {"u": "use", "d": "do not use"}
        table = {"dataset": dataset, "verdict": [names[letter] for letter in verdicts], "gain": values}
        comparison.gains.append(pd.DataFrame(table, index=[f"g{i}" for i in range(len(values))]))

    gains("one", "uud", [0.2, 0.4, -0.1])
    gains("one", "uud", [0.4, 0.4, np.nan])  # another seed
    gains("two", "u", [1.0])
    gains("toy", "d", [5.0])
    found = {(entry["dataset"], entry["verdict"]): entry for entry in comparison.verdicts()}
    assert found["one", "use"]["gain"] == pytest.approx((0.3 + 0.4) / 2)
    assert found["one", "use"]["n_genes"] == 2
    assert found["one", "do not use"]["gain"] == pytest.approx(-0.1)
    assert found["all", "use"]["gain"] == pytest.approx((0.3 + 0.4 + 1.0) / 3)
    assert found["all", "do not use"]["gain"] == pytest.approx(-0.1)
    assert found["toy", "do not use"]["gain"] == 5.0
