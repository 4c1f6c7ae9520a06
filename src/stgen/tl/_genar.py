"""From a section's H&E to counts in one call: find or fit a GenAR, predict, write results with their provenance.

Everything is computed before anything is written, and models see tables of our own: a call that fails leaves the
user's objects as they were, and none of them is marked as set up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import CoordinatesField, HistologyField, PatientField, SplitField
from stgen.data._names import check_unique
from stgen.pp._editing import check_adata, editable

from ._evaluation_rows import TRAIN_PATIENTS, TRAIN_SECTIONS
from ._fitted import check_column, check_free, check_names, found_model, kept, reading, trained_model
from ._records import (
    check_key,
    check_replaceable,
    record_of,
    rows_to_judge,
    seen_in_training,
    warn_of_seen,
)
from ._training_sections import Slots, names_of_training, training_table

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GenAR

STATISTICS = ("mean", "median", "mode")


@shared_doc
def genar_predict(
    adata: AnnData,
    *,
    model: GenAR | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
    save: str | Path | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 200,
    layer: str | None = None,
    histology_key: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    statistic: str = "mean",
    n_paths: int = 8,
    random_state: int = 0,
    batch_size: int | None = None,
    key_added: str = _keys.GENAR,
    copy: bool = False,
) -> AnnData | None:
    """Predict spot-level counts of a section from its H&E with :class:`stgen.models.GenAR`.

    ``adata`` needs a histology embedding and coordinates, and no genes; counts that it holds are not read. The model
    is given, or trained here on sections with counts.

    Parameters
    ----------
    adata
        Spots to predict.
    model
        A fitted :class:`stgen.models.GenAR`, the folder of one, or its id on the Hugging Face Hub (``owner/name``).
    train_on
        Instead of a model: sections with counts, as one AnnData, a list of them, or a mapping from name to section.
        Several are put together by the genes that all have. They may include ``adata``: only rows of ``split_key``
        that are called ``"train"`` (and ``"validation"``, for when to stop) are used.
    save
        Folder in which the model that was trained here is kept. Without it the model is forgotten.
    genes
        Genes to predict; when training, the panel. By default all genes of the model; when training,
        ``var["gene_panel"]``, else a panel chosen from training rows by the rule of :func:`stgen.pp.gene_panel`.
    n_genes
        Size of a panel that is chosen here; sections with fewer genes keep all of them.
    layer
        Layer of ``train_on`` that holds the counts. ``None`` means ``X``.
    histology_key
        Key in ``obsm`` of the histology embedding. ``None`` means what the model was fitted with, else
        ``"X_histology"``.
    spatial_key
        Key in ``obsm`` of the coordinates in µm. ``None`` means what the model was fitted with, else ``"spatial"``.
    library_key
        Column of ``obs`` that tells sections apart. ``None`` means what the model was fitted with, else ``"section"``
        if that exists. An ``adata`` without the column is one section.
    patient_key
        Column of ``obs`` with the patient; ``"patient"`` if that exists.
    split_key
        Column of ``obs`` written by :func:`stgen.pp.split`; ``"split"`` if that exists. Without it all rows of
        ``train_on`` are for training.
    model_kwargs
        For training: ``preset``, ``gene_groups`` and fields of :class:`stgen.models.GenARConfig`.
    train_kwargs
        For training: keywords of :meth:`stgen.models.GenAR.train`.
    statistic
        ``"mean"`` (expected counts), ``"median"`` or ``"mode"``.
    n_paths
        Sampled coarse paths that the spread mixes (and median and mode; the mean follows the expected path).
    random_state
        %(random_state)s
    batch_size
        Spots that are predicted at once.
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``layers[key_added]`` if the genes are exactly ``var_names`` (in their order), else
    ``obsm[key_added]``, spots × genes, float32, with the names of the genes in ``uns[key_added]["genes"]``; beside it
    ``"{key_added}_sd"``, the standard deviation of the predicted distribution, in counts, and
    ``"{key_added}_normalized"``, expected log1p of depth-normalised counts. ``uns[key_added]`` holds ``params``,
    ``model`` (the facts of the model card, and its ``path``), ``gene_groups``, ``versions``, and
    ``seen_in_training``: sections, patients and number of spots of ``adata`` that the model was trained on, test rows
    only where there is a split. :func:`stgen.get.prediction` gives a table.

    Raises
    ------
    ValueError
        If inputs are not like those the model was fitted on, or the result would replace something that is not a
        prediction; for training, if counts are not counts or sections share no genes.

    Warns
    -----
    UserWarning
        If a patient or a section of ``adata`` is one of those the model was trained on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> train, new = adata[adata.obs["patient"] == "p1"].copy(), adata[adata.obs["patient"] == "p2"].copy()
    >>> stg.tl.genar_predict(new, train_on=train, train_kwargs={"max_epochs": 3})
    >>> new.layers["genar"].shape
    (200, 20)
    """
    check_adata(adata, copy=copy)
    _check_arguments(adata, model, train_on, save, statistic, key_added)
    slots = Slots(
        layer,
        histology_key or _keys.HISTOLOGY,
        spatial_key or _keys.SPATIAL,
        library_key,
        patient_key,
        split_key,
    )
    if train_on is None:
        from stgen.models import GenAR

        fitted, path = found_model(GenAR, model, "predict")
        check_column(adata, library_key)
        reader = reading(
            fitted,
            {
                HistologyField: {"key": histology_key},
                CoordinatesField: {"key": spatial_key, "library_key": library_key},
            },
        )
        check_names(adata, fitted.genes)
        trained_spots = None
    else:
        table, slots = training_table(train_on, slots, genes=genes, n_genes=n_genes)
        _check_inputs_fit(adata, table, slots)
        check_names(adata, list(table.var_names))
        fitted = _trained(table, slots, model_kwargs, train_kwargs, random_state)
        path = kept(fitted, save)
        reader, genes = fitted, None
        trained_spots = (
            None if isinstance(train_on, list | tuple | Mapping) else names_of_training(table, slots)
        )
    names = fitted.genes if genes is None else [genes] if isinstance(genes, str) else list(genes)
    check_unique(pd.Index(names), "`genes`", "Name every gene once.")
    seen = _seen_in_training(adata, fitted, slots, trained_spots)

    in_layers = len(names) == adata.n_vars and set(names) == set(adata.var_names)
    names = list(adata.var_names) if in_layers else names
    shared: dict[str, Any] = {"genes": names, "batch_size": batch_size, "random_state": random_state}
    asked: dict[str, dict[str, Any]] = {
        key_added: {"statistic": statistic, "n_paths": None if statistic == "mean" else n_paths},
        _keys.spread_key(key_added): {"statistic": "sd", "n_paths": n_paths},
        _keys.normalized_key(key_added): {"statistic": "normalized"},
    }
    values = {key: _predicted(reader, adata, **one, **shared) for key, one in asked.items()}

    record = _record(fitted, reader, names, seen, path)
    record["params"] |= {"statistic": statistic, "n_paths": int(n_paths), "random_state": int(random_state)}
    adata = editable(adata, copy=copy)
    _write(adata, values, record, key_added, in_layers=in_layers)
    return adata if copy else None


# ------------------------------------------------------------------------------------------------------ before anything


def _check_arguments(
    adata: AnnData, model: Any, train_on: Any, save: str | Path | None, statistic: str, key: str
) -> None:
    if (model is None) == (train_on is None):
        raise ValueError(
            "Give `model` (a fitted GenAR, its folder or hub id) or `train_on` (sections with counts), and not both."
        )
    if statistic not in STATISTICS:
        raise ValueError(
            f"`statistic` must be one of {', '.join(map(repr, STATISTICS))}; got {statistic!r}. The spread and normalised "
            "expression are written beside it anyway."
        )
    check_key(key)
    check_free(model, save)
    for one in (key, _keys.spread_key(key), _keys.normalized_key(key)):
        check_replaceable(adata, one, "GenAR")


def _check_inputs_fit(adata: AnnData, table: AnnData, slots: Slots) -> None:
    """The spots to predict must be like the training spots; say so before training."""
    histology = HistologyField(slots.histology or _keys.HISTOLOGY)
    histology.compare(histology.facts(table), adata)
    CoordinatesField(slots.spatial, slots.library).read(adata)


def _trained(
    table: AnnData,
    slots: Slots,
    model_kwargs: Mapping[str, Any] | None,
    train_kwargs: Mapping[str, Any] | None,
    random_state: int,
) -> GenAR:
    from stgen.models import GenAR

    setup = {
        "histology_key": slots.histology,
        "spatial_key": slots.spatial,
        "library_key": slots.library,
        "patient_key": slots.patient,
        "split_key": slots.split,
    }
    return trained_model(GenAR, table, setup, model_kwargs, train_kwargs, random_state)


def _seen_in_training(
    adata: AnnData, model: GenAR, slots: Slots, trained_spots: pd.Index | None
) -> dict[str, Any]:
    """Sections, patients and spots that the model was trained on, among rows that are not called training rows."""
    place, patient = model._field(CoordinatesField), model._field(PatientField)
    seen = seen_in_training(
        adata,
        rows_to_judge(adata, slots.split or model._field(SplitField).key or _keys.SPLIT),
        model.card,
        library=slots.library or place.library_key,
        patient=slots.patient or patient.key or _keys.PATIENT,
        trained_spots=trained_spots,
    )
    warn_of_seen(seen, "agreement with its counts says little about new patients.")
    return seen


# ---------------------------------------------------------------------------------------------------------------- results


def _predicted(reader: GenAR, adata: AnnData, *, genes: list[str], **asked: Any) -> np.ndarray:
    out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    return reader.predict(adata, genes=genes, out=out, **asked)


def _record(model: GenAR, reader: GenAR, names: list[str], seen: dict[str, Any], path: str) -> dict[str, Any]:
    groups = model.get_gene_groups()
    place, histology = reader._field(CoordinatesField), reader._field(HistologyField)
    return record_of(
        model,
        path,
        params={
            "histology_key": histology.key,
            "spatial_key": place.key,
            "library_key": place.library_key,
            "n_neighbors": int(model.config.n_neighbors),
        },
        seen=seen,
        model_facts={name: model._facts["histology"][name] for name in ("encoder", "tile_um")},
        genes=names,
        scale="counts",
        gene_groups={"gene": list(groups.index), **{scale: groups[scale].to_numpy() for scale in groups}},
    )


def _write(
    adata: AnnData, values: dict[str, np.ndarray], record: dict[str, Any], key: str, *, in_layers: bool
) -> None:
    """Results where they belong; an earlier result under the same key may lie in the other slot."""
    for one, array in values.items():
        for slot in (adata.layers, adata.obsm):
            if one in slot:
                del slot[one]
        (adata.layers if in_layers else adata.obsm)[one] = array
        if one != key:
            scale = "normalized" if one == _keys.normalized_key(key) else "counts"
            beside = {
                name: record[name]
                for name in ("method", "genes", TRAIN_SECTIONS, TRAIN_PATIENTS)
                if name in record
            }
            adata.uns[one] = {
                **beside,
                "scale": scale,
                "params": {"of": key, "n_neighbors": record["params"]["n_neighbors"]},
            }
    adata.uns[key] = record
