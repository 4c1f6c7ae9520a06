"""Pairs of arrays: what a metric accepts, and how it walks over the genes.

Every metric compares a truth with a prediction, spots × genes, gene by gene. The genes are taken in blocks
that are made dense one at a time, so that a sparse truth of a whole slide never becomes dense as a whole.
A value that cannot be computed is NaN: the caller counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stgen._by_name import join_tables

Floats: TypeAlias = NDArray[np.float64]
Kernel: TypeAlias = Callable[[Floats, Floats], Floats]

BLOCK_VALUES = 4_000_000
"""Dense values of one block: 32 MB in double precision."""


def by_gene(kernel: Kernel, truth: Any, prediction: Any) -> Floats:
    """Scores of all genes, block after block."""
    truth, prediction = check_pair(truth, prediction)
    scores = np.empty(truth.shape[1])
    for genes in gene_blocks(truth.shape):
        # undefined is an answer here (NaN), not an accident worth a warning
        with np.errstate(divide="ignore", invalid="ignore"):
            scores[genes] = kernel(dense(truth[:, genes]), dense(prediction[:, genes]))
    return scores


def gene_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    n_spots, n_genes = shape
    step = max(1, BLOCK_VALUES // max(n_spots, 1))
    for start in range(0, n_genes, step):
        yield slice(start, min(start + step, n_genes))


def dense(block: Any) -> Floats:
    """A block in double precision; infinite values become NaN, rounding noise of a constant gene goes."""
    values = block.toarray() if sparse.issparse(block) else np.asarray(block)
    precision = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    values = values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    # a mean profile computed batch by batch differs in the last bit; its correlation would be that of rounding
    first = values[:1]
    is_constant = np.abs(values - first).max(axis=0) <= 8 * precision * np.abs(values).max(axis=0)
    return np.where(is_constant, first, values)


def centred(values: Floats) -> Floats:
    """Deviations from each gene's mean, exactly 0 for a constant gene."""
    values = values - values[:1]  # the mean of n equal numbers is not always that number
    return values - values.mean(axis=0)


def check_pair(truth: Any, prediction: Any) -> tuple[Any, Any]:
    """Both as matrices of the same shape, joined by name, sparse ones in column order."""
    truth, prediction = join_tables(truth=truth, prediction=prediction)
    truth, prediction = check_matrix(truth, "truth"), check_matrix(prediction, "prediction")
    if truth.shape != prediction.shape:
        raise ValueError(
            f"`truth` and `prediction` must have the same shape, spots × genes; got {truth.shape} and "
            f"{prediction.shape}. Align genes by name and spots by observation first."
        )
    return truth, prediction


def check_matrix(values: Any, name: str) -> Any:
    """A matrix of real numbers with at least one row."""
    values = values.tocsc() if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2:
        raise ValueError(
            f"`{name}` must be a matrix, spots × genes; got {values.ndim} dimension(s). "
            "A single gene is a matrix with one column: `values[:, None]`."
        )
    if values.dtype.kind not in "buif":
        raise ValueError(f"`{name}` must hold real numbers; got dtype {values.dtype}.")
    if values.shape[0] == 0:
        raise ValueError(
            f"`{name}` has no spots; got shape {values.shape}. Check the rows that were selected."
        )
    return values
