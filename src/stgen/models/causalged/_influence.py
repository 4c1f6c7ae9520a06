"""What an imputed gene owes to a measured one: the same imputation with and without it.

Beside it stands what is lost with a gene of which the reference knows nothing: measured in the same spots, its correlations
replaced by those of shuffled cells. Withholding it changes something too, because all measured genes together say how good a
spot is.

s spots of the sample, w imputed genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._calibration import pearson
from ._reference import FACTS, Reference

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Expected = Callable[[Reference, Ints], Floats]
"""From a reference and the measured genes that are looked at to expected expression (s, w) of imputed genes."""

NULL_QUANTILE = 0.95


class Influence(NamedTuple):
    """Of one measured gene on w imputed ones."""

    change: NDArray[np.float64]
    """(w,) what is lost without it, in standard deviations of the imputed gene."""
    direction: NDArray[np.float64]
    """(w,) correlation of what is lost with the measured gene."""


def influences(
    expected: Expected, reference: Reference, measured: Ints, of_measured: Floats, withheld: Iterable[int]
) -> dict[int, Influence]:
    """Of each withheld gene, given as its column among the measured genes; ``of_measured`` (s, m) is what was measured."""
    everyone = np.arange(len(measured))
    whole = expected(reference, everyone)
    found = {}
    for gene in withheld:
        less = expected(reference, np.delete(everyone, gene))
        lost = whole - less
        direction = pearson(lost, np.repeat(of_measured[:, [gene]], lost.shape[1], axis=1))
        found[gene] = Influence(_change(lost, whole), direction)
    return found


def null_influence(
    expected: Expected, reference: Reference, measured: Ints, n_genes: int, seed: int
) -> NDArray[np.float64]:
    """(w,) change that 95 % of measured genes stay below if the reference knows nothing of them."""
    rng, everyone = np.random.default_rng(seed), np.arange(len(measured))
    chosen = rng.permutation(len(measured))[:n_genes]
    changes = []
    for gene in chosen:
        stranger = made_stranger(reference, measured, gene, rng)
        whole = expected(stranger, everyone)
        changes.append(_change(whole - expected(reference, np.delete(everyone, gene)), whole))
    return np.quantile(changes, NULL_QUANTILE, axis=0)


def made_stranger(reference: Reference, measured: Ints, gene: int, rng: np.random.Generator) -> Reference:
    """The reference with one measured gene as if its cells had been shuffled."""
    n_metacells, n_cells = len(reference.metacells), max(reference.n_cells, 2)
    column = measured[gene]
    gram, metacells, facts = (part.copy() for part in (reference.gram, reference.metacells, reference.facts))
    gram[gene] = rng.normal(size=gram.shape[1]) / np.sqrt(n_cells)
    gram[:, column] = gram[gene, measured]
    gram[gene, column] = 1.0
    metacells[:, column] = rng.normal(size=n_metacells) * np.sqrt(n_metacells / n_cells)
    facts[column, FACTS.index("between")] = n_metacells / n_cells
    return replace(reference, gram=gram, metacells=metacells, facts=facts)


def _change(lost: Floats, whole: Floats) -> NDArray[np.float64]:
    """(w,) root mean square of what is lost, in standard deviations of the imputed gene; 0 for constant ones."""
    lost, sd = lost - lost.mean(axis=0), whole.std(axis=0)
    return np.where(sd > 1e-6, lost.std(axis=0) / np.maximum(sd, 1e-6), 0.0).astype(np.float64)


def as_table(
    found: dict[int, Influence], null: NDArray[np.float64], genes: list[str], measured: list[str]
) -> pd.DataFrame:
    """One row for each imputed and each withheld gene, the largest change of each gene first."""
    columns = list(found)
    n_genes, n_withheld = len(genes), len(columns)
    table = pd.DataFrame(
        {
            "gene": np.repeat(genes, n_withheld),
            "withheld": np.tile([measured[gene] for gene in columns], n_genes),
            "change": np.stack([found[gene].change for gene in columns], axis=1).ravel(),
            "null": np.repeat(null, n_withheld),
            "direction": np.stack([found[gene].direction for gene in columns], axis=1).ravel(),
        }
    )
    place = np.repeat(np.arange(n_genes), n_withheld)
    order = np.lexsort((-table["change"].to_numpy(), place))
    return table.iloc[order].reset_index(drop=True)
