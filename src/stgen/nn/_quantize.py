"""Codebooks: a token is replaced by the nearest of K learned vectors.

van den Oord et al., *Neural Discrete Representation Learning* (2017), with codes that follow the mean of the tokens
they stand for (exponential moving average) in place of a gradient. Every token position has a codebook of its own.
Codes start from k-means; a code that hardly any token chooses is put where a token is.

B batch, M token positions, K codes, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._kmeans import kmeans, spread_rows

DEAD = 0.03
"""A code is dead when its share of tokens falls below this part of 1/K."""
MAX_ROWS = 20_000
"""Rows at most from which codes start."""


class Codebooks(nn.Module):
    """M codebooks of K codes: buffers that training moves, and no parameters.

    Attributes
    ----------
    codes
        (M, K, d).
    share
        (M, K), how often a code is chosen, as a moving average; a revived code starts at 1/K.
    """

    codes: Tensor
    share: Tensor
    total: Tensor
    """(M, K, d): moving average of the sum of a code's tokens, over rows."""

    def __init__(self, n_tokens: int, n_codes: int, width: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(n_tokens, n_codes, width))
        self.register_buffer("share", torch.full((n_tokens, n_codes), 1.0 / n_codes))
        self.register_buffer("total", torch.zeros(n_tokens, n_codes, width))

    @property
    def n_codes(self) -> int:
        """Codes K of every position."""
        return self.codes.shape[1]

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator) -> None:
        """Codes from k-means of tokens (n, M, d); n must be at least K."""
        if len(z) < self.n_codes:
            raise ValueError(
                f"{self.n_codes} codes need at least as many training spots; found {len(z)}. Lower `n_codes`."
            )
        rows = z[spread_rows(len(z), min(len(z), MAX_ROWS), generator).to(z.device)]
        for position, points in enumerate(rows.unbind(1)):
            found = kmeans(points.double(), self.n_codes, generator)
            n_found = len(found.centres)
            # fewer distinct tokens than codes: twins of the first wait, unused
            self.codes[position] = found.centres[:1]
            self.codes[position, :n_found] = found.centres.to(z.dtype)
            self.share[position] = found.label.bincount(minlength=self.n_codes) / len(points)
        self.total.copy_(self.codes * self.share[..., None])

    def nearest(self, z: Tensor) -> Tensor:
        """The code nearest to each token: (B, M, d) → (B, M) int64. Of equal ones, the first."""
        half = self.codes.square().sum(-1) / 2
        return (half - torch.einsum("bmd,mkd->bmk", z, self.codes)).argmin(-1)

    def look_up(self, index: Tensor) -> Tensor:
        """Codes by number: (B, M) → (B, M, d)."""
        position = torch.arange(len(self.codes), device=index.device)
        return self.codes[position, index]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens replaced by their codes (B, M, d), whose gradient is handed straight to ``z``, and code numbers."""
        index = self.nearest(z)
        return z + (self.look_up(index) - z).detach(), index

    @torch.no_grad()
    def follow(self, z: Tensor, index: Tensor, generator: torch.Generator | None = None) -> None:
        """Move codes towards the tokens that chose them, and revive dead ones at tokens of this batch."""
        n, (M, K, d) = len(z), self.codes.shape
        flat = (index + torch.arange(M, device=index.device) * K).flatten()
        chosen = torch.zeros(M * K, device=z.device, dtype=z.dtype).index_add_(0, flat, z.new_ones(len(flat)))
        summed = torch.zeros(M * K, d, device=z.device, dtype=z.dtype).index_add_(0, flat, z.flatten(0, 1))
        self.share.lerp_(chosen.view(M, K) / n, 1 - self.decay)
        self.total.lerp_(summed.view(M, K, d) / n, 1 - self.decay)
        dead = self.share < DEAD / K
        if dead.any():
            position, code = dead.nonzero(as_tuple=True)
            row = torch.randint(n, (len(code),), generator=generator, device=z.device)
            self.share[position, code] = 1.0 / K
            self.total[position, code] = z[row, position] / K
        self.codes.copy_(self.total / self.share.clamp(min=1e-12)[..., None])


def perplexity(share: Tensor) -> Tensor:
    """Exp of the entropy of the shares (…, K) of codes: how many codes, equally used, would be as varied. (…)."""
    return torch.special.entr(share).sum(-1).exp()
