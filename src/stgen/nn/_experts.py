"""What to expect of a spot from its histology and place: two experts, stacked target by target.

A ridge (:mod:`._linear`) and a perceptron (:mod:`._perceptron`) answer. How much of each a target gets is decided on
training spots whose section (patient, where registered) neither expert has seen, so what is linear in morphology keeps
the ridge, and what has a threshold in it gets the perceptron. The same left-out answers are what a network trains on:
it meets the errors that a new section will bring.

B batch, F histology features, Y targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ._linear import N_FOLDS, LinearPath
from ._network import Batch
from ._perceptron import Perceptrons

MAX_ROWS = 100_000
"""Training spots, evenly spread, from which the perceptrons learn."""
PLACE_GAIN = 3.0
"""Waves of place have amplitudes below 1, where histology features have unit spread."""


class Experts(nn.Module):
    """Targets expected of a spot. ``blocks`` are numbers of targets that choose a ridge penalty together."""

    share: Tensor
    """(Y,): the perceptron's share in the answer for each target."""

    def __init__(
        self,
        n_features: int,
        blocks: Sequence[int],
        *,
        use_place: bool = True,
        nonlinear: bool = True,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.linear = LinearPath(n_features, blocks, use_place=use_place, standardise=standardise)
        n_targets = sum(blocks)
        self.perceptrons = Perceptrons(self.linear.n_inputs, n_targets, N_FOLDS) if nonlinear else None
        self.register_buffer("share", torch.zeros(n_targets))

    def answers(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> Tensor:
        """(B, Y). ``fold`` (B,) asks the experts fitted without the spot's section; without it those fitted on all."""
        inputs = self.linear.inputs(features, xy)
        linear = self.linear.answers(inputs, fold)
        if self.perceptrons is None:
            return linear
        return linear + self.share * (self.perceptrons(self._for_perceptron(inputs), fold) - linear)

    def _for_perceptron(self, inputs: Tensor) -> Tensor:
        histology, waves = inputs.tensor_split([inputs.shape[1] - self.linear.n_waves], dim=1)
        # where the ridge found that place does not carry over to new sections, the perceptron is not told it
        return torch.cat([histology, PLACE_GAIN * (self.linear.place_scale > 0) * waves], dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``targets``, ``fold``."""
        self.linear.fit(batches)
        if self.perceptrons is None:
            return
        cases = (
            (self.linear.inputs(batch["features"], batch["xy"]), batch["targets"], batch["fold"])
            for batch in batches
        )
        inputs, targets, fold = (torch.cat(part) for part in zip(*cases, strict=True))
        step = max(1, len(inputs) // MAX_ROWS)
        inputs, targets, fold = inputs[::step], targets[::step], fold[::step]
        self.perceptrons.fit(self._for_perceptron(inputs), targets, fold)
        if len(fold.unique()) > 1:
            linear = self.linear.answers(inputs, fold)
            other = self.perceptrons(self._for_perceptron(inputs), fold)
            self.share.copy_(stacking(targets - linear, other - linear, self.linear.blocks[-1]))


def stacking(error: Tensor, change: Tensor, shared_by: slice) -> Tensor:
    """Least-squares weight of ``change`` in explaining ``error``, per column, shrunk halfway to that of ``shared_by``."""
    gain, size = (error * change).sum(0), change.square().sum(0)
    shared, usual = gain[shared_by].sum() / size[shared_by].sum().clamp(min=1e-12), size[shared_by].mean()
    return ((gain + usual * shared) / (size + usual).clamp(min=1e-12)).clamp(0, 1)
