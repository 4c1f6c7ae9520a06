"""Sinusoids of a scalar and of a point in the plane.

Places are in µm and relative to the section's centre, so a section may lie anywhere on its slide and physical
scale and aspect are kept. Periods run geometrically from about the slide's size down to a few spot pitches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def periods(n: int, shortest: float, longest: float) -> Tensor:
    """``n`` periods from ``longest`` down to ``shortest``, evenly spaced in their logarithm."""
    if not 0 < shortest <= longest:
        raise ValueError(f"Periods need 0 < shortest <= longest; got {shortest} and {longest}.")
    return torch.exp(torch.linspace(math.log(longest), math.log(shortest), n))


def sinusoid(value: Tensor, period: Tensor) -> Tensor:
    """Sine and cosine of ``value`` (…) at each of P periods: (…, 2P)."""
    angle = value[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def plane_waves(xy: Tensor, period: Tensor, n_directions: int) -> Tensor:
    """Waves of each of P periods running in each of ``n_directions`` evenly spread directions.

    ``xy`` (…, 2) and ``period`` have the same unit (µm): (…, P · n_directions · 2), the period varying slowest.
    Waves along the axes alone could only add a pattern in x to one in y.
    """
    angle = torch.arange(n_directions, device=xy.device, dtype=xy.dtype) * (math.pi / n_directions)
    along = xy @ torch.stack([angle.cos(), angle.sin()])
    return sinusoid(along, period).unflatten(-1, (2, -1)).movedim(-1, -3).flatten(-3)
