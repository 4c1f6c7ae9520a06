"""What is fitted beside the network: level, intervals and trust before it, and how much of it helps after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from ...experts._weight import cautious
from ...nn._network import Batch
from ._calibration import Intervals, fit_level, fit_trust, level, trust_features, widening
from ._network import CausalGeDNetwork
from ._parts import normal_noise
from ._reference import Reference, blinded
from ._sets import Known
from ._views import Hints, Predictor, Spots

N_DRAWS = 64
"""Draws by which the share of the network is judged."""


def calibrated(
    reference: Reference,
    measured: np.ndarray,
    spots: Spots,
    seen: Known,
    folds: Sequence[np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Level, intervals and trust, each gene predicted without its fold."""
    x, z = spots.expression(spots.sample), spots.of_sample[0]
    facts, hint = reference.facts[measured], seen.hint
    mean, sd = np.empty(len(measured), dtype=np.float32), np.empty(len(measured), dtype=np.float32)
    shared, nearest = np.empty_like(z), np.empty(len(measured), dtype=np.float32)
    for part in folds:
        others = np.setdiff1d(np.arange(len(measured)), part)
        mean[part], sd[part] = level(fit_level(facts[others], x[:, others]), facts[part])
        shared[:, part] = z[:, others].mean(axis=1, keepdims=True)
        nearest[part] = reference.gram[np.ix_(others, measured[part])].max(axis=0)
    strength = hint.std(axis=0)
    bands = Intervals.fit(np.maximum(mean + sd * widening(strength) * hint, 0.0), x, seed)
    features = trust_features(facts, strength, nearest)
    # beside them, copies of which the reference knows nothing: or trust would be what is usual for a gene that it knows
    blind = blinded(reference, measured, seed)
    copies, blind_nearest = np.empty_like(z), np.empty(len(measured), dtype=np.float32)
    for part in folds:
        others = np.setdiff1d(np.arange(len(measured)), part)
        column = len(reference.facts) + part
        predictor = Predictor.make(blind, measured, others, column)
        copies[:, part] = Hints(predictor, spots.of_sample, seen.weight).of_sample
        blind_nearest[part] = blind.gram[np.ix_(others, column)].max(axis=0)
    blind_features = trust_features(blind.facts[len(reference.facts) :], copies.std(axis=0), blind_nearest)
    taught = fit_trust(
        np.concatenate([features, blind_features]),
        np.concatenate([hint, copies], axis=1),
        np.concatenate([z, z], axis=1),
        np.concatenate([shared, shared], axis=1),
    )
    return {
        "level": fit_level(facts, x).packed(),
        "interval_centre": bands.centre,
        "interval_quantile": bands.quantile,
        "interval_sd": bands.sd,
        "interval_mass": bands.mass,
        "trust": taught.packed(),
    }


@torch.no_grad()
def share_of_network(module: CausalGeDNetwork, batch: Batch, seed: int) -> float:
    """How much of the generated residual helps the targets of a set of genes, 0 to 1."""
    is_target = batch["is_target"][0]
    n = int(is_target.sum())
    noise = normal_noise(np.arange(n), N_DRAWS, module.config.n_axes, seed).to(is_target.device)
    draws = module.impute(batch, step=torch.ones(n, dtype=torch.int64), noise=noise, n_steps=20)
    made = draws.mean(0)
    truth = batch["target"][0][is_target]
    size = (made**2).sum(1)
    # the lower end of its 95 % interval, from genes: few of them say little
    share = cautious((made * truth).sum(1), size, n_errors=float(stats.t.ppf(0.975, max(n - 1, 1))))
    # a mean of draws that is no larger than chance leaves it is nothing that the network knows
    is_more = float(size.sum()) > 2 * float(draws.var(0).sum()) / N_DRAWS
    return share if is_more else 0.0
