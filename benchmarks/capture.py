"""Which genes morphology shows: what GenST reports, beside what was planted, on patients it has not seen.

    python benchmarks/capture.py --out FILE

On toy tissue a known share of every gene's log-rate variance is a function of morphology. GenST is trained without some
patients and reports on them; r and reliability are averaged over folds until every patient was left out once, and the
captured share is held against the planted one. A perfect translator is asked too: the planted function of morphology
itself, scored on the same counts. What it loses is lost by measuring; the rest is lost by the model. The default seeds
and parameters are those that judge.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _report import Cost, Place, Results, environment, heading, kept, measured, show
from _run import command_of, forget, limit_threads
from scipy import stats

import stgen as stg
from stgen import _keys
from stgen.datasets import TOY_JUDGE, TOY_JUDGE_SEEDS, TOY_TUNE_SEEDS, toy_tissue

DATASET = "toy"
MODEL = "GenST"
SQUARE = "GenST, r² alone"
CEILING = "GenST, r²/ceiling²"
COUNTS = "morphology known"
LINEAR = "morphology known, its linear part"
NOISELESS = "morphology known, against noiseless expression"
RATES = "morphology known, log-rates in place of counts"

MEANING = {
    "spearman": "rank correlation over genes of the reported with the planted share",
    "bias": "mean over genes of reported − planted share",
    "rmse": "root mean square over genes of reported − planted share",
    "mean_share": "mean over genes of the reported share",
    "n_genes": "genes with a reported share; all else is over these",
    "bias_sections": "part of GenST's bias that is there with known morphology and log-rates: within sections and with "
    "neighbour effects, morphology's share is smaller than planted",
    "bias_counts": "what counts and halving add: a gene's own overdispersion is shared by both halves and passes for signal",
    "bias_model": "what the model adds: morphology that it does not read out of the histology of new patients",
    MODEL: "r_cross²/reliability",
    COUNTS: "correlation of the planted function of morphology with measured expression, squared, over the same reliability",
    LINEAR: "the same for its best linear approximation in cell types and their looks",
    NOISELESS: "the same over the squared correlation of measured with noiseless expression, which nobody can measure",
    RATES: "squared correlation within sections of that function with the gene's whole log-rate",
    "fold": "always all: every patient was left out once, and folds are averaged",
    "peak_mb": "peak resident memory above what the process held before; largest of all fits",
}


@dataclass(frozen=True)
class Options:
    """What is run."""

    seeds: tuple[int, ...] = TOY_JUDGE_SEEDS
    judging: bool = True
    n_patients: int = 8
    n_sections: int = 16
    n_spots: int = 300
    n_genes: int = 120
    per_fold: int = 2
    """Patients that are left out at once."""
    max_epochs: int | None = None
    quick: bool = False


def make_tissue(options: Options, seed: int) -> Any:
    return toy_tissue(
        n_patients=options.n_patients,
        n_sections=options.n_sections,
        spots_per_section=options.n_spots,
        n_genes=options.n_genes,
        truth=True,
        random_state=seed,
        **(TOY_JUDGE if options.judging else {}),
    )


def folds(adata: Any, per_fold: int) -> Iterator[list[str]]:
    """Patients to leave out, so that each is left out once."""
    patients = sorted(adata.obs[_keys.PATIENT].astype(str).unique())
    for start in range(0, len(patients), per_fold):
        yield patients[start : start + per_fold]


def shown_by_morphology(adata: Any) -> np.ndarray:
    """The planted function of morphology, part of the log-rate: spots × genes."""
    of_types = np.asarray(adata.obsm[_keys.PROPORTIONS]) @ np.exp(np.asarray(adata.varm[_keys.PROFILES])).T
    is_visible = np.array([name.endswith("_visible") for name in adata.uns[_keys.TOY]["programmes"]])
    activity, loading = np.asarray(adata.obsm[_keys.PROGRAMMES]), np.asarray(adata.varm[_keys.LOADINGS])
    return np.log(of_types) + activity[:, is_visible] @ loading[:, is_visible].T


def linear_part(values: np.ndarray, adata: Any) -> np.ndarray:
    """Least squares on cell types and looks."""
    morphology = np.asarray(adata.obsm[_keys.MORPHOLOGY], dtype=np.float64)
    inputs = np.column_stack([np.ones(len(morphology)), morphology])
    return inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]


def known(adata: Any, target: float, rows: np.ndarray) -> pd.DataFrame:
    """What a translator that knows morphology's part would find, per gene, sections averaged."""
    shown = shown_by_morphology(adata)
    straight = linear_part(shown, adata)
    rate = np.asarray(adata.layers[_keys.RATE])
    section = adata.obs[_keys.LIBRARY].astype(str).to_numpy()
    found = []
    for name in np.unique(section[rows]):
        here = section == name
        expression = stg.metrics.normalize_panel(adata.X[here], target=target)
        noiseless = stg.metrics.normalize_panel(rate[here], target=target)
        of = {
            "r_counts": (expression, shown[here]),
            "r_linear": (expression, straight[here]),
            "r_noiseless": (expression, noiseless),
            "r_rates": (noiseless, shown[here]),
        }
        found.append(pd.DataFrame({key: stg.metrics.pearson(*pair) for key, pair in of.items()}))
    return pd.concat(found).groupby(level=0).mean().set_axis(adata.var_names)


def reported(adata: Any, options: Options, seed: int) -> tuple[pd.DataFrame, list[dict[str, float]]]:
    """Per gene: what GenST reports of patients left out, and what known morphology would; folds averaged."""
    tables, costs = [], []
    who = adata.obs[_keys.PATIENT].astype(str)
    for left_out in folds(adata, options.per_fold):
        adata.obs[_keys.SPLIT] = np.where(who.isin(left_out), _keys.TEST, _keys.TRAIN)
        stg.models.GenST.setup_anndata(
            adata, library_key=_keys.LIBRARY, patient_key=_keys.PATIENT, split_key=_keys.SPLIT
        )
        model = stg.models.GenST(adata, random_state=seed)
        with measured() as training:
            model.train(max_epochs=options.max_epochs, accelerator="cpu", random_state=seed)
        with measured() as asking:
            genes = model.report(n_boot=1, random_state=seed).genes
        costs.append({"train": training["seconds"], "ask": asking["seconds"], "peak_mb": training["peak_mb"]})
        target = float(model.module.target_total)
        tables.append(genes.join(known(adata, target, np.flatnonzero(who.isin(left_out)))))
        forget(adata)
    return pd.concat(tables).groupby(level=0).mean().reindex(adata.var_names), costs


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Share of each gene by each method; NaN where GenST reports none."""
    from stgen.models.genst._capture import captured_share

    def over(r: pd.Series, reliability: pd.Series) -> np.ndarray:
        return captured_share(r.to_numpy(), reliability.to_numpy())

    out = pd.DataFrame(
        {
            MODEL: over(table["r_cross"], table["reliability"]),
            SQUARE: table["r_cross"].clip(lower=0) ** 2,
            CEILING: over(table["r_cross"], table["ceiling"] ** 2),
            COUNTS: over(table["r_counts"], table["reliability"]),
            LINEAR: over(table["r_linear"], table["reliability"]),
            NOISELESS: over(table["r_counts"], table["r_noiseless"] ** 2),
            RATES: table["r_rates"] ** 2,
        },
        index=table.index,
    )
    return out.where(out[MODEL].notna())


def score(found: pd.DataFrame, planted: pd.Series) -> Iterator[tuple[str, str, float]]:
    """Method, metric, value."""
    for method in found:
        both = pd.DataFrame({"share": found[method], "planted": planted}).dropna()
        gap = both["share"] - both["planted"]
        yield method, "spearman", stats.spearmanr(both["share"], both["planted"])[0]
        yield method, "bias", gap.mean()
        yield method, "rmse", np.sqrt((gap**2).mean())
        yield method, "mean_share", both["share"].mean()
        yield method, "n_genes", len(both)
    yield MODEL, "bias_sections", (found[RATES] - planted).mean()
    yield MODEL, "bias_counts", (found[COUNTS] - found[RATES]).mean()
    yield MODEL, "bias_model", (found[MODEL] - found[COUNTS]).mean()


def kind_of(method: str) -> str:
    return "model" if method == MODEL else "baseline" if method.startswith(MODEL) else "oracle"


# ------------------------------------------------------------------------------------------------------------------ run


def run(options: Options, command: str) -> tuple[Results, dict[str, Any]]:
    """All seeds."""
    results, start = Results(), time.perf_counter()
    for seed in options.seeds:
        adata = make_tissue(options, seed)
        table, costs = reported(adata, options, seed)
        place = Place(DATASET, "all", "all", seed)
        for method, metric, value in score(shares(table), adata.var["morphology_share"]):
            results.add(place, method, kind_of(method), metric, "", value)
        results.costs += [Cost(DATASET, MODEL, one["train"], one["ask"], one["peak_mb"]) for one in costs]
        said = {row.metric: row.value for row in results.rows if (row.seed, row.method) == (seed, MODEL)}
        print(
            f"[{time.perf_counter() - start:6.0f} s] seed {seed}: Spearman {said['spearman']:.3f}, bias {said['bias']:+.3f}",
            file=sys.stderr,
            flush=True,
        )
    meta = {
        "benchmark": "capture",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": asdict(options),
        "parameters": dict(TOY_JUDGE) if options.judging else "defaults",
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return results, meta


def say(results: Results, meta: dict[str, Any]) -> None:
    """Print the tables: means over seeds."""
    table = pd.DataFrame(results.rows)
    heading(f"Toy tissue, {len(meta['seeds'])} seeds: reported against planted share, means over seeds")
    order = results.methods(DATASET)
    wide = table.pivot_table("value", "method", "metric", sort=False).reindex(order)
    parts = [name for name in wide if name.startswith("bias_")]
    lowest = table[table["metric"] == "spearman"].groupby("method")["value"].min().reindex(order)
    wide.insert(0, "kind", pd.Series(results.kinds).reindex(order))
    wide.insert(2, "lowest", lowest)
    show(wide.drop(columns=parts))
    heading("Where GenST's bias comes from")
    show(wide.loc[[MODEL], ["bias", *parts]])
    heading("Cost of one fit and one report")
    show(pd.DataFrame(results.total_costs()).drop(columns="dataset").set_index("method"), digits=2)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path, int | None]:
    """Options, output file and threads from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="not used: the answer is known on toy tissue alone")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", help="seeds, such as 1,2; default: those that judge, with --tune 0 to 9")
    parser.add_argument("--tune", action="store_true", help="default parameters and seeds of the toy tissue")
    parser.add_argument("--max-epochs", type=int, help="epochs of training")
    parser.add_argument("--threads", type=int, help="threads of torch and numpy")
    parser.add_argument("--quick", action="store_true", help="two seeds, four patients")
    given = parser.parse_args(arguments)
    options = Options()
    if given.tune:
        options = replace(options, seeds=TOY_TUNE_SEEDS, judging=False)
    if given.quick:
        options = replace(options, seeds=options.seeds[:2], n_patients=4, n_sections=8, quick=True)
    if given.seeds:
        options = replace(options, seeds=tuple(int(seed) for seed in given.seeds.split(",")))
    if given.max_epochs:
        options = replace(options, max_epochs=given.max_epochs)
    return options, given.out, given.threads


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, out, threads = parse(given)
    limit_threads(threads)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    command = command_of("capture", given)
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
