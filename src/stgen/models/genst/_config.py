"""What a GenST network is made of: every default, once."""

from __future__ import annotations

from dataclasses import dataclass

BACK_ENDS = ("features", "pixels")


@dataclass(frozen=True, kw_only=True)
class GenSTConfig:
    """Architecture of :class:`stgen.models.GenST`."""

    back_end: str = "features"
    """What the image side reads: ``"features"`` (a histology embedding) or ``"pixels"`` (tiles, by convolutions)."""
    n_tokens: int = 16
    """Tokens M_e that an expression profile becomes."""
    token_width: int = 4
    """Width d of an expression token."""
    n_codes: int = 32
    """Codes of every codebook."""
    n_image_tokens: int = 32
    """Tokens M_i that the histology of a spot becomes."""
    image_token_width: int = 8
    """Width of an image token."""
    n_image_codes: int = 32
    """Codes of every image codebook."""
    hidden: int = 64
    """Hidden units of the encoders' and decoders' nonlinear part and of the translator's."""
    dropout: float = 0.2
    """Dropout in these."""
    commitment: float = 0.25
    """β, weight of keeping a token near its code."""
    decay: float = 0.99
    """Moving average by which codes follow their tokens."""
    align_tokens: float = 1.0
    """λ1, weight of the squared distance between translated and true tokens."""
    align_codes: float = 1.0
    """λ2, weight of the cross-entropy of the true codes."""
    align_spots: float = 0.1
    """λ3, weight of telling spots of a batch apart (InfoNCE)."""
    shift_penalty: float = 50.0
    """Weight of the squared shift by which the translator's network moves a token from where the experts expect it."""
    alone: float = 0.3
    """Share of the epochs in which each autoencoder trains alone, before both are aligned."""
    nonlinear: bool = True
    """Let a perceptron and a retrieval join the ridge in the translator, as far as held-out sections support it."""
    retrieval: bool = True
    """Let the retrieval join too. The model then holds the normalised profiles of up to 4,096 training spots, and so
    does its file."""
    translator: bool = True
    """Let a network learn what the experts leave unexplained."""
    use_place: bool = True
    """Tell the translator the spot's place, as far as held-out sections support it."""
    n_neighbors: int = 6
    """Nearest spots whose mean histology (never their counts) joins the spot's own. 0 for none. Tiles have none: they
    show as much of the surroundings as they are wide."""

    def __post_init__(self) -> None:
        """Refuse values that no network could be built from."""
        if self.back_end not in BACK_ENDS:
            raise ValueError(
                f"`back_end` must be one of {', '.join(map(repr, BACK_ENDS))}; got {self.back_end!r}."
            )
        for name, least in (("n_tokens", 1), ("token_width", 1), ("n_codes", 2), ("n_image_tokens", 1),
                            ("image_token_width", 1), ("n_image_codes", 2), ("hidden", 1), ("n_neighbors", 0)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < least:
                raise ValueError(f"`{name}` must be a whole number, at least {least}; got {value!r}.")
        for name in ("dropout", "decay", "alone"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1); got {getattr(self, name)}.")
        for name in ("commitment", "align_tokens", "align_codes", "align_spots", "shift_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more; got {getattr(self, name)}.")
