"""Which genes a coarse-to-fine model generates together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stgen import _keys

_SCALE = "scale_"


def gene_groups(model_or_adata: Any, *, key: str = _keys.GENAR) -> pd.DataFrame:
    """Gene groups of a model, coarse to fine, as a tidy table.

    Parameters
    ----------
    model_or_adata
        A fitted model such as :class:`stgen.models.GenAR`, or an AnnData that :func:`stgen.tl.genar_predict` wrote to.
    key
        Key of the prediction, for an AnnData.

    Returns
    -------
    One row for each gene and scale: ``gene``, ``scale`` (the number of groups that it has, 1 is the whole panel),
    ``group`` (numbered from 0 within the scale), ``n_genes`` in the group. All genes of the model, also where only some
    were predicted.

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
    >>> stg.get.gene_groups(new)["scale"].unique()
    array([ 1,  2, 20])
    """
    is_model = hasattr(model_or_adata, "get_gene_groups")
    wide = model_or_adata.get_gene_groups() if is_model else _stored_groups(model_or_adata, key)
    parts = []
    for column in wide.columns:
        group = wide[column].to_numpy()
        parts.append(
            pd.DataFrame(
                {
                    "gene": wide.index.to_numpy(),
                    "scale": int(column.removeprefix(_SCALE)),
                    "group": group,
                    "n_genes": np.bincount(group)[group],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


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
    return pd.DataFrame(table, index=pd.Index(np.asarray(stored["gene"]).astype(str), name="gene"))
