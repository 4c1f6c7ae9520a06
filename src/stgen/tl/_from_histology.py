"""From a section's H&E to expression in one call: find or fit a model, predict, write results with their provenance.

The road that all models from H&E to counts share; each has a function of its own that says what is asked of it.
Everything is computed before anything is written, and models see tables of our own: a call that fails leaves the
user's objects as they were, and none of them is marked as set up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from stgen import _keys
from stgen.data._fields import CoordinatesField, HistologyField, PatientField, SplitField
from stgen.data._names import check_unique
from stgen.data._tiles import TilesField
from stgen.pp._editing import check_adata, editable

from ._evaluation_rows import TRAIN_PATIENTS, TRAIN_SECTIONS
from ._fitted import (
    check_column,
    check_free,
    check_image_key,
    check_names,
    found_model,
    image_field,
    image_param,
    kept,
    reading,
    trained_model,
)
from ._records import (
    check_key,
    check_replaceable,
    record_of,
    rows_to_judge,
    seen_in_training,
    warn_of_seen,
)
from ._training_sections import Slots, check_images_alike, training_spots, training_table

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models._count_model import CountModel

    M = TypeVar("M", bound=CountModel)


class Asked(NamedTuple):
    """One result: where it goes and how the model is asked for it. The first of a call has the record, others point to it."""

    key: str
    scale: str
    """``"counts"`` or ``"normalized"``, as :mod:`stgen.data._predictions` reads it."""
    options: Mapping[str, Any]
    """Keywords of the model's ``predict``."""


# ------------------------------------------------------------------------------------------------------ before anything


def check_call(
    method: str,
    adata: AnnData,
    keys: Sequence[str],
    *,
    model: Any,
    train_on: Any,
    save: str | Path | None,
    copy: bool,
    **numbers: int | None,
) -> None:
    """Refuse what can be refused before any data is read. ``numbers`` must be at least 1 or ``None``."""
    check_adata(adata, copy=copy)
    if (model is None) == (train_on is None):
        raise ValueError(
            f"Give `model` (a fitted {method}, its folder or hub id) or `train_on` (sections with counts), and not both."
        )
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1; got {number!r}.")
    check_key(keys[0])
    check_free(model, save)
    for one in keys:
        check_replaceable(adata, one, method)


def _check_inputs_fit(adata: AnnData, table: AnnData, slots: Slots) -> None:
    """The spots to predict must be like the training spots; say so before training."""
    check_images_alike(slots, ("", table), ("", adata))
    CoordinatesField(slots.spatial, slots.library).read(adata)


# ------------------------------------------------------------------------------------------------------------- the road


def predict_into(
    kind: type[M],
    adata: AnnData,
    asked: Sequence[Asked],
    *,
    model: M | str | Path | None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None,
    save: str | Path | None,
    genes: Sequence[str] | None,
    n_genes: int,
    layer: str | None,
    histology_key: str | None,
    spatial_key: str | None,
    library_key: str | None,
    patient_key: str | None,
    split_key: str | None,
    model_kwargs: Mapping[str, Any] | None,
    train_kwargs: Mapping[str, Any] | None,
    random_state: int,
    batch_size: int | None,
    copy: bool,
    params: Mapping[str, Any],
    more: Callable[[M], Mapping[str, Any]],
    tiles_key: str | None = None,
) -> AnnData | None:
    """Find or train the model, ask it, write. The call went through :func:`check_call`.

    ``params`` and ``more`` (told by the fitted model) join the record of the first result. With ``tiles_key`` the model
    reads tiles in place of an embedding.
    """
    slots = Slots(
        layer,
        None if tiles_key else histology_key or _keys.HISTOLOGY,
        spatial_key or _keys.SPATIAL,
        library_key,
        patient_key,
        split_key,
        tiles=tiles_key,
    )
    if train_on is None:
        fitted, path = found_model(kind, model, "predict")
        check_column(adata, library_key)
        check_image_key(fitted, histology_key, tiles_key)
        reader = reading(
            fitted,
            {
                HistologyField: {"key": histology_key},
                TilesField: {"key": tiles_key},
                CoordinatesField: {"key": spatial_key, "library_key": library_key},
            },
        )
        check_names(adata, fitted.genes)
    else:
        table, slots = training_table(train_on, slots, genes=genes, n_genes=n_genes)
        _check_inputs_fit(adata, table, slots)
        check_names(adata, list(table.var_names))
        fitted = _trained(kind, table, slots, model_kwargs, train_kwargs, random_state)
        fitted._trained_spots = training_spots(train_on, slots, fitted._fields)
        path = kept(fitted, save)
        reader, genes = fitted, None
    names = fitted.genes if genes is None else [genes] if isinstance(genes, str) else list(genes)
    check_unique(pd.Index(names), "`genes`", "Name every gene once.")
    seen = _seen_in_training(adata, reader, slots)

    in_layers = len(names) == adata.n_vars and set(names) == set(adata.var_names)
    names = list(adata.var_names) if in_layers else names
    shared: dict[str, Any] = {"genes": names, "batch_size": batch_size, "random_state": random_state}
    values = [_predicted(reader, adata, **one.options, **shared) for one in asked]

    record = _record(fitted, reader, names, seen, path, asked[0].scale, more(fitted))
    record["params"] |= {**params, "random_state": int(random_state)}
    adata = editable(adata, copy=copy)
    _write(adata, asked, values, record, in_layers=in_layers)
    return adata if copy else None


def _trained(
    kind: type[M],
    table: AnnData,
    slots: Slots,
    model_kwargs: Mapping[str, Any] | None,
    train_kwargs: Mapping[str, Any] | None,
    random_state: int,
) -> M:
    setup = {
        **({"histology_key": slots.histology} if slots.tiles is None else {"tiles_key": slots.tiles}),
        "spatial_key": slots.spatial,
        "library_key": slots.library,
        "patient_key": slots.patient,
        "split_key": slots.split,
    }
    return trained_model(kind, table, setup, model_kwargs, train_kwargs, random_state)


def _seen_in_training(adata: AnnData, model: CountModel, slots: Slots) -> dict[str, Any]:
    """Sections, patients and spots that the model was trained on, among rows that are not called training rows."""
    place, patient = model._field(CoordinatesField), model._field(PatientField)
    seen = seen_in_training(
        adata,
        rows_to_judge(adata, slots.split or model._field(SplitField).key or _keys.SPLIT),
        model.card,
        library=slots.library or place.library_key,
        patient=slots.patient or patient.key or _keys.PATIENT,
        learned=model._learned(adata),
    )
    warn_of_seen(seen, "agreement with its counts says little about new patients.")
    return seen


# ---------------------------------------------------------------------------------------------------------------- results


def _predicted(reader: Any, adata: AnnData, *, genes: list[str], **asked: Any) -> np.ndarray:
    out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    return reader.predict(adata, genes=genes, out=out, **asked)


def _record(
    model: CountModel,
    reader: CountModel,
    names: list[str],
    seen: dict[str, Any],
    path: str,
    scale: str,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    place = reader._field(CoordinatesField)
    image = image_field(reader)
    facts = model._facts[image.registry_key]
    return record_of(
        model,
        path,
        params={
            image_param(image): image.attr_key,
            "spatial_key": place.key,
            "library_key": place.library_key,
            "n_neighbors": int(model.config.n_neighbors),
        },
        seen=seen,
        # tiles have no encoder but the model's own
        model_facts={name: facts.get(name) for name in ("encoder", "tile_um")},
        genes=names,
        scale=scale,
        **more,
    )


def _write(
    adata: AnnData,
    asked: Sequence[Asked],
    values: Sequence[np.ndarray],
    record: dict[str, Any],
    *,
    in_layers: bool,
) -> None:
    """Results where they belong; an earlier result under the same key may lie in the other slot."""
    first = asked[0].key
    for one, array in zip(asked, values, strict=True):
        for slot in (adata.layers, adata.obsm):
            if one.key in slot:
                del slot[one.key]
        (adata.layers if in_layers else adata.obsm)[one.key] = array
        if one.key != first:
            beside = {
                name: record[name]
                for name in ("method", "genes", TRAIN_SECTIONS, TRAIN_PATIENTS)
                if name in record
            }
            adata.uns[one.key] = {
                **beside,
                "scale": one.scale,
                "params": {"of": first, "n_neighbors": record["params"]["n_neighbors"]},
            }
    adata.uns[first] = record
