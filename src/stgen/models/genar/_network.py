"""GenAR network: counts of a spot from its H&E, coarse gene groups first, genes last.

Ouyang et al., *GenAR: Next-Scale Autoregressive Generation for Spatial Gene Expression Prediction* (2025).
Scale k cuts the genes into d_k groups (:mod:`._hierarchy`); the last scale is the genes. With the condition c of a
spot (histology f, its neighbours' histology, place xy)

    p(y | f, xy) = Π_k p(s_k | s_1 … s_{k−1}, c)

A token is a count: the group's mean count times its resolution (at best the group's size, so that the token is the
group's summed count), rounded. The token's distribution is a categorical over 0..V−1 whose logits are a negative
binomial (mean from :mod:`._expected`, from how far the finished coarser groups lie from what was expected, and from
the decoder) plus what the decoder adds freely. ``head="categorical"`` keeps only the free part, as published.

B batch, F histology features, k neighbours, G genes, K scales, d_k groups, T = Σ d_k tokens, D width, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...nn._attention import AdaptiveBlock
from ...nn._counts import (
    gaussian_label,
    label_divergence,
    negative_binomial_slope,
    negative_binomial_table,
    normalized,
    two_hot,
)
from ...nn._distribution import Prediction
from ...nn._grouped import Cache, GroupedDecoder
from ...nn._network import Batch, Each, Loss, Network, fold_of
from ...nn._noise import keyed_uniform
from ...nn._rows import gathered
from ._config import GenARConfig
from ._expected import ExpectedCounts
from ._hierarchy import check_scales, default_scales, gene_hierarchy, parents
from ._parts import ConditionEncoder, Constant, CountHead, ValueEmbedding

logger = logging.getLogger("stgen")

_TOKEN_PARAMETERS = {
    "log_dispersion": math.log(10.0),
    "log_surprise": math.log(10.0),
    "log_temperature": 0.0,
    "log_bias": 0.0,
}
"""What the negative binomial of each token has of its own, and where training starts."""
PREPARE_ROWS = 20_000
"""Training spots, evenly spread, from which groups and resolutions are found."""


class GenARNetwork(Network):
    """Condition encoder, grouped decoder, count head."""

    pool: Tensor
    """(G, T): averages the genes of each token's group."""
    group_size: Tensor
    parent: Tensor
    token_scale: Tensor
    resolution: Tensor
    log_dispersion: Tensor
    log_surprise: Tensor
    log_temperature: Tensor
    log_bias: Tensor

    def __init__(
        self,
        config: GenARConfig,
        *,
        n_features: int,
        n_genes: int,
        groups: list[list[int]] | None = None,
        vocabulary: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.sized = groups is not None
        asked = check_scales(config.scales or default_scales(n_genes, config.n_scales), n_genes)
        self._set_groups(groups or [[g * d // n_genes for g in range(n_genes)] for d in asked])
        n_tokens, n_scales = self.starts[-1], len(self.scales)
        n_inputs = n_features * (2 if config.n_neighbors else 1)
        self.expected = ExpectedCounts(
            n_inputs,
            n_genes,
            use_place=config.use_place,
            nonlinear=config.nonlinear,
            retrieval=config.retrieval,
        )
        D = config.width
        self.condition = (ConditionEncoder if config.steer else Constant)(
            n_inputs, self.expected.linear.n_waves, config
        )
        self.identity = nn.Parameter(0.02 * torch.randn(n_genes, D))
        self.scale_embedding = nn.Parameter(0.02 * torch.randn(n_scales, D))
        self.value = ValueEmbedding(D)
        self.parent_transform = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        drop = torch.linspace(0, config.drop_path, config.n_layers).tolist()
        self.decoder = GroupedDecoder(
            AdaptiveBlock(
                D, config.n_heads, D, ffn_ratio=config.ffn_ratio, dropout=config.dropout, drop_path=rate
            )
            for rate in drop
        )
        self._set_vocabulary(vocabulary or [config.n_tokens or config.max_tokens] * n_tokens)
        self.head = CountHead(config, self.n_tokens)
        self.register_buffer("resolution", torch.ones(n_tokens))
        for name, start in _TOKEN_PARAMETERS.items():
            value = torch.full((n_tokens,), start)
            if config.head == "negative_binomial":
                setattr(self, name, nn.Parameter(value))
            else:  # free logits have no use for them
                self.register_buffer(name, value, persistent=False)

    # -- what the data decide ---------------------------------------------------------------------------------

    def _set_groups(self, groups: list[list[int]]) -> None:
        """The tree of gene groups, as index buffers that the sizes rebuild."""
        self.groups = [list(map(int, row)) for row in groups]
        numbered = torch.tensor(self.groups)
        self.scales = [int(row.max()) + 1 for row in numbered]
        self.starts = [sum(self.scales[:k]) for k in range(len(self.scales) + 1)]
        pool = torch.zeros(self.n_genes, self.starts[-1])
        for k, row in enumerate(numbered):
            pool[torch.arange(self.n_genes), self.starts[k] + row] = 1.0
        self.register_buffer("group_size", pool.sum(0), persistent=False)
        self.register_buffer("pool", pool / pool.sum(0), persistent=False)
        parent = [torch.zeros(self.scales[0], dtype=torch.long)]
        parent += [self.starts[k] + torch.from_numpy(p) for k, p in enumerate(parents(numbered.numpy()))]
        self.register_buffer("parent", torch.cat(parent), persistent=False)
        number = torch.cat([torch.full((d,), k) for k, d in enumerate(self.scales)])
        self.register_buffer("token_scale", number, persistent=False)

    def _set_vocabulary(self, vocabulary: list[int]) -> None:
        """Each token's own number of possible values, and the buckets of tokens that share one size."""
        self.vocabulary = [int(v) for v in vocabulary]
        self.n_tokens = max(self.vocabulary)
        size = torch.tensor(self.vocabulary)
        self.buckets: list[list[tuple[list[int], int]]] = []
        for k in range(len(self.scales)):
            own = size[self.starts[k] : self.starts[k + 1]]
            rounded = (2 ** torch.ceil(torch.log2(own.float()))).long().clamp(max=self.n_tokens)
            self.buckets.append(
                [
                    (torch.nonzero(rounded == v).flatten().tolist(), int(own[rounded == v].max()))
                    for v in rounded.unique()
                ]
            )

    @property
    def gene_vocabulary(self) -> list[int]:
        """Counts that every gene can take: 0 up to one less."""
        return self.vocabulary[self.starts[-2] :]

    def sizes(self) -> dict[str, Any]:
        """Gene groups and vocabulary, which fix the shapes of what is saved."""
        return {"groups": self.groups, "vocabulary": self.vocabulary} if self.sized else {}

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], *, seed: int = 0) -> None:
        """Linear path, gene groups, resolutions, vocabulary and first dispersions, from training rows only."""
        self.expected.fit(Each(self._linear_inputs, batches))
        counts = _sample(batches)
        device = self.identity.device
        if not self.sized:
            raw = self.config.hierarchy == "kmeans"
            profiles = counts if raw else normalized(counts, self.expected.target_total)
            groups = gene_hierarchy(
                profiles.cpu().numpy(), self.scales, method=self.config.hierarchy, seed=seed
            )
            self._set_groups(groups.tolist())
            self.sized = True
            self.to(device)
        means = counts.to(device) @ self.pool
        # A token is the group's summed count where that fits the vocabulary, else as fine as fits.
        top = means.sort(0).values[math.ceil(0.99 * (len(means) - 1))]
        finest = (self.config.n_tokens or self.config.coarse_tokens) / (1.5 * top.clamp(min=1e-6))
        resolution = torch.minimum(self.group_size, finest)
        resolution[self.starts[-2] :] = 1.0
        self.resolution.copy_(resolution)
        if self.config.n_tokens is None and self.config.head == "negative_binomial":
            largest = (means * resolution).amax(0)
            limit = (2 * largest + 16).ceil().long().clamp(max=self.config.max_tokens)
            limit[: self.starts[-2]].clamp_(max=self.config.coarse_tokens)
            self._set_vocabulary(limit.tolist())
            self.head.set_vocabulary(self.n_tokens)
            self.to(device)
        self._report_large(counts)
        self._first_dispersions(batches)

    def _report_large(self, counts: Tensor) -> None:
        """Counts beyond a gene's vocabulary are learned as its largest token; say how many there are."""
        limit = torch.tensor(self.vocabulary[self.starts[-2] :], device=counts.device)
        above = counts >= limit
        if above.any():
            logger.warning(
                "%d training counts (in %d genes) lie above the vocabulary of %d tokens; they are kept in your data and "
                "learned as the largest token. Raise `max_tokens` (or `n_tokens`) to tell them apart.",
                int(above.sum()),
                int(above.any(0).sum()),
                int(limit.max()),
            )

    def _first_dispersions(self, batches: Iterable[Batch]) -> None:
        """Moment estimates, so that training starts from a calibrated negative binomial."""
        square = excess = ratio_top = ratio_bottom = torch.zeros_like(self.resolution)
        for batch in batches:
            token, expected = self._tokens(batch), self._expected(batch).exp()
            ratio_top, ratio_bottom = ratio_top + token.sum(0), ratio_bottom + expected.sum(0)
            square, excess = (
                square + expected.square().sum(0),
                excess + ((token - expected).square() - expected).sum(0),
            )
        self.log_bias.copy_(((ratio_top + 1) / (ratio_bottom + 1)).log().clamp(-2, 2))
        theta = (square / excess.clamp(min=1e-6)).clamp(0.3, 300.0)
        self.log_dispersion.copy_(theta.log())
        self.log_surprise.copy_(theta.log())

    # -- inputs -------------------------------------------------------------------------------------------------

    def _features(self, batch: Batch) -> Tensor:
        if not self.config.n_neighbors:
            return batch["histology"]
        return torch.cat([batch["histology"], batch["neighbours"].mean(1)], dim=-1)

    def _linear_inputs(self, batch: Batch) -> Batch:
        return {
            "features": self._features(batch),
            "xy": batch["xy"],
            "counts": batch["counts"],
            "fold": fold_of(batch),
            "patch": batch["patch"],
        }

    def _expected(self, batch: Batch, *, held_out: bool = True) -> Tensor:
        """(B, T): log of the token expected from histology and place alone."""
        fold = fold_of(batch) if held_out else None
        with _full_precision(batch["xy"]):
            depth, share = self.expected(self._features(batch), batch["xy"], fold)
            return depth[:, None] + (share.exp() @ self.pool).log() + self.resolution.log()

    def _tokens(self, batch: Batch) -> Tensor:
        """(B, T): every group's mean count times its resolution, not rounded."""
        with _full_precision(batch["counts"]):
            return (batch["counts"] @ self.pool) * self.resolution

    def _identity(self) -> Tensor:
        """(T, D): what a token is of, the mean identity of its genes and its scale."""
        own = self.pool.T @ self.identity if self.config.gene_modulation else 0.0
        return own + self.scale_embedding[self.token_scale]

    def _context(self, token: Tensor, expected: Tensor, k: int, known: Tensor) -> Tensor:
        """Tokens of scale k, (B, d_k, D): finished where ``known`` (B, 1) is 1, else what was expected of them."""
        part = slice(self.starts[k], self.starts[k + 1])
        return self.value(token, expected, self.resolution[part], known) + self._identity()[part]

    def _query(self, context: Tensor | None, expected: Tensor, k: int) -> Tensor:
        """Questions of scale k, (B, d_k, D): the parent's token, who is asked, and what the linear path expects."""
        part = slice(self.starts[k], self.starts[k + 1])
        query = self._identity()[part] + self.value(
            expected.exp(), expected, self.resolution[part], torch.zeros_like(expected[:, :1])
        )
        if context is not None:
            query = query + self.parent_transform(context)[:, self.parent[part] - self.starts[k - 1]]
        return query

    # -- training -----------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Loss:
        """KL(label ‖ prediction), summed over a scale's tokens, averaged over batch and scales."""
        logits, shift = self.training_logits(batch, generator=generator)
        labels = self._tokens(batch)
        parts = {}
        for k, per_bucket in enumerate(logits):
            total = labels.new_zeros(())
            for (columns, size), values in zip(self.buckets[k], per_bucket, strict=True):
                label = labels[:, self.starts[k] : self.starts[k + 1]][:, columns]
                total = total + label_divergence(values, *self._label(label, size, k)).sum(-1).mean()
            parts[f"scale_{self.scales[k]}"] = total
        total = torch.stack(list(parts.values())).mean()
        if self.config.head == "negative_binomial":
            total = total + 0.5 * self.config.shift_penalty * shift.square().sum(-1).mean() / len(self.scales)
        return Loss(total, parts)

    def _label(self, token: Tensor, size: int, k: int) -> tuple[Tensor, Tensor]:
        token = token.clamp(max=size - 1)
        if k < len(self.scales) - 1:
            return two_hot(token, size)
        if self.config.final_label == "onehot":
            return token.long()[..., None], torch.ones_like(token)[..., None]
        return gaussian_label(token, size, slope=self.config.label_slope, width=self.config.label_width)

    def training_logits(
        self, batch: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[list[list[Tensor]], Tensor]:
        """Logits of every token, by scale and bucket, from one pass with the true coarser tokens as context.

        Beside them, how far the decoder moves the log mean of every token (B, T).
        """
        expected = self._expected(batch, held_out=self.training and not self.config.steer)
        token = self._tokens(batch).round()
        known = torch.ones_like(token[:, :1])
        if self.training and self.config.blind_share:
            blind = (
                torch.rand(len(token), 1, generator=generator, device=token.device) < self.config.blind_share
            )
            token = torch.where(blind, (expected + self.log_bias.detach()).exp(), token)
            known = 1.0 - blind.to(token.dtype)
        condition, prefix = self.condition(
            self.expected.linear, self._features(batch), batch["xy"], generator
        )
        context: list[Tensor] = []
        query, scale_tokens = [], []
        for k in range(len(self.scales)):
            part = slice(self.starts[k], self.starts[k + 1])
            query.append(self._query(context[-1] if k else None, expected[:, part], k))
            scale_tokens.append(token[:, part])
            if k < len(self.scales) - 1:
                context.append(self._context(token[:, part], expected[:, part], k, known))
        group = self.token_scale
        prefix_group = group.new_full((prefix.shape[1],), -1)
        hidden = self.decoder(
            torch.cat([prefix, *context], dim=1),
            torch.cat([prefix_group, group[: self.starts[-2]]]),
            torch.cat(query, dim=1),
            group,
            condition,
        )
        answer = self.head(hidden, condition, self._identity())
        logits, surprise = [], expected.new_zeros(len(expected), 1)
        for k, scale_answer in enumerate(answer.split(self.scales, dim=1)):
            log_mean = self._log_mean(expected, scale_answer, surprise, k)
            logits.append(self._logits(scale_answer, log_mean, k))
            surprise = self._surprise(surprise, scale_tokens[k], log_mean, k)
        return logits, answer[..., 0]

    def _log_mean(self, expected: Tensor, answer: Tensor, surprise: Tensor, k: int) -> Tensor:
        part = slice(self.starts[k], self.starts[k + 1])
        inherited = surprise[:, self.parent[part] - (self.starts[k - 1] if k else 0)]
        return expected[:, part] + self.log_bias[part] + inherited + answer[..., 0]

    def _surprise(self, surprise: Tensor, token: Tensor, log_mean: Tensor, k: int) -> Tensor:
        """Log of how much more than expected a finished group holds, shrunk as in a gamma–Poisson posterior.

        Children of the group inherit it: if a group turned out twice as large as expected, so will its genes.
        """
        part = slice(self.starts[k], self.starts[k + 1])
        inherited = surprise[:, self.parent[part] - (self.starts[k - 1] if k else 0)]
        weight = self.log_surprise[part].exp()
        return inherited + ((token + weight) / (log_mean.clamp(max=12.0).exp() + weight)).log()

    def _logits(self, answer: Tensor, log_mean: Tensor, k: int) -> list[Tensor]:
        """Logits of scale k's tokens, one tensor (B, n, V_b) a bucket."""
        part = slice(self.starts[k], self.starts[k + 1])
        result = []
        for columns, size in self.buckets[k]:
            logits = self.head.free_logits(answer[:, columns], size)
            if self.config.head == "negative_binomial":
                dispersion = self.log_dispersion[part][columns]
                slope = negative_binomial_slope(log_mean[:, columns], dispersion)
                count = torch.arange(size, device=slope.device, dtype=slope.dtype)
                base = negative_binomial_table(dispersion, size) + slope[..., None] * count
                temperature = (self.log_temperature[part][columns] + answer[:, columns, 1]).exp()
                logits = logits + temperature[..., None] * base
            result.append(logits)
        return result

    # -- prediction ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, batch: Batch, *, n_paths: int = 1, seed: int = 0) -> Iterator[Prediction]:
        """One :class:`Prediction` a path, scale after scale against a cache.

        ``n_paths=1`` hands each scale's expected token on. More paths sample the coarse tokens; each token's
        uniform numbers are spread evenly over the paths and belong to the observation (``batch["key"]``).
        """
        expected = self._expected(batch, held_out=False)
        condition, prefix = self.condition(self.expected.linear, self._features(batch), batch["xy"], None)
        start = self.decoder.extend(
            self.decoder.start(), prefix, self.token_scale.new_full((prefix.shape[1],), -1), condition
        )
        levels = _spread_levels(batch["key"], self.starts[-2], n_paths, seed) if n_paths > 1 else None
        for path in range(n_paths):
            level = None if levels is None else levels[..., path]
            yield self._path(start, expected, condition, level)

    def _path(self, cache: Cache, expected: Tensor, condition: Tensor, level: Tensor | None) -> Prediction:
        context, surprise = None, expected.new_zeros(len(expected), 1)
        known = torch.full_like(expected[:, :1], float(level is not None))
        for k in range(len(self.scales)):
            part = slice(self.starts[k], self.starts[k + 1])
            query = self._query(context, expected[:, part], k)
            hidden = self.decoder.read(cache, query, self.token_scale[part], condition)
            answer = self.head(hidden, condition, self._identity()[part])
            log_mean = self._log_mean(expected, answer, surprise, k)
            probability = [logits.softmax(-1) for logits in self._logits(answer, log_mean, k)]
            if k == len(self.scales) - 1:
                return Prediction(probability, self.buckets[k])
            token = self._chosen(probability, k, None if level is None else level[:, part])
            surprise = self._surprise(surprise, token, log_mean, k)
            context = self._context(token, expected[:, part], k, known)
            if k < len(self.scales) - 1:
                cache = self.decoder.extend(cache, context, self.token_scale[part], condition)
        raise AssertionError("unreachable: the last scale returns")

    def _chosen(self, probability: list[Tensor], k: int, level: Tensor | None) -> Tensor:
        token = probability[0].new_empty(len(probability[0]), self.scales[k])
        for (columns, size), p in zip(self.buckets[k], probability, strict=True):
            if level is None:
                token[:, columns] = p @ torch.arange(size, device=p.device, dtype=p.dtype)
            else:
                reached = p.cumsum(-1) < level[:, columns, None]
                token[:, columns] = reached.sum(-1).clamp(max=size - 1).to(p.dtype)
        return token


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Counts stay exact under mixed precision, whose matrix products would round them to 8 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _spread_levels(key: Tensor, n_tokens: int, n_paths: int, seed: int) -> Tensor:
    """(B, n_tokens, n_paths): uniform levels, for each token one in every n-th of (0, 1), in an order of its own.

    A Latin hypercube over paths: a token's average over paths is hardly random, and tokens stay independent.
    """
    noise = keyed_uniform(key, 2 * n_tokens * n_paths, seed=seed).view(len(key), 2, n_tokens, n_paths)
    return (noise[:, 0].argsort(-1) + noise[:, 1]) / n_paths


def _sample(batches: Iterable[Batch]) -> Tensor:
    """Counts of training spots, evenly spread where there are many."""
    sizes = [len(batch["counts"]) for batch in batches]
    rows = torch.arange(sum(sizes)) % max(1, sum(sizes) // PREPARE_ROWS) == 0
    return gathered((b["counts"][r] for b, r in zip(batches, rows.split(sizes))), int(rows.sum()))
