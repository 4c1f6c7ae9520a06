"""Answers: expected expression of wanted genes, its spread and intervals, block by block of spots.

All that is the same for every spot is found once; a block of spots is then one product with it.

w wanted genes, L length of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stgen._warn import warn
from stgen.data._loaders import name_keys
from stgen.data._names import align_genes, check_unique, some, spelling, spelling_hint, twins
from stgen.nn._noise import keyed_uniform

from ._calibration import MASSES, Intervals, Regression, level, trust, trust_features, widening
from ._network import CausalGeDNetwork
from ._parts import even_steps, normal_noise
from ._reference import Reference
from ._sets import Axes, Known, identities
from ._views import Hints, Predictor, Spots, gene_folds, left_out_views

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

ORDERS = ("predictable", "random")
GENES_AT_ONCE = 256
SPOTS_AT_ONCE = 4096
VALUES_AT_ONCE = 2**22
"""Spots × genes of a block at most: 16 MB for each array that is made of it."""
ENDS = {f"{side}_{mass}": 0.5 + sign * mass / 200 for mass in MASSES for side, sign in (("lower", -1), ("upper", 1))}  # fmt: skip
"""Ends of intervals, and the probability of a smaller value."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How residuals are drawn; see :meth:`CausalGeD.impute`."""

    n_samples: int = 16
    """Draws that are averaged."""
    n_steps: int = 20
    """Reverse steps of the diffusion."""
    n_sets: int = 1
    """Autoregressive steps S."""
    order: str | Sequence[str] = "predictable"
    """One of ``ORDERS``, or names of genes that come first."""
    random_state: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_steps", "n_sets"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if isinstance(self.order, str) and self.order not in ORDERS:
            raise ValueError(
                f"`order` must be {' or '.join(map(repr, ORDERS))}, or names of genes that come first; got "
                f"{self.order!r}."
            )


def whole(name: str, number: float) -> int:
    """A number that counts something."""
    is_number = isinstance(number, int | float | np.integer | np.floating) and not isinstance(number, bool)
    if not is_number or number % 1 != 0 or number < 1:
        raise ValueError(f"`{name}` must be a whole number, at least 1; got {number!r}.")
    return int(number)


def wanted_genes(genes: Sequence[str] | None, known: Sequence[str], measured: Sequence[str]) -> Ints:
    """Genes to impute, as numbers among the reference's; ``None`` takes all that were not measured."""
    present = set(measured)
    if genes is None:
        found = np.flatnonzero([gene not in present for gene in known])
        if not len(found):
            raise ValueError("The reference has no gene that is not measured: there is nothing to impute.")
        _warn_about_twins(found, known, measured)
        return found
    listed = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not listed:
        raise ValueError("`genes` must name at least one gene; it is empty.")
    check_unique(pd.Index(listed), "`genes`", "Name each once.")
    there = [gene for gene in listed if gene in present]
    if there:
        raise ValueError(
            f"`genes` must name genes that were not measured; {len(there)} were: {some(there)}. Leave them out."
        )
    try:
        found = align_genes(listed, known)
    except ValueError as error:
        raise ValueError(f"`genes` must be in the reference. {error}") from None
    _warn_about_twins(found, known, measured)
    return found


def _warn_about_twins(wanted: Ints, known: Sequence[str], measured: Sequence[str]) -> None:
    """A gene is imputed although it was measured if the two sides spell it differently; nobody would notice."""
    known_there = set(known)
    # a measured gene that the reference has as well is itself, and its twin of another genome another gene
    unread = [gene for gene in measured if gene not in known_there]
    found = twins((known[i] for i in wanted), unread)
    if found:
        how, shown = spelling(found)
        warn(
            f"{len(found)} of the {len(wanted)} genes to impute were measured, under another name: they match {how} ({shown}). "
            "What was measured is not read. Rename them on one side if they are the same genes."
        )


def read_genes(genes: Sequence[str], measured: Sequence[str]) -> Ints:
    """Measured genes that are named, as their numbers."""
    listed = pd.Index([genes] if isinstance(genes, str) else [str(gene) for gene in genes])
    strange = listed[~listed.isin(measured)]
    if len(strange) or not len(listed):
        raise ValueError(
            f"`withheld` must name measured genes that the model reads; {some(strange) or 'none given'} are not. It reads "
            f"{len(measured)}, such as {some(measured)}.{spelling_hint(strange, measured)}"
        )
    check_unique(listed, "`withheld`", "Name each once.")
    return pd.Index(measured).get_indexer(listed).astype(np.int64)


def check_order(order: str | Sequence[str], known: Sequence[str]) -> None:
    """Raise if genes that come first are none that anybody has."""
    if isinstance(order, str):
        return
    listed = pd.Index([str(gene) for gene in order])
    strange = listed[~listed.isin(known)]
    if len(strange):
        raise ValueError(
            f"`order` must name genes of the reference; {len(strange)} of {len(listed)} are not: {some(strange)}. It has "
            f"{some(known)}.{spelling_hint(strange, known)}"
        )


def generation_order(order: str | Sequence[str], names: Sequence[str], first: Ints, seed: int) -> Ints:
    """Genes in the order in which they are generated; ``first`` has the most predictable one first."""
    if isinstance(order, str):
        if order == "predictable":
            return first
        by_key = keyed_uniform(torch.from_numpy(name_keys(pd.Index(names))), 1, seed=seed)[:, 0]
        return by_key.argsort(stable=True).numpy()
    listed = pd.Index(names).get_indexer(pd.Index(list(order)).unique())
    lead = listed[listed >= 0]
    return np.concatenate([lead, first[~np.isin(first, lead)]])


@dataclass(frozen=True)
class Drawn:
    """Residuals that were generated, scaled by their share."""

    axes: Axes
    """What residuals lie along."""
    centre: Floats
    """(w, L) mean of the draws."""
    spread: Floats
    """(w, L) their standard deviation."""


@dataclass(frozen=True)
class Imputation:
    """All that is needed to answer any spot."""

    spots: Spots
    """Measured genes of all spots."""
    hints: Hints
    """Weighted views."""
    mean: Floats
    """(w,) level of each gene."""
    sd: Floats
    """(w,) what a standardised pattern is multiplied by."""
    bands: Intervals
    """What was measured where a value was predicted."""
    table: pd.DataFrame
    """How far each gene can be trusted."""
    drawn: Drawn | None
    """What the network adds, if it adds anything."""

    @classmethod
    @torch.no_grad()
    def make(
        cls,
        module: CausalGeDNetwork,
        reference: Reference,
        measured: Ints,
        spots: Spots,
        wanted: Ints,
        use: Ints,
        sampling: Sampling,
        fold_seed: int,
    ) -> Imputation:
        """``measured`` are genes of the reference in the order of the spots' columns, of which ``use`` are looked at."""
        numbers = {
            name: module.statistic(name).cpu().numpy().astype(np.float64)
            for name in ("weight", "level", "trust")
        }
        facts, names = reference.facts[wanted], [module.genes[i] for i in wanted]
        mean, sd = level(Regression.unpacked(numbers["level"]), facts)
        predictor = Predictor.make(reference, measured, use, wanted)
        hints = Hints(predictor, spots.of_sample, numbers["weight"])
        nearest, strength = reference.gram[np.ix_(use, wanted)].max(axis=0), hints.of_sample.std(axis=0)
        features = trust_features(facts, strength, nearest)
        table = trust(Regression.unpacked(numbers["trust"]), features, names, facts[:, 2] > 0)
        drawn, share = None, float(module.share)
        if share > 0:
            axes = Axes(reference, predictor, spots.of_sample)
            first = np.argsort(-table["predictability"].to_numpy(), kind="stable")
            folds = gene_folds(len(use), fold_seed)
            views = left_out_views(reference, measured, spots.of_sample, use, folds)
            made = share * residuals(
                module,
                reference,
                measured[use],
                wanted,
                spots.of_sample[0][:, use],
                axes,
                hints,
                Known(views, numbers["weight"]),
                generation_order(sampling.order, names, first, sampling.random_state),
                sampling,
            )
            drawn = Drawn(axes, made.mean(axis=0), made.std(axis=0))
        bands = Intervals(
            *(
                module.statistic(f"interval_{part}").cpu().numpy()
                for part in ("centre", "quantile", "sd", "mass")
            )
        )
        return cls(spots, hints, mean, sd * widening(strength), bands, table, drawn)

    def rows(self, rows: Ints, *, intervals: bool) -> Iterator[tuple[str, Floats]]:
        """Some spots: ``X`` (n, w), then layers of the same shape."""
        neighbourhoods = self.spots.rows(rows)
        pattern, variance = self.hints.rows(neighbourhoods), 0.0
        if self.drawn is not None:
            along = self.drawn.axes.rows(neighbourhoods)
            pattern = pattern + along @ self.drawn.centre.T
            variance = np.square(self.sd) * (np.square(along) @ np.square(self.drawn.spread).T)
        x = np.maximum(self.mean + self.sd * pattern, 0.0)
        yield "X", x
        yield "sd", np.sqrt(self.bands.spread(x) ** 2 + variance)
        if intervals:
            for name, probability in ENDS.items():
                yield name, np.maximum(self.bands.at(x, probability), 0.0)
            for mass in MASSES:
                yield f"mass_{mass}", self.bands.mass_at(x, mass)


def layer_names(*, intervals: bool) -> list[str]:
    """What :meth:`Imputation.rows` gives besides ``X``."""
    return ["sd", *ENDS, *(f"mass_{mass}" for mass in MASSES)] if intervals else ["sd"]


def check_size(n_spots: int, n_genes: int, most_bytes: int, *, intervals: bool) -> None:
    """Raise if an answer is larger than that."""
    size = 4 * (1 + len(layer_names(intervals=intervals))) * n_spots * n_genes
    if size > most_bytes:
        raise ValueError(
            f"The answer for {n_spots} spots and {n_genes} genes would take {size / 1024**3:.1f} GB; at most "
            f'{most_bytes / 1024**3:.0f} GB are made in memory. Write it to disk with `out="imputed.zarr"`, name fewer '
            "`genes`" + (", or say `intervals=False`." if intervals else ".")
        )


def blocks(n_spots: int, n_genes: int, batch_size: int | None, multiple: int = 1) -> list[Ints]:
    """Spots in blocks whose arrays stay small; all but the last are a ``multiple`` unless their size is given."""
    most = min(SPOTS_AT_ONCE, VALUES_AT_ONCE // n_genes)
    size = batch_size or max(most // multiple * multiple, 1)
    return np.split(np.arange(n_spots), range(size, n_spots, size))


def residuals(
    module: CausalGeDNetwork,
    reference: Reference,
    measured: Ints,
    wanted: Ints,
    truth: Floats,
    axes: Axes,
    hints: Hints,
    context: Known,
    rank: Ints,
    sampling: Sampling,
) -> Floats:
    """Draws (n_samples, w, L) of what hints leave unsaid; ``truth`` (s, m) are the measured genes of the context."""
    device, n_axes = module.share.device, module.config.n_axes
    scale = module.statistic("scale").cpu().numpy()
    own = {
        "identity": identities(reference, measured),
        "hint": axes.latents(context.hint) / scale,
        "residual": axes.latents(truth - context.hint) / scale,
    }
    out = np.zeros((sampling.n_samples, len(wanted), n_axes), dtype=np.float32)
    keys = name_keys(pd.Index([module.genes[i] for i in wanted]))
    asked = {
        "identity": identities(reference, wanted[rank]),
        "hint": axes.latents(hints.of_sample)[rank] / scale,
        "residual": np.zeros((len(rank), n_axes), dtype=np.float32),
    }
    batch = {
        name: torch.from_numpy(np.concatenate([own[name], asked[name]]).astype(np.float32))[None].to(device)
        for name in own
    }
    batch["is_target"] = (torch.arange(len(measured) + len(rank), device=device) >= len(measured))[None]
    made = module.impute(
        batch,
        step=even_steps(len(rank), sampling.n_sets).to(device),
        noise=normal_noise(keys[rank], sampling.n_samples, n_axes, sampling.random_state).to(device),
        n_steps=sampling.n_steps,
        at_once=GENES_AT_ONCE,
    )
    out[:, rank] = scale * made.cpu().numpy()
    return out
