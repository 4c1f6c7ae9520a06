"""Labels of niches: a linear head on what the network, the cell and its surroundings say.

n cells, F features, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

N_AROUND = 30
"""Nearest cells, itself included, whose components are averaged."""
PENALTY = 10.0
"""Weight of the squared weights of the logistic regression."""
SMALLEST_CLASS = 2
"""Cells that a class needs to be learned."""
SMALLEST_SECTION = 50
"""Cells from which a section's own mean and spread are taken without a warning."""


def known_labels(labels: pd.Series, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are labelled, and their labels as text; at least two classes of two cells."""
    known = labels.notna().to_numpy()
    if not known.any():
        raise ValueError(f"obs[{key!r}] must label some cells; all {len(labels)} are missing.")
    text = labels[known].astype(str).to_numpy()
    names, counts = np.unique(text, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"obs[{key!r}] must have at least two classes; found only {names[0]!r}.")
    rare = names[counts < SMALLEST_CLASS]
    if len(rare):
        raise ValueError(
            f"Every class of obs[{key!r}] needs at least {SMALLEST_CLASS} cells; {', '.join(map(repr, rare[:3]))} has fewer. "
            "Join it with another class, or set its labels to missing."
        )
    return known, text


def within_sections(features: np.ndarray, section: np.ndarray) -> np.ndarray:
    """Features (n, F), each less its mean and over its spread in the cell's own section (n,)."""
    out = np.empty_like(features)
    for code in np.unique(section):
        here = section == code
        out[here] = features[here] - features[here].mean(axis=0)
        out[here] /= np.maximum(features[here].std(axis=0), 1e-6)
    return out


def fitted_head(features: np.ndarray, labels: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Classes, weights (C, F) and offsets (C,) of a multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=1 / PENALTY, max_iter=5000).fit(features, labels)
    weight, offset = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes share one line
        weight, offset = np.concatenate([-weight, weight]) / 2, np.concatenate([-offset, offset]) / 2
    return [str(one) for one in model.classes_], weight, offset


def probabilities(features: np.ndarray, weight: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """(n, C) from features (n, F)."""
    z = features @ weight.T + offset
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
