"""Which rows a user means: the one reader of masks, regions and training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stgen._by_name import as_text, check_unique, in_order, some

if TYPE_CHECKING:
    from anndata import AnnData

TRUTH = {True: True, False: False, "true": True, "false": False}
"""Spellings of a mask, in lower case; 1 and 0 are the same keys as True and False."""


def read_mask(adata: AnnData, value: Any, what: str, *, of: str = "cells") -> NDArray[np.bool_]:
    """Rows of ``adata`` as a mask: the column of that name, or what :func:`as_mask` takes."""
    if not isinstance(value, str):
        return as_mask(value, adata.obs_names, what, of=of)
    if value not in adata.obs:
        raise KeyError(f"obs[{value!r}] does not exist; obs has {list(adata.obs.columns)}.")
    # a column has its place already, even where names repeat
    return _truth(pd.Series(adata.obs[value].array), adata.n_obs, what, of, where=f" in obs[{value!r}]")


def as_mask(value: Any, names: pd.Index, what: str, *, of: str = "cells") -> NDArray[np.bool_]:
    """Rows as a mask (n,).

    Parameters
    ----------
    value
        True or False for each row, a Series by name, else by position: booleans of any kind, 0 and 1, or words in upper
        or lower case. Or names of the rows.
    names
        Names of all rows.
    what, of
        How a message calls the value and the rows.

    Raises
    ------
    ValueError
        If values are missing or neither True nor False, or names are not there or repeat. Numbers of rows are refused:
        what they count from is not known once rows were selected.
    """
    if isinstance(value, set | frozenset):
        value = list(value)
    if np.ndim(value) != 1:
        raise ValueError(
            f"{_expected(len(names), what, of)}; got {type(value).__name__} of shape {np.shape(value)}."
        )
    column = value if isinstance(value, pd.Series) else pd.Series(value)
    if all(isinstance(one, str) and one.lower() not in TRUTH for one in column):
        return _named(as_text(pd.Index(column)), names, what, of)
    # an array is taken by position, whatever the names are
    column = in_order(column, names, what, of=of) if column is value else column
    return _truth(column, len(names), what, of)


def row_numbers(adata: AnnData, indices: Any) -> NDArray[np.int64]:
    """Numbers of rows, in the order given; or of the rows of a mask or of names, as :func:`as_mask` takes them."""
    given, n = np.asarray(indices), adata.n_obs
    if given.dtype.kind not in "iu":
        return np.flatnonzero(as_mask(indices, adata.obs_names, "`indices`", of="spots"))
    if n > 2 and len(given) == n and set(np.unique(given)) <= {0, 1}:
        raise ValueError(
            f"`indices` has only 0 and 1, one for each of the {n} spots. If it is a mask, give `.astype(bool)`."
        )
    if len(given) and (given.min() < 0 or given.max() >= n):
        raise IndexError(f"`indices` must be in 0…{n - 1}; got {given.min()} to {given.max()}.")
    return given.astype(np.int64)


def _truth(column: pd.Series, n: int, what: str, of: str, *, where: str = "") -> NDArray[np.bool_]:
    """True or False for each row, as it was spelled."""
    expected, found = _expected(n, what, of), f"got {column.dtype} of shape {column.shape}"
    is_number = pd.api.types.is_integer_dtype(column.dtype)
    hint = f" Instead of numbers of {of} give their names: `adata.obs_names[numbers]`." if is_number else ""
    if len(column) != n:
        raise ValueError(f"{expected}; {found}.{hint}")
    n_missing = int(column.isna().sum())
    if n_missing:
        raise ValueError(
            f"{expected}; {n_missing} of {n} are missing{where}. Say what they are: `.fillna(False)`."
        )
    said = [TRUTH.get(one.lower() if isinstance(one, str) else one) for one in column]
    strange = column[[one is None for one in said]]
    if len(strange):
        listed = some(_shown(one) for one in strange.unique())
        raise ValueError(f"{expected}; {found} with {listed}{where}.{hint}")
    return np.array(said, dtype=bool)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _named(asked: pd.Index, names: pd.Index, what: str, of: str) -> NDArray[np.bool_]:
    """Rows of these names."""
    names = as_text(names)
    strange = asked[~asked.isin(names)]
    if len(strange):
        raise ValueError(
            f"{_expected(len(names), what, of)}, or name some of them; {len(strange)} of {len(asked)} values are neither, "
            f"such as {some(strange)}. Names are such as {some(names)}."
        )
    check_unique(names, f"Names of the {of} that {what} is joined to", "Make them unique first.")
    return np.asarray(names.isin(asked))


def _expected(n: int, what: str, of: str) -> str:
    return f"{what} must say True or False for each of the {n} {of}"
