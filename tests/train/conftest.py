"""A network and a table without AnnData or scvi-tools: linear regression, with switches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stgen.nn._network import Loss, Network


class Line(Network):
    """y ≈ w·x, with dropout and noise so that randomness shows."""

    def __init__(self, n_features=3, dropout=0.0, noise=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_features, 1)
        self.noise = noise
        self.register_buffer("mean", torch.zeros(1))
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)

    def prepare(self, batches):
        self.mean = torch.cat([batch["y"] for batch in batches]).mean(0)
        self.draw = torch.rand(1).item(), np.random.rand()  # noqa: NPY002

    def loss(self, batch, *, generator=None):
        x = batch["x"]
        if self.training and self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device)
        mse = F.mse_loss(self.linear(self.dropout(x)) + self.mean, batch["y"])
        return Loss(mse, {"half": mse / 2})


class Rows:
    """Rows of a tensor; remembers which were asked for."""

    def __init__(self, n=60, n_features=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, n_features, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
        self.asked = []

    def __len__(self):
        return len(self.x)

    def batch(self, rows):
        self.asked.append(rows.tolist())
        return {"index": rows, "x": self.x[rows], "y": self.y[rows]}


@pytest.fixture
def table():
    return Rows()


@pytest.fixture
def sides():
    """Training and validation rows."""
    return np.arange(40), np.arange(40, 60)


@pytest.fixture
def line():
    return Line
