"""What a change of some cells does to the cells around them, and whether the tissue bears it out.

A model's answer alone cannot say whether it is true: the same fitted network would answer a little differently had it
seen other cells, and it knows that a cell of another kind speaks of another layer. Two nulls are offered, and each
answers its own question:

- *tissue*: is the answer true? Tissue holds cells that look as if they had been changed already (instances). Each is
  paired with a control, a cell nearby that does not look so. Around instance and control other cells are compared
  with what is usual for their own kind, weighted by what the model says the change does to them. Were the change
  without effect, instance and control could swap names: signs of the differences are exchangeable.
- *sham*: does the model answer to these genes more than to others? The same amounts, put on other genes of like
  expression, in the same cells.

n cells, R rings, P pairs, T genes, S shams, d components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial import cKDTree

from stgen._by_name import in_order
from stgen._warn import number

MODES = ("activate", "inhibit", "replace")
NULLS = ("tissue", "sham")
CALLS = ("High", "Low", "n.s.")
MIN_PAIRS = 30
"""Fewer pairs do not tell the spread of their differences."""
MIN_CHANGE = 0.1
"""Change in log-normalised expression from which a baseline without a test says High or Low."""
_NORMAL_MEDIAN = 0.6745
"""Median of |z| for a standard normal z."""
_N_BINS = 10
"""Sets of genes of like mean expression, among which a sham moves a change."""


@dataclass(frozen=True)
class Change:
    """What is done to which cells."""

    rows: np.ndarray
    """Cells of the region."""
    before: np.ndarray
    """(region, T) their log-normalised expression."""
    after: np.ndarray
    """(region, T) what it becomes."""


def region_change(
    x: np.ndarray,
    rows: np.ndarray,
    rho: np.ndarray,
    *,
    mode: str,
    genes: np.ndarray | None = None,
    profile: np.ndarray | None = None,
    sigma_um: float | None = None,
) -> Change:
    """Expression of the region's cells after the change.

    ``activate``: genes become a·exp(−ρ²/2σ²), a their largest value over all cells, where that is more than they are.
    ``inhibit``: genes g become g·(1 − exp(−ρ²/2σ²)). ``replace``: cells get ``profile``. ρ (region,) is the distance
    to the region's centre; without σ the change is everywhere that at the centre.
    """
    before = x[rows]
    after = before.copy()
    shape = np.ones(len(rows)) if sigma_um is None else np.exp(-(rho**2) / (2 * sigma_um**2))
    if mode == "replace":
        after[:] = profile
    elif mode == "activate":
        after[:, genes] = np.maximum(before[:, genes], shape[:, None] * x[:, genes].max(axis=0))
    else:
        after[:, genes] = before[:, genes] * (1 - shape[:, None])
    return Change(rows, before, after)


# ------------------------------------------------------------------------------------------------------------- rings


def distance_to(xy: np.ndarray, section: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n,) distance of every cell to the nearest of ``rows`` in its section; infinite without one."""
    distance = np.full(len(xy), np.inf)
    for code in np.unique(section[rows]):
        here = np.flatnonzero(section == code)
        distance[here] = cKDTree(xy[rows[section[rows] == code]]).query(xy[here])[0]
    return distance


def ring_of(distance: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Ring of each distance: edges[r] ≤ distance < edges[r + 1]; −1 outside all."""
    ring = np.searchsorted(edges, distance, side="right") - 1
    return np.where((ring >= 0) & (ring < len(edges) - 1), ring, -1)


def check_rings(rings_um: Sequence[float] | None, reach: float) -> np.ndarray:
    """Edges of the rings; by default four of equal width up to ``reach``, half a window."""
    if rings_um is None:
        return np.linspace(0, reach, 5)
    edges = np.asarray(rings_um, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"`rings_um` must be two or more rising distances in µm; got {rings_um!r}.")
    if edges[0] < 0 or edges[-1] > reach + 1e-6:
        raise ValueError(
            f"`rings_um` must lie between 0 and {number(reach)} µm, half of the model's window: it sees no further; got "
            f"{number(edges[0], 0)} to {number(edges[-1], reach, float(number(reach)))}."
        )
    return edges


# ------------------------------------------------------------------------------------------------- the tissue's null


def looks_changed(
    x: np.ndarray, *, mode: str, genes: np.ndarray | None, profile: np.ndarray | None
) -> np.ndarray:
    """Which cells look as if they had been changed already: more than half of the way from the mean cell."""
    mean = x.mean(axis=0)
    if mode == "replace":
        direction = profile - mean
    else:
        direction = np.zeros(x.shape[1])
        direction[genes] = (x[:, genes].max(axis=0) if mode == "activate" else 0.0) - mean[genes]
    length = float(direction @ direction)
    return (x - mean) @ direction > 0.5 * length if length > 0 else np.zeros(len(x), bool)


def pair_up(
    xy: np.ndarray,
    section: np.ndarray,
    instance: np.ndarray,
    *,
    within_um: float,
    max_pairs: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Instances and their controls: other cells of the section within ``within_um``, each used once.

    ``instance`` (n,) says which cells are instances. Both returned arrays are row numbers.
    """
    found: list[int] = []
    control: list[int] = []
    free = ~instance
    trees = {code: np.flatnonzero((section == code) & free) for code in np.unique(section)}
    near = {code: cKDTree(xy[rows]) for code, rows in trees.items() if len(rows)}
    for row in rng.permutation(np.flatnonzero(instance)):
        if len(found) == max_pairs:
            break
        if section[row] not in near:
            continue
        rows = trees[section[row]][near[section[row]].query_ball_point(xy[row], within_um)]
        rows = rows[free[rows]]
        if len(rows):
            found.append(row)
            control.append(rng.choice(rows))
            free[control[-1]] = False
    return np.array(found, dtype=np.int64), np.array(control, dtype=np.int64)


def unusual(x: np.ndarray, group: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """(n, T) expression less the mean of the scored cells of the same group; 0 for cells that are not scored."""
    _, group = np.unique(group, return_inverse=True)
    total = np.zeros((group.max() + 1, x.shape[1]))
    np.add.at(total, group[scored], x[scored])
    count = np.bincount(group[scored], minlength=len(total))
    out = np.zeros(x.shape)
    out[scored] = x[scored] - (total / np.maximum(count, 1)[:, None])[group[scored]]
    return out


@dataclass(frozen=True)
class Answers:
    """What the model says a changed cell does to cells around it: one entry for a changed cell and a cell it reaches."""

    changed: np.ndarray
    """Number of the changed cell: 0 … P − 1 instances, P … 2P − 1 their controls."""
    cell: np.ndarray
    """Row of the cell around it."""
    ring: np.ndarray
    """Ring in which that lies."""
    shift: np.ndarray
    """(entries, d) how the expected expression of that cell moves, in components."""


def typical_size(answers: Answers, n_rings: int) -> np.ndarray:
    """(R,) mean size of the shift in each ring, instances and controls alike."""
    total = np.bincount(answers.ring, np.linalg.norm(answers.shift, axis=1), minlength=n_rings)
    return total / np.maximum(np.bincount(answers.ring, minlength=n_rings), 1)


def dose(shift: np.ndarray, ring: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """How many times the typical shift of its ring each shift is."""
    size = np.linalg.norm(shift, axis=1)
    return np.divide(size, typical[ring], out=np.zeros(len(size)), where=typical[ring] > 0)


def paired_differences(
    answers: Answers, weight: np.ndarray, odd: np.ndarray, n_pairs: int, n_rings: int
) -> tuple[np.ndarray, np.ndarray]:
    """(R, P, T) what is unusual around instances less that around controls, weighted; (R,) sum of squared weights
    around instances.

    Were a dose of w to change expression by w·b, their ratio would be b.
    """
    difference = np.zeros((n_rings, n_pairs, odd.shape[1]))
    real = answers.changed < n_pairs
    sign = np.where(real, weight, -weight)
    for gene in range(odd.shape[1]):
        at = answers.ring * n_pairs + answers.changed % n_pairs
        value = np.bincount(at, sign * odd[answers.cell, gene], minlength=n_rings * n_pairs)
        difference[:, :, gene] = value.reshape(n_rings, n_pairs)
    square = np.bincount(answers.ring[real], weight[real] ** 2, minlength=n_rings)
    return difference, square


def sign_flip_z(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, T) sum of the differences over its spread if every sign were a coin's, and that spread."""
    spread = np.sqrt(np.square(difference).sum(axis=1))
    return np.divide(difference.sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0), spread


def less_common(z: np.ndarray) -> np.ndarray:
    """(R, T) z less the ring's median: genes that rise much lower the normalised values of all others a little."""
    there = z != 0
    middle = [np.median(row[here]) if here.any() else 0.0 for row, here in zip(z, there, strict=True)]
    return np.where(there, z - np.array(middle)[:, None], 0.0)


def inflation(z: np.ndarray) -> float:
    """By how much the middle of |z| over all genes and rings is wider than a normal's; at least 1.

    Pools the null over genes: what moves all genes a little (totals, pairs that share cells) widens it.
    """
    size = np.abs(z[z != 0])
    return max(1.0, float(np.median(size)) / _NORMAL_MEDIAN) if len(size) else 1.0


def tail(z: np.ndarray, df: int) -> np.ndarray:
    """Two-sided p of z by Student's t."""
    return np.where(z == 0, 1.0, 2 * stats.t.sf(np.abs(z), df))


# -------------------------------------------------------------------------------------------------- the sham's null


def shams_of(
    change: Change, mean: np.ndarray, *, n_shams: int, rng: np.random.Generator, mode: str
) -> list[Change]:
    """The same amounts in the same cells on other genes, of like mean expression over all cells (T,).

    Where genes are changed, none of them is drawn; where whole profiles are, all amounts change places.
    """
    delta = change.after - change.before
    order = np.argsort(mean, kind="stable")
    touched = np.flatnonzero(np.abs(delta).sum(axis=0) > 0)
    out = []
    for _ in range(n_shams):
        moved = np.zeros_like(delta)
        if mode == "replace":
            for genes in np.array_split(order, min(_N_BINS, len(order))):
                moved[:, genes] = delta[:, rng.permutation(genes)]
        else:
            free = np.setdiff1d(np.arange(len(mean)), touched)
            for gene in rng.permutation(touched):
                if len(free) == 0:
                    raise ValueError(
                        f"Too many genes are changed ({len(touched)} of {len(mean)}) for others to stand in for them. "
                        "Change at most half of them."
                    )
                like = free[np.argsort(np.abs(mean[free] - mean[gene]), kind="stable")[:_N_BINS]]
                chosen = rng.choice(like)
                moved[:, chosen] = delta[:, gene]
                free = free[free != chosen]
        # expression is not negative
        out.append(Change(change.rows, change.before, np.maximum(change.before + moved, 0)))
    return out


def sham_test(response: np.ndarray, shams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every z and p (R, T) of a response (R, T) among those to shams (S, R, T), pooled over the genes of a ring.

    A gene's scale is the root mean square over shams and the response itself, so that true and sham are treated alike.
    """
    every = np.concatenate([response[None], shams])
    scale = np.sqrt(np.square(every).mean(axis=0))
    z = np.divide(every, scale, out=np.zeros_like(every), where=scale > 0)
    size = np.abs(z)
    p = np.empty(response.shape)
    for ring in range(len(p)):
        pool = np.sort(size[:, ring].ravel())
        p[ring] = (len(pool) - np.searchsorted(pool, size[0, ring] - 1e-12)) / len(pool)
    return z[0], p


# ------------------------------------------------------------------------------------------------------- the table


def adjust(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q of every finite p, all together; NaN stays."""
    q = np.full(p.shape, np.nan)
    finite = np.isfinite(p)
    if finite.any():
        q[finite] = stats.false_discovery_control(p[finite], method="bh")
    return q


def table_of(
    genes: Sequence[str], edges: np.ndarray, columns: Mapping[str, np.ndarray], alpha: float
) -> pd.DataFrame:
    """One row for a gene and a ring; ``columns`` are (R, T), with ``effect`` and ``p`` among them."""
    n_rings = len(edges) - 1
    table = pd.DataFrame(
        {
            "gene": np.tile(np.asarray(genes, dtype=object), n_rings),
            "ring": np.repeat(np.arange(n_rings), len(genes)),
            "from_um": np.repeat(edges[:-1], len(genes)),
            "to_um": np.repeat(edges[1:], len(genes)),
        }
    )
    for name, values in columns.items():
        table[name] = np.broadcast_to(values, (n_rings, len(genes))).ravel()
    table["q"] = adjust(table["p"].to_numpy())
    called = (table["q"] <= alpha) & (table["effect"] != 0)
    table["call"] = np.where(called, np.where(table["effect"] > 0, "High", "Low"), "n.s.")
    return table


def gene_calls(table: pd.DataFrame) -> pd.Series:
    """One call for a gene: that of its ring of smallest p."""
    best = table.sort_values(["p", "ring"], kind="stable").drop_duplicates("gene").set_index("gene")["call"]
    return best.reindex(pd.unique(table["gene"]))


def compare_calls(
    table: pd.DataFrame, truth: Mapping[str, str] | pd.Series, baselines: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Share of the user's genes for which High, Low or n.s. is right, for each way to answer.

    ``baselines`` are changes (T,) in the order of the genes; from ``MIN_CHANGE`` on they say High or Low.
    """
    wanted = pd.Series(truth, dtype=object)
    strange = sorted({str(value) for value in wanted} - set(CALLS))
    if strange:
        raise ValueError(f"`degs` must say High, Low or n.s. for each gene; found {', '.join(strange)}.")
    calls = {"GeST": gene_calls(table)}
    names = calls["GeST"].index
    here = wanted.index.intersection(names)
    if len(here) == 0:
        raise ValueError(
            f"None of the {len(wanted)} genes of `degs` is in the panel, which has {', '.join(map(str, names[:5]))}, …"
        )
    for name, change in baselines.items():
        says = np.select([change >= MIN_CHANGE, change <= -MIN_CHANGE], ["High", "Low"], "n.s.")
        calls[name] = pd.Series(says, index=names)
    calls["no change"] = pd.Series("n.s.", index=names)
    wanted = in_order(wanted, here, "`degs`", of="genes")
    rows: list[dict[str, Any]] = [
        {"method": name, "accuracy": float((call[here] == wanted).mean()), "n_genes": len(here)}
        for name, call in calls.items()
    ]
    return pd.DataFrame(rows)
