"""How to train: every default written once, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

PRECISIONS = ("32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What ``train`` can be told. A model may bring other defaults."""

    max_epochs: int | None = None
    """Passes over the training rows. ``None``: about :attr:`n_steps` steps, but :attr:`min_epochs` to 400 epochs."""
    n_steps: int = 4000
    """Steps aimed at where ``max_epochs`` is not given."""
    min_epochs: int = 20
    """Epochs at least where ``max_epochs`` is not given."""
    batch_size: int = 64
    """Rows per step."""
    lr: float = 1e-3
    """Highest learning rate of AdamW, reached after warm-up, from where a cosine leads to 0."""
    weight_decay: float = 1e-2
    """Of matrices; biases, scales and other vectors are not decayed."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises linearly."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it alone."""
    ema_decay: float = 0.0
    """Decay per step of a running average of weights, which is validated and kept; 0 keeps the last ones."""
    early_stopping: bool = True
    """Stop when validation has not improved for ``patience`` epochs, and keep the best weights."""
    patience: int = 30
    """Epochs without improvement before stopping."""
    precision: str = "32"
    """``"32"``, or ``"bf16"`` for mixed precision where the device supports it."""
    random_state: int = 0
    """Seed of the order of rows and of all noise."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "patience", "n_steps", "min_epochs"):
            _check(
                isinstance(getattr(self, name), Integral) and getattr(self, name) >= 1,
                name,
                "an integer ≥ 1",
                self,
            )
        whole = self.max_epochs is None or (isinstance(self.max_epochs, Integral) and self.max_epochs >= 1)
        _check(whole, "max_epochs", "an integer ≥ 1 or None", self)
        _check(self.lr > 0, "lr", "positive", self)
        for name in ("weight_decay", "gradient_clip"):
            _check(getattr(self, name) >= 0, name, "0 or more", self)
        for name in ("warmup", "ema_decay"):
            _check(0 <= getattr(self, name) < 1, name, "in [0, 1)", self)
        _check(self.precision in PRECISIONS, "precision", f"one of {', '.join(map(repr, PRECISIONS))}", self)
        _check(self.random_state >= 0, "random_state", "0 or more", self)

    def epochs(self, steps_per_epoch: int) -> int:
        """Number of epochs for data of this size."""
        if self.max_epochs is not None:
            return self.max_epochs
        return min(400, max(self.min_epochs, round(self.n_steps / steps_per_epoch)))


def _check(ok: bool, name: str, expected: str, options: TrainingOptions) -> None:
    if not ok:
        raise ValueError(f"`{name}` must be {expected}; got {getattr(options, name)!r}.")


def learning_rate(step: int, n_steps: int, options: TrainingOptions) -> float:
    """Linear warm-up, then a cosine to 0 at the last step."""
    n_warm = math.ceil(options.warmup * n_steps)
    if step < n_warm:
        return options.lr * (step + 1) / n_warm
    # the last step still moves: 0 is reached one step after it
    done = (step - n_warm) / max(1, n_steps - n_warm)
    return options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
