"""Niches without a network: a cell's own expression, and the mean expression around it.

Most of what a tissue's regions are made of is said by the average over twenty cells, so a niche embedding has to beat
that average *under the same clusterer*. The clusterer stands here too: a better one would otherwise look like a better
embedding. Expression is on a logarithmic scale (:func:`stgen.metrics.normalize_panel`); cells are spots or cells.

n cells, T genes, p principal components, k cells in a neighbourhood (the cell itself is one of them).
"""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stgen._by_name import in_order, join_rows, names_of, x_and_y
from stgen._labels import read_labels
from stgen.data._rows import as_mask
from stgen.data._windows import neighbour_index, neighbour_mean

Covariance = Literal["auto", "diag", "full"]

N_COMPONENTS = 30
N_NEIGHBORS = 20
N_NEIGHBORS_LABELS = 30
ENOUGH_FOR_FULL = 1500
"""Cells from which a full covariance per cluster is estimated well enough to help."""


def cell_pcs(
    expression: Any,
    *,
    n_components: int = N_COMPONENTS,
    train: ArrayLike | None = None,
    random_state: int = 0,
) -> NDArray[np.float64]:
    """Principal components of each cell's own expression: what is known without looking around.

    Parameters
    ----------
    expression
        Cells × genes, log-normalised.
    n_components
        Components; never more than training cells or genes.
    train
        Mask of the cells that components are found in. ``None`` takes all.
    random_state
        Seed of the randomised decomposition that wide matrices get.

    Returns
    -------
    Array cells × components.
    """
    names, expression = names_of(expression), _dense(expression)
    if train is None:
        # scores of the randomised decomposition itself: projecting again moves its last components a little
        return cast(
            NDArray[np.float64], _pca(expression, n_components, random_state).fit_transform(expression)
        )
    if names is None:  # by position
        names, train = pd.RangeIndex(len(expression)), np.asarray(train)
    rows = as_mask(train, names, "`train`")
    if not rows.any():
        raise ValueError(f"`train` must mark at least one of {len(expression)} cells.")
    pca = _pca(expression[rows], n_components, random_state).fit(expression[rows])
    return cast(NDArray[np.float64], pca.transform(expression))


def neighbourhood_mean(
    features: ArrayLike, xy: ArrayLike, section: ArrayLike | None = None, *, n_neighbors: int = N_NEIGHBORS
) -> NDArray[np.float64]:
    """Mean of features over the nearest cells of the section, the cell itself among them.

    Parameters
    ----------
    features
        Cells × features, such as :func:`cell_pcs`.
    xy
        Coordinates, cells × 2.
    section
        Section of every cell. ``None`` means one section.
    n_neighbors
        Cells that are averaged. 1 is the cell alone.

    Returns
    -------
    Array like ``features``.
    """
    features, xy, section = join_rows(features=features, xy=x_and_y(xy), section=section)
    features = np.asarray(features, dtype=np.float64)
    if n_neighbors < 1:
        raise ValueError(f"`n_neighbors` counts the cell itself and must be at least 1; got {n_neighbors!r}.")
    if n_neighbors == 1:
        return features.copy()
    others = neighbour_mean(features, neighbour_index(xy, section, n_neighbors=n_neighbors - 1))
    return (features + (n_neighbors - 1) * others) / n_neighbors


def cluster_niches(
    representation: ArrayLike,
    n_clusters: int,
    random_state: int = 0,
    *,
    covariance: Covariance = "auto",
    n_components: int = N_COMPONENTS,
) -> NDArray[np.int64]:
    """Cut a representation of niches into clusters with a Gaussian mixture, the same way for every method.

    Parameters
    ----------
    representation
        Cells × features. Wider ones are first reduced to their ``n_components`` principal components.
    n_clusters
        Number of clusters; a comparison fixes it to the number of labels.
    random_state
        Seed of the start.
    covariance
        ``"full"``, ``"diag"``, or ``"auto"``: full from 1,500 cells, diagonal below.
    n_components
        Widest representation that is clustered as it is.

    Returns
    -------
    Cluster of every cell, from 0.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(representation, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"A representation must be finite, cells × features; got shape {values.shape}.")
    if not 1 <= n_clusters <= len(values):
        raise ValueError(
            f"`n_clusters` must lie between 1 and the number of cells, {len(values)}; got {n_clusters!r}."
        )
    if covariance not in ("auto", "diag", "full"):
        raise ValueError(f"`covariance` must be 'auto', 'diag' or 'full'; got {covariance!r}.")
    if values.shape[1] > n_components:
        values = cell_pcs(values, n_components=n_components)
    kind = covariance if covariance != "auto" else ("full" if len(values) >= ENOUGH_FOR_FULL else "diag")
    # in units of the mean variance, so that a representation can be multiplied by anything
    spread = float(np.sqrt(values.var(axis=0).mean())) or 1.0
    mixture = GaussianMixture(n_clusters, covariance_type=kind, reg_covar=1e-4, random_state=random_state)
    return cast(NDArray[np.int64], mixture.fit_predict(values / spread).astype(np.int64))


class NeighbourLabels:
    """Labels carried to other sections by logistic regression on a cell's components and their mean around it.

    Parameters
    ----------
    n_components
        Principal components, found in the training cells.
    n_neighbors
        Cells of the neighbourhood, the cell itself among them. 1 uses the cell alone.
    random_state
        Seed of the randomised decomposition that wide matrices get.
    """

    def __init__(
        self,
        *,
        n_components: int = N_COMPONENTS,
        n_neighbors: int = N_NEIGHBORS_LABELS,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.random_state = random_state

    def fit(
        self, expression: Any, labels: ArrayLike, xy: ArrayLike, section: ArrayLike | None = None
    ) -> Self:
        """Learn from training cells.

        Parameters
        ----------
        expression
            Cells × genes, log-normalised. Cells without a label belong to the neighbourhoods.
        labels
            A label per cell; cells with a missing one (in any spelling) are not learned from.
        xy
            Coordinates, cells × 2.
        section
            Section of every cell. ``None`` means one section.
        """
        from sklearn.linear_model import LogisticRegression

        self._genes = names_of(expression, 1)
        expression, labels, xy, section = join_rows(
            expression=expression, labels=labels, xy=x_and_y(xy), section=section
        )
        expression = _dense(expression)
        if np.shape(labels) != (len(expression),):
            raise ValueError(
                f"There must be a label per cell: {len(expression)} cells, labels {np.shape(labels)}."
            )
        text = read_labels(labels, "`labels`")
        is_known = text.notna().to_numpy()
        known = text.to_numpy()[is_known].astype(str)
        if len(np.unique(known)) < 2:
            raise ValueError(
                f"Labels must have at least two classes to be told apart; found {[str(one) for one in np.unique(known)]}."
            )
        self.pca_ = _pca(expression, self.n_components, self.random_state).fit(expression)
        features = self._features(expression, xy, section)
        self.model_ = LogisticRegression(max_iter=2000).fit(features[is_known], known)
        return self

    def predict(self, expression: Any, xy: ArrayLike, section: ArrayLike | None = None) -> NDArray[np.str_]:
        """The most probable label of every cell.

        Parameters
        ----------
        expression
            Cells × genes, the genes of training in their order.
        xy
            Coordinates, cells × 2.
        section
            Section of every cell. ``None`` means one section.
        """
        probabilities = self.probabilities(expression, xy, section)
        return cast(NDArray[np.str_], self.classes_[probabilities.argmax(axis=1)])

    def probabilities(
        self, expression: Any, xy: ArrayLike, section: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Probability of every class, cells × ``classes_``.

        Parameters
        ----------
        expression
            Cells × genes, the genes of training in their order.
        xy
            Coordinates, cells × 2.
        section
            Section of every cell. ``None`` means one section.
        """
        if not hasattr(self, "model_"):
            raise RuntimeError("NeighbourLabels has not been fitted; call `fit` first.")
        expression, xy, section = join_rows(expression=expression, xy=x_and_y(xy), section=section)
        if self._genes is not None:
            expression = in_order(expression, self._genes, "`expression`", axis=1, of="genes")
        features = self._features(_dense(expression), xy, section)
        return cast(NDArray[np.float64], self.model_.predict_proba(features))

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Names of the classes, in the order of the probabilities."""
        return cast(NDArray[np.str_], self.model_.classes_)

    def _features(self, expression: NDArray[np.float64], xy: ArrayLike, section: ArrayLike | None) -> Any:
        pcs = self.pca_.transform(expression)
        if self.n_neighbors == 1:
            return pcs
        around = neighbourhood_mean(pcs, xy, section, n_neighbors=self.n_neighbors)
        return np.concatenate([pcs, around], axis=1)


def _pca(values: NDArray[np.float64], n_components: int, random_state: int) -> Any:
    from sklearn.decomposition import PCA

    return PCA(min(n_components, *values.shape), random_state=random_state)


def _dense(expression: Any) -> NDArray[np.float64]:
    """Cells × genes as numbers, checked."""
    values = expression.toarray() if hasattr(expression, "toarray") else expression
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"Expression must be cells × genes; got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("Expression must be finite; replace NaN and infinite values, or drop these cells.")
    return values
