"""The benchmark of unseen regions: nothing hidden is handed over, scores are what they say, pairs are pairs."""

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
from stgen import _keys, metrics

BENCHMARK = "unseen_region"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]
BASELINES = ["mean profile", "kNN", "inverse distance", "coordinate MLP", "GP on coordinates"]


def section(name: str, n_genes: int = 6, n: int = 260, *, log: bool = False) -> anndata.AnnData:
    """Genes that follow place, and one that does not; in pixels of half a µm."""
    rng = np.random.default_rng(len(name) + n_genes)
    xy = rng.uniform(0, 800, (n, 2))
    rate = np.exp(1.5 + np.sin(xy[:, :1] / 120 + np.arange(n_genes)) * np.r_[0, np.ones(n_genes - 1)])
    counts = rng.poisson(rate)
    counts[0] = 0 if not log else counts[0]  # an empty cell
    adata = anndata.AnnData(
        X=np.log1p(counts) if log else sparse.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame({"cell_type": "x"}, index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
        obsm={"spatial": xy * 2},
        uns={"um_per_unit": 0.5, "x_type": "log-normalised" if log else "raw_counts"},
    )
    return adata


class Fake:
    """A model with the verbs of GeST that writes down what it is given; it copies the nearest seen cell."""

    given: list[Any] = []
    changed: list[dict[str, Any]] = []

    @classmethod
    def setup_anndata(cls, adata: Any, *, expression: str, library_key: str) -> None:
        assert expression == "log"
        cls.given.append(adata)

    def __init__(self, adata: Any, *, random_state: int, **changes: Any) -> None:
        self.adata, self.random_state = adata, random_state
        self.changed.append(changes)

    def train(self, max_epochs: int | None = None, *, random_state: int) -> None:
        assert random_state == self.random_state

    def generate(self, adata: Any, *, mask: np.ndarray, interpolate: bool = True) -> anndata.AnnData:
        self.given.append((adata, mask))
        made = adata[mask].copy()
        for name in np.unique(made.obs[_keys.LIBRARY]):
            rows = (made.obs[_keys.LIBRARY] == name).to_numpy()
            known = self.adata[(self.adata.obs[_keys.LIBRARY] == name).to_numpy()]
            distance = np.abs(made.obsm["spatial"][rows][:, None] - known.obsm["spatial"]).sum(axis=-1)
            made.X[rows] = known.X[distance.argmin(axis=1)]
        made.layers["picked"] = np.zeros_like(made.X)
        made.obs["round"] = np.where(np.arange(made.n_obs) % 2, 1, 2)
        return made[:, ::-1].copy()  # genes in an order of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sections that belong together, and one on another scale with other genes."""
    data = tmp_path_factory.mktemp("unseen")
    (data / "study").mkdir()
    section("one").write_h5ad(data / "study" / "one.h5ad")
    section("three").write_h5ad(data / "study" / "three.h5ad")
    section("logged", 4, log=True).write_h5ad(data / "study" / "logged.h5ad")
    return data


@pytest.fixture(scope="module")
def ran(benchmark: ModuleType, folder: Path) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stgen.models, "GeST", Fake, raising=False)
        patch.setattr(benchmark, "forget", lambda adata: None)  # saves importing scvi-tools
        patch.setitem(benchmark.QUICK, "holes", True)
        patch.setitem(benchmark.QUICK, "n_rounds", 1)
        Fake.given.clear()
        out = folder / "new" / "out.json"
        benchmark.main(
            ["--data", str(folder), "--out", str(out), "--datasets", "study", "--quick", "--seeds", "0,1"]
        )
    written = json.loads(out.read_text())
    return SimpleNamespace(
        json=written, rows=pd.DataFrame(written["rows"]), given=list(Fake.given), data=folder
    )


# --------------------------------------------------------------------------------------------------------------- form


def test_json_is_one_object_of_the_stated_form(ran):
    assert list(ran.json) == ["meta", "rows", "costs", "paired"]
    assert {"versions", "command", "seeds", "datasets", "meaning"} <= set(ran.json["meta"])
    assert all(list(row) == ROW for row in ran.json["rows"])
    assert not ran.rows.duplicated(ROW[:-1]).any()
    assert set(ran.rows["kind"]) == {"model", "baseline", "null", "oracle"}
    assert {"GeST (weighted)", "GeST (picked)", "nearest meta cell", *BASELINES} <= set(ran.rows["method"])
    assert {cost["method"] for cost in ran.json["costs"]} == {*BASELINES, "GeST (weighted)"}


def test_no_folder_of_the_reader_is_written_down(ran):
    assert ran.json["meta"]["command"].startswith(
        "python benchmarks/unseen_region.py --data DIR --out FILE --datasets study"
    )
    assert str(ran.data) not in json.dumps(ran.json)


def test_every_method_is_scored_on_every_section_and_seed(ran):
    squares = ran.rows[ran.rows["fold"] == "squares"]
    per_method = squares.groupby("method")[["section", "seed"]].apply(lambda t: set(map(tuple, t.to_numpy())))
    assert all(found == {(s, k) for s in ("one", "three", "logged") for k in (0, 1)} for found in per_method)


def test_dropped_cells_and_hidden_cells_are_counted(ran):
    together = next(t for t in ran.json["meta"]["datasets"]["study"] if len(t["sections"]) == 2)
    assert together["n_dropped_under_min_counts"] == {"one": 1, "three": 1}
    assert together["n_hidden"] == {"0": 52, "1": 52}


def test_error_by_round_of_the_hole_is_told_for_all_methods_on_the_same_cells(ran):
    hole = ran.rows[ran.rows["fold"] == "hole"]
    assert set(hole["seed"]) == {0}
    assert {"kNN", "mean profile", "GeST (weighted)", "GeST (picked)"} <= set(hole["method"])
    n = hole[hole["metric"].str.startswith("n_cells")].groupby(["section", "metric"])["value"]
    assert (n.nunique() == 1).all()
    assert n.first().groupby("section").sum().round().to_dict() == {"one": 104, "three": 104, "logged": 104}


# ------------------------------------------------------------------------------------------------------------ honesty


def test_the_model_never_gets_a_hidden_cell(ran):
    trained, asked = ran.given[::3], ran.given[1::3]  # asked twice: with interpolation and without
    assert len(trained) == 2 * 2 + 2  # tissues × seeds, and the holes
    for adata, (whole, mask) in zip(trained, asked, strict=True):
        assert not set(whole.obs_names[mask]) & set(adata.obs_names)
        assert list(whole.obs_names[~mask]) == list(adata.obs_names)
        assert (whole.X[mask] == 0).all()


def test_baselines_never_look_at_hidden_cells(benchmark, folder):
    tissue = benchmark.read_tissues(folder / "study")[0]
    task = benchmark.make_task(tissue, 3)
    clean = [a.prediction for a in benchmark.run_baselines(task, 3, 1) if a.kind != "oracle"]
    task.values[task.hidden] = 1e6
    poisoned = [a.prediction for a in benchmark.run_baselines(task, 3, 1) if a.kind != "oracle"]
    assert len(clean) == 5
    assert all(np.array_equal(a, b) for a, b in zip(clean, poisoned, strict=True))


def test_scale_and_chosen_genes_come_from_seen_cells(benchmark, folder):
    tissue = next(t for t in benchmark.read_tissues(folder / "study") if t.is_counts)
    task = benchmark.make_task(tissue, 0)
    before, top = task.values[task.seen].copy(), task.top
    tissue.adata.X[task.hidden] = np.random.default_rng(0).integers(
        1, 1000, tissue.adata.X[task.hidden].shape
    )
    again = benchmark.make_task(tissue, 0)
    assert np.array_equal(again.values[again.seen], before)
    assert all(np.array_equal(again.top[name], top[name]) for name in top)


def test_sections_on_one_scale_are_handed_over_together_in_um(benchmark, folder):
    tissues = {t.name: t for t in benchmark.read_tissues(folder / "study")}
    assert set(tissues) == {"one+three", "logged"}
    assert tissues["one+three"].adata.obsm["spatial"].max() <= 800
    task = benchmark.make_task(tissues["logged"], 0)
    assert np.array_equal(task.values, np.asarray(tissues["logged"].adata.X))


def test_published_values_that_are_no_counts_are_logged(benchmark, folder):
    tissue = next(t for t in benchmark.read_tissues(folder / "study") if t.is_counts)
    tissue.x_type = "volume-normalised counts (published form)"
    task = benchmark.make_task(tissue, 0)
    assert np.allclose(task.values, np.log1p(tissue.adata.X))


# ------------------------------------------------------------------------------------------------------------- scores


def test_error_is_per_square_and_correlation_over_the_section(benchmark):
    rng = np.random.default_rng(0)
    truth, prediction = rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
    prediction[:, 4] = 0
    square, top = np.repeat([2, 5], [30, 10]), np.array([True, False, False, False, True])
    scores = benchmark.score_section(truth, prediction, square, top, 0)
    expected = [np.sqrt(((truth - prediction)[square == s] ** 2).mean()) for s in (2, 5)]
    assert np.allclose(scores.rmse, expected)
    assert np.allclose(scores.pearson[:4], metrics.pearson(truth, prediction)[:4]) and scores.pearson[4] == 0
    assert scores.draws["all"].shape == (benchmark.N_BOOT,)


def fake_task(benchmark: ModuleType, n: int = 400) -> Any:
    rng = np.random.default_rng(0)
    square = np.repeat(np.arange(-20, 20), n // 40).clip(-1)
    return benchmark.Task(
        "made",
        rng.normal(size=(n, 6)),
        rng.uniform(0, 100, (n, 2)),
        np.full(n, "s"),
        [f"g{i}" for i in range(6)],
        square,
        {"s": np.arange(6) < 3},
    )


def test_pairs_tell_better_from_undecided(benchmark):
    task, rng, comparison = fake_task(benchmark), np.random.default_rng(1), benchmark.Comparison()
    truth = task.values[task.hidden]
    noise = rng.normal(size=truth.shape)
    answers = {
        "null": ("null", truth * 0),
        "rival": ("baseline", truth + noise),
        "same": ("model", truth + noise),
        "good": ("model", truth + 0.5 * noise),
    }
    for name, (kind, prediction) in answers.items():
        comparison.add(task, 0, benchmark.Answer(name, kind, prediction, None))
    pairs = pd.DataFrame(comparison.paired()).set_index(["method", "against", "metric"])
    for metric in ("rmse", "pearson", "pearson_top50"):
        assert pairs.loc[("same", "rival", metric), "difference"] == 0
        assert pairs.loc[("same", "rival", metric), "verdict"] == "undecided"
        assert pairs.loc[("good", "rival", metric), "verdict"] == "better"
    assert (
        pairs.loc[("good", "rival", "rmse"), "difference"]
        < 0
        < pairs.loc[("good", "rival", "pearson"), "low"]
    )
    assert comparison.best("made", "pearson") == "rival"
    assert pairs.loc[("good", "rival", "pearson"), "is_best"]
    scores = comparison.scores
    place = next(iter(scores))[0]
    expected = np.mean(scores[place, "good"].rmse - scores[place, "rival"].rmse)
    assert pairs.loc[("good", "rival", "rmse"), "difference"] == pytest.approx(expected)


def test_an_answer_of_another_shape_is_refused(benchmark):
    task = fake_task(benchmark)
    with pytest.raises(ValueError, match="must answer with 200 cells × 6 genes; got"):
        benchmark.Comparison().add(task, 0, benchmark.Answer("short", "model", np.zeros((3, 6)), None))


def test_without_a_model_baselines_are_run_and_it_is_said(benchmark, folder, monkeypatch, capsys):
    monkeypatch.delitem(stgen.models.__dict__, "GeST", raising=False)
    monkeypatch.setattr(stgen.models, "_WHERE", {})
    sys.modules["_run"]._SAID.clear()
    task = benchmark.make_task(benchmark.read_tissues(folder / "study")[0], 0)
    assert list(benchmark.run_gest(task, 0)) == []
    assert "GeST is not there: only baselines are run" in capsys.readouterr().err


def test_a_missing_folder_is_refused(benchmark, tmp_path):
    with pytest.raises(SystemExit, match="must hold at least one section"):
        benchmark.read_tissues(tmp_path)


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "low", "high"), [("starmap_visp", 0.003, 0.05), ("starmap_mpfc", 0.003, 0.05)]
)
def test_gain_of_knn_over_the_mean_profile_is_small_on_real_sections(benchmark, name, low, high):
    if "STGEN_DATA" not in os.environ:
        pytest.skip("set STGEN_DATA to the folder with the real sections")
    from stgen.baselines import MeanProfile, NearestCells

    tissue = benchmark.read_tissues(Path(os.environ["STGEN_DATA"]) / name)[0]
    comparison = benchmark.Comparison()
    for seed in range(2):
        task = benchmark.make_task(tissue, seed)
        for baseline in (MeanProfile(), NearestCells(n_rounds=3)):
            baseline.fit(task.xy[task.seen], task.section[task.seen], task.values[task.seen])
            answer = baseline.predict(task.xy[task.hidden], task.section[task.hidden])
            comparison.add(task, seed, benchmark.Answer(baseline.name, baseline.kind, answer, None))
    rmse = comparison.table(tissue.dataset)["rmse"]
    assert low < rmse["mean profile"] - rmse["kNN"] < high


def test_ablations_change_one_part_each_and_are_paired_with_the_whole(benchmark, folder, monkeypatch):
    monkeypatch.setattr(stgen.models, "GeST", Fake, raising=False)
    monkeypatch.setattr(benchmark, "forget", lambda adata: None)
    Fake.changed.clear()
    out = folder / "ablations.json"
    benchmark.main(
        ["--data", str(folder), "--out", str(out), "--datasets", "study", "--seeds", "0", "--ablations"]
    )
    written = json.loads(out.read_text())
    parts = list(benchmark.WITHOUT)
    assert len(Fake.changed) == 2 * (1 + len(parts))  # two tissues
    assert Fake.changed[0] == {} and {"levels": ()} in Fake.changed and {"quantized": False} in Fake.changed
    windows = [changes["window_um"] for changes in Fake.changed if "window_um" in changes]
    assert windows[1] == pytest.approx(2 * windows[0])
    pairs = {
        (pair["method"], pair["against"])
        for pair in written["paired"]
        if pair["method"].startswith(tuple(parts))
    }
    assert pairs == {(part, "GeST (weighted)") for part in parts} | {
        (f"{part}, network alone", "GeST, network alone") for part in parts
    }
