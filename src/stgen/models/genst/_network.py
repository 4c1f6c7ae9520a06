"""GenST network: two VQ-VAEs, one on histology and one on expression, and a translator between their tokens.

*GenST: A Generative Cross-Modal Model for Predicting Spatial Transcriptomics from Histology Images* (2026). Only the
abstract is known to us; what is here beyond "two VQ-VAEs whose latent spaces are aligned" is our design.

    histology → image tokens z_i → image codes → histology          (image autoencoder)
    expression → tokens z_e → codes → expression                    (expression autoencoder)
    image tokens → ẑ → probabilities of the expression codes        (translator)

Training has two phases: the autoencoders alone, then all together. Between them the translator is started in closed
form: ridge and perceptrons from image tokens (and place) to expression, which is then encoded, cross-fitted over sections or patients
(:mod:`stgen.experts._stack`), so that it trains on the errors that a new section will bring. A prediction is the decoded
expected code, the decoded nearest code, or decoded draws of codes.

B batch, F histology features, G genes, M tokens, d width, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...experts._stack import Experts
from ...nn._counts import composition, negative_binomial_slope, negative_binomial_table, normalized
from ...nn._distribution import Prediction
from ...nn._network import Batch, Each, Loss, Network, fold_of
from ...nn._noise import keyed_uniform
from ._config import GenSTConfig
from ._parts import CodeProbabilities, TokenAutoencoder, contrast, perceptron
from ._pixels import TileAutoencoder

MAX_COUNT = 2001
"""Counts from here on share the last entry of a distribution."""
PATHS = 8
"""Draws of codes from which bias and dispersion are found."""


class Translated(NamedTuple):
    """What the image says about expression."""

    log_depth: Tensor
    """(B,), natural log of the panel total."""
    z: Tensor
    """(B, M, d), where the expression tokens are expected."""
    log_probability: Tensor
    """(B, M, K) of every code."""
    shift: Tensor
    """(B, M, d), what the network added to where the experts expect the tokens."""


class GenSTNetwork(Network):
    """Image autoencoder, expression autoencoder, translator."""

    n_phases = 2
    target_total: Tensor
    """Median panel total of training spots, to which expression is normalised."""
    depth_variance: Tensor
    """Of the log panel total around what is expected of a new section."""
    log_bias: Tensor
    """(2, G): what brings mean counts of training spots right, for the expected code and for drawn codes."""
    log_dispersion: Tensor
    """(G,): log θ of the gamma-Poisson counts around drawn codes."""
    largest: Tensor
    """(G,): largest training count."""

    def __init__(
        self, config: GenSTConfig, *, n_genes: int, n_features: int | None = None, tile_px: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.n_genes = config, n_genes
        self.image = _image_autoencoder(config, n_features, tile_px)
        K = config.n_codes
        self.expression = TokenAutoencoder(n_genes, config.n_tokens, config.token_width, K, config)
        M, d = self.expression.shape
        n_image = math.prod(self.image.shape)
        self.experts = Experts(
            self.image.n_inputs,
            (1, n_genes),
            use_place=config.use_place,
            nonlinear=config.nonlinear,
            retrieval=config.retrieval,
            standardise=False,
        )
        self.probabilities = CodeProbabilities(M, K, d)
        self.learned = perceptron(n_image + M * d, M * d, config) if config.translator else None
        self.log_temperature = nn.Parameter(torch.tensor(0.1).log())
        self.register_buffer("target_total", torch.ones(()))
        self.register_buffer("depth_variance", torch.zeros(()))
        self.register_buffer("log_bias", torch.zeros(2, n_genes))
        self.register_buffer("log_dispersion", torch.full((n_genes,), math.log(10.0)))
        self.register_buffer("largest", torch.full((n_genes,), 100.0))
        self.aligning = True

    # -- what is found before gradients -------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Scales, principal components and first codes of both autoencoders, from training rows only."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))
        total = torch.cat([batch["counts"].sum(-1) for batch in batches])
        self.target_total.copy_(total.median().clamp(min=1.0))
        was_training = self.training
        self.eval()
        self.image.start(Each(self._features, batches), generator)
        self.expression.start(Each(self._expression, batches), generator)
        self._start_translator(batches)
        self.train(was_training)

    def begin_epoch(self, epoch: int, n_epochs: int, batches: Iterable[Batch]) -> int:
        """Phase 0: autoencoders alone; phase 1: aligned. The translator starts anew from tokens as they are by then."""
        first = min(round(self.config.alone * n_epochs), n_epochs - 1)  # the last epoch is always aligned
        self.aligning = epoch >= first
        if epoch == first and epoch:
            self.eval()
            self._start_translator(batches)
            self.train()
        return int(self.aligning)

    @torch.no_grad()
    def _start_translator(self, batches: Iterable[Batch]) -> None:
        """Ridge, perceptrons, and how far off they are on sections they have not seen."""
        self.experts.fit(Each(self._case, batches))
        error, depth = [], []
        for batch in batches:
            expected_depth, z = self._expected(self._image_tokens(batch), batch, held_out=True)
            depth.append(_log_total(batch)[:, 0] - expected_depth)
            error.append(self.expression.encode(self._expression(batch)) - z)
        self.probabilities.start(torch.cat(error), self.expression.books.share)
        self.depth_variance.copy_(torch.cat(depth).square().mean())

    def _case(self, batch: Batch) -> Batch:
        """From image tokens and place to log panel total and expression."""
        return {
            "features": self.image.decode(self._image_tokens(batch)),
            "xy": batch["xy"],
            "targets": torch.cat([_log_total(batch), self._expression(batch)], dim=-1),
            "fold": fold_of(batch),
            "patch": batch["patch"],
        }

    # -- inputs ----------------------------------------------------------------------------------------------------

    def _features(self, batch: Batch) -> Tensor:
        """What the image autoencoder reads: (B, F) features with those of neighbours, or (B, p, p, 3) tiles."""
        if self.config.back_end == "pixels":
            return batch["tiles"]
        if not self.config.n_neighbors:
            return batch["histology"]
        return torch.cat([batch["histology"], batch["neighbours"].mean(1)], dim=-1)

    def _expression(self, batch: Batch) -> Tensor:
        return normalized(batch["counts"], self.target_total)

    def _image_tokens(self, batch: Batch) -> Tensor:
        """(B, M_i, d_i)"""
        return self.image.encode(self._features(batch))

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Loss:
        """Both autoencoders, and once they were alone long enough the alignment of their tokens."""
        seen, image_error, image_commitment = self.image(self._features(batch), generator)
        coded, error, commitment = self.expression(self._expression(batch), generator)
        beta = self.config.commitment
        parts = {"image": image_error.mean(), "expression": error.mean()}
        total = parts["image"] + parts["expression"] + beta * (image_commitment + commitment).mean()
        if self.aligning or not self.training:
            # the image tokens are asked about expression, not bent towards that of training spots
            answer = self._translate(seen.z.detach(), batch, held_out=self.training)
            z, spread = coded.z.detach(), coded.z.detach().square().mean()
            parts["tokens"] = (answer.z - z).square().mean() / spread.clamp(min=1e-6)
            parts["shift"] = answer.shift.square().mean() / spread.clamp(min=1e-6)
            parts["codes"] = F.nll_loss(answer.log_probability.flatten(0, 1), coded.code.flatten())
            parts["spots"] = contrast(answer.z.flatten(1), z.flatten(1), self.log_temperature)
            total = (
                total
                + self.config.align_tokens * parts["tokens"]
                + self.config.shift_penalty * parts["shift"]
                + self.config.align_codes * parts["codes"]
                + self.config.align_spots * parts["spots"]
            )
        return Loss(total, parts)

    @torch.no_grad()
    def _expected(self, tokens: Tensor, batch: Batch, *, held_out: bool) -> tuple[Tensor, Tensor]:
        """Log panel total (B,) and expression tokens (B, M, d) that the experts expect.

        They read the image as its tokens tell it, answer gene by gene, and the expression encoder turns that into
        tokens: asked for tokens directly, they spend as much on those that are noise as on those that matter. No
        gradient: the encoder would make tokens easy to expect by making them small.
        """
        features = self.image.decode(tokens)
        answer = self.experts.answers(features, batch["xy"], fold_of(batch) if held_out else None)
        return answer[:, 0], self.expression.encode(answer[:, 1:])

    def _translate(self, tokens: Tensor, batch: Batch, *, held_out: bool = False) -> Translated:
        log_depth, z = self._expected(tokens, batch, held_out=held_out)
        shift = torch.zeros_like(z)
        if self.learned is not None:
            shift = self.learned(torch.cat([tokens.flatten(1), z.flatten(1)], dim=-1)).view_as(z)
        z = z + shift
        return Translated(log_depth, z, self.probabilities(z, self.expression.books.codes), shift)

    # -- prediction ------------------------------------------------------------------------------------------------

    def translate(self, batch: Batch) -> Translated:
        """What the image says; counts are not read."""
        return self._translate(self._image_tokens(batch), batch)

    def decode(self, tokens: Tensor) -> Tensor:
        """Depth-normalised log expression (B, G) of tokens or codes (B, M, d)."""
        return self.expression.decode(tokens) * self.expression.sd + self.expression.mean

    def expected_code(self, said: Translated) -> Tensor:
        """(B, M, d): the mean of the codes, weighted by how probable they are."""
        return torch.einsum("bmk,mkd->bmd", said.log_probability.exp(), self.expression.books.codes)

    def nearest_code(self, said: Translated) -> Tensor:
        """(B, M, d): the most probable codes."""
        return self.expression.books.look_up(said.log_probability.argmax(-1))

    def drawn_code(self, said: Translated, level: Tensor) -> Tensor:
        """(B, M, d): codes drawn by uniform numbers ``level`` (B, M)."""
        index = (said.log_probability.exp().cumsum(-1) < level[..., None]).sum(-1)
        return self.expression.books.look_up(index.clamp(max=self.expression.books.n_codes - 1))

    # -- counts ----------------------------------------------------------------------------------------------------

    @property
    def gene_vocabulary(self) -> list[int]:
        """Counts that every gene can take: 0 up to one less."""
        return (2 * self.largest + 16).clamp(max=MAX_COUNT).long().tolist()

    def _log_means(self, said: Translated, key: Tensor, n_paths: int, seed: int) -> Iterator[Tensor]:
        """Log mean count (B, G) of each path: the expected code where there is one path, else drawn codes and depths."""
        if n_paths == 1:
            yield (
                said.log_depth[:, None]
                + composition(self.decode(self.expected_code(said)))
                + self.log_bias[0]
            )
            return
        spread = self.depth_variance.sqrt()
        for path in range(n_paths):
            level = keyed_uniform(key, self.expression.shape[0] + 1, seed=seed + 104_729 * path)
            depth = said.log_depth + spread * math.sqrt(2) * torch.erfinv(2 * level[:, 0] - 1)
            yield (
                depth[:, None]
                + composition(self.decode(self.drawn_code(said, level[:, 1:])))
                + self.log_bias[1]
            )

    @torch.no_grad()
    def generate(self, batch: Batch, *, n_paths: int = 1, seed: int = 0) -> Iterator[Prediction]:
        """Count distributions: around the expected code, or one for each of several draws of codes and depth."""
        said, size = self.translate(batch), torch.tensor(self.gene_vocabulary)
        rounded = 2 ** torch.ceil(torch.log2(size.float())).long()
        buckets = [
            (torch.nonzero(rounded == v).flatten().tolist(), int(size[rounded == v].max()))
            for v in rounded.unique()
        ]
        tables = [negative_binomial_table(self.log_dispersion[columns], n) for columns, n in buckets]
        for log_mean in self._log_means(said, batch["key"], n_paths, seed):
            probability = []
            for (columns, n_counts), table in zip(buckets, tables, strict=True):
                slope = negative_binomial_slope(log_mean[:, columns], self.log_dispersion[columns])
                count = torch.arange(n_counts, device=slope.device, dtype=slope.dtype)
                probability.append((table + slope[..., None] * count).softmax(-1))
            yield Prediction(probability, buckets)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Bias and dispersion of counts, from training spots and what is expected of them as if they were new."""
        zero = torch.zeros(self.n_genes, device=self.log_bias.device)
        counted, expected, drawn, largest = zero, zero, zero, zero
        self.log_bias.zero_()
        for batch in batches:
            said = self._translate(self._image_tokens(batch), batch, held_out=True)
            counted = counted + batch["counts"].sum(0)
            largest = torch.maximum(largest, batch["counts"].amax(0))
            (one,) = self._log_means(said, batch["key"], 1, 0)
            expected = expected + one.exp().sum(0)
            drawn = drawn + torch.stack(
                [m.exp() for m in self._log_means(said, batch["key"], PATHS, 0)]
            ).mean(0).sum(0)
        self.largest.copy_(largest)
        self.log_bias.copy_(((counted + 1) / (torch.stack([expected, drawn]) + 1)).log().clamp(-2, 2))
        square, excess = zero, zero
        for batch in batches:
            said = self._translate(self._image_tokens(batch), batch, held_out=True)
            means = torch.stack([m.exp() for m in self._log_means(said, batch["key"], PATHS, 0)])
            # a mean of few paths is itself off by a share of their spread
            mean, spread = means.mean(0), means.var(0) * (1 + 1 / PATHS)
            square = square + means.square().mean(0).sum(0)
            excess = excess + ((batch["counts"] - mean).square() - mean - spread).sum(0)
        self.log_dispersion.copy_((square / excess.clamp(min=1e-6)).clamp(0.3, 300.0).log())


def _log_total(batch: Batch) -> Tensor:
    """(B, 1)"""
    return batch["counts"].sum(-1, keepdim=True).clamp(min=1.0).log()


def _image_autoencoder(
    config: GenSTConfig, n_features: int | None, tile_px: int | None
) -> TokenAutoencoder | TileAutoencoder:
    M, d, K = config.n_image_tokens, config.image_token_width, config.n_image_codes
    if config.back_end == "pixels":
        assert tile_px is not None
        return TileAutoencoder(tile_px, M, d, K, config)
    assert n_features is not None
    return TokenAutoencoder(n_features * (2 if config.n_neighbors else 1), M, d, K, config)
