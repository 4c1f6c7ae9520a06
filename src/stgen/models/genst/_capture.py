"""What of every gene morphology shows.

The share of a gene that its image captures is r²/reliability. r is the correlation of what is predicted from the image
alone with what is measured; no prediction can correlate better than √reliability, since the rest of the measured
variance is the luck of which molecules were caught. Reliability comes from halving: every molecule goes to one of two
halves by a coin, which makes two measurements of the same spot; their correlation, stepped up to the full depth
(Spearman-Brown, 2r / (1 + r)), is the share of measured variance that a second measurement would show again. The ratio
to what the gene's own codes reach (the ceiling) would not do: codes also keep noise, and a noisy gene has little of
either.

Correlations are per section, on the normalised scale, and averaged over sections before anything is squared: the square
of a noisy number is too large. Intervals draw sections, and blocks of spots within each of them: a few sections alone
would hardly vary.

n spots, G genes, S sections, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stgen.metrics import normalize_panel, pearson
from stgen.metrics._bootstrap import draw_weights, pearson_draws, percentile_interval, spatial_blocks

from ._sections import Section

MIN_RELIABILITY = 0.1
"""Below this a captured share is not told: it would be one small number divided by another."""
LEVEL = 0.95


class Capture:
    """Scores of every gene, section by section; how often a draw takes a section is settled beforehand."""

    def __init__(
        self, n_sections: int, target: float, *, n_boot: int, n_halvings: int, rng: np.random.Generator
    ) -> None:
        self.target, self.n_halvings, self.n_boot, self.rng = target, n_halvings, n_boot, rng
        self.boot = rng.spawn(1)[0]
        self.taken = draw_weights(n_sections, n_boot, self.boot)
        self.scored: list[dict[str, np.ndarray]] = []
        self.r_drawn, self.reliability_drawn = _Mean(), _Mean()

    def add(self, section: Section) -> None:
        """Score the next section."""
        block = spatial_blocks(section.xy)
        weights = draw_weights(int(block.max()) + 1, self.n_boot, self.boot)
        taken = self.taken[:, len(self.scored), None]
        half, half_drawn = _Mean(), _Mean()
        for _ in range(self.n_halvings):
            pair = halved(section.counts, self.target, self.rng)
            half.add(pearson(*pair))
            half_drawn.add(pearson_draws(*pair, block, weights))
        varies = np.ptp(section.measured, axis=0) > 0
        # a constant prediction shows nothing of a gene that varies, which is 0
        r_cross = pearson(section.measured, section.cross)
        r_drawn = pearson_draws(section.measured, section.cross, block, weights)
        flat = varies & np.isnan(r_cross)
        self.r_drawn.add(np.where(flat, 0.0, r_drawn), taken)
        self.reliability_drawn.add(stepped_up(half_drawn.value), taken)
        self.scored.append(
            {
                "r_cross": np.where(flat, 0.0, r_cross),
                "ceiling": pearson(section.measured, section.own),
                "reliability": stepped_up(half.value),
                "n_spots": np.where(varies, len(section.counts), 0),
            }
        )

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """One row per gene."""
        of = {name: np.stack([one[name] for one in self.scored]) for name in self.scored[0]}
        mean = {name: _mean(values) for name, values in of.items()}
        captured = captured_share(mean["r_cross"], mean["reliability"])
        # a draw of unreliable sections must not blow up the interval
        reliability = np.maximum(self.reliability_drawn.value, MIN_RELIABILITY)
        low, high = percentile_interval(captured_share(self.r_drawn.value, reliability), LEVEL)
        known = ~np.isnan(captured)
        return pd.DataFrame(
            {
                "captured": captured,
                "captured_low": np.where(known, low, np.nan),
                "captured_high": np.where(known, high, np.nan),
                "r_cross": mean["r_cross"],
                "ceiling": mean["ceiling"],
                "reliability": mean["reliability"],
                "n_spots": of["n_spots"].sum(axis=0),
            },
            index=pd.Index(list(genes), name="gene"),
        )


def halved(counts: np.ndarray, target: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two measurements out of one: every molecule goes to one of two halves by a coin. Both on the normalised scale."""
    whole = np.rint(counts).astype(np.int64)
    half = rng.binomial(whole, 0.5)
    first, second = (normalize_panel(one, target=target) for one in (half, whole - half))
    return first, second


def stepped_up(r: np.ndarray) -> np.ndarray:
    """Reliability of the whole from the correlation of halves (Spearman-Brown)."""
    # a correlation below -1/3 is chance, and its pole at -1 would rule the mean over sections
    r = np.maximum(r, -1 / 3)
    return 2 * r / (1 + r)


def captured_share(r: np.ndarray, reliability: np.ndarray) -> np.ndarray:
    """r²/reliability: 0 where r < 0, NaN where reliability is near 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.maximum(r, 0) ** 2 / reliability
    return np.where(reliability >= MIN_RELIABILITY, share, np.nan)


class _Mean:
    """Mean of arrays that come one after another, of what is defined; NaN where nothing is."""

    def __init__(self) -> None:
        self.total: np.ndarray | float = 0.0
        self.n: np.ndarray | float = 0.0

    def add(self, values: np.ndarray, weight: np.ndarray | float = 1.0) -> None:
        known = ~np.isnan(values)
        self.total = self.total + weight * np.where(known, values, 0.0)
        self.n = self.n + weight * known

    @property
    def value(self) -> np.ndarray:
        return np.where(self.n > 0, self.total / np.maximum(self.n, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    mean = _Mean()
    for one in values:
        mean.add(one)
    return mean.value
