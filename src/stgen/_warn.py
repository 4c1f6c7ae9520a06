"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the line of the user's that led here, not at one of ours."""
    frame, level = sys._getframe(1), 2
    # torch wraps what runs without gradients
    ours = ("stgen", "scvi", "torch")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
