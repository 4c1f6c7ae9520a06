"""Score predictions beside what they must beat.

The rules of this file are there because each was broken somewhere in print: scores per section and then averaged;
depth-normalised expression first and raw counts beside it; all genes of the panel; undefined values counted; nulls
fitted on training rows and printed by default; no patient on both sides of the split.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.baselines import HistologyBaseline, fit_predict, histology_baselines
from stgen.data._predictions import Prediction, evaluation_column, read_prediction, rescaled
from stgen.data._windows import neighbour_index, neighbour_mean
from stgen.metrics import log_counts, normalize_panel, panel_target
from stgen.pp._editing import check_adata, editable

from ._evaluation_pairs import pairs_table
from ._evaluation_rows import Scored, scored_rows
from ._evaluation_table import (
    COLUMNS,
    CORRELATIONS,
    ERRORS,
    MEAN,
    USE,
    BlockBootstrap,
    GeneGains,
    Method,
    Scores,
    build_table,
    headline_first,
    summary_table,
)

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

METRICS = ("pearson", "spearman", "ssim", "js", "rmse")
KNOWN = (*CORRELATIONS, "ssim", *ERRORS)
SCALES = ("normalized", "raw")
N_NEIGHBORS = 6
FAR_TOTAL = 3.0
"""Normalized totals this many times apart cannot be meant for each other."""


@shared_doc
def evaluate(
    adata: AnnData,
    predictions: str | Sequence[str],
    *,
    truth: str | None = None,
    groups: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = _keys.SPLIT,
    spatial_key: str = _keys.SPATIAL,
    histology_key: str = _keys.HISTOLOGY,
    baselines: bool | str | Sequence[HistologyBaseline] = True,
    n_neighbors: int | None = None,
    scale: str | Mapping[str, str] | None = None,
    metrics: Sequence[str] = METRICS,
    min_counts: float = 500,
    n_boot: int = 1000,
    level: float = 0.95,
    allow_shared_patients: bool = False,
    random_state: int = 0,
    key_added: str = _keys.EVALUATION,
) -> pd.DataFrame:
    """Score predicted expression beside nulls and baselines, and say for each gene whether to use it.

    Test spots are scored per section, over all genes that truth and predictions share, on depth-normalised expression
    (``normalized``, the headline) and on log1p of the counts (``raw``, which mostly shows depth). Baselines are fitted
    on training spots of the same object, with the same histology and the same neighbour features as the model.

    Several predictions are scored on the same spots and on the genes that all of them have, whatever scale they are on
    and wherever they lie; :func:`stgen.get.comparison` gives their differences, pair by pair. To score a model on all
    of its own genes, evaluate it alone.

    Parameters
    ----------
    adata
        %(adata)s
    predictions
        One key or several: a layer, or an array in ``obsm`` with its genes in ``uns[key]["genes"]``.
    truth
        Layer of the measured counts. ``None`` means ``X``. Values that are not counts, and layers that a model wrote,
        are refused.
    groups
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists. Scores are never pooled over sections.
    patient_key
        Column of ``obs`` that tells patients apart; ``"patient"`` if that exists.
    split_key
        Column of ``obs`` written by :func:`stgen.pp.split`: spots called ``"test"`` are scored. ``None`` scores every
        spot, and then no null can be fitted.
    spatial_key
        %(spatial_key)s Without ``obsm["spatial"]``, nulls, baselines and metrics that look at places are left out, with
        a warning; Pearson's intervals are then over sections, and one section has none.
    histology_key
        %(histology_key)s Without it only nulls and oracles are run.
    baselines
        ``True`` runs the default set of :func:`stgen.baselines.histology_baselines`, ``"nulls"`` what needs no training
        of networks or regressions, ``False`` nothing; or a list of baselines, each scored on the scale it declares.
    n_neighbors
        Nearest spots whose mean histology baselines get beside the spot's own. ``None`` means what the record of the
        predictions says (``uns[key]["params"]["n_neighbors"]``), else 6.
    scale
        What the predicted values are: ``"counts"``, ``"normalized"`` (log1p of depth-normalised counts) or ``"raw"``
        (log1p of counts); a dict for several keys. ``None`` means what ``uns[key]`` says, else counts. Predicted
        counts are divided by their own panel total, and so are normalized values of a prediction of which only some
        genes are compared.
    metrics
        Names of :mod:`stgen.metrics` per gene: ``pearson``, ``spearman``, ``ssim``, ``js``, ``rmse``, ``mae``,
        ``zscore_rmse``; and ``morans_i_gap``, the distance between Moran's I of prediction and truth.
    min_counts
        Spots with fewer counts over all genes are dropped before anything else.
    n_boot
        Draws of the bootstrap.
    level
        Probability of the intervals.
    allow_shared_patients
        Score although a patient or section is in both training and evaluation. The table then says so.
    random_state
        %(random_state)s
    key_added
        Key of the results.

    Returns
    -------
    Tidy table, headline first. ``section`` is a section or ``"mean"``, the mean over sections. ``value`` is the mean
    over genes for which the metric is defined; ``n_undefined`` counts the others. ``gain`` is the difference to the
    best null, turned so that more is better; there a prediction without a correlation (a constant one) counts as 0.
    ``gain_low`` and ``gain_high`` come from a bootstrap over ``interval``: ``"sections"``, for Pearson
    ``"sections and blocks"`` of tissue inside them, or the ``"blocks"`` of the only section, which say nothing about
    other sections.
    ``verdict`` (of Pearson): "use" if the interval lies above 0, "weak" if 0 is inside, else "do not use".
    ``flags`` tells what weakens the comparison.

    Also writes, for each prediction, ``var["{key_added}_{prediction}_score"]`` (Pearson on the normalized scale, mean over
    sections), ``…_gain`` over the null that is best for the gene, ``…_gain_low``, ``…_gain_high`` (bootstrap over sections and
    spatial blocks within them) and ``…_verdict``; and ``uns[key_added]``: ``params``, ``table``, Pearson per gene of every
    method (``methods`` × ``genes``), and for several predictions ``pairs``, what :func:`stgen.get.comparison` reads.

    Raises
    ------
    ValueError
        If a patient or section is in both training and evaluation, the truth is not measured counts, or spots
        were left out of a prediction.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> adata.layers["mine"] = adata.X.toarray()
    >>> table = stg.tl.evaluate(adata, "mine", baselines="nulls")
    >>> table.loc[table["method"] == "mine", "verdict"].iloc[0]
    'use'
    """
    check_adata(adata, copy=False)
    keys = [predictions] if isinstance(predictions, str) else list(predictions)
    _check_arguments(keys, metrics, baselines)
    _check_scale(scale, keys)
    found = [read_prediction(adata, key, scale=_scale_of(scale, key)) for key in keys]
    scored = scored_rows(
        adata,
        found,
        truth=truth,
        groups=groups,
        patient_key=patient_key,
        split_key=split_key,
        spatial_key=spatial_key,
        min_counts=min_counts,
        allow_shared_patients=allow_shared_patients,
    )
    reference = scored.is_train if scored.is_train.any() else scored.is_test
    target = panel_target(scored.counts[reference])
    n_neighbors = _n_neighbors(found) if n_neighbors is None else int(n_neighbors)
    methods = [
        *(_model_method(prediction, scored, target) for prediction in found),
        *_baseline_methods(adata, scored, baselines, histology_key, n_neighbors, target, random_state),
    ]
    scored.flags.extend(_other_units(found, methods, target))
    test = scored.counts[scored.is_test]
    scores = Scores(
        {"normalized": normalize_panel(test, target=target), "raw": log_counts(test)},
        methods,
        scored.section[scored.is_test],
        scored.xy[scored.is_test],
        metric_names=["pearson", *(name for name in metrics if name != "pearson")],
    )
    bootstrap = BlockBootstrap(scores, n_boot=n_boot, level=level, random_state=random_state)
    table = build_table(scores, n_dropped=scored.n_dropped, flags=scored.flags, bootstrap=bootstrap)
    summary = summary_table(scores, n_dropped=scored.n_dropped, flags=scored.flags)
    table = headline_first(pd.concat([table, summary], ignore_index=True)[list(COLUMNS)])
    gains = {method.name: bootstrap.gene_gains(method) for method in methods if method.kind == "model"}
    pairs = pairs_table(scores, bootstrap, flags=scored.flags) if len(keys) > 1 else None
    params = {
        "predictions": np.array(keys, dtype=object),
        "truth": truth or "X",
        "split_key": split_key or "",
        "target": float(target),
        "min_counts": float(min_counts),
        "n_neighbors": n_neighbors,
        "n_boot": int(n_boot),
        "level": float(level),
        "allow_shared_patients": bool(allow_shared_patients),
        "flags": "; ".join(scored.flags),
        "random_state": int(random_state),
    }
    _write(editable(adata, copy=False), key_added, params, table, pairs, scores, scored, gains)
    _say(table, keys)
    if pairs is not None:
        _say_pairs(pairs)
    return table


def _check_arguments(keys: list[str], metrics: Sequence[str], baselines: Any) -> None:
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"`predictions` must be one key or several different ones; got {keys}.")
    unknown = [name for name in metrics if name not in KNOWN]
    if isinstance(metrics, str) or unknown:
        raise ValueError(f"`metrics` must be a list of names out of {', '.join(KNOWN)}; got {metrics!r}.")
    if isinstance(baselines, str) and baselines != "nulls":
        raise ValueError(
            f"`baselines` must be True, False, 'nulls' or a list of baselines; got {baselines!r}."
        )
    taken = {baseline.name for baseline in histology_baselines()} & set(keys)
    if taken:
        raise ValueError(f"The prediction {taken.pop()!r} has the name of a baseline; give it another key.")


def _check_scale(scale: str | Mapping[str, str] | None, keys: Sequence[str]) -> None:
    unknown = [name for name in scale if name not in keys] if isinstance(scale, Mapping) else []
    if unknown:
        raise ValueError(f"`scale` names {unknown}, which are not among the predictions {list(keys)}.")


def _scale_of(scale: str | Mapping[str, str] | None, key: str) -> str | None:
    return scale.get(key) if isinstance(scale, Mapping) else scale


def _n_neighbors(predictions: Sequence[Prediction]) -> int:
    """What the models say they were given; the most of them, lest a baseline see less than a model."""
    said = [prediction.record.get("params", {}) for prediction in predictions]
    known = [int(params["n_neighbors"]) for params in said if "n_neighbors" in params]
    return max(known) if known else N_NEIGHBORS


def _model_method(prediction: Prediction, scored: Scored, target: float) -> Method:
    """A prediction on every scale that it can speak about."""
    rows = scored.rows[scored.is_test]
    on = {name: prediction.on_scale(name, rows, scored.genes, target=target) for name in SCALES}
    return Method(prediction.key, "model", _spoken(on))


def _other_units(found: Sequence[Prediction], methods: Sequence[Method], target: float) -> list[str]:
    """Normalized predictions whose spots add up to far more or less than those of the truth."""
    flags = []
    for prediction, method in zip(found, methods):
        if prediction.scale != "normalized":
            continue
        values = np.nan_to_num(method.on_scale["normalized"])
        # the mean of logs lies below the log of the mean, so some distance is usual
        total = float(np.median(np.expm1(np.clip(values, 0, 50)).sum(axis=1)))
        if not target / FAR_TOTAL <= total <= target * FAR_TOTAL:
            flags.append(
                f"{prediction.key} seems normalized to {total:.4g} counts per spot, the truth is to {target:.4g}: "
                "its errors and SSIM are in other units"
            )
    if flags:
        logger.warning("%s.", "; ".join(flags))
    return flags


def _spoken(on_scale: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {name: values for name, values in on_scale.items() if values is not None}


def _baseline_methods(
    adata: AnnData,
    scored: Scored,
    baselines: bool | str | Sequence[HistologyBaseline],
    histology_key: str,
    n_neighbors: int,
    target: float,
    random_state: int,
) -> list[Method]:
    if baselines is False or not scored.is_train.any():
        return []
    histology = None
    if baselines != "nulls" and histology_key in adata.obsm:
        histology = _features(adata, scored, histology_key, n_neighbors)
    if isinstance(baselines, bool | str):
        wanted = [
            baseline
            for name in SCALES
            for baseline in histology_baselines(
                scale=name, histology=histology is not None, random_state=random_state
            )
            if scored.has_places or not baseline.needs_places
        ]
    else:
        wanted = list(baselines)
        if histology is None and any(baseline.needs_histology for baseline in wanted):
            raise KeyError(
                f"obsm[{histology_key!r}] does not exist, and a baseline needs it; obsm has {list(adata.obsm)}."
            )
        if not scored.has_places and any(baseline.needs_places for baseline in wanted):
            raise KeyError(f"There are no places, and a baseline needs them; obsm has {list(adata.obsm)}.")
    answers: dict[str, dict[str, np.ndarray]] = {}
    first: dict[str, HistologyBaseline] = {}
    for baseline in wanted:
        if baseline.name in first and baseline.scale == "counts":
            continue  # one fit serves both scales
        prediction = fit_predict(
            [baseline],
            histology,
            scored.counts,
            np.nan_to_num(scored.xy),  # without places only baselines that do not look are left
            scored.section,
            train=scored.is_train,
            test=scored.is_test,
        )[baseline.name]
        wanted_on = SCALES if baseline.scale == "counts" else (baseline.scale,)
        on = {name: rescaled(prediction, baseline.scale, name, target=target) for name in wanted_on}
        answers.setdefault(baseline.name, {}).update(_spoken(on))
        first.setdefault(baseline.name, baseline)
    return [Method(name, one.kind, answers[name], one.has_units) for name, one in first.items()]


def _features(adata: AnnData, scored: Scored, key: str, n_neighbors: int) -> np.ndarray:
    """Histology of the spot and the mean over its neighbours."""
    features = adata.obsm[key]
    features = features.to_numpy() if hasattr(features, "to_numpy") else features
    features = features.toarray() if hasattr(features, "toarray") else np.asarray(features)
    own = features[scored.rows].astype(np.float32)
    if not np.isfinite(own).all():
        n_bad = int((~np.isfinite(own).all(axis=1)).sum())
        raise ValueError(
            f"obsm[{key!r}] must be finite; {n_bad} of {len(own)} spots have NaN or infinite features."
        )
    if n_neighbors == 0 or not scored.has_places:
        return own
    index = neighbour_index(scored.xy, scored.section, n_neighbors=n_neighbors)
    return np.concatenate([own, neighbour_mean(own, index)], axis=1)


def _write(
    adata: AnnData,
    key: str,
    params: dict[str, Any],
    table: pd.DataFrame,
    pairs: pd.DataFrame | None,
    scores: Scores,
    scored: Scored,
    gains: Mapping[str, GeneGains],
) -> None:
    """Plain arrays only: they survive h5ad and zarr, whatever the genes are called."""
    names = [method.name for method in scores.methods]
    record: dict[str, Any] = {
        "params": params,
        "table": {column: _plain(table[column]) for column in table},
        "genes": np.array(scored.genes, dtype=object),
        "methods": np.array(names, dtype=object),
        "kinds": np.array([method.kind for method in scores.methods], dtype=object),
    }
    if pairs is not None:
        record["pairs"] = {column: _plain(pairs[column]) for column in pairs}
    for scale in scores.scales:
        by_section = np.stack([scores.by_gene[name, "pearson", scale] for name in names])
        is_defined = ~np.isnan(by_section)
        with np.errstate(invalid="ignore"):
            mean = np.where(is_defined, by_section, 0).sum(axis=1) / is_defined.sum(axis=1)
        record[f"pearson_{scale}"] = mean
    adata.uns[key] = record
    place = adata.var_names.astype(str).get_indexer(scored.genes)
    columns: dict[str, Any] = {}
    for name, gain in gains.items():
        for what, values in zip(("score", "gain", "gain_low", "gain_high"), gain[:4]):
            column = np.full(adata.n_vars, np.nan)
            column[place] = values
            columns[evaluation_column(key, name, what)] = column
        verdict = np.full(adata.n_vars, "not evaluated", dtype=object)
        verdict[place] = gain.verdict
        columns[evaluation_column(key, name, "verdict")] = pd.Categorical(verdict)
    old = [column for column in adata.var if column in columns]
    adata.var = pd.concat([adata.var.drop(columns=old), pd.DataFrame(columns, index=adata.var_names)], axis=1)


def _plain(column: pd.Series) -> np.ndarray:
    return column.astype(object).to_numpy() if column.dtype.kind not in "biuf" else column.to_numpy()


def _say(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """A model that does not beat its nulls says so."""
    headline = table[
        (table["section"] == MEAN) & (table["metric"] == "pearson") & (table["scale"] == "normalized")
    ]
    for row in headline[headline["method"].isin(keys)].itertuples():
        if row.best_null and row.verdict != USE:
            logger.warning(
                "%s does not beat the null '%s' with certainty: gain %.3f [%.3f, %.3f] in Pearson (%s).",
                row.method,
                row.best_null,
                row.gain,
                row.gain_low,
                row.gain_high,
                row.verdict,
            )


def _say_pairs(pairs: pd.DataFrame) -> None:
    headline = pairs[(pairs["metric"] == "pearson") & (pairs["scale"] == "normalized")]
    for row in headline.itertuples():
        logger.info(
            "%s against %s: %+.3f [%+.3f, %+.3f] in Pearson over %d genes and %d sections (better: %s).",
            row.method,
            row.other,
            row.gain,
            row.gain_low,
            row.gain_high,
            row.n_genes,
            row.n_sections,
            row.better,
        )
