"""What CausalGeD costs by the number of spots: training, imputation in memory and to a zarr store.

    python benchmarks/speed_causalged.py --out FILE            # minutes on two cores
    python benchmarks/speed_causalged.py --out FILE --quick    # a tenth of the spots and genes, to see that it runs

Spots and cells are simulated mixtures of ten profiles: only their sizes matter here. Training is the default one.
Imputation is of all genes that the spots lack, without intervals, by a model trained on the smallest section. Each size
runs in a process of its own. Seconds of the processor are told beside those of the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _report import environment, kept, measured, write_document
from _run import command_of, limit_threads

N_SPOTS = (1_000, 10_000, 100_000)
N_MEASURED, N_IMPUTED, N_CELLS = 300, 1_000, 3_000
N_PROFILES, BLOCK = 10, 5_000


def simulated(n: int, genes: slice, part: int, seed: int) -> Any:
    """Cells or spots: counts of mixtures of the same profiles, at random places."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    n_genes = (N_MEASURED + N_IMPUTED) // part
    profiles = np.random.default_rng(0).gamma(0.5, 1.0, (N_PROFILES, n_genes))[:, genes]
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, n, BLOCK):
        mixture = rng.dirichlet(np.full(N_PROFILES, 0.3), min(BLOCK, n - start))
        blocks.append(sparse.csr_matrix(rng.poisson(mixture @ profiles).astype(np.float32)))
    return AnnData(
        sparse.vstack(blocks).tocsr(),
        obs=pd.DataFrame(index=[f"{seed}_{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)][genes]),
        obsm={"spatial": rng.random((n, 2)) * 20 * np.sqrt(n)},
    )


def trained(n: int, part: int, folder: str | None = None) -> dict[str, float]:
    """Cost of a default training on ``n`` spots; the model is kept in ``folder``."""
    import stgen as stg

    limit_threads(1)
    spots = simulated(n, slice(N_MEASURED // part), part, seed=1)
    cells = simulated(N_CELLS // part, slice(None), part, seed=2)
    stg.models.CausalGeD.setup_anndata(spots)
    stg.models.CausalGeD.setup_reference(cells)
    with _timed() as cost:
        model = stg.models.CausalGeD(spots, cells)
        model.train(progress_bar=False)
    if folder is not None:
        model.save(folder, overwrite=True)
    return {"n_spots": n, "share": float(model.module.share), **cost}


def imputed(folder: str, n: int, part: int, to_store: bool) -> dict[str, float]:
    """Cost of imputing ``n`` spots; to be run in a process of its own."""
    import stgen as stg

    limit_threads(1)
    model = stg.models.CausalGeD.load(folder)
    measured_genes = slice(N_MEASURED // part)
    model.impute(simulated(64, measured_genes, part, seed=3), intervals=False)  # whatever is loaded once
    spots = simulated(n, measured_genes, part, seed=4)
    n_genes = (N_MEASURED + N_IMPUTED) // part - N_MEASURED // part
    with tempfile.TemporaryDirectory() as where:
        out = f"{where}/imputed.zarr" if to_store else None
        with _timed() as cost:
            made = model.impute(spots, intervals=False, out=out)
        n_values = made.n_obs * made.n_vars * (1 + len(made.layers))
    if made.shape != (n, n_genes):
        raise RuntimeError(f"{n} spots and {n_genes} genes were asked for; got {made.shape}.")
    return {"n_spots": n, "n_genes": n_genes, "to_store": to_store, "output_mb": 4 * n_values / 2**20, **cost}


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    start = time.process_time()
    with measured() as cost:
        yield cost
    cost["cpu_seconds"] = time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a tenth of the spots and genes")
    given = parser.parse_args(arguments)
    part, start = 10 if given.quick else 1, time.perf_counter()
    training: list[dict[str, Any]] = []
    imputation: list[dict[str, Any]] = []
    command = command_of("speed_causalged", sys.argv[1:] if arguments is None else arguments)

    def so_far() -> dict[str, Any]:
        return {"imputation": imputation, "training": training}

    def alone(work: Any, *how: Any) -> dict[str, float]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return dict(pool.apply(work, how))

    with tempfile.TemporaryDirectory() as folder, kept(given.out, command, so_far) as keep:
        for n in N_SPOTS:
            one = alone(trained, n // part, part, folder if n == N_SPOTS[0] else None)
            training.append(one)
            keep()
            print(
                f"training on {one['n_spots']:,} spots: {one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of the processor), "
                f"{one['peak_mb']:.0f} MB; share of the network {one['share']:.2f}",
                flush=True,
            )
        for to_store in (False, True):
            for n in N_SPOTS:
                one = alone(imputed, folder, n // part, part, to_store)
                imputation.append(one)
                keep()
                print(
                    f"{one['n_spots']:,} spots × {one['n_genes']:,} genes {'to a store' if to_store else 'in memory'}: "
                    f"{one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of the processor), {one['peak_mb']:.0f} MB at the "
                    f"peak, of which the output is {0 if to_store else one['output_mb']:.0f} MB",
                    flush=True,
                )
    meta = {
        "benchmark": "speed_causalged",
        "command": command,
        "quick": given.quick,
        "versions": environment(),
        "seconds": time.perf_counter() - start,
    }
    write_document(given.out, {"meta": meta, "training": training, "imputation": imputation})


if __name__ == "__main__":
    main()
