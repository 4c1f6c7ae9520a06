"""Genes that nobody measured, from a single-cell reference, in one call: find or fit a CausalGeD, impute, write.

Everything is computed before anything is written, and models see tables of our own: a call that fails leaves the
user's objects as they were, and neither the spatial data nor the reference is marked as set up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen._labels import full_column
from stgen._warn import warn
from stgen.data._fields import CoordinatesField, read_counts
from stgen.data._names import check_unique, some, spelling_hint
from stgen.data._places import library_column
from stgen.get._imputed import INTERVALS, imputed_frame
from stgen.pp._editing import check_adata, editable

from ._evaluation_rows import TRAIN_SECTIONS
from ._fitted import check_column, check_free, found_model, kept, reading, trained_model
from ._records import check_key, check_replaceable, columns_of, record_of, seen_in_training
from ._training_sections import check_values

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import CausalGeD
    from stgen.models.causalged._imputation import Sampling
    from stgen.models.causalged._places import SpatialKey

METHOD = "CausalGeD"


@shared_doc
def causalged_impute(
    adata: AnnData,
    reference: AnnData | None = None,
    *,
    model: CausalGeD | str | Path | None = None,
    save: str | Path | None = None,
    genes: Sequence[str] | None = None,
    n_samples: int = 16,
    n_steps: int = 20,
    n_sets: int = 1,
    order: str | Sequence[str] = "predictable",
    intervals: bool = False,
    layer: str | None = None,
    expression: str | None = None,
    reference_layer: str | None = None,
    reference_expression: str | None = None,
    spatial_key: SpatialKey | None = None,
    library_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    random_state: int = 0,
    batch_size: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    key_added: str = _keys.CAUSALGED,
    copy: bool = False,
) -> AnnData | None:
    """Impute genes that ``adata`` did not measure with :class:`stgen.models.CausalGeD`, and say how far to trust each.

    A model is trained here on the genes that ``adata`` and ``reference`` share, or one that was trained on the same panel
    is given. All spots are learned from, whatever their split: what is left out in training are genes.

    Parameters
    ----------
    adata
        Spots (or cells) × measured genes.
    reference
        Single-cell data that has the genes to impute, cells × genes. It is summarised; no cell is kept.
    model
        Instead of a reference: a fitted :class:`stgen.models.CausalGeD`, the folder of one, or its id on the Hugging Face
        Hub (``owner/name``). At least half of its measured genes must be in ``adata``.
    save
        %(gest_save)s
    genes
        Genes to impute. By default all of the reference that ``adata`` did not measure.
    n_samples
        Draws of the diffusion that are averaged.
    n_steps
        Reverse steps of the diffusion.
    n_sets
        Autoregressive steps: genes are generated in this many sets, each seeing the sets before it. 1 is plain diffusion.
    order
        ``"predictable"``: genes that can be predicted best come first; ``"random"``; or names of genes that come first,
        such as transcription factors; those that are measured, or not asked for, count for nothing.
    intervals
        Also write 50 % and 90 % intervals of what would be measured.
    layer
        Layer of the expression of ``adata``. ``None`` means what the model was fitted with, else ``X``.
    expression
        ``"counts"`` (the default; the model divides by the total of each spot over measured genes and takes the logarithm)
        or ``"log"`` (log-normalised already).
    reference_layer
        Layer of the expression of ``reference``. ``None`` means ``X``.
    reference_expression
        ``"counts"`` (the default) or ``"log"``.
    spatial_key
        %(gest_spatial_key)s
        ``False``: places are not read, and a spot is imputed from what was measured in it alone. So it is, with a warning,
        where nothing is named and ``obsm["spatial"]`` does not exist.
    library_key
        %(gest_library_key)s
    model_kwargs
        For training: ``preset`` and fields of :class:`stgen.models.CausalGeDConfig`.
    train_kwargs
        For training: keywords of :meth:`stgen.models.CausalGeD.train`.
    random_state
        %(random_state)s
    batch_size
        Spots at once in the final product.
    out
        Path of a zarr store to write instead of ``adata``, for an answer larger than memory. Spots are written block by
        block, and the store takes its name when it is whole.
    overwrite
        Replace a store that is already at ``out``.
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, spots × imputed genes, float32: expected expression, log-normalised
    by the total of *measured* genes; ``obsm["{key_added}_sd"]``, the standard deviation of what would be measured; and with
    ``intervals`` ``obsm["{key_added}_lower_90"]``, ``"…_upper_90"``, ``"…_mass_90"`` (what the interval holds if the model
    is right, more than 90 % where most values are 0) and the same for 50 %.
    ``uns[key_added]`` holds ``genes`` (names of the columns); ``table``, one array for each of ``predictability`` (the
    Pearson correlation over spots that is expected), ``low`` and ``high`` (its 80 % interval), ``gain``, ``gain_low`` and
    ``gain_high`` (over the mean pattern of measured genes) and ``verdict`` (``"use"``, ``"weak"`` or ``"do not use"``);
    ``panel`` (measured genes that were read), ``params``, ``model`` (the facts of the model card, and its ``path``),
    ``seen_in_training`` and ``versions``. :func:`stgen.get.imputed` gives an AnnData that scanpy goes on with.

    With ``out`` nothing is written to ``adata``. What comes back is what :func:`stgen.get.imputed` would give, with ``X`` and
    layers left on disk: ``made[:, genes].to_memory()`` reads a part. ``anndata.read_zarr`` and
    ``anndata.experimental.read_lazy`` open it later.

    Raises
    ------
    ValueError
        If a gene to impute is measured or is not in the reference, both sides share fewer than 10 genes, values are not of
        the kind that was said, the answer does not fit into memory and no ``out`` is given, or the result would replace
        something that is not an imputation.
    FileExistsError
        If there is something at ``out``.

    Warns
    -----
    UserWarning
        If measured genes are not in the reference, some of the model's are not in ``adata``, there are no places, or
        training had measured genes that are imputed here, and perhaps in these spots.

    See Also
    --------
    stgen.pl.imputed : Draw imputed genes in space.
    stgen.pl.predictability : Draw which genes can be trusted.
    stgen.pl.gene_distances : Draw which genes go together, imputed beside measured.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> reference = stg.datasets.toy_reference(tissue)
    >>> adata = tissue[:, ::2].copy()
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> adata.obsm["causalged"].shape
    (200, 50)
    >>> adata.uns["causalged"]["table"]["verdict"].shape
    (50,)
    """
    from stgen.models.causalged._imputation import Sampling, whole
    from stgen.models.causalged._store import check_path, write_store

    check_adata(adata, copy=copy)
    for_training = {
        "reference": reference,
        "reference_layer": reference_layer,
        "reference_expression": reference_expression,
        "model_kwargs": model_kwargs,
        "train_kwargs": train_kwargs,
    }
    _check_arguments(adata, model, for_training, save, key_added)
    sampling = Sampling(
        n_samples=n_samples, n_steps=n_steps, n_sets=n_sets, order=order, random_state=random_state
    )
    batch_size = None if batch_size is None else whole("batch_size", batch_size)
    path = None if out is None else check_path(out, overwrite=overwrite)
    if path is not None and copy:
        raise ValueError("With `out` nothing is written to `adata`: leave `copy` out.")
    asked = None if genes is None else [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if model is not None:
        ready = _given(adata, model, layer, expression, spatial_key, library_key)
    else:
        assert reference is not None
        _check_genes(asked, adata, reference, sampling, intervals=intervals, in_memory=path is None)
        ready = _trained(
            _spatial_table(adata, reference, layer, expression, spatial_key, library_key),
            _reference_table(reference, reference_layer, reference_expression or "counts"),
            model_kwargs,
            train_kwargs,
            random_state,
            save,
        )
    params = {
        "n_samples": sampling.n_samples,
        "n_steps": sampling.n_steps,
        "n_sets": sampling.n_sets,
        "order": order if isinstance(order, str) else [str(gene) for gene in order],
        "intervals": bool(intervals),
        "reference_layer": reference_layer,
        "reference_expression": (reference_expression or "counts") if model is None else None,
        "random_state": int(random_state),
    }
    if path is not None:
        imputation, made = ready.reader._asked(
            ready.data, asked, sampling, most_bytes=None, intervals=intervals
        )
        record = _record(adata, ready, made, params)
        frame = imputed_frame(adata, made.var, key_added, record)
        return write_store(imputation, frame, path, intervals=intervals, batch_size=batch_size)
    made = ready.reader.impute(
        ready.data,
        genes=asked,
        n_samples=sampling.n_samples,
        n_steps=sampling.n_steps,
        n_sets=sampling.n_sets,
        order=order,
        intervals=intervals,
        random_state=random_state,
        batch_size=batch_size,
    )
    record = _record(adata, ready, made, params)
    adata = editable(adata, copy=copy)
    _write(adata, made, record, key_added)
    return adata if copy else None


class Ready(NamedTuple):
    """A fitted model and the data that it reads."""

    fitted: CausalGeD
    reader: CausalGeD
    """The same model, reading the slots that the user named."""
    path: str
    data: AnnData
    """What is imputed: the user's object, or the table that trained the model."""


# ------------------------------------------------------------------------------------------------------ before anything


def _check_arguments(
    adata: AnnData, model: Any, for_training: Mapping[str, Any], save: str | Path | None, key: str
) -> None:
    """What can be said before anything is read."""
    if (model is None) == (for_training["reference"] is None):
        raise ValueError(
            "Give `reference` (single-cell data to train with) or `model` (a fitted CausalGeD, its folder or hub id), and "
            "not both."
        )
    if model is not None:
        useless = [name for name, value in for_training.items() if value is not None]
        if useless:
            raise ValueError(
                f"`{useless[0]}` is for training; with `model=` nothing is trained. Leave it out."
            )
    else:
        check_adata(for_training["reference"], copy=False)
    check_key(key)
    check_free(model, save)
    check_replaceable(adata, key, METHOD)
    for one in _beside(key).values():
        check_replaceable(adata, one, METHOD, slots=("obsm", "uns"))


def _beside(key: str) -> dict[str, str]:
    """Layers of what the model returns, and where they are written."""
    return {"sd": _keys.spread_key(key)} | {end: _keys.interval_key(key, end) for end in INTERVALS}


def _check_genes(
    genes: list[str] | None,
    adata: AnnData,
    reference: AnnData,
    sampling: Sampling,
    *,
    intervals: bool,
    in_memory: bool,
) -> None:
    """The model says the same, but only after training."""
    from stgen.models.causalged._imputation import check_order, check_size, wanted_genes
    from stgen.models.causalged._model import MAX_BYTES

    check_unique(adata.var_names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    check_unique(
        reference.var_names, "Gene names of the reference", "Run `reference.var_names_make_unique()`."
    )
    measured, known = (list(one.var_names.astype(str)) for one in (adata, reference))
    n_genes = len(wanted_genes(genes, known, measured))
    check_order(sampling.order, [*known, *measured])
    if in_memory:
        check_size(adata.n_obs, n_genes, MAX_BYTES, intervals=intervals)


# ------------------------------------------------------------------------------------------------------------ the model


def _given(
    adata: AnnData,
    model: Any,
    layer: str | None,
    expression: str | None,
    spatial_key: SpatialKey | None,
    library_key: str | None,
) -> Ready:
    from stgen.data._expression import ExpressionField
    from stgen.models import CausalGeD
    from stgen.models.causalged._places import check_spatial_key

    fitted, path = found_model(CausalGeD, model, "impute")
    check_column(adata, library_key)
    place = fitted._field(CoordinatesField)
    check_spatial_key(place, spatial_key)
    scale = fitted._field(ExpressionField).scale
    if expression not in (None, scale):
        raise ValueError(
            f"This CausalGeD was fitted on `expression={scale!r}`; got {expression!r}. Give it expression of that kind "
            "(name its layer with `layer=`), or fit one on yours."
        )
    reader = reading(
        fitted,
        {
            ExpressionField: {"layer": layer},
            type(place): {"key": spatial_key or None, "library_key": library_key},
        },
    )
    check_values(adata, reader._field(ExpressionField))
    return Ready(fitted, reader, path, adata)


def _spatial_table(
    adata: AnnData,
    reference: AnnData,
    layer: str | None,
    expression: str | None,
    spatial_key: SpatialKey | None,
    library_key: str | None,
) -> tuple[AnnData, dict[str, Any]]:
    """Measured genes that the reference has, and places, in a table of our own; and how to set it up."""
    from anndata import AnnData as Table

    from stgen.data._expression import SCALES, ExpressionField
    from stgen.models.causalged._places import places_of
    from stgen.models.causalged._tables import MIN_SHARED

    expression, spatial_key = expression or "counts", _keys.SPATIAL if spatial_key is None else spatial_key
    if expression not in SCALES:
        raise ValueError(f"`expression` must be one of {', '.join(map(repr, SCALES))}; got {expression!r}.")
    library_key = library_column(adata, library_key, usual=_keys.LIBRARY)
    field = ExpressionField(layer, scale=expression)
    check_values(adata, field)
    # what is wrong with the place is said of the user's object, which knows its units
    place = places_of(adata, spatial_key, library_key)
    xy = place.read(adata)[0]
    is_known = adata.var_names.astype(str).isin(reference.var_names.astype(str))
    if is_known.sum() < MIN_SHARED:
        is_known[:] = True  # the model says what is wrong with the names
    elif not is_known.all():
        alone = adata.var_names[~is_known]
        warn(
            f"{len(alone)} measured genes are not in the reference and are not used: {some(alone)}."
            f"{spelling_hint(alone, reference.var_names)}"
        )
    values = read_counts(field.matrix(adata), None if is_known.all() else np.flatnonzero(is_known))
    obs = pd.DataFrame(index=adata.obs_names)
    if library_key is not None:
        obs[library_key] = full_column(adata.obs, library_key)
    table = Table(
        obs=obs, var=pd.DataFrame(index=adata.var_names[is_known]), obsm={} if xy is None else {place.key: xy}
    )
    if layer is None:
        table.X = values
    else:  # a kept model goes on reading the same layer
        table.layers[layer] = values
    setup = {
        "layer": layer,
        "expression": expression,
        "spatial_key": place.key or False,
        "library_key": library_key,
    }
    return table, setup


def _reference_table(reference: AnnData, layer: str | None, expression: str) -> AnnData:
    """The reference's expression in an object of our own, set up; the values are not copied."""
    from anndata import AnnData as Table

    from stgen.data._fields import CountsField
    from stgen.models import CausalGeD

    try:
        values = CountsField(layer).matrix(reference)
        values = read_counts(values) if reference.isbacked else values
        table = Table(X=values, obs=pd.DataFrame(index=reference.obs_names), var=reference.var.copy())
        CausalGeD.setup_reference(table, expression=expression)
    except (ValueError, KeyError) as error:
        # the model calls the same arguments by shorter names
        message = str(error.args[0]).replace("`layer=", "`reference_layer=")
        message = message.replace("`expression", "`reference_expression")
        raise type(error)(f"In `reference`: {message}") from None
    return table


def _trained(
    spatial: tuple[AnnData, Mapping[str, Any]],
    reference: AnnData,
    model_kwargs: Mapping[str, Any] | None,
    train_kwargs: Mapping[str, Any] | None,
    random_state: int,
    save: str | Path | None,
) -> Ready:
    from stgen.models import CausalGeD

    table, setup = spatial
    model_kwargs = {**(model_kwargs or {}), "reference": reference}
    fitted = trained_model(CausalGeD, table, setup, model_kwargs, train_kwargs, random_state)
    return Ready(fitted, fitted, kept(fitted, save), table)


# -------------------------------------------------------------------------------------------------------------- results


def _record(adata: AnnData, ready: Ready, made: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of an imputation, in plain values that h5ad and zarr keep."""
    from stgen.data._expression import ExpressionField

    place, field = ready.reader._field(CoordinatesField), ready.reader._field(ExpressionField)
    facts = made.uns[_keys.CAUSALGED]
    seen = seen_in_training(
        adata,
        np.ones(adata.n_obs, dtype=bool),
        ready.fitted.card,
        library=place.library_key,
        patient=None,
        # what trained here is the user's object, whatever is known of its spots
        learned=np.full(adata.n_obs, True) if ready.data is not adata else ready.reader._learned(adata),
    )
    seen |= _seen_genes(ready.fitted, made, seen)
    return record_of(
        ready.fitted,
        ready.path,
        params={
            "layer": field.layer,
            "expression": field.scale,
            "spatial_key": place.key or None,
            "library_key": place.library_key,
            # logs are not divided by anything
            "target_total": float(facts["target_total"]) if field.scale == "counts" else None,
            **params,
        },
        seen=seen,
        genes=[str(gene) for gene in made.var_names],
        panel=[gene for gene in ready.fitted.measured_genes if gene in adata.var_names],
        scale="normalized",
        share=float(facts["share"]),
        table=columns_of(made.var),
    )


def _seen_genes(fitted: CausalGeD, made: AnnData, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Imputed genes that training had measured; said aloud where that may have been in these spots."""
    genes = made.var_names[made.var_names.isin(fitted.measured_genes)]
    if not len(genes):
        return {}
    if seen or not fitted.card["training_sections"]:
        warn(
            f"{len(genes)} of the {made.n_vars} imputed genes were measured in training, such as {some(genes)}: if the model "
            "was trained on these spots it has seen the answer, and agreement says nothing. Judge imputation by genes that "
            "training never measured."
        )
    return {"genes": np.array(genes.astype(str), dtype=object)}


def _write(adata: AnnData, made: AnnData, record: dict[str, Any], key: str) -> None:
    """Results where they belong; intervals of an earlier result do not stay."""
    if key in adata.layers:
        del adata.layers[key]
    adata.obsm[key] = np.asarray(made.X)
    adata.uns[key] = record
    for name, one in _beside(key).items():
        for slot in (adata.obsm, adata.uns):
            if one in slot:
                del slot[one]
        if name in made.layers:
            adata.obsm[one] = np.asarray(made.layers[name])
            adata.uns[one] = {
                **{
                    part: record[part]
                    for part in ("method", "genes", "scale", TRAIN_SECTIONS)
                    if part in record
                },
                "params": {"of": key},
            }
