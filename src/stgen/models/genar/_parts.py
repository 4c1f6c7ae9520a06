"""Parts of the GenAR network: how condition and counts become tokens, and tokens count logits.

B batch, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...experts._ridge import CrossFittedRidge
from ...nn._attention import AdaptiveNorm
from ._config import GenARConfig

N_BUMPS = 8


class ConditionEncoder(nn.Module):
    """Histology, neighbours and place → the condition (B, D) of the norms and two tokens (B, 2, D) all may see."""

    def __init__(self, n_inputs: int, n_waves: int, config: GenARConfig) -> None:
        super().__init__()
        D = config.width
        self.hidden = config.feature_dropout
        self.histology = nn.Sequential(
            nn.Linear(n_inputs, 2 * D),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * D, D),
            nn.LayerNorm(D),
        )
        self.place = nn.Sequential(nn.Linear(n_waves, D), nn.LayerNorm(D)) if n_waves else None
        self.join = nn.Sequential(nn.Linear(D * (2 if n_waves else 1), D), nn.LayerNorm(D))

    def forward(
        self, path: CrossFittedRidge, features: Tensor, xy: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        x = path.standardised(features)
        if self.training and self.hidden:
            keep = torch.rand(x.shape, generator=generator, device=x.device) >= self.hidden
            x = x * keep / (1 - self.hidden)
        parts = [self.histology(x)]
        if self.place is not None:
            # where the linear path found that place does not carry over to new sections, nobody is told it
            parts.append(self.place(path.waves(xy)) * (path.place_scale > 0))
        return self.join(torch.cat(parts, dim=-1)), torch.stack(parts, dim=1)


class Constant(nn.Module):
    """A learned condition that is the same for every spot."""

    def __init__(self, n_inputs: int, n_waves: int, config: GenARConfig) -> None:
        super().__init__()
        self.condition = nn.Parameter(torch.randn(1, config.width))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, config.width))

    def forward(
        self, path: CrossFittedRidge, features: Tensor, xy: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        n = len(features)
        return self.condition.expand(n, -1), self.token.expand(n, -1, -1)


class ValueEmbedding(nn.Module):
    """A count as a smooth code: its log, what was expected, their log ratio, and whether the count is known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, token: Tensor, log_expected: Tensor, resolution: Tensor, known: Tensor) -> Tensor:
        expected = log_expected.clamp(max=12.0).exp()
        surprise = ((token + 1) / (expected + 1)).log()
        code = (
            torch.log1p(token / resolution) / 3,
            torch.log1p(expected) / 3,
            surprise,
            known.expand_as(token),
        )
        return self.embed(torch.stack(code, dim=-1))


class CountHead(nn.Module):
    """Adaptive norm, modulation by the token's identity (the identity map at the start), one linear map for all scales."""

    bumps: Tensor

    def __init__(self, config: GenARConfig, n_tokens: int) -> None:
        super().__init__()
        D = config.width
        self.norm = AdaptiveNorm(D, D)
        self.modulate = nn.Linear(D, 2 * D) if config.gene_modulation else None
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)
        self.categorical = config.head == "categorical"
        self.linear = nn.Linear(D, n_tokens if self.categorical else 2 + N_BUMPS)
        if not self.categorical:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.set_vocabulary(n_tokens)

    def set_vocabulary(self, n_tokens: int) -> None:
        position = torch.log1p(torch.arange(n_tokens, device=self.linear.weight.device).float())
        centre = torch.linspace(0, float(position[-1]), N_BUMPS, device=position.device)
        bumps = torch.exp(-0.5 * ((position - centre[:, None]) / (centre[1] - centre[0])) ** 2)
        self.register_buffer("bumps", bumps, persistent=False)

    def forward(self, hidden: Tensor, condition: Tensor, identity: Tensor) -> Tensor:
        x, _ = self.norm(hidden, condition)
        if self.modulate is not None:
            scale, shift = self.modulate(identity).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self.linear(x).float()

    def free_logits(self, answer: Tensor, size: int) -> Tensor:
        return answer[..., :size] if self.categorical else answer[..., 2:] @ self.bumps[:, :size]
