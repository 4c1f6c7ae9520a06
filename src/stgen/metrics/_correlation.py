"""Correlation per gene over the spots of one section.

Never over several sections at once: differences between section means alone then pass for skill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from ._arrays import Floats, by_gene, centred


def pearson(truth: Any, prediction: Any) -> Floats:
    """Pearson correlation of every gene.

    Parameters
    ----------
    truth, prediction
        Spots × genes on the same scale; dense or sparse.

    Returns
    -------
    One number per gene in [-1, 1]; NaN where truth or prediction is constant or has a value that is not finite.

    Examples
    --------
    >>> import numpy as np, stgen as stg
    >>> stg.metrics.pearson(np.array([[1, 5], [2, 5], [3, 5]]), np.array([[2, 0], [4, 1], [6, 2]]))
    array([ 1., nan])
    """
    return by_gene(correlation, truth, prediction)


def spearman(truth: Any, prediction: Any) -> Floats:
    """Spearman rank correlation of every gene; ties share their mean rank.

    Parameters
    ----------
    truth, prediction
        Spots × genes; dense or sparse.

    Returns
    -------
    One number per gene in [-1, 1]; NaN where truth or prediction is constant or has a value that is not finite.
    """
    return by_gene(lambda x, y: correlation(_ranks(x), _ranks(y)), truth, prediction)


def correlation(x: Floats, y: Floats) -> Floats:
    """Pearson correlation of the columns of two dense arrays."""
    x, y = centred(x), centred(y)
    r = (x * y).sum(axis=0) / (np.sqrt((x * x).sum(axis=0)) * np.sqrt((y * y).sum(axis=0)))
    return np.clip(r, -1, 1)


def _ranks(values: Floats) -> Floats:
    return np.asarray(rankdata(values, axis=0, nan_policy="propagate"))
