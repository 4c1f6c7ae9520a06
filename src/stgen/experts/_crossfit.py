"""Cross-fitting: an expert has a member for every fold, fitted without it, and one more, the last, fitted on all rows.

What a member answers to rows of its own fold are honest errors: they weigh experts (:mod:`._weight`), and a network that
is trained on them meets the errors that a new section will bring.

B batch, P inputs, Y targets, S folds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class SpatialBlocks(NamedTuple):
    """Rows that lie side by side come one after another, and share errors."""

    sizes: Sequence[int]
    """Rows of each block, in order."""
    share: float
    """Part of a block's mean error that is not charged."""


class CrossFitted(nn.Module, ABC):
    """S+1 members: inputs (B, P) → targets (B, Y)."""

    def __init__(self, n_folds: int, n_targets: int) -> None:
        super().__init__()
        self.n_folds, self.n_targets = n_folds, n_targets

    @abstractmethod
    def member(self, inputs: Tensor, f: int) -> Tensor:
        """What the member fitted without fold ``f`` answers (B, Y); the one fitted on all is number S."""

    def forward(self, inputs: Tensor, fold: Tensor | None = None) -> Tensor:
        """``fold`` (B,) asks, of each row, the member fitted without it; without ``fold`` the one fitted on all."""
        if fold is None:
            return self.member(inputs, self.n_folds)
        answer = inputs.new_empty(len(inputs), self.n_targets)
        for f in fold.unique().tolist():
            rows = fold == f
            answer[rows] = self.member(inputs[rows], f)
        return answer


class Expert(CrossFitted):
    """One that can be stacked: all members are fitted side by side, on rows that fit into memory."""

    @abstractmethod
    def fit(self, inputs: Tensor, targets: Tensor, fold: Tensor, blocks: SpatialBlocks) -> None:
        """Fit on training rows (n, P), (n, Y), (n,): rows of one block after those of another."""


def may_see(n: int, fold: Tensor) -> Tensor:
    """Which of n members may learn from which row (n, B): each from all folds but its own, the last from all."""
    return torch.arange(n, device=fold.device)[:, None] != fold


def moments(sees: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (n, 1, Y) over the rows that each member may see."""
    weight = sees.to(values) / sees.sum(1, keepdim=True).clamp(min=1)
    mean = (weight @ values)[:, None]
    return mean, (weight @ values.square())[:, None] - mean.square()


def without_patches(values: Tensor, sizes: Sequence[int], share: float) -> Tensor:
    """``values`` (…, B, Y), blocks of these sizes one after another, less ``share`` of each block's mean."""
    size = torch.tensor(sizes, device=values.device)
    block = torch.arange(len(size), device=values.device).repeat_interleave(size)
    sums = values.new_zeros(*values.shape[:-2], len(size), values.shape[-1]).index_add(-2, block, values)
    return values - (share * sums / size[:, None]).index_select(-2, block)
