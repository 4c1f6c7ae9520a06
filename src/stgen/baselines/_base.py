"""What every baseline for H&E → counts promises: fit on training rows, predict from what it may see.

A baseline takes plain arrays, or tables that are joined by name, and answers with arrays. All of them get the same feature array (the caller appends the features of
neighbouring spots if the model gets them), so that a comparison is one of methods and not of inputs.

Three kinds. A *null* sees no histology: a model that does not beat it has learned nothing from the image.
A *baseline* sees the same histology as the model. An *oracle* looks at the truth of the rows it predicts; it is
not a competitor but says what a property of the data alone is worth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stgen._by_name import in_order, join_rows, names_of, x_and_y
from stgen.metrics import log_counts, normalize_panel, panel_target

KINDS = ("null", "baseline", "oracle")
SCALES = ("normalized", "raw", "counts")


class Rows(NamedTuple):
    """The spots that a baseline is fitted on or asked about."""

    histology: NDArray[Any] | None
    """Spots × features."""
    xy: NDArray[np.float64]
    """Spots × 2, µm."""
    section: NDArray[Any]
    """Section of every spot, as text."""
    counts: NDArray[np.float64] | None
    """Spots × genes of the panel; when predicting, only an oracle is given them."""


class HistologyBaseline(ABC):
    """A prediction that a model of H&E → counts must beat.

    Parameters
    ----------
    scale
        Scale of the output: ``"normalized"`` (:func:`stgen.metrics.normalize_panel` with the median panel total of
        the training spots), ``"raw"`` (log1p of counts) or, for those that predict them, ``"counts"``.
    random_state
        Seed. The same seed gives the same result; the global random state is left as found.
    """

    name: ClassVar[str]
    """How tables call it."""
    kind: ClassVar[str]
    """``"null"``, ``"baseline"`` or ``"oracle"``."""
    needs_histology: ClassVar[bool] = False
    """Whether it cannot work without a histology embedding."""
    needs_places: ClassVar[bool] = False
    """Whether it looks at where spots are."""
    has_units: ClassVar[bool] = True
    """Whether its values can be compared in size with the truth; if not, only correlations mean something."""
    scales: ClassVar[tuple[str, ...]] = ("normalized", "raw")
    """Scales it can answer on."""

    def __init__(self, *, scale: str | None = None, random_state: int = 0) -> None:
        scale = self.scales[0] if scale is None else scale
        if scale not in self.scales:
            raise ValueError(
                f"`scale` of {type(self).__name__} must be one of {', '.join(map(repr, self.scales))}; got {scale!r}."
            )
        self.scale = scale
        self.random_state = random_state
        self.target_: float | None = None
        self._widths: tuple[int | None, int] = (None, 0)
        self._columns: dict[str, pd.Index | None] = {}

    def fit(self, histology: ArrayLike | None, counts: Any, xy: ArrayLike, section: ArrayLike | None) -> Self:
        """Learn from training rows.

        Parameters
        ----------
        histology
            Spots × features; ``None`` is enough for a null or an oracle.
        counts
            Raw counts, spots × genes of the panel; dense or sparse.
        xy
            Coordinates, spots × 2, in µm.
        section
            Section of every spot. ``None`` means one section.
        """
        self._columns = {"histology": names_of(histology, 1), "counts": names_of(counts, 1)}
        rows = self._check(histology, xy, section, counts)
        assert rows.counts is not None
        if len(rows.xy) < 2:
            raise ValueError(f"{self.name!r} needs at least 2 training spots; got {len(rows.xy)}.")
        self.target_ = panel_target(rows.counts)
        self._widths = (None if rows.histology is None else rows.histology.shape[1], rows.counts.shape[1])
        self._fit(rows, self.on_scale(rows.counts))
        return self

    def predict(
        self, histology: ArrayLike | None, xy: ArrayLike, section: ArrayLike | None, counts: Any = None
    ) -> NDArray[np.float64]:
        """Predict other rows.

        Parameters
        ----------
        histology, xy, section
            As for :meth:`fit`.
        counts
            True counts of these rows. Only an oracle may look at them; everything else works without.

        Returns
        -------
        Spots × genes on the scale named by ``scale``.
        """
        if self.target_ is None:
            raise RuntimeError(f"{self.name!r} is not fitted; call `fit` with training rows first.")
        if self.kind == "oracle" and counts is None:
            raise ValueError(
                f"{self.name!r} is an oracle and needs the true `counts` of the rows it predicts."
            )
        histology = self._as_fitted("histology", histology)
        counts = self._as_fitted("counts", counts if self.kind == "oracle" else None)
        rows = self._check(histology, xy, section, counts)
        n_features, n_genes = self._widths
        if rows.counts is not None and rows.counts.shape[1] != n_genes:
            raise ValueError(f"{self.name!r} was fitted on {n_genes} genes; got {rows.counts.shape[1]}.")
        if rows.histology is not None and self.needs_histology and rows.histology.shape[1] != n_features:
            raise ValueError(
                f"{self.name!r} was fitted on {n_features} histology features; got {rows.histology.shape[1]}. "
                "Use the same encoder and the same neighbour features."
            )
        return self._predict(rows)

    def on_scale(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts on the scale of the output."""
        if self.scale == "counts":
            return counts
        return (
            normalize_panel(counts, target=self.target_) if self.scale == "normalized" else log_counts(counts)
        )

    def _as_fitted(self, name: str, value: Any) -> Any:
        """A table with the columns of the training rows, where both have names."""
        columns = self._columns[name]
        return value if columns is None else in_order(value, columns, f"`{name}`", axis=1, of="columns")

    @abstractmethod
    def _fit(self, rows: Rows, y: NDArray[np.float64]) -> None:
        """Learn ``y``, the training counts on the scale of the output."""

    @abstractmethod
    def _predict(self, rows: Rows) -> NDArray[np.float64]:
        """Answer on the scale of the output."""

    def _check(
        self, histology: ArrayLike | None, xy: ArrayLike, section: ArrayLike | None, counts: Any
    ) -> Rows:
        histology, counts, xy, section = join_rows(
            histology=histology, counts=counts, xy=x_and_y(xy), section=section
        )
        xy = np.asarray(xy, dtype=np.float64)
        if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise ValueError(f"`xy` must be finite coordinates, spots × 2; got shape {xy.shape}.")
        n_spots = len(xy)
        section = np.zeros(n_spots, dtype=int) if section is None else np.asarray(section)
        if section.shape != (n_spots,):
            raise ValueError(
                f"`section` must name the section of each of the {n_spots} spots; got {section.shape}."
            )
        if counts is not None:
            counts = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
            if counts.ndim != 2 or len(counts) != n_spots:
                raise ValueError(
                    f"`counts` must be spots × genes with {n_spots} spots; got shape {counts.shape}."
                )
            counts = counts.astype(np.float64)
        return Rows(self._check_histology(histology, n_spots), xy, section.astype(str), counts)

    def _check_histology(self, histology: ArrayLike | None, n_spots: int) -> NDArray[Any] | None:
        if histology is None:
            if self.needs_histology:
                raise ValueError(f"{self.name!r} needs histology features, spots × features; got None.")
            return None
        features = np.asarray(histology)
        if features.ndim != 2 or len(features) != n_spots:
            raise ValueError(
                f"`histology` must be spots × features with {n_spots} spots; got shape {features.shape}."
            )
        if self.needs_histology and not np.isfinite(features).all():
            n_bad = int((~np.isfinite(features).all(axis=1)).sum())
            raise ValueError(
                f"`histology` must be finite; {n_bad} of {n_spots} spots have NaN or infinite features."
            )
        return features
