"""Agreement of clusters with labels (AMI, ARI, NMI) and of predicted with true labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stgen._by_name import join_rows
from stgen._labels import cast_hint, read_labels


def ami(truth: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted mutual information, 0 by chance, 1 for the same partition.

    Parameters
    ----------
    truth, clusters
        A label per spot; the names of the clusters do not matter.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*_check_labels(truth, clusters)))


def ari(truth: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted Rand index, 0 by chance, 1 for the same partition.

    Parameters
    ----------
    truth, clusters
        A label per spot; the names of the clusters do not matter.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_check_labels(truth, clusters)))


def nmi(truth: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information (arithmetic mean of the entropies); grows with the number of clusters.

    Parameters
    ----------
    truth, clusters
        A label per spot; the names of the clusters do not matter.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_check_labels(truth, clusters)))


def macro_f1(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean F1 over the classes that occur in truth or prediction, each class counting the same.

    Parameters
    ----------
    truth, prediction
        A label per spot.
    """
    return float(np.mean(list(f1_per_class(truth, prediction).values())))


def f1_per_class(truth: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """F1 of every class that occurs in truth or prediction; 0 for a class that is never right.

    Parameters
    ----------
    truth, prediction
        A label per spot.
    """
    truth, prediction = _check_labels(truth, prediction)
    classes = np.union1d(truth, prediction)
    hits = {c: 2 * ((truth == c) & (prediction == c)).sum() for c in classes}
    return {str(c): float(hits[c] / ((truth == c).sum() + (prediction == c).sum())) for c in classes}


def balanced_accuracy(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean recall over the classes of the truth.

    Parameters
    ----------
    truth, prediction
        A label per spot.
    """
    truth, prediction = _check_labels(truth, prediction)
    return float(np.mean([(prediction[truth == c] == c).mean() for c in np.unique(truth)]))


def _check_labels(truth: ArrayLike, other: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, other = join_rows(truth=truth, labels=other)
    shapes = np.shape(truth), np.shape(other)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise ValueError(
            f"Labels must be two vectors of the same length; got shapes {shapes[0]} and {shapes[1]}."
        )
    if shapes[0] == (0,):
        raise ValueError("There are no labels to compare; check the rows that were selected.")
    for labels in (truth, other):
        n_missing = int(read_labels(labels).isna().sum())
        if n_missing:
            raise ValueError(
                f"{n_missing} label(s) are missing{cast_hint(labels)}; drop these spots from both before comparing."
            )
    return read_labels(truth).to_numpy().astype(str), read_labels(other).to_numpy().astype(str)
