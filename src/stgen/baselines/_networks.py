"""Small networks of the baselines and how they are fitted. Only this file and that of contrastive encoders need torch.

The number of epochs is what early stopping on held-out training sections says (or on held-out spots, if there is one
section); the network is then fitted again on all training rows for that many epochs. A network that kept a third
of its sections back for stopping would be a weaker baseline than the rows allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stgen.nn._random import global_random_state_kept, seed_from, seed_global_generators

Rows = NDArray[np.int64]
Build = Callable[[Rows], nn.Module]
"""Training rows to a fresh network."""
LossOfRows = Callable[[nn.Module, Tensor], Tensor]
"""Network and row numbers to the mean loss of these rows."""

N_FOLDS = 3
BATCH = 64


def fit_network(
    build: Build,
    loss: LossOfRows,
    section: NDArray[np.str_],
    *,
    learning_rate: float,
    weight_decay: float,
    max_epochs: int,
    patience: int,
    random_state: int,
) -> tuple[nn.Module, int]:
    """A network fitted on all rows, and the number of epochs it was given."""
    with global_random_state_kept():
        optimiser = {"lr": learning_rate, "weight_decay": weight_decay}
        best = []
        for fold, held_out in enumerate(validation_folds(section, random_state)):
            seed_global_generators(seed_from(random_state, "fold", fold))
            train = np.flatnonzero(~np.isin(np.arange(len(section)), held_out))
            network = build(train)
            best.append(_best_epoch(network, loss, train, held_out, optimiser, max_epochs, patience))
        n_epochs = int(np.median(best))
        seed_global_generators(seed_from(random_state, "all rows"))
        rows = np.arange(len(section))
        network = build(rows)
        for _ in train_epochs(network, loss, rows, optimiser, n_epochs):
            pass
    return network.eval(), n_epochs


def validation_folds(section: NDArray[np.str_], random_state: int) -> Iterator[Rows]:
    """Rows to hold out: whole sections where there are at least two, else a fifth of the spots."""
    generator = np.random.default_rng(random_state)
    names = np.unique(section)
    if len(names) < 2:
        n_held_out = max(1, len(section) // 5)
        yield np.sort(generator.permutation(len(section))[:n_held_out])
        return
    for part in np.array_split(generator.permutation(names), min(N_FOLDS, len(names))):
        yield np.flatnonzero(np.isin(section, part))


def _best_epoch(
    network: nn.Module,
    loss: LossOfRows,
    train: Rows,
    held_out: Rows,
    optimiser: dict[str, Any],
    max_epochs: int,
    patience: int,
) -> int:
    lowest, best = np.inf, 1
    for epoch in train_epochs(network, loss, train, optimiser, max_epochs):
        with torch.no_grad():
            network.eval()
            parts = torch.from_numpy(held_out).split(1024)
            value = sum(float(loss(network, part)) * len(part) for part in parts) / len(held_out)
        if value < lowest:
            lowest, best = value, epoch
        if epoch - best >= patience:
            break
    return best


def train_epochs(
    network: nn.Module,
    loss: LossOfRows,
    rows: Rows,
    optimiser: dict[str, Any],
    n_epochs: int,
    *,
    batch_size: int = BATCH,
) -> Iterator[int]:
    """Train one epoch after another; yields after each."""
    adamw = torch.optim.AdamW(network.parameters(), **optimiser)
    index = torch.from_numpy(rows)
    for epoch in range(1, n_epochs + 1):
        network.train()
        for batch in index[torch.randperm(len(index))].split(batch_size):
            adamw.zero_grad()
            loss(network, batch).backward()
            adamw.step()
        yield epoch


def answer(network: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Outputs of a network, a thousand rows at a time."""
    with torch.no_grad():
        for part in x.split(1024):
            yield network(part)


def one_hidden_layer(n_in: int, n_out: int, n_hidden: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_in, n_hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(n_hidden, n_out)
    )


class ResidualBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD + self.change(x_BD)


class CountClassifierNetwork(nn.Module):
    """Logits of every gene over count tokens: the gene's own log frequencies plus what the image adds to them.

    What the image adds is a combination of a few smooth functions of the token's value (``basis``, K × V): with free
    logits per gene and token, a few hundred spots are memorised.
    """

    def __init__(
        self, n_in: int, log_frequency: Tensor, basis: Tensor, *, width: int, n_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.n_genes, self.n_basis = len(log_frequency), len(basis)
        self.trunk = nn.Sequential(
            nn.Linear(n_in, width),
            nn.Dropout(dropout),
            *(ResidualBlock(width, dropout) for _ in range(n_blocks)),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(width, self.n_genes * self.n_basis)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.prior = nn.Parameter(log_frequency.clone())
        self.register_buffer("basis", basis)

    def forward(self, x_BF: Tensor) -> Tensor:
        weight_BGK = self.head(self.trunk(x_BF)).view(-1, self.n_genes, self.n_basis)
        return weight_BGK @ self.basis + self.prior


def soft_labels(y: Tensor, edges: Tensor) -> Tensor:
    """Mass of a Gaussian around each count in every token's range of counts; σ → 0 at 0, where a blur would bias.

    ``edges`` are the first count of each token, and an end; the first token also takes what lies below it, the last
    what lies above.
    """
    sigma = (0.01 * y + y / (1 + y)).clamp(min=1e-3)[..., None]
    below = torch.special.ndtr((edges - 0.5 - y[..., None]) / sigma)
    below = torch.cat(
        [torch.zeros_like(below[..., :1]), below[..., 1:-1], torch.ones_like(below[..., :1])], dim=-1
    )
    return below.diff(dim=-1)
