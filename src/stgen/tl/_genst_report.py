"""Which genes morphology shows and what codes stand for, written beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import CoordinatesField, CountsField, HistologyField, PatientField, SplitField
from stgen.data._names import align_genes
from stgen.data._tiles import TilesField
from stgen.pp._editing import check_adata, editable

from ._fitted import (
    check_column,
    check_image_key,
    check_one_image,
    found_model,
    image_field,
    image_param,
    reading,
)
from ._records import check_key, check_replaceable, columns_of, record_of, seen_in_training, warn_of_seen

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GenST

REPORT = "a report"
COLUMNS = ("captured", "captured_low", "captured_high", "r_cross", "ceiling", "reliability", "n_spots")
CODES = {"codes": "expression", "codes_translated": "translated", "codes_histology": "histology"}
"""Ending of the key in ``obsm`` → whose codes."""


@shared_doc
def genst_report(
    adata: AnnData,
    *,
    model: GenST | str | Path,
    indices: Sequence[int] | np.ndarray | None = None,
    layer: str | None = None,
    histology_key: str | None = None,
    tiles_key: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    n_boot: int = 1000,
    n_halvings: int = 5,
    n_permutations: int = 20,
    n_markers: int = 10,
    random_state: int = 0,
    batch_size: int | None = None,
    key_added: str = _keys.GENST_REPORT,
    copy: bool = False,
) -> AnnData | None:
    """Report which genes morphology shows, by a :class:`stgen.models.GenST`, and what its codes stand for.

    A gene's captured share is r²/reliability: r correlates what the image says with what was measured, and reliability
    is the share of measured variance that a second measurement would show again (each molecule goes to one of two halves;
    Spearman-Brown). What varies from spot to spot and not by counting alone (overdispersion) passes for signal there,
    so the share is of *reproducible* variance and rather too small than too large. Use patients that the model has not
    seen.

    Parameters
    ----------
    adata
        Spots with histology and counts of all the model's genes. It may have others too.
    model
        A fitted :class:`stgen.models.GenST`, the folder of one, or its id on the Hugging Face Hub (``owner/name``).
    indices
        Rows to report on: numbers, a mask (a Series is joined by name) or names. By default those called ``"test"`` by ``split_key``, else ``"validation"``, else all.
    layer
        Layer of the counts. ``None`` means what the model was fitted with.
    histology_key
        Key in ``obsm`` of the histology embedding. ``None`` means what the model was fitted with.
    tiles_key
        %(he_tiles_key)s
    spatial_key
        %(he_spatial_key)s
    library_key
        Column of ``obs`` that tells sections apart. ``None`` means what the model was fitted with. An ``adata`` without
        the column is one section.
    patient_key
        Column of ``obs`` with the patient; ``"patient"`` if that exists. Only to warn of patients the model was trained on.
    split_key
        Column of ``obs`` written by :func:`stgen.pp.split`; ``"split"`` if that exists.
    n_boot
        Draws of the intervals: over sections, and over spatial blocks within each of them.
    n_halvings
        Times that counts are divided into halves.
    n_permutations
        Shuffles of spots within sections, for how much two codes seem to say about each other by chance.
    n_markers
        Marker genes of each code.
    random_state
        %(random_state)s
    batch_size
        Spots at once.
    key_added
        Key of the results; without ``_report`` at its end it is also the beginning of columns and keys.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes

    - ``var["genst_captured"]`` with ``"genst_captured_low"`` and ``"genst_captured_high"`` (95 %), ``"genst_r_cross"``,
      ``"genst_ceiling"`` (r of measured with made again from the gene's own codes), ``"genst_reliability"`` and
      ``"genst_n_spots"``; NaN for genes that the model does not know. Captured is 0 where ``r_cross`` < 0 and NaN where
      reliability is below 0.1. :func:`stgen.get.gene_capture` gives a table, :func:`stgen.pl.gene_capture` a plot;
    - ``obsm["genst_codes"]``, ``obsm["genst_codes_translated"]`` (the most probable, from the image alone) and
      ``obsm["genst_codes_histology"]``, spots × tokens, of all spots; for :func:`stgen.pl.code_tiles`;
    - ``uns["genst_report"]``: ``codes``, ``markers`` (:func:`stgen.get.code_markers`), ``tokens`` (perplexity),
      ``information`` (bits that image and expression codes say about each other, raw and without those by chance), as
      :meth:`stgen.models.GenST.report` describes them, ``intervals`` (``"sections and blocks"``, or ``"blocks"`` of one section), ``n_spots``,
      ``params``, ``model``, ``versions`` and ``seen_in_training``.

    Raises
    ------
    ValueError
        If inputs are not like those the model was fitted on, no section has 10 spots, or something would be replaced that
        is not a report.

    Warns
    -----
    UserWarning
        If a patient or a section of these rows is one of those the model was trained on, or codebooks have collapsed.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> stg.models.GenST.setup_anndata(adata, library_key="section", patient_key="patient", split_key="split")
    >>> model = stg.models.GenST(adata)
    >>> model.train(max_epochs=4)
    >>> stg.tl.genst_report(adata, model=model)
    >>> best = adata.var["genst_captured"].nlargest(3)
    """
    check_adata(adata, copy=copy)
    check_key(key_added)
    check_one_image(histology_key, tiles_key)
    slots = {name: _keys.report_key(key_added, name) for name in (*COLUMNS, *CODES)}
    check_replaceable(adata, key_added, "GenST", task=REPORT, slots=("uns",))
    for name, slot in slots.items():
        where = "var" if name in COLUMNS else "obsm"
        check_replaceable(adata, slot, "GenST", task=REPORT, slots=(where,), owner=key_added)

    from stgen.models import GenST
    from stgen.models.genst._report import report_of
    from stgen.models.genst._sections import rows_to_report

    fitted, path = found_model(GenST, model, "report")
    for column in (library_key, patient_key, split_key):
        check_column(adata, column)
    split_key = split_key or fitted._field(SplitField).key or _keys.SPLIT
    patient_key = patient_key or fitted._field(PatientField).key or _keys.PATIENT
    check_image_key(fitted, histology_key, tiles_key)
    reader = reading(
        fitted,
        {
            HistologyField: {"key": histology_key},
            TilesField: {"key": tiles_key},
            CoordinatesField: {"key": spatial_key, "library_key": library_key},
            CountsField: {"layer": layer},
        },
    )
    reader._field(CountsField).compare(fitted._facts["counts"], adata)
    rows = rows_to_report(adata, split_key, indices)
    seen = _seen(adata, rows, reader, reader._field(CoordinatesField).library_key, patient_key)
    asked = {
        "n_boot": n_boot,
        "n_halvings": n_halvings,
        "n_permutations": n_permutations,
        "n_markers": n_markers,
    }
    report = report_of(reader, adata, rows, batch_size=batch_size, random_state=random_state, **asked)
    codes = {
        name: reader.codes(adata, modality=side, batch_size=batch_size).to_numpy(dtype=np.int16)
        for name, side in CODES.items()
    }

    place = reader._field(CoordinatesField)
    record = record_of(
        fitted,
        path,
        params={
            "layer": reader._field(CountsField).layer,
            image_param(image_field(reader)): image_field(reader).attr_key,
            "spatial_key": place.key,
            "library_key": place.library_key,
            "split_key": split_key if split_key in adata.obs and indices is None else None,
            "random_state": int(random_state),
            **{name: int(number) for name, number in asked.items()},
        },
        seen=seen,
        task=REPORT,
        intervals=report.drawn,
        n_spots=report.n_spots,
        **{name: columns_of(getattr(report, name)) for name in ("codes", "markers", "tokens", "information")},
    )
    columns = _for_var(report.genes, adata)
    adata = editable(adata, copy=copy)
    for name in COLUMNS:
        adata.var[slots[name]] = columns[name].to_numpy()
    for name, values in codes.items():
        adata.obsm[slots[name]] = values
    adata.uns[key_added] = record
    return adata if copy else None


def _seen(
    adata: AnnData, rows: np.ndarray, model: GenST, library_key: str | None, patient_key: str
) -> dict[str, Any]:
    """What the model was trained on among these rows; said aloud."""
    mask = np.zeros(adata.n_obs, dtype=bool)
    mask[rows] = True
    learned = model._learned(adata)
    seen = seen_in_training(
        adata, mask, model.card, library=library_key, patient=patient_key, learned=learned
    )
    warn_of_seen(seen, "what it captures there says little about new patients.")
    return seen


def _for_var(genes: pd.DataFrame, adata: AnnData) -> pd.DataFrame:
    """Rows of all genes of the AnnData, by their place: names may be written differently."""
    place = align_genes(list(genes.index), adata.var_names, var=adata.var)
    table = genes.reset_index(drop=True).set_axis(place).reindex(range(adata.n_vars))
    table["n_spots"] = table["n_spots"].fillna(0).astype(np.int64)
    return table
