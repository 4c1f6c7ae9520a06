"""What a sender does to the cells around it: planted genes found by GeST, and false calls when nothing is planted.

    python benchmarks/perturbation.py --out FILE

On toy tissue one scattered cell type, the sender, changes some genes of the cells around it. GeST learns the tissue; a
region's cells are then replaced by the sender's mean profile, and the table of `GeST.perturb` is held against what was
planted: with the effect on, which planted genes are called in their direction and which others are called too; with the
effect off, whether anything is called at all. The default seeds and parameters are those that judge.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _report import Cost, Place, Results, environment, heading, kept, measured, show
from _run import command_of
from scipy import stats
from scipy.spatial import cKDTree

import stgen as stg
from stgen import _keys
from stgen.datasets import TOY_JUDGE, TOY_JUDGE_SEEDS, TOY_TUNE_SEEDS, toy_tissue

DATASET = "toy_cells"
SENDER = "immune"
ON, OFF = "effect on", "effect off"
WINDOW_UM = 160.0
REGION_UM = 40.0
"""Radius of the changed region."""
ALPHA = 0.05
NOT_FOR_CELLS = ("stain_sd", "histology_noise")

TISSUE = "GeST, tissue's null"
QUANTIZED = "GeST, tissue's null, changed cells as meta cells"
UNLABELLED = "GeST, tissue's null, profile given, no cell types"
SHAM = "GeST, sham null"
SHAM_QUANTIZED = "GeST, sham null, changed cells as meta cells"
PAIRS = "pairs of cells without a model"
CELLS = "cells next to senders against the others, t test"
HEADLINE = TISSUE

MEANING = {
    "planted_found": "effect on: share of planted genes called in some ring, in the planted direction, at FDR 5 %",
    "planted_right": "effect on: share of planted genes that have the planted sign in the first ring that holds ten "
    "generated cells, before any test",
    "false_share": "effect on: share of called genes that are not planted or go the other way; 0 without calls",
    "accuracy": "effect on: share of all genes for which High, Low or n.s. is right; three quarters or more are n.s.",
    "accuracy_planted": "effect on: the same over planted genes alone",
    "calls_anything": "effect off: 1 if any gene is called in any ring at FDR 5 %, else 0; mean = share of runs",
    "n_called": "effect off: genes called",
    "share_changed": "share of the region's cells whose meta cell changed",
    "fold": "whether the planted effect is on or off; the same tissue otherwise",
    "peak_mb": "peak resident memory above what the process held before; largest of all fits",
}


@dataclass(frozen=True)
class Options:
    """What is run."""

    seeds: tuple[int, ...] = TOY_JUDGE_SEEDS
    judging: bool = True
    n_sections: int = 4
    n_cells: int = 1500
    n_genes: int = 100
    max_epochs: int = 1
    folds: tuple[str, ...] = (ON, OFF)
    quick: bool = False


class Answer(NamedTuple):
    """Calls of one method for all genes, High, Low or n.s."""

    method: str
    kind: str
    calls: pd.Series
    facts: dict[str, float]


def make_tissue(options: Options, seed: int, fold: str) -> Any:
    """Cells of several sections; a disc in the middle of the first is the region."""
    changes = {k: v for k, v in TOY_JUDGE.items() if k not in NOT_FOR_CELLS} if options.judging else {}
    adata = toy_tissue(
        unit="cells",
        n_sections=options.n_sections,
        n_patients=min(2, options.n_sections),
        spots_per_section=options.n_cells,
        n_genes=options.n_genes,
        histology="none",
        neighbour_effect=1.0 if fold == ON else 0.0,
        random_state=seed,
        **changes,
    )
    xy, first = adata.obsm[_keys.SPATIAL], section_of(adata) == 0
    adata.obs["in_region"] = first & (np.linalg.norm(xy - xy[first].mean(axis=0), axis=1) < REGION_UM)
    return adata


def section_of(adata: Any) -> np.ndarray:
    return adata.obs[_keys.LIBRARY].cat.codes.to_numpy().astype(np.int64)


def planted(adata: Any) -> pd.Series:
    """High, Low or n.s. for every gene."""
    sign = np.sign(adata.var["neighbour_effect"].to_numpy())
    return pd.Series(np.select([sign > 0, sign < 0], ["High", "Low"], "n.s."), index=adata.var_names)


# -------------------------------------------------------------------------------------------------------------- methods


def fitted(adata: Any, options: Options, seed: int) -> tuple[Any, dict[str, float]]:
    stg.models.GeST.setup_anndata(adata, library_key=_keys.LIBRARY)
    model = stg.models.GeST(adata, window_um=WINDOW_UM, random_state=seed)
    with measured() as cost:
        model.train(max_epochs=options.max_epochs, accelerator="cpu", random_state=seed)
    return model, cost


def gest_answers(
    adata: Any, model: Any, seed: int, degs: pd.Series
) -> Iterator[tuple[Answer, dict[str, float]]]:
    """Every way to ask GeST; simple answers beside the first."""
    senders = (adata.obs[_keys.CELL_TYPE] == SENDER).to_numpy()
    named = {"cell_type": SENDER, "labels_key": _keys.CELL_TYPE}
    given = {"profile": model.normalized()[senders].mean(axis=0)}
    ways: dict[str, dict[str, Any]] = {
        TISSUE: named,
        QUANTIZED: {**named, "quantized": True},
        UNLABELLED: given,
        SHAM: {**named, "null": "sham"},
        SHAM_QUANTIZED: {**named, "null": "sham", "quantized": True},
    }
    for method, how in ways.items():
        with measured() as cost:
            table = model.perturb(region="in_region", degs=degs, alpha=ALPHA, random_state=seed, **how)
        facts = {
            name: float(table.attrs[name]) for name in ("share_changed", "inflation") if name in table.attrs
        }
        facts["planted_right"] = generated_right(table, degs)
        yield Answer(method, "model", calls_of(table), facts), cost
        if method == TISSUE:
            for row in table.attrs["comparison"].itertuples():
                if row.method != "GeST":
                    answer = Answer(row.method, "null", pd.Series(dtype=object), {"accuracy": row.accuracy})
                    yield answer, {}


def generated_right(table: pd.DataFrame, degs: pd.Series) -> float:
    """Share of planted genes whose generated change has the planted sign."""
    ring = table.loc[table["n_cells"] >= 10, "ring"].min()
    change = table[table["ring"] == ring].set_index("gene")["generated"]
    known = degs[degs != "n.s."]
    return float((np.where(change[known.index] > 0, "High", "Low") == known).mean()) if len(known) else np.nan


def calls_of(table: pd.DataFrame) -> pd.Series:
    """One call for a gene: that of its ring of smallest p among those that call."""
    called = table[table["call"] != "n.s."].sort_values("p", kind="stable").drop_duplicates("gene")
    return called.set_index("gene")["call"].reindex(pd.unique(table["gene"]), fill_value="n.s.")


def baseline_answers(adata: Any, model: Any, seed: int) -> Iterator[Answer]:
    """Tests on cells alone: what is left if the model is taken away, and if the controls are too."""
    from stgen.models.gest import _perturbation as parts

    x, xy, section = model.normalized(), adata.obsm[_keys.SPATIAL], section_of(adata)
    kind = adata.obs[_keys.CELL_TYPE].cat.codes.to_numpy()
    group = np.unique(np.stack([section, kind]), axis=1, return_inverse=True)[1].ravel()
    sender = kind == list(adata.obs[_keys.CELL_TYPE].cat.categories).index(SENDER)
    edges = np.linspace(0, WINDOW_UM / 2, 5)
    found, control = parts.pair_up(
        xy, section, sender, within_um=WINDOW_UM, max_pairs=1000, rng=np.random.default_rng(seed)
    )
    scored = ~sender
    scored[control] = False
    near = _reached(xy, section, np.concatenate([found, control]), scored, edges)
    odd = parts.unusual(x, group, scored)
    difference, _ = parts.paired_differences(near, np.ones(len(near.cell)), odd, len(found), len(edges) - 1)
    z = parts.less_common(parts.sign_flip_z(difference)[0])
    p = parts.tail(z / parts.inflation(z), len(found) - 1)
    table = parts.table_of(list(adata.var_names), edges, {"effect": z, "p": p}, ALPHA)
    yield Answer(PAIRS, "baseline", calls_of(table), {})

    odd = parts.unusual(x, group, ~sender)
    near_one = parts.distance_to(xy, section, np.flatnonzero(sender)) < edges[2]
    t, p = stats.ttest_ind(odd[near_one & ~sender], odd[~near_one & ~sender], equal_var=False)
    table = parts.table_of(
        list(adata.var_names), edges[[0, 2]], {"effect": t, "p": np.nan_to_num(p, nan=1.0)}, ALPHA
    )
    yield Answer(CELLS, "baseline", calls_of(table), {})


def _reached(
    xy: np.ndarray, section: np.ndarray, rows: np.ndarray, scored: np.ndarray, edges: np.ndarray
) -> Any:
    """Scored cells within reach of each row, as if a model had answered alike for all of them."""
    from stgen.models.gest._perturbation import Answers, ring_of

    changed, cell, distance = [], [], []
    for code in np.unique(section[rows]):
        here, there = np.flatnonzero(section[rows] == code), np.flatnonzero((section == code) & scored)
        near = cKDTree(xy[rows[here]]).sparse_distance_matrix(
            cKDTree(xy[there]), edges[-1], output_type="coo_matrix"
        )
        changed.append(here[near.row])
        cell.append(there[near.col])
        distance.append(near.data)
    ring = ring_of(np.concatenate(distance), edges)
    inside = ring >= 0
    return Answers(
        np.concatenate(changed)[inside], np.concatenate(cell)[inside], ring[inside], np.empty((0, 1))
    )


# ------------------------------------------------------------------------------------------------------------------ run


def score(answer: Answer, degs: pd.Series, fold: str) -> dict[str, float]:
    """Numbers of one answer."""
    scores = dict(answer.facts)
    if fold == OFF:
        scores = {name: scores[name] for name in ("inflation",) if name in scores}
        if len(answer.calls):
            scores["n_called"] = float((answer.calls != "n.s.").sum())
            scores["calls_anything"] = float(scores["n_called"] > 0)
        return scores
    if len(answer.calls):
        is_planted, called = degs != "n.s.", answer.calls != "n.s."
        right = answer.calls == degs
        scores["planted_found"] = float(right[is_planted].mean())
        scores["false_share"] = float((called & ~right).sum() / max(1, called.sum()))
        scores["accuracy"] = float(right.mean())
        scores["accuracy_planted"] = float(right[is_planted].mean())
    return scores


def run(options: Options, command: str) -> tuple[Results, dict[str, Any]]:
    """All seeds, effect on and off."""
    results, start = Results(), time.perf_counter()
    for seed in options.seeds:
        for fold in options.folds:
            adata = make_tissue(options, seed, fold)
            degs, place = planted(adata), Place(DATASET, "all", fold, seed)
            model, training = fitted(adata, options, seed)
            for answer, cost in gest_answers(adata, model, seed, degs):
                add(results, place, answer, degs)
                if cost:
                    peak = float(np.nanmax([training["peak_mb"], cost["peak_mb"], 0.0]))
                    results.costs.append(
                        Cost(DATASET, answer.method, training["seconds"], cost["seconds"], peak)
                    )
            for answer in baseline_answers(adata, model, seed):
                add(results, place, answer, degs)
            _progress(start, place, results)
    meta = {
        "benchmark": "perturbation",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": asdict(options),
        "parameters": dict(TOY_JUDGE) if options.judging else "defaults",
        "window_um": WINDOW_UM,
        "region_um": REGION_UM,
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return results, meta


def add(results: Results, place: Place, answer: Answer, degs: pd.Series) -> None:
    for metric, value in score(answer, degs, place.fold).items():
        results.add(place, answer.method, answer.kind, metric, "", value)


def _progress(start: float, place: Place, results: Results) -> None:
    wanted = "planted_found" if place.fold == ON else "n_called"
    said = [
        f"{row.method}: {row.value:.2f}"
        for row in results.rows
        if (row.seed, row.fold, row.metric) == (place.seed, place.fold, wanted)
    ]
    print(
        f"[{time.perf_counter() - start:6.0f} s] seed {place.seed}, {place.fold}, {wanted}: {'; '.join(said)}",
        file=sys.stderr,
        flush=True,
    )


def say(results: Results, meta: dict[str, Any]) -> None:
    """Print one table: means over seeds."""
    table = pd.DataFrame(results.rows)
    heading(f"Toy tissue, {len(meta['seeds'])} seeds: means over seeds")
    order = results.methods(DATASET)
    wide = table.pivot_table("value", "method", "metric", sort=False).reindex(order)
    wide.insert(0, "kind", pd.Series(results.kinds).reindex(order))
    show(wide)
    off = table[(table["metric"] == "calls_anything") & (table["method"] == HEADLINE)]["value"]
    if len(off):
        low, high = stats.binomtest(int(off.sum()), len(off)).proportion_ci(method="exact")
        print(f"{HEADLINE}: {int(off.sum())} of {len(off)} runs without an effect call anything (95 % {low:.3f}–{high:.3f})")  # fmt: skip
    heading("Cost of one fit and one question")
    show(pd.DataFrame(results.total_costs()).drop(columns="dataset").set_index("method"), digits=2)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="not used: the answer is known on toy tissue alone")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", help="seeds, such as 1,2; default: those that judge, with --tune 0 to 9")
    parser.add_argument("--tune", action="store_true", help="default parameters and seeds of the toy tissue")
    parser.add_argument("--only-off", action="store_true", help="only runs without an effect: false calls")
    parser.add_argument("--max-epochs", type=int, help="epochs of training")
    parser.add_argument("--quick", action="store_true", help="three seeds, smaller tissue")
    given = parser.parse_args(arguments)
    options = Options()
    if given.tune:
        options = replace(options, seeds=TOY_TUNE_SEEDS, judging=False)
    if given.quick:
        options = replace(options, seeds=options.seeds[:3], n_cells=1000, quick=True)
    if given.seeds:
        options = replace(options, seeds=tuple(int(seed) for seed in given.seeds.split(",")))
    if given.only_off:
        options = replace(options, folds=(OFF,))
    if given.max_epochs:
        options = replace(options, max_epochs=given.max_epochs)
    return options, given.out


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, out = parse(given)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    command = command_of("perturbation", given)
    try:
        with kept(out, command):
            results, meta = run(options, command)
    finally:
        stg.settings.progress_bar, stg.settings.verbosity = before
    say(results, meta)
    results.write(out, meta, [])
    heading(f"written: {out.name}, after {meta['seconds']:.0f} s")


if __name__ == "__main__":
    main()
