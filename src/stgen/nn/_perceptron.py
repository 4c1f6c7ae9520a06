"""The nonlinear expert: a one-hidden-layer perceptron for each left-out fold and one for all, fitted side by side.

Every fold's perceptron lives in the same tensors and sees the same batches; a spot simply has no weight in the loss of
the perceptron that must not see it. Heavy dropout and few epochs, because spots are few; the number of steps does not
grow with the data beyond ``MAX_STEPS``. As in the ridge, a share of the mean error of a patch is not charged: it is what
histology does not show, and a perceptron would find some bend of the features that fits it. Whole patches make a batch.

B batch, P inputs, H hidden units, Y targets, S folds (the last of S+1 networks is fitted on all).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, EPOCHS, BATCH, MAX_STEPS = 256, 15, 64, 2_000
INPUT_DROPOUT, DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.2, 0.5, 2e-3, 0.1


class Perceptrons(nn.Module):
    """S+1 perceptrons: inputs (B, P) → targets (B, Y)."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, n_inputs: int, n_targets: int, n_folds: int) -> None:
        super().__init__()
        n = n_folds + 1
        self.register_buffer("first", torch.zeros(n, n_inputs, HIDDEN))
        self.register_buffer("first_bias", torch.zeros(n, 1, HIDDEN))
        self.register_buffer("second", torch.zeros(n, HIDDEN, n_targets))
        self.register_buffer("second_bias", torch.zeros(n, 1, n_targets))
        self.register_buffer("mean", torch.zeros(n, 1, n_targets))
        self.register_buffer("sd", torch.ones(n, 1, n_targets))

    def forward(self, inputs: Tensor, fold: Tensor | None = None) -> Tensor:
        """``fold`` (B,) names the perceptron that answers each spot; without it the one fitted on all answers."""
        if fold is None:
            return self._answer(inputs, slice(-1, None))[0]
        answer = inputs.new_empty(len(inputs), self.mean.shape[-1])
        for f in fold.unique().tolist():
            answer[fold == f] = self._answer(inputs[fold == f], slice(f, f + 1))[0]
        return answer

    def _answer(self, inputs: Tensor, which: slice) -> Tensor:
        hidden = F.gelu(inputs @ self.first[which] + self.first_bias[which])
        return (hidden @ self.second[which] + self.second_bias[which]) * self.sd[which] + self.mean[which]

    def fit(
        self, inputs: Tensor, targets: Tensor, fold: Tensor, sizes: Sequence[int], patch_share: float
    ) -> None:
        """Fit all perceptrons on training rows: patches of these sizes, one after another.

        ``patch_share`` of a patch's mean error is not charged.
        """
        sees = may_see(len(self.first), fold)
        mean, variance = moments(sees, targets)
        self.mean.copy_(mean)
        self.sd.copy_(variance.clamp(min=1e-6).sqrt())
        nn.init.uniform_(self.first, -1, 1).div_(math.sqrt(self.first.shape[1]))
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second)
        nn.init.zeros_(self.second_bias)
        weights = [getattr(self, name) for name in ("first", "first_bias", "second", "second_bias")]
        by_patch = torch.arange(len(inputs), device=inputs.device).split(list(sizes))
        n_batches = min(math.ceil(len(inputs) / BATCH), len(by_patch))
        n_steps = min(MAX_STEPS, EPOCHS * n_batches)
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            order: list[Tensor] = []
            for step in range(n_steps):
                if not order:
                    order = list(torch.randperm(len(by_patch)).tensor_split(n_batches))
                chosen = [by_patch[i] for i in order.pop().tolist()]
                rows = torch.cat(chosen)
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * _rate(step / n_steps)
                error = self._noisy(inputs[rows]) - (targets[rows] - self.mean) / self.sd
                error = without_patches(error, [len(part) for part in chosen], patch_share).square().mean(-1)
                optimizer.zero_grad()
                (error * sees[:, rows]).mean(1).sum().backward()
                optimizer.step()
        for weight in weights:
            weight.requires_grad_(False)

    def _noisy(self, inputs: Tensor) -> Tensor:
        seen = F.dropout(inputs, INPUT_DROPOUT)
        hidden = F.dropout(F.gelu(seen @ self.first + self.first_bias), DROPOUT)
        return hidden @ self.second + self.second_bias


def without_patches(values: Tensor, sizes: Sequence[int], share: float) -> Tensor:
    """``values`` (…, B, Y), patches of these sizes one after another, less ``share`` of each patch's mean."""
    size = torch.tensor(sizes, device=values.device)
    patch = torch.arange(len(size), device=values.device).repeat_interleave(size)
    sums = values.new_zeros(*values.shape[:-2], len(size), values.shape[-1]).index_add(-2, patch, values)
    return values - (share * sums / size[:, None]).index_select(-2, patch)


def may_see(n: int, fold: Tensor) -> Tensor:
    """Which of n networks may learn from which row (n, B): each from all folds but its own, the last from all."""
    return torch.arange(n, device=fold.device)[:, None] != fold


def moments(sees: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (n, 1, Y) over the rows that each network may see."""
    weight = sees.to(values) / sees.sum(1, keepdim=True).clamp(min=1)
    mean = (weight @ values)[:, None]
    return mean, (weight @ values.square())[:, None] - mean.square()


def _rate(done: float) -> float:
    """Linear warm-up over the first third, then a cosine to 0."""
    return done / 0.3 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
