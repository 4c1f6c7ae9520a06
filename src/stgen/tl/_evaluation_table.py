"""From scores per gene and section to a table with gains, intervals and verdicts.

S sections, G genes, M methods. A *skill* is a score turned so that more is better; where a correlation is undefined
because a prediction is constant, the skill is 0: leaving hard genes blank may not raise a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stgen import metrics
from stgen.baselines import SectionMean
from stgen.metrics._bootstrap import draw_weights, pearson_draws, percentile_interval

Floats = NDArray[np.float64]

CORRELATIONS = ("pearson", "spearman")
ERRORS = ("js", "rmse", "mae", "zscore_rmse", "morans_i_gap")
"""Lower is better."""
TOP = (10, 50, 200)
PROFILE = SectionMean.name
USE, WEAK, DO_NOT_USE, UNDEFINED = "use", "weak", "do not use", "undefined"
COLUMNS = (
    "method",
    "kind",
    "metric",
    "scale",
    "section",
    "value",
    "n_spots",
    "n_dropped",
    "n_genes",
    "n_undefined",
    "best_null",
    "gain",
    "gain_low",
    "gain_high",
    "interval",
    "best_baseline",
    "gain_over_baseline",
    "verdict",
    "flags",
)
MEAN = "mean"
"""Entry of the column ``section`` for the mean over sections."""


class Method(NamedTuple):
    name: str
    kind: str
    on_scale: Mapping[str, Floats]
    """Scale to prediction, evaluated spots × genes; a scale that it cannot speak about is missing."""
    has_units: bool = True
    """Whether its errors mean something."""


def gene_scores(
    metric: str, truth: Floats, prediction: Floats, xy: Floats, *, has_units: bool = True
) -> Floats:
    """Scores of all genes in one section."""
    if metric in ERRORS and metric not in ("zscore_rmse", "morans_i_gap") and not has_units:
        return np.full(truth.shape[1], np.nan)
    if metric == "morans_i_gap" and not np.isfinite(xy).all():
        return np.full(truth.shape[1], np.nan)
    if metric == "morans_i_gap":
        return np.abs(metrics.morans_i(prediction, xy) - metrics.morans_i(truth, xy))
    if metric == "js":  # a linear model may answer a little below 0, where no distribution is
        prediction = np.maximum(prediction, 0)
    function: Callable[[Any, Any], Floats] = getattr(metrics, metric)
    return function(truth, prediction)


def skill(metric: str, scores: Floats, is_defined: Floats) -> Floats:
    """Scores turned so that more is better; ``is_defined``: genes whose truth varies."""
    if metric in CORRELATIONS:
        return np.where(is_defined & np.isnan(scores), 0, scores)
    return -scores if metric in ERRORS else scores


class Scores:
    """All scores per gene: one array S × G for each method, metric and scale."""

    def __init__(
        self,
        truth: Mapping[str, Floats],
        methods: Sequence[Method],
        section: NDArray[Any],
        xy: Floats,
        *,
        metric_names: Sequence[str],
    ) -> None:
        self.truth, self.methods, self.section, self.xy = truth, list(methods), section, xy
        self.sections = sorted(set(section))
        self.scales = list(truth)
        self.metric_names = list(metric_names)
        self.rows = {name: np.flatnonzero(section == name) for name in self.sections}
        self.varies = np.stack(
            [np.ptp(truth[self.scales[0]][rows], axis=0) > 0 for rows in self.rows.values()]
        )
        self.by_gene: dict[tuple[str, str, str], Floats] = {}
        for scale in self.scales:
            for method in self.methods:
                for metric in self.metric_names:
                    self.by_gene[method.name, metric, scale] = self._score(method, metric, scale)

    def _score(self, method: Method, metric: str, scale: str) -> Floats:
        truth, prediction = self.truth[scale], method.on_scale.get(scale)
        if prediction is None:
            return np.full((len(self.sections), truth.shape[1]), np.nan)
        return np.stack(
            [
                gene_scores(metric, truth[rows], prediction[rows], self.xy[rows], has_units=method.has_units)
                for rows in self.rows.values()
            ]
        )

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def of_kind(self, *kinds: str) -> list[Method]:
        return [method for method in self.methods if method.kind in kinds]

    def skill(self, method: str, metric: str, scale: str) -> Floats:
        """S × G; NaN on a scale that the method does not speak about."""
        if scale not in self.method(method).on_scale:
            return np.full(self.varies.shape, np.nan)
        return skill(metric, self.by_gene[method, metric, scale], self.varies)

    def best(self, kind: str, metric: str, scale: str) -> str | None:
        """The method of a kind with the highest mean skill; none if there is none with a value."""
        means = {m.name: _mean(_means(self.skill(m.name, metric, scale))) for m in self.of_kind(kind)}
        means = {name: value for name, value in means.items() if not np.isnan(value)}
        return max(means, key=means.__getitem__) if means else None


def build_table(
    scores: Scores,
    *,
    n_dropped: Mapping[str, int],
    flags: Sequence[str],
    bootstrap: BlockBootstrap,
) -> pd.DataFrame:
    """One row per method, metric, scale and section, and their mean over sections first."""
    rows: list[dict[str, Any]] = []
    for metric in scores.metric_names:
        for scale in scores.scales:
            nulls = {kind: scores.best(kind, metric, scale) for kind in ("null", "baseline")}
            for method in scores.methods:
                rows += _method_rows(scores, method, metric, scale, nulls, n_dropped, bootstrap)
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    table["flags"] = "; ".join(flags)
    return table


def headline_first(table: pd.DataFrame) -> pd.DataFrame:
    """Means over sections come first, every method beside its nulls."""
    is_detail = table["section"].ne(MEAN).to_numpy()
    return table.iloc[np.argsort(is_detail, kind="stable")].reset_index(drop=True)


def _method_rows(
    scores: Scores,
    method: Method,
    metric: str,
    scale: str,
    best: Mapping[str, str | None],
    n_dropped: Mapping[str, int],
    bootstrap: BlockBootstrap,
) -> list[dict[str, Any]]:
    by_gene = scores.by_gene[method.name, metric, scale]
    values = _means(by_gene)
    own = _means(scores.skill(method.name, metric, scale))
    gains = {
        kind: own - _means(scores.skill(name, metric, scale)) if name else np.full(len(own), np.nan)
        for kind, name in best.items()
    }
    common = {"method": method.name, "kind": method.kind, "metric": metric, "scale": scale}
    common |= {"best_null": best["null"] or "", "best_baseline": best["baseline"] or ""}
    n_undefined = np.isnan(by_gene).sum(axis=1)
    rows = [
        common
        | {
            "section": section,
            "value": values[i],
            "n_spots": len(scores.rows[section]),
            "n_dropped": n_dropped[section],
            "n_genes": by_gene.shape[1],
            "n_undefined": int(n_undefined[i]),
            "gain": gains["null"][i],
            "gain_low": np.nan,
            "gain_high": np.nan,
            "interval": "",
            "gain_over_baseline": gains["baseline"][i],
            "verdict": "",
        }
        for i, section in enumerate(scores.sections)
    ]
    low, high, over = _interval(scores, gains["null"], method, best["null"], metric, scale, bootstrap)
    gain = _mean(gains["null"])
    is_judged = metric == "pearson" and method.kind not in ("null", "oracle") and bool(best["null"])
    mean = {
        "section": MEAN,
        "value": _mean(values),
        "n_spots": len(scores.section),
        "n_dropped": sum(n_dropped.values()),
        "n_genes": by_gene.shape[1],
        "n_undefined": int(n_undefined.sum()),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "interval": "" if np.isnan(low) else over,
        "gain_over_baseline": _mean(gains["baseline"]),
        "verdict": str(verdicts(np.array([gain]), low, high)[0]) if is_judged else "",
    }
    return [common | mean, *rows]


def _interval(
    scores: Scores,
    gains: Floats,
    method: Method,
    null: str | None,
    metric: str,
    scale: str,
    bootstrap: BlockBootstrap,
) -> tuple[float, float, str]:
    # two sections that both gain by luck are one case in four: of correlations, blocks inside them are drawn as well
    if null is None or np.isnan(gains).all():
        return np.nan, np.nan, ""
    if metric == "pearson":
        return *bootstrap.mean_gain(method.name, null, scale), bootstrap.over
    low, high = metrics.bootstrap_interval(
        gains, level=bootstrap.level, n_boot=bootstrap.n_boot, random_state=bootstrap.random_state
    )
    return low, high, "sections"


def summary_table(scores: Scores, *, n_dropped: Mapping[str, int], flags: Sequence[str]) -> pd.DataFrame:
    """Two numbers that papers print and that flatter: never a headline, no gain over the best null, no verdict.

    ``pearson_top10`` and so on: mean of the k highest correlations. The genes are chosen on the test rows; even a
    smooth random field scores well on them. ``pearson_within_spot``: correlation across the genes of a spot, which any
    mean profile reaches; its gain is over the mean profile.
    """
    rows: list[dict[str, Any]] = []
    for scale in scores.scales:
        for k in (k for k in TOP if k <= scores.varies.shape[1]):
            for method in scores.methods:
                by_gene = scores.by_gene[method.name, "pearson", scale]
                values = np.array([_mean(np.sort(row[~np.isnan(row)])[-k:]) for row in by_gene])
                rows += _summary_rows(scores, method, f"pearson_top{k}", scale, values, None, k, n_dropped)
        profile = next((m for m in scores.methods if m.name == PROFILE), None)
        of_profile = None if profile is None else _within_spot(scores, profile, scale)
        for method in scores.methods:
            values = _within_spot(scores, method, scale)
            gains = None if of_profile is None else values - of_profile
            n_genes = scores.varies.shape[1]
            rows += _summary_rows(
                scores, method, "pearson_within_spot", scale, values, gains, n_genes, n_dropped
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    table["flags"] = "; ".join(flags)
    return table


def _within_spot(scores: Scores, method: Method, scale: str) -> Floats:
    prediction = method.on_scale.get(scale)
    if prediction is None:
        return np.full(len(scores.sections), np.nan)
    truth = scores.truth[scale]
    return np.array([_mean(metrics.pearson(truth[r].T, prediction[r].T)) for r in scores.rows.values()])


def _summary_rows(
    scores: Scores,
    method: Method,
    metric: str,
    scale: str,
    values: Floats,
    gains: Floats | None,
    n_genes: int,
    n_dropped: Mapping[str, int],
) -> list[dict[str, Any]]:
    common = {
        "method": method.name,
        "kind": method.kind,
        "metric": metric,
        "scale": scale,
        "n_genes": n_genes,
    }
    common |= dict.fromkeys(("best_baseline", "interval", "verdict"), "") | {"n_undefined": 0}
    common |= dict.fromkeys(("gain_low", "gain_high", "gain_over_baseline"), np.nan)
    common |= {"best_null": "" if gains is None else PROFILE}
    gains = np.full(len(values), np.nan) if gains is None else gains
    n_spots = [len(rows) for rows in scores.rows.values()]
    return [
        common | {"section": section, "value": value, "gain": gain, "n_spots": n, "n_dropped": dropped}
        for section, value, gain, n, dropped in [
            (MEAN, _mean(values), _mean(gains), sum(n_spots), sum(n_dropped.values())),
            *zip(scores.sections, values, gains, n_spots, map(n_dropped.__getitem__, scores.sections)),
        ]
    ]


class GeneGains(NamedTuple):
    """What one prediction is worth for every gene: Pearson on the normalized scale, mean over sections."""

    score: Floats
    gain: Floats
    low: Floats
    high: Floats
    verdict: NDArray[Any]


class BlockBootstrap:
    """Paired draws of Pearson gains: sections with replacement, and inside each its spatial blocks.

    With one section only its blocks are drawn: the interval then says nothing about other sections. Without places only
    sections are drawn, and one section has no interval.
    """

    def __init__(
        self, scores: Scores, *, n_boot: int, level: float, random_state: int, n_genes_at_once: int = 512
    ):
        self.scores, self.level, self.n_boot, self.step = scores, level, n_boot, n_genes_at_once
        self.random_state = random_state
        self._mean_over_genes: dict[tuple[str, str], Floats] = {}
        generator = np.random.default_rng(random_state)
        n_sections = len(scores.sections)
        self.section_weights = (
            draw_weights(n_sections, n_boot, generator) if n_sections > 1 else np.ones((n_boot, 1))
        )
        has_places = bool(np.isfinite(scores.xy).all())
        self.over = " and ".join(["sections"] * (n_sections > 1) + ["blocks"] * has_places)
        self.blocks = {
            name: metrics.spatial_blocks(scores.xy[rows])
            if has_places
            else np.zeros(len(rows), dtype=np.int64)
            for name, rows in scores.rows.items()
        }
        self.weights = {
            name: draw_weights(int(block.max()) + 1, n_boot, generator) for name, block in self.blocks.items()
        }

    def draws(self, method: Method, scale: str, genes: slice) -> Floats:
        """Mean correlation over the drawn sections, n_boot × genes."""
        total: Floats | float = 0.0
        size: Floats | float = 0.0
        for i, (name, rows) in enumerate(self.scores.rows.items()):
            truth = self.scores.truth[scale][rows, genes]
            prediction = method.on_scale[scale][rows, genes]
            # a gene without a prediction shows as little as a constant one
            prediction = np.where(np.isfinite(prediction).all(axis=0), prediction, 0)
            r = pearson_draws(truth, prediction, self.blocks[name], self.weights[name])
            weight = self.section_weights[:, i : i + 1] * ~np.isnan(r)
            total, size = total + weight * np.nan_to_num(r), size + weight
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total / size)

    def gene_blocks(self) -> list[slice]:
        n_genes = self.scores.varies.shape[1]
        return [slice(start, min(start + self.step, n_genes)) for start in range(0, n_genes, self.step)]

    def mean_gain(self, method: str, null: str, scale: str) -> tuple[float, float]:
        """Interval of the mean gain over genes; NaN if there is nothing to draw."""
        if not self.over:
            return np.nan, np.nan
        gain = self._mean_draws(method, scale) - self._mean_draws(null, scale)
        low, high = percentile_interval(gain[:, None], self.level)
        return float(low[0]), float(high[0])

    def _mean_draws(self, name: str, scale: str) -> Floats:
        """Mean over genes in each draw. Which genes have a value depends on the truth alone, so means can be paired."""
        if (name, scale) not in self._mean_over_genes:
            method = self.scores.method(name)
            total: Floats | float = 0.0
            size: Floats | float = 0.0
            for genes in self.gene_blocks():
                draws = self.draws(method, scale, genes)
                total, size = total + np.nansum(draws, axis=1), size + (~np.isnan(draws)).sum(axis=1)
            with np.errstate(invalid="ignore"):
                self._mean_over_genes[name, scale] = np.asarray(total / size)
        return self._mean_over_genes[name, scale]

    def gene_gains(self, method: Method, scale: str = "normalized") -> GeneGains:
        """Score, gain over the null that is best for the gene, its interval and the verdict."""
        scores = self.scores
        own = scores.by_gene[method.name, "pearson", scale]
        score = _means(own, axis=0)
        nulls = [null for null in scores.of_kind("null") if scale in null.on_scale]
        if not nulls:
            empty = np.full(len(score), np.nan)
            return GeneGains(score, empty, empty, empty, np.full(len(score), "", dtype=object))
        by_null = np.stack([_means(scores.skill(null.name, "pearson", scale), axis=0) for null in nulls])
        best = np.argmax(np.nan_to_num(by_null, nan=-2), axis=0)
        gain = (
            _means(scores.skill(method.name, "pearson", scale), axis=0) - by_null[best, np.arange(len(score))]
        )
        low, high = np.full(len(score), np.nan), np.full(len(score), np.nan)
        if scale in method.on_scale and self.over:
            for genes in self.gene_blocks():
                of_nulls = np.stack([self.draws(null, scale, genes) for null in nulls])
                of_best = of_nulls[best[genes], :, np.arange(of_nulls.shape[2])].T
                low[genes], high[genes] = percentile_interval(
                    self.draws(method, scale, genes) - of_best, self.level
                )
        low, high = np.where(np.isnan(gain), np.nan, low), np.where(np.isnan(gain), np.nan, high)
        return GeneGains(score, gain, low, high, verdicts(gain, low, high))


def verdicts(gain: Floats, low: Floats | float, high: Floats | float) -> NDArray[Any]:
    """The rule: lower bound of the gain above 0 "use", 0 inside the interval "weak", else "do not use"."""
    low, high = np.broadcast_to(low, gain.shape), np.broadcast_to(high, gain.shape)
    answer = np.full(gain.shape, UNDEFINED, dtype=object)
    is_known = ~(np.isnan(gain) | np.isnan(low) | np.isnan(high))
    answer[is_known] = np.select([low[is_known] > 0, high[is_known] >= 0], [USE, WEAK], DO_NOT_USE)
    return answer


def _means(values: Floats, axis: int = 1) -> Floats:
    """Mean over what is defined; NaN where nothing is."""
    is_defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(is_defined, values, 0).sum(axis=axis) / is_defined.sum(axis=axis)


def _mean(values: Floats) -> float:
    return float(_means(np.asarray(values, dtype=np.float64).reshape(1, -1))[0])
