"""Sentences that several public docstrings share, so that a parameter means the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

SHARED = {
    "adata": "Annotated data matrix, spots (or cells) × genes.",
    "spatial_key": 'Key in ``obsm`` of the coordinates, spots × 2, in µm. ``"spatial"`` means '
    '``obsm["spatial_um"]`` where that is, see :func:`stgen.pp.coordinates_in_um`.',
    "library_key": "Column of ``obs`` that tells sections apart. Without it all spots are one section.",
    "histology_key": "Key in ``obsm`` of the histology embedding, spots × features.",
    "layer": "Layer that holds the counts. ``None`` means ``X``.",
    "random_state": "Seed. The same seed gives the same result; the global random state is left as found.",
    "gest_model": "A fitted :class:`stgen.models.GeST`, the folder of one, or its id on the Hugging Face Hub "
    "(``owner/name``).",
    "gest_train_on": "Instead of a model: sections to train one on, as one AnnData, a list of them, or a mapping from "
    "name to section. Several are put together by the genes that all have.",
    "gest_save": "Folder in which the model that was trained here is kept. Without it the model is forgotten.",
    "gest_layer": "Layer of the expression. ``None`` means what the model was fitted with, else ``X``.",
    "gest_expression": 'For training: ``"counts"`` (the default; the model divides by the total of each cell and takes '
    'the logarithm) or ``"log"`` (log-normalised already).',
    "gest_spatial_key": "Key in ``obsm`` of the coordinates in µm. ``None`` means what the model was fitted with, else "
    '``"spatial"``, for which ``obsm["spatial_um"]`` is read where it is.',
    "gest_library_key": "Column of ``obs`` that tells sections apart. ``None`` means what the model was fitted with, else "
    '``"section"`` if that exists. An AnnData without the column is one section.',
    "gest_patient_key": 'Column of ``obs`` with the patient; ``"patient"`` if that exists.',
    "gest_split_key": 'Column of ``obs`` written by :func:`stgen.pp.split`; ``"split"`` if that exists. Without it all '
    "cells are for training.",
    "gest_model_kwargs": "For training: ``preset`` and fields of :class:`stgen.models.GeSTConfig`.",
    "gest_train_kwargs": "For training: keywords of :meth:`stgen.models.GeST.train`.",
    "he_train_on": "Instead of a model: sections with counts, as one AnnData, a list of them, or a mapping from name to "
    "section. Several are put together by the genes that all have. They may include ``adata``: only rows of "
    '``split_key`` that are called ``"train"`` (and ``"validation"``, for when to stop) are used.',
    "he_save": "Folder in which the model that was trained here is kept. Without it the model is forgotten.",
    "he_genes": "Genes to predict; when training, the panel. By default all genes of the model; when training, "
    '``var["gene_panel"]``, else a panel chosen from training rows by the rule of :func:`stgen.pp.gene_panel`.',
    "he_n_genes": "Size of a panel that is chosen here; sections with fewer genes keep all of them.",
    "he_layer": "Layer of ``train_on`` that holds the counts. ``None`` means ``X``.",
    "he_histology_key": "Key in ``obsm`` of the histology embedding. ``None`` means what the model was fitted with, else "
    '``"X_histology"``.',
    "he_tiles_key": "Instead of ``histology_key``: key in ``obsm`` of tiles as :func:`stgen.pp.histology_tiles` writes "
    "them. ``None`` means what the model was fitted with.",
    "he_spatial_key": "Key in ``obsm`` of the coordinates in µm. ``None`` means what the model was fitted with, else "
    '``"spatial"``, for which ``obsm["spatial_um"]`` is read where it is.',
    "he_library_key": "Column of ``obs`` that tells sections apart. ``None`` means what the model was fitted with, else "
    '``"section"`` if that exists. An ``adata`` without the column is one section.',
    "he_patient_key": 'Column of ``obs`` with the patient; ``"patient"`` if that exists.',
    "he_split_key": 'Column of ``obs`` written by :func:`stgen.pp.split`; ``"split"`` if that exists. Without it all '
    "rows of ``train_on`` are for training.",
    "copy": "Return a changed copy instead of changing ``adata``.",
}

# not the % operator: a docstring may speak of "10 % of the spots"
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


def shared_doc(function: F) -> F:
    """Fill ``%(name)s`` in a docstring with the shared sentence of that name."""
    if function.__doc__:  # python -OO strips docstrings
        function.__doc__ = _PLACEHOLDER.sub(lambda found: SHARED[found[1]], function.__doc__)
    return function
