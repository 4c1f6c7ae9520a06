"""Predictions with the names of their spots and genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._names import some, spelling_hint
from stgen.data._predictions import GENES, Prediction, read_prediction

if TYPE_CHECKING:
    from anndata import AnnData


@shared_doc
def prediction(adata: AnnData, key: str = _keys.GENAR, *, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """A prediction as a table, spots × genes.

    Parameters
    ----------
    adata
        %(adata)s
    key
        Key of the prediction, a layer or an array in ``obsm``: ``"genar"`` for counts, ``"genar_sd"`` for their spread,
        ``"genar_normalized"`` for depth-normalised log-expression.
    genes
        Genes, in the order wanted. ``None`` means all that were predicted.

    Returns
    -------
    Table, spots × genes.

    Raises
    ------
    KeyError
        If there is no prediction of that key.
    ValueError
        If a gene was not predicted.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=50, n_genes=10)
    >>> adata.layers["mine"] = adata.X.toarray()
    >>> stg.get.prediction(adata, "mine", genes=["gene_002"]).shape
    (50, 1)
    """
    found = read_prediction(adata, key)
    names, values = found.genes, _dense(found)
    if genes is not None:
        asked = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
        positions = names.get_indexer(asked)
        if (positions < 0).any():
            missing = asked[positions < 0]
            raise ValueError(
                f"{key!r} has no gene {some(missing)}; it has {some(names)}.{spelling_hint(missing, names)}"
            )
        names, values = asked, values[:, positions]
    return pd.DataFrame(values, index=adata.obs_names, columns=names)


@shared_doc
def as_anndata(adata: AnnData, key: str = _keys.GENAR) -> AnnData:
    """A prediction as an AnnData of its own, for scanpy and squidpy to go on with.

    Parameters
    ----------
    adata
        %(adata)s
    key
        Key of the prediction.

    Returns
    -------
    AnnData, spots × predicted genes: the prediction in ``X``, what was predicted beside it in ``layers`` (``"sd"``, in
    counts, ``"normalized"``, ``"counts"``), ``obs``, ``var`` if ``adata`` has all of the genes, coordinates and embeddings in ``obsm``, images and
    the prediction's own record in ``uns``. Measured counts are left behind. Nothing is shared with ``adata``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=50, n_genes=10)
    >>> adata.layers["mine"] = adata.X.toarray()
    >>> stg.get.as_anndata(adata, "mine")
    AnnData object with n_obs × n_vars = 50 × 10 ...
    """
    from anndata import AnnData

    found = read_prediction(adata, key)
    beside = {
        "sd": _keys.spread_key(key),
        "normalized": _keys.normalized_key(key),
        "counts": _keys.counts_key(key),
    }
    is_known = found.genes.isin(adata.var_names).all()
    new = AnnData(
        _dense(found).copy(),
        obs=adata.obs.copy(),
        var=adata.var.loc[found.genes].copy() if is_known else pd.DataFrame(index=found.genes),
        obsm={
            name: value.copy()
            for name, value in adata.obsm.items()
            if name != key and not _is_prediction(adata, name)
        },
    )
    for name, one in beside.items():
        if one in adata.layers or one in adata.obsm:
            other = read_prediction(adata, one)
            if other.genes.equals(found.genes):
                new.layers[name] = _dense(other).copy()
    new.uns = deepcopy({name: value for name, value in adata.uns.items() if _goes_along(name, key)})
    return new


def _dense(found: Prediction) -> np.ndarray:
    return found.values.toarray() if sparse.issparse(found.values) else np.asarray(found.values)


def _is_prediction(adata: AnnData, name: str) -> bool:
    record = adata.uns.get(name)
    return isinstance(record, Mapping) and GENES in record


def _goes_along(name: str, key: str) -> bool:
    """Images, units and colours of what is in ``obs``, and how the prediction was made."""
    kept = (
        key,
        _keys.IMAGES,
        _keys.SPATIAL_UM,
        _keys.SPATIALDATA_ATTRS,
        _keys.UM_PER_UNIT,
        _keys.UM_PER_UNIT_REASON,
        _keys.HISTOLOGY_PARAMS,
    )
    return name in kept or name.endswith("_colors")
