"""Perceptrons from plane waves of the coordinates to expression, each stopped where cells that it never saw are answered best.

The answer is the mean of the networks. Windows end after two hundred cells; layers and gradients of a tissue do not.

n cells, m places, p values of a cell, S sets of cells that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..nn._random import global_random_state_kept, seed_global_generators

BATCH_SIZE = 128


class CoordinatePerceptrons:
    """Networks from places to values, one for each set of cells that is left out.

    Parameters
    ----------
    n_octaves
        Octaves of plane waves, from the section's size downwards; 0 gives the coordinates alone.
    width
        Of the two hidden layers.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs, patience
        Epochs at most, and without a better error before a network stops.
    """

    def __init__(
        self,
        *,
        n_octaves: int,
        width: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        max_epochs: int = 150,
        patience: int,
    ) -> None:
        self.n_octaves, self.width = n_octaves, width
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_epochs, self.patience = max_epochs, patience

    def fit(
        self,
        xy: NDArray[np.floating],
        values: NDArray[np.floating],
        left_out: Sequence[NDArray[np.bool_]],
        seeds: Sequence[int],
    ) -> Self:
        """Train on cells at places (n, 2) with values (n, p); masks (n,) and a seed for each network.

        Cells must come in an order that does not depend on that of rows, if answers shall not.
        """
        self._low, self._extent = xy.min(axis=0), float(np.ptp(xy, axis=0).max()) or 1.0
        # one scale for all: a variable gene should weigh more than a noisy constant one
        self._mean, self._scale = values.mean(axis=0), float(values.std(axis=0).mean()) or 1.0
        waves = self._waves(xy)
        goal = torch.from_numpy(((values - self._mean) / self._scale).astype(np.float32))
        self.networks: list[nn.Module] = []
        self.errors: list[float] = []
        """Smallest mean squared error of each network on the cells that it never saw."""
        with global_random_state_kept(), torch.enable_grad():
            for is_out, seed in zip(left_out, seeds, strict=True):
                seed_global_generators(seed)
                network, error = self._trained(waves, goal, torch.from_numpy(is_out))
                self.networks.append(network)
                self.errors.append(error)
        return self

    @torch.no_grad()
    def predict(
        self,
        xy: NDArray[np.floating],
        number: int | None = None,
        *,
        precision: torch.dtype = torch.float32,
    ) -> NDArray[Any]:
        """Values at places (m, p): the mean of the networks, taken in ``precision``, or the answer of one.

        With no network, as no cells could be left out, the mean of all cells.
        """
        if not self.networks:
            return np.repeat(self._mean[None], len(xy), axis=0)
        waves = self._waves(xy)
        networks = self.networks if number is None else [self.networks[number]]
        answer = torch.stack([network(waves) for network in networks]).to(precision).mean(0).numpy()
        return self._mean + self._scale * answer

    def _waves(self, xy: NDArray[np.floating]) -> Tensor:
        unit = 2 * (xy - self._low) / self._extent - 1
        turns = [np.pi * 2**octave * unit for octave in range(self.n_octaves)]
        parts = [unit, *(wave(turn) for turn in turns for wave in (np.sin, np.cos))]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def _trained(self, waves: Tensor, goal: Tensor, is_out: Tensor) -> tuple[nn.Module, float]:
        network = self._network(waves.shape[1], goal.shape[1])
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        known = (~is_out).nonzero()[:, 0]
        smallest, since, kept = float("inf"), 0, {}
        for _ in range(self.max_epochs):
            for batch in known[torch.randperm(len(known))].split(BATCH_SIZE):
                optimiser.zero_grad()
                (network(waves[batch]) - goal[batch]).square().mean().backward()
                optimiser.step()
            with torch.no_grad():
                error = float((network(waves[is_out]) - goal[is_out]).square().mean())
            since = 0 if error < smallest else since + 1
            if error < smallest:
                smallest = error
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            if since >= self.patience:
                break
        network.load_state_dict(kept)
        return network, smallest

    def _network(self, n_in: int, n_out: int) -> nn.Module:
        width = self.width
        network = nn.Sequential(
            nn.Linear(n_in, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, n_out)
        )
        last: Any = network[-1]
        nn.init.zeros_(last.weight)  # begin with the mean profile everywhere
        nn.init.zeros_(last.bias)
        return network
