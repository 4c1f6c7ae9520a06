"""One progress bar for the whole fit."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm.auto import tqdm


class Progress:
    """A bar over steps that names the epoch and the latest losses."""

    def __init__(
        self, *, n_steps: int, n_epochs: int, first_step: int, first_epoch: int, label: str, show: bool
    ) -> None:
        self._n_epochs = n_epochs
        self._label = label
        self._bar = tqdm(
            total=n_steps, initial=first_step, desc=self._title(first_epoch), disable=not show, unit="step"
        )

    def _title(self, epoch: int) -> str:
        return f"{self._label} epoch {min(epoch + 1, self._n_epochs)}/{self._n_epochs}"

    def step(self) -> None:
        """One step further."""
        self._bar.update(1)

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Name the next epoch and show the losses of the one that ended."""
        shown = {name: f"{row[key]:.4g}" for name, key in _SHOWN.items() if key in row}
        self._bar.set_description(self._title(epoch + 1), refresh=False)
        self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


_SHOWN = {"train": "train_loss", "validation": "validation_loss"}
