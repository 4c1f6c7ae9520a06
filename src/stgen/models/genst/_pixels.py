"""The pixel back-end: a convolutional VQ-VAE on tiles, in place of the one on a histology embedding.

A token says how a tile looks, not where each nucleus lies: two bits of noise in a nucleus' place cost a pixel error as
much as another tissue. So a tile is described by statistics of its colours at every scale, and that is what tokens must
bring back, beside the picture at an eighth of its size. Tokens start as the best linear code of the statistics (a first
layer of fixed filters), and convolutions, which start at 0, add what training finds.

B batch, p pixels per side, P statistics, M tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn._network import Each
from ...nn._quantize import Codebooks
from ._config import GenSTConfig
from ._parts import Coded, TokenAutoencoder

DOWN = 32
"""Convolutions make one place of this many pixels a side."""
PICTURE = 8
"""The picture is made again at this part of its size."""
CHANNELS = (16, 32, 64, 64)


class TileAutoencoder(nn.Module):
    """VQ-VAE on tiles (B, p, p, 3), uint8: the interface of :class:`TokenAutoencoder`."""

    colour_mean: Tensor
    colour_sd: Tensor

    def __init__(self, tile_px: int, n_tokens: int, width: int, n_codes: int, config: GenSTConfig) -> None:
        super().__init__()
        self.looks = TokenAutoencoder(n_statistics(tile_px), n_tokens, width, n_codes, config)
        self.shape = n_tokens, width = self.looks.shape
        self.register_buffer("colour_mean", torch.zeros(3, 1, 1))
        self.register_buffer("colour_sd", torch.ones(3, 1, 1))
        self.see = _see(n_tokens * width, config)
        self.paint = _paint(n_tokens * width, tile_px // DOWN)

    @property
    def books(self) -> Codebooks:
        """The codes of every token."""
        return self.looks.books

    @property
    def n_inputs(self) -> int:
        """Statistics P that are made again."""
        return self.looks.n_inputs

    def encode(self, tiles: Tensor) -> Tensor:
        """Tokens (B, M, d)."""
        stain = absorbed(tiles)
        return self.looks.encode(statistics(stain)) + self._seen(stain)

    def decode(self, z: Tensor) -> Tensor:
        """Standardised statistics (B, P) of tokens or codes (B, M, d)."""
        return self.looks.decode(z)

    def _seen(self, stain: Tensor) -> Tensor:
        return self.see((stain - self.colour_mean) / self.colour_sd).unflatten(-1, self.shape)

    def forward(
        self, tiles: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Coded, Tensor, Tensor]:
        """Tokens, codes and statistics made of them; squared error and commitment (B,). Codes follow in training."""
        stain = absorbed(tiles)
        looks = statistics(stain)
        z = self.looks.encode(looks) + self._seen(stain)
        code, index = self.books(z)
        made = self.decode(code)
        error = (made - self.looks.standardised(looks)).square().mean(-1)
        picture = F.avg_pool2d((stain - self.colour_mean) / self.colour_sd, PICTURE)
        error = error + (self.paint(code.flatten(1)) - picture).square().mean((1, 2, 3))
        commitment = (z - self.books.look_up(index)).square().sum(-1).mean(-1)
        if self.training:
            self.books.follow(z.detach(), index, generator)
        return Coded(z, index, made), error, commitment

    @torch.no_grad()
    def start(self, rows: Iterable[Tensor], generator: torch.Generator) -> None:
        """Colours, the best linear code of statistics, and codes, from tiles that can be iterated several times."""
        n, first, second = 0, *(torch.zeros(3, 1, 1, dtype=torch.float64) for _ in range(2))
        for tiles in rows:
            stain = absorbed(tiles).double()
            n = n + len(stain)
            first = first + stain.mean((2, 3), keepdim=True).sum(0)
            second = second + stain.square().mean((2, 3), keepdim=True).sum(0)
        mean = first / n
        self.colour_mean.copy_(mean)
        self.colour_sd.copy_((second / n - mean.square()).clamp(min=1e-4).sqrt())
        self.looks.start(Each(lambda tiles: statistics(absorbed(tiles)), rows), generator)


def absorbed(tiles: Tensor) -> Tensor:
    """Light that the tissue took away (B, 3, p, p), to which stains add up (Beer and Lambert), of bytes (B, p, p, 3)."""
    return -torch.log((tiles.permute(0, 3, 1, 2).float() + 1) / 256)


def statistics(stain: Tensor) -> Tensor:
    """How tiles look (B, P): mean, and spread and skewness of colours at every scale."""
    found = [stain.mean((2, 3))]
    while stain.shape[-1] % 2 == 0 and stain.shape[-1] >= 8:
        coarse = F.avg_pool2d(stain, 2)
        fine = stain - F.interpolate(coarse, scale_factor=2.0)
        third = fine.pow(3).mean((2, 3))
        # roots bring all to the scale of a colour
        found += [fine.square().mean((2, 3)).sqrt(), third.sign() * third.abs().pow(1 / 3)]
        stain = coarse
    return torch.cat(found, dim=1)


def n_statistics(tile_px: int) -> int:
    """Width P for tiles of this size."""
    return statistics(torch.zeros(1, 3, tile_px, tile_px)).shape[1]


def _see(n_outputs: int, config: GenSTConfig) -> nn.Sequential:
    """Strided convolutions, a mean over places; the zero function at the start."""
    sizes = zip((3, *CHANNELS), CHANNELS, (4, 2, 2, 2), strict=False)
    layers: list[nn.Module] = []
    for n_in, n_out, stride in sizes:
        layers += [nn.Conv2d(n_in, n_out, 4, stride, padding=0 if stride == 4 else 1), nn.GELU()]
    last = nn.Linear(CHANNELS[-1], n_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), last)


def _paint(n_inputs: int, side: int) -> nn.Sequential:
    """From tokens to a small picture (B, 3, 4 · side, 4 · side)."""
    first, second = CHANNELS[1], CHANNELS[0]
    return nn.Sequential(
        nn.Linear(n_inputs, first * side * side),
        nn.Unflatten(1, (first, side, side)),
        nn.GELU(),
        nn.ConvTranspose2d(first, second, 4, 2, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(second, 3, 4, 2, padding=1),
    )
