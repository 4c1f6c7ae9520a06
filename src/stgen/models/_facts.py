"""Facts in plain form: as json keeps them, as tables, and what differs between two."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd


def history(rows: Sequence[Mapping[str, float]]) -> dict[str, pd.DataFrame]:
    """One table per quantity, indexed by epoch: the form scvi-tools users know."""
    table = pd.DataFrame(list(rows))
    table.index.name = "epoch"
    return {name: table[[name]].dropna() for name in table.columns}


def digest_of_rows(train: np.ndarray, validation: np.ndarray) -> str:
    digest = hashlib.sha256()
    for rows in (train, validation):
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def difference(before: Any, now: Any) -> str:
    """The first thing that differs between two saved facts, briefly."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return f"`{key}` was {before.get(key)!r}, is {now.get(key)!r}"
    if isinstance(before, list) and isinstance(now, list):
        strange = [item for item in now if item not in set(before)]
        return f"{len(before)} there, {len(now)} here" + (
            f", {strange[0]!r} is new" if strange else ", other order"
        )
    return f"was {before!r}, is {now!r}"


def plain(value: Any) -> Any:
    """The same facts as json knows them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


def tuples(value: Any) -> Any:
    """Sequences in a frozen config are tuples; json made lists of them."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return value
