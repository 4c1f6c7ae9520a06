"""What is known about unmeasured genes without a model: the baselines of imputation.

A spatial dataset measures some genes, a single-cell reference measures these and the wanted ones. Values come in
log-normalised with size factors of the *measured* genes on both sides, so that nothing about a wanted gene reaches
its prediction through the depth of a spot. The two sides differ in technology: each gene is standardised on its own
side, and what is said about a wanted gene in units of its standard deviation is told on the reference's scale.
Where that would be negative, the whole pattern of the gene is damped: cutting it off at 0 would cost correlation
(on a Visium section .03 of the best baseline here) and would make baselines look weaker than they are.

Shapes: s spots, c cells, m measured genes, w wanted genes. Spots × cells is never held: cells are looked up for a
block of spots at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stgen._by_name import join_columns, join_rows
from stgen.experts._kernel_ridge import coefficients, likeness

Floats = NDArray[np.float64]

BLOCK = 4_000_000
"""Largest number of (spot, cell) pairs that are looked at together."""


class ImputationBaseline(ABC):
    """A prediction of genes that were not measured in space, which a model must beat."""

    name: ClassVar[str]
    """How tables call it."""
    kind: ClassVar[str]
    """``"null"`` or ``"baseline"``."""
    needs_cell_type: ClassVar[bool] = False
    """Whether the reference must come with cell types."""

    _is_fitted = False

    @final
    def fit(
        self,
        spatial_measured: Any,
        reference_measured: Any,
        reference_wanted: Any,
        cell_type: ArrayLike | None = None,
    ) -> Self:
        """Take in everything that is known; spatial values of wanted genes are not.

        Parameters
        ----------
        spatial_measured
            Spots × measured genes, log-normalised; dense or sparse.
        reference_measured
            Cells × the same genes in the same order, log-normalised.
        reference_wanted
            The same cells × wanted genes, with the same size factors.
        cell_type
            Type of every cell, any values. Only some baselines need it.

        Returns
        -------
        Itself.
        """
        reference_measured, reference_wanted, cell_type = join_rows(
            reference_measured=reference_measured, reference_wanted=reference_wanted, cell_type=cell_type
        )
        spatial_measured, reference_measured = join_columns(
            spatial_measured=spatial_measured, reference_measured=reference_measured
        )
        spatial = _matrix(spatial_measured, "spatial_measured", "spots × measured genes")
        measured = _matrix(reference_measured, "reference_measured", "cells × measured genes")
        wanted = _matrix(reference_wanted, "reference_wanted", "cells × wanted genes")
        if spatial.shape[1] != measured.shape[1]:
            raise ValueError(
                "`spatial_measured` and `reference_measured` must have the same genes in the same order; "
                f"got {spatial.shape[1]} and {measured.shape[1]} genes."
            )
        if len(measured) != len(wanted):
            raise ValueError(
                "`reference_measured` and `reference_wanted` must have the same cells in the same order; "
                f"got {len(measured)} and {len(wanted)} cells."
            )
        if len(measured) < 2:
            raise ValueError(f"{self.name!r} needs at least 2 cells in the reference; got {len(measured)}.")
        self._n_spots = len(spatial)
        self._wanted_mean, self._wanted_sd = wanted.mean(axis=0), wanted.std(axis=0)
        self._fit(spatial, measured, wanted, self._types(cell_type, len(measured)))
        self._is_fitted = True
        return self

    @final
    def predict(self) -> Floats:
        """Predict the wanted genes.

        Returns
        -------
        Spots × wanted genes, not negative, on the log-normalised scale of the reference.
        """
        return damped(self.patterns())

    @final
    def patterns(self) -> Floats:
        """The same before damping: values may be negative. Correlations are those of :meth:`predict`."""
        if not self._is_fitted:
            raise RuntimeError(f"{self.name!r} is not fitted; call `fit` with spots and reference first.")
        return self._predict()

    def _types(self, cell_type: ArrayLike | None, n_cells: int) -> NDArray[Any] | None:
        if not self.needs_cell_type:
            return None
        if cell_type is None:
            raise ValueError(
                f"{self.name!r} needs `cell_type`, one label for each of the {n_cells} cells; got None. "
                "Without labels, leave this baseline out."
            )
        names = np.asarray(cell_type)
        if names.shape != (n_cells,):
            raise ValueError(
                f"`cell_type` must have one label for each of the {n_cells} cells; got shape {names.shape}."
            )
        return names.astype(str)

    @abstractmethod
    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        """Learn; the reference's wanted genes come with their mean and standard deviation in ``_wanted_*``."""

    @abstractmethod
    def _predict(self) -> Floats:
        """Answer for every spot; values may be negative."""

    def _in_units_of_the_reference(self, standard: Floats) -> Floats:
        standard *= self._wanted_sd
        standard += self._wanted_mean
        return standard


@final
class ReferenceMean(ImputationBaseline):
    """Mean of the reference for every spot. It has no pattern in space: its correlation is undefined."""

    name = "reference mean"
    kind = "null"

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        pass

    def _predict(self) -> Floats:
        return np.repeat(self._wanted_mean[None], self._n_spots, axis=0)


@final
class CellTypeMean(ImputationBaseline):
    """Mean profile of the one cell type that a spot resembles most.

    Resemblance is the cosine between the spot and the mean of the type's cells over measured genes, each gene
    standardised on its own side. One type is taken, not a mixture: this is what calling cell types gives.
    """

    name = "cell-type mean"
    kind = "null"
    needs_cell_type = True

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        self.types_, code = np.unique(np.asarray(types), return_inverse=True)
        member = sparse.csr_array(
            (np.ones(len(code)), (code, np.arange(len(code)))), shape=(len(self.types_), len(code))
        )
        size = np.bincount(code)[:, None]
        type_profile = unit_rows((member @ standardised(measured)) / size)
        self._profile = (member @ wanted) / size
        near = [
            (block @ type_profile.T).argmax(axis=1) for block in _blocks(standardised(spatial), len(size))
        ]
        self.called_ = np.concatenate(near) if near else np.empty(0, dtype=np.int64)
        """Spots: number of the type in ``types_``."""

    def _predict(self) -> Floats:
        return np.asarray(self._profile[self.called_])


@final
class CosineKNN(ImputationBaseline):
    """Mean of the reference cells that resemble a spot most.

    Resemblance is the cosine over measured genes, each gene standardised on its own side.

    Parameters
    ----------
    n_cells
        Cells that are averaged; all, if the reference has fewer.
    """

    name = "cosine kNN"
    kind = "baseline"

    def __init__(self, *, n_cells: int = 50) -> None:
        if n_cells < 1:
            raise ValueError(f"`n_cells` must be at least 1; got {n_cells}.")
        self.n_cells = n_cells

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        self._spatial, self._cells = standardised(spatial), unit_rows(standardised(measured))
        self._wanted = wanted

    def _predict(self) -> Floats:
        k, n = min(self.n_cells, len(self._cells)), len(self._cells)
        answer, start = np.empty((self._n_spots, self._wanted.shape[1])), 0
        for block in _blocks(self._spatial, n):
            # the length of a spot's own row does not change which cells are nearest
            unlike = -(block @ self._cells.T)
            near = np.argpartition(unlike, k - 1, axis=1)[:, :k] if k < n else np.tile(np.arange(n), (len(block), 1))  # fmt: skip
            ends = np.arange(0, near.size + 1, k)
            mean = sparse.csr_array((np.full(near.size, 1 / k), near.ravel(), ends), shape=(len(block), n))
            answer[start : start + len(block)] = mean @ self._wanted
            start += len(block)
        return answer


@final
class RidgeInReference(ImputationBaseline):
    """Regression of each wanted gene on the measured genes, fitted in cells and applied to spots.

    With both sides standardised, the weights are ``(XᵀX + α I)⁻¹ Xᵀ Y`` for measured X and wanted Y.

    Parameters
    ----------
    penalty
        α for each measured gene: α is this times their number.
    """

    name = "ridge in the reference"
    kind = "baseline"

    def __init__(self, *, penalty: float = 3.0) -> None:
        self.penalty = _positive(penalty, "penalty")

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        self._spatial, x = standardised(spatial), standardised(measured)
        gram = x.T @ x + self.penalty * x.shape[1] * np.eye(x.shape[1])
        self.weights_ = np.linalg.solve(gram, x.T @ standardised(wanted))
        """Measured genes × wanted genes."""

    def _predict(self) -> Floats:
        return self._in_units_of_the_reference(self._spatial @ self.weights_)


@final
class GeneKernelRidge(ImputationBaseline):
    """Regression over genes: from a gene's profile over reference cells to its pattern over spots.

    A sample is a gene, its input the standardised profile over cells, its output the standardised pattern over
    spots; measured genes are the training samples. With kernel K among measured genes, K′ from wanted to measured genes
    and patterns P of measured genes, the patterns of wanted genes are ``K′ (K + λ I)⁻¹ P``.

    Parameters
    ----------
    penalty
        λ.
    kernel
        ``"linear"``: two genes' correlation ρ over cells. ``"rbf"``: exp(ρ - 1), a Gaussian of the distance of their
        profiles. It never falls to 0, so that part of what *all* measured genes show goes to every wanted gene: spots
        differ in quality, which no reference knows.

    Notes
    -----
    Seen from the spots the linear kernel is :class:`RidgeInReference` with α = λ × number of cells. The two differ by
    how much they shrink, as a rule by a factor of ten and more.
    """

    name = "gene-wise kernel ridge"
    kind = "baseline"

    def __init__(self, *, penalty: float = 0.3, kernel: str = "linear") -> None:
        if kernel not in ("linear", "rbf"):
            raise ValueError(f"`kernel` must be 'linear' or 'rbf'; got {kernel!r}.")
        self.penalty, self.kernel = _positive(penalty, "penalty"), kernel

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        self._spatial, profile = standardised(spatial), standardised(measured)
        steepness = None if self.kernel == "linear" else 1.0
        among = likeness(profile.T @ profile / len(profile), steepness)
        to_wanted = likeness(profile.T @ standardised(wanted) / len(profile), steepness)
        self.weights_ = coefficients(among, to_wanted, self.penalty)
        """Measured genes × wanted genes: how much of each measured pattern a wanted pattern takes."""

    def _predict(self) -> Floats:
        return self._in_units_of_the_reference(self._spatial @ self.weights_)


@final
class MeanOfThree(ImputationBaseline):
    """Mean of :class:`CosineKNN`, :class:`RidgeInReference` and :class:`GeneKernelRidge`: better than each.

    Each prediction is standardised per gene over the spots, the three are averaged, and the average is told in the
    mean and standard deviation of the gene in the reference. Where the three disagree, the pattern is weaker.
    """

    name = "mean of three"
    kind = "baseline"

    def _fit(self, spatial: Floats, measured: Floats, wanted: Floats, types: NDArray[Any] | None) -> None:
        self.members_ = (CosineKNN(), RidgeInReference(), GeneKernelRidge())
        for member in self.members_:
            member.fit(spatial, measured, wanted)

    def _predict(self) -> Floats:
        total = np.zeros((self._n_spots, len(self._wanted_mean)))
        for member in self.members_:
            total += standardised(member.patterns())
        return self._in_units_of_the_reference(total / len(self.members_))


def imputation_baselines() -> list[ImputationBaseline]:
    """One of each baseline of unmeasured genes, unfitted, nulls first.

    Examples
    --------
    >>> import stgen as stg
    >>> [baseline.name for baseline in stg.baselines.imputation_baselines() if baseline.kind == "null"]
    ['reference mean', 'cell-type mean']
    """
    return [
        ReferenceMean(),
        CellTypeMean(),
        CosineKNN(),
        RidgeInReference(),
        GeneKernelRidge(),
        MeanOfThree(),
    ]


def standardised(values: Floats) -> Floats:
    """Every column with mean 0 and standard deviation 1; a constant column becomes 0."""
    sd = values.std(axis=0)
    # a constant column keeps a rounding error that is not to be blown up
    is_flat = sd <= 1e-9 * np.maximum(1.0, np.abs(values).max(axis=0, initial=0))
    return np.where(is_flat, 0.0, (values - values.mean(axis=0)) / np.where(is_flat, 1.0, sd))


def damped(values: Floats) -> Floats:
    """Columns that go below 0 are drawn towards their mean until their smallest value is 0.

    This is linear in each column, so that correlations stay. A column whose mean is not above 0 becomes 0.
    """
    lowest, mean = values.min(axis=0), values.mean(axis=0)
    is_negative = lowest < 0
    mean, room = np.maximum(mean, 0)[is_negative], (mean - lowest)[is_negative]
    # a column of one negative value has no room, and no mean above 0 either
    share = mean / np.where(room > 0, room, 1.0)
    answer = values.copy()
    answer[:, is_negative] = np.maximum((values[:, is_negative] - lowest[is_negative]) * share, 0)
    return answer


def unit_rows(values: Floats) -> Floats:
    """Every row with length 1; a row of zeros stays."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


def _blocks(values: Floats, n_others: int) -> Iterator[Floats]:
    """Rows, so many at a time that pairs with all others fit into memory."""
    size = max(1, BLOCK // max(1, n_others))
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _matrix(values: Any, name: str, shape: str) -> Floats:
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if dense.ndim != 2 or 0 in dense.shape:
        raise ValueError(f"`{name}` must be {shape}, at least one of each; got shape {dense.shape}.")
    dense = dense.astype(np.float64, copy=False)
    if not np.isfinite(dense).all():
        n_bad = int((~np.isfinite(dense).all(axis=1)).sum())
        raise ValueError(
            f"`{name}` must be finite; {n_bad} of {len(dense)} rows have NaN or infinity. Drop them first."
        )
    return dense


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be above 0; got {value}.")
    return float(value)
