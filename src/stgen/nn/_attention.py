"""Transformer parts: attention on unit-length queries and keys, a norm steered by a condition, the block of both.

B batch, N tokens, D width, H heads, C condition width. A block never chooses whom its tokens see: it hands
q, k, v (B, H, N, D/H) to ``attend`` and gets (B, H, M, D/H) back, so that the same block serves a dense pass,
a sliced pass and a cached one (see :mod:`stgen.nn._grouped`). M is N, or less where only the last M tokens are
wanted; the block then answers for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale, shift and gate come from a condition (B, C); the identity at the start.

    The gate starts at ``gate``, the scale at 1 and the shift at 0, whatever the condition.
    """

    def __init__(self, dim: int, condition_dim: int, *, gate: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.steer = nn.Linear(condition_dim, 3 * dim)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.steer.bias)
        self.start = gate

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The normed tokens (B, N, D) and the gate (B, 1, D) for what is computed from them."""
        scale, shift, gate = self.steer(condition)[:, None].chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, self.start + gate


class DropPath(nn.Module):
    """Leaves a residual branch out for a random share of the samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class AdaptiveBlock(nn.Module):
    """Self-attention and a feed-forward network, each behind an :class:`AdaptiveNorm` with a gate.

    Queries and keys are scaled to unit length per head, and a learned temperature takes the place of 1/√d:
    logits stay bounded, so sharp attention has to be asked for.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        condition_dim: int,
        *,
        ffn_ratio: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"Width {dim} must be a multiple of the {n_heads} heads.")
        self.n_heads = n_heads
        self.attention_norm = AdaptiveNorm(dim, condition_dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.log_temperature = nn.Parameter(torch.full((n_heads, 1, 1), math.log(math.sqrt(dim / n_heads))))
        self.project = nn.Linear(dim, dim)
        self.ffn_norm = AdaptiveNorm(dim, condition_dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_ratio * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn_ratio * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, attend: Attend, condition: Tensor) -> Tensor:
        """Tokens (B, N, D) after seeing, through ``attend``, what they may see."""
        normed, gate = self.attention_norm(x, condition)
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(normed).chunk(3, dim=-1)
        )
        q = F.normalize(q, dim=-1) * self.log_temperature.clamp(max=math.log(100.0)).exp()
        seen = attend(q, F.normalize(k, dim=-1), v).transpose(1, 2).flatten(2)
        x = x[:, x.shape[1] - seen.shape[1] :]
        x = x + self.drop_path(gate * self.dropout(self.project(seen)))
        normed, gate = self.ffn_norm(x, condition)
        return x + self.drop_path(gate * self.dropout(self.ffn(normed)))
