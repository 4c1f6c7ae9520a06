"""The two scales on which counts are compared.

``raw`` is log1p of the count: most of its correlation is the depth of the spot, copied to every gene.
``normalized`` removes the depth: the count is first divided by the spot's total over the panel, so that the
scale needs nothing but the panel itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stgen._by_name import named_like

from ._arrays import check_matrix


def normalize_panel(counts: Any, *, target: float | None = None) -> Any:
    """The normalized scale: log1p(count / panel total of the spot × target).

    Parameters
    ----------
    counts
        Spots × genes of the panel, not negative (a predicted mean need not be whole); dense or sparse.
    target
        Panel total that every spot is brought to. Use :func:`panel_target` of the *training* spots for truth
        and prediction alike. ``None`` means the median of these spots.

    Returns
    -------
    Array (or sparse matrix, or table with the same names) of the same shape. A spot without any count stays 0.

    Examples
    --------
    >>> import numpy as np, stgen as stg
    >>> np.expm1(stg.metrics.normalize_panel(np.array([[1, 3], [2, 2]]), target=8.0)).round(6)
    array([[2., 6.],
           [4., 4.]])
    """
    given, counts = counts, _check_counts(counts)
    total = _panel_total(counts)
    target = panel_target(counts) if target is None else float(target)
    if not (np.isfinite(target) and target > 0):
        raise ValueError(f"`target` must be a panel total above 0; got {target}.")
    factor = np.divide(target, total, out=np.zeros_like(total), where=total > 0)
    if sparse.issparse(counts):
        return (sparse.diags_array(factor) @ counts).log1p().tocsr()
    return named_like(np.log1p(counts * factor[:, None]), given)


def log_counts(counts: Any) -> Any:
    """The raw scale: log1p of the counts.

    Parameters
    ----------
    counts
        Spots × genes, not negative; dense or sparse.

    Returns
    -------
    Array (or sparse matrix, or table with the same names) of the same shape.
    """
    given, counts = counts, _check_counts(counts)
    return counts.log1p().tocsr() if sparse.issparse(counts) else named_like(np.log1p(counts), given)


def panel_target(counts: Any) -> float:
    """Median panel total of the spots: the target of :func:`normalize_panel`, from training spots.

    Parameters
    ----------
    counts
        Spots × genes of the panel; dense or sparse.
    """
    target = float(np.median(_panel_total(_check_counts(counts))))
    if not target > 0:
        raise ValueError("More than half of the spots have no count in the panel; drop empty spots first.")
    return target


def _panel_total(counts: Any) -> np.ndarray:
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def _check_counts(counts: Any) -> Any:
    counts = check_matrix(counts, "counts").astype(np.float64)
    values = counts.data if sparse.issparse(counts) else counts
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError(
            "`counts` must be finite and not negative; log-transformed or scaled values are not counts."
        )
    return counts
