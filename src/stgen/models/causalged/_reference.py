"""What is kept of a single-cell reference: how genes go together, and metacells. No cell is kept.

q cells, m measured genes (those the spatial data has too), G genes of the reference, M metacells. Expression is log1p of
counts over a cell's total of *measured* genes, times the median of these totals: genes that will be generated have no
part in it. Genes are standardised over cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans

Floats = NDArray[np.float32]
Blocks = Callable[[], Iterator[sparse.csr_matrix]]
"""Gives log-normalised cells × G in blocks of rows, the same at each call."""

N_COMPONENTS = 30
N_CLUSTERED = 10_000
"""Cells in which metacells are looked for; all are assigned."""
FACTS = ("mean", "sd", "detected", "between")


@dataclass(frozen=True)
class Reference:
    """Statistics of a reference; all that is needed to say something about a gene."""

    gram: Floats
    """(m, G) mean product of standardised expression: correlations of measured genes with all."""
    metacells: Floats
    """(M, G) mean standardised expression."""
    facts: Floats
    """(G, 4) mean and standard deviation of the log-normalised expression, share of cells with any, and share of the
    variance that lies between metacells."""
    axes: Floats
    """(M, L/2) principal components of metacells over measured genes, of unit length: axes of a gene's latent."""
    n_cells: int = 0
    """q"""


def summarise(
    blocks: Blocks, measured: NDArray[np.int64], n_metacells: int, n_axes: int, seed: int
) -> Reference:
    """Read the reference three times, in blocks.

    Parameters
    ----------
    blocks
        Cells × G, log-normalised.
    measured
        Which of the G genes are measured.
    n_metacells, n_axes
        M at most, L/2.
    seed
        Of the clustering.
    """
    n = 0
    total: Any = 0.0
    square: Any = 0.0
    detected: Any = 0
    cross: Any = 0.0
    for x in blocks():
        n += x.shape[0]
        total = total + np.asarray(x.sum(axis=0)).ravel().astype(np.float64)
        square = square + np.asarray(x.multiply(x).sum(axis=0)).ravel().astype(np.float64)
        detected = detected + np.asarray((x > 0).sum(axis=0)).ravel()
        cross = cross + (x[:, measured].T @ x).toarray().astype(np.float64)
    mean = total / n
    sd = np.sqrt(np.maximum(square / n - mean**2, 0.0))
    unit = np.where(sd > 1e-8, sd, np.inf)
    gram = (cross / n - np.outer(mean[measured], mean)) / np.outer(unit[measured], unit)

    k = min(N_COMPONENTS, len(measured))
    turn = np.linalg.eigh(gram[:, measured])[1][:, ::-1][:, :k] / unit[measured][:, None]

    def components(x: sparse.csr_matrix) -> NDArray[np.float64]:
        return np.asarray(x[:, measured] @ turn) - mean[measured] @ turn

    rng = np.random.default_rng(seed)
    chosen = np.zeros(n, dtype=bool)
    chosen[rng.permutation(n)[:N_CLUSTERED]] = True
    found, start = [], 0
    for x in blocks():
        found.append(components(x[chosen[start : start + x.shape[0]]]))
        start += x.shape[0]
    cells = np.concatenate(found)
    n_clusters = max(2, min(n_metacells, n // 5))
    kmeans = KMeans(n_clusters, n_init=1, random_state=seed, max_iter=50).fit(cells)

    sums, sizes = np.zeros((n_clusters, len(mean))), np.zeros(n_clusters)
    for x in blocks():
        label = kmeans.predict(components(x))
        member = sparse.csr_matrix(
            (np.ones(len(label)), (label, np.arange(len(label)))), (n_clusters, len(label))
        )
        sums += (member @ x).toarray()
        sizes += np.bincount(label, minlength=n_clusters)
    is_kept = sizes > 0
    metacells = (sums[is_kept] / sizes[is_kept, None] - mean) / unit
    share = sizes[is_kept] / n
    between = share @ metacells**2
    u = np.linalg.svd(metacells[:, measured], full_matrices=False)[0]
    axes = np.zeros((len(metacells), n_axes))
    axes[:, : min(n_axes, u.shape[1])] = u[:, :n_axes]
    # a component's sign is arbitrary: the larger half of it is positive
    axes *= np.where((axes**3).sum(axis=0) < 0, -1.0, 1.0)
    facts = np.stack([mean, sd, detected / n, between], axis=1)
    return Reference(
        gram.astype(np.float32),
        metacells.astype(np.float32),
        facts.astype(np.float32),
        axes.astype(np.float32),
        n,
    )


def blinded(reference: Reference, genes: NDArray[np.int64], seed: int) -> Reference:
    """The reference with a copy of some genes behind all others, of which it knows no more than of shuffled cells."""
    rng = np.random.default_rng(seed)
    n, n_metacells = max(reference.n_cells, 2), len(reference.metacells)
    gram = rng.normal(size=(len(reference.gram), len(genes))) / np.sqrt(n)
    metacells = rng.normal(size=(n_metacells, len(genes))) * np.sqrt(n_metacells / n)
    facts = reference.facts[genes].copy()
    facts[:, FACTS.index("between")] = n_metacells / n
    return replace(
        reference,
        gram=np.concatenate([reference.gram, gram.astype(np.float32)], axis=1),
        metacells=np.concatenate([reference.metacells, metacells.astype(np.float32)], axis=1),
        facts=np.concatenate([reference.facts, facts]),
    )
