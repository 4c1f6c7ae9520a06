"""The third expert: the expression of those training spots whose profile fits the image best.

Two encoders with one space, one of histology and place and one of expression, are trained so that the two views of a
spot meet and those of different spots do not (contrastive learning). A new spot is answered with a mean of measured
profiles, weighted by how near they are to its image. As with the perceptrons there is a pair of encoders for each
left-out fold and one for all, fitted side by side; a pair searches only spots that it was allowed to learn from.

B batch, P inputs, D dimensions of the shared space, H hidden units, Y targets, N training spots kept, S folds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._crossfit import Expert, SpatialBlocks, may_see, moments

DIMENSIONS, HIDDEN, EPOCHS, BATCH, MAX_STEPS = 64, 128, 30, 128, 500
DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.5, 1e-3, 1.0
CONTRAST = 0.2
"""Temperature of the loss; the larger, the less do the hardest pairs count."""
SHARPNESS = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5)
"""Temperatures of the weights that are tried on left-out spots."""
HIDE = -1e4
"""Logit of what must not be seen; finite, since with one section there is nothing else."""
MAX_LIBRARY = 4_096
"""Training spots, evenly spread, that are kept to be found."""
MAX_TRIED = 2_000
"""Left-out spots, evenly spread, on which temperatures are tried."""
MAX_NUMBERS = 2_000_000
"""Likenesses that are held at once."""


class Retrieval(Expert):
    """S+1 searches: inputs (B, P) → targets (B, Y)."""

    keys: Tensor
    """(S+1, N, D), where each pair of encoders puts the spots that are kept."""
    values: Tensor
    """(N, Y)"""
    origin: Tensor
    """(N,), their folds."""
    temperature: Tensor

    def __init__(self, n_inputs: int, n_targets: int, n_profile: int, n_folds: int) -> None:
        super().__init__(n_folds, n_targets)
        n = n_folds + 1
        self.n_profile = n_profile
        self.image, self.profile = _Encoders(n, n_inputs), _Encoders(n, n_profile)
        self.register_buffer("keys", torch.zeros(n, 1, DIMENSIONS))
        self.register_buffer("values", torch.zeros(1, n_targets))
        self.register_buffer("origin", torch.tensor([-1]))
        self.register_buffer("temperature", torch.ones(()))

    def member(self, inputs: Tensor, f: int) -> Tensor:
        """(B, Y)"""
        hidden = torch.where(self.origin == f, HIDE, 0.0)
        image = self.image(inputs, slice(f, f + 1))[0] / self.temperature
        parts = image.split(max(1, MAX_NUMBERS // len(hidden)))
        return torch.cat(
            [torch.addmm(hidden, part, self.keys[f].T).softmax(-1) @ self.values for part in parts]
        )

    @torch.no_grad()
    def fit(self, inputs: Tensor, targets: Tensor, fold: Tensor, blocks: SpatialBlocks | None = None) -> None:
        """Fit all pairs of encoders on training rows, and keep what they search; whoever is found, is found whole."""
        profile = targets[:, -self.n_profile :]
        self.image.start(inputs, fold)
        self.profile.start(profile, fold)
        self._train_encoders(inputs, profile, fold)
        kept = _spread(len(inputs), MAX_LIBRARY, inputs)
        self.keys = torch.cat([self.profile(part) for part in profile[kept].split(1024)], dim=1)
        self.values, self.origin = targets[kept].clone(), fold[kept].clone()
        asked = _spread(len(inputs), MAX_TRIED, inputs)
        error = {}
        for temperature in SHARPNESS:
            self.temperature.fill_(temperature)
            answer = self(inputs[asked], fold[asked])[:, -self.n_profile :]
            error[temperature] = float(((answer - profile[asked]) / self.profile.sd[-1]).square().mean())
        self.temperature.fill_(min(error, key=lambda t: error[t]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("keys", "values", "origin"):  # as many spots as were kept when the state was saved
            if prefix + name in state_dict:
                setattr(
                    self, name, torch.empty_like(state_dict[prefix + name], device=self.temperature.device)
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.enable_grad()
    def _train_encoders(self, inputs: Tensor, profile: Tensor, fold: Tensor) -> None:
        n = len(self.keys)
        sees = may_see(n, fold)
        weights = [*self.image.weights(), *self.profile.weights()]
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        n_batches = math.ceil(len(inputs) / BATCH)
        order: list[Tensor] = []
        for _ in range(min(MAX_STEPS, EPOCHS * n_batches)):
            if not order:
                order = list(torch.randperm(len(inputs), device=inputs.device).tensor_split(n_batches))
            rows = order.pop()
            seen = sees[:, rows]  # (S+1, b)
            logit = (
                self.image(inputs[rows], train=True) @ self.profile(profile[rows], train=True).mT / CONTRAST
            )
            logit = logit.masked_fill(~(seen[:, :, None] & seen[:, None, :]), HIDE)
            itself = torch.arange(len(rows), device=inputs.device).expand(n, -1)
            loss = F.cross_entropy(logit.flatten(0, 1), itself.flatten(), reduction="none")
            loss = loss + F.cross_entropy(logit.mT.flatten(0, 1), itself.flatten(), reduction="none")
            loss = (loss.view_as(seen) * seen).sum(1) / seen.sum(1).clamp(min=1)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        for weight in weights:
            weight.requires_grad_(False)


class _Encoders(nn.Module):
    """For each of n folds a perceptron with a linear path beside it, to vectors of length 1: (B, P) → (n, B, D)."""

    mean: Tensor
    sd: Tensor
    straight: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    bias: Tensor

    def __init__(self, n: int, n_inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n, 1, n_inputs))
        self.register_buffer("sd", torch.ones(n, 1, n_inputs))
        self.register_buffer("straight", torch.zeros(n, n_inputs, DIMENSIONS))
        self.register_buffer("first", torch.zeros(n, n_inputs, HIDDEN))
        self.register_buffer("first_bias", torch.zeros(n, 1, HIDDEN))
        self.register_buffer("second", torch.zeros(n, HIDDEN, DIMENSIONS))
        self.register_buffer("bias", torch.zeros(n, 1, DIMENSIONS))

    def weights(self) -> list[Tensor]:
        return [self.straight, self.first, self.first_bias, self.second, self.bias]

    def start(self, inputs: Tensor, fold: Tensor) -> None:
        """Scales from the rows that each may see; weights at random."""
        mean, variance = moments(may_see(len(self.mean), fold), inputs)
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(variance > 1e-8, variance.clamp(min=1e-8).sqrt(), 1.0))
        for weight in self.weights():
            bound = 1 / math.sqrt(weight.shape[1]) if weight.shape[1] > 1 else 0.0
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, inputs: Tensor, which: slice = slice(None), *, train: bool = False) -> Tensor:
        x = ((inputs - self.mean[which]) / self.sd[which]).clamp(-10, 10)
        hidden = F.dropout(F.gelu(x @ self.first[which] + self.first_bias[which]), DROPOUT, train)
        return F.normalize(x @ self.straight[which] + hidden @ self.second[which] + self.bias[which], dim=-1)


def _spread(n: int, at_most: int, like: Tensor) -> Tensor:
    """Indices of evenly spread rows."""
    return torch.arange(0, n, math.ceil(n / at_most), device=like.device)
