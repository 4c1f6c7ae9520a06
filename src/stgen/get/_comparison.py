"""Predictions against each other, on the same genes and spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc

if TYPE_CHECKING:
    from anndata import AnnData

PAIRS = "pairs"


@shared_doc
def comparison(adata: AnnData, *, key: str = _keys.EVALUATION) -> pd.DataFrame:
    """Paired differences between the predictions that :func:`stgen.tl.evaluate` scored together.

    Differences are taken gene by gene and section by section, on the genes that all predictions have, and then
    averaged: what makes a gene or a section hard is the same for both.

    Parameters
    ----------
    adata
        %(adata)s
    key
        Key of the results of :func:`stgen.tl.evaluate`.

    Returns
    -------
    Table with one row for each pair of predictions, metric and scale, Pearson on the normalized scale first. ``value`` and
    ``other_value`` are means over genes and sections; ``gain`` is what ``method`` is ahead of ``other``, turned so that
    more is better, from ``gain_low`` to ``gain_high`` by a bootstrap over ``interval`` (as in :func:`stgen.tl.evaluate`).
    ``n_better`` of ``n_sections`` sections and ``share_better`` of all pairs of gene and section favour ``method``.
    A gene that only one of both can be scored on takes no part, and ``n_undefined`` counts them; a constant prediction
    has a correlation of 0. ``better`` names a prediction if the interval does not hold 0, else it is "undecided", or
    "undefined" if there is no gain. ``flags`` tells what weakens the comparison, such as genes that only one has.

    Raises
    ------
    KeyError
        If there are no results, or only one prediction was scored.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> adata.layers["exact"] = adata.X.toarray()
    >>> adata.layers["flat"] = 0 * adata.layers["exact"] + 1
    >>> table = stg.tl.evaluate(adata, ["exact", "flat"], baselines=False)
    >>> stg.get.comparison(adata)["better"].iloc[0]
    'exact'
    """
    record = adata.uns.get(key)
    if record is None:
        raise KeyError(
            f"uns[{key!r}] does not exist; uns has {list(adata.uns)}. Score predictions with "
            "`stg.tl.evaluate(adata, [..., ...])`."
        )
    if PAIRS not in record:
        scored = list(map(str, record.get("params", {}).get("predictions", [])))
        raise KeyError(
            f"uns[{key!r}] compares no predictions: only {scored} was scored. Name several at once: "
            "`stg.tl.evaluate(adata, [..., ...])`."
        )
    columns = record[PAIRS]
    order = [name for name in COLUMNS if name in columns]
    return pd.DataFrame({name: np.asarray(columns[name]) for name in order})


COLUMNS = (
    "method",
    "other",
    "metric",
    "scale",
    "value",
    "other_value",
    "gain",
    "gain_low",
    "gain_high",
    "interval",
    "n_sections",
    "n_better",
    "share_better",
    "n_genes",
    "n_undefined",
    "better",
    "flags",
)
"""In this order; a file keeps them in that of the alphabet."""
