"""The benchmark of memory runs, and its tissue is sparse and in µm."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import sparse

BENCHMARK = "memory"


def test_the_smallest_line_is_measured_in_a_process_of_its_own(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    benchmark.main(["--quick", "--only", "gest-preparation", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["what"], row["n"], row["n_genes"]) == ("GeST preparation", 400, 200)
    assert row["dense_mb"] == 4 * 400 * 200 / 2**20 and row["seconds"] > 0


def test_its_tissue_is_sparse_and_its_neighbours_are_a_pitch_apart(benchmark: ModuleType) -> None:
    from stgen.data._spacing import spot_pitch

    adata = benchmark.tissue(400, 30, n_features=5, pitch_um=12.0)
    assert sparse.issparse(adata.X) and (adata.X.data == np.floor(adata.X.data)).all()
    assert adata.obsm["X_histology"].shape == (400, 5)
    section = adata.obs["section"].astype("category").cat.codes.to_numpy()
    assert 8.0 < spot_pitch(adata.obsm["spatial"], section) < 13.0
