"""From a standardised pattern to expression that can be believed: level, interval, and how well a gene can be imputed.

All three are learned on measured genes, each predicted from the folds it is not in, and carried to genes that nobody measured by
what the reference knows of them.

s spots of the sample, m measured genes, w wanted ones, k features of a gene, Q probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WIDENED = 0.5
"""Patterns that least squares has shrunk are widened by this power of their standard deviation: 0 leaves them, 1 gives them
that of a measured gene. Half-way the squared error is 1 % larger, and structural similarity .04 to .06."""
N_BINS = 25
MASSES = (50, 90)
"""Of central intervals, in per cent."""
PROBABILITIES = np.linspace(0.005, 0.995, 199)
MAX_PAIRS = 400_000
"""Predictions beside truths at most from which intervals are read."""
LEVEL = 0.8
"""Of the interval of a gene's predictability."""
Z = 1.2816
"""Half-width of that interval in standard deviations."""


@dataclass(frozen=True)
class Regression:
    """Ridge regression on standardised features, with the error it makes on genes left out."""

    mean: NDArray[np.float64]
    """(k,) of the features."""
    unit: NDArray[np.float64]
    """(k,) their standard deviation; infinite where a feature is constant."""
    weight: NDArray[np.float64]
    """(k + 1, outcomes), the offset first."""
    error: NDArray[np.float64]
    """(outcomes) standard deviation of the error on genes left out."""

    @classmethod
    def fit(
        cls, features: NDArray[np.float64], outcome: NDArray[np.float64], penalty: float = 3.0
    ) -> Regression:
        mean, sd = features.mean(axis=0), features.std(axis=0)
        unit = np.where(sd > 1e-8, sd, np.inf)
        x = np.column_stack([np.ones(len(features)), (features - mean) / unit])
        square = x.T @ x + penalty * np.diag([0.0] + [1.0] * features.shape[1])
        inverse = np.linalg.pinv(square)
        weight = inverse @ x.T @ outcome
        leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
        left_out = (outcome - x @ weight) / np.maximum(1 - leverage, 0.05)[:, None]
        return cls(mean, unit, weight, np.sqrt((left_out**2).mean(axis=0)))

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.column_stack([np.ones(len(features)), (features - self.mean) / self.unit])
        return x @ self.weight

    def packed(self) -> NDArray[np.float64]:
        """All numbers in one array."""
        n = self.weight.shape[1]
        top = np.stack([np.r_[0.0, self.mean], np.r_[1.0, self.unit]], axis=1)
        return np.vstack([np.hstack([top, self.weight]), np.r_[0.0, 0.0, self.error][None, : n + 2]])

    @classmethod
    def unpacked(cls, packed: NDArray[np.float64]) -> Regression:
        """What :meth:`packed` gave."""
        return cls(packed[1:-1, 0], packed[1:-1, 1], packed[:-1, 2:], packed[-1, 2:])


def level_features(facts: Floats) -> NDArray[np.float64]:
    """(w, k) what the reference knows about how much a gene is expressed."""
    mean, sd, detected, _ = facts.T.astype(np.float64)
    return np.stack([mean, sd, np.log(mean + 1e-3), np.log(sd + 1e-3), detected], axis=1)


def fit_level(facts: Floats, x: Floats) -> Regression:
    """From facts of the reference to the mean and log standard deviation over spots (s, m)."""
    return Regression.fit(
        level_features(facts), np.stack([x.mean(axis=0), np.log(x.std(axis=0) + 1e-3)], axis=1)
    )


def level(regression: Regression, facts: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation over spots (w,)."""
    mean, log_sd = regression(level_features(facts)).T
    return np.maximum(mean, 0.0).astype(np.float32), np.exp(np.clip(log_sd, -7, 3)).astype(np.float32)


def widening(strength: Floats) -> Floats:
    """Factors (w,) of patterns with these standard deviations."""
    return np.clip(strength, 1e-3, None) ** -WIDENED


@dataclass(frozen=True)
class Intervals:
    """What was measured where a value was predicted: quantiles of truths, by prediction."""

    centre: Floats
    """(bins,) predictions."""
    quantile: Floats
    """(bins, Q) of what was measured."""
    sd: Floats
    """(bins,) of what was measured."""
    mass: Floats
    """(bins, masses) share of what was measured that each central interval really holds: of many zeros, more than asked."""

    @classmethod
    def fit(cls, predicted: Floats, truth: Floats, seed: int) -> Intervals:
        """From predictions (s, m) of genes left out, and truths."""
        x, y = predicted.ravel(), truth.ravel()
        if len(x) > MAX_PAIRS:
            chosen = np.random.default_rng(seed).choice(len(x), MAX_PAIRS, replace=False)
            x, y = x[chosen], y[chosen]
        order = np.argsort(x, kind="stable")
        parts = np.array_split(order, min(N_BINS, len(order)))
        return cls(
            np.array([x[part].mean() for part in parts], dtype=np.float32),
            np.stack([np.quantile(y[part], PROBABILITIES) for part in parts]).astype(np.float32),
            np.array([y[part].std() for part in parts], dtype=np.float32),
            np.array([[_mass(y[part], mass) for mass in MASSES] for part in parts], dtype=np.float32),
        )

    def at(self, predicted: Floats, probability: float) -> Floats:
        """Quantile of what is measured where ``predicted`` is predicted."""
        column = np.array([np.interp(probability, PROBABILITIES, one) for one in self.quantile])
        return np.interp(predicted, self.centre, column).astype(np.float32)

    def mass_at(self, predicted: Floats, mass: int) -> Floats:
        """Share of what is measured there that the central ``mass`` % interval holds."""
        return np.interp(predicted, self.centre, self.mass[:, MASSES.index(mass)]).astype(np.float32)

    def spread(self, predicted: Floats) -> Floats:
        """Standard deviation of what is measured there."""
        return np.interp(predicted, self.centre, self.sd).astype(np.float32)


def _mass(values: Floats, mass: int) -> float:
    """Share of values in their own central interval, its ends included."""
    low, high = np.quantile(values, [0.5 - mass / 200, 0.5 + mass / 200])
    return float(((values >= low) & (values <= high)).mean())


def pearson(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Per column; 0 where a column is constant."""
    x, y = (one - one.mean(axis=0) for one in (x.astype(np.float64), y.astype(np.float64)))
    size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.where(size > 1e-12, (x * y).sum(axis=0) / np.maximum(size, 1e-12), 0.0)


def trust_features(facts: Floats, strength: Floats, nearest: Floats) -> NDArray[np.float64]:
    """(w, k) how strongly a gene is predicted, how alike the most alike measured gene is, and facts of the reference."""
    mean, sd, detected, between = facts.T.astype(np.float64)
    return np.stack([strength, nearest, np.log(mean + 1e-3), np.log(sd + 1e-3), detected, between], axis=1)


def fit_trust(features: NDArray[np.float64], hint: Floats, truth: Floats, shared: Floats) -> Regression:
    """From features to the Pearson correlation of a left-out gene, and its gain over the mean of measured genes.

    ``shared`` (s, m) is, for every gene, the mean pattern of the genes outside its fold: the null that knows no reference.
    """
    score = pearson(hint, truth)
    gain = score - np.maximum(pearson(shared, truth), 0.0)
    # a strong penalty: a panel may have two dozen genes
    return Regression.fit(features, np.stack([score, gain], axis=1), penalty=30.0)


def trust(
    regression: Regression, features: NDArray[np.float64], genes: list[str], is_known: NDArray[np.bool_]
) -> pd.DataFrame:
    """Table, genes × (``predictability``, ``low``, ``high``, ``gain``, ``gain_low``, ``gain_high``, ``verdict``).

    ``"use"`` if the whole interval of the gain is above 0, ``"weak"`` if only the expected gain is, else ``"do not use"``: more
    likely than not the null does as well. A gene that no cell of the reference has (not ``is_known``) is expected to correlate
    by 0.
    """
    score, gain = np.where(is_known, regression(features).T, 0.0)
    wide, wide_gain = Z * regression.error
    low, high = gain - wide_gain, gain + wide_gain
    return pd.DataFrame(
        {
            "predictability": np.clip(score, -1, 1),
            "low": np.clip(score - wide, -1, 1),
            "high": np.clip(score + wide, -1, 1),
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "verdict": np.select([~is_known, low > 0, gain > 0], ["do not use", "use", "weak"], "do not use"),
        },
        index=pd.Index(genes, name="gene"),
    )
