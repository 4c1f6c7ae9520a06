"""Into how many parts training rows are cut, and which part a row is in: one rule for tables, experts and networks."""

from __future__ import annotations

from torch import Tensor

N_FOLDS = 5


def fold_of(unit: Tensor) -> Tensor:
    """Fold (B,) of what rows share errors with (patient, section), so that it is left out as a whole."""
    return unit % N_FOLDS
