"""Scores beside the nulls they must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.get import comparison

from ._axes import FAINT, INK, KIND_COLORS, one_axes, quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

ORDER = {"oracle": 0, "null": 1, "baseline": 2, "peer": 3, "model": 4}
"""From the bottom up."""
SIGNED = ("pearson", "spearman", "ssim")
LABELS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rmse": "RMSE",
    "ssim": "SSIM",
}


def scores(
    data: AnnData | pd.DataFrame,
    *,
    key: str = _keys.EVALUATION,
    metric: str = "pearson",
    scale: str = "normalized",
    methods: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the scores of :func:`stgen.tl.evaluate`: every method beside its nulls.

    A dot is the mean over genes of one section, a bar their mean; with the AnnData and Pearson correlations the
    distribution over genes lies behind them. A dashed line marks the best null; the number in brackets is the gain over
    it. Several predictions stand above each other in the order they were given; with the AnnData, lines below the plot
    say how far the best of them is ahead of the others, with the interval of the paired difference
    (:func:`stgen.get.comparison`).

    Parameters
    ----------
    data
        AnnData that :func:`stgen.tl.evaluate` wrote to, or the table it returned.
    key
        Key of the results in ``uns``.
    metric, scale
        Which rows of the table.
    methods
        Names of the methods to draw. ``None`` draws all.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> adata.layers["mine"] = adata.X.toarray()
    >>> table = stg.tl.evaluate(adata, "mine", baselines="nulls")
    >>> ax = stg.pl.scores(adata)
    """
    table, by_gene = _read(data, key, metric, scale)
    is_wanted = (table["metric"] == metric) & (table["scale"] == scale)
    if methods is not None:
        is_wanted &= table["method"].isin(list(methods))
    rows = table[is_wanted]
    if rows.empty:
        raise ValueError(
            f"There are no scores of metric {metric!r} on scale {scale!r}"
            + ("" if methods is None else f" for {list(methods)}")
            + f"; the table has {sorted(set(table['metric']))} of {sorted(set(table['method']))}."
        )
    mean = rows[rows["section"] == "mean"].drop_duplicates("method").set_index("method")
    mean = _bottom_up(mean)
    ax = one_axes(ax, 6.0, 0.9 + 0.42 * len(mean))
    for height, name in enumerate(map(str, mean.index)):
        row = mean.iloc[height]
        kind = str(row["kind"])
        color = KIND_COLORS.get(kind, INK)
        if name in by_gene:
            _draw_genes(ax, by_gene[name], height, color)
        sections = rows[(rows["method"] == name) & (rows["section"] != "mean")]["value"]
        _draw_sections(ax, sections.to_numpy(dtype=float), row, height, color)
    _draw_best_null(ax, mean)
    if metric in SIGNED:
        ax.axvline(0, color=FAINT, linewidth=1, zorder=0)
    ax.set_yticks(range(len(mean)), list(mean.index))
    for label, kind in zip(ax.get_yticklabels(), mean["kind"]):
        label.set_color(INK if kind != "model" else KIND_COLORS["model"])
        label.set_fontweight("bold" if kind == "model" else "normal")
    ax.set_ylim(-0.6, len(mean) - 0.15)
    ax.set_xlabel(f"{LABELS.get(metric, metric)} per gene, {scale} expression")
    ax.text(
        1, 1.01, "mean (gain)", transform=ax.transAxes, ha="left", va="bottom", fontsize="small", color=INK
    )
    _draw_legend(ax, list(mean["kind"]))
    _write_lines(ax, _ahead(data, key, metric, scale, mean))
    quiet(ax)
    return ax


def _read(data: Any, key: str, metric: str, scale: str) -> tuple[pd.DataFrame, Mapping[str, np.ndarray]]:
    if isinstance(data, pd.DataFrame):
        return data, {}
    if key not in data.uns:
        raise KeyError(f"uns[{key!r}] does not exist; run `stg.tl.evaluate` first. uns has {list(data.uns)}.")
    record = data.uns[key]
    table = pd.DataFrame({name: np.asarray(column) for name, column in record["table"].items()})
    if metric != "pearson" or f"pearson_{scale}" not in record:
        return table, {}
    return table, dict(zip(map(str, record["methods"]), np.asarray(record[f"pearson_{scale}"])))


def _bottom_up(mean: pd.DataFrame) -> pd.DataFrame:
    """Oracles below, models on top; of several models the first one given is the topmost."""
    place = np.arange(len(mean))
    is_model = (mean["kind"] == "model").to_numpy()
    place[is_model] = place[is_model][::-1]
    order = np.lexsort([place, np.array([ORDER.get(kind, 4) for kind in mean["kind"]])])
    return mean.iloc[order]


def _ahead(data: Any, key: str, metric: str, scale: str, mean: pd.DataFrame) -> list[str]:
    """The best prediction against each of the others, one line each."""
    if isinstance(data, pd.DataFrame) or "pairs" not in data.uns[key]:
        return []
    pairs = comparison(data, key=key)
    names = mean.index[(mean["kind"] == "model") & mean["value"].notna()]
    pairs = pairs[(pairs["metric"] == metric) & (pairs["scale"] == scale) & pairs["gain"].notna()]
    pairs = pairs[pairs["method"].isin(names) & pairs["other"].isin(names)]
    if pairs.empty:
        return []
    turned = {"method": "other", "other": "method", "gain_low": "gain_high", "gain_high": "gain_low"}
    flipped = pairs.rename(columns=turned)
    flipped[["gain", "gain_low", "gain_high"]] *= -1
    both = pd.concat([pairs, flipped])
    best = both.groupby("method")["gain"].sum().idxmax()
    columns = ["other", "gain", "gain_low", "gain_high"]
    lines = []
    for other, gain, low, high in both.loc[both["method"] == best, columns].to_numpy().tolist():
        between = f" [{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else ""
        lines.append(f"{best} is ahead of {other} by {gain:.3f}{between}")
    return lines


def _write_lines(ax: Axes, lines: Sequence[str]) -> None:
    if lines:
        # hung under the label of the axis, so that the layout makes room for both
        ax.annotate(
            "\n".join(lines),
            (0.5, 0),
            xycoords=ax.xaxis.label,
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize="small",
            color=KIND_COLORS["model"],
        )


def _draw_genes(ax: Axes, values: np.ndarray, height: int, color: str) -> None:
    """Half a violin; nothing where no gene has a value."""
    values = values[np.isfinite(values)]
    if len(values) < 3 or np.ptp(values) == 0:
        return
    from scipy.stats import gaussian_kde

    x = np.linspace(values.min(), values.max(), 200)
    density = gaussian_kde(values)(x)
    ax.fill_between(x, height, height + 0.72 * density / density.max(), color=color, alpha=0.3, linewidth=0)


def _draw_sections(ax: Axes, values: np.ndarray, row: pd.Series, height: int, color: str) -> None:
    if np.isnan(row["value"]):
        # placed on the axes and not at 0, which may lie far outside of what is drawn
        ax.annotate(
            "constant or undefined",
            (0.03, height),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize="small",
            style="italic",
        )
        return
    ax.scatter(values, np.full(len(values), height), s=16, color=color, zorder=3, linewidths=0)
    ax.plot([row["value"]] * 2, [height - 0.24, height + 0.24], color=color, linewidth=2.5, zorder=4)
    note = f"{row['value']:.3f}"
    if row["kind"] in ("model", "baseline") and np.isfinite(row["gain"]):
        note += f"  ({row['gain']:+.3f})"
    ax.annotate(
        note,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize="small",
    )


def _draw_best_null(ax: Axes, mean: pd.DataFrame) -> None:
    nulls = mean.loc[mean.index.isin(set(mean["best_null"])) & mean["value"].notna(), "value"]
    if len(nulls):
        ax.axvline(float(nulls.iloc[0]), color=KIND_COLORS["null"], linestyle="--", linewidth=1, zorder=1)


def _draw_legend(ax: Axes, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    shown = sorted(set(kinds), key=lambda kind: -ORDER.get(kind, 4))
    handles = [Patch(color=KIND_COLORS.get(kind, INK), label=kind) for kind in shown]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(shown),
        frameon=False,
        fontsize="small",
        handlelength=1,
        handleheight=1,
        borderpad=0,
        borderaxespad=2.4,  # above the head of the numbers
    )
