"""The default set of baselines, and one call that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stgen._by_name import join_rows, x_and_y

from ._base import HistologyBaseline
from ._histology import CoordinateKNN, DepthOracle, NeighbourTruth, RidgeOnHistology, SectionMean
from ._mlp import CountClassifier, MLPOnHistology
from ._retrieval import ContrastiveRetrieval

DEFAULT: tuple[type[HistologyBaseline], ...] = (
    SectionMean,
    CoordinateKNN,
    RidgeOnHistology,
    MLPOnHistology,
    CountClassifier,
    ContrastiveRetrieval,
    DepthOracle,
    NeighbourTruth,
)


def histology_baselines(
    *, scale: str = "normalized", histology: bool = True, random_state: int = 0
) -> list[HistologyBaseline]:
    """Unfitted nulls, baselines and oracles for H&E → counts.

    Parameters
    ----------
    scale
        ``"normalized"`` or ``"raw"``: what those that do not predict counts are fitted to.
    histology
        Whether there are histology features; without them only nulls and oracles remain.
    random_state
        Seed. The same seed gives the same result; the global random state is left as found.

    Examples
    --------
    >>> from stgen.baselines import histology_baselines
    >>> [baseline.name for baseline in histology_baselines(histology=False)]
    ['section mean', 'coordinate kNN', 'depth oracle', "neighbours' truth"]
    """
    if scale not in ("normalized", "raw"):
        raise ValueError(f"`scale` must be 'normalized' or 'raw'; got {scale!r}.")
    return [
        kind(scale=scale if scale in kind.scales else None, random_state=random_state)
        for kind in DEFAULT
        if histology or not kind.needs_histology
    ]


def fit_predict(
    baselines: Sequence[HistologyBaseline],
    histology: NDArray[Any] | None,
    counts: Any,
    xy: ArrayLike,
    section: ArrayLike,
    *,
    train: NDArray[Any],
    test: NDArray[Any],
) -> dict[str, NDArray[np.float64]]:
    """Fit every baseline on training rows and predict the test rows.

    Parameters
    ----------
    baselines
        From :func:`histology_baselines`.
    histology, counts, xy, section
        All rows; see :meth:`HistologyBaseline.fit`.
    train, test
        Rows (mask or numbers). Counts of test rows reach oracles only.

    Returns
    -------
    Prediction of the test rows by name, each on the scale that its baseline declares.

    Examples
    --------
    >>> import stgen as stg
    >>> from stgen.baselines import RidgeOnHistology, fit_predict
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=100, n_genes=20)
    >>> is_test = (adata.obs["section"] == "s2").to_numpy()
    >>> answer = fit_predict(
    ...     [RidgeOnHistology()],
    ...     adata.obsm["X_histology"],
    ...     adata.X,
    ...     adata.obsm["spatial"],
    ...     adata.obs["section"],
    ...     train=~is_test,
    ...     test=is_test,
    ... )
    >>> answer["ridge"].shape
    (100, 20)
    """
    histology, counts, xy, section, train, test = join_rows(
        histology=histology, counts=counts, xy=x_and_y(xy), section=section, train=train, test=test
    )
    xy, section, train, test = map(np.asarray, (xy, section, train, test))
    counts = counts.tocsr() if sparse.issparse(counts) else np.asarray(counts)
    features = None if histology is None else np.asarray(histology)
    predictions = {}
    for baseline in baselines:
        seen = features if baseline.needs_histology else None
        baseline.fit(None if seen is None else seen[train], counts[train], xy[train], section[train])
        predictions[baseline.name] = baseline.predict(
            None if seen is None else seen[test],
            xy[test],
            section[test],
            counts=counts[test] if baseline.kind == "oracle" else None,
        )
    return predictions
