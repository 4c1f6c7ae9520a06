"""What a CausalGeD network is made of: every default, once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PREDICTIONS = ("velocity", "noise")


@dataclass(frozen=True, kw_only=True)
class CausalGeDConfig:
    """Architecture of :class:`stgen.models.CausalGeD`."""

    width: int = 32
    """Width D of tokens."""
    n_layers: int = 3
    """Transformer blocks; the paper needs at least three."""
    n_heads: int = 4
    """Attention heads of a block."""
    ffn_ratio: int = 2
    """Width of a block's feed-forward network over D."""
    dropout: float = 0.3
    """Dropout in the blocks."""
    n_axes: int = 16
    """Length L of a gene's latent: half of it metacell axes of a spot, half the same of its neighbourhood."""
    n_metacells: int = 400
    """Metacells of the reference at most; a fifth of its cells if that is fewer."""
    n_condition: int = 4
    """Condition tokens: learned queries that pool the reference profiles of all genes of a set."""
    n_times: int = 2000
    """Diffusion times T."""
    prediction: str = "velocity"
    """What the network predicts: ``"velocity"`` or ``"noise"`` (as published)."""
    set_decay: float = 0.8
    """α of P(S = i) ∝ α^(i−1), the number of autoregressive steps in training; 1 is uniform."""
    max_context: int = 256
    """Measured genes at most that are context tokens, drawn at random in training."""
    use_context: bool = True
    """Let generated genes see measured ones. Without it, only their own reference profile and hint."""
    use_network: bool = True
    """Without it the answer is that of the linear views alone."""

    def __post_init__(self) -> None:
        """Refuse values that no network could be built from."""
        for name, least in (("width", 4), ("n_layers", 1), ("n_heads", 1), ("ffn_ratio", 1), ("n_axes", 2),
                            ("n_metacells", 2), ("n_condition", 1), ("n_times", 1), ("max_context", 1)):  # fmt: skip
            value = getattr(self, name)
            # 16.0 would fail only where torch asks for a size
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"`{name}` must be a whole number, at least {least}; got {value!r}.")
        if self.width % self.n_heads:
            raise ValueError(f"`width` must be a multiple of `n_heads`; got {self.width} and {self.n_heads}.")
        if self.n_axes % 2:
            raise ValueError(f"`n_axes` must be even; got {self.n_axes}.")
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"`prediction` must be one of {', '.join(map(repr, PREDICTIONS))}; got {self.prediction!r}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1); got {self.dropout}.")
        if not 0 < self.set_decay <= 1:
            raise ValueError(f"`set_decay` must be above 0 and at most 1; got {self.set_decay}.")
