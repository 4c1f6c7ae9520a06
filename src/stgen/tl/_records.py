"""What a result may replace, and what is recorded beside it: how it was made, by which model, and what that had seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stgen
from stgen._labels import read_labels
from stgen._warn import warn
from stgen.data._names import some
from stgen.data._splits import read_split

from ._evaluation_rows import TRAIN_PATIENTS, TRAIN_SECTIONS

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models._base import STModel

ENGINES = ("anndata", "scvi-tools", "torch")


# --------------------------------------------------------------------------------------------------------------- slots


def check_key(key: str) -> None:
    """Raise unless files can hold a slot of this name."""
    if not key or "/" in key:
        raise ValueError(f"`key_added` must be a name without '/', which files cannot hold; got {key!r}.")


def check_replaceable(
    adata: AnnData,
    key: str,
    method: str,
    *,
    task: str | None = None,
    slots: Sequence[str] = ("layers", "obsm", "uns"),
    owner: str | None = None,
) -> None:
    """A result may replace an earlier one of the same kind, and nothing else of the user's.

    ``owner`` is the key of the record in ``uns`` that says whose the slot is, where that is not ``key``.
    """
    there = [name for name in slots if key in getattr(adata, name)]
    if there and not _is_ours(adata, owner or key, method, task):
        what = "a prediction" if task is None else task
        raise ValueError(
            f"{there[0]}[{key!r}] exists and is not {what} of {method}, so it is not replaced. Choose another `key_added`."
        )


def _is_ours(adata: AnnData, key: str, method: str, task: str | None) -> bool:
    record = adata.uns.get(key)
    if not isinstance(record, Mapping):
        return False
    return str(record.get("method", "")) == method and (task is None or str(record.get("task", "")) == task)


# ------------------------------------------------------------------------------------------------- what the model knows


def rows_to_judge(adata: AnnData, split_key: str) -> np.ndarray:
    """Rows that nobody calls training or validation."""
    if split_key not in adata.obs:
        return np.ones(adata.n_obs, dtype=bool)
    return ~read_split(adata.obs, split_key).is_seen


def seen_in_training(
    adata: AnnData,
    rows: np.ndarray,
    card: Mapping[str, Any],
    *,
    library: str | None,
    patient: str | None,
    learned: np.ndarray,
) -> dict[str, Any]:
    """Sections, patients and spots that the model was trained on, among these rows.

    ``learned`` tells which spots these are, as :meth:`stgen.data._identity.Spots.among` knows them.
    """
    columns = {
        "sections": (library, card["training_sections"]),
        "patients": (patient, card["training_patients"]),
    }
    seen: dict[str, Any] = {}
    for what, (key, known) in columns.items():
        if key is not None and key in adata.obs:
            both = sorted(set(read_labels(adata.obs[key][rows]).dropna()) & set(known))
            if both:
                seen[what] = np.array(both)
    n_seen = int((learned & rows).sum())
    if n_seen:
        seen["n_spots"] = n_seen
    return seen


def warn_of_seen(seen: Mapping[str, Any], consequence: str) -> None:
    """Say what the model had seen, and what follows from it."""
    if not seen:
        return
    named = [f"{what[:-1]} {some(names, 8)}" for what, names in seen.items() if what != "n_spots"]
    named += [f"{seen['n_spots']} spots"] if "n_spots" in seen else []
    warn(
        f"The model was trained on {' and '.join(named)} of this AnnData: {consequence} `uns` records it under "
        "'seen_in_training'."
    )


# -------------------------------------------------------------------------------------------------------------- records


def record_of(
    model: STModel,
    path: str,
    *,
    params: Mapping[str, Any],
    seen: Mapping[str, Any],
    model_facts: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Provenance in plain values that h5ad and zarr keep."""
    card = model.card
    return storable(
        {
            "method": type(model).__name__,
            **more,
            TRAIN_SECTIONS: card["training_sections"],
            TRAIN_PATIENTS: card["training_patients"],
            "params": params,
            "model": {
                "path": path,
                "preset": model.preset,
                "n_genes": len(model.genes),
                "config": dataclasses.asdict(model.config),
                **(model_facts or {}),
                **card,
            },
            "seen_in_training": seen,
            "versions": {"stgen": stgen.__version__} | {name: version(name) for name in ENGINES},
        }
    )


def storable(value: Any) -> Any:
    """What h5ad and zarr can hold: nothing for ``None`` and empty lists, arrays for sequences."""
    if isinstance(value, Mapping):
        kept = {str(key): storable(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, list | tuple):
        if not value:
            return None
        return np.array(value, dtype=object) if isinstance(value[0], str) else np.array(value)
    return value


def columns_of(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """A table as its columns, which files can hold in ``uns``."""
    return {
        str(name): column.to_numpy(dtype=object if column.dtype.kind in "OUT" else None)
        for name, column in table.items()
    }
