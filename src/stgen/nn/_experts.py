"""What to expect of a spot from its histology and place: three experts, stacked target by target.

A ridge (:mod:`._linear`), a perceptron (:mod:`._perceptron`) and a retrieval (:mod:`._retrieval`) answer. How much of
each a target gets is decided on training spots whose section (patient, where registered) no expert has seen, so what is
linear in morphology keeps the ridge, what has a threshold in it gets the perceptron, and what sections share as whole
profiles is looked up. Neighbours share errors, so a patch of spots is not taken for as many observations as it has
spots (:mod:`._linear`). The same left-out answers are what a network trains on: it meets the errors that a new section
will bring.

B batch, F histology features, Y targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ._linear import N_FOLDS, LinearPath
from ._network import Batch
from ._perceptron import Perceptrons, without_patches
from ._retrieval import Retrieval

MAX_ROWS = 100_000
"""Training spots, evenly spread, from which perceptrons and retrieval learn."""
LEAST_PATCH_SHARE = 0.5
"""Share of a patch's mean error that perceptrons are not charged and that shares of experts do not see, even where the
ridge is charged all of it: what is not linear and yet says the same all over a patch is seldom in the histology."""
PLACE_GAIN = 3.0
"""Waves of place have amplitudes below 1, where histology features have unit spread."""


class Experts(nn.Module):
    """Targets expected of a spot. ``blocks`` are numbers of targets that choose a ridge penalty together; the last
    block is the spot's expression profile. Without ``nonlinear`` the ridge is alone.
    """

    share: Tensor
    """(O, Y): the share of each other expert, in order, in the answer that the experts before it would give."""

    def __init__(
        self,
        n_features: int,
        blocks: Sequence[int],
        *,
        use_place: bool = True,
        nonlinear: bool = True,
        retrieval: bool = True,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.linear = LinearPath(n_features, blocks, use_place=use_place, standardise=standardise)
        n_inputs, n_targets = self.linear.n_inputs, sum(blocks)
        self.perceptrons = Perceptrons(n_inputs, n_targets, N_FOLDS) if nonlinear else None
        searched = nonlinear and retrieval
        self.retrieval = Retrieval(n_inputs, n_targets, blocks[-1], N_FOLDS) if searched else None
        self.register_buffer("share", torch.zeros(len(self._others()), n_targets))

    def _others(self) -> list[Perceptrons | Retrieval]:
        return [expert for expert in (self.perceptrons, self.retrieval) if expert is not None]

    def answers(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> Tensor:
        """(B, Y). ``fold`` (B,) asks the experts fitted without the spot's section; without it those fitted on all."""
        inputs = self.linear.inputs(features, xy)
        answer = self.linear.answers(inputs, fold)
        seen = self._for_others(inputs)
        for share, expert in zip(self.share, self._others(), strict=True):
            answer = answer + share * (expert(seen, fold) - answer)
        return answer

    def _for_others(self, inputs: Tensor) -> Tensor:
        histology, waves = inputs.tensor_split([inputs.shape[1] - self.linear.n_waves], dim=1)
        # where the ridge found that place does not carry over to new sections, the others are not told it
        return torch.cat([histology, PLACE_GAIN * (self.linear.place_scale > 0) * waves], dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``targets``, ``fold`` and
        ``patch``, as :meth:`LinearPath.fit` takes them.
        """
        self.linear.fit(batches)
        if not self._others():
            return
        rest = ("targets", "fold", "patch")
        cases = (
            (self.linear.inputs(batch["features"], batch["xy"]), *(batch[name] for name in rest))
            for batch in batches
        )
        inputs, targets, fold, patch = (torch.cat(part) for part in zip(*cases, strict=True))
        # patches one after another, whole, and evenly spread where there are too many
        patch, order = patch.sort(stable=True)
        _, rank, size = patch.unique_consecutive(return_inverse=True, return_counts=True)
        step = math.ceil(len(patch) / MAX_ROWS)
        order, sizes = order[rank % step == 0], size[::step].tolist()
        inputs, targets, fold = inputs[order], targets[order], fold[order]
        profile = self.linear.blocks[-1]
        patch_share = max(LEAST_PATCH_SHARE, float(self.linear.patch_share[-1]))
        answer, seen = self.linear.answers(inputs, fold), self._for_others(inputs)
        left_out = len(fold.unique()) > 1
        for share, expert in zip(self.share, self._others(), strict=True):
            if isinstance(expert, Perceptrons):
                expert.fit(seen, targets, fold, sizes, patch_share)
            else:
                expert.fit(seen, targets, fold)
            if left_out:
                change = expert(seen, fold) - answer
                error = without_patches(targets - answer, sizes, patch_share)
                share.copy_(stacking(error, without_patches(change, sizes, patch_share), profile))
                answer += share * change


def stacking(error: Tensor, change: Tensor, shared_by: slice) -> Tensor:
    """Least-squares weight of ``change`` in explaining ``error``, per column, shrunk halfway to that of ``shared_by``."""
    gain, size = (error * change).sum(0), change.square().sum(0)
    shared, usual = gain[shared_by].sum() / size[shared_by].sum().clamp(min=1e-12), size[shared_by].mean()
    return ((gain + usual * shared) / (size + usual).clamp(min=1e-12)).clamp(0, 1)
