"""Labels carried to sections that have none: GeST beside logistic regression on a cell and its surroundings.

    python benchmarks/annotation.py --data DIR --out FILE

Methods learn from the labels of training sections and name the cells of a section they have not seen. In
``starmap_mpfc`` one section is for training and the other for the score, and the other way round. In
``her2st_labelled`` every section is of another patient; two regions occur in all of them, and only cells of these are
learned from and scored, while all cells lie in the neighbourhoods.

Expression is the same for all: counts over the cell's total × the section's median total, logged. Baselines are those
of `stgen.baselines.NeighbourLabels`.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _report import Cost, Place, Results, environment, heading, kept, measured, paired_by_unit, show
from _run import folders_of, names_of
from niches import Section, at_rest, command_of, has_gest, make_section, quiet, say_once

from stgen import _keys, metrics
from stgen.baselines import NeighbourLabels

LABEL = "region"
SHARED = ("invasive cancer", "connective tissue")
"""Regions of ``her2st_labelled`` that every patient has."""
DATASETS: dict[str, tuple[str, ...] | None] = {"starmap_mpfc": None, "her2st_labelled": SHARED}
"""Folder → labels that are learned and scored; ``None`` takes all."""

ALONE = "logistic regression, cell"
AROUND = "logistic regression, cell and 30 neighbours"
CENTRED = "logistic regression, cell and 30 neighbours, genes centred by section"
"""Patients differ by more than regions do; without their mean profiles the regression can look at regions."""
EMBEDDED = "GeST niches, logistic regression"
ANNOTATED = "GeST.annotate"
SCANVI = "scANVI"
METRICS = ("macro_f1", "balanced_accuracy")

MEANING = {
    "macro_f1": "mean F1 over the classes that occur in truth or prediction, each class counting the same",
    "balanced_accuracy": "mean recall over the classes of the truth",
    "f1: NAME": "F1 of one class",
    "section": "the section that is named; fold: what was learned from",
    "seed": "methods without randomness are repeated under each seed, so that rows pair",
    "paired": "difference = mean of (method − against) over sections and seeds, interval from sections",
    SCANVI: "sees the counts of the named section too, but none of its labels, and no places",
    "peak_mb": "peak resident memory above what the process held before; largest of all fits",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run does."""

    data: Path
    datasets: tuple[str, ...] = tuple(DATASETS)
    seeds: tuple[int, ...] = (0, 1, 2)
    max_epochs: int | None = None
    """Of GeST; ``None`` is its own default."""
    with_model: bool = True
    peers: bool = True
    """scANVI; it comes with scvi-tools."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of GeST's config, for experiments."""
    quick: bool = False
    threads: int | None = None


QUICK: dict[str, Any] = {"seeds": (0,), "datasets": ("starmap_mpfc",), "peers": False}
"""What ``--quick`` changes: under ten minutes on two cores."""


# --------------------------------------------------------------------------------------------------------------- data


@dataclass
class Task:
    """Sections to learn from, and one to name."""

    dataset: str
    train: list[Section]
    test: Section
    classes: tuple[str, ...] | None

    @property
    def fold(self) -> str:
        return "from " + "+".join(section.name for section in self.train)

    @property
    def genes(self) -> list[str]:
        """Genes that all sections have, in the order of the first."""
        shared = set.intersection(*(set(map(str, s.adata.var_names)) for s in (*self.train, self.test)))
        return [str(gene) for gene in self.train[0].adata.var_names if gene in shared]

    def known(self, section: Section) -> np.ndarray:
        """Label of every cell, ``None`` where it is not among those that are learned and scored."""
        labels = section.labels
        if labels is None:
            raise ValueError(
                f"{section.name} has no labels in obs[{LABEL!r}]; choose sections that have them."
            )
        is_wanted = np.ones(len(labels), bool) if self.classes is None else np.isin(labels, self.classes)
        return np.where(is_wanted, labels.astype(object), None)

    def labels(self) -> np.ndarray:
        """Labels of the training cells."""
        return np.concatenate([self.known(section) for section in self.train])

    def expression(self, sections: Sequence[Section]) -> np.ndarray:
        """Log-normalised by each section's own median total."""
        genes = self.genes
        return np.concatenate([section.log_of(genes) for section in sections])

    def centred(self, sections: Sequence[Section]) -> np.ndarray:
        """The same, less the mean profile of each section."""
        values = [section.log_of(self.genes) for section in sections]
        return np.concatenate([one - one.mean(axis=0) for one in values])

    def xy(self, sections: Sequence[Section]) -> np.ndarray:
        return np.concatenate([section.xy for section in sections])

    def section(self, sections: Sequence[Section]) -> np.ndarray:
        return np.concatenate([np.repeat(s.name, s.adata.n_obs) for s in sections])

    def adata(self, sections: Sequence[Section], *, labelled: bool) -> Any:
        """Sections in one AnnData, log-normalised."""
        import anndata

        obs = pd.DataFrame({_keys.LIBRARY: self.section(sections)})
        obs.index = np.concatenate([section.adata.obs_names for section in sections])
        if labelled:
            obs[LABEL] = np.concatenate([self.known(section) for section in sections])
        return anndata.AnnData(
            X=self.expression(sections).astype(np.float32),
            obs=obs,
            var=pd.DataFrame(index=self.genes),
            obsm={_keys.SPATIAL: self.xy(sections)},
        )


def read_all(data: Path, dataset: str) -> list[Section]:
    """All labelled sections of a folder, with every cell: those without a region are neighbours as well."""
    import anndata

    files = sorted((data / dataset).glob("*.h5ad"))
    sections = [make_section(dataset, file.stem, anndata.read_h5ad(file), set_aside=()) for file in files]
    sections = [section for section in sections if section.labels is not None]
    if len(sections) < 2:
        raise SystemExit(
            f"{dataset} must hold at least two sections with obs[{LABEL!r}] (NAME.h5ad); it holds {len(sections)}."
        )
    return sections


def tasks_of(sections: Sequence[Section], classes: tuple[str, ...] | None) -> Iterator[Task]:
    """Every section is named once, after learning from all others."""
    for test in sections:
        yield Task(test.dataset, [s for s in sections if s is not test], test, classes)


# ------------------------------------------------------------------------------------------------------------- methods


class Answer(NamedTuple):
    """A label for every cell of the section that is named."""

    method: str
    kind: str
    labels: np.ndarray
    cost: tuple[float, float, float] | None


def baselines_of(task: Task) -> Iterator[Answer]:
    """Logistic regression on the cell alone, and on the cell and its surroundings; as it is and section by section."""
    plain = task.expression(task.train), task.expression([task.test])
    centred = task.centred(task.train), task.centred([task.test])
    for method, kind, k, (train, test) in (
        (ALONE, "null", 1, plain),
        (AROUND, "baseline", 30, plain),
        (CENTRED, "baseline", 30, centred),
    ):
        with measured() as fitting:
            fitted = NeighbourLabels(n_neighbors=k).fit(
                train, task.labels(), task.xy(task.train), task.section(task.train)
            )
        with measured() as naming:
            labels = fitted.predict(test, task.test.xy)
        yield Answer(method, kind, labels, _cost(fitting, naming))


def gest_answers(task: Task, seed: int, options: Options) -> Iterator[Answer]:
    """GeST trained on the training sections: its niches under logistic regression, and its own verb."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from stgen.models import GeST

    train = task.adata(task.train, labelled=True)
    test = task.adata([task.test], labelled=False)
    GeST.setup_anndata(train, expression="log", library_key=_keys.LIBRARY)
    with measured() as fitting:
        model = GeST(train, random_state=seed, **options.changes)
        model.train(options.max_epochs, random_state=seed)
    labels = task.labels()
    is_known = np.array([label is not None for label in labels])
    with measured() as naming:
        scaler = StandardScaler().fit(niches := model.embed_niches())
        regression = LogisticRegression(max_iter=2000).fit(
            scaler.transform(niches)[is_known], labels[is_known].astype(str)
        )
        named = regression.predict(scaler.transform(model.embed_niches(test)))
    yield Answer(EMBEDDED, "model", named, _cost(fitting, naming))
    if not hasattr(model, "annotate"):
        say_once(f"{ANNOTATED} is not there: no rows of it.")
        return
    with measured() as annotating:
        named = annotate(model, test, seed)
    yield Answer(ANNOTATED, "model", named, _cost(fitting, annotating))


def annotate(model: Any, test: Any, seed: int) -> np.ndarray:
    """Learn the labels of the model's own cells (missing ones are left out), then name others."""
    probabilities = model.annotate(test, labels_key=LABEL)
    return np.asarray(probabilities.columns)[probabilities.to_numpy().argmax(axis=1)].astype(str)


SCANVI_EPOCHS = (200, 50)


def scanvi_answer(task: Task, seed: int) -> Iterator[Answer]:
    """scANVI on raw counts of all sections; the labels of the named one are hidden."""
    if importlib.util.find_spec("scvi") is None:
        say_once("scvi-tools is not installed: no rows of scANVI.")
        return
    if not all(section.is_counts for section in (*task.train, task.test)):
        say_once(f"{SCANVI} needs raw counts: no rows for {task.dataset}.")
        return
    import anndata
    import scvi

    genes = task.genes
    sections = [*task.train, task.test]
    whole = anndata.concat([section.adata[:, genes] for section in sections])
    whole.obs[_keys.LIBRARY] = task.section(sections)
    labels = np.concatenate([task.labels(), np.repeat(None, task.test.adata.n_obs)])
    whole.obs["known"] = pd.Categorical([HIDDEN if label is None else label for label in labels])
    if len(genes) > MANY_GENES:
        # a variance over all training cells, as labels are not needed to choose genes
        variance = task.expression(task.train).var(axis=0)
        whole = whole[:, np.sort(np.argsort(-variance)[:MANY_GENES])].copy()
    with quiet(seed):
        with measured() as fitting:
            scvi.model.SCVI.setup_anndata(whole, batch_key=_keys.LIBRARY, labels_key="known")
            first = scvi.model.SCVI(whole)
            first.train(max_epochs=SCANVI_EPOCHS[0], accelerator="cpu", enable_progress_bar=False)
            model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=HIDDEN)
            model.train(max_epochs=SCANVI_EPOCHS[1], accelerator="cpu", enable_progress_bar=False)
        with measured() as naming:
            named = np.asarray(model.predict())[-task.test.adata.n_obs :].astype(str)
    yield Answer(SCANVI, "peer", named, _cost(fitting, naming))


HIDDEN = "not known"
MANY_GENES = 2000


def _cost(fitting: dict[str, float], naming: dict[str, float]) -> tuple[float, float, float]:
    peak = float(np.nanmax([fitting["peak_mb"], naming["peak_mb"], 0.0]))
    return fitting["seconds"], naming["seconds"], peak


# ------------------------------------------------------------------------------------------------------------------ run


def run(options: Options, command: str) -> tuple[Results, dict[str, Any], list[dict[str, Any]]]:
    """Score all methods on all sections."""
    results, about, start = Results(), {}, time.perf_counter()
    for dataset in options.datasets:
        sections = read_all(options.data, dataset)
        classes = DATASETS.get(dataset)
        about[dataset] = describe(sections, classes)
        for task in tasks_of(sections, classes):
            for answer in baselines_of(task):
                for seed in options.seeds:
                    add(results, task, answer, seed)
                _keep_cost(results, task, answer)
                _progress(start, task, options.seeds[0], answer)
            for seed in options.seeds:
                for answer in trained(task, seed, options):
                    add(results, task, answer, seed)
                    _keep_cost(results, task, answer)
                    _progress(start, task, seed, answer)
    meta = {
        "benchmark": "annotation",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": {k: v for k, v in asdict(options).items() if k != "data" and v is not None},
        "datasets": about,
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return results, meta, paired_of(results)


def trained(task: Task, seed: int, options: Options) -> Iterator[Answer]:
    """What has a seed."""
    if options.with_model and has_gest():
        yield from gest_answers(task, seed, options)
    if options.peers:
        yield from scanvi_answer(task, seed)


def score(task: Task, named: np.ndarray) -> dict[str, float]:
    """Scores over the cells of the section whose label counts."""
    truth = task.known(task.test)
    if len(named) != len(truth):
        raise ValueError(f"An answer needs a label for each of {len(truth)} cells; got {len(named)}.")
    is_known = np.array([label is not None for label in truth])
    truth, named = truth[is_known].astype(str), np.asarray(named)[is_known].astype(str)
    per_class = {f"f1: {name}": value for name, value in metrics.f1_per_class(truth, named).items()}
    return {name: getattr(metrics, name)(truth, named) for name in METRICS} | per_class


def add(results: Results, task: Task, answer: Answer, seed: int) -> None:
    place = Place(task.dataset, task.test.name, task.fold, seed)
    for metric, value in score(task, answer.labels).items():
        results.add(place, answer.method, answer.kind, metric, "", value)


def _keep_cost(results: Results, task: Task, answer: Answer) -> None:
    if answer.cost is not None:
        results.costs.append(Cost(task.dataset, answer.method, *answer.cost))


def describe(sections: Sequence[Section], classes: tuple[str, ...] | None) -> dict[str, Any]:
    """What a reader must know about the rows."""
    found = {}
    for section in sections:
        labels = pd.Series(section.labels).value_counts(sort=False)
        found[section.name] = {
            "n_cells": section.adata.n_obs,
            "labels": {str(k): int(n) for k, n in labels.items()},
        }
    return {"sections": found, "learned_and_scored": "all labels" if classes is None else list(classes)}


def paired_of(results: Results) -> list[dict[str, Any]]:
    """Models and peers against all others."""
    if not results.rows:
        return []
    table = pd.DataFrame(results.rows)
    table = table[table["metric"].isin(METRICS)]
    entries = []
    for (dataset, metric), rows in table.groupby(["dataset", "metric"], sort=False):
        wide = rows.pivot_table("value", ["section", "fold", "seed"], "method", sort=False)
        for method in (m for m in wide if results.kinds[m] in ("model", "peer")):
            for other in (m for m in wide if m != method):
                values = (wide[method] - wide[other]).dropna()
                by_place = {
                    Place(dataset, section, section, int(seed)): float(value)
                    for (section, _, seed), value in values.items()
                }
                head = {
                    "dataset": dataset,
                    "method": method,
                    "against": other,
                    "against_kind": results.kinds[other],
                    "metric": metric,
                    "scale": "",
                    "smaller_is_better": False,
                }
                entries.append(head | paired_by_unit(by_place))
    return entries


def _progress(start: float, task: Task, seed: int, answer: Answer) -> None:
    value = score(task, answer.labels)["macro_f1"]
    print(
        f"[{time.perf_counter() - start:6.0f} s] {task.dataset} {task.fold} to {task.test.name} seed {seed}: "
        f"{answer.method} macro_f1 {value:.3f}",
        file=sys.stderr,
        flush=True,
    )


def say(results: Results, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
    """Print a table per metric, and the differences."""
    table = pd.DataFrame(results.rows)
    order = list(dict.fromkeys(table["method"]))
    kind = pd.Series(results.kinds).reindex(order).rename("kind")
    if meta["options"].get("max_epochs"):
        print(f"!! GeST was trained for {meta['options']['max_epochs']} epoch(s), not its default")
    for name, note in meta["datasets"].items():
        print(f"{name}: {note['learned_and_scored']}; {', '.join(note['sections'])}")
        here = table[table["dataset"] == name]
        for metric in METRICS:
            heading(f"{name}: {metric} on each section, learned from the others; mean over seeds")
            wide = here[here["metric"] == metric].pivot_table("value", "method", "section", sort=False)
            show(pd.concat([kind, wide.reindex(order)], axis=1))
        heading(f"{name}: F1 of each class, mean over sections and seeds")
        classes = here[here["metric"].str.startswith("f1: ")]
        show(classes.pivot_table("value", "method", "metric", sort=False).reindex(order))
    shown = [
        {
            "dataset": entry["dataset"],
            "method": entry["method"],
            "against": entry["against"],
            "difference": f"{entry['difference']:+.3f}",
            "95 %": "–" if math.isnan(entry["low"]) else f"[{entry['low']:+.3f}, {entry['high']:+.3f}]",
        }
        for entry in paired
        if entry["metric"] == "macro_f1"
    ]
    if shown:
        heading("Paired differences of macro_f1")
        show(pd.DataFrame(shown).set_index("dataset"))
    heading("Cost of one fit")
    show(pd.DataFrame(results.total_costs()).set_index(["dataset", "method"]), digits=2)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the folders of sections")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--datasets", help=f"folders of DIR; default {','.join(DATASETS)}")
    parser.add_argument("--seeds", help="seeds of what is trained, default 0,1,2")
    parser.add_argument("--quick", action="store_true", help="one dataset, one seed, without scANVI")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--max-epochs", type=int, help="train GeST shorter than its default")
    parser.add_argument("--baselines-only", action="store_true", help="leave GeST and scANVI out")
    parser.add_argument("--no-peers", action="store_true", help="leave scANVI out")
    given = parser.parse_args(arguments)
    changes: dict[str, Any] = dict(QUICK) if given.quick else {}
    if given.datasets:
        known = folders_of(given.data, DATASETS)
        changes["datasets"] = names_of(parser, "--datasets", given.datasets, known)
    if given.seeds:
        changes["seeds"] = tuple(int(seed) for seed in given.seeds.split(","))
    if given.no_peers or given.baselines_only:
        changes["peers"] = False
    options = Options(
        data=given.data,
        quick=given.quick,
        threads=given.threads,
        max_epochs=given.max_epochs,
        with_model=not given.baselines_only,
    )
    return replace(options, **changes), given.out


def main(arguments: Sequence[str] | None = None) -> None:
    options, out = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = command_of("annotation", given)
    with at_rest(options.threads), kept(out, command):
        results, meta, paired = run(options, command)
    say(results, meta, paired)
    results.write(out, meta, paired)
    heading(f"written: {out.name}, after {meta['seconds']:.0f} s")


if __name__ == "__main__":
    main()
