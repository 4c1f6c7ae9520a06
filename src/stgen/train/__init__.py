"""The training plan and the runner: how any network is fitted. Knows lightning, not AnnData."""

from __future__ import annotations

from ._options import TrainingOptions
from ._runner import FitReport, fit, prepare

__all__ = ["FitReport", "TrainingOptions", "fit", "prepare"]
