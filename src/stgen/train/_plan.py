"""The training plan: AdamW with warm-up and cosine, clipping, a running average of weights, losses per epoch.

Nothing is logged per step, and no step waits for the device: losses are summed on it and read once per epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor

from stgen.data._loaders import Batches, Table
from stgen.nn._network import Batch, Each, Loss, Network, on_device

from ..nn._random import seed_from, seed_global_generators
from ._options import TrainingOptions, learning_rate
from ._progress import Progress
from ._state import TrainingState

TABLE_BYTES_ON_DEVICE = 4 * 1024**3
"""Tables up to this size are moved to the GPU whole, so that no step waits for a copy."""


class LossSum:
    """Losses summed over an epoch, each batch weighted by its rows."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._n = 0

    def add(self, loss: Loss, n_rows: int) -> None:
        """Count one batch."""
        self._names = ["loss", *loss.parts]
        values = (
            torch.stack([value.detach().float() for value in (loss.total, *loss.parts.values())]) * n_rows
        )
        self._sum = values if self._sum is None else self._sum + values
        self._n += n_rows

    def means(self) -> dict[str, float]:
        """Means over rows, read from the device; the sum starts again."""
        if self._sum is None:
            return {}
        means = dict(zip(self._names, (self._sum / self._n).tolist()))
        self._sum, self._n = None, 0
        return means


class TrainingPlan(lightning.LightningModule):
    """Fits one network on the rows of one table.

    Parameters
    ----------
    network
        What is fitted, prepared.
    table
        Where batches come from.
    train_rows, validation_rows
        Row numbers. Validation rows only choose the epoch, and only where ``options`` ask for early stopping.
    options
        How to train.
    n_epochs
        Epochs in all, those before a resume included.
    state
        Where training stands.
    progress
        The bar.
    on_epoch
        Called with the plan at the end of every epoch, for checkpoints.
    """

    def __init__(
        self,
        network: Network,
        table: Table,
        train_rows: np.ndarray,
        validation_rows: np.ndarray,
        options: TrainingOptions,
        *,
        n_epochs: int,
        state: TrainingState,
        progress: Progress,
        on_epoch: Callable[[TrainingPlan], None] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.state = state
        self.n_epochs = n_epochs
        self.chooses_epoch = options.early_stopping and len(validation_rows) > 0
        self._rows = train_rows, validation_rows
        self._table = table
        self._progress = progress
        self._on_epoch = on_epoch
        self._train_loss, self._validation_loss = LossSum(), LossSum()
        self._validation_means: dict[str, float] = {}
        self._phase = int(state.history[-1].get("phase", 1)) - 1 if state.history else -1
        self._finished: dict[str, Tensor] = {}
        self.is_usable = False

    # data: under several processes each asks for its own part
    def train_dataloader(self) -> Batches:
        """Training rows, in an order of their own each epoch."""
        return self._batches(self._rows[0], seed=lambda: self._seed("order", self.state.epoch))

    def val_dataloader(self) -> Batches | list[Any]:
        """Validation rows, in order."""
        return self._batches(self._rows[1]) if len(self._rows[1]) else []

    def _batches(self, rows: np.ndarray, seed: Callable[[], int] | None = None) -> Batches:
        part = (self.trainer.global_rank, self.trainer.world_size)
        return Batches(self._table, rows, self.options.batch_size, seed=seed, part=part)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move tensors that are not there yet."""
        return on_device(batch, device)

    def _seed(self, *purpose: str | int) -> int:
        return seed_from(self.options.random_state, *purpose)

    # optimisation
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; vectors (biases, scales) are not decayed."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        self._optimizer = torch.optim.AdamW(groups, lr=self.options.lr, fused=fused)
        if self.state.optimizer:
            fresh = self._optimizer.state_dict()
            self._optimizer.load_state_dict(
                {"state": self.state.optimizer, "param_groups": fresh["param_groups"]}
            )
            self.state.optimizer = {}
        return self._optimizer

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by norm. Lightning's own clipping refuses fused optimizers under mixed precision."""
        if self.options.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.gradient_clip)

    def on_fit_start(self) -> None:
        """Bring data and state to the device."""
        self._generator = torch.Generator(device=self.device)
        if (
            self.device.type == "cuda"
            and getattr(self._table, "nbytes", TABLE_BYTES_ON_DEVICE + 1) <= TABLE_BYTES_ON_DEVICE
        ):
            self._table = self._table.to(self.device)  # type: ignore[attr-defined]
        if self.options.ema_decay:
            # in the order of the parameters, whatever order a file had
            self.state.average = {
                name: self.state.average.get(name, parameter.detach()).to(self.device).clone()
                for name, parameter in self.network.named_parameters()
            }
        self._remember_weights()

    def on_train_epoch_start(self) -> None:
        """Noise of an epoch depends on the seed and its number only, so that a resumed run repeats it."""
        seed = self._seed("noise", self.state.epoch)
        seed_global_generators(seed)  # dropout draws from the global generator
        self._generator.manual_seed(seed)
        in_order = Each(lambda batch: on_device(batch, self.device), Batches(self._table, self._rows[0]))
        self._phase = self.network.begin_epoch(self.state.epoch, self.n_epochs, in_order)

    @property
    def _in_last_phase(self) -> bool:
        return self._phase == self.network.n_phases - 1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        n_steps = self.n_epochs * len(self.trainer.train_dataloader)  # type: ignore[arg-type]
        rate = learning_rate(self.state.step, n_steps, self.options)
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The network's own loss."""
        loss = self.network.loss(batch, generator=self._generator)
        self._train_loss.add(loss, len(batch["index"]))
        return loss.total

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the step and average the weights."""
        self.state.step += 1
        self._progress.step()
        if self.options.ema_decay:
            # early on, a long memory would mostly remember the random start
            decay = min(self.options.ema_decay, (1 + self.state.step) / (10 + self.state.step))
            current = [parameter.detach() for parameter in self.network.parameters()]
            torch._foreach_lerp_(list(self.state.average.values()), current, 1 - decay)

    # validation
    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The running average in place of the last weights, where one is kept."""
        last = (
            {name: p.detach().clone() for name, p in self.network.named_parameters()}
            if self.state.average
            else {}
        )
        _copy_parameters(self.network, self.state.average)
        try:
            yield
        finally:
            _copy_parameters(self.network, last)

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights, with the same noise in every epoch, to make epochs comparable."""
        self._averaged = self.averaged_weights()
        self._averaged.__enter__()
        seed = self._seed("validation")
        seed_global_generators(seed)
        self._generator.manual_seed(seed)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The network's own loss, in evaluation mode."""
        self._validation_loss.add(self.network.loss(batch, generator=self._generator), len(batch["index"]))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are the best so far."""
        self._validation_means = self._validation_loss.means()
        loss = self._validation_means["loss"]
        if (
            self.chooses_epoch
            and self._in_last_phase
            and (self.state.best_loss is None or loss < self.state.best_loss)
        ):
            best = _weights_of(self.network)
            self.state.best, self.state.best_loss, self.state.best_epoch = best, loss, self.state.epoch
        self._averaged.__exit__(None, None, None)

    def on_train_epoch_end(self) -> None:
        """Write the row of this epoch, and stop if validation has not improved for long."""
        row = {"lr": self._optimizer.param_groups[0]["lr"]}
        if self.network.n_phases > 1:
            row["phase"] = self._phase + 1
        row |= _named(self._train_loss.means(), "train") | _named(self._validation_means, "validation")
        self._validation_means = {}
        self._check_finite(row)
        self._remember_weights()
        self.state.history.append(row)
        self._progress.epoch(self.state.epoch, row)
        self.state.epoch += 1
        if (
            self.chooses_epoch
            and self._in_last_phase
            and self.state.epoch - 1 - (self.state.best_epoch or 0) >= self.options.patience
        ):
            self.trainer.should_stop = True
        if self._on_epoch is not None:
            self._on_epoch(self)

    def _check_finite(self, row: dict[str, float]) -> None:
        if not np.isfinite(row["train_loss"]):
            raise ValueError(
                f"The loss became {row['train_loss']} in epoch {self.state.epoch + 1} of "
                f"{self.n_epochs}: training "
                f"diverged. Try a lower `lr` (it was {self.options.lr:g}) or a longer `warmup`."
            )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer in use."""
        return self._optimizer

    # the end, or Ctrl-C
    @torch.no_grad()
    def _remember_weights(self) -> None:
        """Weights of a finished epoch: an interrupt comes anywhere, in the middle of a step too."""
        if not self._in_last_phase:
            return
        self.is_usable = True
        if not self._best:
            with self.averaged_weights():
                self._finished = _weights_of(self.network)

    @property
    def _best(self) -> dict[str, Tensor]:
        return self.state.best if self.chooses_epoch else {}

    @torch.no_grad()
    def keep_final_weights(self) -> None:
        """Leave the network with the best weights, else with those of the last finished epoch."""
        if self._best or self._finished:
            self.network.load_state_dict(self._best or self._finished)
        else:  # a finished run was resumed
            _copy_parameters(self.network, self.state.average)


def _weights_of(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def _copy_parameters(network: Network, values: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)


def _named(means: dict[str, float], phase: str) -> dict[str, float]:
    """Columns of the history: ``train_loss``, ``validation_loss``, and the network's parts likewise."""
    return {f"{phase}_{name}": value for name, value in means.items()}
