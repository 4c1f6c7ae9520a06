"""Labels of niches: a linear head on what the network, the cell and its surroundings say.

n cells, F features, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stgen._labels import read_labels
from stgen._warn import warn

N_AROUND = 30
"""Nearest cells, itself included, whose components are averaged."""
PENALTY = 10.0
"""Weight of the squared weights of the logistic regression."""
SMALLEST_CLASS = 2
"""Cells that a class needs to be learned."""
MOST_NUMBERS = 30
"""Different numbers up to which a column with fractions passes as labels."""
SMALLEST_SECTION = 50
"""Cells from which a section's own mean and spread are taken without a warning."""


def known_labels(labels: pd.Series, key: str) -> pd.Series:
    """Labels that can be learned as text, ``None`` for cells that teach nothing; at least two classes of two cells.

    A class of a single cell is left out with a warning: one such cell must not keep the others from being learned.
    """
    _check_classes(labels, key)
    text = read_labels(labels, f"obs[{key!r}]")
    if text.isna().all():
        raise ValueError(f"obs[{key!r}] must label some cells; all {len(text)} are missing.")
    counts = text.value_counts()
    rare = counts.index[counts < SMALLEST_CLASS]
    common = counts.index.difference(rare, sort=False)
    lone = f"; {_named(rare)} of a single cell each cannot be learned" if len(rare) else ""
    if len(common) < 2:
        raise ValueError(
            f"obs[{key!r}] must have at least two classes of {SMALLEST_CLASS} cells; found only {_named(common) or 'none'}"
            f"{lone}. Label more cells, or join classes."
        )
    if len(rare):
        warn(
            f"{len(rare)} of {len(counts)} classes of obs[{key!r}] have a single cell and are left out: {_named(rare)} (1 cell "
            "each). A class needs at least 2 cells to be learned; join it with another one to keep it."
        )
    return text.where(~text.isin(rare), None)


def _named(names: pd.Index) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _check_classes(labels: pd.Series, key: str) -> None:
    """Refuse a score, which has a value of its own for nearly every cell."""
    values = labels.dropna()
    if isinstance(values.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(
        values.infer_objects()
    ):
        return
    numbers = values.astype(float)
    n_different = numbers.nunique()
    is_whole = bool((numbers == np.floor(numbers)).all())
    if n_different > MOST_NUMBERS and not (is_whole and 2 * n_different <= len(numbers)):
        raise ValueError(
            f"obs[{key!r}] must hold classes; found {n_different} different numbers in {len(numbers)} cells, such as "
            f"{numbers.iloc[0]:.4g}. It looks like a score: cut it into classes (`pd.cut`), or name the column of labels."
        )


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
