"""What users are told: warnings that point at their line, and numbers that look like what they are."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def warn(message: str) -> None:
    """Warn at the line of the user's that led here, not at one of ours."""
    frame, level = sys._getframe(1), 2
    # torch wraps what runs without gradients
    ours = ("stgen", "scvi", "torch")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def number(value: Any, *unlike: float) -> str:
    """A number for a message: four digits, or as many as tell it apart from the numbers it must not look like.

    68.99999 is no "69" where whole numbers are asked for, and 10.0001 no "10" where 10 is the limit.
    """
    exact = float(str(value))  # single precision has no digits but those it shows
    for digits in range(4, 18):
        text = _written(exact, digits)
        shown = float(text)
        if all((shown < one, shown > one) == (exact < one, exact > one) for one in unlike):
            break
    return text


def _written(value: float, digits: int) -> str:
    """With so many significant digits, and all of those before the point."""
    n_before = len(f"{abs(value):.0f}")
    return f"{value:.{max(digits, n_before)}g}" if n_before <= 9 else f"{value:.{digits}g}"


def share(part: int, whole: int) -> str:
    """A share in percent, which is 0 % only of nothing and 100 % only of all."""
    if 0 < part <= 0.005 * whole:
        return "under 1%"
    return "over 99%" if 0.995 * whole <= part < whole else f"{part / whole:.0%}"
