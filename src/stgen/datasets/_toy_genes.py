"""What genes do: the log-rate of every gene at every point, and the counts drawn from it.

For point s, gene g, cell types k and programmes c::

    log rate = log mean_g + log depth_s + batch_g + morphology + hidden + neighbours
    morphology = log Σ_k composition_sk · profile_gk  +  Σ_visible c_s · loading_g
    hidden     = Σ_hidden c_s · loading_g
    neighbours = neighbour_effect · coefficient_g · receiver_s · exposure_s

Composition mixes rates, not logarithms: a spot is a mixture of cells, as the paired reference needs it.
Hidden programmes are made orthogonal to morphology on the tissue at hand, so that the planted share is a share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.special import expit

from ._toy_parameters import STATES, ToyParameters

N_HIDDEN_FIELDS = 6
"""Hidden spatial programmes that belong to no module."""

_HALF_EXPOSURE = 0.25
_MAX_LOG_PROFILE_SCALE = 2.5


@dataclass(frozen=True)
class Programmes:
    """Activities per point, each of mean 0 and variance 1."""

    visible: np.ndarray
    """Functions of morphology: one per module, then the appearance states."""
    hidden: np.ndarray
    """What the H&E does not show: one per module, then the hidden spatial fields."""

    @property
    def all(self) -> np.ndarray:
        """Visible, then hidden, in the order of the columns of the loadings."""
        return np.hstack([self.visible, self.hidden])


@dataclass(frozen=True)
class Genes:
    """Planted answer per gene."""

    table: pd.DataFrame
    """module, morphology_share, neighbour_gene, neighbour_effect, dispersion, mean_rate."""
    log_profile: np.ndarray
    """Genes × cell types: log-rate of a type against the tissue's mean."""
    loadings: np.ndarray
    """Genes × programmes, visible before hidden."""


def morphology_of(composition: np.ndarray, states: np.ndarray) -> np.ndarray:
    """All that the H&E shows of a point: its cell types and how they look."""
    return np.hstack([composition, states])


def run_programmes(
    parameters: ToyParameters, composition: np.ndarray, states: np.ndarray, fields: np.ndarray
) -> Programmes:
    """Activities of every programme at every point of the tissue."""
    rng = parameters.rng("programmes", 0)
    seen = _standardise(morphology_of(composition, states))
    n_modules = parameters.n_modules
    linear, gated = _module_links(seen, n_modules, parameters.n_cell_types, rng)
    share = parameters.nonlinearity
    module = np.sqrt(1 - share) * linear + np.sqrt(share) * gated
    visible = np.hstack([_standardise(module), _standardise(states)])

    hidden = fields.copy()
    # half of a module's hidden activity is the spot's own, and no smoother finds it in the neighbours
    own = parameters.rng("programmes", 1).standard_normal((len(fields), n_modules))
    hidden[:, :n_modules] = np.sqrt(0.5) * hidden[:, :n_modules] + np.sqrt(0.5) * own
    return Programmes(visible, _standardise(_without(seen, visible, hidden)))


def _module_links(
    seen: np.ndarray, n_modules: int, n_types: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How a module follows morphology: a line, and a gate that opens a second line where a third is high."""
    n_seen = seen.shape[1]
    weight = np.r_[np.full(n_types, 0.5), np.full(n_seen - n_types, 1.0)][:, None]
    line = _standardise(seen @ (weight * rng.standard_normal((n_seen, n_modules))))
    # looks vary smoothly and evenly, rare types do not: they make the clearer gate
    looks = np.arange(n_types, n_seen)
    pairs = np.array([(i, j) for i in looks for j in looks if i != j])
    gate, gated = pairs[np.resize(rng.permutation(len(pairs)), n_modules)].T
    sign = rng.choice([-1.0, 1.0], (2, n_modules))
    bent = sign[1] * seen[:, gated] * expit(6 * sign[0] * seen[:, gate])
    # without its linear part: this is what a linear model cannot have
    return line, _standardise(_residual(seen, bent))


def _without(seen: np.ndarray, visible: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Hidden programmes with what quadratics of morphology explain by chance taken out."""
    rows, columns = np.triu_indices(seen.shape[1])
    basis = np.hstack([seen, visible, seen[:, rows] * seen[:, columns]])
    if len(seen) < 10 * basis.shape[1]:  # too few points to fit that many terms
        basis = seen
    return _residual(basis, hidden) if len(seen) >= 10 * basis.shape[1] else hidden


def _residual(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares residual; a trace of ridge because compositions sum to one."""
    centred = basis - basis.mean(axis=0)
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += 1e-6 * np.trace(gram) / len(gram) + 1e-12
    return values - centred @ np.linalg.solve(gram, centred.T @ (values - values.mean(axis=0)))


def _standardise(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant columns become 0."""
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)


def plant_genes(
    parameters: ToyParameters, composition: np.ndarray, programmes: Programmes
) -> tuple[Genes, np.ndarray]:
    """Choose what every gene answers to; returns the genes and their log-rate without depth, batch, neighbours."""
    rng, n_genes = parameters.rng("genes"), parameters.n_genes
    amplitude = np.clip(rng.lognormal(np.log(0.65), 0.3, n_genes), 0.3, 1.2)
    share = _draw_shares(parameters.morphology_share, n_genes, rng)
    module = _draw_modules(parameters, rng)
    mean = rng.lognormal(0.0, 1.2, n_genes)
    mean *= parameters.total / mean.sum()
    overdispersion = parameters.dispersion * rng.lognormal(-0.125, 0.5, n_genes)
    loadings = _draw_loadings(parameters, module, amplitude, share, rng)
    types = rng.standard_normal((parameters.n_cell_types, n_genes))
    of_types = amplitude * np.sqrt(share * np.where(module >= 0, 0.35, 0.6))

    log_profile, mixed = _mix_types(composition, types, of_types)
    n_visible = programmes.visible.shape[1]
    morphology = mixed + programmes.visible @ loadings[:, :n_visible].T
    hidden = programmes.hidden @ loadings[:, n_visible:].T
    shown, unseen = morphology.var(axis=0), hidden.var(axis=0)
    log_rate = morphology + hidden
    # the mean over the tissue is `mean`, not the mean of the logarithm
    log_rate += np.log(mean) - np.log(np.exp(log_rate).mean(axis=0))
    chosen, coefficient = _choose_neighbour_genes(parameters, mean)
    table = pd.DataFrame(
        {
            "module": module.astype(np.int64),
            "morphology_share": shown / np.maximum(shown + unseen, 1e-12),
            "neighbour_gene": chosen,
            "neighbour_effect": coefficient * parameters.neighbour_effect,
            "dispersion": overdispersion,
            "mean_rate": mean,
        },
        index=[f"gene_{i + 1:0{max(3, len(str(n_genes)))}d}" for i in range(n_genes)],
    )
    return Genes(table, log_profile, loadings), log_rate


def _draw_shares(mean: float, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Shares from nearly 0 to nearly 1 around ``mean``; all equal at the ends."""
    if mean in (0, 1):
        return np.full(n_genes, float(mean))
    return np.clip(rng.beta(2.4 * mean, 2.4 * (1 - mean), n_genes), 0.01, 0.99)


def _draw_modules(parameters: ToyParameters, rng: np.random.Generator) -> np.ndarray:
    """Module of every gene, −1 for none; members are scattered over the gene order."""
    n_members = round(parameters.module_share * parameters.n_genes)
    module = np.full(parameters.n_genes, -1)
    module[:n_members] = np.arange(n_members) % parameters.n_modules
    return rng.permutation(module)


def _draw_loadings(
    parameters: ToyParameters,
    module: np.ndarray,
    amplitude: np.ndarray,
    share: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Genes × programmes, visible (modules, states) before hidden (modules, fields).

    A gene's variance is split once by its planted share; within each half a module member follows mostly its
    module, any other gene the appearance states and the hidden fields.
    """
    n_genes, n_modules = parameters.n_genes, parameters.n_modules
    member = module >= 0
    in_module = (module[:, None] == np.arange(n_modules)).astype(float)
    states = _unit_rows(rng.standard_normal((n_genes, len(STATES))))
    fields = _unit_rows(rng.standard_normal((n_genes, N_HIDDEN_FIELDS)))
    seen, unseen = amplitude * np.sqrt(share), amplitude * np.sqrt(1 - share)
    return np.hstack(
        [
            (seen * np.sqrt(0.65))[:, None] * in_module,
            (seen * np.where(member, 0.0, np.sqrt(0.4)))[:, None] * states,
            (unseen * np.sqrt(0.8))[:, None] * in_module,
            (unseen * np.where(member, np.sqrt(0.2), 1.0))[:, None] * fields,
        ]
    )


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _mix_types(
    composition: np.ndarray, types: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log profiles (genes × types) and the log of their mixture, of about the wanted spread over points."""
    linear = (composition @ types).std(axis=0)
    scale = np.minimum(spread / np.maximum(linear, 1e-12), _MAX_LOG_PROFILE_SCALE)
    log_profile = (types * scale).T
    mixed = np.log(composition @ np.exp(log_profile).T)
    offset = mixed.mean(axis=0)
    return log_profile - offset[:, None], mixed - offset


def _choose_neighbour_genes(parameters: ToyParameters, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which genes answer to senders, and by how much in log-rate at full exposure; half of them fall."""
    rng = parameters.rng("neighbour_genes")
    n_chosen = round(parameters.neighbour_share * parameters.n_genes)
    # an effect on a gene that is hardly ever counted could not be found by anyone
    expressed = np.argsort(-mean, kind="stable")[: max(n_chosen, round(0.7 * len(mean)))]
    picked = np.sort(rng.permutation(len(expressed))[:n_chosen])
    coefficient = np.zeros(len(mean))
    # up and down in turn along the means: the totals stay, and with them the shares of all other genes
    sign = np.where(np.arange(n_chosen) % 4 % 3 == 0, 1, -1)
    coefficient[expressed[picked]] = rng.uniform(1.2, 2.0, n_chosen) * sign
    return coefficient != 0, coefficient


def sender_exposure(xy: np.ndarray, sender: np.ndarray, radius_um: float) -> np.ndarray:
    """How much of the sender type lies within ``radius_um`` of every point, itself left out; 0 to 1, saturating.

    ``sender`` is the sender's share at every point of one section.
    """
    pairs = cKDTree(xy).query_pairs(radius_um, output_type="ndarray")
    here, there = np.concatenate([pairs, pairs[:, ::-1]]).T
    n_near = np.bincount(here, minlength=len(xy))
    fraction = np.bincount(here, weights=sender[there], minlength=len(xy)) / np.maximum(n_near, 1)
    return 1 - np.exp(-fraction / _HALF_EXPOSURE)


def draw_counts(
    rate: np.ndarray,
    log_neighbours: np.ndarray,
    dispersion: np.ndarray,
    rng: np.random.Generator,
    neighbour_rng: np.random.Generator,
) -> np.ndarray:
    """Gamma-Poisson counts of mean ``rate · exp(log_neighbours)`` and variance mean + dispersion · mean².

    Counts without the neighbour effect come first; the effect then adds Poisson counts to them or thins them,
    which is exact. So two tissues that differ in the effect alone share every other count.
    """
    rate = rate * _gamma_noise(dispersion, rate.shape, rng)
    counts = rng.poisson(rate)
    touched = np.flatnonzero(np.any(log_neighbours != 0, axis=0))
    for gene in touched:
        factor = np.exp(log_neighbours[:, gene])
        added = neighbour_rng.poisson(rate[:, gene] * np.maximum(factor - 1, 0))
        kept = neighbour_rng.binomial(counts[:, gene], np.minimum(factor, 1))
        counts[:, gene] = kept + added
    return counts.astype(np.int32)


def _gamma_noise(dispersion: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Multipliers of mean 1 and variance ``dispersion``; 1 where that is 0."""
    size = np.where(dispersion > 0, 1 / np.maximum(dispersion, 1e-12), 1.0)
    noise = rng.standard_gamma(size, shape) / size
    return np.where(dispersion > 0, noise, 1.0)
