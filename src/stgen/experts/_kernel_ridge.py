"""Kernel ridge regression over genes: a gene's pattern over spots from the patterns of genes that it goes together with.

A sample is a gene. With kernel K among measured genes, K′ from measured to wanted genes and measured patterns P (s, m),
wanted patterns are P (K + λ I)⁻¹ K′.

s spots, m measured genes, w wanted genes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def likeness(correlation: NDArray[Any], steepness: float | None = None) -> NDArray[Any]:
    """Kernel of genes that correlate by ρ: ρ itself, or exp(steepness · (ρ − 1)), which never falls to 0.

    Where it never falls to 0, part of what *all* measured genes show goes to every gene: spots differ in quality, which
    no reference knows.
    """
    return correlation if steepness is None else np.exp(steepness * (correlation - 1))


def coefficients(among: Floats, to_wanted: Floats, penalty: float) -> Floats:
    """(m, w) how much of each measured pattern a wanted pattern takes, from kernels (m, m) and (m, w)."""
    return np.asarray(np.linalg.solve(among + penalty * np.eye(len(among)), to_wanted))
