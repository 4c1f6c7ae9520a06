"""What measured genes say about a gene, by linear means: views, and how they are weighed.

A view predicts the standardised pattern of a gene over spots from measured genes alone: by kernel ridge regression over genes
that are alike if they go together in the reference (two *kernels*), or as a mixture of the metacells that a spot looks like (*mixture*); of the spot
itself, or of the mean of the spot and its nearest spots. Views of genes that are measured are made without them, gene
fold by gene fold, and non-negative weights are fitted on these.

p spots, s of them in the sample on which everything is fitted, m measured genes, w wanted genes, M metacells, V views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...experts._kernel_ridge import coefficients, likeness
from ...experts._mixture import mixture, unit_length
from ._reference import Reference

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NEIGHBOURHOODS = (0, 6, 15, 40)
"""Nearest spots that are averaged with a spot."""
PENALTY = 0.3
"""Of both kernels, in units of a standardised gene's variance."""
STEEPNESS = 2.0
"""Of the kernel that never falls to 0; the other is the correlation itself."""
SHARPNESS = 10.0
"""Of the mixture: weights are softmax of this times the cosine."""
N_FOLDS = 5
"""Parts that measured genes are cut into: a part is predicted from the others."""
N_SAMPLE = 3000
"""Spots at most on which weights, latents and calibration are fitted."""
N_KINDS = 3
"""Two kernels and a mixture."""
N_VIEWS = N_KINDS * len(NEIGHBOURHOODS)
"""Of spots that have places."""


class Spots:
    """Measured genes of all spots, standardised, of a spot itself and of its neighbourhoods."""

    def __init__(self, x: Floats | sparse.csr_matrix, near: Ints | None, sample: Ints) -> None:
        """``x`` (p, m) log-normalised, ``near`` (p, 40) nearest spots, ``sample`` rows that set the scale.

        Of all spots only some are dense at a time. Without ``near`` a spot is known by itself alone.
        """
        self.x, self.near, self.sample = x, near, sample
        self.sizes = NEIGHBOURHOODS if near is not None else NEIGHBOURHOODS[:1]
        raw = [self._mean(sample, k) for k in self.sizes]
        self.mean = [one.mean(axis=0) for one in raw]
        self.unit = [_unit(one) for one in raw]
        self.of_sample = [
            (one - mean) / unit for one, mean, unit in zip(raw, self.mean, self.unit, strict=True)
        ]

    def expression(self, rows: Ints) -> Floats:
        """Log-normalised expression (n, m) of some spots."""
        return _dense(self.x[rows])

    def _mean(self, rows: Ints, k: int) -> Floats:
        if k == 0:
            return self.expression(rows)
        assert self.near is not None, "only a spot with places has neighbours"
        n = len(rows)
        column = np.concatenate([rows[:, None], self.near[rows, :k]], axis=1)
        start = np.arange(n + 1) * (k + 1)
        weight = np.full(n * (k + 1), 1 / (k + 1), dtype=np.float32)
        return _dense(sparse.csr_matrix((weight, column.ravel(), start), (n, self.x.shape[0])) @ self.x)

    def rows(self, rows: Ints) -> list[Floats]:
        """Standardised neighbourhoods (n, m) of some spots, one for each of ``sizes``."""
        return [
            (self._mean(rows, k) - mean) / unit
            for k, mean, unit in zip(self.sizes, self.mean, self.unit, strict=True)
        ]


def _dense(x: Any) -> Floats:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


CONSTANT = 1e-5
"""Columns that vary by less than this share of their size are constant: the rest is rounding."""


def _unit(x: Floats) -> Floats:
    """Standard deviations; those of constant columns so large that the column counts for nothing."""
    sd = x.std(axis=0)
    return np.where(sd > CONSTANT * np.maximum(np.abs(x).max(axis=0), 1e-3), sd, 1e8).astype(np.float32)


@dataclass(frozen=True)
class Predictor:
    """Views of some wanted genes from some measured ones."""

    use: Ints
    """Measured genes that are looked at, as columns of the spots."""
    coefficient: tuple[Floats, ...]
    """(use, w) of each kernel."""
    of_use: Floats
    """(M, use) metacells over the genes that are looked at, of unit length."""
    of_wanted: Floats
    """(M, w)"""

    @classmethod
    def make(cls, reference: Reference, measured: Ints, use: Ints, wanted: Ints) -> Predictor:
        """``measured`` are genes of the reference in the order of the spots' columns; ``wanted`` genes of the reference."""
        correlation = reference.gram[use].astype(np.float64)
        coefficient = tuple(
            coefficients(alike[:, measured[use]], alike[:, wanted], PENALTY).astype(np.float32)
            for alike in (likeness(correlation, STEEPNESS), likeness(correlation))
        )
        return cls(
            use,
            coefficient,
            unit_length(reference.metacells[:, measured[use]]),
            reference.metacells[:, wanted],
        )

    def mixture(self, spots: Floats) -> Floats:
        """(n, M) shares of metacells in standardised spots (n, m)."""
        return mixture(spots[:, self.use], self.of_use, SHARPNESS)

    def views(self, neighbourhoods: Sequence[Floats], asked: Iterable[int] | None = None) -> Iterator[Floats]:
        """V times (n, w): only one is held at a time. ``asked`` are the numbers of those to make; by default all."""
        for number in range(N_KINDS * len(neighbourhoods)) if asked is None else asked:
            kind, place = divmod(number, len(neighbourhoods))
            spots = neighbourhoods[place]
            if kind < len(self.coefficient):
                yield spots[:, self.use] @ self.coefficient[kind]
            else:
                yield self.mixture(spots) @ self.of_wanted


class Hints:
    """Weighted views of wanted genes: scaled on the sample, added by weights."""

    def __init__(
        self, predictor: Predictor, of_sample: Sequence[Floats], weight: NDArray[np.float64]
    ) -> None:
        self.predictor = predictor
        # of many genes one view is large, and least squares leaves most views out
        self.asked = np.flatnonzero(weight)
        self.mean, self.scale = [], []
        out = np.zeros((len(of_sample[0]), predictor.of_wanted.shape[1]), dtype=np.float32)
        for share, view in zip(weight[self.asked], predictor.views(of_sample, self.asked), strict=True):
            mean, sd = view.mean(axis=0), view.std(axis=0)
            scale = np.float32(share) / np.where(sd > CONSTANT, sd, np.inf)
            out += (view - mean) * scale
            self.mean.append(mean)
            self.scale.append(scale)
        self.of_sample = out

    def rows(self, neighbourhoods: Sequence[Floats]) -> Floats:
        """(n, w) standardised patterns of some spots."""
        out = np.zeros((len(neighbourhoods[0]), self.predictor.of_wanted.shape[1]), dtype=np.float32)
        views = self.predictor.views(neighbourhoods, self.asked)
        for view, mean, scale in zip(views, self.mean, self.scale, strict=True):
            view -= mean
            view *= scale
            out += view
        return out


def gene_folds(n: int, seed: int) -> list[Ints]:
    """Genes 0 to n − 1 in five parts."""
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, min(N_FOLDS, n))]


def standard_view(view: Floats) -> Floats:
    """A view (n, w), each gene with mean 0 and variance 1; constant ones are 0."""
    view = view - view.mean(axis=0)
    sd = view.std(axis=0)
    return np.asarray(view / np.where(sd > CONSTANT, sd, np.inf), dtype=np.float32)


def left_out_views(
    reference: Reference, measured: Ints, spots: Sequence[Floats], use: Ints, folds: Sequence[Ints]
) -> Floats:
    """(V, s, use) views of the genes ``use`` (columns), each part of them made from the other parts of ``use`` alone."""
    out = np.zeros((N_KINDS * len(spots), len(spots[0]), len(use)), dtype=np.float32)
    for part in folds:
        others = np.setdiff1d(np.arange(len(use)), part)
        predictor = Predictor.make(reference, measured, use[others], measured[use[part]])
        for number, view in enumerate(predictor.views(spots)):
            out[number][:, part] = standard_view(view)
    return out
