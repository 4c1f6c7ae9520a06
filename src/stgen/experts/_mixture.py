"""A spot as a mixture of the profiles that it looks like.

n spots, M profiles, G genes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unit_length(x: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1; rows of next to nothing stay small."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def mixture(spots: NDArray[Any], profiles: NDArray[Any], sharpness: float) -> NDArray[Any]:
    """(n, M) weights of profiles (M, G), of unit length, in spots (n, G): softmax of ``sharpness`` times the cosine."""
    cosine = sharpness * (unit_length(spots) @ profiles.T)
    weight = np.exp(cosine - cosine.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)
