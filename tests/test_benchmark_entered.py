"""The count of what a call enters: functions that run and nothing else, on toy data."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from stgen.baselines import MeanProfile

BENCHMARK = "entered"


def test_files_of_functions_that_run_are_counted_and_no_others(benchmark: ModuleType) -> None:
    xy = np.random.default_rng(0).random((4, 2))
    null = MeanProfile().fit(xy, None, np.eye(4))
    found = benchmark.entered(lambda: null.predict(xy, None))
    assert {"baselines/_places.py", "_by_name.py"} <= set(found.files)
    assert not any(file.startswith(("models/", "nn/", "train/")) for file in found.files)
    assert benchmark.entered(lambda: [x * x for x in range(3)]) == ((), 0)


def test_every_call_runs_and_enters_the_folder_of_its_model(benchmark: ModuleType, capsys) -> None:
    benchmark.main(["--files"])
    _, *lines = capsys.readouterr().out.splitlines()
    starts = [i for i, line in enumerate(lines) if not line.startswith("  ")]
    for folder, start, end in zip(("genar", "gest", "causalged"), starts, [*starts[1:], None], strict=True):
        n_files, files = int(lines[start].split()[-2]), [line.strip() for line in lines[start + 1 : end]]
        assert n_files == len(files) and any(file.startswith(f"models/{folder}/") for file in files)


def test_the_profiler_is_taken_away_when_a_call_fails(benchmark: ModuleType) -> None:
    before = sys.getprofile()
    with pytest.raises(ZeroDivisionError):
        benchmark.entered(lambda: 1 / 0)
    assert sys.getprofile() is before
