"""How a sampler that writes the test truth into its output scores: no model, only a constant and noise.

    python examples/imputation_leak.py

Some published imputation code copies true values of the genes it is tested on into the matrix that is then scored: all zeros
and 70 % of the other values, after every reverse step. Here counts are simulated, the "prediction" is a constant or pure
noise, and the same copy is made. Nobody's code is used. The honest score of both is 0.
"""

from __future__ import annotations

import numpy as np

import stgen as stg

KEPT = 0.7
"""Share of the non-zero true values that are copied."""


def with_truth_copied(prediction: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The prediction after all zeros and most other values of the truth have been written into it."""
    is_copied = (truth == 0) | (rng.random(truth.shape) < KEPT)
    return np.where(is_copied, truth, prediction)


def main() -> None:
    """Simulate, copy, score."""
    rng = np.random.default_rng(0)
    adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, random_state=1)
    truth = np.log1p(adata.X.toarray().astype(float))
    fillers = {
        "a constant": np.full_like(truth, truth.mean()),
        "noise": rng.normal(truth.mean(), truth.std(), truth.shape),
    }
    print(
        f"{truth.shape[0]} spots × {truth.shape[1]} genes, {np.mean(truth == 0):.0%} zeros; mean Pearson over genes"
    )
    for name, filler in fillers.items():
        honest = np.nan_to_num(stg.metrics.pearson(truth, filler)).mean()
        leaked = np.nan_to_num(stg.metrics.pearson(truth, with_truth_copied(filler, truth, rng))).mean()
        print(f"{name:12s} honest {honest:5.2f}   after the copy {leaked:5.2f}")


if __name__ == "__main__":
    main()
