"""The benchmark of captured shares: its oracle knows what was planted, and the parts of the bias add up."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from stgen import _keys

BENCHMARK = "capture"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]
SMALL = {"n_patients": 4, "n_sections": 4, "n_spots": 80, "n_genes": 30}


def test_what_morphology_shows_is_the_planted_share_of_the_log_rate(benchmark: ModuleType) -> None:
    adata = benchmark.make_tissue(benchmark.Options(judging=False, **SMALL), 1)
    shown = benchmark.shown_by_morphology(adata)
    is_visible = np.array([name.endswith("_visible") for name in adata.uns[_keys.TOY]["programmes"]])
    hidden = adata.obsm[_keys.PROGRAMMES][:, ~is_visible] @ adata.varm[_keys.LOADINGS][:, ~is_visible].T
    share = shown.var(axis=0) / (shown.var(axis=0) + hidden.var(axis=0))
    np.testing.assert_allclose(share, adata.var["morphology_share"], atol=1e-6)
    straight = benchmark.linear_part(shown, adata)
    assert (straight.var(axis=0) <= shown.var(axis=0) + 1e-9).all()


def test_every_patient_is_left_out_once(benchmark: ModuleType) -> None:
    adata = benchmark.make_tissue(benchmark.Options(judging=False, **SMALL), 1)
    assert list(benchmark.folds(adata, 2)) == [["p1", "p2"], ["p3", "p4"]]


def test_parts_of_the_bias_add_up(benchmark: ModuleType) -> None:
    rng = np.random.default_rng(0)
    found = pd.DataFrame(
        {m: rng.uniform(size=9) for m in (benchmark.MODEL, benchmark.COUNTS, benchmark.RATES)}
    )
    scores = {
        metric: value
        for method, metric, value in benchmark.score(found, pd.Series(rng.uniform(size=9)))
        if method == benchmark.MODEL
    }
    parts = [scores[name] for name in ("bias_sections", "bias_counts", "bias_model")]
    assert sum(parts) == pytest.approx(scores["bias"])


def test_judging_uses_the_judges_parameters_and_seeds(benchmark: ModuleType) -> None:
    judge, *_ = benchmark.parse(["--out", "x.json"])
    tune, *_ = benchmark.parse(["--out", "x.json", "--tune", "--seeds", "1,2"])
    assert judge.judging and judge.seeds == benchmark.TOY_JUDGE_SEEDS
    assert not tune.judging and tune.seeds == (1, 2)


def test_one_small_run_writes_the_agreed_document(benchmark: ModuleType, tmp_path: Path) -> None:
    options = benchmark.Options(seeds=(1,), judging=False, max_epochs=2, **SMALL)
    results, meta = benchmark.run(options, "a command")
    out = tmp_path / "result.json"
    results.write(out, meta, [])
    document = json.loads(out.read_text())
    assert list(document["rows"][0]) == ROW
    table = pd.DataFrame(document["rows"])
    assert {benchmark.MODEL, benchmark.COUNTS, benchmark.RATES} <= set(table["method"])
    assert {"spearman", "bias", "bias_model", "n_genes"} <= set(table["metric"])
    rates = table[(table["method"] == benchmark.RATES) & (table["metric"] == "spearman")]["value"]
    assert rates.item() > 0.8
    assert document["meta"]["meaning"][benchmark.MODEL]
