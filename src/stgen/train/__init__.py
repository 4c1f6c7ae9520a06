"""The training plan and the runner: how any network is fitted. Knows lightning, not AnnData."""

from __future__ import annotations

from ..nn._random import global_random_state_kept, seed_from
from ._options import TrainingOptions
from ._runner import FitReport, fit, prepare

__all__ = ["FitReport", "TrainingOptions", "fit", "global_random_state_kept", "prepare", "seed_from"]
