"""x and y of spots, from an array or from a table whose columns have names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from stgen._by_name import some, x_and_y
from stgen._warn import warn

N_ROWS_AT_ONCE = 4096


def points(
    value: Any,
    what: str,
    *,
    names: Sequence[str] | pd.Index | None = None,
    rows_are: str = "spots",
    remedy: str = "",
) -> NDArray[np.float64]:
    """X and y, (n, 2) float64, of an array or a table; a constant third column is dropped, and said.

    Parameters
    ----------
    value
        Array, sparse matrix, list of pairs, or DataFrame. Columns of a DataFrame that are called x and y (or as readers
        of the field call them) are found by name, in any order; others are taken in their order.
    what
        How messages call it.
    names
        Names of the rows, for messages.
    rows_are
        What rows are, for messages.
    remedy
        What to do about missing places; by default, to drop the rows.
    """
    value = x_and_y(value, what, depth=True)
    array = value.toarray() if sparse.issparse(value) else np.asarray(value)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise ValueError(f"{what} must be {rows_are} × 2 (x, y); its shape is {array.shape}.")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be numbers; its dtype is {array.dtype}.")
    xy = array.astype(np.float64)
    if xy.shape[1] == 3:
        xy = _without_depth(xy, what, rows_are)
    bad = ~finite_rows(xy)
    if bad.any():
        which = "" if names is None else f", such as {some(np.asarray(names, dtype=object)[bad])}"
        raise ValueError(
            f"{what} must be finite; {int(bad.sum())} of {len(xy)} {rows_are} have NaN or infinite "
            f"coordinates{which}. {remedy or f'Drop these {rows_are}.'}"
        )
    return xy


def _without_depth(xyz: NDArray[np.float64], what: str, rows_are: str) -> NDArray[np.float64]:
    z = xyz[:, 2]
    if len(z) and np.isfinite(z).any() and not (z == z[0]).all():
        raise ValueError(
            f"{what} must be {rows_are} × 2 (x, y); its shape is {xyz.shape}, and the third column varies from "
            f"{np.nanmin(z):.6g} to {np.nanmax(z):.6g}. If these are sections of a stack, write it to a column of `obs` and "
            "name that with `library_key=`; or keep the first two columns under a key of their own and name that with "
            "`spatial_key=`."
        )
    warn(f"{what} has three columns; the third is the same for all {rows_are} and is left out.")
    return xyz[:, :2]


def finite_rows(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows are finite, without a mask of the size of the array."""
    starts = range(0, len(array), N_ROWS_AT_ONCE)
    blocks = [np.isfinite(array[start : start + N_ROWS_AT_ONCE]).all(axis=1) for start in starts]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=bool)
