"""Counts as tokens: labels, losses, a count distribution and what is read from it.

A token is a count 0..V−1 (at coarse scales a mean count times a resolution, rounded). B batch, T tokens, V vocabulary.
A *window* is the few vocabulary entries on which a label has mass: ``index`` and ``mass``, both (…, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def two_hot(value: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """A label that keeps a fractional value exactly: its two neighbouring integers, weighted. W = 2.

    An integer puts all its mass on itself (the weights of the two equal entries add).
    """
    value = value.clamp(0, n_tokens - 1)
    low = value.floor()
    weight = value - low
    index = torch.stack([low, (low + 1).clamp(max=n_tokens - 1)], dim=-1).long()
    return index, torch.stack([1 - weight, weight], dim=-1)


def gaussian_label(
    count: Tensor, n_tokens: int, *, slope: float, width: float, half: int | None = None
) -> tuple[Tensor, Tensor]:
    """A discretised Gaussian around each count, over its window of ± 6 σ.

    σ(y) = slope · y + width · y / (1 + y): no blur at 0, so that the label's mean is the count there too
    (a constant σ would move the mean of a 0 to about half a count, and no function of the prediction undoes that).
    ``half`` fixes the window's half width; by default it fits the largest count.
    """
    sigma = (slope * count + width * count / (1 + count)).clamp(min=1e-3)
    if half is None:
        half = max(1, math.ceil(6 * float(sigma.max())))
    offset = torch.arange(-half, half + 1, device=count.device)
    index = count.long()[..., None] + offset
    mass = torch.exp(-0.5 * (offset / sigma[..., None]) ** 2) * ((index >= 0) & (index < n_tokens))
    return index.clamp(0, n_tokens - 1), mass / mass.sum(-1, keepdim=True)


def label_divergence(logits: Tensor, index: Tensor, mass: Tensor) -> Tensor:
    """KL(label ‖ softmax(logits)) of labels given by windows: (…,). Equal to the dense form, in value and gradient."""
    entropy = -torch.special.entr(mass).sum(-1)
    return entropy - (mass * logits.gather(-1, index)).sum(-1) + torch.logsumexp(logits, -1)


def negative_binomial_table(log_dispersion: Tensor, n_tokens: int) -> Tensor:
    """(T, V): log Γ(v + θ) − log Γ(θ) − log v!, the part of a negative binomial's log mass that no sample changes."""
    theta = log_dispersion.exp()[:, None]
    v = torch.arange(n_tokens, device=log_dispersion.device, dtype=log_dispersion.dtype)
    return torch.lgamma(v + theta) - torch.lgamma(theta) - torch.lgamma(v + 1)


def negative_binomial_slope(log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """log(μ / (μ + θ)): what one more count adds to a negative binomial's log mass."""
    return -torch.nn.functional.softplus(log_dispersion - log_mean)


def distribution_moments(probability: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of count distributions (…, V)."""
    v = torch.arange(probability.shape[-1], device=probability.device, dtype=probability.dtype)
    mean = probability @ v
    return mean, (probability @ v.square() - mean.square()).clamp(min=0)


def distribution_quantile(probability: Tensor, level: float) -> Tensor:
    """The smallest count whose cumulative probability reaches ``level``: (…,)."""
    return (probability.cumsum(-1) < level - 1e-6).sum(-1).clamp(max=probability.shape[-1] - 1)


def normalized(counts: Tensor, target_total: Tensor) -> Tensor:
    """log1p(count / panel total × target): expression with depth taken out."""
    total = counts.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.log1p(counts / total * target_total)


def composition(expression: Tensor) -> Tensor:
    """Log share of each gene in the panel (B, G) from expected log1p of depth-normalised counts."""
    share = torch.expm1(expression.clamp(min=0.02, max=12.0))
    return share.log() - share.sum(-1, keepdim=True).log()
