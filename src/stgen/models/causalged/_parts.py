"""Parts of the CausalGeD network: a plain block, and the autoregressive order over sets of genes.

B batch, N tokens, D width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ...nn._attention import Attend
from ...nn._noise import keyed_uniform


class PlainBlock(nn.Module):
    """Self-attention and a feed-forward network, each behind a layer norm."""

    def __init__(self, dim: int, n_heads: int, *, ffn_ratio: int, dropout: float) -> None:
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

    def forward(self, x: Tensor, attend: Attend, condition: Tensor) -> Tensor:
        """Tokens (B, N, D) after seeing, through ``attend``, what they may see; ``condition`` is not read."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        seen = attend(q / math.sqrt(q.shape[-1]), k, v).transpose(1, 2).flatten(2)
        x = x[:, x.shape[1] - seen.shape[1] :]
        x = x + self.dropout(self.project(seen))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Pool(nn.Module):
    """Condition tokens: learned queries that each take a weighted mean over all tokens of a set."""

    def __init__(self, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(n_tokens, dim) / math.sqrt(dim))
        self.value = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, n_tokens, D)"""
        share = (tokens @ self.query.T).softmax(dim=1)
        return share.transpose(1, 2) @ self.value(tokens)


def drawn_steps(n: int, decay: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(n,) the autoregressive step, from 1, of each of n genes in order.

    The number of steps S is drawn with P(S = i) ∝ decay^(i − 1), and its cut points uniformly without replacement.
    """
    if n == 1:
        return torch.ones(1, dtype=torch.int64, device=device)
    weight = decay ** torch.arange(n, dtype=torch.float64, device=device)
    n_steps = int(torch.multinomial(weight, 1, generator=generator)) + 1
    cuts = torch.randperm(n - 1, generator=generator, device=device)[: n_steps - 1] + 1
    starts = torch.zeros(n, dtype=torch.int64, device=device)
    starts[cuts] = 1
    return starts.cumsum(0) + 1


def even_steps(n: int, n_steps: int) -> Tensor:
    """(n,) steps of n genes in order, from 1, in ``n_steps`` sets of about the same size."""
    return torch.arange(n) * min(n_steps, n) // n + 1


def step_weights(step: Tensor) -> Tensor:
    """Weights of the loss: falling from 2 to 1 with the rank of the first gene of a gene's step."""
    first = torch.searchsorted(step, step, right=False)
    return 2.0 - first / max(len(step) - 1, 1)


def normal_noise(keys: np.ndarray, n_samples: int, length: int, seed: int) -> Tensor:
    """(n_samples, genes, length) standard normal numbers that belong to a gene and a draw."""
    uniform = keyed_uniform(torch.from_numpy(np.asarray(keys, dtype=np.int64)), n_samples * length, seed=seed)
    return torch.special.ndtri(uniform.double()).float().unflatten(1, (n_samples, length)).transpose(0, 1)
