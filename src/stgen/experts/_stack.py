"""What to expect of a spot from its histology and place: three experts, stacked target by target.

A ridge (:mod:`._ridge`), a perceptron (:mod:`._mlp`) and a retrieval (:mod:`._retrieval`) answer. How much of
each a target gets is decided on training spots whose section (patient, where registered) no expert has seen, so what is
linear in morphology keeps the ridge, what has a threshold in it gets the perceptron, and what sections share as whole
profiles is looked up. Neighbours share errors, so a patch of spots is not taken for as many observations as it has
spots (:mod:`._ridge`). The same left-out answers are what a network trains on: it meets the errors that a new section
will bring.

B batch, F histology features, Y targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..nn._kmeans import rows_at_once
from ..nn._network import N_FOLDS, Batch
from ._crossfit import Expert, SpatialBlocks, without_patches
from ._mlp import Perceptrons
from ._retrieval import Retrieval
from ._ridge import CrossFittedRidge
from ._weight import agreement, stacking

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
        self.linear = CrossFittedRidge(n_features, blocks, use_place=use_place, standardise=standardise)
        n_inputs, n_targets = self.linear.n_inputs, sum(blocks)
        self.perceptrons = Perceptrons(n_inputs, n_targets, N_FOLDS) if nonlinear else None
        searched = nonlinear and retrieval
        self.retrieval = Retrieval(n_inputs, n_targets, blocks[-1], N_FOLDS) if searched else None
        self.register_buffer("share", torch.zeros(len(self._others()), n_targets))

    def _others(self) -> list[Expert]:
        return [expert for expert in (self.perceptrons, self.retrieval) if expert is not None]

    def answers(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> Tensor:
        """(B, Y). ``fold`` (B,) asks the experts fitted without the spot's section; without it those fitted on all."""
        inputs = self.linear.inputs(features, xy)
        answer = self.linear(inputs, fold)
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
        ``patch``, as :meth:`CrossFittedRidge.fit` takes them.
        """
        self.linear.fit(batches)
        if not self._others():
            return
        # patches one after another, whole, and evenly spread where there are too many
        patch, order = torch.cat([batch["patch"] for batch in batches]).sort(stable=True)
        _, rank, size = patch.unique_consecutive(return_inverse=True, return_counts=True)
        step = math.ceil(len(patch) / MAX_ROWS)
        inputs, targets, fold = self._picked(batches, order[rank % step == 0], len(order))
        profile = self.linear.blocks[-1]
        share_of_block = max(LEAST_PATCH_SHARE, float(self.linear.patch_share[-1]))
        blocks = SpatialBlocks(size[::step].tolist(), share_of_block)
        less = partial(without_patches, sizes=blocks.sizes, share=blocks.share)
        answer, seen = self.linear(inputs, fold), self._for_others(inputs)
        left_out = len(fold.unique()) > 1
        for share, expert in zip(self.share, self._others(), strict=True):
            expert.fit(seen, targets, fold, blocks)
            if left_out:
                change = expert(seen, fold).sub_(answer)
                # some targets at a time: there is no need for another array of spots × targets
                some = (
                    values.split(rows_at_once(len(answer)), dim=1) for values in (targets, answer, change)
                )
                told = [agreement(less(t - a), less(c)) for t, a, c in zip(*some, strict=True)]
                gain, size = torch.cat(told, dim=1)
                share.copy_(stacking(gain, size, profile))
                answer += change.mul_(share)

    def _picked(self, batches: Iterable[Batch], rows: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and folds of ``rows`` among n, in that order, each written where it stays."""
        place = rows.new_full((n,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        picked: tuple[Tensor, ...] = ()
        start = 0
        for batch in batches:
            to = place[start : start + len(batch["fold"])]
            start += len(to)
            parts = self.linear.inputs(batch["features"], batch["xy"]), batch["targets"], batch["fold"]
            picked = picked or tuple(part.new_empty(len(rows), *part.shape[1:]) for part in parts)
            for whole, part in zip(picked, parts, strict=True):
                whole[to[to >= 0]] = part[to >= 0]
        inputs, targets, fold = picked
        return inputs, targets, fold
