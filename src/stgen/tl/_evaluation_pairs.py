"""One prediction against another: paired differences, gene by gene and section by section.

S sections, G genes. Pairs are taken among predictions only, so that n of them make n (n - 1) / 2 comparisons, one row
each for a metric and scale; nothing is written per gene.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from stgen import metrics
from stgen.get._comparison import COLUMNS

from ._evaluation_table import ERRORS, UNDEFINED, BlockBootstrap, Floats, Method, Scores, _mean, _means

UNDECIDED = "undecided"


def pairs_table(scores: Scores, bootstrap: BlockBootstrap, *, flags: Sequence[str]) -> pd.DataFrame:
    """One row for each pair of predictions, metric and scale."""
    rows = [
        _pair(scores, bootstrap, method, other, metric, scale) | {"flags": "; ".join(flags)}
        for metric in scores.metric_names
        for scale in scores.scales
        for method, other in combinations(scores.of_kind("model"), 2)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _pair(
    scores: Scores, bootstrap: BlockBootstrap, method: Method, other: Method, metric: str, scale: str
) -> dict[str, Any]:
    own, its = (scores.skill(one.name, metric, scale) for one in (method, other))
    gains_SG = own - its  # NaN unless both have a value: only genes that both are scored on count
    by_section = _means(gains_SG)
    is_paired = ~np.isnan(gains_SG)
    gain = _mean(by_section)
    low, high, over = _interval(by_section, bootstrap, method, other, metric, scale)
    sign = -1 if metric in ERRORS else 1
    return {
        "method": method.name,
        "other": other.name,
        "metric": metric,
        "scale": scale,
        "value": sign * _mean(_means(np.where(is_paired, own, np.nan))),
        "other_value": sign * _mean(_means(np.where(is_paired, its, np.nan))),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "interval": over,
        "n_sections": int(np.isfinite(by_section).sum()),
        "n_better": int((by_section > 0).sum()),
        "share_better": float((gains_SG > 0).sum() / is_paired.sum()) if is_paired.any() else np.nan,
        "n_genes": gains_SG.shape[1],
        "n_undefined": int((~is_paired).sum()),
        "better": _better(method.name, other.name, gain, low, high),
    }


def _interval(
    gains: Floats, bootstrap: BlockBootstrap, method: Method, other: Method, metric: str, scale: str
) -> tuple[float, float, str]:
    """As for the gain over a null: of correlations, blocks inside sections are drawn as well."""
    if np.isnan(gains).all():
        return np.nan, np.nan, ""
    if metric == "pearson":
        return *bootstrap.mean_gain(method.name, other.name, scale), bootstrap.over
    low, high = metrics.bootstrap_interval(
        gains, level=bootstrap.level, n_boot=bootstrap.n_boot, random_state=bootstrap.random_state
    )
    return low, high, "" if np.isnan(low) else "sections"


def _better(method: str, other: str, gain: float, low: float, high: float) -> str:
    if np.isnan(gain):
        return UNDEFINED
    return method if low > 0 else other if high < 0 else UNDECIDED
