"""Niches: GeST beside the cell alone and the mean of its neighbours, cut into clusters by the same mixture.

    python benchmarks/niches.py --data DIR --out FILE

Every method gives each cell of a section a vector; `stgen.baselines.cluster_niches` cuts the vectors into as many
clusters as the section has labels, and clusters are compared with labels. No method sees a label. Cells that the source
itself sets aside (``Excluded``, ``undetermined``) are dropped first and counted. ``unassigned`` is a label like others
in the main scores, as in the published baselines; scores that end in ``_assigned`` leave these cells out of clustering.

Baselines are fitted on the very section they are scored on. A model that was trained on other sections alone
(``GeST zero-shot``) has to beat them all the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from _report import Cost, Place, Results, environment, heading, kept, measured, paired_by_unit, show
from _run import command_of, folders_of, limit_threads, names_of, say_once
from scipy import sparse

import stgen as stg
from stgen import _keys, metrics
from stgen.baselines import cell_pcs, cluster_niches, neighbourhood_mean
from stgen.baselines._niches import ENOUGH_FOR_FULL
from stgen.data._grid import default_window_um
from stgen.data._places import read_xy

REGION = "region"
SET_ASIDE = ("Excluded", "undetermined")
"""Labels of cells that the source takes out of its own analysis."""
UNASSIGNED = "unassigned"
SCORES: dict[str, Callable[..., float]] = {"ami": metrics.ami, "ari": metrics.ari, "nmi": metrics.nmi}

COMPARED = ("ami", "ami_full", "ari", "nmi")
"""Metrics of paired differences."""

ALONE = "PCA of the cell"
AROUND = "mean PCA of 20 cells"
AROUND_UNLOGGED = "mean PCA of 20 cells, logs undone"
BEST_K = "mean PCA, k chosen on the labels"
KS = (5, 10, 20, 30, 50, 80, 120)

ZERO_SHOT = "GeST zero-shot"
CONTINUED = "GeST continued"
ON_SECTION = "GeST on the section"
NO_PLACE = "GeST without place"
HEADLINE = "GeST"
"""In paired differences: zero-shot where `DatasetPlan.zero_shot`, else trained on the section."""


class DatasetPlan(NamedTuple):
    """What is scored in a folder, and what a model may be trained on."""

    scored: tuple[str, ...] | None = None
    """Sections (file names); ``None`` scores all that have labels."""
    zero_shot: bool = False
    """Whether the headline is a model trained on the folder's other sections."""


PLANS: dict[str, DatasetPlan] = {
    "starmap_mpfc": DatasetPlan(zero_shot=True),
    "osmfish_ssp": DatasetPlan(),
    "merfish_hypothalamus": DatasetPlan(scored=("animal1_bregma-0.09",)),
    "starmap_visp": DatasetPlan(),
    "dlpfc_visium": DatasetPlan(),
    "her2st_labelled": DatasetPlan(zero_shot=True),
}
OVERALL = ("starmap_mpfc", "osmfish_ssp", "merfish_hypothalamus", "starmap_visp", "dlpfc_visium")
"""Datasets whose mean difference is told as one number, each counting the same."""

MEANING = {
    "ami, ari, nmi": "agreement of clusters with labels; as many clusters as labels, `stgen.baselines.cluster_niches`",
    "ami_assigned": f"the same without cells labelled {UNASSIGNED!r}; equal to the score itself where there are none",
    "ami_full": "the same with a full covariance per cluster whatever the number of cells. Few cells are clustered with a "
    "diagonal one in the main scores, as in the published baselines; that suits components, which do not correlate, and "
    "not embeddings whose features lie in a few directions",
    "seed": "starts the mixture. A model is trained under a few seeds only: clustering seed number i uses model i modulo "
    "the number of models (`options.n_models`)",
    "fold": "what the method was fitted on: the section itself, or the other sections of the folder",
    "paired": "difference = mean of (method − against) over sections and seeds, interval from sections; with one section "
    "there is none. Dataset 'overall': every dataset counts the same, interval from datasets",
    "kind oracle": "k was chosen on the labels that are scored",
    "peak_mb": "peak resident memory above what the process held before; largest of all fits",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run does."""

    data: Path
    datasets: tuple[str, ...] = tuple(PLANS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_models: int = 2
    max_epochs: int | None = None
    """Of GeST; ``None`` is its own default."""
    with_model: bool = True
    peers: tuple[str, ...] = ()
    """Published tools to run where they are installed."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of GeST's config, for experiments."""
    ablations: bool = False
    """GeST on each section under other orders and windows, instead of beside baselines."""
    quick: bool = False
    threads: int | None = None


SETTINGS: dict[str, dict[str, Any]] = {
    "random order": {"order": 0.0},
    "order as written (a = 1)": {"order": 1.0},
    "windows of half the area": {"window_area": 0.5},
    "windows of twice the area": {"window_area": 2.0},
}
"""Ablations: fields of the config that are changed; ``window_area`` is in units of the default window's."""
QUICK: dict[str, Any] = {"n_models": 1, "datasets": ("starmap_mpfc", "merfish_hypothalamus", "starmap_visp")}
"""What ``--quick`` changes: under ten minutes on two cores."""


# --------------------------------------------------------------------------------------------------------------- data


@dataclass
class Section:
    """Cells of one file, those set aside dropped."""

    dataset: str
    name: str
    adata: Any
    """As published, but for coordinates in µm."""
    labels: np.ndarray | None
    """Region of every cell."""
    n_dropped: int

    @property
    def xy(self) -> np.ndarray:
        return read_xy(self.adata)

    @property
    def x_type(self) -> str:
        return str(self.adata.uns.get("x_type", "raw_counts"))

    @property
    def is_logged(self) -> bool:
        return self.x_type.startswith("log")

    @property
    def is_counts(self) -> bool:
        return self.x_type.startswith("raw")

    @cached_property
    def expression(self) -> np.ndarray:
        """Values over the cell's total × median total, logged; also where the file was logged before, as published."""
        return np.asarray(metrics.normalize_panel(_dense(self.adata.X)))

    @cached_property
    def unlogged(self) -> np.ndarray:
        """The same with logs of the file undone first: one scale for all sections."""
        return self.log_of(self.adata.var_names)

    def log_of(self, genes: Sequence[str], target: float | None = None) -> np.ndarray:
        """Log-normalised expression of some genes."""
        values = _dense(self.adata[:, list(genes)].X)
        return np.asarray(
            metrics.normalize_panel(np.expm1(values) if self.is_logged else values, target=target)
        )

    @cached_property
    def is_assigned(self) -> np.ndarray:
        assert self.labels is not None
        return np.asarray(self.labels != UNASSIGNED)


def read_sections(data: Path | str | None, dataset: str) -> list[Section]:
    """All sections of a folder; without labels where a file has none.

    ``data``: folder that holds the folders; ``None`` takes the environment variable STGEN_DATA.
    """
    import anndata

    data = data if data is not None else os.environ.get("STGEN_DATA")
    if data is None:
        raise SystemExit("Say where the data is: --data DIR, or the environment variable STGEN_DATA.")
    files = sorted((Path(data) / dataset).glob("*.h5ad"))
    if not files:
        raise SystemExit(f"{dataset} must hold at least one section (NAME.h5ad); it holds none.")
    return [make_section(dataset, file.stem, anndata.read_h5ad(file)) for file in files]


def make_section(dataset: str, name: str, adata: Any, *, set_aside: Sequence[str] = SET_ASIDE) -> Section:
    """A section from an AnnData whose labels, if it has any, are in ``obs["region"]``; cells set aside are dropped."""
    stg.pp.coordinates_in_um(adata)
    adata.obs_names = [f"{name} {cell}" for cell in adata.obs_names]
    adata.obs_names_make_unique()
    if REGION not in adata.obs:
        return Section(dataset, name, adata, None, 0)
    is_kept = ~adata.obs[REGION].astype(str).isin((*set_aside, "nan")).to_numpy()
    kept = adata[is_kept].copy()
    return Section(dataset, name, kept, kept.obs[REGION].astype(str).to_numpy(), int((~is_kept).sum()))


def scored(sections: Sequence[Section]) -> list[Section]:
    """Those whose labels are compared."""
    wanted = PLANS.get(sections[0].dataset, DatasetPlan()).scored
    return [s for s in sections if s.labels is not None and (wanted is None or s.name in wanted)]


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- scores


def scores_of(section: Section, representation: np.ndarray, seed: int) -> dict[str, float]:
    """Agreement with the labels under one seed: all cells, assigned cells by themselves, full covariance everywhere."""
    assert section.labels is not None
    representation = np.asarray(representation, dtype=np.float64)
    if representation.shape[0] != len(section.labels):
        raise ValueError(
            f"A representation needs a row for each of the {len(section.labels)} cells of {section.name}; "
            f"got {representation.shape}."
        )
    found: dict[str, float] = {}
    every = np.ones(len(section.labels), dtype=bool)
    for ending, (rows, covariance) in {
        "": (every, "auto"),
        "_assigned": (section.is_assigned, "auto"),
        "_full": (every, "full"),
    }.items():
        is_same = rows.all() if covariance == "auto" else len(rows) >= ENOUGH_FOR_FULL
        if ending and is_same:
            found |= {f"{name}{ending}": found[name] for name in SCORES}
            continue
        labels = section.labels[rows]
        clusters = cluster_niches(
            representation[rows], len(np.unique(labels)), seed, covariance=cast(Any, covariance)
        )
        found |= {f"{name}{ending}": score(labels, clusters) for name, score in SCORES.items()}
    return found


def score_niches(
    dataset: str | Sequence[Section],
    representation_by_section: Mapping[str, np.ndarray],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    data: Path | str | None = None,
) -> pd.DataFrame:
    """Score any representation as this benchmark does.

    ``dataset`` is a folder's name (or sections from `read_sections`), ``representation_by_section`` maps the name of a
    section to an array with a row for every cell that `read_sections` keeps. Returns one row per section and seed, with
    a column per metric.
    """
    sections = read_sections(data, dataset) if isinstance(dataset, str) else dataset
    known = {section.name: section for section in sections if section.labels is not None}
    strange = set(representation_by_section) - set(known)
    if strange:
        raise KeyError(f"No labelled section {sorted(strange)}; there are {sorted(known)}.")
    return pd.DataFrame(
        [
            {"section": name, "seed": seed} | scores_of(known[name], values, seed)
            for name, values in representation_by_section.items()
            for seed in seeds
        ]
    )


# ------------------------------------------------------------------------------------------------------------- methods


class Answer(NamedTuple):
    """Vectors of all cells of a section."""

    method: str
    kind: str
    by_seed: Callable[[int], np.ndarray]
    """Number of the seed → cells × features."""
    fold: str = "section"
    cost: tuple[float, float, float] | None = None


def baselines_of(section: Section, seeds: Sequence[int]) -> Iterator[Answer]:
    """The cell alone, its surroundings, and the best that its surroundings could say."""
    with measured() as time_alone:
        pcs = cell_pcs(section.expression)
    with measured() as time_around:
        around = neighbourhood_mean(pcs, section.xy)
    yield Answer(ALONE, "null", lambda _: pcs, cost=(time_alone["seconds"], 0.0, time_alone["peak_mb"]))
    both = time_alone["seconds"] + time_around["seconds"]
    yield Answer(AROUND, "baseline", lambda _: around, cost=(both, 0.0, time_around["peak_mb"]))
    if section.is_logged:
        unlogged = neighbourhood_mean(cell_pcs(section.unlogged), section.xy)
        yield Answer(AROUND_UNLOGGED, "baseline", lambda _: unlogged)
    means = [neighbourhood_mean(pcs, section.xy, n_neighbors=min(k, len(pcs))) for k in KS]
    best = max(means, key=lambda m: float(np.mean([scores_of(section, m, s)["ami"] for s in seeds])))
    yield Answer(BEST_K, "oracle", lambda _: best)


class Training(NamedTuple):
    """What a model is trained on, and how."""

    sections: tuple[str, ...]
    seed: int
    with_place: bool = True
    setting: str = ""


class Models:
    """GeST models of one folder; one that is asked for twice is trained once."""

    def __init__(self, sections: Sequence[Section], options: Options) -> None:
        self.sections = {section.name: section for section in sections}
        self.options = options
        names = [set(map(str, section.adata.var_names)) for section in sections]
        self.genes = sorted(set.intersection(*names))
        self._fitted: dict[Training, tuple[Any, dict[str, float]]] = {}

    def genes_of(self, names: Sequence[str], asked: str) -> list[str]:
        """All genes of a section if nothing else is involved, else those that all sections share."""
        if set(names) == {asked}:
            return [str(gene) for gene in self.sections[asked].adata.var_names]
        return self.genes

    def adata(self, names: Sequence[str], genes: Sequence[str]) -> Any:
        """Sections in one AnnData, log-normalised like the baselines' but with logs of a file undone."""
        import anndata

        parts = []
        for name in names:
            section = self.sections[name]
            parts.append(
                anndata.AnnData(
                    X=section.log_of(genes).astype(np.float32),
                    obs=pd.DataFrame({_keys.LIBRARY: name}, index=section.adata.obs_names),
                    var=pd.DataFrame(index=list(genes)),
                    obsm={_keys.SPATIAL: section.xy},
                )
            )
        return anndata.concat(parts)

    def fitted(self, training: Training, genes: Sequence[str]) -> tuple[Any, dict[str, float]]:
        """A trained model and what training cost."""
        key = training._replace(sections=(*training.sections, f"{len(genes)} genes"))
        if key not in self._fitted:
            from stgen.models import GeST

            changes = self.options.changes | SETTINGS.get(training.setting, {})
            if not training.with_place:
                changes |= {"use_place": False, "distance_bias": False}
            adata = self.adata(training.sections, genes)
            area = changes.pop("window_area", None)
            if area is not None:
                codes = np.unique(adata.obs[_keys.LIBRARY], return_inverse=True)[1]
                changes["window_um"] = default_window_um(read_xy(adata), codes) * math.sqrt(area)
            GeST.setup_anndata(adata, expression="log", library_key=_keys.LIBRARY)
            with measured() as cost:
                model = GeST(adata, random_state=training.seed, **changes)
                model.train(self.options.max_epochs, random_state=training.seed)
            self._fitted[key] = model, cost
        return self._fitted[key]

    def embed(self, training: Training, name: str) -> tuple[np.ndarray, tuple[float, float, float]]:
        """Niches of a section under a model."""
        genes = self.genes_of(training.sections, name)
        model, cost = self.fitted(training, genes)
        with measured() as predicting:
            values = model.embed_niches(self.adata([name], genes))
        peak = float(np.nanmax([cost["peak_mb"], predicting["peak_mb"], 0.0]))
        return values, (cost["seconds"], predicting["seconds"], peak)

    def embed_continued(self, training: Training, name: str) -> tuple[np.ndarray, tuple[float, float, float]]:
        """Niches after the model went on training on the section itself; the model that is kept stays as it was."""
        import tempfile

        from stgen.models import GeST

        genes = self.genes_of(training.sections, name)
        model, _ = self.fitted(training, genes)
        adata = self.adata([name], genes)
        with tempfile.TemporaryDirectory() as folder, measured() as cost:
            model.save(folder, overwrite=True)
            again = GeST.load(folder, adata)
            again.train(self.options.max_epochs, random_state=training.seed)
            values = again.embed_niches()
        return values, (cost["seconds"], 0.0, cost["peak_mb"])


def ablated(models: Models, section: Section) -> Iterator[Answer]:
    """GeST on the section alone, as it is and under each other setting."""
    options, name = models.options, section.name
    for method in (ON_SECTION, *SETTINGS):
        embedded = [
            models.embed(Training((name,), seed, True, method), name)
            for seed in options.seeds[: options.n_models]
        ]
        vectors, costs = zip(*embedded, strict=True)
        yield Answer(
            method,
            "model",
            lambda number, vectors=vectors: vectors[number % len(vectors)],
            "section",
            tuple(np.mean(costs, axis=0)),
        )


def gest_answers(models: Models, section: Section, plan: DatasetPlan) -> Iterator[Answer]:
    """GeST trained elsewhere, then here as well, here alone, and as the headline but without place."""
    options, name = models.options, section.name
    others = tuple(other for other in models.sections if other != name)
    elsewhere = "other sections"
    trainings = {ON_SECTION: ((name,), True, False)}
    if others:
        trainings = {ZERO_SHOT: (others, True, False), CONTINUED: (others, True, True), **trainings}
    trainings[NO_PLACE] = (others if plan.zero_shot and others else (name,), False, False)
    for method, (names, with_place, goes_on) in trainings.items():
        embed = models.embed_continued if goes_on else models.embed
        embedded = [
            embed(Training(names, seed, with_place), name) for seed in options.seeds[: options.n_models]
        ]
        vectors, costs = zip(*embedded, strict=True)
        fold = "section" if names == (name,) else elsewhere + (", then the section" if goes_on else "")
        yield Answer(
            method,
            "model",
            lambda number, vectors=vectors: vectors[number % len(vectors)],
            fold,
            tuple(np.mean(costs, axis=0)),
        )


def has_gest() -> bool:
    """Whether this stgen has the model; said once if not."""
    if importlib.util.find_spec("stgen.models.gest") is None:
        say_once("GeST is not there: only baselines are run.")
        return False
    return True


# --------------------------------------------------------------------------------------------------------------- peers


def peers_of(section: Section, names: Sequence[str], seeds: Sequence[int], n_models: int) -> Iterator[Answer]:
    """Published tools that are installed and can take this section."""
    for name in names:
        module, run = PEERS[name]
        package, _, attribute = module.partition(":")
        if importlib.util.find_spec(package.split(".")[0]) is None:
            say_once(f"{name} is not installed: no rows of it.")
            continue
        if attribute and not hasattr(__import__(package, fromlist=[attribute]), attribute):
            say_once(f"{name} is not in this version of {package}: no rows of it.")
            continue
        try:
            with measured() as cost:
                vectors = [run(section, seed) for seed in seeds[:n_models]]
        except Unsuited as reason:
            say_once(f"{name} cannot take {section.name}: {reason}")
            continue
        yield Answer(
            name,
            "peer",
            lambda number, vectors=vectors: vectors[number % len(vectors)],
            cost=(cost["seconds"] / len(vectors), 0.0, cost["peak_mb"]),
        )


class Unsuited(Exception):
    """A peer needs something that a section has not."""


def scviva(section: Section, seed: int) -> np.ndarray:
    """scVIVA on raw counts, given cell types (which no other method gets) and the cell's components."""
    import scvi

    if not section.is_counts or "cell_type" not in section.adata.obs:
        raise Unsuited("it needs raw counts and cell types")
    adata = section.adata.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).astype("category")
    adata.layers["counts"] = adata.X.copy()
    adata.obs["sample"] = section.name
    adata.obsm["X_pca"] = cell_pcs(section.expression).astype(np.float32)
    model_class = scvi.external.SCVIVA
    setup = {
        "labels_key": "cell_type",
        "sample_key": "sample",
        "cell_coordinates_key": _keys.SPATIAL,
        "expression_embedding_key": "X_pca",
    }
    with quiet(seed):
        model_class.preprocessing_anndata(adata, k_nn=20, **setup)
        model_class.setup_anndata(adata, layer="counts", batch_key="sample", **setup)
        model = model_class(adata)
        model.train(max_epochs=SCVIVA_EPOCHS, accelerator="cpu", enable_progress_bar=False)
        return np.asarray(model.get_latent_representation())


SCVIVA_EPOCHS = 200


def banksy(section: Section, seed: int) -> np.ndarray:
    """BANKSY as its authors set it for domains (λ .8, 15 neighbours, one gradient), its twenty components."""
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy

    adata = _logged(section)
    unseen = {"plt_edge_hist": False, "plt_nbr_weights": False, "plt_theta": False}
    with quiet(seed):
        keys = ("x", "y", _keys.SPATIAL)
        weights = initialize_banksy(adata, keys, num_neighbours=15, max_m=1, **unseen)
        _, matrix = generate_banksy_matrix(adata, weights, [0.8], max_m=1, verbose=False)
    from sklearn.decomposition import PCA

    values = np.nan_to_num(np.asarray(matrix.X, dtype=np.float64))  # a gene without variance has no z-score
    return PCA(n_components=20, random_state=seed).fit_transform(values)


def novae(section: Section, seed: int) -> np.ndarray:
    """Novae, trained on the section with its defaults; no published weights are fetched."""
    import novae as package

    adata = _logged(section)
    with quiet(seed):
        package.spatial_neighbors(adata, verbose=False)
        model = package.Novae(adata)
        model.fit(enable_progress_bar=False)
        model.compute_representations()
    latent = np.asarray(adata.obsm["novae_latent"], dtype=np.float64)
    # cells outside the graph have no answer
    return np.where(np.isfinite(latent), latent, np.nanmean(latent, axis=0))


def _logged(section: Section) -> Any:
    """Cells × genes, log-normalised, with coordinates."""
    import anndata

    return anndata.AnnData(
        section.expression.astype(np.float32),
        obs=pd.DataFrame(index=section.adata.obs_names.astype(str)),
        var=pd.DataFrame(index=section.adata.var_names),
        obsm={_keys.SPATIAL: section.xy},
    )


PEERS: dict[str, tuple[str, Callable[[Section, int], np.ndarray]]] = {
    "BANKSY": ("banksy", banksy),
    "Novae": ("novae", novae),
    "scVIVA": ("scvi.external:SCVIVA", scviva),
}


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed scvi-tools, and keep its warnings and bars to itself; the seeds of the process are put back."""
    import logging
    import warnings

    import scvi

    from stgen.nn._random import global_random_state_kept

    loggers = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        # what it prints would stand in the middle of our tables
        with global_random_state_kept(), warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            scvi.settings.seed = seed
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ------------------------------------------------------------------------------------------------------------------ run


def run(options: Options, command: str) -> tuple[Results, dict[str, Any], list[dict[str, Any]]]:
    """Score all methods on all sections."""
    results, about, start = Results(), {}, time.perf_counter()
    for dataset in options.datasets:
        sections = read_sections(options.data, dataset)
        plan = PLANS.get(dataset, DatasetPlan())
        about[dataset] = {
            "headline": ZERO_SHOT if plan.zero_shot and len(sections) > 1 else ON_SECTION,
            "sections": {s.name: describe(s) for s in sections},
        }
        models = Models(sections, options)
        for section in scored(sections):
            for answer in answers_of(section, models, plan, options):
                add(results, section, answer, options.seeds)
                _progress(start, section, answer, results)
    meta = {
        "benchmark": "niches",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": {k: v for k, v in asdict(options).items() if k != "data" and v is not None},
        "datasets": about,
        "clusterer": "stgen.baselines.cluster_niches: Gaussian mixture on at most 30 components; full covariance from "
        "1,500 cells, diagonal below (`…_full`: always full)",
        "meaning": MEANING,
        "seconds": time.perf_counter() - start,
    }
    return results, meta, paired_of(results, about)


def answers_of(section: Section, models: Models, plan: DatasetPlan, options: Options) -> Iterator[Answer]:
    """Every method on one section."""
    if options.ablations:
        yield from ablated(models, section)
        return
    yield from baselines_of(section, options.seeds)
    if options.with_model and has_gest():
        yield from gest_answers(models, section, plan)
    yield from peers_of(section, options.peers, options.seeds, options.n_models)


def add(results: Results, section: Section, answer: Answer, seeds: Sequence[int]) -> None:
    """Cluster an answer under every seed and keep the scores."""
    for number, seed in enumerate(seeds):
        place = Place(section.dataset, section.name, answer.fold, seed)
        for metric, value in scores_of(section, answer.by_seed(number), seed).items():
            results.add(place, answer.method, answer.kind, metric, "", value)
    if answer.cost is not None:
        results.costs.append(Cost(section.dataset, answer.method, *answer.cost))


def describe(section: Section) -> dict[str, Any]:
    """What a reader must know about a section."""
    found: dict[str, Any] = {
        "n_cells": int(section.adata.n_obs),
        "n_genes": int(section.adata.n_vars),
        "x_type": section.x_type,
        "n_dropped_set_aside": section.n_dropped,
    }
    if section.labels is not None:
        found["n_labels"] = len(np.unique(section.labels))
        found["n_unassigned"] = int((~section.is_assigned).sum())
    return found


def paired_of(results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every model and peer against all others, by dataset; the headline also over all datasets."""
    if not results.rows:
        return []
    table = pd.DataFrame(results.rows)
    table = table[table["metric"].isin(COMPARED)]
    entries = []
    for (dataset, metric), rows in table.groupby(["dataset", "metric"], sort=False):
        wide = rows.pivot_table("value", ["section", "seed"], "method", sort=False)
        entries += [
            entry
            for method in wide
            if results.kinds[method] in ("model", "peer")
            for other in wide
            if other != method
            for entry in [_difference(wide, dataset, method, other, metric, results.kinds)]
        ]
    return [*entries, *overall_of(table, about, results.kinds)]


def _difference(
    wide: pd.DataFrame, dataset: str, method: str, other: str, metric: str, kinds: Mapping[str, str]
) -> dict[str, Any]:
    values = (wide[method] - wide[other]).dropna()
    by_place = {
        Place(dataset, section, section, int(seed)): float(value) for (section, seed), value in values.items()
    }
    head = {"dataset": dataset, "method": method, "against": other, "against_kind": kinds[other]}
    return head | {"metric": metric, "scale": "", "smaller_is_better": False} | paired_by_unit(by_place)


def overall_of(
    table: pd.DataFrame, about: Mapping[str, Any], kinds: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The headline against what every dataset has, each dataset counting the same."""
    table = table[table["dataset"].isin(OVERALL)]
    means = table.groupby(["metric", "dataset", "section", "method"], sort=False)["value"].mean()
    by_method = means.groupby(level=["metric", "dataset", "method"]).mean().unstack("method")
    entries = []
    for metric in COMPARED:
        if metric not in by_method.index.get_level_values("metric"):
            continue
        values = by_method.loc[metric]
        headline = [about[dataset]["headline"] for dataset in values.index]
        if not set(headline) <= set(values.columns):
            continue
        own = np.array([values.loc[d, method] for d, method in zip(values.index, headline, strict=True)])
        wide = (own[:, None] - values).dropna(axis=1)
        for other in wide:
            if other in (ZERO_SHOT, CONTINUED, ON_SECTION):
                continue
            low, high = metrics.bootstrap_interval(wide[other].to_numpy())
            head = {"dataset": "overall", "method": HEADLINE, "against": other, "against_kind": kinds[other]}
            difference = float(wide[other].mean())
            by = {name: float(value) for name, value in wide[other].items()}
            entries.append(head | {"metric": metric, "scale": "", "smaller_is_better": False, "difference": difference, "low": low, "high": high, "n_units": len(by), "by_dataset": by})  # fmt: skip
    return entries


def _progress(start: float, section: Section, answer: Answer, results: Results) -> None:
    values = [
        row.value
        for row in results.rows
        if (row.dataset, row.section, row.method, row.metric)
        == (section.dataset, section.name, answer.method, "ami")
    ]
    print(
        f"[{time.perf_counter() - start:6.0f} s] {section.dataset} {section.name}: {answer.method} "
        f"ami {np.mean(values):.3f} ± {np.std(values):.3f}",
        file=sys.stderr,
        flush=True,
    )


def say(results: Results, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
    """Print a table per metric, and differences of the headline."""
    table = pd.DataFrame(results.rows)
    order = list(dict.fromkeys(table["method"]))
    kind = pd.Series(results.kinds).reindex(order).rename("kind")
    for name, note in meta["datasets"].items():
        for section, facts in note["sections"].items():
            if "n_labels" in facts:
                print(
                    f"{name} {section}: {facts['n_cells']} cells ({facts['n_dropped_set_aside']} set aside dropped), "
                    f"{facts['n_genes']} genes, {facts['x_type']}, {facts['n_labels']} labels, "
                    f"{facts['n_unassigned']} cells unassigned"
                )
    if meta["options"].get("max_epochs"):
        print(f"!! GeST was trained for {meta['options']['max_epochs']} epoch(s), not its default")
    for metric in ("ami", "ami_full", "ami_assigned", "ari", "nmi"):
        wide = table[table["metric"] == metric].pivot_table("value", "method", "section", sort=False)
        heading(f"{metric}, mean over seeds {', '.join(map(str, meta['seeds']))}")
        show(pd.concat([kind, wide.reindex(order)], axis=1))
    shown = [
        {
            "dataset": entry["dataset"],
            "method": entry["method"],
            "against": entry["against"],
            "kind": entry["against_kind"],
            "metric": entry["metric"],
            "difference": f"{entry['difference']:+.3f}",
            "95 %": "–" if math.isnan(entry["low"]) else f"[{entry['low']:+.3f}, {entry['high']:+.3f}]",
        }
        for entry in paired
        if entry["metric"] in ("ami", "ami_full")
        and (
            entry["against_kind"] in ("null", "baseline", "oracle", "peer")
            or (entry["method"] in SETTINGS and entry["against"] == ON_SECTION)
        )
    ]
    if shown:
        heading("Paired differences of AMI")
        show(pd.DataFrame(shown).set_index("dataset"))
    heading("Cost of one fit")
    show(pd.DataFrame(results.total_costs()).set_index(["dataset", "method"]), digits=2)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the folders of sections")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--datasets", help=f"folders of DIR; default {','.join(PLANS)}")
    parser.add_argument("--seeds", help="seeds of the clusterer, default 0,1,2,3,4")
    parser.add_argument("--models", type=int, help="models trained per setting, default 2")
    parser.add_argument("--quick", action="store_true", help="three datasets, one model per setting")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--max-epochs", type=int, help="train GeST shorter than its default")
    parser.add_argument("--baselines-only", action="store_true", help="leave GeST out")
    parser.add_argument(
        "--peers",
        nargs="?",
        const=",".join(PEERS),
        default="",
        help=f"published tools that are installed, too: all, or some of {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--ablations", action="store_true", help="GeST under other orders and windows, no baselines"
    )
    given = parser.parse_args(arguments)
    changes: dict[str, Any] = dict(QUICK) if given.quick else {}
    if given.datasets:
        known = folders_of(given.data, PLANS)
        changes["datasets"] = names_of(parser, "--datasets", given.datasets, known)
    if given.seeds:
        changes["seeds"] = tuple(int(seed) for seed in given.seeds.split(","))
    if given.models is not None:
        changes["n_models"] = given.models
    options = Options(
        data=given.data,
        quick=given.quick,
        threads=given.threads,
        max_epochs=given.max_epochs,
        with_model=not given.baselines_only,
        peers=names_of(parser, "--peers", given.peers, PEERS),
        ablations=given.ablations,
    )
    return replace(options, **changes), given.out


def main(arguments: Sequence[str] | None = None) -> None:
    options, out = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = command_of("niches", given)
    with at_rest(options.threads), kept(out, command):
        results, meta, paired = run(options, command)
    say(results, meta, paired)
    results.write(out, meta, paired)
    heading(f"written: {out.name}, after {meta['seconds']:.0f} s")


@contextmanager
def at_rest(threads: int | None) -> Iterator[None]:
    """Run with a limit of threads and without bars."""
    limit_threads(threads)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    try:
        yield
    finally:
        stg.settings.progress_bar, stg.settings.verbosity = before


if __name__ == "__main__":
    main()
