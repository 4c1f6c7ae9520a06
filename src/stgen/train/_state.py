"""Where training stands at the end of an epoch: enough to go on as if it had never stopped.

All randomness of an epoch follows from the seed and the number of the epoch, so the state of random
generators is these two numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ._files import read_bundle, write_bundle
from ._options import TrainingOptions

STEM = "training"

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """Everything that changes from epoch to epoch besides the network's own weights."""

    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch."""
    best_epoch: int | None = None
    best_loss: float | None = None
    best: Weights = field(default_factory=dict)
    """Weights of the best epoch so far, where validation chooses."""
    average: Weights = field(default_factory=dict)
    """Running average of the parameters, where one is kept."""
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Slots of the optimizer per parameter, to be loaded when training goes on."""


def save_state(
    directory: Path,
    state: TrainingState,
    weights: Weights,
    optimizer: Optimizer,
    options: TrainingOptions,
    facts: dict[str, Any],
) -> None:
    """Write the state of training; ``facts`` are what the caller wants back."""
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.average.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": tensor for slot, tensor in slots.items()}
    body = {
        "training": {
            "epoch": state.epoch,
            "step": state.step,
            "history": state.history,
            "best_epoch": state.best_epoch,
            "best_loss": state.best_loss,
        },
        "options": asdict(options),
        "facts": facts,
    }
    write_bundle(directory, STEM, tensors, body)


def load_state(directory: Path) -> tuple[TrainingState, Weights, TrainingOptions, dict[str, Any]]:
    """State, weights, options and the caller's facts, as :func:`save_state` wrote them."""
    tensors, body = read_bundle(directory, STEM)
    state = TrainingState(
        **body["training"],
        best=_under(tensors, "best/"),
        average=_under(tensors, "average/"),
        optimizer=_optimizer_slots(_under(tensors, "optimizer/")),
    )
    return state, _under(tensors, "weights/"), TrainingOptions(**body["options"]), body["facts"]


def _under(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_slots(tensors: Weights) -> dict[int, dict[str, Tensor]]:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, slot = name.split("/")
        slots.setdefault(int(index), {})[slot] = tensor
    return slots
