"""Random numbers that belong to an observation, not to its place in a batch.

Drawing noise from one stream would tie a spot's answer to its neighbours in the batch and to the order of rows.
Here a uniform number is a hash of (observation key, position, seed): a counter-based generator (splitmix64).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA = (
    -7046029254386353131
)  # 0x9E3779B97F4A7C15 as a signed integer; int64 products wrap, which is what is wanted
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, n: int) -> Tensor:
    return (x >> n) & ((1 << (64 - n)) - 1)  # torch shifts int64 arithmetically; the mask makes it logical


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def keyed_uniform(key: Tensor, n: int, *, seed: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), one row of ``n`` for each key (B,): (B, n), float32."""
    position = torch.arange(1, n + 1, device=key.device)
    start = (seed * _MIX_2 + 2**63) % 2**64 - 2**63  # wrapped as int64 would
    bits = _mix(_mix(key + start)[:, None] + position * _GAMMA)
    # 23 bits and a half fill float32's 24 exactly; one more would round the largest number up to 1
    return (_shift_right(bits, 41).to(torch.float32) + 0.5) * 2.0**-23
