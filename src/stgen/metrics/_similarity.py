"""Similarity of a gene's map as a picture (SSIM) and as a distribution over places (JS)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import rel_entr

from ._arrays import Floats, by_gene, centred

C1 = 0.01**2
C2 = 0.03**2
C3 = C2 / 2


def ssim(truth: Any, prediction: Any) -> Floats:
    r"""Structural similarity of every gene, over all spots at once.

    Truth and prediction are each divided by their maximum, then with population moments

    .. math::

        \frac{2\mu\hat\mu + C_1}{\mu^2 + \hat\mu^2 + C_1} \cdot
        \frac{2\sigma\hat\sigma + C_2}{\sigma^2 + \hat\sigma^2 + C_2} \cdot
        \frac{\mathrm{cov} + C_3}{\sigma\hat\sigma + C_3},
        \quad C_1 = 0.01^2,\; C_2 = 0.03^2,\; C_3 = C_2 / 2.

    Parameters
    ----------
    truth, prediction
        Spots × genes; dense or sparse.

    Returns
    -------
    One number per gene, 1 for equal maps; NaN where a maximum is not above 0.
    """
    return by_gene(_ssim, truth, prediction)


def js(truth: Any, prediction: Any) -> Floats:
    """Jensen-Shannon divergence between the spatial distributions of every gene, natural logarithm.

    Parameters
    ----------
    truth, prediction
        Spots × genes, not negative; dense or sparse. Each gene is divided by its sum over the spots.

    Returns
    -------
    One number per gene from 0 (equal) to log 2 (no spot in common); NaN where a gene is all zero or has a
    negative value.
    """
    return by_gene(_js, truth, prediction)


def _ssim(x: Floats, y: Floats) -> Floats:
    x, y = _by_maximum(x), _by_maximum(y)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = centred(x), centred(y)
    sd_x, sd_y = np.sqrt((x * x).mean(axis=0)), np.sqrt((y * y).mean(axis=0))
    covariance = (x * y).mean(axis=0)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    contrast = (2 * sd_x * sd_y + C2) / (sd_x**2 + sd_y**2 + C2)
    return luminance * contrast * (covariance + C3) / (sd_x * sd_y + C3)


def _js(x: Floats, y: Floats) -> Floats:
    x, y = _share(x), _share(y)
    middle = (x + y) / 2
    divergence = (rel_entr(x, middle) + rel_entr(y, middle)).sum(axis=0) / 2
    return np.maximum(divergence, 0)  # rounding may leave -1e-17 for equal maps


def _by_maximum(values: Floats) -> Floats:
    largest = values.max(axis=0)
    return values / np.where(largest > 0, largest, np.nan)


def _share(values: Floats) -> Floats:
    total = values.sum(axis=0)
    is_distribution = (total > 0) & (values >= 0).all(axis=0)
    return values / np.where(is_distribution, total, np.nan)
