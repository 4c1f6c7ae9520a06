"""What a GenAR network is made of: every default, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._hierarchy import METHODS, SCALE_SHARES


@dataclass(frozen=True, kw_only=True)
class GenARConfig:
    """Architecture of :class:`stgen.models.GenAR`."""

    width: int = 48
    """Width D of tokens."""
    n_layers: int = 2
    """Transformer blocks."""
    n_heads: int = 2
    """Attention heads of a block."""
    ffn_ratio: int = 3
    """Width of a block's feed-forward network over D."""
    dropout: float = 0.0
    """Dropout in the condition encoder and the blocks."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; it grows linearly from 0."""
    feature_dropout: float = 0.2
    """Share of histology features hidden from the condition encoder in training."""
    scales: tuple[int, ...] | None = None
    """Numbers of gene groups, coarse to fine, ending with the number of genes. By default panel, about one group per ten genes, genes."""
    n_scales: int = 3
    """Number of scales where ``scales`` does not say them: 3, or 6 as published."""
    hierarchy: str = "ward"
    """How genes are grouped: ``"ward"`` (balanced subtrees of depth-normalised profiles) or ``"kmeans"`` (as published)."""
    gene_modulation: bool = True
    """Modulate the head by the gene's identity, and mark queries with it."""
    final_label: str = "gaussian"
    """Label of the last scale: ``"gaussian"`` (blurred counts) or ``"onehot"``."""
    label_slope: float = 0.01
    """Growth of the label's σ with the count."""
    label_width: float = 0.5
    """Limit of the label's σ for moderate counts; σ is 0 at 0."""
    head: str = "negative_binomial"
    """``"negative_binomial"`` with free logits on top, or ``"categorical"``: free logits alone, as published."""
    n_tokens: int | None = None
    """Vocabulary size V. By default three times the largest training token, at most ``max_tokens``."""
    max_tokens: int = 2001
    """Upper limit of V at the last scale, where a token is a gene's count."""
    coarse_tokens: int = 512
    """Upper limit of V at coarse scales, which are resolved as finely as it allows."""
    nonlinear: bool = True
    """Let a perceptron and a retrieval join the ridge in saying which counts to expect, as far as held-out sections
    support it."""
    retrieval: bool = True
    """Let the retrieval join too. The model then holds the normalised profiles of up to 4,096 training spots, and so
    does its file."""
    steer: bool = False
    """Steer the decoder's norms by histology and place, as published. Without it both reach the decoder through the
    expected counts alone, which carries over better to new sections while sections are few."""
    use_place: bool = True
    """Condition on the spot's place in its section."""
    n_neighbors: int = 6
    """Nearest spots whose histology (never their counts) joins the condition. 0 for none."""
    blind_share: float = 0.3
    """Share of spots that train without their true coarser tokens; what was expected of each group stands in."""

    shift_penalty: float = 5.0
    """Weight of the squared shift that the decoder gives a token's log mean: a Gaussian prior around what the experts
    expect, of standard deviation 1/√penalty."""

    def __post_init__(self) -> None:
        """Refuse values that no network could be built from."""
        _among("n_scales", self.n_scales, tuple(SCALE_SHARES))
        _among("hierarchy", self.hierarchy, METHODS)
        _among("final_label", self.final_label, ("gaussian", "onehot"))
        _among("head", self.head, ("negative_binomial", "categorical"))
        if self.width % self.n_heads:
            raise ValueError(f"`width` must be a multiple of `n_heads`; got {self.width} and {self.n_heads}.")
        if min(self.max_tokens, self.coarse_tokens) < 3 or (self.n_tokens is not None and self.n_tokens < 3):
            raise ValueError(
                f"The vocabulary needs at least 3 tokens; got {self.n_tokens or min(self.max_tokens, self.coarse_tokens)}."
            )
        for name in ("dropout", "drop_path", "feature_dropout", "blind_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1); got {getattr(self, name)}.")


def _among(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
