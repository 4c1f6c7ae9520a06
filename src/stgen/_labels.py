"""One spelling for every label, and one meaning of a missing one.

Labels come from files, clusterings and casts: the same class is 1 here, 1.0 there (a column of integers with a gap) and
"1" elsewhere, and a gap is NaN, ``None``, ``pd.NA`` or the text that a cast made of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stgen._warn import warn

CAST = ("nan", "NaN", "None", "<NA>", "NaT", "")
"""Text that a cast to text, or a file, makes of a missing value."""


def read_labels(values: Any, name: str | None = None) -> pd.Series:
    """Labels as text in one spelling, ``None`` where they are missing.

    Parameters
    ----------
    values
        Labels: a Series (its index is kept), categorical, array or list.
    name
        How a warning calls them, for example ``obs['region']``. Without it text that counts as missing is not mentioned.
    """
    column = _column(values)
    codes, unique = pd.factorize(column)
    if name is not None:
        _warn_of_cast(np.asarray(unique, dtype=object), codes, name)
    spelt = np.array([*map(spelling, unique), None], dtype=object)
    return pd.Series(spelt[codes], index=column.index, name=column.name, dtype=object)


def spelling(label: Any) -> str | None:
    """One label as text: whole numbers without a point, as they are in a column of integers; ``None`` if missing."""
    if isinstance(label, str):
        return None if label in CAST else str(label)
    if pd.api.types.is_scalar(label) and pd.isna(label):
        return None
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def full_column(obs: pd.DataFrame, key: str, *, rows_are: str = "spots") -> pd.Series:
    """A column of ``obs`` in one spelling; raise if it does not exist or has gaps."""
    if key not in obs:
        raise KeyError(f"obs[{key!r}] does not exist; obs has {list(obs.columns)}.")
    column = read_labels(obs[key])
    n_missing = int(column.isna().sum())
    if n_missing:
        raise ValueError(
            f"obs[{key!r}] must have a value for every {rows_are.removesuffix('s')}; {n_missing} are missing"
            f"{cast_hint(obs[key])}. Fill them in, or drop these {rows_are}."
        )
    return column


def cast_hint(values: Any) -> str:
    """For a message: text among the labels that counts as missing."""
    text = cast_words(pd.unique(_column(values)))
    return (
        f" (text such as {', '.join(map(repr, text))} is what a cast makes of a missing value)"
        if text
        else ""
    )


def cast_words(values: Any) -> list[str]:
    """Text among the values that a cast made of missing ones."""
    return sorted({str(one) for one in values if isinstance(one, str) and one in CAST})


def without_cast(column: pd.Series) -> pd.Series:
    """The column as it is, but for text that a cast made of missing values: that is missing."""
    is_categorical = isinstance(column.dtype, pd.CategoricalDtype)
    text = cast_words(column.cat.categories if is_categorical else pd.unique(column))
    if not text:
        return column
    return column.cat.remove_categories(text) if is_categorical else column.where(~column.isin(text))


def _column(values: Any) -> pd.Series:
    if isinstance(values, pd.Series):
        return values
    # numpy would make text of everything in a list that holds some text, gaps included
    return pd.Series(list(values), dtype=object) if isinstance(values, list | tuple) else pd.Series(values)


def _warn_of_cast(unique: np.ndarray, codes: np.ndarray, name: str) -> None:
    text = cast_words(unique)
    if text:
        n = int(np.isin(codes, np.flatnonzero([one in CAST for one in unique])).sum())
        warn(
            f"{n} labels of {name} are text that a cast makes of missing values ({', '.join(map(repr, text))}); they count "
            "as missing."
        )
