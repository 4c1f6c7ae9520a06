"""Errors per gene, in the units of the arrays given: say which (counts, or log1p of normalised counts)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Floats, by_gene
from ._correlation import correlation


def rmse(truth: Any, prediction: Any) -> Floats:
    """Root mean squared error of every gene.

    Parameters
    ----------
    truth, prediction
        Spots × genes in the same units; dense or sparse.

    Returns
    -------
    One number per gene, in the units of the input; NaN where a value is not finite.
    """
    return by_gene(lambda x, y: np.sqrt(((x - y) ** 2).mean(axis=0)), truth, prediction)


def mae(truth: Any, prediction: Any) -> Floats:
    """Mean absolute error of every gene.

    Parameters
    ----------
    truth, prediction
        Spots × genes in the same units; dense or sparse.

    Returns
    -------
    One number per gene, in the units of the input; NaN where a value is not finite.
    """
    return by_gene(lambda x, y: np.abs(x - y).mean(axis=0), truth, prediction)


def zscore_rmse(truth: Any, prediction: Any) -> Floats:
    r"""RMSE between z-scores, for comparison with papers that report it.

    With population moments it is :math:`\sqrt{2 (1 - r)}` of the Pearson correlation :math:`r` and says
    nothing that :func:`pearson` does not say.

    Parameters
    ----------
    truth, prediction
        Spots × genes; dense or sparse.

    Returns
    -------
    One number per gene from 0 to 2; NaN where :func:`pearson` is NaN.
    """
    return np.sqrt(2 * (1 - by_gene(correlation, truth, prediction)))
