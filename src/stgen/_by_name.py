"""Joined by name: a pandas object that a user hands over is joined by its labels, an array is taken by position.

Labels are compared as text. The index that pandas gives by default, 0 … n - 1, names nothing: such an object counts as
an array, whose shape the caller checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

AXES = ("index", "columns")


def check_unique(names: pd.Index, what: str, remedy: str) -> None:
    """Raise if names repeat, with examples."""
    if names.is_unique:
        return
    repeated = names[names.duplicated()].unique()
    raise ValueError(f"{what} must be unique; {len(repeated)} repeat: {some(repeated)}. {remedy}")


def some(names: Iterable[Any], n: int = 3) -> str:
    """The first few names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:n]) + (", …" if len(listed) > n else "")


def names_of(value: Any, axis: int = 0) -> pd.Index | None:
    """Names of rows or columns as text, if the object has any."""
    labels = _labels(value, axis)
    return None if labels is None or _is_default(labels) else as_text(labels)


def as_text(labels: pd.Index) -> pd.Index:
    """Labels as they are compared."""
    return labels.map(str) if isinstance(labels, pd.MultiIndex) else labels.astype(str)


def in_order(
    value: Any, names: pd.Index, what: str, *, axis: int = 0, of: str = "spots", remedy: str = ""
) -> Any:
    """Rows (or columns) of a pandas object in the order of ``names``; anything without names as it is.

    Parameters
    ----------
    value
        Series, DataFrame, array, or list. There may be more of it than ``names`` asks for.
    names
        Names in the wanted order.
    what
        How a message calls the value.
    axis
        0 joins rows, 1 columns.
    of
        What is named, for a message.
    remedy
        How to mend missing names; by default, how to say that the order is right already.

    Raises
    ------
    ValueError
        If names are missing or repeat, or numbers could be names as well as positions.
    """
    labels = _labels(value, axis)
    if labels is None:
        return value
    own, names = as_text(labels), as_text(names)
    # the same rows, in the same order: nothing to join, even if names repeat
    if own.equals(names) or (_is_default(labels) and not _are_numbers(names, own, what, AXES[axis])):
        return value
    check_unique(own, f"Names in the {AXES[axis]} of {what}", "Name each once.")
    check_unique(names, f"Names of the {of} that {what} is joined to", "Make them unique first.")
    place = own.get_indexer(names)
    missing = names[place < 0]
    if len(missing):
        raise ValueError(
            f"{what} must have all {of}; {len(missing)} of {len(names)} are not in the {AXES[axis]}, such as "
            f"{some(missing)}; it has {len(own)}, such as {some(own)}. "
            + (
                remedy
                or "It is joined by name; what is in order already can be given without: `.to_numpy()`."
            )
        )
    return value.take(place, axis=axis)


def join_rows(**values: Any) -> list[Any]:
    """Rows of all arguments in the order of the first that has names."""
    return list(_joined(values, 0, "spots").values())


def join_columns(**values: Any) -> list[Any]:
    """Columns of all arguments in the order of the first that has names."""
    return list(_joined(values, 1, "genes").values())


def join_tables(**values: Any) -> list[Any]:
    """Rows and columns of all arguments in the order of the first that has names, on either side."""
    return join_columns(**dict(zip(values, join_rows(**values), strict=True)))


def named_like(values: Any, like: Any) -> Any:
    """An array of results under the names of what it was computed from, so that they can be joined again."""
    if isinstance(like, pd.DataFrame) and getattr(values, "ndim", 0) == 2:
        return pd.DataFrame(values, like.index, like.columns)
    return pd.Series(values, like.index) if isinstance(like, pd.DataFrame | pd.Series) else values


# how readers call the columns of a table of coordinates
_X = (
    "x",
    "x_um",
    "x_px",
    "x_centroid",
    "center_x",
    "centroid_x",
    "pxl_col_in_fullres",
    "imagecol",
    "array_col",
)
_Y = (
    "y",
    "y_um",
    "y_px",
    "y_centroid",
    "center_y",
    "centroid_y",
    "pxl_row_in_fullres",
    "imagerow",
    "array_row",
)
_Z = ("z", "z_um", "z_centroid", "center_z", "centroid_z")


def x_and_y(places: Any, what: str = "A table of coordinates", *, depth: bool = False) -> Any:
    """Columns x and y, and z where ``depth`` asks for it, of a table that calls them so; anything else as it is."""
    if not isinstance(places, pd.DataFrame):
        return places
    lower = [str(name).lower() for name in places.columns]
    x, y, z = ([i for i, name in enumerate(lower) if name in known] for known in (_X, _Y, _Z))
    if not x and not y:
        return places
    if len(x) != 1 or len(y) != 1:
        raise ValueError(
            f"{what} must have one column for x and one for y; its columns are {list(map(str, places.columns))}. Keep two, "
            "called 'x' and 'y'."
        )
    return places.iloc[:, x + y + (z if depth else [])]


def _joined(values: dict[str, Any], axis: int, of: str) -> dict[str, Any]:
    for first, value in values.items():
        names = names_of(value, axis)
        if names is not None:
            of = f"{of} of `{first}`"
            return {k: in_order(v, names, f"`{k}`", axis=axis, of=of) for k, v in values.items()}
    return values


def _labels(value: Any, axis: int) -> pd.Index | None:
    is_pandas = isinstance(value, pd.DataFrame | pd.Series) and axis < value.ndim
    return value.axes[axis] if is_pandas else None


def _is_default(labels: pd.Index) -> bool:
    return bool(pd.api.types.is_integer_dtype(labels.dtype) and labels.equals(pd.RangeIndex(len(labels))))


def _are_numbers(names: pd.Index, default: pd.Index, what: str, side: str) -> bool:
    """Whether a default index has to be meant as names: they are numbers too, a part of it."""
    if not names.isin(default).all():
        return False
    if len(names) == len(default):
        raise ValueError(
            f"{what} has the {side} 0 … {len(names) - 1}, which could be positions or the names {some(names)}. Give "
            "`.to_numpy()` if it is in order, or set names as text."
        )
    return True
