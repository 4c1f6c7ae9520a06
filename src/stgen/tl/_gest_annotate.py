"""Names of niches from some labelled cells: find or fit a GeST, teach it the labels, write what it calls."""

from __future__ import annotations

import copy as copies
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._identity import Spots
from stgen.pp._editing import check_adata, editable

from ._gest_source import (
    METHOD,
    Ready,
    Source,
    gest_record,
    labels_to_learn,
    quantization,
    ready_model,
    seen,
)
from ._records import check_key, check_replaceable

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GeST

ANNOTATION = "an annotation"


@shared_doc
def gest_annotate(
    adata: AnnData,
    *,
    labels_key: str | None = None,
    model: GeST | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
    by_section: bool | None = None,
    save: str | Path | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    expression: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    random_state: int = 0,
    key_added: str = _keys.GEST_NICHE,
    copy: bool = False,
) -> AnnData | None:
    """Name the niche of every cell, as labelled cells are named, with :class:`stgen.models.GeST`.

    Labels come from the sections of ``train_on``; without those and without a ``model``, from the labelled cells of
    ``adata``, which then train the model too. A ``model`` may know labels already; else the labelled cells of ``adata``
    teach a copy of it.

    Parameters
    ----------
    adata
        Cells to name.
    labels_key
        Column of ``obs`` with the labels to learn; cells whose label is missing teach nothing. Can be left out for a
        ``model`` that has learned labels.
    model
        %(gest_model)s
    train_on
        %(gest_train_on)s They hold the labels.
    by_section
        Compare each cell with the rest of its own section, so that patients, chemistry and depth cancel, and with them
        what a section has more of. ``None`` does so if labelled cells lie in several sections.
    save
        %(gest_save)s What it learned of the labels is kept with it.
    genes
        For training: genes to use. By default all that the sections share.
    layer
        %(gest_layer)s
    expression
        %(gest_expression)s
    spatial_key
        %(gest_spatial_key)s
    library_key
        %(gest_library_key)s
    patient_key
        %(gest_patient_key)s
    split_key
        %(gest_split_key)s Labels of other rows than ``"train"`` are not read.
    model_kwargs
        %(gest_model_kwargs)s
    train_kwargs
        %(gest_train_kwargs)s
    random_state
        %(random_state)s
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obs[key_added]``, the likeliest label (categorical), for all cells, also those that
    taught; ``obsm["{key_added}_probability"]``, cells × labels, float32; and ``uns[key_added]``: ``classes`` (the
    labels, in the order of those columns), ``n_learned`` (cells of ``adata`` whose label taught; leave them out when
    counting errors), ``params``, ``model``, ``quantization``, ``seen_in_training`` and ``versions``.
    :func:`stgen.get.niches` gives a table.

    Raises
    ------
    ValueError
        If there are no labels, only one, or one of a single cell; if inputs are not like those the model was fitted on,
        or the result would replace something that is not an annotation.

    See Also
    --------
    stgen.pl.niches : Draw niches in space.
    stgen.pl.confusion : Draw what true labels were called.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=200, unit="cells")
    >>> known, new = adata[adata.obs["section"] == "s1"].copy(), adata[adata.obs["section"] == "s2"].copy()
    >>> stg.tl.gest_annotate(new, train_on=known, labels_key="region", train_kwargs={"max_epochs": 1})
    >>> new.obs["gest_niche"].cat.categories.tolist()
    ['layer_1', 'layer_2', 'layer_3', 'layer_4']
    """
    check_adata(adata, copy=copy, rows_are="cells")
    check_key(key_added)
    slot = _keys.probability_key(key_added)
    for where, one in (("obs", key_added), ("uns", key_added), ("obsm", slot)):
        check_replaceable(adata, one, METHOD, task=ANNOTATION, slots=(where,), owner=key_added)
    source = Source(
        model=model,
        train_on=train_on,
        save=save,
        genes=genes,
        layer=layer,
        expression=expression,
        spatial_key=spatial_key,
        library_key=library_key,
        patient_key=patient_key,
        split_key=split_key,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        random_state=random_state,
        labels_key=labels_key,
        by_section=by_section,
    )
    source.check()
    if model is None and labels_key is None:
        raise ValueError(
            "`labels_key` must name the column of `obs` with the labels to learn; only a `model` that has learned labels "
            "needs none."
        )
    if model is not None and genes is not None:
        raise ValueError("`genes` are for training; a fitted GeST brings its own. Leave `genes` out.")
    if labels_key == key_added:
        raise ValueError(f"`key_added` is {key_added!r}, where the labels lie. Choose another `key_added`.")
    ready = ready_model(adata, source, "annotate")
    reader, learned = _taught(adata, ready, labels_key, by_section)
    found = reader.annotate(adata)

    values = found.to_numpy(dtype=np.float32)
    classes = [str(name) for name in found.columns]
    record = gest_record(
        ready,
        ANNOTATION,
        seen(adata, ready, np.ones(adata.n_obs, dtype=bool)),
        {"labels_key": labels_key, "random_state": int(random_state)},
        classes=classes,
        n_learned=int(learned.sum()),
        quantization=quantization(adata, reader),
    )
    adata = editable(adata, copy=copy)
    adata.obs[key_added] = pd.Categorical.from_codes(values.argmax(axis=1), categories=pd.Index(classes))
    adata.obsm[slot] = values
    adata.uns[key_added] = record
    return adata if copy else None


def _taught(
    adata: AnnData, ready: Ready, labels_key: str | None, by_section: bool | None
) -> tuple[GeST, np.ndarray]:
    """A model that knows the labels, and which cells of ``adata`` taught it."""
    if ready.is_new:
        return ready.reader, Spots.of(adata, ready.reader._fields).among(ready.teachers)
    if labels_key is None:
        return ready.reader, np.zeros(adata.n_obs, dtype=bool)
    split = ready.slots.split or (_keys.SPLIT if _keys.SPLIT in adata.obs else None)
    labels = labels_to_learn(adata, labels_key, split)
    # the user's model keeps what it knows: another head, on a copy of the network
    reader = copies.copy(ready.reader)
    reader.module = copies.deepcopy(ready.reader.module)
    reader.learn_labels(labels_key, _with_column(adata, labels_key, labels), by_section=by_section)
    return reader, labels.notna().to_numpy()


def _with_column(adata: AnnData, key: str, column: pd.Series) -> AnnData:
    """The same data with another column; nothing is copied but ``obs``."""
    from anndata import AnnData as Table

    adata = adata.to_memory() if adata.isbacked else adata
    return Table(
        X=adata.X,
        obs=adata.obs.assign(**{key: column}),
        var=adata.var,
        obsm=dict(adata.obsm),
        layers={name: layer for name, layer in adata.layers.items() if name is not None},
        uns=adata.uns,
    )
