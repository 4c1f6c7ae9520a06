"""A surface over a whole section: a small perceptron from places to components of expression.

Windows end after two hundred cells; layers and gradients of a tissue do not. Several networks are trained, each stopped
where some cells that were left out are answered best.

n cells, m places, p components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stgen.nn._random import global_random_state_kept, seed_from, seed_global_generators

N_OCTAVES, WIDTH = 2, 128
"""Octaves of plane waves, from the section's size downwards, and width of the two hidden layers."""
BATCH_SIZE, N_EPOCHS, PATIENCE = 128, 150, 10
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1


class Surface:
    """Networks from places to components, one for each set of cells that is left out.

    Parameters
    ----------
    xy, z
        Places (n, 2) and components (n, p) of cells, in an order that does not depend on that of rows.
    left_out
        Masks over the cells; the network of each mask never learns from the cells in it.
    """

    def __init__(self, xy: np.ndarray, z: np.ndarray, left_out: Sequence[np.ndarray]) -> None:
        self._low, self._extent = xy.min(axis=0), float(np.ptp(xy, axis=0).max()) or 1.0
        self._mean, self._scale = z.mean(axis=0), float(z.std(axis=0).mean()) or 1.0
        waves, goal = self._waves(xy), torch.from_numpy(((z - self._mean) / self._scale).astype(np.float32))
        self._networks = []
        with global_random_state_kept(), torch.enable_grad():
            for number, is_out in enumerate(left_out):
                seed_global_generators(seed_from(0, "surface", number))
                self._networks.append(_trained(waves, goal, torch.from_numpy(is_out)))

    def at(self, xy: np.ndarray, number: int | None = None) -> np.ndarray:
        """Components at places (m, p): the mean of the networks, or the answer of one."""
        waves = self._waves(xy)
        networks = self._networks if number is None else [self._networks[number]]
        with torch.no_grad():
            answer = torch.stack([network(waves) for network in networks]).mean(0).numpy()
        return self._mean + self._scale * answer

    def _waves(self, xy: np.ndarray) -> Tensor:
        unit = 2 * (xy - self._low) / self._extent - 1
        turns = [np.pi * 2**octave * unit for octave in range(N_OCTAVES)]
        parts = [unit, *(wave(turn) for turn in turns for wave in (np.sin, np.cos))]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


def _trained(waves: Tensor, goal: Tensor, is_out: Tensor) -> nn.Module:
    network = nn.Sequential(
        nn.Linear(waves.shape[1], WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, goal.shape[1])
    )  # fmt: skip
    last: Any = network[-1]
    nn.init.zeros_(last.weight)  # begin with the mean profile everywhere
    nn.init.zeros_(last.bias)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    known = (~is_out).nonzero()[:, 0]
    smallest, since, kept = float("inf"), 0, {}
    for _ in range(N_EPOCHS):
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
        if since >= PATIENCE:
            break
    network.load_state_dict(kept)
    return network
