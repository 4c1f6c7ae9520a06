"""What every generative network promises: it prepares itself, owns its loss, names the sizes that rebuild it.

A batch is a plain dict of tensors; a network never sees an AnnData. The verb a network generates with is its
own (``predict``, ``impute``, …), and the model that wraps it calls that verb.

B batch, F histology features, k neighbours, G genes. A batch of spots holds

- ``index``       (B,) int64, the row of the spot in its AnnData
- ``key``         (B,) int64, a hash of the spot's name: noise keyed by it follows the spot
- ``histology``   (B, F) float32
- ``neighbours``  (B, k, F) float32, histology of the nearest spots, where a model asks for it
- ``xy``          (B, 2) float32, µm from the centre of its section
- ``counts``      (B, G) float32, only where targets are loaded
- ``unit``        (B,) int64, patient, section or random fifth, for cross-fitting; with the targets
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
U = TypeVar("U")

Batch = dict[str, Tensor]
"""What a network reads: tensors that share their first dimension."""

N_FOLDS = 5
"""Parts that training rows are cut into, for cross-fitting: what shares errors (``unit``) is left out as a whole."""


def fold_of(batch: Batch) -> Tensor:
    """Fold (B,) of each row."""
    return batch["unit"] % N_FOLDS


class Loss(NamedTuple):
    """A loss with names: what is minimised and what it is made of."""

    total: Tensor
    """Mean over the batch; the only number that gets a gradient."""
    parts: dict[str, Tensor]
    """Named parts, each a scalar that training logs beside the total."""


class Network(nn.Module):
    """A generative network, constructed as ``NetworkClass(config, **widths, **sizes)``.

    ``widths`` are facts of the data (numbers of features and genes), ``sizes`` are facts that
    :meth:`prepare` found.
    """

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Find what gradients cannot learn (gene order, vocabulary, scaling) and keep it in buffers.

        ``batches`` come from training rows only and can be iterated several times. The default finds nothing.
        """

    def sizes(self) -> dict[str, Any]:
        """JSON-able facts found by :meth:`prepare` that the constructor needs to rebuild the network."""
        return {}

    n_phases: int = 1
    """Phases of training. The epoch to keep is chosen among those of the last one."""

    def begin_epoch(self, epoch: int, n_epochs: int, batches: Iterable[Batch]) -> int:
        """Told before each epoch of training; answers its phase, from 0.

        ``batches`` are the training rows in order and can be iterated several times.
        """
        return 0

    @abstractmethod
    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Loss:
        """The loss of one batch. Randomness inside comes from ``generator``."""
        raise NotImplementedError


class Each(Generic[T, U]):
    """Something made of every item, iterable as often as the items are, one in memory at a time."""

    def __init__(self, make: Callable[[T], U], items: Iterable[T]) -> None:
        self.make, self.items = make, items

    def __iter__(self) -> Iterator[U]:
        return map(self.make, self.items)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with tensors moved that are not there yet."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
