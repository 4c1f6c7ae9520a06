"""From spots and a reference to sets of genes: hints, latents and residuals, made so that no gene helps to predict itself.

A gene's *latent* is the least-squares coefficient of its spatial pattern on axes of the spots: shares of the reference's
metacells in a spot and around it, seen along the metacells' principal components. Axes belong to the reference, so they mean
the same in every dataset and do not grow with spots or cells.

Measured genes are cut into folds. In the set of a fold its genes are *targets*: axes and hints are made without them, the
other genes' residuals too. When genes are wanted that nobody measured, all measured genes are the context.

s spots of the sample, m measured genes, w wanted ones, L length of a latent, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...experts._weight import non_negative
from ...nn._network import Batch
from ._reference import Reference
from ._views import Hints, Predictor, left_out_views

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

RIDGE = 0.05
"""Penalty of a latent, in units of an axis' variance."""
AROUND = 2
"""Which of ``NEIGHBOURHOODS`` the second half of the axes is of; without places, the spot itself once more."""


class Axes:
    """Axes of spots: what a predictor's metacells say of a spot and of its neighbourhood."""

    def __init__(self, reference: Reference, predictor: Predictor, of_sample: Sequence[Floats]) -> None:
        self.along, self.predictor = reference.axes, predictor
        raw = self._raw(of_sample)
        self.mean, sd = raw.mean(axis=0), raw.std(axis=0)
        self.unit = np.where(sd > 1e-5, sd, np.inf).astype(np.float32)
        self.of_sample = (raw - self.mean) / self.unit
        n = len(raw)
        square = self.of_sample.T @ self.of_sample / n + RIDGE * np.eye(raw.shape[1])
        self.solve = np.linalg.solve(square, self.of_sample.T / n).astype(np.float32)

    def _raw(self, neighbourhoods: Sequence[Floats]) -> Floats:
        around = min(AROUND, len(neighbourhoods) - 1)
        own, near = (self.predictor.mixture(neighbourhoods[i]) @ self.along for i in (0, around))
        return np.concatenate([own, near], axis=1)

    def rows(self, neighbourhoods: Sequence[Floats]) -> Floats:
        """(n, L) of some spots."""
        return (self._raw(neighbourhoods) - self.mean) / self.unit

    def latents(self, pattern: Floats) -> Floats:
        """(w, L) of patterns (s, w)."""
        return (self.solve @ pattern).T


@dataclass(frozen=True)
class GeneSets:
    """Sets of genes as tensors; row r is the set of fold r modulo F."""

    identity: Tensor
    """(m, R)"""
    hint: Tensor
    """(F, m, L) latents of hints."""
    residual: Tensor
    """(F, m, L) of genes that are context; 0 for targets."""
    is_target: Tensor
    """(F, m)"""
    target: Tensor | None
    """(F, m, L) of targets; 0 for context."""
    n_rows: int
    """Rows that may be asked for."""

    def __len__(self) -> int:
        return self.n_rows

    def batch(self, rows: Tensor) -> Batch:
        """Sets of genes."""
        fold = rows % len(self.hint)
        batch = {
            "index": rows,
            "identity": self.identity.expand(len(rows), -1, -1),
            "hint": self.hint[fold],
            "residual": self.residual[fold],
            "is_target": self.is_target[fold],
        }
        return batch if self.target is None else batch | {"target": self.target[fold]}

    def to(self, device: torch.device) -> GeneSets:
        """The same on another device."""
        return GeneSets(
            self.identity.to(device),
            self.hint.to(device),
            self.residual.to(device),
            self.is_target.to(device),
            None if self.target is None else self.target.to(device),
            self.n_rows,
        )


def identities(reference: Reference, genes: Ints) -> Floats:
    """(w, R) of genes: their profile along the metacells' axes, and facts."""
    mean, sd, detected, between = reference.facts[genes].T
    facts = np.stack([np.log(mean + 1e-3), np.log(sd + 1e-3), 2 * detected - 1, 2 * between - 1], axis=1)
    return np.concatenate([reference.metacells[:, genes].T @ reference.axes, facts], axis=1).astype(
        np.float32
    )


@dataclass(frozen=True)
class Known:
    """Measured genes, each seen from the others: what everything after it is fitted on."""

    views: Floats
    """(V, s, m)"""
    weight: NDArray[np.float64]
    """(V,)"""

    @property
    def hint(self) -> Floats:
        """(s, m) standardised patterns."""
        return np.tensordot(self.weight.astype(np.float32), self.views, axes=1)


def known(reference: Reference, measured: Ints, spots: Sequence[Floats], folds: Sequence[Ints]) -> Known:
    """Views of measured genes from the folds they are not in, and weights fitted on them."""
    views = left_out_views(reference, measured, spots, np.arange(len(measured)), folds)
    return Known(views, non_negative(views, spots[0]))


def training_sets(
    reference: Reference,
    measured: Ints,
    spots: Sequence[Floats],
    folds: Sequence[Ints],
    weight: NDArray[np.float64],
    scale: Floats | None,
    n_rows: int,
    *,
    targets: bool,
) -> tuple[GeneSets, Floats]:
    """One set for each fold, and the scale (L) by which residuals are divided."""
    m, n_axes = len(measured), 2 * reference.axes.shape[1]
    hint, residual, target = (np.zeros((len(folds), m, n_axes), dtype=np.float32) for _ in range(3))
    is_target = np.zeros((len(folds), m), dtype=bool)
    for number, part in enumerate(folds):
        others = np.setdiff1d(np.arange(m), part)
        predictor = Predictor.make(reference, measured, others, measured[part])
        axes, hints = Axes(reference, predictor, spots), Hints(predictor, spots, weight)
        # folds of the others, as numbers among them
        inner = [np.searchsorted(others, one) for i, one in enumerate(folds) if i != number]
        views = left_out_views(reference, measured, spots, others, inner)
        context = np.tensordot(weight.astype(np.float32), views, axes=1)
        hint[number, part], hint[number, others] = axes.latents(hints.of_sample), axes.latents(context)
        residual[number, others] = axes.latents(spots[0][:, others] - context)
        target[number, part] = axes.latents(spots[0][:, part] - hints.of_sample)
        is_target[number, part] = True
    if scale is None:
        scale = np.maximum(target[is_target].std(axis=0), 1e-6)
    unit = torch.from_numpy(scale)
    sets = GeneSets(
        torch.from_numpy(identities(reference, measured)),
        torch.from_numpy(hint) / unit,
        torch.from_numpy(residual) / unit,
        torch.from_numpy(is_target),
        torch.from_numpy(target) / unit if targets else None,
        n_rows,
    )
    return sets, scale
