"""What the models hold in memory beyond their input, and that few spots with many features cost little.

    python benchmarks/memory.py --out FILE            # a quarter of an hour on two quiet cores
    python benchmarks/memory.py --out FILE --quick    # a fiftieth of the spots, a tenth of the genes, to see that it runs

Counts are simulated mixtures of ten profiles, sparse; only their sizes matter here. Models train for one epoch. Each line
of the table is a process of its own; a peak is the resident memory above what there was when input and libraries were
loaded, so it holds the model, its answer and all that was made on the way. ``input_mb`` is what the data take, ``dense_mb``
what their counts would take as a dense table. ``--only`` names the lines to run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import environment, measured
from _run import command_of, limit_threads

if TYPE_CHECKING:
    from anndata import AnnData

Row = dict[str, Any]

N_SECTIONS, N_PROFILES, ROWS = 4, 10, 2_000
CELL_UM, SPOT_UM = 12.0, 100.0
GEST_BATCH = 32


def tissue(n: int, n_genes: int, *, n_features: int = 0, pitch_um: float = SPOT_UM, seed: int = 0) -> AnnData:
    """Sections side by side: sparse counts, jittered places and, if asked for, histology features without meaning."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    profiles = np.random.default_rng(0).gamma(0.2, 0.5, (N_PROFILES, n_genes))
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, n, ROWS):
        mixture = rng.dirichlet(np.full(N_PROFILES, 0.3), min(ROWS, n - start))
        blocks.append(sparse.csr_matrix(rng.poisson(mixture @ profiles).astype(np.float32)))
    section = np.arange(n) % N_SECTIONS
    at = np.arange(n) // N_SECTIONS
    side = max(1, int(np.sqrt(n / N_SECTIONS)))
    xy = pitch_um * (np.stack([at % side, at // side], axis=1) + rng.normal(0, 0.1, (n, 2)))
    adata = AnnData(
        sparse.vstack(blocks).tocsr(),
        obs=pd.DataFrame({"section": [f"s{s}" for s in section]}, index=[f"{seed}_{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
        obsm={"spatial": xy},
    )
    if n_features:
        adata.obsm["X_histology"] = rng.normal(size=(n, n_features)).astype(np.float32)
    return adata


@contextmanager
def peak(what: str, adata: AnnData, rows: list[Row]) -> Iterator[None]:
    """Append a row with what happens inside."""
    held = [adata.X.data, adata.X.indices, adata.X.indptr, *adata.obsm.values()]
    with measured() as cost:
        yield
    size = {
        "input_mb": sum(np.asarray(part).nbytes for part in held) / 2**20,
        "dense_mb": 4 * adata.n_obs * adata.n_vars / 2**20,
    }
    rows.append({"what": what, "n": adata.n_obs, "n_genes": adata.n_vars, **size, **cost})


def from_histology(name: str, n: int, n_genes: int, n_features: int) -> list[Row]:
    """GenAR or GenST: training and prediction."""
    import stgen as stg

    kind, rows = getattr(stg.models, name), []
    adata = tissue(n, n_genes, n_features=n_features)
    kind.setup_anndata(adata, library_key="section")
    model = kind(adata)
    with peak(f"{name} train, {n_features} features", adata, rows):
        model.train(max_epochs=1, progress_bar=False)
    with peak(f"{name} predict, {n_features} features", adata, rows):
        model.predict()
    return rows


def gest(n: int, n_genes: int) -> list[Row]:
    """GeST: training, niches, and a twentieth of the cells generated."""
    import stgen as stg

    rows: list[Row] = []
    adata = tissue(n, n_genes, pitch_um=CELL_UM)
    stg.models.GeST.setup_anndata(adata, library_key="section")
    model = stg.models.GeST(adata)
    with peak("GeST train", adata, rows):
        model.train(max_epochs=1, batch_size=GEST_BATCH, progress_bar=False)
    with peak("GeST embed_niches", adata, rows):
        model.embed_niches()
    far = np.abs(adata.obsm["spatial"] - np.median(adata.obsm["spatial"], axis=0)).max(axis=1)
    with peak("GeST generate 5 %", adata, rows):
        model.generate(mask=far <= np.quantile(far, 0.05))
    return rows


def gest_preparation(n: int, n_genes: int) -> list[Row]:
    """What GeST finds before its first step of training: window, vocabulary, words of all cells."""
    import stgen as stg
    from stgen.train import prepare

    found: list[Row] = []
    adata = tissue(n, n_genes, pitch_um=CELL_UM)
    stg.models.GeST.setup_anndata(adata, library_key="section")
    model, rows = stg.models.GeST(adata), np.arange(n)
    with peak("GeST preparation", adata, found):
        table = model._preparation_table(adata, rows)
        prepare(model.module, table, rows, random_state=0)
        model._table(adata, targets=True)
    return found


def causalged(n: int, n_genes: int) -> list[Row]:
    """CausalGeD: half of the genes measured, the others imputed, into a store."""
    import stgen as stg

    rows: list[Row] = []
    spots = tissue(n, n_genes)[:, : n_genes // 2].copy()
    cells = tissue(max(200, n // 4), n_genes, seed=1)
    stg.models.CausalGeD.setup_anndata(spots, library_key="section")
    stg.models.CausalGeD.setup_reference(cells)
    model = stg.models.CausalGeD(spots, cells)
    with peak("CausalGeD train", spots, rows):
        model.train(max_epochs=1, progress_bar=False)
    with tempfile.TemporaryDirectory() as where, peak("CausalGeD impute to a store", spots, rows):
        model.impute(intervals=False, out=f"{where}/imputed.zarr")
    return rows


def lines(n: int, n_genes: int) -> dict[str, tuple[Callable[..., list[Row]], tuple[Any, ...]]]:
    """What is run, by name, if four models are compared on n spots × genes."""
    return {
        "genar": (from_histology, ("GenAR", n, n_genes, 1_024)),
        "genst": (from_histology, ("GenST", n, n_genes, 1_024)),
        "gest": (gest, (n, n_genes)),
        "causalged": (causalged, (n, n_genes)),
        "gest-preparation": (gest_preparation, (2 * n, 2 * n_genes)),
        "gest-large": (gest, (5 * n, 2 * n_genes)),
        "genar-wide": (from_histology, ("GenAR", 100, 20, 2_560)),
        "genst-wide": (from_histology, ("GenST", 100, 20, 2_560)),
    }


def alone(work: Callable[..., list[Row]], how: tuple[Any, ...]) -> list[Row]:
    """In a process of its own, with libraries loaded before anything is measured."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=_load) as pool:
        return pool.apply(work, how)


def _load() -> None:
    import logging

    import stgen as stg

    limit_threads(1)
    logging.getLogger("stgen").setLevel(logging.ERROR)
    stg.models.GenAR, stg.models.GenST, stg.models.GeST, stg.models.CausalGeD  # noqa: B018


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the spots, a tenth of the genes")
    parser.add_argument("--only", nargs="+", help="lines to run", choices=list(lines(1, 1)))
    given = parser.parse_args(arguments)
    wanted = lines(*((200, 100) if given.quick else (10_000, 1_000)))
    rows, start = [], time.perf_counter()
    print(f"{'':35}{'n':>8}{'genes':>7}{'input MB':>10}{'dense MB':>10}{'peak MB':>9}{'seconds':>9}")
    for name in given.only or wanted:
        for row in alone(*wanted[name]):
            rows.append({"line": name, **row})
            sizes = (
                f"{row['input_mb']:10.0f}{row['dense_mb']:10.0f}{row['peak_mb']:9.0f}{row['seconds']:9.1f}"
            )
            print(f"{row['what']:35}{row['n']:8}{row['n_genes']:7}{sizes}", flush=True)
    meta = {"command": command_of("memory", arguments or []), **environment()}
    meta["seconds"] = time.perf_counter() - start
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
