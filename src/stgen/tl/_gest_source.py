"""The GeST behind a task: given, or trained here on expression and places, of the user's cells if nothing else is named.

GeST learns from expression alone, so cells to embed may be the cells to train on. Only cells that are to be
generated are kept out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._labels import read_labels
from stgen.data._fields import CoordinatesField, PatientField, SplitField
from stgen.data._identity import Spots

from ._fitted import check_column, check_free, found_model, kept, reading, trained_model
from ._records import record_of, seen_in_training
from ._training_sections import Slots, check_values, training_spots, training_table

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GeST

METHOD = "GeST"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the user said about the model; see the parameters of :func:`stgen.tl.gest_niche_embed`."""

    model: Any
    train_on: Any
    save: str | Path | None
    genes: Sequence[str] | None
    layer: str | None
    expression: str | None
    spatial_key: str | None
    library_key: str | None
    patient_key: str | None
    split_key: str | None
    model_kwargs: Mapping[str, Any] | None
    train_kwargs: Mapping[str, Any] | None
    random_state: int
    labels_key: str | None = None
    by_section: bool | None = None
    learn_from: str | None = None

    def check(self) -> None:
        """What can be said before anything is read."""
        if self.model is not None and self.train_on is not None:
            raise ValueError(
                "Give `model` (a fitted GeST, its folder or hub id) or `train_on` (sections with expression), and not both; "
                "without either a GeST is trained on `adata` itself."
            )
        check_free(self.model, self.save)


class Ready(NamedTuple):
    """A fitted model and what is known about it."""

    fitted: GeST
    reader: GeST
    """The same model, reading the slots that the user named."""
    path: str
    slots: Slots
    is_new: bool
    """Whether it was trained here."""


def ready_model(adata: AnnData, source: Source, verb: str, *, hidden: np.ndarray | None = None) -> Ready:
    """Find or train the model. Cells that are ``hidden`` train nothing, and their expression is not read."""
    slots = Slots(
        source.layer,
        None,
        source.spatial_key or _keys.SPATIAL,
        source.library_key,
        source.patient_key,
        source.split_key,
        source.labels_key,
    )
    if source.model is not None:
        return _given(adata, source, verb, slots, hidden)
    return _trained(adata, source, slots, hidden)


def _given(adata: AnnData, source: Source, verb: str, slots: Slots, hidden: np.ndarray | None) -> Ready:
    from stgen.data._expression import ExpressionField
    from stgen.models import GeST

    fitted, path = found_model(GeST, source.model, verb)
    check_column(adata, source.library_key)
    scale = fitted._field(ExpressionField).scale
    if source.expression not in (None, scale):
        raise ValueError(
            f"This GeST was fitted on `expression={scale!r}`; got {source.expression!r}. Give it expression of that kind "
            "(name its layer with `layer=`), or fit one on yours."
        )
    reader = reading(
        fitted,
        {
            ExpressionField: {"layer": source.layer},
            CoordinatesField: {"key": source.spatial_key, "library_key": source.library_key},
        },
    )
    _check_fits(adata, reader, fitted.genes, hidden)
    return Ready(fitted, reader, path, slots, is_new=False)


def _trained(adata: AnnData, source: Source, slots: Slots, hidden: np.ndarray | None) -> Ready:
    from stgen.models import GeST

    expression = source.expression or "counts"
    own = _without_hidden(adata, source.train_on, hidden)
    table, slots = training_table(own, slots, genes=source.genes, n_genes=None, expression=expression)
    setup = {
        "layer": slots.layer,
        "expression": expression,
        "spatial_key": slots.spatial,
        "library_key": slots.library,
        "patient_key": slots.patient,
        "split_key": slots.split,
    }
    fields = _unfitted(slots, expression)
    _check_fits(adata, fields, list(table.var_names), hidden)
    cells, teachers = training_spots(own, slots, fields), None
    if slots.labels is not None:
        rows = SplitField(slots.split).rows(table)[0]
        table.obs[slots.labels], can_teach = labels_to_learn(table, slots.labels, slots.split)
        check_some_left(
            Spots.of(adata, fields).among(cells.rows(can_teach[rows])), slots.labels, source.learn_from
        )
        teachers = cells.rows(table.obs[slots.labels].notna().to_numpy()[rows])
    fitted = trained_model(GeST, table, setup, source.model_kwargs, source.train_kwargs, source.random_state)
    if slots.labels is not None:
        fitted.learn_labels(slots.labels, table, by_section=source.by_section)
        fitted._teachers = teachers  # by the names of the user's objects, not of the table
    path = kept(fitted, source.save)
    fitted._trained_spots = cells
    return Ready(fitted, fitted, path, slots, is_new=True)


def labels_to_learn(adata: AnnData, key: str, split: str | None) -> tuple[pd.Series, np.ndarray]:
    """Labels that can be learned, ``None`` elsewhere; and the training rows that have any.

    Labels of validation and test rows are as good as missing. What cannot be learned is refused before a model is trained.
    """
    from stgen.models.gest._annotation import known_labels

    check_column(adata, key)
    teaches = np.zeros(adata.n_obs, dtype=bool)
    teaches[SplitField(split).rows(adata)[0]] = True
    labels = adata.obs[key].where(teaches)
    return known_labels(labels, key), read_labels(labels).notna().to_numpy()


def check_some_left(can_teach: np.ndarray, key: str, learn_from: str | None) -> None:
    """Refuse to name cells by nothing but their own labels, unless that is asked for by name."""
    if learn_from is None and can_teach.all():
        raise ValueError(
            f"Labels of obs[{key!r}] would be learned from all {len(can_teach)} cells of `adata`, which are then named: none is "
            "left whose label is not known, and agreement would say nothing about new cells. Learn from others: "
            "`train_on=` labelled sections, or `model.learn_labels(labels_key, labelled)` and no `labels_key` here. Or set "
            'labels to missing in cells that are to be named. `learn_from="adata"` does it all the same.'
        )


def _without_hidden(adata: AnnData, train_on: Any, hidden: np.ndarray | None) -> Any:
    """Sections to train on; wherever ``adata`` is one of them, cells to generate are left out."""

    def seen(one: Any) -> Any:
        return one[~hidden] if one is adata and hidden is not None else one

    if train_on is None:
        return seen(adata)
    if isinstance(train_on, Mapping):
        return {name: seen(one) for name, one in train_on.items()}
    if isinstance(train_on, list | tuple):
        return [seen(one) for one in train_on]
    return seen(train_on)


def _unfitted(slots: Slots, expression: str) -> list[Any]:
    from stgen.data._expression import ExpressionField

    return [
        CoordinatesField(slots.spatial, slots.library, "cells"),
        ExpressionField(slots.layer, scale=expression, rows_are="cells"),
    ]


def _check_fits(adata: AnnData, reader: Any, genes: list[str], hidden: np.ndarray | None) -> None:
    """The cells must be like those of training; said before training and before anything is computed."""
    from stgen.data._expression import ExpressionField

    for field in getattr(reader, "_fields", reader):
        if isinstance(field, CoordinatesField):
            field.read(adata)
        elif isinstance(field, ExpressionField):
            field.compare({"genes": genes}, adata)
            check_values(adata if hidden is None else adata[~hidden], field)


# -------------------------------------------------------------------------------------------------------------- records


def seen(adata: AnnData, ready: Ready, rows: np.ndarray) -> dict[str, Any]:
    """Sections, patients and cells among these rows that the model was trained on."""
    place, patient = ready.fitted._field(CoordinatesField), ready.fitted._field(PatientField)
    return seen_in_training(
        adata,
        rows,
        ready.fitted.card,
        library=ready.slots.library or place.library_key,
        patient=ready.slots.patient or patient.key or _keys.PATIENT,
        learned=ready.reader._learned(adata),
    )


def gest_record(
    ready: Ready,
    task: str,
    seen: Mapping[str, Any],
    params: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Provenance of a result, in plain values that h5ad and zarr keep."""
    from stgen.data._expression import ExpressionField

    reader = ready.reader
    place, expression = reader._field(CoordinatesField), reader._field(ExpressionField)
    split = ready.fitted._field(SplitField).key if ready.is_new else None
    return record_of(
        ready.fitted,
        ready.path,
        task=task,
        params={
            "layer": expression.layer,
            "expression": expression.scale,
            "spatial_key": place.key,
            "library_key": place.library_key,
            "split_key": split,
            "window_um": float(reader.module.window_um),
            **params,
        },
        seen=seen,
        **more,
    )


def quantization(adata: AnnData, reader: GeST) -> dict[str, Any]:
    """What is lost when these cells are replaced by their meta cells: the ceiling of what the model can say."""
    found = reader.module.words.quantization(lambda: reader._blocks(adata))
    return {name: float(found[name]) for name in ("r2", "rmse")}
