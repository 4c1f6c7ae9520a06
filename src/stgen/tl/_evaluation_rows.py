"""Which spots may be scored, and what has to be said about them.

Traps of published evaluations that are blocked or flagged here: a patient or section on both sides of the split,
sections that the model was trained on, a truth that is itself a prediction, near-empty spots, genes lost by name.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._warn import warn
from stgen.data._fields import _row_blocks as row_blocks
from stgen.data._fields import check_counts, read_counts, some
from stgen.data._names import spelling_hint
from stgen.data._places import library_column, read_places
from stgen.data._predictions import Prediction
from stgen.data._splits import read_split
from stgen.pp._editing import obs_column

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

MIN_GENE_OVERLAP = 0.5
SMALL_SECTION = 100

TRAIN_SECTIONS = "train_sections"
TRAIN_PATIENTS = "train_patients"
SEEN = "seen_in_training"
"""Where a prediction's record in ``uns`` may say what its model was trained on."""


class Scored(NamedTuple):
    """The spots and genes of one evaluation, all in memory."""

    rows: np.ndarray
    """Row numbers in the AnnData of the spots that are kept."""
    counts: np.ndarray
    """True counts, kept spots × genes of the panel."""
    xy: np.ndarray
    """µm; NaN where there are no places."""
    section: np.ndarray
    is_train: np.ndarray
    is_test: np.ndarray
    genes: pd.Index
    n_dropped: dict[str, int]
    """Near-empty test spots by section."""
    flags: list[str]

    @property
    def has_places(self) -> bool:
        return bool(np.isfinite(self.xy).all())

    @property
    def sections(self) -> list[str]:
        """Sections that are scored."""
        return sorted(set(self.section[self.is_test]))


def scored_rows(
    adata: AnnData,
    predictions: Sequence[Prediction],
    *,
    truth: str | None,
    groups: str | None,
    patient_key: str | None,
    split_key: str | None,
    spatial_key: str,
    min_counts: float,
    allow_shared_patients: bool,
) -> Scored:
    """Check everything that could make a score lie, then read what is scored."""
    X = _truth(adata, truth, predictions)
    genes, lost = common_genes(adata.var_names, predictions)
    column = library_column(adata, groups, usual=_keys.LIBRARY)
    xy = _places(adata, spatial_key, column)
    section = _sections(adata, column)
    is_train, is_validation, is_test = _split(adata, split_key)
    flags = [lost] if lost else []
    flags += _shared(adata, section, is_train | is_validation, is_test, patient_key, allow_shared_patients)
    flags += _seen(adata, predictions, section, is_test, patient_key, allow_shared_patients)
    flags += _seen_spots(adata, predictions, split_key, allow_shared_patients)

    total = np.concatenate([np.asarray(block.sum(axis=1), dtype=float).ravel() for block in row_blocks(X)])
    counts = read_counts(X, adata.var_names.get_indexer(genes))
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, dtype=np.float64)
    is_kept = (total >= min_counts) & (counts.sum(axis=1) > 0)
    names = sorted(set(section[is_test]))
    n_dropped = {name: int((~is_kept & is_test & (section == name)).sum()) for name in names}
    _report_dropped(n_dropped, int(is_test.sum()), min_counts)
    rows = np.flatnonzero(is_kept & (is_train | is_test))
    _check_predicted(predictions, rows[is_test[rows]])
    found = Scored(
        rows, counts[rows], xy[rows], section[rows], is_train[rows], is_test[rows], genes, n_dropped, flags
    )
    if len(found.sections) == 1:
        found.flags.append("one section")
    small = [
        name for name in found.sections if (found.is_test & (found.section == name)).sum() < SMALL_SECTION
    ]
    if small:
        found.flags.append(f"sections under {SMALL_SECTION} spots: {some(small)}")
    if not found.has_places:
        found.flags.append("no places")
    if not found.is_train.any():
        found.flags.append("no training rows")
    return found


def _places(adata: AnnData, key: str, library_key: str | None) -> np.ndarray:
    """Coordinates; NaN if there are none, which is no reason not to score."""
    if key != _keys.SPATIAL or {_keys.SPATIAL, _keys.SPATIAL_UM} & set(adata.obsm):
        return read_places(adata, key, library_key).xy
    warn(
        f"obsm[{key!r}] does not exist: nulls, baselines and metrics that look at places are left out, and intervals are over "
        "whole sections. Name the places with `spatial_key=`."
    )
    return np.full((adata.n_obs, 2), np.nan)


def common_genes(var_names: pd.Index, predictions: Sequence[Prediction]) -> tuple[pd.Index, str]:
    """Genes that all predictions and the truth have, in the order of the truth, and what was lost."""
    common = pd.Index(var_names).astype(str)
    lost = []
    for prediction in predictions:
        is_known = prediction.genes.isin(var_names)
        n_genes, n_known = len(is_known), int(is_known.sum())
        if n_known < MIN_GENE_OVERLAP * n_genes or n_known == 0:
            raise ValueError(
                f"Only {n_known} of the {n_genes} genes of {prediction.key!r} are in `var_names`; at least "
                f"{MIN_GENE_OVERLAP:.0%} must be. It has {some(prediction.genes)}; `var_names` has {some(var_names)}. "
                f"Use the same kind of gene names.{spelling_hint(prediction.genes, var_names)}"
            )
        if n_known < n_genes:
            lost.append(f"{n_genes - n_known} of {n_genes} genes of {prediction.key} are not in the truth")
            hint = spelling_hint(prediction.genes[~is_known], var_names)
            if hint:
                warn(f"{lost[-1]}.{hint}")
        common = common[common.isin(prediction.genes)]
    if len(common) == 0:
        has = "; ".join(f"{prediction.key!r} has {some(prediction.genes)}" for prediction in predictions)
        raise ValueError(f"The predictions have no gene in common: {has}. Evaluate them one by one.")
    if len(common) < max(len(prediction.genes) for prediction in predictions) and len(predictions) > 1:
        has = ", ".join(f"{prediction.key} has {len(prediction.genes)}" for prediction in predictions)
        lost.append(f"compared on the {len(common)} genes common to all predictions and the truth ({has})")
        lost += [
            f"{prediction.key}, normalized over its {len(prediction.genes)} genes, is brought to their total"
            for prediction in predictions
            if prediction.scale == "normalized" and len(prediction.genes) > len(common)
        ]
    if lost:
        logger.warning("%s.", "; ".join(lost))
    return common, "; ".join(lost)


def _truth(adata: AnnData, truth: str | None, predictions: Sequence[Prediction]) -> Any:
    if truth is None:
        X, name = adata.X, "X"
        if X is None:
            raise ValueError(
                "There is no truth: `X` is empty. Name the layer of the measured counts with `truth=`."
            )
    else:
        if truth not in adata.layers:
            layers = [key for key in adata.layers if key is not None]
            raise KeyError(f"layers[{truth!r}] does not exist; layers has {layers}.")
        X, name = adata.layers[truth], f"layers[{truth!r}]"
        record = adata.uns.get(truth)
        if truth in {prediction.key for prediction in predictions} or (
            isinstance(record, dict) and "params" in record
        ):
            raise ValueError(
                f"layers[{truth!r}] is itself a prediction (uns[{truth!r}] says how it was made). "
                "Only measured counts can be the truth."
            )
    check_counts(X, name, "truth")
    return X


def _sections(adata: AnnData, column: str | None) -> np.ndarray:
    if column is None:
        return np.full(adata.n_obs, "all", dtype=object)
    return obs_column(adata, column).to_numpy(dtype=object)


def _split(adata: AnnData, split_key: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if split_key is None:
        nothing = np.zeros(adata.n_obs, dtype=bool)
        return nothing, nothing, ~nothing
    if split_key not in adata.obs:
        raise KeyError(
            f"obs[{split_key!r}] does not exist; obs has {list(adata.obs.columns)}. Write it with `stg.pp.split` before "
            "training, or say `split_key=None` to score all spots, without any null that needs training rows."
        )
    roles = read_split(adata.obs, split_key)
    if not roles.test.any():
        raise ValueError(
            f"obs[{split_key!r}] calls no spot {_keys.TEST!r}; it has {roles.counted()}. Scores on spots that "
            "training or stopping has seen would be meaningless."
        )
    return roles.train, roles.validation, roles.test


def _patients(adata: AnnData, patient_key: str | None) -> np.ndarray | None:
    if patient_key is None:
        if _keys.PATIENT not in adata.obs:
            return None
        patient_key = _keys.PATIENT
    return obs_column(adata, patient_key).to_numpy(dtype=object)


def _shared(
    adata: AnnData,
    section: np.ndarray,
    is_seen: np.ndarray,
    is_test: np.ndarray,
    patient_key: str | None,
    is_allowed: bool,
) -> list[str]:
    """Patients, or without them sections, that are on both sides of the split."""
    if not is_seen.any():
        return []
    patient = _patients(adata, patient_key)
    flags = [] if patient is not None else ["patients unknown"]
    for what, column in (("patient", patient), ("section", section)):
        both = [] if column is None else sorted(set(column[is_seen]) & set(column[is_test]))
        if not both:
            continue
        if not is_allowed:
            raise ValueError(
                f"{what.capitalize()} {some(both)} is in both training and evaluation: places alone then predict much of "
                "the truth, and scores say nothing about new patients. Split by patient (`stg.pp.split`), or say "
                "`allow_shared_patients=True`, which flags the table."
            )
        flags.append(f"{what} shared with training: {some(both)}")
    return flags


def _seen(
    adata: AnnData,
    predictions: Sequence[Prediction],
    section: np.ndarray,
    is_test: np.ndarray,
    patient_key: str | None,
    is_allowed: bool,
) -> list[str]:
    """Evaluated sections and patients that a prediction's own record names as training data."""
    evaluated = {TRAIN_SECTIONS: section, TRAIN_PATIENTS: _patients(adata, patient_key)}
    flags = []
    for prediction, (key, column) in itertools.product(predictions, evaluated.items()):
        named = _recorded(adata, prediction, key)
        seen = [] if column is None else sorted(set(map(str, np.atleast_1d(named))) & set(column[is_test]))
        if not seen:
            continue
        if not is_allowed:
            raise ValueError(
                f"The model behind {prediction.key!r} was trained on {some(seen)} (uns[{prediction.key!r}]), which is "
                "evaluated here. Evaluate others, or say `allow_shared_patients=True`, which flags the table."
            )
        flags.append(f"{prediction.key} was trained on {some(seen)}")
    return flags


def _seen_spots(
    adata: AnnData, predictions: Sequence[Prediction], split_key: str | None, is_allowed: bool
) -> list[str]:
    """Predictions whose record says that the model was trained on spots of this AnnData, which a section need not tell."""
    flags = []
    for prediction in predictions:
        seen = _recorded(adata, prediction, SEEN)
        n_spots = int(seen.get("n_spots", 0)) if hasattr(seen, "get") else 0
        if n_spots and split_key is None and not is_allowed:
            raise ValueError(
                f"The model behind {prediction.key!r} was trained on {n_spots} of these spots (uns[{prediction.key!r}]), and "
                "without a split all of them are evaluated. Name the column that tells test spots apart with `split_key=`, or "
                "say `allow_shared_patients=True`, which flags the table."
            )
        if n_spots:
            flags.append(f"{prediction.key} was trained on {n_spots} spots of this AnnData")
    return flags


def _recorded(adata: AnnData, prediction: Prediction, key: str) -> Any:
    """What the record of a prediction says, or that of the prediction it was derived from."""
    record = prediction.record
    for _ in range(2):
        params = record.get("params", {})
        params = params if hasattr(params, "get") else {}
        if key in record or key in params:
            return record.get(key, params.get(key))
        record = adata.uns.get(params.get("of", ""), {})
        if not hasattr(record, "get"):
            break
    return []


def _report_dropped(n_dropped: dict[str, int], n_test: int, min_counts: float) -> None:
    n = sum(n_dropped.values())
    if 2 * n > n_test:
        raise ValueError(
            f"{n} of {n_test} evaluated spots have fewer than {min_counts:g} counts. Set `min_counts=` to what is near "
            "empty in this assay, or check that the truth holds all measured genes."
        )
    if n:
        logger.info(
            "%d of %d evaluated spots have fewer than %g counts and are dropped.", n, n_test, min_counts
        )


def _check_predicted(predictions: Sequence[Prediction], rows: np.ndarray) -> None:
    for prediction in predictions:
        values = prediction.block(rows, prediction.genes)
        n_missing = int(np.isnan(values).all(axis=1).sum())
        if n_missing:
            raise ValueError(
                f"{prediction.key!r} has no prediction (only NaN) for {n_missing} of {len(rows)} evaluated spots. "
                "Predict all of them: a spot that is left out may not make a score better."
            )
        if prediction.scale == "counts" and np.nanmin(values) < 0:
            raise ValueError(
                f"{prediction.key!r} is taken for counts but has negative values, the lowest {np.nanmin(values):.4g}. "
                f"Say what it is, for example `scale={{{prediction.key!r}: 'normalized'}}`."
            )
