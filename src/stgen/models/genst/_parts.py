"""Parts of the GenST network: an autoencoder whose latent is made of codes, and what turns image into expression tokens.

B batch, P inputs, M tokens, d width, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn._network import Each
from ...nn._quantize import Codebooks
from ...nn._rows import gathered, leading_axes
from ._config import GenSTConfig


class Coded(NamedTuple):
    """What an autoencoder makes of its inputs."""

    z: Tensor
    """(B, M, d) tokens."""
    code: Tensor
    """(B, M) number of the code nearest to each."""
    x: Tensor
    """(B, P) inputs made again from the codes, standardised."""


class TokenAutoencoder(nn.Module):
    """VQ-VAE on vectors: standardised inputs → M tokens → nearest codes → inputs.

    Encoder and decoder are the principal components plus a small perceptron that starts at 0, so that training starts
    from the best linear code. Components are dealt to tokens so that all tokens carry similar variance.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_tokens: int,
        width: int,
        n_codes: int,
        config: GenSTConfig,
    ) -> None:
        super().__init__()
        # more tokens, or more axes, than inputs have would carry nothing
        n_tokens = min(n_tokens, n_inputs)
        self.shape = n_tokens, width = n_tokens, min(width, -(-n_inputs // n_tokens))
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("sd", torch.ones(n_inputs))
        n_latent = n_tokens * width
        self.project = nn.Linear(n_inputs, n_latent, bias=False)
        self.bend = perceptron(n_inputs, n_latent, config)
        self.unproject = nn.Linear(n_latent, n_inputs)
        self.unbend = perceptron(n_latent, n_inputs, config)
        self.books = Codebooks(n_tokens, n_codes, width, decay=config.decay)

    @property
    def n_inputs(self) -> int:
        """Inputs P that are made again."""
        return len(self.mean)

    def standardised(self, x: Tensor) -> Tensor:
        """Inputs (B, P) with the training spots' mean and spread taken out."""
        return ((x - self.mean) / self.sd).clamp(-10, 10)

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, M, d) of inputs (B, P) as they are measured."""
        x = self.standardised(x)
        return (self.project(x) + self.bend(x)).unflatten(-1, self.shape)

    def decode(self, z: Tensor) -> Tensor:
        """Standardised inputs (B, P) of tokens or codes (B, M, d)."""
        z = z.flatten(1)
        return self.unproject(z) + self.unbend(z)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Coded, Tensor, Tensor]:
        """Tokens, codes and what is made of them; squared error and commitment (B,). Codes follow in training."""
        z = self.encode(x)
        code, index = self.books(z)
        made = self.decode(code)
        error = (made - self.standardised(x)).square().mean(-1)
        commitment = (z - self.books.look_up(index)).square().sum(-1).mean(-1)
        if self.training:
            self.books.follow(z.detach(), index, generator)
        return Coded(z, index, made), error, commitment

    @torch.no_grad()
    def start(self, rows: Iterable[Tensor], generator: torch.Generator) -> None:
        """Principal components and codes of inputs, which come as batches that can be iterated several times."""
        n, first, second = 0, *(torch.zeros((), dtype=torch.float64) for _ in range(2))
        for x in rows:
            x = x.double()
            n, first, second = n + len(x), first + x.sum(0), second + x.square().sum(0)
        mean = first / n
        variance = (second / n - mean.square()).clamp(min=0)
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(variance > 1e-10, variance.sqrt(), 1.0))
        M, d = self.shape
        axes = leading_axes(
            Each(lambda x: self.standardised(x.double()), rows), n, min(M * d, self.n_inputs), centred=False
        )
        weight = torch.zeros_like(self.project.weight)
        for axis, row in zip(axes.T, _dealt(M, d), strict=False):
            weight[row] = axis * axis[axis.abs().argmax()].sign()
        self.project.weight.copy_(weight)
        self.unproject.weight.copy_(weight.T)
        nn.init.zeros_(self.unproject.bias)
        self.books.start(gathered((self.encode(x) for x in rows), n), generator)


def _dealt(n_tokens: int, width: int) -> Iterator[int]:
    """Rows of the latent in the order in which components are dealt: to the tokens in turn, back and forth."""
    for turn in range(width):
        order = range(n_tokens) if turn % 2 == 0 else reversed(range(n_tokens))
        for token in order:
            yield token * width + turn


def perceptron(n_inputs: int, n_outputs: int, config: GenSTConfig) -> nn.Sequential:
    """One hidden layer; the zero function at the start."""
    last = nn.Linear(config.hidden, n_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    first = nn.Linear(n_inputs, config.hidden)
    return nn.Sequential(nn.Dropout(config.dropout), first, nn.GELU(), nn.Dropout(config.dropout), last)


class CodeProbabilities(nn.Module):
    """How probable every code is, given where the translator expects the token: (B, M, d) → log (B, M, K).

    softmax(−‖ẑ − e‖² / τ) with a τ for every axis and a bias for every code, which start from the translator's errors
    on sections it has not seen and from how often codes are used: what Bayes' rule says for Gaussian errors.
    """

    def __init__(self, n_tokens: int, n_codes: int, width: int) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.zeros(n_tokens, width))
        self.bias = nn.Parameter(torch.zeros(n_tokens, n_codes))

    @torch.no_grad()
    def start(self, error: Tensor, share: Tensor) -> None:
        """From errors (n, M, d) and shares (M, K)."""
        self.log_precision.copy_(-error.var(0).clamp(min=1e-6).log())
        self.bias.copy_((share + 0.1 / share.shape[1]).log())

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        precision = self.log_precision.exp()
        # ‖ẑ‖² is the same for all codes and drops out of the softmax
        far = torch.einsum("bmd,mkd->bmk", z * precision, codes) - 0.5 * (
            precision[:, None] * codes.square()
        ).sum(-1)
        return (far + self.bias).log_softmax(-1)


def contrast(a: Tensor, b: Tensor, log_temperature: Tensor) -> Tensor:
    """InfoNCE of two embeddings (B, D) of the same spots: each must be nearest to its own, in both directions."""
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / log_temperature.exp()
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
