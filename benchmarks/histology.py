"""From H&E to counts: GenAR and GenST beside everything they must beat, on the same rows, in one process.

    python benchmarks/histology.py --data DIR --out FILE

Real sections (``--datasets her2st_he`` or any folder of DIR with ``NAME.h5ad`` and ``NAME_patches.h5``): one patient is
held out at a time; where all sections are of one patient, one section, and the table says so. The panel is chosen from
training rows, spots under 500 counts are dropped first and counted. The toy tissue: one patient is held out; each seed
judges on a tissue of its own, of the seeds and the parameters that were kept for judging.

Models are trained on training rows alone and asked on an AnnData that has no genes. All methods that see histology see
the same features; the mean over the 6 nearest spots is among them unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _figures import Kept, draw
from _report import MEANING as MEANING_OF_METRICS
from _report import Cost, Place, Results, Row, environment, heading, kept, measured
from _run import command_of, folders_of, limit_threads, names_of

import stgen as stg
from stgen import _keys, metrics
from stgen.baselines import HistologyBaseline, RidgeOnHistology, histology_baselines
from stgen.data._loaders import centred
from stgen.data._places import read_xy
from stgen.data._windows import neighbour_index, neighbour_mean

MIN_COUNTS = 500
N_NEIGHBORS = 6
SCALES = ("normalized", "raw")
MODEL = "GenAR"
NO_PLACE = "GenAR without place"
LINEAR = "linear path alone"
"""GenAR's ridge from histology and place, read out as GenAR reads its own distribution; nothing is trained."""
TRAINED = ("MLP", "count classifier", "contrastive retrieval")
"""Baselines that a seed changes."""
UNTRAINED = "GenAR before training"
"""All that GenAR finds before its decoder takes a step."""
GENST = "GenST"
GENST_UNTRAINED = "GenST before training"
GENST_NO_PLACE = "GenST without place"
MAX_NUMBERS = 60_000_000
"""Probabilities that are held at once."""


class ToySize(NamedTuple):
    """How large the toy tissue is."""

    n_patients: int
    sections_per_patient: int
    spots: int
    n_genes: int


TOYS = {"toy": ToySize(8, 2, 300, 120), "toy_small": ToySize(4, 2, 200, 120)}
"""``toy`` is as large as small studies are. With the 1,200 training spots of ``toy_small`` what is nonlinear in a module
can hardly be learned by anyone; the size was chosen on tuning seeds, and both are reported."""
TOY_FOLDS = 4
"""Held-out patients of one tissue."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run does."""

    data: Path | None = None
    datasets: tuple[str, ...] = ("her2st_he", *TOYS)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_genes: int = 200
    toy: ToySize | None = None
    """Size of the toy tissues; ``None`` is that of `TOYS`."""
    max_folds: int = TOY_FOLDS
    """Held-out units per dataset and seed at most (toy tissues only)."""
    max_epochs: int | None = None
    """Of GenAR; ``None`` is its own default."""
    without_place: bool = True
    models: tuple[str, ...] = (MODEL, GENST)
    """Which of our models are run."""
    baselines: tuple[str, ...] = ()
    """Names of the nulls, baselines and oracles that are run; none stands for all."""
    ablations: bool = False
    quick: bool = False
    threads: int | None = None
    figure: Path | None = None

    def has(self, name: str) -> bool:
        """Whether this null, baseline or oracle is run."""
        return not self.baselines or name in self.baselines


QUICK = {
    "seeds": (0,),
    "toy": ToySize(3, 1, 160, 60),
    "max_folds": 2,
    "datasets": ("her2st_he", "toy"),
    "without_place": False,
}
"""What ``--quick`` changes: under ten minutes on two cores."""

ABLATIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "single scale": lambda n_genes: {"scales": (n_genes,)},
    "scales (1, 20, G)": lambda n_genes: {"scales": (1, min(20, n_genes - 1), n_genes)},
    "six scales": lambda _: {"n_scales": 6},
    "no gene identity": lambda _: {"gene_modulation": False},
    "one-hot labels": lambda _: {"final_label": "onehot"},
    "no neighbour features": lambda _: {"n_neighbors": 0},
    "no blind spots": lambda _: {"blind_share": 0.0},
    "linear expert only": lambda _: {"nonlinear": False},
    "norms steered by the image": lambda _: {"steer": True},
    "categorical head": lambda _: {"head": "categorical", "n_tokens": 512},
}


# --------------------------------------------------------------------------------------------------------------- data


@dataclass
class Dataset:
    """Sections in one AnnData, and what is held out together."""

    name: str
    adata: Any
    unit_key: str
    """Column of ``obs``: patient, or section where there is one patient."""
    patient_key: str | None
    n_dropped: dict[str, int]
    flags: list[str] = field(default_factory=list)
    prefix: str = ""
    """Tells units, sections and genes of one toy tissue from those of another."""
    module: dict[str, str] = field(default_factory=dict)
    """Gene → "module" or "other"."""
    n_panel: int | None = None
    """Genes to choose from training rows; ``None`` takes all."""

    @property
    def units(self) -> list[str]:
        return sorted(self.adata.obs[self.unit_key].astype(str).unique())


def read_sections(folder: Path, n_genes: int) -> Dataset:
    """All sections of a folder: counts, places in µm, descriptors of the stored tiles."""
    import anndata

    files = sorted(folder.glob("*.h5ad"))
    if len(files) < 2:
        raise SystemExit(f"{folder} must hold at least two sections (NAME.h5ad); it holds {len(files)}.")
    sections, n_dropped = [], {}
    for file in files:
        tiles = file.with_name(f"{file.stem}_patches.h5")
        if not tiles.exists():
            raise SystemExit(
                f"{tiles.name} is missing beside {file.name}: the tiles of its spots are needed."
            )
        adata = anndata.read_h5ad(file)
        adata.obs[_keys.LIBRARY] = file.stem
        stg.pp.embed_histology(adata, tiles=tiles)
        stg.pp.coordinates_in_um(adata)
        section, n_dropped[file.stem] = without_near_empty(adata)
        sections.append(section)
    has_patients = all(_keys.PATIENT in one.obs for one in sections)
    adata = anndata.concat(sections, join="inner", index_unique=None)
    if not adata.obs_names.is_unique:
        adata.obs_names = adata.obs[_keys.LIBRARY].astype(str) + "_" + adata.obs_names
    adata = adata[:, np.sort(adata.var_names)].copy()
    n_patients = adata.obs[_keys.PATIENT].nunique() if has_patients else 0
    by_patient = n_patients > 1
    flags = []
    if not by_patient:
        whose = "all sections are of one patient" if has_patients else "patients are unknown"
        flags.append(
            f"PATIENT SHARED WITH TRAINING ({whose}): places alone predict much of the truth, and scores say nothing "
            "about new patients"
        )
    return Dataset(
        name=folder.name,
        adata=adata,
        unit_key=_keys.PATIENT if by_patient else _keys.LIBRARY,
        patient_key=_keys.PATIENT if by_patient else None,
        n_dropped=n_dropped,
        flags=flags,
        n_panel=n_genes,
    )


def make_toy(name: str, seed: int, size: ToySize) -> Dataset:
    """The toy tissue that this seed judges on."""
    from stgen.datasets import TOY_JUDGE, TOY_JUDGE_SEEDS, toy_tissue

    tissue = TOY_JUDGE_SEEDS[seed % len(TOY_JUDGE_SEEDS)]
    adata = toy_tissue(
        **TOY_JUDGE,
        n_patients=size.n_patients,
        n_sections=size.n_patients * size.sections_per_patient,
        spots_per_section=size.spots,
        n_genes=size.n_genes,
        random_state=tissue,
    )
    prefix = f"{tissue}-"
    is_module = adata.var["module"].to_numpy() >= 0
    module = {
        prefix + gene: "module" if inside else "other"
        for gene, inside in zip(adata.var_names, is_module, strict=True)
    }
    kept, n_dropped = without_near_empty(adata)
    return Dataset(
        name,
        kept,
        _keys.PATIENT,
        _keys.PATIENT,
        {f"tissue {tissue}": n_dropped},
        prefix=prefix,
        module=module,
    )


def without_near_empty(adata: Any) -> tuple[Any, int]:
    """Spots with enough counts over all genes, and how many had not."""
    is_kept = np.asarray(adata.X.sum(axis=1)).ravel() >= MIN_COUNTS
    return adata[is_kept].copy(), int((~is_kept).sum())


@dataclass
class Fold:
    """Training and held-out rows of one unit, on the panel of its training rows."""

    unit: str
    train: Any
    test: Any
    near: dict[str, np.ndarray]
    """Histology ⊕ its mean over the nearest spots, by side."""
    unit_key: str
    patient_key: str | None

    def side(self, which: str) -> Any:
        return self.train if which == "train" else self.test

    def counts(self, which: str) -> np.ndarray:
        return np.asarray(self.side(which).X.toarray(), dtype=np.float64)

    def column(self, which: str, key: str = _keys.LIBRARY) -> np.ndarray:
        return self.side(which).obs[key].astype(str).to_numpy()

    def xy(self, which: str) -> np.ndarray:
        return read_xy(self.side(which))

    @property
    def target(self) -> float:
        return metrics.panel_target(self.counts("train"))


def make_fold(dataset: Dataset, unit: str) -> Fold:
    adata = dataset.adata
    is_test = (adata.obs[dataset.unit_key].astype(str) == unit).to_numpy()
    genes = adata.var_names
    if dataset.n_panel is not None:
        stg.pp.gene_panel(adata, n_genes=min(dataset.n_panel, adata.n_vars), train=~is_test)
        genes = adata.uns[_keys.PANEL]["genes"]
    own = np.asarray(adata.obsm[_keys.HISTOLOGY], dtype=np.float32)
    index = neighbour_index(read_xy(adata), adata.obs[_keys.LIBRARY].to_numpy(), n_neighbors=N_NEIGHBORS)
    near = np.concatenate([own, neighbour_mean(own, index)], axis=1)
    return Fold(
        unit=unit,
        train=adata[~is_test, list(genes)].copy(),
        test=adata[is_test, list(genes)].copy(),
        near={"train": near[~is_test], "test": near[is_test]},
        unit_key=dataset.unit_key,
        patient_key=dataset.patient_key,
    )


# ------------------------------------------------------------------------------------------------------------ methods


class Answer(NamedTuple):
    """What a method says about the held-out rows."""

    method: str
    kind: str
    on_scale: dict[str, np.ndarray]
    has_units: bool
    costs: list[tuple[float, float, float]]
    """Training seconds, prediction seconds, peak memory of each fit."""
    distribution: dict[str, np.ndarray] | None = None
    """What calibration needs, spots × genes each."""
    facts: dict[str, float] | None = None
    """Other numbers about the fitted model, by metric."""


class RidgeWithPlace(HistologyBaseline):
    """Ridge from histology and the plane waves of place that GenAR is given: what place alone buys.

    Penalty and weight of place are those with the smallest error on left-out training units.
    """

    name = "ridge with place"
    kind = "baseline"
    needs_histology = True

    def _fit(self, rows: Any, y: np.ndarray) -> None:
        from stgen.experts._ridge import PENALTIES, PLACE_SCALES

        features = rows.histology.astype(np.float64)
        self.mean_, self.sd_ = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        self.extent_ = max(float(np.abs(rows.xy).max()), 1.0)
        waves, features = self._waves(rows.xy), self._standardised(features)
        folds = [rows.section == unit for unit in np.unique(rows.section)]
        if len(folds) < 2:  # one unit: leave out a fifth at a time
            part = np.random.default_rng(self.random_state).integers(5, size=len(y))
            folds = [part == p for p in range(5)]
        best = np.inf
        for scale in PLACE_SCALES:
            x = np.concatenate([features, scale * waves], axis=1)
            error = np.zeros(len(PENALTIES))
            for out in folds:
                for i, (weight, offset) in enumerate(ridges(x[~out], y[~out], PENALTIES)):
                    error[i] += (((x[out] @ weight + offset) - y[out]) ** 2).sum(axis=0) @ (1 / y.var(axis=0).clip(1e-9))  # fmt: skip
            if error.min() < best:
                best, self.place_scale_, self.penalty_ = error.min(), scale, PENALTIES[int(error.argmin())]
        x = np.concatenate([features, self.place_scale_ * waves], axis=1)
        ((self.weight_, self.offset_),) = ridges(x, y, [self.penalty_])

    def _predict(self, rows: Any) -> np.ndarray:
        features = self._standardised(rows.histology.astype(np.float64))
        x = np.concatenate([features, self.place_scale_ * self._waves(rows.xy)], axis=1)
        return x @ self.weight_ + self.offset_

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean_) / self.sd_).clip(-10, 10)

    def _waves(self, xy: np.ndarray) -> np.ndarray:
        return waves_of_place(xy, self.extent_)


def waves_of_place(xy: np.ndarray, extent: float) -> np.ndarray:
    """The plane waves that GenAR is given, for places measured from their section's centre."""
    import torch

    from stgen.experts._ridge import N_PERIODS, CrossFittedRidge
    from stgen.nn._positions import periods

    path = CrossFittedRidge(1, (1,))
    path.period.copy_(periods(N_PERIODS, 0.4 * extent, 4 * extent))
    return path.waves(torch.from_numpy(xy.astype(np.float32))).numpy().astype(np.float64)


def ridges(
    x: np.ndarray, y: np.ndarray, penalties: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights and offsets of ridge regressions, one for each penalty."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - mean_x, full_matrices=False)
    projected = u.T @ (y - mean_y)
    for penalty in penalties:
        weight = vt.T @ (projected * (s / (s**2 + penalty))[:, None])
        yield weight, mean_y - mean_x @ weight


def on_scales(counts: np.ndarray, target: float) -> dict[str, np.ndarray]:
    """Predicted counts on both scales: divided by their own panel total, and as they are."""
    return {
        "normalized": metrics.normalize_panel(counts, target=target),
        "raw": metrics.log_counts(counts),
    }


def run_baseline(
    fold: Fold,
    make: Callable[..., HistologyBaseline],
    *,
    name: str | None = None,
    neighbours: bool = True,
    placed: bool = False,
    waves: bool = False,
) -> Answer:
    """Fit a baseline to both scales (once if it predicts counts) and ask it about the held-out rows."""
    answers: dict[str, np.ndarray] = {}
    costs = []
    for scale in SCALES:
        baseline = make(scale=scale)
        side, extent = {}, 1.0
        for which in ("train", "test"):
            features = fold.near[which]
            features = features if neighbours else features[:, : features.shape[1] // 2]
            # a ridge with place leaves out what GenAR leaves out, and measures places from the section's centre
            section = fold.column(which, fold.unit_key if placed else _keys.LIBRARY)
            xy = fold.xy(which)
            if placed:
                xy = centred(xy, np.unique(fold.column(which), return_inverse=True)[1]).astype(np.float64)
            if waves:
                extent = extent if which == "test" else float(np.abs(xy).max())
                features = np.concatenate([features, waves_of_place(xy, extent)], axis=1)
            side[which] = (features if baseline.needs_histology else None), xy, section
        seen, xy, section = side["train"]
        with measured() as training:
            baseline.fit(seen, fold.counts("train"), xy, section)
        seen, xy, section = side["test"]
        truth = fold.counts("test") if baseline.kind == "oracle" else None
        with measured() as predicting:
            prediction = baseline.predict(seen, xy, section, counts=truth)
        costs.append((training["seconds"], predicting["seconds"], _larger(training, predicting)))
        if baseline.scale == "counts":
            answers = on_scales(prediction, fold.target)
            break
        answers[baseline.scale] = prediction
    return Answer(name or baseline.name, baseline.kind, answers, baseline.has_units, costs)


Rows = Iterator[tuple[str, Callable[[], Answer]]]
"""Names of rows, and how to get them."""


def closed_form_rows(fold: Fold) -> Rows:
    """Nulls, oracles, ridges and the linear path: no seed changes them."""
    for kind in (type(one) for one in histology_baselines() if one.name not in TRAINED):
        if kind is RidgeOnHistology:
            name = "ridge without neighbours"
            yield name, partial(run_baseline, fold, kind, name=name, neighbours=False)
            yield kind.name, lambda: run_baseline(fold, RidgeOnHistology)
            yield RidgeWithPlace.name, lambda: run_baseline(fold, RidgeWithPlace, placed=True)
            yield LINEAR, lambda: run_genar(fold, 0, LINEAR, kind="baseline", train=False, nonlinear=False)[0]
        else:
            yield kind.name, partial(run_baseline, fold, kind)


def trained_rows(fold: Fold, seed: int) -> Rows:
    """Baselines that are trained."""
    from stgen.baselines import ContrastiveRetrieval, CountClassifier, MLPOnHistology

    yield CountClassifier.name, lambda: run_baseline(fold, lambda scale: CountClassifier(random_state=seed))
    for kind in (MLPOnHistology, ContrastiveRetrieval):
        make, name = partial(kind, random_state=seed), f"{kind.name} with place"
        yield kind.name, partial(run_baseline, fold, make)
        yield name, partial(run_baseline, fold, make, name=name, placed=True, waves=True)


def baseline_names() -> list[str]:
    """Names of all nulls, baselines and oracles."""
    nowhere: Any = None  # rows have a name before anything is run
    return [name for name, _ in (*closed_form_rows(nowhere), *trained_rows(nowhere, 0))]


def run_genar(
    fold: Fold,
    seed: int,
    name: str = MODEL,
    *,
    kind: str = "model",
    train: bool = True,
    max_epochs: int | None = None,
    also_counts: bool = False,
    **changes: Any,
) -> list[Answer]:
    """Train GenAR with its defaults (plus ``changes``) and ask it on an AnnData without genes."""
    from stgen.models import GenAR

    model, inputs, training = fitted(GenAR, fold, seed, train=train, max_epochs=max_epochs, **changes)
    with measured() as predicting:
        normalized = model.predict(inputs, statistic="normalized", random_state=seed)
    expected = model.predict(inputs, statistic="mean", random_state=seed)
    genes = fold.test.var_names
    counts = on_scales(expected[genes].to_numpy(dtype=np.float64), fold.target)
    own = {"normalized": normalized[genes].to_numpy(dtype=np.float64), "raw": counts["raw"]}
    cost = [(training["seconds"], predicting["seconds"], _larger(training, predicting))]
    answers = [Answer(name, kind, own, True, cost, distribution_of(model, inputs, fold.test, seed))]
    if also_counts:
        answers.append(Answer(f"{name} (counts)", kind, counts, True, []))
    return answers


def run_genst(
    fold: Fold,
    seed: int,
    name: str = GENST,
    *,
    train: bool = True,
    max_epochs: int | None = None,
    **changes: Any,
) -> list[Answer]:
    """Train GenST with its defaults (plus ``changes``) and ask it on an AnnData without genes.

    Normalised expression is the decoded expected code; beside it the decoded most probable code. Expected counts
    answer on the raw scale.
    """
    from stgen.models import GenST

    model, inputs, training = fitted(GenST, fold, seed, train=train, max_epochs=max_epochs, **changes)
    genes = fold.test.var_names
    with measured() as predicting:
        soft = model.predict(inputs)[genes].to_numpy(dtype=np.float64)
    expected = model.predict(inputs, statistic="mean")[genes].to_numpy(dtype=np.float64)
    own = {"normalized": soft, "raw": metrics.log_counts(expected)}
    cost = [(training["seconds"], predicting["seconds"], _larger(training, predicting))]
    if not train:
        return [Answer(name, "model", own, True, cost)]
    code = model.predict(inputs, decode="code")[genes].to_numpy(dtype=np.float64)
    distribution = distribution_of(model, inputs, fold.test, seed)
    return [
        Answer(name, "model", own, True, cost, distribution, life_of_codes(model, fold.train)),
        Answer(f"{name} (nearest code)", "model", {"normalized": code}, True, []),
    ]


def life_of_codes(model: Any, adata: Any) -> dict[str, float]:
    """Share of the expression codes that training spots use, and their perplexity over their number."""
    from scipy.stats import entropy

    codes, n = model.codes(adata), model.config.n_codes
    usage = np.stack([np.bincount(codes[token], minlength=n) for token in codes]) / len(codes)
    return {
        "codes_used": float((usage > 0).mean()),
        "perplexity_share": float(np.exp(entropy(usage, axis=1)).mean() / n),
    }


def fitted(
    Model: Any, fold: Fold, seed: int, *, train: bool, max_epochs: int | None, **changes: Any
) -> tuple[Any, Any, dict[str, float]]:
    """A model of the training rows, the held-out rows without genes, and what training cost.

    All training rows train, for the model's own number of steps; there is no validation row that could stop it. With
    ``train=False`` only what is solved in closed form before training answers.
    """
    from anndata import AnnData

    from stgen.models._base import remove_setup_marks

    adata = fold.train.copy()
    Model.setup_anndata(adata, library_key=_keys.LIBRARY, patient_key=fold.patient_key)
    with measured() as training:
        model = Model(adata, random_state=seed, **changes)
        if train:
            model.train(max_epochs, random_state=seed)
        else:
            prepare_only(model, adata, seed)
    remove_setup_marks(adata, {})
    inputs = AnnData(
        obs=fold.test.obs[[_keys.LIBRARY]].copy(),
        obsm={_keys.HISTOLOGY: fold.test.obsm[_keys.HISTOLOGY], _keys.SPATIAL: read_xy(fold.test)},
    )
    return model, inputs, training


def prepare_only(model: Any, adata: Any, seed: int) -> None:
    """Let the network find what is solved in closed form, and take that for fitted."""
    from stgen.train._runner import prepare

    table = model._table(adata, targets=True)
    prepare(model.module, table, np.arange(adata.n_obs), random_state=seed)
    model._prepared = model.is_trained_ = True


def distribution_of(model: Any, inputs: Any, test: Any, seed: int) -> dict[str, np.ndarray]:
    """Cumulative probabilities at the truth, central intervals, and the mass below and up to their bounds.

    Section by section and a part of the genes at a time: a whole distribution is spots × genes × counts.
    """
    genes, section = list(test.var_names), test.obs[_keys.LIBRARY].astype(str).to_numpy()
    truth = np.asarray(test.X.toarray(), dtype=np.int64)
    found: dict[str, np.ndarray] = {}
    for name in np.unique(section):
        rows = np.flatnonzero(section == name)
        n_at_once = max(1, MAX_NUMBERS // (len(rows) * max(model.module.gene_vocabulary)))
        for start in range(0, len(genes), n_at_once):
            part = slice(start, start + n_at_once)
            probability = model.predict_distribution(
                inputs[rows].copy(), genes=genes[part], random_state=seed
            )
            for key, values in read_distribution(probability, truth[rows, part]).items():
                found.setdefault(key, np.empty(truth.shape))[rows, part] = values
    return found


def read_distribution(probability: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of calibration from probabilities, spots × genes × counts."""
    cumulative = np.cumsum(probability, axis=-1, out=probability)
    cumulative /= cumulative[..., -1:]

    def up_to(count: np.ndarray) -> np.ndarray:
        inside = np.clip(count, 0, cumulative.shape[-1] - 1)[..., None]
        return np.where(count < 0, 0.0, np.take_along_axis(cumulative, inside, axis=-1)[..., 0])

    found = {"below": up_to(truth - 1), "at": up_to(truth)}
    for level in (50, 90):
        tail = (1 - level / 100) / 2
        lower, upper = ((cumulative < q).sum(axis=-1) for q in (tail, 1 - tail))
        found |= {f"lower_{level}": lower, f"upper_{level}": upper}
        found |= {f"cdf_lower_{level}": up_to(lower - 1), f"cdf_upper_{level}": up_to(upper)}
    return found


def _larger(*costs: dict[str, float]) -> float:
    return float(np.nanmax([cost["peak_mb"] for cost in costs] + [0.0]))


# ---------------------------------------------------------------------------------------------------------------- run


def score(results: Results, dataset: Dataset, fold: Fold, seed: int, answer: Answer) -> None:
    """Scores of an answer, section by section."""
    counts, section = fold.counts("test"), fold.column("test")
    truth = on_scales(counts, fold.target)
    genes = [dataset.prefix + gene for gene in fold.test.var_names]
    for name in np.unique(section):
        here = section == name
        place = Place(dataset.name, dataset.prefix + name, dataset.prefix + fold.unit, seed)
        for scale, prediction in answer.on_scale.items():
            results.add_genes(
                place,
                answer.method,
                answer.kind,
                scale,
                genes,
                truth[scale][here],
                prediction[here],
                has_units=answer.has_units,
            )
        if answer.distribution is not None:
            pit = metrics.randomized_pit(
                counts[here], answer.distribution["below"][here], answer.distribution["at"][here]
            )
            results.pit.setdefault((dataset.name, answer.method, answer.kind), []).append(pit.ravel())
            for metric, value in (answer.facts or {}).items():
                results.add(place, answer.method, answer.kind, metric, "", value)
            here_only = {key: values[here] for key, values in answer.distribution.items()}
            for metric, value in calibration(counts[here], here_only).items():
                results.add(place, answer.method, answer.kind, metric, "", value)


def calibration(counts: np.ndarray, d: dict[str, np.ndarray]) -> dict[str, float]:
    """Is the predicted distribution that of the counts? All genes of one section together."""
    scores = {"pit_deviation": metrics.pit_deviation(metrics.randomized_pit(counts, d["below"], d["at"]))}
    for level in (50, 90):
        covered = metrics.interval_coverage(counts, d[f"lower_{level}"], d[f"upper_{level}"]).mean()
        mass = metrics.interval_mass(d[f"cdf_lower_{level}"], d[f"cdf_upper_{level}"]).mean()
        scores |= {f"coverage_{level}": float(covered), f"coverage_{level}_gap": float(covered - mass)}
    scores["nll"] = float(-np.log(np.maximum(d["at"] - d["below"], 1e-6)).mean())
    return scores


def datasets_of(options: Options) -> Iterator[tuple[str, Callable[[int], Dataset]]]:
    """Name, and how to get the dataset for a seed."""
    for name in options.datasets:
        if name in TOYS:
            size = options.toy or TOYS[name]
            yield name, lambda seed, name=name, size=size: make_toy(name, seed, size)
        else:
            if options.data is None:
                raise SystemExit(f"--data DIR must say where the folder {name!r} lies.")
            read = read_sections(options.data / name, options.n_genes)
            yield name, lambda seed, read=read: read


def answers_of(
    options: Options, fold: Fold, seed: int, closed_form: dict[Any, list[Answer]], key: Any
) -> Iterator[Answer]:
    """Every method on one fold; what no seed changes is computed once for each ``key``."""
    if key in closed_form:
        yield from (answer._replace(costs=[]) for answer in closed_form[key])
    else:
        answers = []
        for name, run in closed_form_rows(fold):
            if options.has(name):
                answers.append(run())
                yield answers[-1]
        closed_form[key] = answers
    epochs = options.max_epochs
    if not options.ablations:
        yield from (run() for name, run in trained_rows(fold, seed) if options.has(name))
        if GENST in options.models:
            yield from run_genst(fold, seed, GENST_UNTRAINED, train=False)
            yield from run_genst(fold, seed, max_epochs=epochs)
            yield from run_genst(fold, seed, GENST_NO_PLACE, max_epochs=epochs, use_place=False)
        if MODEL not in options.models:
            return
        yield from run_genar(fold, seed, UNTRAINED, train=False)
    yield from run_genar(fold, seed, max_epochs=epochs, also_counts=not options.ablations)
    if options.ablations:
        for name, changes in ABLATIONS.items():
            yield from run_genar(fold, seed, name, max_epochs=epochs, **changes(fold.train.n_vars))
        return
    if options.without_place:
        yield from run_genar(fold, seed, NO_PLACE, max_epochs=epochs, use_place=False)


def run(options: Options, command: str = "") -> tuple[Results, dict[str, Any], list[dict[str, Any]]]:
    """Everything that was asked for: results, meta, paired differences."""
    start = time.perf_counter()
    results, about = Results(), {}
    pictures: list[Path] = []
    for name, dataset_of in datasets_of(options):
        closed_form: dict[Any, list[Answer]] = {}
        kept: list[Kept] = []
        for seed in options.seeds:
            dataset = dataset_of(seed)
            describe(about.setdefault(name, {}), dataset)
            if dataset.module:
                results.subsets.setdefault(name, {}).update(dataset.module)
            units = dataset.units[: options.max_folds] if name in TOYS else dataset.units
            for unit in units:
                fold = make_fold(dataset, unit)
                key = dataset.prefix + unit
                for answer in answers_of(options, fold, seed, closed_form, key):
                    score(results, dataset, fold, seed, answer)
                    if (
                        answer.method == MODEL
                        and answer.distribution is not None
                        and seed == options.seeds[0]
                    ):
                        kept.append(
                            Kept(fold.test, MODEL, answer.on_scale["normalized"], answer.distribution)
                        )
                    results.costs += [Cost(name, answer.method, *cost) for cost in answer.costs]
                    _progress(start, name, seed, unit, answer, results)
        for (of, method, kind), pits in results.pit.items():
            if (
                of == name
            ):  # the shift of one section's depth says little; all held-out sections together say more
                everything = Place(name, "all sections", "all", -1)
                value = metrics.pit_deviation(np.concatenate(pits))
                results.add(everything, method, kind, "pit_deviation_pooled", "", value)
        if options.figure is not None and kept:
            pictures += draw(options.figure, name, results, kept)
    meta = {
        "benchmark": "histology",
        "command": command,
        "seeds": list(options.seeds),
        "quick": options.quick,
        "versions": environment(),
        "options": {
            key: value
            for key, value in asdict(options).items()
            if key not in ("data", "figure") and value is not None
        },
        "datasets": about,
        "min_counts": MIN_COUNTS,
        "meaning": MEANING_OF_METRICS,
        "validation": "none: GenAR trains on all training rows for its default number of steps",
        "pictures": [path.name for path in pictures],
        "seconds": time.perf_counter() - start,
    }
    return results, meta, paired_of(results, options)


def paired_of(results: Results, options: Options) -> list[dict[str, Any]]:
    """GenAR against all others; without place too; each ablation against the default."""
    if not options.ablations:
        return [e for method in (MODEL, NO_PLACE, GENST, GENST_NO_PLACE) for e in results.paired(method)]
    against_default = [entry for name in ABLATIONS for entry in results.paired(name, [MODEL])]
    return [*results.paired(MODEL), *against_default]


def describe(about: dict[str, Any], dataset: Dataset) -> None:
    """What a reader must know about the rows; said once in the meta block."""
    about.setdefault("n_dropped_under_min_counts", {}).update(dataset.n_dropped)
    about.setdefault("flags", dataset.flags)
    about.setdefault("held_out", f"one {dataset.unit_key} at a time")
    about.setdefault("n_spots", {})[dataset.prefix.rstrip("-") or dataset.name] = int(dataset.adata.n_obs)
    about.setdefault("panel", "all genes" if dataset.n_panel is None else f"{dataset.n_panel} genes by mean and SD ranks of training rows")  # fmt: skip
    if dataset.name in TOYS:
        from stgen.datasets import TOY_JUDGE

        about.setdefault("parameters", dict(TOY_JUDGE))


def _progress(start: float, name: str, seed: int, unit: str, answer: Answer, results: Results) -> None:
    last: Row | None = next(
        (row for row in reversed(results.rows) if (row.metric, row.scale) == ("pearson", "normalized")), None
    )
    value = f"{last.value:.3f}" if last is not None else "–"
    print(
        f"[{time.perf_counter() - start:6.0f} s] {name} seed {seed} without {unit}: {answer.method} {value}",
        file=sys.stderr,
        flush=True,
    )


def say(results: Results, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
    """Print the tables of all datasets, flags first."""
    for name, about in meta["datasets"].items():
        title = f"{name}: {about['held_out']} held out; seeds {', '.join(map(str, meta['seeds']))}"
        print(f"\n{'=' * len(title)}\n{title}\n{'=' * len(title)}")
        for flag in about["flags"]:
            print(f"!! {flag}")
        dropped = ", ".join(f"{key} {n}" for key, n in about["n_dropped_under_min_counts"].items())
        print(f"spots under {MIN_COUNTS} counts, dropped: {dropped}; panel: {about['panel']}")
        if meta["options"].get("max_epochs"):
            print(f"!! GenAR was trained for {meta['options']['max_epochs']} epoch(s), not its default")
        results.say(name, paired)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options and output file from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds the folders of real sections")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--datasets", help="folders of DIR, 'toy' and 'toy_small'; default her2st_he,toy,toy_small"
    )
    parser.add_argument("--seeds", help="seeds of trained methods, default 0,1,2")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, smaller toy tissue, no place-free GenAR"
    )
    parser.add_argument(
        "--with-place", action="store_true", help="leave out GenAR without place, the slowest row"
    )
    parser.add_argument("--models", help=f"which of {MODEL} and {GENST} are run, default both")
    parser.add_argument(
        "--baselines", help="names of the nulls, baselines and oracles that are run, default all"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--max-epochs", type=int, help="train GenAR shorter than its default (for trying the script)"
    )
    parser.add_argument(
        "--ablations",
        action="store_true",
        help="a run of its own: GenAR and its ablations beside closed-form rows, on the toy tissue, two patients of each",
    )
    parser.add_argument("--figure", type=Path, help="folder for gene maps, score plots and calibration")
    given = parser.parse_args(arguments)
    changes: dict[str, Any] = {}
    if given.ablations:
        changes |= {"datasets": ("toy",), "max_folds": 2, "toy": ToySize(4, 2, 150, 100)}
    if given.quick:
        changes |= QUICK
    if given.with_place:
        changes["without_place"] = False
    if given.datasets:
        known = folders_of(given.data, (*TOYS, *Options.datasets))
        changes["datasets"] = names_of(parser, "--datasets", given.datasets, known)
    elif given.data is None:
        changes["datasets"] = tuple(n for n in changes.get("datasets", Options.datasets) if n in TOYS)
    if given.seeds:
        changes["seeds"] = tuple(int(seed) for seed in given.seeds.split(","))
    if given.baselines:
        changes["baselines"] = names_of(parser, "--baselines", given.baselines, baseline_names())
    if given.models:
        changes["models"] = names_of(parser, "--models", given.models, (MODEL, GENST))
    options = replace(
        Options(
            data=given.data,
            quick=given.quick,
            threads=given.threads,
            max_epochs=given.max_epochs,
            ablations=given.ablations,
            figure=given.figure,
        ),
        **changes,
    )
    return options, given.out


def main(arguments: Sequence[str] | None = None) -> None:
    options, out = parse(arguments)
    limit_threads(options.threads)
    before = stg.settings.progress_bar, stg.settings.verbosity
    stg.settings.progress_bar, stg.settings.verbosity = False, "error"
    command = command_of("histology", sys.argv[1:] if arguments is None else arguments)
    try:
        with kept(out, command):
            results, meta, paired = run(options, command)
    finally:
        stg.settings.progress_bar, stg.settings.verbosity = before
    say(results, meta, paired)
    results.write(out, meta, paired)
    heading(f"written: {out.name}, after {meta['seconds']:.0f} s")


if __name__ == "__main__":
    main()
