"""Pictures of a benchmark: maps of genes, measured beside predicted; scores beside the nulls; calibration.

Genes are not picked for their looks: those at the 90th, 70th, 50th and 30th percentile of the section's scores are
drawn, in the section whose mean score is in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _report import HEADLINE, Results

from stgen import _keys, metrics, pl

PERCENTILES = (90, 70, 50, 30)


class Kept(NamedTuple):
    """What a picture needs of one fold."""

    test: Any
    """AnnData with the measured counts of the held-out rows."""
    model: str
    normalized: np.ndarray
    distribution: dict[str, np.ndarray]


def draw(folder: Path, dataset: str, results: Results, kept: list[Kept]) -> list[Path]:
    """Write the pictures of one dataset; gives their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    section, ax = _maps(kept)
    paths = [_save(ax, folder / f"{dataset}_{section}_maps.png")]
    paths.append(_save(pl.scores(score_table(results, dataset)), folder / f"{dataset}_scores.png"))
    pit = [
        metrics.randomized_pit(_dense(one.test), one.distribution["below"], one.distribution["at"])
        for one in kept
    ]
    together = {kept[0].model: np.concatenate([values.ravel() for values in pit])}
    paths.append(_save(pl.calibration(together), folder / f"{dataset}_calibration.png"))
    return paths


def score_table(results: Results, dataset: str) -> pd.DataFrame:
    """The table that ``pl.scores`` draws: a value for each method and section, and the mean with its gain."""
    metric, scale = HEADLINE
    rows = [row for row in results.rows if (row.dataset, row.metric, row.scale) == (dataset, metric, scale)]
    by_section = pd.DataFrame(rows).pivot_table("value", "method", "section", dropna=False)
    by_section = by_section.reindex(results.methods(dataset))
    mean = by_section.mean(axis=1)
    nulls = mean[[name for name in mean.index if results.kinds[name] == "null"]].dropna()
    best = str(nulls.idxmax()) if len(nulls) else ""
    long = by_section.assign(mean=mean).stack(future_stack=True).rename("value").reset_index()
    long.columns = ["method", "section", "value"]
    long["gain"] = long["value"] - (nulls[best] if best else np.nan)
    return long.assign(metric=metric, scale=scale, kind=long["method"].map(results.kinds), best_null=best)


def _maps(kept: list[Kept]) -> tuple[str, Any]:
    scored = []
    for one in kept:
        section = one.test.obs[_keys.LIBRARY].astype(str).to_numpy()
        truth = metrics.normalize_panel(_dense(one.test))
        for name in np.unique(section):
            here = section == name
            r = metrics.pearson(truth[here], one.normalized[here])
            scored.append((float(np.nanmean(r)), str(name), r, one))
    scored.sort(key=lambda item: item[0])
    _, name, r, one = scored[(len(scored) - 1) // 2]
    order = np.argsort(np.where(np.isnan(r), -2, r))
    genes = [str(one.test.var_names[order[round((len(r) - 1) * p / 100)]]) for p in PERCENTILES]
    adata = one.test.copy()
    adata.layers[one.model] = one.normalized
    return name, pl.gene_maps(adata, genes, prediction=one.model, section=name, prediction_scale="normalized")


def _dense(adata: Any) -> np.ndarray:
    return np.asarray(adata.X.toarray(), dtype=np.float64)


def _save(ax: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure = np.ravel(ax)[0].figure
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path
