"""The benchmark of perturbations: scores are what they say, and what it needs to know of the tissue it does not tell."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from stgen import _keys

BENCHMARK = "perturbation"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]


def test_scores_count_what_they_say(benchmark: ModuleType) -> None:
    genes = list("abcdefgh")
    degs = pd.Series(["High", "Low", "High", "Low", *["n.s."] * 4], index=genes)
    calls = pd.Series(["High", "Low", "Low", "n.s.", "High", *["n.s."] * 3], index=genes)
    answer = benchmark.Answer("m", "model", calls, {"inflation": 1.5, "share_changed": 1.0})
    on = benchmark.score(answer, degs, benchmark.ON)
    assert on["planted_found"] == on["accuracy_planted"] == 0.5
    assert on["false_share"] == 0.5
    assert on["accuracy"] == 5 / 8
    off = benchmark.score(answer, pd.Series("n.s.", index=genes), benchmark.OFF)
    assert off == {"inflation": 1.5, "n_called": 4.0, "calls_anything": 1.0}


def test_a_genes_call_is_that_of_its_clearest_ring(benchmark: ModuleType) -> None:
    table = pd.DataFrame(
        {
            "gene": list("abab"),
            "p": [0.01, 0.5, 0.001, 0.0001],
            "call": ["High", "n.s.", "Low", "n.s."],
        }
    )
    assert benchmark.calls_of(table).to_dict() == {"a": "Low", "b": "n.s."}


def test_judging_uses_the_judges_parameters_and_seeds(benchmark: ModuleType) -> None:
    judge, _ = benchmark.parse(["--out", "x.json"])
    tune, _ = benchmark.parse(["--out", "x.json", "--tune"])
    assert judge.judging and judge.seeds == benchmark.TOY_JUDGE_SEEDS
    assert not tune.judging and tune.seeds == benchmark.TOY_TUNE_SEEDS


def test_one_small_run_writes_the_agreed_document(benchmark: ModuleType, tmp_path: Path) -> None:
    options = benchmark.Options(seeds=(0,), judging=False, n_sections=1, n_cells=400, n_genes=12)
    results, meta = benchmark.run(options, "a command")
    out = tmp_path / "result.json"
    results.write(out, meta, [])
    document = json.loads(out.read_text())
    assert list(document["rows"][0]) == ROW
    table = pd.DataFrame(document["rows"])
    assert set(table["fold"]) == {benchmark.ON, benchmark.OFF}
    wanted = {benchmark.TISSUE, benchmark.SHAM, benchmark.PAIRS, benchmark.CELLS, "no change"}
    assert wanted <= set(table["method"])
    assert {"planted_found", "false_share", "accuracy", "calls_anything"} <= set(table["metric"])
    assert table["value"].between(0, 12).all()


def test_the_same_cells_are_asked_about_with_and_without_the_effect(benchmark: ModuleType) -> None:
    options = benchmark.Options(n_sections=1, n_cells=300, n_genes=12)
    on, off = (benchmark.make_tissue(options, 0, fold) for fold in (benchmark.ON, benchmark.OFF))
    np.testing.assert_array_equal(on.obsm[_keys.SPATIAL], off.obsm[_keys.SPATIAL])
    np.testing.assert_array_equal(on.obs["in_region"], off.obs["in_region"])
    assert (benchmark.planted(on) != "n.s.").any()
    assert (benchmark.planted(off) == "n.s.").all()
