"""The benchmark of GeST's speed runs, its forms are equal, and what it writes can be read."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

BENCHMARK = "speed_gest"


@pytest.fixture(scope="module")
def written(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("speed") / "new" / "out.json"
    tiny = benchmark.Sizes(
        repeats=1,
        n_fit=150,
        n_small=150,
        n_large=300,
        n_timed=20,
        n_memory=2000,
        n_genes=20,
        n_meta_cells=16,
        n_windows=2,
        n_cells=50,
        n_places=3,
        n_hidden=5,
        batch_sizes=(4,),
    )
    benchmark.main(["--out", str(out)], tiny)
    return json.loads(out.read_text())


def test_every_question_is_answered_beside_the_plain_form(written):
    assert list(written) == ["meta", "rows"]
    rows = pd.DataFrame(written["rows"])
    assert (rows["seconds"] > 0).all()
    forms = rows.groupby("what")["form"].nunique()
    assert (forms.drop(["embed niches"]) >= 2).all()
    assert set(forms.index) == {
        "windows",
        "window search",
        "training step",
        "logits",
        "tokens",
        "niche",
        "places of a window",
        "filled hole",
        "embed niches",
        "cost of a cell",
        "memory",
    }
    assert rows.loc[rows["share"].notna(), "share"].between(0, 1).all()


def test_no_folder_of_the_reader_is_written_down(written):
    assert written["meta"]["command"].startswith("python benchmarks/speed_gest.py")
    assert "out.json" not in json.dumps(written)


def test_forms_take_turns_and_the_first_round_is_not_told(benchmark):
    order: list[str] = []
    forms = {name: (lambda name=name: order.append(name)) for name in ("fast", "plain")}
    rows = benchmark.compared("nothing", forms, 2, n=3)
    assert order == ["fast", "plain"] * 3
    assert [row["form"] for row in rows] == ["fast", "plain"]
    assert rows[0]["times"] == 1 and rows[0]["n"] == 3


def test_forms_that_differ_are_not_timed(benchmark):
    assert benchmark.check_same("numbers", torch.ones(3), torch.ones(3)) == 0
    with pytest.raises(RuntimeError, match=r"numbers: forms differ by 0\.5 .* allowed 0\.0001"):
        benchmark.check_same("numbers", torch.ones(3), np.full(3, 2.0))
    with pytest.raises(RuntimeError, match="numbers: forms give"):
        benchmark.check_same("numbers", torch.ones(3), torch.ones(2))


def test_a_table_of_four_million_cells_is_kept_in_a_hundred_mb(benchmark):
    """Bytes for each cell, told from fewer."""
    rows = benchmark.memory(benchmark.Sizes(n_memory=200_000))
    assert rows[0]["form"] == "cells and grid"
    assert rows[0]["mb"] / 200_000 * 4_000_000 < 100
