"""Which genes a coarse-to-fine model generates together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stgen import _keys

_SCALE = "scale_"


def gene_groups(model_or_adata: Any, *, key: str = _keys.GENAR) -> pd.DataFrame:
    """Gene groups of a model, coarse to fine.

    Parameters
    ----------
    model_or_adata
        A fitted model such as :class:`stgen.models.GenAR`, or an AnnData that :func:`stgen.tl.genar_predict` wrote to.
    key
        Key of the prediction, for an AnnData.

    Returns
    -------
    Table with one row for each gene of the model (also where only some were predicted) and one column for each scale,
    ``scale_1`` (the whole panel) first: the number of its group, from 0. :func:`stgen.pl.gene_groups` draws it.

    Raises
    ------
    KeyError
        If the AnnData holds no gene groups under ``key``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=100, n_genes=20)
    >>> train, new = adata[:100].copy(), adata[100:].copy()
    >>> stg.tl.genar_predict(new, train_on=train, train_kwargs={"max_epochs": 1})
    >>> list(stg.get.gene_groups(new))
    ['scale_1', 'scale_2', 'scale_20']
    """
    if hasattr(model_or_adata, "get_gene_groups"):
        return model_or_adata.get_gene_groups()
    return _stored_groups(model_or_adata, key)


def _stored_groups(adata: Any, key: str) -> pd.DataFrame:
    """Genes × scales from ``uns``; a file keeps keys in the order of the alphabet, so scales are put in theirs."""
    if not hasattr(adata, "uns"):
        raise TypeError(f"A fitted model or an AnnData is expected; got {type(adata).__name__}.")
    record = adata.uns.get(key, {})
    stored = record.get("gene_groups") if isinstance(record, Mapping) else None
    if stored is None:
        raise KeyError(
            f"uns[{key!r}] holds no gene groups; uns has {list(adata.uns)}. Write a prediction with `stg.tl.genar_predict`, "
            "or name its key with `key=`."
        )
    columns = sorted(
        (name for name in stored if name.startswith(_SCALE)), key=lambda name: int(name.removeprefix(_SCALE))
    )
    table = {name: np.asarray(stored[name], dtype=np.int64) for name in columns}
    return pd.DataFrame(table, index=pd.Index([str(gene) for gene in stored["gene"]], name="gene"))
