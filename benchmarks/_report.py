"""What a benchmark keeps: scores per section, paired differences, costs; as JSON and as a table to read.

A comparison is decided by *paired differences*: two methods on the same section, fold and seed, gene by gene.
Two intervals stand beside each difference, both 95 % percentile bootstraps:

- ``low``, ``high``: whole held-out units (a section, or a patient where patients are held out) are drawn with all
  their sections and seeds. What would other units of this kind say?
- ``low_genes``, ``high_genes``: units and genes are drawn at once, each gene with all its sections (a crossed
  bootstrap; it is on the safe side). Does the answer also hold for other genes?

Seeds are averaged before genes are drawn: a seed is a repetition, not another gene or unit.
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from stgen import metrics
from stgen.train._files import written_whole

HEADLINE = ("pearson", "normalized")
SUBSETS = ("all", "module", "other")
MODULE_LESS_OTHER = "module less other"
SMALLER_IS_BETTER = ("rmse", "mae", "pit_deviation", "nll")
N_BOOT = 4000
LEVEL = 0.95
PACKAGES = (
    "stgen",
    "numpy",
    "scipy",
    "pandas",
    "anndata",
    "scikit-learn",
    "torch",
    "scvi-tools",
    "lightning",
)

MEANING = {
    "pearson, spearman, rmse, mae, ssim": "per gene over the spots of one section, mean over all panel genes for which "
    "it is defined; rmse and mae in units of the scale",
    "n_undefined": "panel genes without a Pearson correlation in this section (constant truth or prediction)",
    "pearson_module, pearson_other": "the same over genes inside and outside the planted co-expression modules",
    "genes": "which genes a paired difference is over; 'module less other': how much larger it is in modules",
    "pcc_10, pcc_50, pcc_200": "mean over the genes with the largest test correlation; only for comparison with papers",
    "pit_deviation": "largest distance of the randomised PIT's distribution from uniform, all genes together",
    "pit_deviation_pooled": "the same over all held-out sections and seeds together",
    "coverage_50, coverage_90": "share of counts in the central 50 % and 90 % interval",
    "coverage_50_gap, coverage_90_gap": "that share minus the mass which the prediction gives to its own interval",
    "codes_used, perplexity_share": "share of the expression codes that training spots use, and the perplexity of a "
    "codebook over its number of codes, mean over codebooks",
    "nll": "mean of −log probability of a count (natural logarithm; a probability below 1e-6 counts as that)",
    "scale": "normalized: log1p(count / panel total × median panel total of training spots); raw: log1p(count)",
    "seed": "methods without randomness are repeated under each seed, so that rows pair",
    "paired": "difference = mean over genes of (method − against), averaged over sections and seeds; a constant "
    "prediction has correlation 0 here. low, high: bootstrap over held-out units; low_genes, high_genes: over units "
    "and genes at once",
    "peak_mb": "peak resident memory during fit and prediction above what the process held before; largest of all fits",
}


class Row(NamedTuple):
    """One number."""

    dataset: str
    section: str
    fold: str
    method: str
    kind: str
    metric: str
    scale: str
    seed: int
    value: float


class Place(NamedTuple):
    """Where a prediction was made: what two methods must share to be compared."""

    dataset: str
    section: str
    fold: str
    seed: int


class Cost(NamedTuple):
    """One fit and one prediction."""

    dataset: str
    method: str
    train_seconds: float
    predict_seconds: float
    peak_mb: float


KEEP_EVERY = 5.0
"""Seconds between two writes of what there is so far."""


class Results:
    """Everything one run has measured."""

    keeper: ClassVar[Callable[[Results], None] | None] = None
    """Told whenever the rows of one method are all there; see :func:`kept`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.costs: list[Cost] = []
        self.kinds: dict[str, str] = {}
        self._genes: dict[tuple[Place, str, str], pd.Series] = {}
        self.pit: dict[tuple[str, str, str], list[np.ndarray]] = {}
        """(dataset, method, kind) → randomised PIT values of every held-out section."""
        self.subsets: dict[str, dict[str, str]] = {}
        """Dataset → gene → "module" or "other", where that is known."""

    def add(self, place: Place, method: str, kind: str, metric: str, scale: str, value: float) -> None:
        """Keep one number."""
        if Results.keeper is not None and self._last_method() != [*place, method]:
            Results.keeper(self)
        self.kinds.setdefault(method, kind)
        self.rows.append(
            Row(
                place.dataset,
                place.section,
                place.fold,
                method,
                kind,
                metric,
                scale,
                place.seed,
                float(value),
            )
        )

    def add_genes(
        self,
        place: Place,
        method: str,
        kind: str,
        scale: str,
        genes: Sequence[str],
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        has_units: bool = True,
    ) -> None:
        """Score a prediction of one section gene by gene; keep the means, and the correlations of each gene."""
        correlation = metrics.pearson(truth, prediction)
        self.add(place, method, kind, "pearson", scale, mean(correlation))
        self.add(place, method, kind, "n_undefined", scale, int(np.isnan(correlation).sum()))
        self.add(place, method, kind, "spearman", scale, mean(metrics.spearman(truth, prediction)))
        for name in ("rmse", "mae", "ssim") if has_units else ():
            self.add(place, method, kind, name, scale, mean(getattr(metrics, name)(truth, prediction)))
        for n in (10, 50, 200):
            if n <= len(genes):
                best = np.sort(np.nan_to_num(correlation, nan=0.0))[-n:]
                self.add(place, method, kind, f"pcc_{n}", scale, mean(best))
        # a constant prediction shows nothing, which is 0; a constant truth can show nothing about anybody
        is_flat = np.isnan(correlation) & (np.ptp(truth, axis=0) > 0)
        by_gene = pd.Series(np.where(is_flat, 0.0, correlation), index=list(genes))
        self._genes[place, method, scale] = by_gene
        for subset in SUBSETS[1:] if self.subsets.get(place.dataset) else ():
            mask = self._members(place.dataset, by_gene.index, subset)
            self.add(place, method, kind, f"pearson_{subset}", scale, mean(correlation[mask]))

    def _members(self, dataset: str, genes: Iterable[str], subset: str) -> np.ndarray:
        known = self.subsets.get(dataset, {})
        return np.array([subset == "all" or known.get(gene) == subset for gene in genes])

    # ------------------------------------------------------------------------------------------------------- pairs

    def paired(self, method: str, against: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Differences of ``method`` to the others on the same sections, folds and seeds."""
        entries = []
        for dataset in dict.fromkeys(row.dataset for row in self.rows):
            others = [m for m in self.methods(dataset) if m != method and (against is None or m in against)]
            if method not in self.methods(dataset):
                continue
            for other in others:
                entries += self._paired_genes(dataset, method, other)
                entries += self._paired_values(dataset, method, other)
        return entries

    def _paired_genes(self, dataset: str, method: str, other: str) -> list[dict[str, Any]]:
        entries = []
        for scale in ("normalized", "raw"):
            gaps = {
                place: own - self._genes[place, other, scale]
                for (place, name, on), own in self._genes.items()
                if (place.dataset, name, on) == (dataset, method, scale)
                and (place, other, scale) in self._genes
            }
            if not gaps:
                continue
            head = self._head(dataset, method, other, "pearson", scale)
            subsets = SUBSETS if self.subsets.get(dataset) and scale == "normalized" else SUBSETS[:1]
            parts = {
                subset: {place: gap[self._members(dataset, gap.index, subset)] for place, gap in gaps.items()}
                for subset in subsets
            }
            entries += [head | {"genes": subset} | paired_by_gene(part) for subset, part in parts.items()]
            if len(parts) > 1:
                inside, outside = (parts[subset] for subset in SUBSETS[1:])
                between = {
                    place: mean(inside[place].to_numpy()) - mean(outside[place].to_numpy()) for place in gaps
                }
                between = {place: value for place, value in between.items() if not math.isnan(value)}
                entries.append(head | {"genes": MODULE_LESS_OTHER} | paired_by_unit(between))
        return entries

    def _paired_values(self, dataset: str, method: str, other: str) -> list[dict[str, Any]]:
        entries = []
        mine, theirs = ({(r.metric, r.scale, *_place(r)): r.value for r in self.rows if r.method == m}
                        for m in (method, other))  # fmt: skip
        wanted = ("spearman", "ssim", "rmse", "mae", "pit_deviation", "nll")
        for metric, scale in dict.fromkeys(key[:2] for key in mine):
            places = [key for key in mine if key[:2] == (metric, scale) and key in theirs]
            values = {Place(*key[2:]): mine[key] - theirs[key] for key in places if key[2] == dataset}
            values = {place: value for place, value in values.items() if not math.isnan(value)}
            if metric in wanted and values:
                head = self._head(dataset, method, other, metric, scale) | {"genes": "all"}
                entries.append(head | paired_by_unit(values))
        return entries

    def _head(self, dataset: str, method: str, other: str, metric: str, scale: str) -> dict[str, Any]:
        return {
            "dataset": dataset,
            "method": method,
            "against": other,
            "against_kind": self.kinds[other],
            "metric": metric,
            "scale": scale,
            "smaller_is_better": metric in SMALLER_IS_BETTER,
        }

    # -------------------------------------------------------------------------------------------------------- tell

    def methods(self, dataset: str) -> list[str]:
        """Methods that were run on a dataset, in their order."""
        return list(dict.fromkeys(row.method for row in self.rows if row.dataset == dataset))

    def total_costs(self) -> list[dict[str, Any]]:
        """Mean seconds and largest memory of a fit, by dataset and method."""
        if not self.costs:
            return []
        table = pd.DataFrame(self.costs).groupby(["dataset", "method"], sort=False)
        means = table.agg({"train_seconds": "mean", "predict_seconds": "mean", "peak_mb": "max"})
        return [plain(row) for row in means.reset_index().to_dict("records")]

    def _last_method(self) -> list[Any]:
        """Dataset, section, fold, seed and method of the last row."""
        row = self.rows[-1] if self.rows else None
        return [] if row is None else [row.dataset, row.section, row.fold, row.seed, row.method]

    def parts(self) -> dict[str, Any]:
        """Rows and costs, as they are written."""
        return {"rows": [plain(row._asdict()) for row in self.rows], "costs": self.total_costs()}

    def write(self, path: Path, meta: dict[str, Any], paired: list[dict[str, Any]]) -> None:
        """One JSON object: meta, rows, costs, paired. What is undefined is null."""
        write_document(path, {"meta": plain(meta), **self.parts(), "paired": plain(paired)})

    def say(self, dataset: str, paired: list[dict[str, Any]]) -> None:
        """Print the tables of one dataset."""
        table = pd.DataFrame([row for row in self.rows if row.dataset == dataset], columns=Row._fields)
        order = self.methods(dataset)
        mean_of = table.groupby(["method", "metric", "scale"])["value"].mean().unstack(["metric", "scale"])
        kind = pd.Series(self.kinds).reindex(order)

        def columns(wanted: dict[str, tuple[str, str]]) -> pd.DataFrame:
            found = {
                name: mean_of[key].reindex(order) for name, key in wanted.items() if key in mean_of.columns
            }
            return pd.DataFrame({"kind": kind, **found}, index=order)

        heading("Pearson per gene over a section's spots, mean over all panel genes, normalized scale")
        per_section = table[(table["metric"] == "pearson") & (table["scale"] == "normalized")]
        by_section = per_section.pivot_table("value", "method", "section", sort=False).reindex(order)
        wide = by_section if by_section.shape[1] <= 8 else by_section.iloc[:, :0]
        show(pd.concat([columns({"mean": HEADLINE, "raw": ("pearson", "raw")}), wide], axis=1))
        both = {
            f"{name} {scale[:4]}": (name, scale)
            for name in ("spearman", "rmse", "mae", "ssim", "n_undefined")
            for scale in ("normalized", "raw")
        }
        heading("Other scores, mean over sections and seeds (norm = normalized)")
        show(columns(both))
        if self.subsets.get(dataset):
            heading("Pearson, normalized: genes in planted modules, and the others")
            show(columns({s: (f"pearson_{s}", "normalized") for s in SUBSETS[1:]}))
        calibration = (
            "pit_deviation",
            "pit_deviation_pooled",
            "coverage_50",
            "coverage_50_gap",
            "coverage_90",
            "coverage_90_gap",
            "nll",
        )
        heading("Calibration of predicted distributions of counts (gap = coverage − the interval's own mass)")
        show(columns({name: (name, "") for name in calibration}).dropna(subset=["pit_deviation"]))
        heading("Genes with the best test correlation – only for comparison with papers")
        show(columns({f"pcc_{n} {s[:4]}": (f"pcc_{n}", s) for s in ("normalized", "raw") for n in (10, 50, 200)}))  # fmt: skip
        heading("Cost of one fit")
        costs = pd.DataFrame([row for row in self.total_costs() if row["dataset"] == dataset])
        show(costs.drop(columns="dataset").set_index("method"), digits=2)
        self._say_pairs([entry for entry in paired if entry["dataset"] == dataset])

    def _say_pairs(self, paired: list[dict[str, Any]]) -> None:
        for method in dict.fromkeys(entry["method"] for entry in paired):
            shown = [
                {
                    "against": entry["against"],
                    "kind": entry["against_kind"],
                    "metric": f"{entry['metric']} {entry['scale']}".strip(),
                    "genes": entry["genes"],
                    "difference": entry["difference"],
                    "95 % units": _interval(entry, ""),
                    "95 % units × genes": _interval(entry, "_genes"),
                    "genes better": entry.get("share_of_genes_better", math.nan),
                }
                for entry in paired
                if entry["method"] == method and entry["metric"] in ("pearson", "pit_deviation", "nll")
            ]
            if shown:
                first = next(entry for entry in paired if entry["method"] == method)
                units, seeds = first["n_units"], first["n_seeds"]
                heading(f"Paired: {method} − …, {units} held-out units, {seeds} seed(s)")
                show(pd.DataFrame(shown).set_index("against"))


# ------------------------------------------------------------------------------------------------------- differences


def paired_by_gene(differences: dict[Place, pd.Series]) -> dict[str, Any]:
    """Mean and intervals of per-gene differences. Panels may differ between folds: genes are told apart by name."""
    table = pd.DataFrame([dict(unit=p.fold, section=p.section, **d) for p, d in differences.items()])
    sections = table.groupby(["unit", "section"], sort=False).mean()  # over seeds
    values = {place: mean(d.to_numpy()) for place, d in differences.items()}
    low, high = crossed_interval(sections.to_numpy(), sections.index.get_level_values("unit").to_numpy())
    per_gene = sections.mean().dropna()
    return paired_by_unit(values) | {
        "low_genes": low,
        "high_genes": high,
        "n_genes": len(per_gene),
        "share_of_genes_better": float((per_gene > 0).mean()) if len(per_gene) else math.nan,
    }


def paired_by_unit(values: dict[Place, float]) -> dict[str, Any]:
    """Mean difference, and its interval over held-out units."""
    numbers = np.array(list(values.values()))
    low, high = metrics.bootstrap_interval(
        numbers, groups=[place.fold for place in values], level=LEVEL, n_boot=N_BOOT
    )
    return {
        "difference": mean(numbers),
        "low": low,
        "high": high,
        "n_units": len({place.fold for place in values}),
        "n_seeds": len({place.seed for place in values}),
        "values": [
            {"section": p.section, "fold": p.fold, "seed": p.seed, "value": v} for p, v in values.items()
        ],
    }


def crossed_interval(
    values: np.ndarray, units: np.ndarray, *, n_boot: int = N_BOOT, random_state: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of sections × genes, drawing units (with their sections) and genes at once.

    NaN: a gene that is not in a section's panel, or is constant there.
    """
    names, code = np.unique(units.astype(str), return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(random_state)
    n_units, n_genes = len(names), values.shape[1]
    drawn_units = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_boot)[:, code].astype(float)
    drawn_genes = rng.multinomial(n_genes, np.full(n_genes, 1 / n_genes), size=n_boot).astype(float)
    is_known = ~np.isnan(values)
    total = ((drawn_units @ np.where(is_known, values, 0.0)) * drawn_genes).sum(axis=1)
    size = ((drawn_units @ is_known) * drawn_genes).sum(axis=1)
    draws = total[size > 0] / size[size > 0]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


# -------------------------------------------------------------------------------------------------------------- costs


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds and peak memory of what happens inside; filled in at the end."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed should not hide the next peak
    before, can_reset = _resident_mb("VmRSS"), _reset_peak()
    found: dict[str, float] = {}
    start = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - start
    peak = _resident_mb("VmHWM") if can_reset else math.nan
    found["peak_mb"] = max(0.0, peak - before) if not math.isnan(peak - before) else math.nan


def _reset_peak() -> bool:
    """Let the kernel forget the peak so far (Linux); without that, no peak is told."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_mb(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), math.nan)


def environment() -> dict[str, Any]:
    """Versions, for the meta block."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# ------------------------------------------------------------------------------------------------------------- writing


def mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")


@contextmanager
def kept(
    out: Path | None, command: str, parts: Callable[[], dict[str, Any]] | None = None
) -> Iterator[Callable[[], None]]:
    """Keep in ``out`` what there is so far, while rows come, and with the error if one fails or the user stops.

    Parameters
    ----------
    out
        File to write; ``None`` writes nothing.
    command
        What was typed.
    parts
        What there is so far. By default the rows of the :class:`Results` that are filled in here, which are kept
        after each method by themselves; others call what is yielded after each row.
    """
    latest: list[Results] = []
    written = [-math.inf]
    meta = {"command": command, "unfinished": True}

    def so_far() -> dict[str, Any]:
        return parts() if parts is not None else latest[-1].parts() if latest else {}

    def keep() -> None:
        if out is not None and any(so_far().values()) and time.monotonic() - written[0] >= KEEP_EVERY:
            write_document(out, {"meta": meta, **so_far()})
            written[0] = time.monotonic()

    def keep_results(results: Results) -> None:
        latest[:] = [results]
        keep()

    Results.keeper = keep_results
    try:
        yield keep
    except BaseException as error:
        there = so_far()
        if out is not None and any(there.values()):
            rows = next(rows for rows in there.values() if rows)
            failed = {"after": rows[-1], "error": f"{type(error).__name__}: {error}"}
            write_document(out, {"meta": meta, **there, "failed": [failed]})
            print(f"written: {out.name}, with what there was and the row that failed", file=sys.stderr)
        raise
    finally:
        Results.keeper = None


def plain(value: Any) -> Any:
    """The same as json knows it; NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else round(value, 6)
    return value


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def show(table: pd.DataFrame, digits: int = 3) -> None:
    """Print a table; what is undefined is a dash."""
    with pd.option_context("display.width", 240, "display.max_columns", None, "display.max_rows", None):
        print(table.to_string(float_format=lambda v: f"{v:.{digits}f}", na_rep="–"))


def _place(row: Row) -> tuple[str, str, str, int]:
    return row.dataset, row.section, row.fold, row.seed


def _interval(entry: dict[str, Any], which: str) -> str:
    low, high = entry.get(f"low{which}"), entry.get(f"high{which}")
    return "–" if low is None or math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"
