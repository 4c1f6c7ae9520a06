"""Cells nobody measured: GeST beside everything it must beat, on the same squares, in one process.

    python benchmarks/unseen_region.py --data DIR --out FILE

Of every section twenty squares that hold a tenth of its cells are taken out, all at once; methods are fitted on the
cells that are left and asked about places. Each seed draws squares of its own and seeds what is trained. Seeds 0 to 99
judge; whoever tries settings should try them on others.

Sections of a folder with the same genes on the same scale are handed over together; each section is scored by itself.
Expression is compared on one scale, the log of counts that are brought to the median total of the seen cells (or the log
of the published values, where those are no counts). The squared error is taken per square over cells and genes, the
correlation per gene over all held-out cells of a section: over all genes, and over the 50 whose seen cells agree most
with their neighbours (Moran's I).

With ``--ablations`` GeST is trained as it is and without each of its parts, on the same squares, and no baseline is run
but the mean profile; the network's answer alone, without what is interpolated, stands beside each.

A section with one hole of 40 % of its cells shows whether generation drifts: the error by round of generation, beside
that of baselines on the same cells (first seed only).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _report import (
    Cost,
    Place,
    Results,
    Row,
    crossed_interval,
    environment,
    heading,
    kept,
    mean,
    measured,
    show,
)
from _run import command_of, folders_of, forget, limit_threads, names_of, say_once
from scipy import sparse

import stgen as stg
from stgen import _keys, metrics
from stgen.baselines import place_baselines, unseen_squares
from stgen.data._grid import default_window_um
from stgen.data._places import read_xy
from stgen.data._windows import neighbour_index
from stgen.metrics._bootstrap import draw_weights, pearson_draws

DATASETS = ("starmap_mpfc", "osmfish_ssp", "merfish_hypothalamus", "seqfish_embryo", "starmap_visp")
MIN_COUNTS = 10
"""Cells with fewer counts are dropped first, and counted (raw counts only)."""
N_SQUARES, SHARE = 20, 0.1
HOLE = 0.4
"""Share of a section's cells in the one large hole, which takes several rounds to fill."""
N_TOP = 50
MODEL = "GeST"
READ_OUTS = {"weighted": "GeST (weighted)", "picked": "GeST (picked)"}
ALONE = "GeST, network alone"
"""Without the interpolation of what windows do not explain."""
WITHOUT: dict[str, dict[str, Any]] = {
    "without the hierarchical loss": {"levels": ()},
    "without quantisation (regression)": {"quantized": False},
    "random order": {"order": 0.0},
    "order as written (a = 1)": {"order": 1.0},
    "without place": {"use_place": False, "distance_bias": False},
    "without heads that know distances": {"distance_bias": False},
    "windows of half the area": {"window_area": 0.5},
    "windows of twice the area": {"window_area": 2.0},
}
"""Ablations: fields of the config that are changed; ``window_area`` is in units of the default window's."""
CEILING = "nearest meta cell"
"""The truth itself, replaced by its meta cell: about the best that an answer can be which picks one."""
ALL_SEEN = "kNN, nothing hidden"
N_BOOT = 2000
LEVEL = 0.95
SMALLER_IS_BETTER = ("rmse",)

MEANING = {
    "rmse": "root of the mean squared error over cells and genes of a square; mean over the squares of a section",
    "pearson": "per gene over all held-out cells of a section, mean over genes for which it is defined",
    "pearson_top50": f"the same over the {N_TOP} genes (all, if there are fewer) with the largest Moran's I in seen cells",
    "n_undefined": "genes without a correlation in this section (constant truth or prediction)",
    "scale": "normalized: log1p(count / total of the cell × median total of seen cells); where a file holds no counts, "
    "log1p of its values, or its values if they are logged (`datasets` says which)",
    "fold": "what was hidden: all squares of the section at once (squares), or one large hole (hole)",
    "rmse_round_N": "root mean squared error over the cells that the model filled in round N (0: out of reach) of the "
    "hole, for every method on the same cells",
    "n_cells_round_N": "how many cells those are",
    "seed": "draws the squares, and seeds what is trained; squares of two seeds may share cells",
    "paired": "difference = mean of (method − against). low, high: bootstrap over squares, the same squares for both "
    "(for correlations, moved so that the draws' mean is the difference). "
    "low_genes, high_genes (correlations): bootstrap over genes and (section, seed) at once. A constant prediction has "
    "correlation 0 here",
    "is_best": "against the baseline or null that does best on these very squares: the choice favours the baseline",
    "peak_mb": "peak resident memory during fit and prediction above what the process held before; largest of all fits",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run does."""

    data: Path | None = None
    datasets: tuple[str, ...] = DATASETS
    seeds: tuple[int, ...] = (0, 1, 2)
    n_rounds: int = 5
    """Draws of squares by which baselines choose."""
    max_cells: int | None = None
    """Cells of a section at most: those nearest to a corner."""
    max_epochs: int | None = None
    """Of GeST; ``None`` is its own default."""
    with_model: bool = True
    ablations: bool = False
    """Run GeST without each of its parts instead of beside baselines."""
    holes: bool = True
    """Whether one large hole is filled too."""
    quick: bool = False
    threads: int | None = None


QUICK = {
    "datasets": ("starmap_mpfc", "starmap_visp"),
    "seeds": (0,),
    "n_rounds": 2,
    "max_cells": 2500,
    "holes": False,
}
"""What ``--quick`` changes: under ten minutes on two cores. GeST is trained as long as ever."""


# --------------------------------------------------------------------------------------------------------------- data


@dataclass
class Tissue:
    """Sections of one folder with the same genes on the same scale."""

    dataset: str
    adata: Any
    """``X`` dense as published, places in µm."""
    x_type: str
    n_dropped: dict[str, int]

    @property
    def name(self) -> str:
        return "+".join(self.adata.obs[_keys.LIBRARY].unique())

    @property
    def is_counts(self) -> bool:
        return self.x_type.startswith("raw")

    @property
    def is_logged(self) -> bool:
        return self.x_type.startswith("log")


def read_tissues(folder: Path, max_cells: int | None = None) -> list[Tissue]:
    """All sections of a folder, those that can be handed over together in one object."""
    import anndata

    files = sorted(folder.glob("*.h5ad"))
    if not files:
        raise SystemExit(f"{folder} must hold at least one section (NAME.h5ad); it holds none.")
    together: dict[tuple[Any, ...], list[Any]] = {}
    n_dropped: dict[str, int] = {}
    for file in files:
        adata = anndata.read_h5ad(file)
        stg.pp.coordinates_in_um(adata)
        adata.X = np.asarray(adata.X.toarray() if sparse.issparse(adata.X) else adata.X, dtype=np.float64)
        adata.obs[_keys.LIBRARY] = file.stem
        x_type = str(adata.uns.get("x_type", "raw_counts"))
        if x_type.startswith("raw"):
            is_kept = adata.X.sum(axis=1) >= MIN_COUNTS
            n_dropped[file.stem] = int((~is_kept).sum())
            adata = adata[is_kept].copy()
        if max_cells is not None and adata.n_obs > max_cells:
            xy = read_xy(adata)
            near = np.argsort(np.abs(xy - xy.min(axis=0)).max(axis=1), kind="stable")[:max_cells]
            adata = adata[np.sort(near)].copy()
        together.setdefault((x_type, *sorted(adata.var_names)), []).append(adata)
    tissues = []
    for (x_type, *genes), sections in together.items():
        kept = [
            anndata.AnnData(
                X=one[:, list(genes)].X.copy(),
                obs=one.obs[[_keys.LIBRARY]]
                .astype(str)
                .set_index(one.obs[_keys.LIBRARY] + "_" + one.obs_names),
                var=pd.DataFrame(index=list(genes)),
                obsm={_keys.SPATIAL: read_xy(one)},
            )
            for one in sections
        ]
        adata = anndata.concat(kept)
        names = adata.obs[_keys.LIBRARY].unique()
        tissues.append(
            Tissue(folder.name, adata, x_type, {name: n_dropped[name] for name in names if name in n_dropped})
        )
    return tissues


@dataclass
class Task:
    """A tissue with squares taken out."""

    dataset: str
    values: np.ndarray
    """Log-normalised expression of all cells, cells × genes."""
    xy: np.ndarray
    section: np.ndarray
    genes: list[str]
    square: np.ndarray
    """Number of the cell's square within its section, -1 outside."""
    top: dict[str, np.ndarray] = field(default_factory=dict)
    """Section → whether a gene is among those with most spatial structure in seen cells."""

    @property
    def hidden(self) -> np.ndarray:
        return self.square >= 0

    @property
    def seen(self) -> np.ndarray:
        return self.square < 0

    def adata(self, rows: np.ndarray | None = None) -> Any:
        """The tissue on the log scale; ``rows`` picks cells."""
        import anndata

        rows = np.ones(len(self.xy), dtype=bool) if rows is None else rows
        return anndata.AnnData(
            X=self.values[rows].astype(np.float32),
            obs=pd.DataFrame(
                {_keys.LIBRARY: self.section[rows]}, index=[f"cell {i}" for i in np.flatnonzero(rows)]
            ),
            var=pd.DataFrame(index=self.genes),
            obsm={_keys.SPATIAL: self.xy[rows]},
        )


def make_task(tissue: Tissue, seed: int, *, n_squares: int = N_SQUARES, share: float = SHARE) -> Task:
    """Take squares out; everything that is learned from cells is learned from those that are left."""
    xy = read_xy(tissue.adata)
    section = tissue.adata.obs[_keys.LIBRARY].astype(str).to_numpy()
    square = unseen_squares(xy, section, n_squares, share, seed)
    values = log_normalised(tissue, square < 0)
    task = Task(tissue.dataset, values, xy, section, list(tissue.adata.var_names), square)
    for name in np.unique(section):
        rows = task.seen & (section == name)
        structure = np.nan_to_num(metrics.morans_i(values[rows], xy[rows]), nan=-1.0)
        is_top = np.zeros(len(structure), dtype=bool)
        is_top[np.argsort(-structure, kind="stable")[:N_TOP]] = True
        task.top[name] = is_top
    return task


def log_normalised(tissue: Tissue, seen: np.ndarray) -> np.ndarray:
    """Expression on the scale of the comparison."""
    values = np.asarray(tissue.adata.X, dtype=np.float64)
    if tissue.is_logged:
        return values
    if not tissue.is_counts:
        return np.log1p(values)
    return np.asarray(metrics.normalize_panel(values, target=metrics.panel_target(values[seen])))


# ------------------------------------------------------------------------------------------------------------ methods


class Answer(NamedTuple):
    """What a method says about the hidden cells, in their order."""

    method: str
    kind: str
    prediction: np.ndarray
    cost: tuple[float, float, float] | None
    """Training seconds, prediction seconds, peak memory."""
    facts: dict[str, Any] = {}


def run_baselines(
    task: Task, seed: int, n_rounds: int, only: Sequence[str] | None = None, **squares: Any
) -> Iterator[Answer]:
    """Mean profile, kNN, inverse distance, perceptron and Gaussian process on coordinates."""
    seen, hidden = task.seen, task.hidden
    for baseline in place_baselines(random_state=seed, n_rounds=n_rounds, **squares):
        if only is not None and baseline.name not in only:
            continue
        with measured() as training:
            baseline.fit(task.xy[seen], task.section[seen], task.values[seen])
        with measured() as predicting:
            prediction = baseline.predict(task.xy[hidden], task.section[hidden])
        yield Answer(baseline.name, baseline.kind, prediction, _cost(training, predicting), chosen(baseline))
        if baseline.name == "kNN" and only is None:
            yield Answer(ALL_SEEN, "oracle", with_all_seen(task, baseline.k_), None)


def chosen(baseline: Any) -> dict[str, Any]:
    """What a baseline chose on left-out squares."""
    for name in ("k_", "choice_"):
        value = getattr(baseline, name, None)
        if isinstance(value, tuple) or np.isscalar(value):
            return {"chosen": value._asdict() if hasattr(value, "_asdict") else value}
    return {}


def with_all_seen(task: Task, k: int) -> np.ndarray:
    """Mean of the k nearest others, hidden ones among them: what a cell's surroundings say about it."""
    index = neighbour_index(task.xy, task.section, n_neighbors=k)[task.hidden]
    total = np.zeros((len(index), task.values.shape[1]))
    for column in index.T:
        total += task.values[column]
    return total / index.shape[1]


def run_ceiling(task: Task, seed: int) -> Iterator[Answer]:
    """The truth through the vocabulary of the seen cells."""
    try:
        from stgen.models.gest._vocabulary import fit_vocabulary
    except ImportError:
        say_once(f"The vocabulary of GeST is not there: no row {CEILING!r}.")
        return
    import torch

    values = torch.from_numpy(task.values.astype(np.float32))
    seen, hidden = (torch.from_numpy(np.flatnonzero(rows)) for rows in (task.seen, task.hidden))
    vocabulary = fit_vocabulary(lambda: iter([values[seen]]), n_meta_cells=None, seed=seed)
    truth = values[hidden]
    with torch.no_grad():
        answer = vocabulary.profiles[vocabulary.assign(truth)].numpy().astype(np.float64)
    yield Answer(CEILING, "oracle", answer, None, {"n_meta_cells": len(vocabulary.profiles)})


def run_gest(task: Task, seed: int, max_epochs: int | None = None, **changes: Any) -> Iterator[Answer]:
    """Train on the seen cells, generate the hidden ones; both read-outs."""
    try:
        from stgen.models import GeST
    except ImportError:
        say_once("GeST is not there: only baselines are run.")
        return
    seen, whole = task.adata(task.seen), task.adata()
    # what is hidden is not there: a model that peeks finds nothing
    whole.X[task.hidden] = 0
    GeST.setup_anndata(seen, expression="log", library_key=_keys.LIBRARY)
    area = changes.pop("window_area", None)
    if area is not None:
        codes = np.unique(task.section[task.seen], return_inverse=True)[1]
        changes["window_um"] = default_window_um(task.xy[task.seen], codes) * math.sqrt(area)
    with measured() as training:
        model = GeST(seen, random_state=seed, **changes)
        model.train(max_epochs, random_state=seed)
    with measured() as predicting:
        generated = model.generate(whole, mask=task.hidden)
    generated = generated[:, task.genes]
    answers = {"weighted": _dense(generated.X), "picked": _dense(generated.layers["picked"])}
    facts = {
        name: generated.obs[name].to_numpy()
        for name in ("round", "n_windows", "isolated")
        if name in generated.obs
    }
    cost = _cost(training, predicting)
    for read_out, method in READ_OUTS.items():
        yield Answer(method, "model", answers[read_out], cost, facts)
        cost = None
    alone = model.generate(whole, mask=task.hidden, interpolate=False)[:, task.genes]
    yield Answer(ALONE, "model", _dense(alone.X), None)
    forget(seen)


def run_ablations(task: Task, seed: int, max_epochs: int | None = None) -> Iterator[Answer]:
    """GeST, and GeST without each of its parts; of each the whole answer and that of the network alone."""
    whole = READ_OUTS["weighted"]
    for part, changes in {"": {}, **WITHOUT}.items():
        for answer in run_gest(task, seed, max_epochs, **changes):
            if answer.method in (whole, ALONE):
                name = (
                    answer.method
                    if not part
                    else f"{part}{'' if answer.method == whole else ', network alone'}"
                )
                yield answer._replace(method=name)


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)


def _cost(training: dict[str, float], predicting: dict[str, float]) -> tuple[float, float, float]:
    peak = float(np.nanmax([training["peak_mb"], predicting["peak_mb"], 0.0]))
    return training["seconds"], predicting["seconds"], peak


# ------------------------------------------------------------------------------------------------------------- scores


@dataclass
class Scores:
    """What one method got on one section under one seed, kept so that methods can be paired."""

    rmse: np.ndarray
    """Per square."""
    pearson: np.ndarray
    """Per gene; a constant prediction is 0, a constant truth NaN."""
    top: np.ndarray
    draws: dict[str, np.ndarray]
    """"all" and "top50" → mean correlation in each draw of squares."""


def score_section(
    truth: np.ndarray, prediction: np.ndarray, square: np.ndarray, top: np.ndarray, draw_seed: int
) -> Scores:
    """Scores of the hidden cells of one section."""
    squares = np.unique(square)
    error = ((truth - prediction) ** 2).mean(axis=1)
    rmse = np.array([math.sqrt(error[square == one].mean()) for one in squares])
    pearson = metrics.pearson(truth, prediction)
    is_flat = np.isnan(pearson) & (np.ptp(truth, axis=0) > 0)
    blocks = np.searchsorted(squares, square)
    per_gene = pearson_draws(truth, prediction, blocks, draw_weights(len(squares), N_BOOT, draw_seed))
    draws = {
        "all": _mean_of_rows(per_gene),
        "top50": _mean_of_rows(per_gene[:, top]),
    }
    return Scores(rmse, np.where(is_flat, 0.0, pearson), top, draws)


def _mean_of_rows(values: np.ndarray) -> np.ndarray:
    is_known = ~np.isnan(values)
    return np.where(is_known, values, 0).sum(axis=1) / np.maximum(is_known.sum(axis=1), 1)


class Comparison:
    """All scores of a run, and their paired differences."""

    def __init__(self) -> None:
        self.results = Results()
        self.scores: dict[tuple[Place, str], Scores] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def add(self, task: Task, seed: int, answer: Answer) -> None:
        """Score an answer, section by section."""
        if answer.prediction.shape != (int(task.hidden.sum()), len(task.genes)):
            raise ValueError(
                f"{answer.method!r} must answer with {int(task.hidden.sum())} cells × {len(task.genes)} genes; "
                f"got {answer.prediction.shape}."
            )
        section, square = task.section[task.hidden], task.square[task.hidden]
        truth = task.values[task.hidden]
        for name in np.unique(section):
            here = section == name
            place = Place(task.dataset, name, "squares", seed)
            draw_seed = zlib.crc32(f"{task.dataset} {name} {seed}".encode())
            scores = score_section(
                truth[here], answer.prediction[here], square[here], task.top[name], draw_seed
            )
            self.scores[place, answer.method] = scores
            undefined = np.isnan(metrics.pearson(truth[here], answer.prediction[here])).sum()
            numbers = {
                "rmse": scores.rmse.mean(),
                "pearson": mean(scores.pearson),
                "pearson_top50": mean(scores.pearson[scores.top]),
                "n_undefined": undefined,
            }
            for metric, value in numbers.items():
                self.results.add(place, answer.method, answer.kind, metric, "normalized", value)
        if answer.cost is not None:
            self.results.costs.append(Cost(task.dataset, answer.method, *answer.cost))

    # ------------------------------------------------------------------------------------------------------- pairs

    def paired(self) -> list[dict[str, Any]]:
        """The model against all others; where there is none, and for the baselines: against the mean profile."""
        entries = []
        for dataset in dict.fromkeys(row.dataset for row in self.results.rows):
            methods = self.results.methods(dataset)
            models = [m for m in methods if self.results.kinds[m] == "model"]
            for method in models:
                others = [m for m in methods if m != method]
                if any(method.startswith(part) for part in WITHOUT):
                    others = [ALONE if method.endswith("alone") else READ_OUTS["weighted"]]
                entries += self.against(
                    dataset, method, [m for m in others if not any(m.startswith(part) for part in WITHOUT)]
                )
            for method in methods:
                if self.results.kinds[method] == "baseline":
                    entries += self.against(
                        dataset, method, [m for m in methods if self.results.kinds[m] == "null"]
                    )
        return entries

    def against(self, dataset: str, method: str, others: Sequence[str]) -> list[dict[str, Any]]:
        """Differences of one method to others on a dataset."""
        best = {metric: self.best(dataset, metric) for metric in ("rmse", "pearson", "pearson_top50")}
        entries = []
        for other in others:
            places = [place for place, name in self.scores if name == method and place.dataset == dataset]
            places = [place for place in places if (place, other) in self.scores]
            for metric, name in best.items():
                head = {
                    "dataset": dataset,
                    "method": method,
                    "against": other,
                    "against_kind": self.results.kinds[other],
                    "metric": metric,
                    "scale": "normalized",
                    "smaller_is_better": metric in SMALLER_IS_BETTER,
                    "is_best": other == name,
                    "n_seeds": len({place.seed for place in places}),
                    "n_sections": len({place.section for place in places}),
                }
                pairs = [(self.scores[place, method], self.scores[place, other]) for place in places]
                found = rmse_difference(pairs) if metric == "rmse" else pearson_difference(pairs, metric)
                entries.append(head | found | {"verdict": verdict(found, metric in SMALLER_IS_BETTER)})
        return entries

    def best(self, dataset: str, metric: str) -> str | None:
        """The baseline or null with the best mean on a dataset."""
        table = self.table(dataset)
        allowed = [m for m in table.index if self.results.kinds[m] in ("null", "baseline")]
        if not allowed:
            return None
        column = table.loc[allowed, metric]
        return str(column.idxmin() if metric in SMALLER_IS_BETTER else column.idxmax())

    def table(self, dataset: str) -> pd.DataFrame:
        """Methods × metrics, means over sections and seeds."""
        rows = self.rows(dataset, "squares")
        order = self.results.methods(dataset)
        return rows.groupby(["method", "metric"])["value"].mean().unstack("metric").reindex(order)

    def rows(self, dataset: str, fold: str) -> pd.DataFrame:
        """Rows of a dataset and fold."""
        found = [row for row in self.results.rows if row.dataset == dataset and row.fold == fold]
        return pd.DataFrame(found, columns=Row._fields)

    def say(self, dataset: str, paired: list[dict[str, Any]]) -> None:
        """Print the tables of one dataset."""
        order = self.results.methods(dataset)
        kind = pd.Series(self.results.kinds).reindex(order).rename("kind")
        columns = ["rmse", "pearson", "pearson_top50", "n_undefined"]
        heading("Mean over sections and seeds")
        show(pd.concat([kind, self.table(dataset)[columns]], axis=1), digits=4)
        rows = self.rows(dataset, "squares")
        if rows["section"].nunique() > 1:
            for metric in columns[:3]:
                heading(f"{metric} by section")
                wide = rows[rows["metric"] == metric].pivot_table("value", "method", "section", sort=False)
                show(wide.reindex(order), digits=4)
        shown = [
            {
                "method": entry["method"],
                "against": entry["against"] + (" (best)" if entry["is_best"] else ""),
                "metric": entry["metric"],
                "difference": f"{entry['difference']:+.4f}",
                "95 % squares": interval(entry, ""),
                "95 % genes": interval(entry, "_genes"),
                "verdict": entry["verdict"],
            }
            for entry in paired
            if entry["dataset"] == dataset
        ]
        heading("Paired differences (method − against)")
        show(pd.DataFrame(shown).set_index("method"))
        hole = self.rows(dataset, "hole")
        if len(hole):
            heading(
                f"One hole of {HOLE:.0%} of the cells: error by the model's round, and cells of the round"
            )
            show(hole.pivot_table("value", "method", ["section", "metric"], sort=False), digits=4)
        costs = pd.DataFrame([row for row in self.results.total_costs() if row["dataset"] == dataset])
        if len(costs):
            heading("Cost of one fit")
            show(costs.drop(columns="dataset").set_index("method"), digits=2)


Pair = tuple[Scores, Scores]


def rmse_difference(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Mean over squares of all sections and seeds, squares drawn."""
    values = np.concatenate([own.rmse - other.rmse for own, other in pairs])
    low, high = metrics.bootstrap_interval(values, level=LEVEL, n_boot=N_BOOT)
    return {"difference": float(values.mean()), "low": low, "high": high, "n_squares": len(values)}


def pearson_difference(pairs: Sequence[Pair], metric: str) -> dict[str, Any]:
    """Mean over genes, then over sections and seeds; squares drawn, and genes with their sections."""
    which = "top50" if metric == "pearson_top50" else "all"
    by_gene = []
    for own, other in pairs:
        gap = own.pearson - other.pearson
        by_gene.append(np.where(own.top, gap, np.nan) if which == "top50" else gap)
    difference = float(np.mean([mean(values) for values in by_gene]))
    draws = np.mean([own.draws[which] - other.draws[which] for own, other in pairs], axis=0)
    # a draw holds fewer different squares than the section, and a correlation shrinks with them
    draws += difference - draws.mean()
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    low_genes, high_genes = gene_interval(by_gene)
    return {
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "low_genes": low_genes,
        "high_genes": high_genes,
        "n_squares": sum(len(own.rmse) for own, _ in pairs),
    }


def gene_interval(by_gene: Sequence[np.ndarray]) -> tuple[float, float]:
    """Genes × (section, seed) drawn at once. Panels of different genes are genes apart."""
    widths = [len(values) for values in by_gene]
    if len(set(widths)) > 1:
        wide = np.full((len(by_gene), sum(widths)), np.nan)
        start = 0
        for row, values in enumerate(by_gene):
            wide[row, start : start + len(values)] = values
            start += len(values)
    else:
        wide = np.array(by_gene)
    if len(by_gene) < 2:
        return metrics.bootstrap_interval(wide[0], level=LEVEL, n_boot=N_BOOT)
    return crossed_interval(wide, np.array([str(i) for i in range(len(by_gene))]), n_boot=N_BOOT)


def verdict(found: dict[str, Any], smaller_is_better: bool) -> str:
    """Better or worse if the interval over squares leaves 0 out."""
    low, high = found["low"], found["high"]
    if math.isnan(low) or low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == smaller_is_better else "worse"


def interval(entry: dict[str, Any], which: str) -> str:
    low, high = entry.get(f"low{which}"), entry.get(f"high{which}")
    return "–" if low is None or math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def score_hole(results: Results, task: Task, seed: int, answers: Sequence[Answer]) -> None:
    """Error of all methods on the cells of each round of the model, section by section."""
    rounds = next((answer.facts["round"] for answer in answers if "round" in answer.facts), None)
    if rounds is None:
        return
    section, truth = task.section[task.hidden], task.values[task.hidden]
    for name in np.unique(section):
        place = Place(task.dataset, name, "hole", seed)
        for number in np.unique(rounds[section == name]):
            here = (section == name) & (rounds == number)
            for answer in answers:
                error = math.sqrt(((truth[here] - answer.prediction[here]) ** 2).mean())
                add = (place, answer.method, answer.kind)
                results.add(*add, f"rmse_round_{int(number)}", "normalized", error)
                results.add(*add, f"n_cells_round_{int(number)}", "", int(here.sum()))


# ---------------------------------------------------------------------------------------------------------------- run


def run(options: Options, command: str = "") -> tuple[Comparison, dict[str, Any], list[dict[str, Any]]]:
    """Everything that was asked for: scores, meta, paired differences."""
    if options.data is None:
        raise SystemExit("--data DIR must say where the folders of sections lie.")
    start = time.perf_counter()
    comparison, about = Comparison(), {}
    for name in options.datasets:
        tissues = read_tissues(options.data / name, options.max_cells)
        about[name] = [describe(tissue) for tissue in tissues]
        for seed in options.seeds:
            for tissue, note in zip(tissues, about[name], strict=True):
                task = make_task(tissue, seed)
                note["n_hidden"][seed] = int(task.hidden.sum())
                for answer in answers_of(task, seed, options):
                    comparison.add(task, seed, answer)
                    remember(note, seed, answer)
                    _progress(start, name, tissue.name, seed, answer, comparison)
        if options.holes and options.with_model and not options.ablations:
            for tissue in tissues:
                fill_hole(comparison.results, tissue, options.seeds[0], options)
    paired = comparison.paired()
    meta = {
        "benchmark": "unseen_region",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": {
            "n_squares": N_SQUARES,
            "share": SHARE,
            "hole": HOLE if options.holes and options.with_model and not options.ablations else None,
            "without": WITHOUT if options.ablations else None,
            "n_rounds": options.n_rounds,
            "max_cells": options.max_cells,
            "max_epochs": options.max_epochs,
            "threads": options.threads,
        },
        "datasets": about,
        "min_counts": MIN_COUNTS,
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return comparison, meta, paired


def answers_of(task: Task, seed: int, options: Options) -> Iterator[Answer]:
    """Every method on one tissue."""
    if options.ablations:
        yield from run_baselines(task, seed, options.n_rounds, ("mean profile",))
        yield from run_ablations(task, seed, options.max_epochs)
        return
    yield from run_baselines(task, seed, options.n_rounds)
    yield from run_ceiling(task, seed)
    if options.with_model:
        yield from run_gest(task, seed, options.max_epochs)


def fill_hole(results: Results, tissue: Tissue, seed: int, options: Options) -> None:
    """One large hole in each section, filled by the model and by baselines that cost little."""
    task = make_task(tissue, seed, n_squares=1, share=HOLE)
    cheap = ("mean profile", "kNN", "inverse distance")
    answers = [
        *run_baselines(task, seed, options.n_rounds, cheap, n_squares=1, share=HOLE),
        *run_gest(task, seed, options.max_epochs),
    ]
    score_hole(results, task, seed, answers)


def describe(tissue: Tissue) -> dict[str, Any]:
    """What a reader must know about the rows."""
    n_cells = tissue.adata.obs[_keys.LIBRARY].value_counts(sort=False)
    return {
        "sections": list(n_cells.index),
        "n_cells": {name: int(n) for name, n in n_cells.items()},
        "n_genes": int(tissue.adata.n_vars),
        "x_type": tissue.x_type,
        "n_dropped_under_min_counts": tissue.n_dropped,
        "n_hidden": {},
        "facts": {},
    }


def remember(note: dict[str, Any], seed: int, answer: Answer) -> None:
    """Choices of baselines, size of the vocabulary, rounds of generation."""
    facts = {}
    for key, value in answer.facts.items():
        facts[key] = float(np.mean(value)) if isinstance(value, np.ndarray) else value
    if facts:
        note["facts"].setdefault(answer.method, {})[str(seed)] = facts


def _progress(
    start: float, name: str, sections: str, seed: int, answer: Answer, comparison: Comparison
) -> None:
    last = {row.metric: row.value for row in comparison.results.rows[-4:]}
    print(
        f"[{time.perf_counter() - start:6.0f} s] {name} {sections} seed {seed}: {answer.method} "
        f"rmse {last['rmse']:.4f} pearson {last['pearson']:.3f} top {last['pearson_top50']:.3f} "
        f"{answer.facts.get('chosen', '')}",
        file=sys.stderr,
        flush=True,
    )


def say(comparison: Comparison, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
    """Print the tables of all datasets."""
    for name, tissues in meta["datasets"].items():
        title = f"{name}: {N_SQUARES} squares with {SHARE:.0%} of each section's cells hidden; seeds {', '.join(map(str, meta['seeds']))}"
        print(f"\n{'=' * len(title)}\n{title}\n{'=' * len(title)}")
        for one in tissues:
            cells = ", ".join(f"{section} {n} cells" for section, n in one["n_cells"].items())
            dropped = sum(one["n_dropped_under_min_counts"].values())
            print(
                f"{cells}; {one['n_genes']} genes, {one['x_type']}; dropped under {MIN_COUNTS} counts: {dropped}"
            )
        if meta["options"]["max_epochs"]:
            print(f"!! GeST was trained for {meta['options']['max_epochs']} epoch(s), not its default")
        comparison.say(name, paired)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds the folders of real sections"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--datasets", help=f"folders of DIR; default {','.join(DATASETS)}")
    parser.add_argument("--seeds", help="seeds of squares and of what is trained, default 0,1,2")
    parser.add_argument("--quick", action="store_true", help="two small datasets, one seed")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--max-epochs", type=int, help="train GeST shorter than its default (for trying the script)"
    )
    parser.add_argument("--no-holes", action="store_true", help="leave the large hole out")
    parser.add_argument(
        "--ablations", action="store_true", help="GeST without each of its parts, no baselines"
    )
    parser.add_argument("--baselines-only", action="store_true", help="leave GeST out")
    given = parser.parse_args(arguments)
    changes: dict[str, Any] = dict(QUICK) if given.quick else {}
    if given.datasets:
        known = folders_of(given.data, DATASETS)
        changes["datasets"] = names_of(parser, "--datasets", given.datasets, known)
    if given.seeds:
        changes["seeds"] = tuple(int(seed) for seed in given.seeds.split(","))
    options = Options(
        data=given.data,
        quick=given.quick,
        threads=given.threads,
        max_epochs=given.max_epochs,
        with_model=not given.baselines_only,
        holes=not given.no_holes,
        ablations=given.ablations,
    )
    return replace(options, **changes), given.out


def main(arguments: Sequence[str] | None = None) -> None:
    options, out = parse(arguments)
    limit_threads(options.threads)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    command = command_of("unseen_region", sys.argv[1:] if arguments is None else arguments)
    try:
        with kept(out, command):
            comparison, meta, paired = run(options, command)
    finally:
        stg.settings.progress_bar, stg.settings.verbosity = before
    say(comparison, meta, paired)
    comparison.results.write(out, meta, paired)
    heading(f"written: {out.name}, after {meta['seconds']:.0f} s")


if __name__ == "__main__":
    main()
