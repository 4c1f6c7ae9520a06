"""The benchmark of pretraining: pseudo-spots are spots, and arms are compared with the network as it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

BENCHMARK = "pretraining"


def test_pseudo_spots_are_normalised_by_measured_genes_and_alike_ones_lie_together(
    benchmark: ModuleType,
) -> None:
    rng = np.random.default_rng(0)
    profile = rng.gamma(1.0, 3.0, (3, 30))
    cells = np.log1p(rng.poisson(profile[rng.integers(3, size=200)])).astype(np.float32)
    measured = np.arange(20)
    spots, x = benchmark.pseudo_spots(cells, measured, rng)
    total = np.expm1(x[:, measured].astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(total, np.median(total), rtol=1e-4)
    np.testing.assert_array_equal(spots.x, x[:, measured])
    assert not (spots.near == np.arange(len(x))[:, None]).any()
    strangers = np.linalg.norm(x - x[rng.permutation(len(x))], axis=1).mean()
    assert np.linalg.norm(x - x[spots.near[:, 0]], axis=1).mean() < 0.9 * strangers


def test_arms_are_compared_gene_by_gene_with_the_network_as_it_is(benchmark: ModuleType) -> None:
    genes = [f"g{i}" for i in range(40)]
    usual = pd.Series(np.linspace(0, 1, 40), index=genes)
    arms = {
        (benchmark.ARMS[1], benchmark.ALL): [usual],
        (benchmark.ARMS[2], benchmark.ALL): [usual + 0.1],
        (benchmark.ARMS[3], benchmark.ALL): [usual - 0.1],
    }
    found = {entry["arm"]: entry for entry in benchmark.compare({"toy": arms})}
    assert "difference" not in found[benchmark.ARMS[1]]
    assert found[benchmark.ARMS[2]]["difference"] == pytest.approx(0.1)
    assert [found[arm]["verdict"] for arm in benchmark.ARMS[2:]] == ["better", "worse"]


@pytest.mark.slow
def test_it_runs_on_the_toy_tissue(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    benchmark.main(["--datasets", "toy", "--folds", "1", "--quick", "--out", str(out)])
    written = json.loads(out.read_text())
    assert written["meta"]["command"] == (
        "python benchmarks/pretraining.py --datasets toy --folds 1 --quick --out FILE"
    )
    assert {entry["arm"] for entry in written["paired"]} == set(benchmark.ARMS)
