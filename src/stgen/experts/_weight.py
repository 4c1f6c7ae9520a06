"""How much of something to believe: one rule for every expert, view, surface and generated residual.

An answer is to be changed; e is its error and c the change, on what neither has seen. Least squares says
w = Σ e·c / Σ c². Few observations make w too bold, so it is *shrunk*, and never negative: a change may be taken in part or
not at all, but is not inverted. One that is weighed alone gets 1 at most. What shrinks it depends on what is at hand:

- many targets at once: towards the weight that is best for all of them (:func:`stacking`);
- one weight from many observations: by standard errors of w (:func:`cautious`);
- many changes at once: they may not be negative (:func:`non_negative`).

Y targets, V changes, n observations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

NOTHING = 1e-12
"""Changes whose squares sum to less are none."""


def agreement(error: Tensor, change: Tensor) -> Tensor:
    """(2, Y): sums of ``error`` times ``change``, and of the square of ``change``, per column."""
    return torch.stack([(error * change).sum(0), change.square().sum(0)])


def stacking(gain: Tensor, size: Tensor, shared_by: slice) -> Tensor:
    """Least-squares weight of a change in explaining an error, per column, shrunk halfway to that of ``shared_by``.

    ``gain`` and ``size`` are what :func:`agreement` says of both.
    """
    shared, usual = gain[shared_by].sum() / size[shared_by].sum().clamp(min=NOTHING), size[shared_by].mean()
    return ((gain + usual * shared) / (size + usual).clamp(min=NOTHING)).clamp(0, 1)


def cautious(gain: Any, size: Any, *, n_errors: float, times: float = 1.0, most: float = 1.0) -> float:
    """Least-squares weight of a change, less so many standard errors.

    Parameters
    ----------
    gain, size
        (n,) of each observation, error times change and the square of the change: both arrays or both tensors.
    n_errors
        Standard errors that are taken off.
    times, most
        What the rest is multiplied by, and the largest weight.
    """
    total = size.sum().clip(min=NOTHING)
    weight = float(gain.sum() / total)
    error = float(((gain - weight * size) ** 2).sum() ** 0.5 / total)
    return min(max(times * (weight - n_errors * error), 0.0), most)


def non_negative(changes: NDArray[Any], error: NDArray[Any]) -> NDArray[np.float64]:
    """(V,) least-squares weights ≥ 0 of changes (V, …) that together explain an error (…).

    They are not held below 1 one by one: what is alike in several changes is divided among them.
    """
    flat, goal = changes.reshape(len(changes), -1).astype(np.float64), error.ravel().astype(np.float64)
    square, product = flat @ flat.T / len(goal), flat @ goal / len(goal)
    root = np.linalg.cholesky(square + 1e-6 * (np.trace(square) + NOTHING) * np.eye(len(square)))
    return np.asarray(nnls(root.T, np.linalg.solve(root, product))[0])
