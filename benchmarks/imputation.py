"""Genes nobody measured in space: CausalGeD beside everything it must beat, on the same genes, in one process.

    python benchmarks/imputation.py --data DIR --out FILE

Of each pair of a spatial dataset and a single-cell reference, a fifth of the shared genes is hidden in turn (five
folds, the same in every run). A method gets the other genes in space and all genes in the reference. Both sides are
log-normalised with totals over the measured genes of the fold, the truth with the same totals: a hidden gene reaches
nobody through the depth of a spot. A spot without any count of a measured gene has no depth to be divided by; it is
left out for everybody, and counted.

Genes: those in more than 1 % of spots and in at least one cell; if there are more than 400, those that vary most.
A correlation is taken per gene over all spots. Differences between methods are taken gene by gene, averaged over
seeds, and genes are drawn for their intervals; ``all`` takes the genes of all real datasets together.

Baselines know no seed: they are run once and stand beside each seed of the model.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _report import Cost, Place, Results, Row, environment, heading, kept, mean, measured, show
from _run import command_of, folders_of, forget, limit_threads, names_of, say_once
from scipy import sparse
from sklearn.model_selection import KFold

import stgen as stg
from stgen import _keys, metrics
from stgen.baselines import GeneKernelRidge, ImputationBaseline, imputation_baselines
from stgen.data._places import read_xy

TOY = "toy"
DATASETS = (
    "pair_osmfish_allen",
    "pair_merfish_hypothalamus",
    "pair_visium_hippocampus",
    "pair_pdac_a",
    TOY,
)
N_FOLDS, FOLD_SEED = 5, 0
MIN_DETECTED, MAX_GENES = 0.01, 400
FLOOR = 1e-9
"""With ``--keep-empty``: total of a spot that has none."""
MODEL = "CausalGeD"
MEASURED_MEAN = "mean of measured genes"
RBF = "gene-wise kernel ridge, RBF"
METRICS = ("pearson", "spearman", "ssim", "js", "rmse")
PAIRED = ("pearson", "ssim", "js")
SMALLER_IS_BETTER = ("js", "rmse")
WORST = {"pearson": 0.0, "spearman": 0.0, "ssim": 0.0, "js": math.log(2)}
"""Of a gene whose truth has a score and whose prediction (constant, or nowhere above 0) has none."""
VERDICTS = ("use", "weak", "do not use")
N_BOOT = 4000
LEVEL = 0.95

PSEUDO = {
    "pseudo_visp": ("starmap_visp/BY3_1k.h5ad", None),
    "pseudo_mpfc": ("starmap_mpfc/BZ5.h5ad", "starmap_mpfc/BZ9.h5ad"),
    "pseudo_seqfish": ("seqfish_embryo/embryo1.h5ad", "seqfish_embryo/embryo2.h5ad"),
}
"""Pairs made of sections: spatial data, and a reference whose coordinates are hidden; ``None``: the other half of the cells.
Nothing was tuned on them."""

MEANING = {
    "pearson, spearman, ssim, js": "per gene over the spots, mean over the hidden genes of the fold; a prediction "
    "without a score (constant, or nowhere above 0) gets the score of knowing nothing: 0, for js log 2",
    "rmse": "the same, in units of the scale; what is told in the reference's depth is brought to the spots' depth first",
    "n_undefined": "hidden genes whose truth has no correlation (constant); they are left out of the mean",
    "n_flat": "hidden genes for which the prediction is constant",
    "scale": "normalized: log1p(count / total of the spot over the fold's measured genes × median of these totals); "
    "values that are logged as published are taken as they are",
    "fold": "which fifth of the genes is hidden (shuffled with seed 0)",
    "seed": "seeds what is trained; methods without randomness stand under each seed",
    "coverage_50, coverage_90": "share of observed values inside the interval, mean over hidden genes",
    "coverage_50_gap, coverage_90_gap": "that share minus the mass the prediction gives to its own interval "
    "(its nominal level, where it tells no mass)",
    "predictability_*": "how well the model's own estimate of a hidden gene's correlation agrees with what came out: "
    "spearman over genes, mean absolute error, share of genes inside [low, high]",
    "pearson_use, ...": "mean correlation of the hidden genes with this verdict; n_use, ...: how many those are; gain_use, "
    "...: what they gain over the mean of measured genes (over 0 where that is negative), the null of the verdict",
    "verdicts": "that gain by verdict, with bootstrap intervals over genes; a gene is averaged over the seeds that give it "
    "the verdict; dataset `all`: genes of all real datasets together",
    "paired": "difference = mean over genes of (method − against), each gene averaged over seeds. low, high: bootstrap "
    "over genes. dataset `all`: genes of all real datasets together; difference_datasets, low_datasets, high_datasets "
    "give every dataset the same weight and draw genes within each",
    "is_best": "against the baseline or null that does best on these very genes: the choice favours the baseline",
    "peak_mb": "peak resident memory during fit and prediction above what the process held before; largest of all fits",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run does."""

    data: Path | None = None
    datasets: tuple[str, ...] = DATASETS
    seeds: tuple[int, ...] = (0, 1, 2)
    n_folds: int = N_FOLDS
    """Folds that are run; genes are split into five all the same."""
    max_epochs: int | None = None
    """Of CausalGeD; ``None`` is its own default."""
    n_samples: int | None = None
    """Draws of CausalGeD; ``None`` is its own default."""
    with_model: bool = True
    peers: tuple[str, ...] | None = None
    """Peers to run; ``None`` takes all that are installed."""
    ablations: bool = False
    """Run CausalGeD with and without its parts instead of beside baselines."""
    keep_empty: bool = False
    """Keep spots without a count of a measured gene; their total is then almost 0."""
    quick: bool = False
    threads: int | None = None


WITHOUT: dict[str, dict[str, Any]] = {
    "without the network": {"use_network": False},
    "all of the network's residual": {"share": 1.0},
    "all of it, without measured genes as context": {"share": 1.0, "use_context": False},
    "all of it, in eight sets": {"share": 1.0, "n_sets": 8},
    "all of it, 200 reverse steps": {"share": 1.0, "n_steps": 200},
    "all of it, set decay .7": {"share": 1.0, "set_decay": 0.7},
    "all of it, set decay 1": {"share": 1.0, "set_decay": 1.0},
    "all of it, noise predicted": {"share": 1.0, "prediction": "noise"},
}
"""Ablations: fields of the config and keywords of `impute` that are changed. ``share`` overrules what validation genes say
about how much of the generated residual helps: where that is 0, no other part of the network can matter."""
QUICK = {
    "datasets": ("pair_visium_hippocampus", "pair_osmfish_allen", TOY),
    "seeds": (0,),
    "n_folds": 2,
    "peers": (),
}
"""What ``--quick`` changes: under ten minutes on two cores. CausalGeD is trained as long as ever."""


# --------------------------------------------------------------------------------------------------------------- data


@dataclass
class Side:
    """Spots or cells over the genes of the benchmark, as published."""

    values: np.ndarray
    x_type: str

    @property
    def is_counts(self) -> bool:
        return self.x_type.startswith("raw")

    @property
    def is_logged(self) -> bool:
        return self.x_type.startswith("log")

    def totals(self, measured_genes: np.ndarray) -> np.ndarray | None:
        """Of each row over measured genes; ``None`` where values have been brought to one depth and logged."""
        return None if self.is_logged else self.values[:, measured_genes].sum(axis=1)


@dataclass
class Pair:
    """A spatial dataset and the reference that belongs to it."""

    dataset: str
    genes: np.ndarray
    spots: Side
    cells: Side
    xy: np.ndarray
    """In µm."""
    cell_type: np.ndarray | None
    n_shared: int
    """Genes in both before any is left out."""


def read_pair(dataset: str, data: Path | None) -> Pair:
    """``DIR/NAME/st.h5ad`` and ``sc.h5ad``, or the toy tissue with its reference."""
    import anndata

    if dataset == TOY:
        spatial = stg.datasets.toy_tissue(n_sections=1, n_patients=1)
        return make_pair(TOY, spatial, stg.datasets.toy_reference(spatial))
    if data is None:
        raise SystemExit("--data DIR must say where the folders of pairs lie; only `toy` does without.")
    if dataset in PSEUDO:
        spatial, reference = (
            None if name is None else anndata.read_h5ad(data / name) for name in PSEUDO[dataset]
        )
        if reference is None:
            is_spatial = np.random.default_rng(0).random(spatial.n_obs) < 0.5
            spatial, reference = spatial[is_spatial].copy(), spatial[~is_spatial].copy()
        return make_pair(dataset, spatial, reference)
    files = [data / dataset / f"{which}.h5ad" for which in ("st", "sc")]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise SystemExit(
            f"{data / dataset} must hold st.h5ad and sc.h5ad; {' and '.join(missing)} missing there."
        )
    spatial, reference = (anndata.read_h5ad(file) for file in files)
    return make_pair(dataset, spatial, reference)


def make_pair(dataset: str, spatial: Any, reference: Any) -> Pair:
    """Genes in both, in the order of the spatial file, less those that cannot be judged."""
    if _keys.SPATIAL_UM not in spatial.uns and _keys.UM_PER_UNIT in spatial.uns:
        stg.pp.coordinates_in_um(spatial)
    known = set(reference.var_names)
    shared = [gene for gene in spatial.var_names if gene in known]
    if len(shared) < 2 * N_FOLDS:
        raise SystemExit(
            f"{dataset}: at least {2 * N_FOLDS} genes must be in both files; {len(shared)} are. Names look like "
            f"{list(spatial.var_names[:3])} in space and {list(reference.var_names[:3])} in the reference."
        )
    spots, cells = (
        Side(_dense(one[:, shared].X), str(one.uns.get("x_type", "raw_counts")))
        for one in (spatial, reference)
    )
    kept = judged(spots, cells)
    spots.values, cells.values = spots.values[:, kept], cells.values[:, kept]
    types = reference.obs.get(_keys.CELL_TYPE, None)
    xy = read_xy(spatial)
    cell_type = None if types is None else types.astype(str).to_numpy()
    return Pair(dataset, np.array(shared)[kept], spots, cells, xy, cell_type, len(shared))


def judged(spots: Side, cells: Side) -> np.ndarray:
    """Numbers of the genes that are used; those that vary most come first, if there are more than enough."""
    is_detected = ((spots.values > 0).mean(axis=0) > MIN_DETECTED) & (cells.values > 0).any(axis=0)
    kept = np.flatnonzero(is_detected)
    if len(kept) > MAX_GENES:
        values = spots.values[:, kept]
        spread = (values if spots.is_logged else np.log1p(values)).var(axis=0)
        kept = kept[np.argsort(-spread, kind="stable")[:MAX_GENES]]
    return kept


@dataclass
class Task:
    """A pair with a fifth of its genes hidden. Whatever a method gets, it gets from here."""

    dataset: str
    fold: int
    genes: np.ndarray
    measured: np.ndarray
    wanted: np.ndarray
    """Numbers of genes."""
    spots: Side
    """Measured genes only."""
    cells: Side
    """All genes."""
    log_spots: np.ndarray
    """Measured genes only, log-normalised."""
    log_cells: np.ndarray
    """All genes, log-normalised."""
    truth: np.ndarray
    """Hidden genes of the spots, log-normalised: for scoring alone."""
    target: float
    """Total that a spot was brought to."""
    reference_target: float
    """Total that a cell was brought to."""
    xy: np.ndarray
    cell_type: np.ndarray | None
    n_dropped: tuple[int, int]
    """Spots and cells without a measured count."""

    @property
    def hidden_genes(self) -> list[str]:
        return list(self.genes[self.wanted])

    def adata(self) -> Any:
        """Spots × measured genes, as a model gets them."""
        values = self.spots.values if self.spots.is_counts else self.log_spots
        return _anndata(values, self.genes[self.measured], "spot", self.spots.is_counts, self.xy)

    def reference(self) -> Any:
        """Cells × all genes, as a model gets them."""
        values = self.cells.values if self.cells.is_counts else self.log_cells
        adata = _anndata(values, self.genes, "cell", self.cells.is_counts)
        if self.cell_type is not None:
            adata.obs[_keys.CELL_TYPE] = pd.Categorical(self.cell_type)
        return adata


def folds_of(n_genes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Measured and hidden genes of each fold."""
    yield from KFold(N_FOLDS, shuffle=True, random_state=FOLD_SEED).split(np.arange(n_genes))


def make_task(pair: Pair, fold: int, *, keep_empty: bool = False) -> Task:
    """Hide the genes of a fold; everything is brought to one depth by genes that are not hidden."""
    known, wanted = list(folds_of(len(pair.genes)))[fold]
    spots, log_spots, target, is_spot = _normalised(pair.spots, known, keep_empty)
    cells, log_cells, reference_target, is_cell = _normalised(pair.cells, known, keep_empty)
    return Task(
        dataset=pair.dataset,
        fold=fold,
        genes=pair.genes,
        measured=known,
        wanted=wanted,
        spots=Side(spots[:, known], pair.spots.x_type),
        cells=Side(cells, pair.cells.x_type),
        log_spots=log_spots[:, known],
        log_cells=log_cells,
        truth=log_spots[:, wanted],
        target=target,
        reference_target=reference_target,
        xy=pair.xy[is_spot],
        cell_type=None if pair.cell_type is None else pair.cell_type[is_cell],
        n_dropped=(int((~is_spot).sum()), int((~is_cell).sum())),
    )


def _normalised(side: Side, known: np.ndarray, keep_empty: bool) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:  # fmt: skip
    """Rows that are kept as published and log-normalised, their target, and which rows they are."""
    totals = side.totals(known)
    if totals is None:
        return side.values, side.values, 1.0, np.ones(len(side.values), dtype=bool)
    is_kept = np.ones(len(totals), dtype=bool) if keep_empty else totals > 0
    values, totals = side.values[is_kept], totals[is_kept]
    target = float(np.median(totals))
    return values, np.log1p(values / np.maximum(totals, FLOOR)[:, None] * target), target, is_kept


def _anndata(values: np.ndarray, genes: np.ndarray, row: str, is_counts: bool, xy: np.ndarray | None = None) -> Any:  # fmt: skip
    import anndata

    return anndata.AnnData(
        X=sparse.csr_matrix(values.astype(np.int32)) if is_counts else values.astype(np.float32),
        obs=pd.DataFrame(index=[f"{row} {i}" for i in range(len(values))]),
        var=pd.DataFrame(index=list(genes)),
        obsm={} if xy is None else {_keys.SPATIAL: xy},
    )


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)


# ------------------------------------------------------------------------------------------------------------ methods


class Answer(NamedTuple):
    """What a method says about the hidden genes, spots × genes in the order of the task."""

    method: str
    kind: str
    prediction: np.ndarray
    cost: tuple[float, float, float] | None
    """Training seconds, prediction seconds, peak memory."""
    target: float | None = None
    """Total in whose depth it is told; ``None``: has no unit."""
    intervals: dict[int, dict[str, np.ndarray]] = {}
    """Level in percent → lower, upper, mass, where it tells them."""
    estimates: pd.DataFrame | None = None
    """Predictability of the hidden genes, as the model itself sees it."""


def run_baselines(task: Task) -> Iterator[Answer]:
    """Nulls and baselines; they know no seed."""
    yield Answer(MEASURED_MEAN, "null", measured_mean(task), None)
    methods: list[tuple[str, ImputationBaseline]] = [(one.name, one) for one in imputation_baselines()]
    for name, baseline in [*methods, (RBF, GeneKernelRidge(kernel="rbf"))]:
        if baseline.needs_cell_type and task.cell_type is None:
            say_once(f"{task.dataset}: the reference has no obs['{_keys.CELL_TYPE}']: no row {name!r}.")
            continue
        with measured() as training:
            baseline.fit(
                task.log_spots,
                task.log_cells[:, task.measured],
                task.log_cells[:, task.wanted],
                task.cell_type,
            )
        with measured() as predicting:
            prediction = baseline.predict()
        yield Answer(name, baseline.kind, prediction, _cost(training, predicting), task.reference_target)


def measured_mean(task: Task) -> np.ndarray:
    """One pattern for every hidden gene: what all measured genes have in common. No reference takes part."""
    values, sd = task.log_spots, task.log_spots.std(axis=0)
    pattern = (values[:, sd > 0] / sd[sd > 0]).mean(axis=1)
    return np.repeat(pattern[:, None], len(task.wanted), axis=1)


def run_causalged(task: Task, seed: int, max_epochs: int | None = None, n_samples: int | None = None, **changes: Any) -> Iterator[Answer]:  # fmt: skip
    """Train on the measured genes and the reference, generate the hidden genes."""
    try:
        from stgen.models import CausalGeD
    except ImportError:
        say_once("CausalGeD is not there: only baselines are run.")
        return
    adata, reference = task.adata(), task.reference()
    share = changes.pop("share", None)
    asked = {name: changes.pop(name) for name in ("n_sets", "n_steps") if name in changes}
    CausalGeD.setup_anndata(adata, expression="counts" if task.spots.is_counts else "log")
    CausalGeD.setup_reference(
        reference,
        expression="counts" if task.cells.is_counts else "log",
    )
    with measured() as training:
        model = CausalGeD(adata, reference, random_state=seed, **changes)
        model.train(**({} if max_epochs is None else {"max_epochs": max_epochs}), random_state=seed)
    if share is not None:
        model.module.share.fill_(share)
    with measured() as predicting:
        drawn = {} if n_samples is None else {"n_samples": n_samples}
        imputed = model.impute(genes=task.hidden_genes, **drawn, **asked)
    imputed = imputed[:, task.hidden_genes]
    yield Answer(
        MODEL,
        "model",
        _dense(imputed.X),
        _cost(training, predicting),
        task.target,
        intervals_of(imputed),
        imputed.var if "predictability" in imputed.var else None,
    )
    forget(adata)
    forget(reference)


def intervals_of(imputed: Any) -> dict[int, dict[str, np.ndarray]]:
    """Layers lower_50, upper_50 (and mass_50), and the same for 90, where they exist."""
    found = {}
    for level in (50, 90):
        layers = {side: f"{side}_{level}" for side in ("lower", "upper", "mass")}
        if layers["lower"] in imputed.layers and layers["upper"] in imputed.layers:
            found[level] = {
                side: _dense(imputed.layers[key]) for side, key in layers.items() if key in imputed.layers
            }
    return found


# -------------------------------------------------------------------------------------------------------------- peers


def run_peers(task: Task, seed: int, names: Sequence[str] | None = None) -> Iterator[Answer]:
    """What others publish, where it is installed."""
    for name in PEERS if names is None else names:
        module, peer = PEERS[name]
        try:
            importlib.import_module(module)
        except ImportError:
            say_once(f"{name} is not installed: no row of it.")
            continue
        with measured() as training:
            prediction = peer(task, seed)
        if prediction is not None:
            cost = _cost(training, {"seconds": 0.0, "peak_mb": 0.0})
            yield Answer(name, "peer", prediction, cost, PEER_TARGET[name](task))


def tangram(task: Task, seed: int) -> np.ndarray:
    """Tangram, cells mode, 300 epochs, its defaults otherwise."""
    import anndata
    import tangram as tg

    cells = anndata.AnnData(task.log_cells.astype(np.float32), var=pd.DataFrame(index=list(task.genes)))
    spots = anndata.AnnData(
        task.log_spots.astype(np.float32), var=pd.DataFrame(index=list(task.genes[task.measured]))
    )
    tg.pp_adatas(cells, spots, genes=list(task.genes[task.measured]))
    mapping = tg.map_cells_to_space(
        cells, spots, mode="cells", num_epochs=300, device="cpu", random_state=seed, verbose=False
    )
    projected = tg.project_genes(mapping, cells)
    # it writes names in small letters
    return _dense(projected[:, [gene.lower() for gene in task.hidden_genes]].X)


def gimvi(task: Task, seed: int) -> np.ndarray | None:
    """gimVI, its defaults. It models counts; its shares are divided by those of the measured genes."""
    if not (task.spots.is_counts and task.cells.is_counts):
        say_once(f"{task.dataset}: not counts on both sides: no row of gimVI.")
        return None
    import scvi
    from scvi.external import GIMVI

    before = scvi.settings.seed
    scvi.settings.seed = seed
    spots, cells = task.adata(), task.reference()
    GIMVI.setup_anndata(spots)
    GIMVI.setup_anndata(cells)
    model = GIMVI(cells, spots)
    model.train(enable_progress_bar=False)
    share = np.asarray(model.get_imputed_values(normalized=True)[1], dtype=np.float64)
    scvi.settings.seed = before
    total = share[:, task.measured].sum(axis=1, keepdims=True)
    return np.log1p(share[:, task.wanted] / np.maximum(total, FLOOR) * task.target)


def spage(task: Task, seed: int) -> np.ndarray:
    """SpaGE with half as many principal vectors as measured genes, 50 at most."""
    from SpaGE.main import SpaGE

    spots = pd.DataFrame(task.log_spots, columns=task.genes[task.measured])
    cells = pd.DataFrame(task.log_cells, columns=task.genes)
    n_vectors = max(1, min(50, len(task.measured) // 2))
    answer = SpaGE(spots, cells, n_pv=n_vectors, genes_to_predict=task.hidden_genes)
    return np.nan_to_num(answer[task.hidden_genes].to_numpy(dtype=np.float64))


PEERS: dict[str, tuple[str, Callable[[Task, int], np.ndarray | None]]] = {
    "Tangram": ("tangram", tangram),
    "gimVI": ("scvi.external", gimvi),
    "SpaGE": ("SpaGE.main", spage),
}
PEER_TARGET: dict[str, Callable[[Task], float | None]] = {
    "Tangram": lambda task: None,  # a sum over cells
    "gimVI": lambda task: task.target,
    "SpaGE": lambda task: task.reference_target,
}


def _cost(training: dict[str, float], predicting: dict[str, float]) -> tuple[float, float, float]:
    peak = float(np.nanmax([training["peak_mb"], predicting["peak_mb"], 0.0]))
    return training["seconds"], predicting["seconds"], peak


# ------------------------------------------------------------------------------------------------------------- scores


def score_genes(task: Task, prediction: np.ndarray, target: float | None) -> pd.DataFrame:
    """Genes × metrics. NaN where the truth itself has no score."""
    truth = task.truth
    scores = {name: np.array(getattr(metrics, name)(truth, prediction)) for name in METRICS if name != "rmse"}
    is_varied, is_present = np.ptp(truth, axis=0) > 0, (truth > 0).any(axis=0)
    for name, worst in WORST.items():
        is_asked = is_varied if name in ("pearson", "spearman") else is_present
        scores[name] = np.where(np.isnan(scores[name]) & is_asked, worst, scores[name])
    if target is not None:
        scores["rmse"] = metrics.rmse(truth, at_depth(prediction, target, task.target))
    return pd.DataFrame(scores, index=task.hidden_genes)


def at_depth(values: np.ndarray, own: float, wanted: float) -> np.ndarray:
    """Log-normalised values of one depth, told in another."""
    return values if own == wanted else np.log1p(np.expm1(np.maximum(values, 0)) * (wanted / own))


class Comparison:
    """All scores of a run, and their paired differences."""

    def __init__(self) -> None:
        self.results = Results()
        self.genes: dict[tuple[Place, str], pd.DataFrame] = {}
        self.gains: list[pd.DataFrame] = []
        """Of hidden genes with a verdict: dataset, verdict, gain over the null, by gene."""

    def add(self, task: Task, seeds: Sequence[int], answer: Answer) -> None:
        """Score an answer; one without randomness stands under several seeds."""
        if answer.prediction.shape != task.truth.shape:
            raise ValueError(
                f"{answer.method!r} must answer with {task.truth.shape[0]} spots × {task.truth.shape[1]} genes; "
                f"got {answer.prediction.shape}."
            )
        scores = score_genes(task, answer.prediction, answer.target)
        numbers = {name: mean(scores[name].to_numpy()) for name in scores}
        numbers["n_undefined"] = int(scores["pearson"].isna().sum())
        numbers["n_flat"] = int((np.ptp(answer.prediction, axis=0) == 0).sum())
        known = self.genes.get((Place(task.dataset, "spots", str(task.fold), seeds[0]), MEASURED_MEAN))
        null = None if known is None else known["pearson"]
        numbers |= score_estimates(answer, scores["pearson"], null)
        if null is not None and answer.estimates is not None and "verdict" in answer.estimates:
            verdicts = answer.estimates["verdict"].astype(str).to_numpy()
            gain = scores["pearson"] - null.clip(lower=0)
            self.gains.append(pd.DataFrame({"dataset": task.dataset, "verdict": verdicts, "gain": gain}))
        for seed in seeds:
            place = Place(task.dataset, "spots", str(task.fold), seed)
            self.genes[place, answer.method] = scores
            for name, value in numbers.items():
                scale = "normalized" if name in METRICS else ""
                self.results.add(place, answer.method, answer.kind, name, scale, value)
            for name, value in score_intervals(task, answer).items():
                self.results.add(place, answer.method, answer.kind, name, "", value)
        if answer.cost is not None:
            self.results.costs.append(Cost(task.dataset, answer.method, *answer.cost))

    def verdicts(self) -> list[dict[str, Any]]:
        """What genes of each verdict gain over the null, by dataset and over all real ones; a gene counts once."""
        if not self.gains:
            return []
        by_gene = (
            pd.concat(self.gains)
            .rename_axis("gene")
            .groupby(["dataset", "verdict", "gene"], sort=False)["gain"]
            .mean()
            .dropna()
        )
        datasets = list(by_gene.index.unique("dataset"))
        real = [name for name in datasets if name != TOY]
        groups = {name: [name] for name in datasets} | ({"all": real} if len(real) > 1 else {})
        entries = []
        for name, parts in groups.items():
            for said in VERDICTS:
                here = by_gene[by_gene.index.isin(parts, "dataset") & by_gene.index.isin([said], "verdict")]
                if len(here):
                    found = paired_by_gene([here.to_numpy()])
                    entry = {"dataset": name, "verdict": said, "gain": found["difference"]}
                    entries.append(entry | {key: found[key] for key in ("low", "high", "n_genes")})
        return entries

    # ------------------------------------------------------------------------------------------------------- pairs

    def paired(self) -> list[dict[str, Any]]:
        """Models against all others; baselines and peers against nulls, the mean of three also against baselines."""
        datasets = list(dict.fromkeys(row.dataset for row in self.results.rows))
        real = [name for name in datasets if name != TOY]
        groups = {name: [name] for name in datasets} | ({"all": real} if len(real) > 1 else {})
        entries = []
        for name, parts in groups.items():
            methods = list(dict.fromkeys(m for part in parts for m in self.results.methods(part)))
            for method in methods:
                for other in self.rivals(method, methods):
                    entries += self.against(name, parts, method, other)
        return entries

    def rivals(self, method: str, methods: Sequence[str]) -> list[str]:
        """What a method is compared with."""
        kinds = {"model": ("null", "baseline", "peer", "model"), "null": ()}.get(self.results.kinds[method], ("null",))  # fmt: skip
        if method in WITHOUT:
            return [MODEL]
        if method == "mean of three":
            kinds = ("null", "baseline")
        return [m for m in methods if m != method and m not in WITHOUT and self.results.kinds[m] in kinds]

    def against(self, name: str, parts: Sequence[str], method: str, other: str) -> list[dict[str, Any]]:
        """Differences of two methods over the genes of one dataset, or of several."""
        entries = []
        for metric in PAIRED:
            found = {part: self.difference(part, method, other, metric) for part in parts}
            found = {part: values for part, values in found.items() if len(values)}
            if not found:
                continue
            head = {
                "dataset": name,
                "method": method,
                "against": other,
                "against_kind": self.results.kinds[other],
                "metric": metric,
                "scale": "normalized",
                "smaller_is_better": metric in SMALLER_IS_BETTER,
                "is_best": other == self.best(parts, metric),
                "n_datasets": len(found),
                "n_seeds": len({p.seed for p, m in self.genes if m == method and p.dataset in found}),
            }
            entry = head | paired_by_gene([values.to_numpy() for values in found.values()])
            entries.append(entry | {"verdict": verdict(entry)})
        return entries

    def difference(self, dataset: str, method: str, other: str, metric: str) -> pd.Series:
        """Gene → method − other, averaged over seeds; genes that both have been scored on."""
        places = [p for p, m in self.genes if m == method and p.dataset == dataset]
        gaps = [
            self.genes[p, method][metric] - self.genes[p, other][metric]
            for p in places
            if (p, other) in self.genes
        ]
        if not gaps:
            return pd.Series(dtype=float)
        together = pd.concat(gaps)
        return together.groupby(level=0, sort=False).mean().dropna()

    def best(self, datasets: Sequence[str], metric: str) -> str | None:
        """The null or baseline with the best mean over datasets, of those that were run on all of them."""
        tables = [self.table(name)[metric] for name in datasets]
        table = pd.concat(tables, axis=1).dropna().mean(axis=1)
        allowed = [m for m in table.index if self.results.kinds[m] in ("null", "baseline")]
        if not allowed:
            return None
        column = table.loc[allowed]
        return str(column.idxmin() if metric in SMALLER_IS_BETTER else column.idxmax())

    def table(self, dataset: str) -> pd.DataFrame:
        """Methods × metrics: means over genes of all folds and seeds, so that a gene counts once."""
        scores = {}
        for method in self.results.methods(dataset):
            every = [s for (p, m), s in self.genes.items() if m == method and p.dataset == dataset]
            scores[method] = pd.concat(every).mean()
        return pd.DataFrame(scores).T.reindex(columns=METRICS)

    def say(self, dataset: str) -> None:
        """Print the tables of one dataset."""
        table = self.table(dataset)
        kind = pd.Series(self.results.kinds).reindex(table.index).rename("kind")
        heading("Mean over hidden genes and seeds (js, rmse: smaller is better)")
        show(pd.concat([kind, table], axis=1))
        rows = pd.DataFrame([r for r in self.results.rows if r.dataset == dataset], columns=Row._fields)
        more = rows[rows["metric"].str.startswith(("coverage", "predictability", "n_", "pearson_"))]
        is_model = more["kind"] == "model"
        if is_model.any():
            heading("What the model says about itself, mean over folds and seeds")
            show(more[is_model].pivot_table("value", "metric", "method", sort=False))
        costs = pd.DataFrame([row for row in self.results.total_costs() if row["dataset"] == dataset])
        if len(costs):
            heading("Cost of one fit")
            show(costs.drop(columns="dataset").set_index("method"), digits=2)


def score_intervals(task: Task, answer: Answer) -> dict[str, float]:
    """Coverage of observed values, and how far it is from the interval's own mass."""
    found = {}
    for level, layers in answer.intervals.items():
        coverage = metrics.interval_coverage(task.truth, layers["lower"], layers["upper"])
        mass = layers["mass"].mean() if "mass" in layers else level / 100
        found[f"coverage_{level}"] = mean(coverage)
        found[f"coverage_{level}_gap"] = mean(coverage) - float(mass)
        found[f"width_{level}"] = mean(metrics.interval_width(layers["lower"], layers["upper"]))
    return found


def score_estimates(answer: Answer, pearson: pd.Series, null: pd.Series | None = None) -> dict[str, float]:
    """Whether the model knows which hidden genes it gets right; ``null`` is what the mean of measured genes gets."""
    if answer.estimates is None:
        return {}
    said, came = answer.estimates["predictability"].to_numpy(dtype=float), pearson.to_numpy()
    is_known = ~np.isnan(said) & ~np.isnan(came)
    found = {
        "predictability_spearman": float(metrics.spearman(came[is_known, None], said[is_known, None])[0]),
        "predictability_error": mean(np.abs(said - came)),
    }
    if {"low", "high"} <= set(answer.estimates):
        low, high = (answer.estimates[side].to_numpy(dtype=float) for side in ("low", "high"))
        found["predictability_coverage"] = mean(((low <= came) & (came <= high))[is_known].astype(float))
    if "verdict" in answer.estimates:
        verdicts = answer.estimates["verdict"].astype(str).to_numpy()
        for name in VERDICTS:
            found[f"n_{name}"] = int((verdicts == name).sum())
            found[f"pearson_{name}"] = mean(came[verdicts == name])
            if null is not None:
                gain = came - np.maximum(null.to_numpy(), 0.0)
                found[f"gain_{name}"] = mean(gain[verdicts == name])
    return found


def paired_by_gene(differences: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean and intervals of per-gene differences of one or several datasets."""
    values = np.concatenate(differences)
    low, high = metrics.bootstrap_interval(values, level=LEVEL, n_boot=N_BOOT)
    found = {
        "difference": float(values.mean()),
        "low": low,
        "high": high,
        "n_genes": len(values),
        "share_of_genes_above_0": float((values > 0).mean()),
    }
    if len(differences) > 1:
        rng = np.random.default_rng(0)
        draws = np.mean([rng.choice(d, (N_BOOT, len(d))).mean(axis=1) for d in differences], axis=0)
        tail = (1 - LEVEL) / 2
        low_datasets, high_datasets = np.quantile(draws, [tail, 1 - tail])
        found |= {
            "difference_datasets": float(np.mean([d.mean() for d in differences])),
            "low_datasets": float(low_datasets),
            "high_datasets": float(high_datasets),
        }
    return found


def verdict(entry: dict[str, Any]) -> str:
    """Better or worse if the interval over genes leaves 0 out."""
    low, high = entry["low"], entry["high"]
    if math.isnan(low) or low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == entry["smaller_is_better"] else "worse"


# ---------------------------------------------------------------------------------------------------------------- run


def run(options: Options, command: str = "") -> tuple[Comparison, dict[str, Any], list[dict[str, Any]]]:
    """Everything that was asked for: scores, meta, paired differences."""
    start = time.perf_counter()
    comparison, about = Comparison(), {}
    for name in options.datasets:
        pair = read_pair(name, options.data)
        note = about[name] = describe(pair)
        for fold in range(options.n_folds):
            task = make_task(pair, fold, keep_empty=options.keep_empty)
            note["n_dropped_spots"][fold], note["n_dropped_cells"][fold] = task.n_dropped
            for seeds, answer in answers_of(task, options):
                comparison.add(task, seeds, answer)
                _progress(start, task, seeds, comparison)
    paired = comparison.paired()
    meta = {
        "benchmark": "imputation",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": {
            "n_folds": N_FOLDS,
            "n_folds_run": options.n_folds,
            "fold_seed": FOLD_SEED,
            "min_detected": MIN_DETECTED,
            "max_genes": MAX_GENES,
            "keep_empty": options.keep_empty,
            "max_epochs": options.max_epochs,
            "n_samples": options.n_samples,
            "threads": options.threads,
        },
        "datasets": about,
        "verdicts": comparison.verdicts(),
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return comparison, meta, paired


def answers_of(task: Task, options: Options) -> Iterator[tuple[Sequence[int], Answer]]:
    """Every method on one fold, and the seeds it stands under."""
    if options.ablations:
        for seed in options.seeds:
            for name, changes in {MODEL: {}, **WITHOUT}.items():
                for answer in run_causalged(task, seed, options.max_epochs, options.n_samples, **changes):
                    yield (seed,), answer._replace(method=name)
        return
    for answer in run_baselines(task):
        yield options.seeds, answer
    if options.with_model:
        for answer in run_peers(task, options.seeds[0], options.peers):
            yield options.seeds[:1], answer
    if options.with_model:
        for seed in options.seeds:
            for answer in run_causalged(task, seed, options.max_epochs, options.n_samples):
                yield (seed,), answer


def describe(pair: Pair) -> dict[str, Any]:
    """What a reader must know about the rows."""
    return {
        "n_spots": len(pair.spots.values),
        "n_cells": len(pair.cells.values),
        "n_genes_shared": pair.n_shared,
        "n_genes": len(pair.genes),
        "x_type": {"spots": pair.spots.x_type, "cells": pair.cells.x_type},
        "n_cell_types": None if pair.cell_type is None else len(np.unique(pair.cell_type)),
        "n_dropped_spots": {},
        "n_dropped_cells": {},
    }


def _progress(start: float, task: Task, seeds: Sequence[int], comparison: Comparison) -> None:
    row = comparison.results.rows[-1]
    scores = comparison.genes[Place(task.dataset, "spots", str(task.fold), seeds[-1]), row.method].mean()
    print(
        f"[{time.perf_counter() - start:6.0f} s] {task.dataset} fold {task.fold} seed {row.seed}: {row.method} "
        + " ".join(f"{name} {value:.3f}" for name, value in scores.items()),
        file=sys.stderr,
        flush=True,
    )


def say(comparison: Comparison, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
    """Print the tables of all datasets."""
    for name, about in meta["datasets"].items():
        title = f"{name}: {meta['options']['n_folds_run']} of {N_FOLDS} folds of genes; seeds {', '.join(map(str, meta['seeds']))}"
        print(f"\n{'=' * len(title)}\n{title}\n{'=' * len(title)}")
        print(
            f"{about['n_spots']} spots ({about['x_type']['spots']}), {about['n_cells']} cells ({about['x_type']['cells']}), "
            f"{about['n_genes']} of {about['n_genes_shared']} shared genes"
        )
        dropped = [about[f"n_dropped_{what}"] for what in ("spots", "cells")]
        if not meta["options"]["keep_empty"]:
            spots, cells = (", ".join(str(n) for n in one.values()) for one in dropped)
            print(f"without a measured count, left out by fold: spots {spots}; cells {cells}")
        if meta["options"]["max_epochs"]:
            print(f"!! CausalGeD was trained for {meta['options']['max_epochs']} epoch(s), not its default")
        comparison.say(name)
        say_pairs(told(comparison, paired, name))
    if any(entry["dataset"] == "all" for entry in paired):
        heading("All real datasets together")
        say_pairs(told(comparison, paired, "all"))
    if meta["verdicts"]:
        heading("Gain in Pearson over the mean of measured genes (over 0 where that is negative), by verdict")
        show(pd.DataFrame(meta["verdicts"]).set_index("dataset"))


def told(comparison: Comparison, paired: Sequence[dict[str, Any]], dataset: str) -> list[dict[str, Any]]:
    """Differences that are printed: all of a model's, and of the others those to what is best; the file has all."""
    kinds = comparison.results.kinds
    return [e for e in paired if e["dataset"] == dataset and (kinds[e["method"]] == "model" or e["is_best"])]


def say_pairs(entries: Sequence[dict[str, Any]]) -> None:
    shown = [
        {
            "method": entry["method"],
            "against": entry["against"] + (" (best)" if entry["is_best"] else ""),
            "metric": entry["metric"],
            "difference": f"{entry['difference']:+.4f}",
            "95 % genes": f"[{entry['low']:+.4f}, {entry['high']:+.4f}]",
            "genes": entry["n_genes"],
            "verdict": entry["verdict"],
        }
        for entry in entries
    ]
    if shown:
        heading("Paired differences (method − against)")
        show(pd.DataFrame(shown).set_index("method"))


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds the folders of pairs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--datasets", help=f"folders of DIR, toy, {', '.join(PSEUDO)}; default {','.join(DATASETS)}"
    )
    parser.add_argument("--seeds", help="seeds of what is trained, default 0,1,2")
    parser.add_argument("--folds", type=int, help=f"run only the first folds of {N_FOLDS}")
    parser.add_argument(
        "--quick", action="store_true", help="two small pairs and the toy, one seed, two folds"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--max-epochs", type=int, help="train CausalGeD shorter than its default")
    parser.add_argument("--n-samples", type=int, help="draws of CausalGeD, instead of its default")
    parser.add_argument("--baselines-only", action="store_true", help="leave CausalGeD and peers out")
    parser.add_argument("--ablations", action="store_true", help="CausalGeD without its parts, no baselines")
    parser.add_argument("--no-peers", action="store_true", help="leave Tangram, gimVI and SpaGE out")
    parser.add_argument("--peers", help=f"those of {', '.join(PEERS)} to run; default all that are installed")
    parser.add_argument(
        "--keep-empty", action="store_true", help=f"keep spots without a measured count, with total {FLOOR}"
    )
    given = parser.parse_args(arguments)
    changes: dict[str, Any] = dict(QUICK) if given.quick else {}
    if given.datasets:
        known = folders_of(given.data, (TOY, *PSEUDO, *DATASETS))
        changes["datasets"] = names_of(parser, "--datasets", given.datasets, known)
    if given.seeds:
        changes["seeds"] = tuple(int(seed) for seed in given.seeds.split(","))
    if given.no_peers:
        changes["peers"] = ()
    elif given.peers:
        changes["peers"] = names_of(parser, "--peers", given.peers, PEERS)
    if given.folds is not None:
        if not 1 <= given.folds <= N_FOLDS:
            parser.error(f"--folds must lie between 1 and {N_FOLDS}; got {given.folds}")
        changes["n_folds"] = given.folds
    options = Options(
        data=given.data,
        quick=given.quick,
        threads=given.threads,
        max_epochs=given.max_epochs,
        n_samples=given.n_samples,
        with_model=not given.baselines_only,
        keep_empty=given.keep_empty,
        ablations=given.ablations,
    )
    return replace(options, **changes), given.out


def main(arguments: Sequence[str] | None = None) -> None:
    options, out = parse(arguments)
    limit_threads(options.threads)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    command = command_of("imputation", sys.argv[1:] if arguments is None else arguments)
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
