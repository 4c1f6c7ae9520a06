"""Two encoders with one space, how they are trained, and how spots are found in it. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ._mlp import _Standardizer
from ._networks import train_epochs

Floats = NDArray[np.float64]

BATCH = 128
LARGEST = 10.0
"""Standard deviations at which an input is cut: a freak spot shall not decide a batch."""
LIKENESS = 0.2
"""Temperature at which likeness of expression becomes a share of the softened target."""
MAX_NUMBERS = 2_000_000
"""Similarities that are held at once."""


class Encoder(nn.Module):
    """A perceptron with a linear path beside it, to a vector of length 1."""

    def __init__(self, n_in: int, n_out: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.straight = nn.Linear(n_in, n_out)
        self.bent = nn.Sequential(
            nn.Linear(n_in, n_hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(n_hidden, n_out)
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        return F.normalize(self.straight(x_BF) + self.bent(x_BF), dim=-1)


class TwoEncoders(nn.Module):
    """Histology and expression of a spot, each to a point of the shared space."""

    def __init__(
        self, n_features: int, n_genes: int, n_dimensions: int, n_hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.image = Encoder(n_features, n_dimensions, n_hidden, dropout)
        self.profile = Encoder(n_genes, n_dimensions, n_hidden, dropout)


class Pairs:
    """Training spots seen from both sides."""

    def __init__(self, histology: NDArray[Any], y: Floats) -> None:
        self.scale_histology, self.scale_profile = _Standardizer(histology), _Standardizer(y)
        self.histology = self.scale_histology(histology).clamp(-LARGEST, LARGEST)
        self.profile = self.scale_profile(y).clamp(-LARGEST, LARGEST)
        self.mean = self.scale_profile.mean
        self.deviation = torch.from_numpy((y - self.mean).astype(np.float32))


class Library:
    """Profiles of training spots, to be found by histology."""

    def __init__(self, network: TwoEncoders, pairs: Pairs) -> None:
        self.image, self.pairs = network.image.eval(), pairs
        with torch.no_grad():
            self.keys_ND = torch.cat([network.profile.eval()(part) for part in pairs.profile.split(1024)])

    def answers(self, histology: NDArray[Any], n_neighbors: int, sharpness: Sequence[float]) -> list[Floats]:
        """Weighted mean profiles of the most similar training spots, for each temperature of the weights.

        Some spots at a time: similarities are spots × training spots.
        """
        n_at_once = max(1, MAX_NUMBERS // len(self.keys_ND))
        starts = range(0, len(histology), n_at_once)
        parts = [
            self._means(histology[start : start + n_at_once], n_neighbors, sharpness) for start in starts
        ]
        return [np.concatenate(part) + self.pairs.mean for part in zip(*parts, strict=True)]

    @torch.no_grad()
    def _means(
        self, histology: NDArray[Any], n_neighbors: int, sharpness: Sequence[float]
    ) -> list[NDArray[np.float32]]:
        x = self.pairs.scale_histology(histology).clamp(-LARGEST, LARGEST)
        near = (self.image(x) @ self.keys_ND.T).topk(min(n_neighbors, len(self.keys_ND)), sorted=False)
        weight = torch.zeros(len(x), len(self.keys_ND))
        means = []
        for temperature in sharpness:
            weight.scatter_(1, near.indices, (near.values / temperature).softmax(dim=1))
            means.append((weight @ self.pairs.deviation).numpy())
        return means


def train_encoders(
    network: TwoEncoders,
    pairs: Pairs,
    *,
    softness: float,
    temperature: float,
    optimiser: dict[str, Any],
    stops: Sequence[int],
) -> Iterator[int]:
    """Train in place; yields after each epoch that is among ``stops``."""

    def loss(network: nn.Module, index: Tensor) -> Tensor:
        assert isinstance(network, TwoEncoders)
        profile = pairs.profile[index]
        logit = network.image(pairs.histology[index]) @ network.profile(profile).T / temperature
        goal = targets(profile, softness)
        return (F.cross_entropy(logit, goal) + F.cross_entropy(logit.T, goal)) / 2

    rows = np.arange(len(pairs.histology))
    for epoch in train_epochs(network, loss, rows, optimiser, max(stops), batch_size=BATCH):
        if epoch in stops:
            yield epoch


def targets(profile: Tensor, softness: float) -> Tensor:
    """What share of a spot's answer each spot of the batch should get: itself, and those whose genes are like its."""
    itself = torch.eye(len(profile))
    if softness == 0:
        return itself
    unit = F.normalize(profile, dim=-1)
    return (1 - softness) * itself + softness * (unit @ unit.T / LIKENESS).softmax(dim=-1)
