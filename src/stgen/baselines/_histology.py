"""Baselines for H&E → counts that are solved in closed form.

Nulls: the mean profile, and the places alone. Oracles: the depth of the spot, and the truth next door.
Baseline: ridge regression on the principal components of the histology features.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from stgen.data._windows import neighbour_index, neighbour_mean

from ._base import HistologyBaseline, Rows

Floats = NDArray[np.float64]


@final
class SectionMean(HistologyBaseline):
    """The mean profile of the training spots, the same for every spot.

    Its correlation over spots is undefined (NaN): it knows the genes and nothing of the place. Errors are compared
    with it.
    """

    name = "section mean"
    kind = "null"

    def _fit(self, rows: Rows, y: Floats) -> None:
        self.mean_ = y.mean(axis=0)

    def _predict(self, rows: Rows) -> Floats:
        return np.tile(self.mean_, (len(rows.xy), 1))


@final
class DepthOracle(HistologyBaseline):
    """The log of the spot's true panel total, copied to every gene: what depth alone is worth.

    On the raw scale it beats published models, which is why the headline is on the normalized scale.
    """

    name = "depth oracle"
    kind = "oracle"
    has_units = False

    def _fit(self, rows: Rows, y: Floats) -> None:
        self.n_genes_ = y.shape[1]

    def _predict(self, rows: Rows) -> Floats:
        assert rows.counts is not None
        total = rows.counts.sum(axis=1, keepdims=True)
        return np.tile(np.log(np.maximum(total, 1)), (1, self.n_genes_))


@final
class CoordinateKNN(HistologyBaseline):
    """The mean of the training spots that lie nearest in their own section's frame; no image.

    Between sister sections of one patient this null is strong, and a model that is scored there has to beat it.

    Parameters
    ----------
    n_neighbors
        Training spots per mean, out of all training sections.
    center
        Measure every section from the mean of its own spots. With ``False`` coordinates are used as they are, which
        is only fair if sections were registered to each other.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "coordinate kNN"
    kind = "null"
    needs_places = True

    def __init__(
        self, *, n_neighbors: int = 10, center: bool = True, scale: str | None = None, random_state: int = 0
    ) -> None:
        super().__init__(scale=scale, random_state=random_state)
        if n_neighbors < 1:
            raise ValueError(f"`n_neighbors` must be at least 1; got {n_neighbors}.")
        self.n_neighbors = n_neighbors
        self.center = center

    def _fit(self, rows: Rows, y: Floats) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.near_ = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(y))).fit(self._frame(rows))
        self.y_ = y

    def _predict(self, rows: Rows) -> Floats:
        return neighbour_mean(self.y_, self.near_.kneighbors(self._frame(rows), return_distance=False))

    def _frame(self, rows: Rows) -> Floats:
        xy = rows.xy.copy()
        if self.center:
            for section in np.unique(rows.section):
                here = rows.section == section
                xy[here] -= xy[here].mean(axis=0)
        return xy


@final
class NeighbourTruth(HistologyBaseline):
    """The mean of the true values of the nearest spots: what smoothness alone is worth.

    Parameters
    ----------
    n_neighbors
        Spots per mean, within the section; the spot itself is not among them.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "neighbours' truth"
    kind = "oracle"
    needs_places = True

    def __init__(self, *, n_neighbors: int = 6, scale: str | None = None, random_state: int = 0) -> None:
        super().__init__(scale=scale, random_state=random_state)
        self.n_neighbors = n_neighbors

    def _fit(self, rows: Rows, y: Floats) -> None:
        pass  # it only needs the target of the scale

    def _predict(self, rows: Rows) -> Floats:
        assert rows.counts is not None
        index = neighbour_index(rows.xy, rows.section, n_neighbors=self.n_neighbors)
        return neighbour_mean(self.on_scale(rows.counts), index)


@final
class RidgeOnHistology(HistologyBaseline):
    """Ridge regression on principal components of the standardised histology features, with intercept.

    The penalty, one for all genes, is the one with the smallest leave-one-out error.

    Parameters
    ----------
    n_components
        Principal components at most; fewer if there are fewer features or spots.
    alphas
        Penalties to choose from. ``None`` means 11 values from 10⁰ to 10⁵.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "ridge"
    kind = "baseline"
    needs_histology = True

    def __init__(
        self, *, n_components: int = 256, alphas: Any = None, scale: str | None = None, random_state: int = 0
    ) -> None:
        super().__init__(scale=scale, random_state=random_state)
        self.n_components = n_components
        self.alphas = np.logspace(0, 5, 11) if alphas is None else np.asarray(alphas, dtype=np.float64)

    def _fit(self, rows: Rows, y: Floats) -> None:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        assert rows.histology is not None
        features = rows.histology.astype(np.float64)
        n_spots, n_features = features.shape
        self.pipeline_ = make_pipeline(
            StandardScaler(),
            PCA(
                min(self.n_components, n_features, n_spots - 1),
                svd_solver="covariance_eigh" if n_spots > n_features else "full",
            ),
            # never "eigen": that is spots × spots
            RidgeCV(self.alphas, gcv_mode="svd"),
        )
        self.pipeline_.fit(features, y)
        self.alpha_ = float(self.pipeline_[-1].alpha_)

    def _predict(self, rows: Rows) -> Floats:
        assert rows.histology is not None
        return np.asarray(self.pipeline_.predict(rows.histology.astype(np.float64))).reshape(len(rows.xy), -1)
