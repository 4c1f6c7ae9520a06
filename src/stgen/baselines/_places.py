"""What place alone says about cells nobody has measured: the baselines of unseen regions.

A region that was not measured is square and has cells at its border. What a baseline must choose (how many cells to
average, how smooth a surface is) is therefore chosen on squares that are taken out of the training cells in the
same way, several times over: cells drawn one by one would have near neighbours that an unseen region does not offer,
and the choice would be too sharp.

Each section is a surface of its own. Values come in as they are to be predicted, on a log scale as a rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from stgen._by_name import join_rows, x_and_y
from stgen.experts._gaussian_process import InducingProcess, Kernel
from stgen.experts._inverse_distance import distance_weights, nearest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def unseen_squares(
    xy: ArrayLike,
    section: ArrayLike | None = None,
    n_squares: int = 20,
    share: float = 0.1,
    random_state: int = 0,
) -> Ints:
    """Squares of cells to leave out, with their cells all at once.

    Parameters
    ----------
    xy
        Coordinates, cells × 2.
    section
        Section of every cell, any values. ``None`` means one section.
    n_squares
        Squares per section.
    share
        Share of a section's cells inside its squares.
    random_state
        Seed. The draw of a section does not depend on the other sections.

    Returns
    -------
    For every cell the number of its square within its section, and -1 outside.

    Notes
    -----
    A square lies around a cell drawn at random and is as large as it must be to hold its part of the share, so that
    all squares weigh the same. Squares are disjoint. Where so many do not fit, there are fewer.

    Examples
    --------
    >>> import numpy as np, stgen as stg
    >>> xy = np.random.default_rng(0).uniform(0, 1000, (2000, 2))
    >>> square = stg.baselines.unseen_squares(xy)
    >>> int(square.max()) + 1, float((square >= 0).mean())
    (20, 0.1)
    """
    xy, section = _check_places(xy, section)
    if n_squares < 1:
        raise ValueError(f"`n_squares` must be at least 1; got {n_squares}.")
    if not 0 < share < 0.9:
        raise ValueError(
            f"`share` must lie between 0 and 0.9, so that squares fit beside each other; got {share}."
        )
    label = np.full(len(xy), -1, dtype=np.int64)
    for name in np.unique(section):
        rows = np.flatnonzero(section == name)
        label[rows] = _squares_of_section(xy[rows], n_squares, share, np.random.default_rng(random_state))
    return label


def _squares_of_section(xy: Floats, n_squares: int, share: float, rng: np.random.Generator) -> Ints:
    n = len(xy)
    wanted = share * n
    n_squares = min(n_squares, max(1, int(wanted)))  # a square holds a cell
    tree = cKDTree(xy)
    label = np.full(n, -1, dtype=np.int64)
    centre, half = np.empty((0, 2)), np.empty(0)
    n_inside = 0
    for cell in rng.permutation(n):
        left = n_squares - len(half)
        if left == 0:
            break
        # what ties or a rounding gave to earlier squares is missing from later ones
        size = min(n, max(1, round((wanted - n_inside) / left)))
        distance = tree.query(xy[cell], k=size + 1 if size < n else size, p=np.inf)[0]
        distance = np.atleast_1d(distance)
        reach = float(distance[size - 1])
        # the border lies between the last cell inside and the next, so that no cell lies on it
        side = (reach + float(distance[size])) / 2 if size < n else reach
        if (np.abs(centre - xy[cell]).max(axis=1, initial=0) < half + side).any():
            continue
        inside = np.asarray(tree.query_ball_point(xy[cell], reach, p=np.inf), dtype=np.int64)
        if len(inside) > 2 * size or (label[inside] >= 0).any():  # a pile of cells at one place
            continue
        label[inside] = len(half)
        centre, half = np.vstack([centre, xy[cell]]), np.append(half, side)
        n_inside += len(inside)
    return label


class Surface(NamedTuple):
    """The training cells of one section."""

    xy: Floats
    values: Floats


class PlaceBaseline(ABC):
    """A prediction of unseen cells from their places that a model must beat.

    Parameters
    ----------
    n_squares, share
        Squares that are left out to choose by, as in :func:`unseen_squares`; those of the question, best of all.
    n_rounds
        How often such squares are drawn.
    random_state
        Seed. The same seed gives the same result; the global random state is left as found.
    """

    name: ClassVar[str]
    """How tables call it."""
    kind: ClassVar[str]
    """``"null"`` or ``"baseline"``."""

    def __init__(
        self, *, n_squares: int = 20, share: float = 0.1, n_rounds: int = 5, random_state: int = 0
    ) -> None:
        if n_rounds < 1:
            raise ValueError(f"`n_rounds` must be at least 1; got {n_rounds}.")
        self.n_squares, self.share, self.n_rounds = n_squares, share, n_rounds
        self.random_state = random_state
        self._surfaces: dict[str, Surface] = {}

    def fit(self, xy: ArrayLike, section: ArrayLike | None, values: Any) -> Self:
        """Learn from cells that were measured.

        Parameters
        ----------
        xy
            Coordinates, cells × 2, in µm.
        section
            Section of every cell. ``None`` means one section.
        values
            Expression, cells × genes, on the scale of the prediction; dense or sparse.
        """
        xy, section, values = join_rows(xy=xy, section=section, values=values)
        places, names = _check_places(xy, section)
        values = values.toarray() if sparse.issparse(values) else np.asarray(values)
        if values.ndim != 2 or len(values) != len(places):
            raise ValueError(
                f"`values` must be cells × genes with {len(places)} cells; got shape {values.shape}."
            )
        if not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values).all(axis=1)).sum())
            raise ValueError(
                f"`values` must be finite; {n_bad} of {len(values)} cells have NaN. Drop them first."
            )
        if len(places) < 2:
            raise ValueError(f"{self.name!r} needs at least 2 training cells; got {len(places)}.")
        self._take(places, names, values)
        self._fit()
        return self

    def _take(self, places: Floats, names: NDArray[np.str_], values: NDArray[Any]) -> None:
        """Keep the cells, section by section."""
        self._surfaces = {}
        for name in np.unique(names):
            here = names == name
            self._surfaces[str(name)] = Surface(places[here], values[here].astype(np.float64))
        self._n_genes = values.shape[1]

    def predict(self, xy: ArrayLike, section: ArrayLike | None) -> Floats:
        """Predict cells from their places.

        Parameters
        ----------
        xy, section
            As for :meth:`fit`.

        Returns
        -------
        Cells × genes on the scale of the training values.
        """
        if not self._surfaces:
            raise RuntimeError(f"{self.name!r} is not fitted; call `fit` with training cells first.")
        places, names = _check_places(xy, section)
        unknown = sorted(set(names) - set(self._surfaces))
        if unknown:
            raise ValueError(
                f"{self.name!r} was fitted on sections {_some(sorted(self._surfaces))}; section(s) {_some(unknown)} "
                "have no training cell. Place says nothing across sections: leave them out."
            )
        answer = np.empty((len(places), self._n_genes))
        for name in np.unique(names):
            here = names == name
            answer[here] = self._predict(str(name), places[here])
        return answer

    @abstractmethod
    def _fit(self) -> None:
        """Choose what is to be chosen."""

    @abstractmethod
    def _predict(self, name: str, xy: Floats) -> Floats:
        """Answer for places of one section."""

    def _rounds(self, surface: Surface) -> Iterator[NDArray[np.bool_]]:
        """Which of one section's training cells lie in squares, drawn again and again."""
        for number in range(self.n_rounds):
            seed = int(np.random.SeedSequence([self.random_state, number, 1]).generate_state(1)[0])
            is_out = unseen_squares(surface.xy, None, self.n_squares, self.share, seed) >= 0
            if is_out.any() and not is_out.all():
                yield is_out

    def _errors(self, answers: Callable[[Surface, Floats], Iterator[Floats]], n_options: int) -> Floats:
        """Summed squared error of each option on left-out squares, options × genes, over all sections."""
        error = np.zeros((n_options, self._n_genes))
        for surface in self._surfaces.values():
            for is_out in self._rounds(surface):
                known = Surface(surface.xy[~is_out], surface.values[~is_out])
                for option, answer in enumerate(answers(known, surface.xy[is_out])):
                    error[option] += ((answer - surface.values[is_out]) ** 2).sum(axis=0)
        return error


@final
class MeanProfile(PlaceBaseline):
    """Mean of the section's training cells, wherever the cell lies."""

    name = "mean profile"
    kind = "null"

    def _fit(self) -> None:
        self.mean_ = {name: surface.values.mean(axis=0) for name, surface in self._surfaces.items()}

    def _predict(self, name: str, xy: Floats) -> Floats:
        return np.repeat(self.mean_[name][None], len(xy), axis=0)


@final
class NearestCells(PlaceBaseline):
    """Mean of the nearest measured cells of the section.

    Parameters
    ----------
    options
        Numbers of cells to choose from.
    n_squares, share, n_rounds, random_state
        See :class:`PlaceBaseline`.
    """

    name = "kNN"
    kind = "baseline"

    def __init__(
        self, *, options: Sequence[int] = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300), **common: Any
    ) -> None:
        super().__init__(**common)
        self.options = tuple(sorted(options))

    def _fit(self) -> None:
        error = self._errors(partial(nearest_means, ks=self.options), len(self.options))
        self.k_ = self.options[int(np.argmin(error.sum(axis=1)))]

    def _predict(self, name: str, xy: Floats) -> Floats:
        return next(nearest_means(self._surfaces[name], xy, (self.k_,)))


def nearest_means(known: Surface, xy: Floats, ks: Sequence[int]) -> Iterator[Floats]:
    """Means over the k nearest known cells, for ascending k. A k above the number of cells means all cells."""
    near = nearest(known.xy, xy, max(ks))[1]
    total, n_added = np.zeros((len(xy), known.values.shape[1])), 0
    for k in ks:
        for column in near.T[n_added : min(k, near.shape[1])]:
            total += known.values[column]
        n_added = min(k, near.shape[1])
        yield total / n_added


class Falloff(NamedTuple):
    """How fast a cell's say falls with its distance, and how many cells have one."""

    power: float
    n_cells: int


@final
class InverseDistance(PlaceBaseline):
    """Mean of measured cells of the section, weighted by a power of the inverse distance.

    Parameters
    ----------
    powers, n_cells
        Powers, and numbers of nearest cells that take part, to choose from.
    n_squares, share, n_rounds, random_state
        See :class:`PlaceBaseline`.
    """

    name = "inverse distance"
    kind = "baseline"

    def __init__(
        self,
        *,
        powers: Sequence[float] = (1.0, 1.5, 2.0, 2.5, 3.0),
        n_cells: Sequence[int] = (30, 100, 300, 1000),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.options = tuple(Falloff(power, n) for n in n_cells for power in powers)

    def _fit(self) -> None:
        error = self._errors(partial(inverse_distance, options=self.options), len(self.options))
        self.choice_ = self.options[int(np.argmin(error.sum(axis=1)))]

    def _predict(self, name: str, xy: Floats) -> Floats:
        return next(inverse_distance(self._surfaces[name], xy, (self.choice_,)))


def inverse_distance(known: Surface, xy: Floats, options: Sequence[Falloff]) -> Iterator[Floats]:
    """Weighted means of known cells. Distances below half the usual one to the nearest cell count as that half."""
    distance, near = nearest(known.xy, xy, max(option.n_cells for option in options))
    closest = float(np.median(distance[:, 0])) or 1.0
    for power, n in options:
        weight = distance_weights(distance[:, :n], near[:, :n], len(known.xy), power=power, least=closest / 2)
        yield weight @ known.values


@final
class GaussianProcess(PlaceBaseline):
    """Gaussian process on coordinates, one for each gene.

    Kernel, length scales along both axes and noise are chosen on left-out squares. The answer is the mean over each
    gene's best choices: one gene's errors cannot tell them apart. Inducing cells, spread over the section, keep the
    cost at the square of their number for each cell.

    Parameters
    ----------
    scales
        Length scales to choose from, in mean spacings of cells.
    stretches
        Ratios of the length scale along y to that along x to choose from.
    noises
        Variances of the noise, in units of the surface's variance, to choose from.
    n_best
        Choices that are averaged.
    n_inducing
        Inducing cells at most, rounded down to a power of two.
    n_squares, share, n_rounds, random_state
        See :class:`PlaceBaseline`.
    """

    name = "GP on coordinates"
    kind = "baseline"

    def __init__(
        self,
        *,
        scales: Sequence[float] = (3.0, 6.0, 12.0, 24.0, 48.0),
        stretches: Sequence[float] = (1 / 9, 1.0, 9.0),
        noises: Sequence[float] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        n_best: int = 20,
        n_inducing: int = 256,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.kernels = [
            Kernel(shape, scale, stretch)
            for shape in ("rbf", "matern")
            for scale in scales
            for stretch in stretches
        ]
        self.noises, self.n_best, self.n_inducing = tuple(noises), n_best, n_inducing

    def _fit(self) -> None:
        error = self._errors(self._by_option, len(self.kernels) * len(self.noises))
        self.best_ = np.argsort(error, axis=0, kind="stable")[: self.n_best]
        """Options × genes: numbers of the choices that are averaged."""
        self._lay()

    def _lay(self) -> None:
        self._surface_weights = {name: self._weights(surface) for name, surface in self._surfaces.items()}

    def refit(self, xy: ArrayLike, section: ArrayLike | None, values: NDArray[Any]) -> Self:
        """Lay surfaces through other cells, with the choices that were made in :meth:`fit`.

        Parameters
        ----------
        xy, section, values
            As for :meth:`fit`, with the same genes.
        """
        self._take(*_check_places(xy, section), values)
        self._lay()
        return self

    def _by_option(self, known: Surface, xy: Floats) -> Iterator[Floats]:
        for kernel in self.kernels:
            process = InducingProcess(known.xy, known.values, kernel, self.n_inducing)
            features = process.features(xy)
            for noise in self.noises:
                yield process.mean + features @ process.weights(noise)

    def _weights(self, surface: Surface) -> list[tuple[InducingProcess, Floats]]:
        """Weights of each kernel's features, averaged over the choices of each gene."""
        found = []
        for number, kernel in enumerate(self.kernels):
            options = number * len(self.noises) + np.arange(len(self.noises))
            if not np.isin(self.best_, options).any():
                continue
            process = InducingProcess(surface.xy, surface.values, kernel, self.n_inducing)
            total = 0.0
            for option, noise in zip(options, self.noises, strict=True):
                is_among = (self.best_ == option).any(axis=0)
                total = total + process.weights(noise) * (is_among / len(self.best_))
            found.append((process, np.asarray(total)))
        return found

    def _predict(self, name: str, xy: Floats) -> Floats:
        answer = np.repeat(self._surfaces[name].values.mean(axis=0)[None], len(xy), axis=0)
        for process, weight in self._surface_weights[name]:
            answer += process.features(xy) @ weight
        return answer


@final
class CoordinateMLP(PlaceBaseline):
    """Perceptron from plane waves of the coordinates to all genes, squared error.

    One network for each round of left-out squares, stopped where these squares are predicted best; the answer is
    the mean of the networks. The finest wave is chosen on the same squares.

    Parameters
    ----------
    n_waves
        Numbers of octaves, from the section's size downwards, to choose from; 0 gives the coordinates alone.
    n_hidden
        Width of the two hidden layers.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs
        Epochs at most.
    patience
        Epochs without a better error before a network stops.
    n_squares, share, n_rounds, random_state
        See :class:`PlaceBaseline`.
    """

    name = "coordinate MLP"
    kind = "baseline"

    def __init__(
        self,
        *,
        n_waves: Sequence[int] = (0, 2, 4),
        n_hidden: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        max_epochs: int = 150,
        patience: int = 15,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.n_waves, self.n_hidden = tuple(n_waves), n_hidden
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_epochs, self.patience = max_epochs, patience

    def _fit(self) -> None:
        from stgen.experts._coordinate_mlp import CoordinatePerceptrons
        from stgen.nn._random import seed_from

        self._perceptrons: dict[str, CoordinatePerceptrons] = {}
        for name, surface in self._surfaces.items():
            left_out = list(self._rounds(surface))
            seeds = [seed_from(self.random_state, "coordinates", number) for number in range(len(left_out))]
            tried = [
                CoordinatePerceptrons(
                    n_octaves=n_octaves,
                    width=self.n_hidden,
                    learning_rate=self.learning_rate,
                    weight_decay=self.weight_decay,
                    max_epochs=self.max_epochs,
                    patience=self.patience,
                ).fit(surface.xy, surface.values, left_out, seeds)
                for n_octaves in self.n_waves
            ]
            self._perceptrons[name] = min(tried, key=lambda one: sum(one.errors))

    def _predict(self, name: str, xy: Floats) -> Floats:
        import torch

        return self._perceptrons[name].predict(xy, precision=torch.float64)


def place_baselines(*, random_state: int = 0, **common: Any) -> list[PlaceBaseline]:
    """All of them, nulls first; ``common`` as for :class:`PlaceBaseline`."""
    kinds = (MeanProfile, NearestCells, InverseDistance, CoordinateMLP, GaussianProcess)
    return [kind(random_state=random_state, **common) for kind in kinds]


def _check_places(xy: ArrayLike, section: ArrayLike | None) -> tuple[Floats, NDArray[np.str_]]:
    xy, section = join_rows(xy=x_and_y(xy), section=section)
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError(f"`xy` must be finite coordinates, cells × 2; got shape {xy.shape}.")
    names = np.zeros(len(xy), dtype=int) if section is None else np.asarray(section)
    if names.shape != (len(xy),):
        raise ValueError(
            f"`section` must name the section of each of the {len(xy)} cells; got {names.shape}."
        )
    return xy, names.astype(str)


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(repr(str(name)) for name in names[:n]) + (", …" if len(names) > n else "")
