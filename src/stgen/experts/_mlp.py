"""The nonlinear expert: a one-hidden-layer perceptron for each left-out fold and one for all, fitted side by side.

Every fold's perceptron lives in the same tensors and sees the same batches; a spot simply has no weight in the loss of
the perceptron that must not see it. Heavy dropout and few epochs, because spots are few; the number of steps does not
grow with the data beyond ``MAX_STEPS``. As in the ridge, a share of the mean error of a patch is not charged: it is what
histology does not show, and a perceptron would find some bend of the features that fits it. Whole patches make a batch.

B batch, P inputs, H hidden units, Y targets, S folds (the last of S+1 networks is fitted on all).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._crossfit import Expert, SpatialBlocks, may_see, moments, without_patches

HIDDEN, EPOCHS, BATCH, MAX_STEPS = 256, 15, 64, 2_000
INPUT_DROPOUT, DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.2, 0.5, 2e-3, 0.1


class Perceptrons(Expert):
    """S+1 perceptrons: inputs (B, P) → targets (B, Y)."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, n_inputs: int, n_targets: int, n_folds: int) -> None:
        super().__init__(n_folds, n_targets)
        n = n_folds + 1
        self.register_buffer("first", torch.zeros(n, n_inputs, HIDDEN))
        self.register_buffer("first_bias", torch.zeros(n, 1, HIDDEN))
        self.register_buffer("second", torch.zeros(n, HIDDEN, n_targets))
        self.register_buffer("second_bias", torch.zeros(n, 1, n_targets))
        self.register_buffer("mean", torch.zeros(n, 1, n_targets))
        self.register_buffer("sd", torch.ones(n, 1, n_targets))

    def member(self, inputs: Tensor, f: int) -> Tensor:
        """(B, Y)"""
        hidden = F.gelu(inputs @ self.first[f] + self.first_bias[f])
        return (hidden @ self.second[f] + self.second_bias[f]) * self.sd[f] + self.mean[f]

    def fit(self, inputs: Tensor, targets: Tensor, fold: Tensor, blocks: SpatialBlocks) -> None:
        """Fit all perceptrons on training rows; part of a block's mean error is not charged."""
        sees = may_see(len(self.first), fold)
        mean, variance = moments(sees, targets)
        self.mean.copy_(mean)
        self.sd.copy_(variance.clamp(min=1e-6).sqrt())
        nn.init.uniform_(self.first, -1, 1).div_(math.sqrt(self.first.shape[1]))
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second)
        nn.init.zeros_(self.second_bias)
        weights = [getattr(self, name) for name in ("first", "first_bias", "second", "second_bias")]
        by_block = torch.arange(len(inputs), device=inputs.device).split(list(blocks.sizes))
        n_batches = min(math.ceil(len(inputs) / BATCH), len(by_block))
        n_steps = min(MAX_STEPS, EPOCHS * n_batches)
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            order: list[Tensor] = []
            for step in range(n_steps):
                if not order:
                    order = list(torch.randperm(len(by_block)).tensor_split(n_batches))
                chosen = [by_block[i] for i in order.pop().tolist()]
                rows = torch.cat(chosen)
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * _rate(step / n_steps)
                error = self._noisy(inputs[rows]) - (targets[rows] - self.mean) / self.sd
                error = without_patches(error, [len(part) for part in chosen], blocks.share).square().mean(-1)
                optimizer.zero_grad()
                (error * sees[:, rows]).mean(1).sum().backward()
                optimizer.step()
        for weight in weights:
            weight.requires_grad_(False)

    def _noisy(self, inputs: Tensor) -> Tensor:
        seen = F.dropout(inputs, INPUT_DROPOUT)
        hidden = F.dropout(F.gelu(seen @ self.first + self.first_bias), DROPOUT)
        return hidden @ self.second + self.second_bias


def _rate(done: float) -> float:
    """Linear warm-up over the first third, then a cosine to 0."""
    return done / 0.3 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
