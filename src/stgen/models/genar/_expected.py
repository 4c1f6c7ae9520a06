"""Expected counts of a spot from its histology and place: two experts, stacked gene by gene.

A ridge (:mod:`._linear`) and a perceptron (:mod:`._perceptron`) predict depth and depth-normalised expression. How much
of each a gene gets is decided on training spots whose section (patient, where registered) neither expert has seen, so
a gene whose link to morphology is linear keeps the ridge, and one with a threshold in it gets the perceptron.
The same left-out answers are what the decoder trains on: it meets the errors that a new section will bring.

B batch, F histology features, G genes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...nn._network import Batch
from ._linear import N_FOLDS, LinearPath, normalized
from ._perceptron import Perceptrons

MAX_ROWS = 100_000
"""Training spots, evenly spread, from which the perceptrons learn."""
PLACE_GAIN = 3.0
"""Waves of place have amplitudes below 1, where histology features have unit spread."""


class ExpectedCounts(nn.Module):
    """Log depth (B,) and log composition (B, G) expected of a spot."""

    share: Tensor
    """(1 + G,): the perceptron's share in the answer for depth and for each gene."""

    def __init__(
        self, n_features: int, n_genes: int, *, use_place: bool = True, nonlinear: bool = True
    ) -> None:
        super().__init__()
        self.linear = LinearPath(n_features, n_genes, use_place=use_place)
        self.perceptrons = Perceptrons(self.linear.n_inputs, n_genes + 1, N_FOLDS) if nonlinear else None
        self.register_buffer("share", torch.zeros(n_genes + 1))

    @property
    def target_total(self) -> Tensor:
        """Median panel total of training spots, to which expression is normalised."""
        return self.linear.target_total

    def answers(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> Tensor:
        """(B, 1 + G): log depth, and expected log1p of depth-normalised counts."""
        inputs = self.linear.inputs(features, xy)
        linear = self.linear.answers(inputs, fold)
        if self.perceptrons is None:
            return linear
        return linear + self.share * (self.perceptrons(self._for_perceptron(inputs), fold) - linear)

    def forward(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``fold`` (B,) asks the experts fitted without the spot's section; without it those fitted on all answer."""
        answer = self.answers(features, xy, fold)
        return answer[:, 0], composition(answer[:, 1:])

    def _for_perceptron(self, inputs: Tensor) -> Tensor:
        histology, waves = inputs.tensor_split([inputs.shape[1] - self.linear.n_waves], dim=1)
        # where the ridge found that place does not carry over to new sections, the perceptron is not told it
        return torch.cat([histology, PLACE_GAIN * (self.linear.place_scale > 0) * waves], dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``counts``, ``fold``."""
        self.linear.fit(batches)
        if self.perceptrons is None:
            return
        inputs, targets, fold = (torch.cat(part) for part in zip(*map(self._case, batches), strict=True))
        step = max(1, len(inputs) // MAX_ROWS)
        inputs, targets, fold = inputs[::step], targets[::step], fold[::step]
        self.perceptrons.fit(self._for_perceptron(inputs), targets, fold)
        if len(fold.unique()) > 1:
            linear = self.linear.answers(inputs, fold)
            other = self.perceptrons(self._for_perceptron(inputs), fold)
            self.share.copy_(_stacking(targets - linear, other - linear))

    def _case(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self.linear.inputs(batch["features"], batch["xy"])
        depth = batch["counts"].sum(-1, keepdim=True).clamp(min=1.0).log()
        return (
            inputs,
            torch.cat([depth, normalized(batch["counts"], self.target_total)], dim=-1),
            batch["fold"],
        )


def composition(expression: Tensor) -> Tensor:
    """Log share of each gene in the panel (B, G) from expected log1p of depth-normalised counts."""
    share = torch.expm1(expression.clamp(min=0.02, max=12.0))
    return share.log() - share.sum(-1, keepdim=True).log()


def _stacking(error: Tensor, change: Tensor) -> Tensor:
    """Least-squares weight of ``change`` in explaining ``error``, per column, shrunk halfway to that of all columns."""
    gain, size = (error * change).sum(0), change.square().sum(0)
    shared, usual = gain[1:].sum() / size[1:].sum().clamp(min=1e-12), size[1:].mean()
    return ((gain + usual * shared) / (size + usual).clamp(min=1e-12)).clamp(0, 1)
