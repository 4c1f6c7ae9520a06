"""Parts of the GeST network: places in a window, and a transformer block that knows distances.

B windows, N tokens, D width, H heads. Places are offsets from the window's centre over the window's side, so they
lie in [−½, ½].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn._attention import Attend

STEPS = 200
"""Places are rounded to this many steps across a window, as published."""
_EXTRA = 4
"""Dimensions of a head that carry the squared distance: three, and one to keep the width even."""


def quantized_place(place: Tensor) -> Tensor:
    """Places (…, 2) in [−½, ½] as whole steps from 0 to 200."""
    return (STEPS * (place + 0.5)).round().clamp(0, STEPS)


def place_sinusoid(step: Tensor, width: int) -> Tensor:
    """Sines and cosines of steps (…, 2): the first half of D for x, the second for y, pairs at 10000^(−2i/D)."""
    i = torch.arange(width // 4, device=step.device, dtype=torch.float32)
    angle = step[..., None].float() * torch.pow(10_000.0, -2 * i / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


class SpatialBlock(nn.Module):
    """Self-attention and a feed-forward network behind plain norms; a head may prefer near tokens.

    A head's logits lose |a − b|² / 2ℓ² for tokens at places a and b. Written out, the square is a scalar product plus
    terms of one side only, so four more dimensions of queries and keys carry it and any form of attention can be
    handed in unchanged. At the start a head is close to a Gaussian smoother; widths ℓ run from a twentieth of the
    window to half of it, and are learned.
    """

    def __init__(
        self, dim: int, n_heads: int, *, ffn_ratio: int, dropout: float, distance_bias: bool
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_ratio * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn_ratio * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)
        self.log_scale = (
            nn.Parameter(torch.linspace(math.log(0.05), math.log(0.5), n_heads)) if distance_bias else None
        )

    def forward(self, x: Tensor, attend: Attend, condition: Tensor) -> Tensor:
        """Tokens (B, N, D) at places ``condition`` (B, N, 2) after seeing, through ``attend``, what they may see."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        q = q / math.sqrt(q.shape[-1])
        if self.log_scale is None:
            seen = attend(q, k, v)
        else:
            # the square of a distance in a window has more digits than half precision keeps
            with torch.autocast(x.device.type, enabled=False):
                q, k = _with_distance(q.float(), k.float(), condition.float(), self.log_scale)
                seen = attend(q, k, F.pad(v.float(), (0, _EXTRA)))[..., :-_EXTRA]
        x = x[:, x.shape[1] - seen.shape[2] :]
        x = x + self.dropout(self.project(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


def _with_distance(q: Tensor, k: Tensor, place: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product is lower by |a − b|² / 2ℓ², up to a constant of each query."""
    rate = (0.5 * torch.exp(-2 * log_scale))[:, None, None]
    here = place[:, None].expand(-1, q.shape[1], -1, -1)
    one, nothing = torch.ones_like(here[..., :1]), torch.zeros_like(here[..., :1])
    square = here.square().sum(-1, keepdim=True)
    return (
        torch.cat([q, 2 * rate * here, -rate * one, nothing], dim=-1),
        torch.cat([k, here, square, nothing], dim=-1),
    )
