"""Runs a training plan on Lightning, quietly, and leaves the session as it was found."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch

from stgen.data._loaders import Batches, Table
from stgen.nn._network import Network

from ..nn._random import global_random_state_kept, seed_from, seed_global_generators
from ._options import TrainingOptions
from ._plan import TrainingPlan
from ._progress import Progress
from ._state import TrainingState

logger = logging.getLogger("stgen")


@dataclass(frozen=True)
class FitReport:
    """How a fit went."""

    history: list[dict[str, float]]
    """One row per epoch."""
    n_epochs: int
    """Epochs that were run."""
    best_epoch: int | None
    """The epoch (from 0) whose weights were kept, where validation chose."""
    interrupted: bool = False
    """Whether the user stopped it: the weights are those that the finished epochs had come to."""


def prepare(network: Network, table: Table, train_rows: np.ndarray, *, random_state: int) -> None:
    """Let the network find what gradients cannot learn, from training rows only.

    This comes before parameters are given to an optimizer and before Lightning starts its processes. Under
    several processes, rank 0 prepares and sends `sizes()` and the state dict to the others from here.
    """
    with global_random_state_kept():
        seed_global_generators(seed_from(random_state, "prepare"))
        network.prepare(Batches(table, train_rows))


def fit(
    network: Network,
    table: Table,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    options: TrainingOptions,
    *,
    accelerator: str = "cpu",
    devices: Any = 1,
    device: torch.device | None = None,
    progress_bar: bool = True,
    label: str = "Training",
    state: TrainingState | None = None,
    on_epoch: Callable[[TrainingPlan], None] | None = None,
) -> FitReport:
    """Fit a prepared network and leave it with the weights to keep, in evaluation mode.

    Parameters
    ----------
    network, table, train_rows, validation_rows, options
        As for :class:`TrainingPlan`.
    accelerator, devices
        As Lightning understands them, resolved.
    device
        The first of the devices, whose random state is kept.
    progress_bar
        Show the bar.
    label
        What stands before the bar.
    state
        Where training stands, to go on from there.
    on_epoch
        Called with the plan at the end of every epoch.

    Raises
    ------
    KeyboardInterrupt
        If the user stops it before the weights are of use: no epoch (of the last phase) is finished.
    """
    state = TrainingState() if state is None else state
    steps_per_epoch = -(-len(train_rows) // options.batch_size)
    n_epochs = options.epochs(steps_per_epoch)
    bar = Progress(
        n_steps=n_epochs * steps_per_epoch,
        n_epochs=n_epochs,
        first_step=state.step,
        first_epoch=state.epoch,
        label=label,
        show=progress_bar,
    )
    plan = TrainingPlan(
        network,
        table,
        train_rows,
        validation_rows,
        options,
        n_epochs=n_epochs,
        state=state,
        progress=bar,
        on_epoch=on_epoch,
    )
    finished = state.epoch >= n_epochs or _has_stopped(state, options, len(validation_rows))
    interrupted = False
    try:
        with quiet_lightning(), global_random_state_kept(device):
            if not finished:
                network.train()
                trainer = _trainer(options, n_epochs - state.epoch, accelerator, devices, device)
                interrupted = _is_interrupted(trainer, plan)
            plan.keep_final_weights()
    finally:
        bar.close()
        network.eval()
    return FitReport(state.history, state.epoch, state.best_epoch, interrupted)


def _is_interrupted(trainer: lightning.Trainer, plan: TrainingPlan) -> bool:
    """Train, and say whether the user stopped it with weights that are of use."""
    try:
        with keyboard_interrupts_pass():
            trainer.fit(plan)
    except KeyboardInterrupt:
        if not plan.is_usable:
            raise KeyboardInterrupt(
                f"Training was interrupted in epoch {plan.state.epoch + 1} of {plan.n_epochs}, before its weights "
                "are of use; the model is not fitted."
            ) from None
        return True
    return False


def _has_stopped(state: TrainingState, options: TrainingOptions, n_validation: int) -> bool:
    """Whether a resumed run had already stopped early."""
    chooses = options.early_stopping and n_validation > 0 and state.best_epoch is not None
    return chooses and state.epoch - 1 - (state.best_epoch or 0) >= options.patience


def _trainer(
    options: TrainingOptions, n_epochs: int, accelerator: str, devices: Any, device: torch.device | None
) -> lightning.Trainer:
    """Lightning without logger, checkpoints, summary and bar: the plan keeps its own books."""
    return lightning.Trainer(
        max_epochs=n_epochs,
        accelerator=accelerator,
        devices=devices,
        precision=_precision(options.precision, device),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # tensors made while validating may be kept by a network and met again in training
        inference_mode=False,
    )


def _precision(asked: str, device: torch.device | None) -> Any:
    if asked == "32":
        return "32-true"
    if device is not None and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        logger.warning("This GPU does not support bf16; training in fp32.")
        return "32-true"
    if device is not None and device.type == "mps":
        logger.warning("bf16 is not used on MPS; training in fp32.")
        return "32-true"
    return "bf16-mixed"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """No tips, banners or advice from Lightning; warnings of anything else pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for one, level in zip(loggers, levels):
            one.setLevel(level)


@contextmanager
def keyboard_interrupts_pass() -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving Python; a notebook needs the KeyboardInterrupt."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
