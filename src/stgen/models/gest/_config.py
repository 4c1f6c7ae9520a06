"""What a GeST network is made of: every default, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LOGITS = ("dot", "euclid")
LABEL_COMPONENTS = 30
"""Principal components from which niches are named; the smaller ones are noise."""
NICHE_NEIGHBORS = 20
"""Nearest cells that a niche is averaged over, beside the cell itself."""
_LEAST = {"width": 4, "n_layers": 1, "n_heads": 1, "ffn_ratio": 1, "n_components": 1, "max_cells": 2}


@dataclass(frozen=True, kw_only=True)
class GeSTConfig:
    """Architecture of :class:`stgen.models.GeST`."""

    width: int = 32
    """Width D of tokens."""
    n_layers: int = 2
    """Transformer blocks."""
    n_heads: int = 4
    """Attention heads of a block."""
    ffn_ratio: int = 3
    """Width of a block's feed-forward network over D."""
    dropout: float = 0.1
    """Dropout in the blocks."""
    n_meta_cells: int | None = None
    """Size K of the cell vocabulary. By default a fiftieth of the training cells, at least 16 and at most 512."""
    n_components: int = 50
    """Principal components in which cells are clustered and assigned."""
    levels: tuple[int, ...] = (15, 10, 5)
    """Numbers of coarser clusters of meta cells, which the loss predicts as well. ``()`` predicts meta cells alone."""
    logits: str = "dot"
    """``"dot"``: scalar product of the predicted profile with each meta cell's (as published), or ``"euclid"``: minus
    half the squared distance."""
    quantized: bool = True
    """Predict a distribution over meta cells. Without it the profile itself, by squared error."""
    window_um: float | None = None
    """Side of the square window, in µm. By default it holds about 200 cells, or 50 spots of a coarse array."""
    max_cells: int = 512
    """Cells of a window at most, nearest to the centre first."""
    order: float = 8.0
    """Exponent of the distance from a corner in the weights by which a window's cells are put in order: 0 is random
    order, large values go from the far side to the corner."""
    use_place: bool = True
    """Tell the network where cells are. Without it a window is a bag of cells."""
    distance_bias: bool = True
    """Let each head prefer near cells, by a Gaussian of learned width, beside the published sinusoids of place."""
    augment: bool = True
    """Turn and mirror windows at random in training."""

    def __post_init__(self) -> None:
        """Refuse values that no network could be built from."""
        for name, least in _LEAST.items():
            _at_least(name, getattr(self, name), least)
        for level in self.levels:
            _at_least("levels", level, 1)
        if self.width % (4 * self.n_heads):
            raise ValueError(
                f"`width` must be a multiple of 4 × `n_heads`; got {self.width} and {self.n_heads}."
            )
        if self.logits not in LOGITS:
            raise ValueError(f"`logits` must be one of {', '.join(map(repr, LOGITS))}; got {self.logits!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1); got {self.dropout}.")
        if self.n_meta_cells is not None:
            _at_least("n_meta_cells", self.n_meta_cells, 2)
        if self.window_um is not None and not self.window_um > 0:
            raise ValueError(f"`window_um` must be a length in µm above 0; got {self.window_um!r}.")
        if self.order < 0:
            raise ValueError(f"`order` must be 0 or more; got {self.order!r}.")


def _at_least(name: str, value: Any, least: int) -> None:
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value!r}.")
