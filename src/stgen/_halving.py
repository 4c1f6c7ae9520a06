"""Space cut into compact blocks of equal size, by halving along the longer side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def halved(xy: NDArray[np.float64], n_blocks: int) -> NDArray[np.int64]:
    """Block (n,) of every place (n, 2); ``n_blocks`` is rounded down to a power of two, and a block keeps two places."""
    parts = [np.arange(len(xy))]
    while 2 * len(parts) <= n_blocks and min(map(len, parts)) >= 4:
        parts = [half for part in parts for half in _halves(xy, part)]
    label = np.empty(len(xy), dtype=np.int64)
    for number, part in enumerate(parts):
        label[part] = number
    return label


def _halves(xy: NDArray[np.float64], part: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    side = int(np.argmax(np.ptp(xy[part], axis=0)))
    order = part[np.argsort(xy[part, side], kind="stable")]
    return order[: len(order) // 2], order[len(order) // 2 :]
