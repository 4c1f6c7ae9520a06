"""How long GenST trains, and whether the memory of a prediction grows with the number of spots.

    python benchmarks/speed_genst.py --out FILE            # minutes on two cores
    python benchmarks/speed_genst.py --out FILE --quick    # a tenth of the spots and genes, to see that it runs

Spots, histology features and counts are simulated: only their sizes matter here. Training is the default one of the
feature back-end, everything included (closed-form start, both phases, calibration of counts). Prediction writes into a
memory-mapped file, so that what it holds beyond inputs and output can be told; each size is measured in a process of
its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import environment, kept, measured, write_document
from _run import command_of, limit_threads

N_SPOTS, N_GENES, N_FEATURES, N_SECTIONS = 10_000, 1_000, 512, 5
PREDICTED = (5_000, 20_000, 80_000)


def simulated(n_spots: int, n_genes: int, n_features: int, *, counts: bool = True, seed: int = 0) -> Any:
    """Spots of several sections whose counts follow a few of the histology features."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from stgen import _keys

    rng = np.random.default_rng(seed)
    histology = rng.normal(size=(n_spots, n_features)).astype(np.float32)
    section = np.arange(n_spots) * N_SECTIONS // n_spots
    side = int(np.ceil(np.sqrt(n_spots)))
    xy = np.stack(np.divmod(np.arange(n_spots), side), axis=1) * 100.0
    X = None
    if counts:
        loading = rng.normal(scale=0.3, size=(16, n_genes))
        rate = np.exp(histology[:, :16] @ loading)
        X = sparse.csr_matrix(rng.poisson(rate).astype(np.int32))
    obs = pd.DataFrame(
        {_keys.LIBRARY: [f"s{s}" for s in section]}, index=[f"spot{i}" for i in range(n_spots)]
    )
    made = AnnData(X, obs=obs, obsm={_keys.HISTOLOGY: histology, _keys.SPATIAL: xy})
    if counts:
        made.var_names = [f"gene{g}" for g in range(n_genes)]
    return made


def trained(n_spots: int, n_genes: int, n_features: int, folder: Path) -> dict[str, float]:
    """Seconds and memory of a default training; the model is kept in ``folder``."""
    import stgen as stg
    from stgen import _keys

    adata = simulated(n_spots, n_genes, n_features)
    stg.models.GenST.setup_anndata(adata, library_key=_keys.LIBRARY)
    model = stg.models.GenST(adata)
    with measured() as cost:
        model.train(progress_bar=False)
    model.save(folder, overwrite=True)
    return {"n_spots": n_spots, "n_genes": n_genes, "epochs": model.card["n_epochs"], **cost}


def predicted(folder: str, n_spots: int, n_features: int) -> dict[str, float]:
    """Seconds and memory of one prediction; to be run in a process of its own."""
    import stgen as stg

    limit_threads(1)
    model = stg.models.GenST.load(folder)
    model.predict(simulated(64, 0, n_features, counts=False))  # whatever is loaded once
    adata = simulated(n_spots, 0, n_features, counts=False)
    with tempfile.TemporaryDirectory() as where:
        out = np.lib.format.open_memmap(
            f"{where}/out.npy", mode="w+", dtype=np.float32, shape=(n_spots, len(model.genes))
        )
        with measured() as cost:
            model.predict(adata, out=out)
    inputs = adata.obsm["X_histology"].nbytes / 2**20
    # pages of the mapped file that were written count as resident; they are the output
    return {"n_spots": n_spots, "inputs_mb": inputs, "output_mb": out.nbytes / 2**20, **cost}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a tenth of the spots and genes")
    parser.add_argument("--threads", type=int, help="CPU threads of training")
    given = parser.parse_args(arguments)
    limit_threads(given.threads)
    part = 10 if given.quick else 1
    start = time.perf_counter()
    training: dict[str, Any] = {}
    predictions: list[dict[str, Any]] = []
    command = command_of("speed_genst", sys.argv[1:] if arguments is None else arguments)

    def so_far() -> dict[str, Any]:
        return {"prediction": predictions, "training": [training] if training else []}

    with tempfile.TemporaryDirectory() as folder, kept(given.out, command, so_far) as keep:
        training = trained(N_SPOTS // part, N_GENES // part, N_FEATURES // part, Path(folder))
        print(
            f"training on {training['n_spots']:,} spots × {training['n_genes']:,} genes: "
            f"{training['seconds']:.0f} s, {training['peak_mb']:.0f} MB"
        )
        for n_spots in PREDICTED:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                one = pool.apply(predicted, (folder, n_spots // part, N_FEATURES // part))
            predictions.append(one)
            keep()
            print(
                f"prediction of {one['n_spots']:,} spots: {one['seconds']:.1f} s, {one['peak_mb']:.0f} MB, of which the "
                f"output is {one['output_mb']:.0f} MB (inputs, held before: {one['inputs_mb']:.0f} MB)"
            )
    meta = {
        "benchmark": "speed_genst",
        "command": command,
        "quick": given.quick,
        "versions": environment(),
        "seconds": time.perf_counter() - start,
    }
    write_document(given.out, {"meta": meta, "training": training, "prediction": predictions})


if __name__ == "__main__":
    main()
