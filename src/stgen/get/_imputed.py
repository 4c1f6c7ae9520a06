"""Imputed genes back out: an AnnData that scanpy goes on with, and the truth on the scale of the imputation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._by_name import in_order
from stgen._docs import shared_doc
from stgen._labels import read_labels
from stgen.data._fields import check_counts, read_counts
from stgen.data._names import check_unique, some, spelling_hint
from stgen.data._predictions import Prediction, read_prediction

from ._prediction import _goes_along, _is_prediction

if TYPE_CHECKING:
    from anndata import AnnData

INTERVALS = ("lower_50", "upper_50", "mass_50", "lower_90", "upper_90", "mass_90")
"""Layers of an imputation with intervals: their ends, and what they hold."""
VERDICTS = ("use", "weak", "do not use")
MEASURED = "measured"


@shared_doc
def imputed(adata: AnnData, key: str = _keys.CAUSALGED, *, with_measured: bool = False) -> AnnData:
    """Imputed genes as an AnnData of their own, for scanpy and squidpy to go on with.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.causalged_impute` wrote to.
    key
        Key of the imputation.
    with_measured
        Put the measured genes of ``adata`` in front, log-normalised in the same way.

    Returns
    -------
    AnnData, spots × imputed genes: expected expression in ``X``, log-normalised; ``layers["sd"]``, and ``"lower_90"`` and its
    like if there are intervals (NaN for measured genes). ``var`` has ``predictability``, ``low``, ``high``, ``gain``,
    ``gain_low``, ``gain_high`` and ``verdict`` (``"measured"`` for measured genes). ``obs``, coordinates and embeddings in
    ``obsm``, images and the imputation's own record in ``uns`` come along. Nothing is shared with ``adata``.

    Raises
    ------
    KeyError
        If there is no imputation of that key.

    Examples
    --------
    >>> import scanpy as sc, stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.tl.causalged_impute(adata, reference, train_kwargs={"max_epochs": 2})
    >>> both = stg.get.imputed(adata, with_measured=True)
    >>> both.n_vars
    100
    >>> sc.pp.pca(both, mask_var=both.var["verdict"].isin(["measured", "use"]))
    """
    found = read_imputation(adata, key)
    values = [np.array(found.values, dtype=np.float32)]
    var = [verdicts(found)]
    slots = {"sd": _keys.spread_key(key)} | {name: _keys.interval_key(key, name) for name in INTERVALS}
    layers = {
        name: [np.array(adata.obsm[slot], dtype=np.float32)]
        for name, slot in slots.items()
        if slot in adata.obsm
    }
    if with_measured:
        genes = adata.var_names.astype(str)
        genes = genes[~genes.isin(found.genes)]
        values.insert(0, on_scale(adata, found, _block(adata, _params(found).get("layer"), genes)))
        var.insert(0, pd.DataFrame({"verdict": MEASURED}, index=genes))
        for parts in layers.values():
            parts.insert(0, np.full((adata.n_obs, len(genes)), np.nan, dtype=np.float32))
    table = pd.concat(var)[list(var[-1])]
    categories = [MEASURED] * with_measured + list(VERDICTS)
    table["verdict"] = pd.Categorical(table["verdict"], categories=categories)
    frame = imputed_frame(adata, table, key, adata.uns[key])
    frame.X = np.hstack(values).astype(np.float32)
    for name, parts in layers.items():
        frame.layers[name] = np.hstack(parts)
    return frame


def imputed_frame(adata: AnnData, table: pd.DataFrame, key: str, record: Mapping[str, Any]) -> AnnData:
    """Imputed genes without values: what they have of ``adata``, and the record of the imputation."""
    from anndata import AnnData as Table

    return Table(
        obs=adata.obs.copy(),
        var=table,
        obsm={
            name: value.copy()
            for name, value in adata.obsm.items()
            if name != key and not _is_prediction(adata, name)
        },
        uns=deepcopy(
            {name: value for name, value in adata.uns.items() if _goes_along(name, key)} | {key: record}
        ),
    )


def read_imputation(adata: AnnData, key: str) -> Prediction:
    """An imputation by its key; other predictions have no verdict on their genes."""
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "table" not in record or "panel" not in record:
        raise KeyError(
            f"uns[{key!r}] holds no imputation; uns has {list(adata.uns)}. Impute with `stg.tl.causalged_impute`, or name "
            "the key of an imputation with `key=`."
        )
    return read_prediction(adata, key)


def verdicts(found: Prediction) -> pd.DataFrame:
    """How far each imputed gene can be trusted, genes × columns."""
    table = {str(name): np.asarray(column) for name, column in found.record["table"].items()}
    # files keep columns in the order of the alphabet
    first = ["predictability", "low", "high", "gain", "gain_low", "gain_high", "verdict"]
    names = [name for name in first if name in table] + [name for name in table if name not in first]
    out = pd.DataFrame({name: table[name] for name in names}, index=found.genes)
    out["verdict"] = out["verdict"].astype(str).astype(object)
    return out


def asked_genes(found: Prediction, genes: str | Sequence[str]) -> pd.Index:
    """Genes that the user named, if they were imputed."""
    names = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
    missing = names[~names.isin(found.genes)]
    if len(missing) or not len(names):
        raise KeyError(
            f"`genes` must be imputed genes; {some(missing) or 'none given'} are not. {found.key!r} has "
            f"{len(found.genes)}, such as {some(found.genes)}.{spelling_hint(missing, found.genes)}"
        )
    check_unique(names, "`genes`", "Name each once.")
    return names


# ----------------------------------------------------------------------------------------------------------------- truth


def truth_genes(adata: AnnData, truth: Any) -> pd.Index:
    """Names of the genes whose truth is known."""
    if isinstance(truth, str):
        return read_prediction(adata, truth).genes
    if isinstance(truth, pd.DataFrame):
        return truth.columns.astype(str)
    if hasattr(truth, "var_names"):
        return truth.var_names.astype(str)
    raise TypeError(
        "`truth` must be an AnnData or a table of the same spots that has the imputed genes, or the key of an array in "
        f"`obsm`; got {type(truth).__name__}."
    )


def true_expression(adata: AnnData, found: Prediction, genes: pd.Index, truth: Any) -> np.ndarray:
    """What was measured of imputed genes, spots × genes, on the scale of the imputation."""
    known = truth_genes(adata, truth)
    check_unique(known, "Genes of `truth`", "Drop the copies.")
    missing = genes[~genes.isin(known)]
    if len(missing):
        raise KeyError(
            f"`truth` has no gene {some(missing)}; it has {len(known)}, such as {some(known)}.{spelling_hint(missing, known)}"
        )
    if isinstance(truth, str):
        stored = read_prediction(adata, truth)
        values = stored.block(np.arange(adata.n_obs), genes)
        return values if stored.scale == "normalized" else on_scale(adata, found, values)
    given = None
    if not isinstance(truth, pd.DataFrame):
        layer = _params(found).get("layer")
        block = _block(truth, layer if layer in truth.layers else None, genes)
        given, truth = truth, pd.DataFrame(block, truth.obs_names, genes)
    spots = in_order(truth, adata.obs_names, "`truth`", of="spots of `adata`")
    if len(spots) != adata.n_obs:
        raise ValueError(
            f"`truth` must have all spots of `adata`; it has no names, and {len(spots)} rows for {adata.n_obs} spots."
        )
    if given is not None:
        _check_sections(adata, given, _params(found).get("library_key"))
    values = in_order(spots, genes, "`truth`", axis=1, of="genes")
    return on_scale(adata, found, np.asarray(values, dtype=np.float64))


def _check_sections(adata: AnnData, truth: AnnData, key: str | None) -> None:
    """Barcodes are the same on every slide: raise if these are spots of another section."""
    key = _keys.LIBRARY if key is None else key
    if key not in adata.obs or key not in truth.obs:
        return
    mine = read_labels(adata.obs[key])
    its = read_labels(truth.obs[key]).reindex(mine.index)
    other = np.flatnonzero((mine != its) & its.notna())
    if len(other):
        i = other[0]
        raise ValueError(
            f"`truth` must be of the same spots; {len(other)} of {adata.n_obs} have the same name and are of another section, "
            f"such as {adata.obs_names[i]}: {mine.iloc[i]!r} in obs[{key!r}] of `adata`, {its.iloc[i]!r} in that of `truth`. Give the "
            "truth of these sections; where only their names differ, drop the column from `truth`."
        )


def on_scale(adata: AnnData, found: Prediction, values: np.ndarray) -> np.ndarray:
    """Counts of any genes over the total of the measured ones, as the model has them; logs as they are."""
    params = _params(found)
    if "target_total" not in params:
        return values
    check_counts(values, "the measured expression")
    panel = pd.Index([str(gene) for gene in found.record["panel"]])
    gone = panel[~panel.isin(adata.var_names)]
    if len(gone):
        raise ValueError(
            f"Spots are divided by their total of the {len(panel)} measured genes that the imputation read; {len(gone)} of "
            f"them are no longer in this AnnData: {some(gone)}. Use the one that was imputed."
        )
    total = np.asarray(_counts(adata, params.get("layer"), panel).sum(axis=1), dtype=np.float64).reshape(
        -1, 1
    )
    return np.log1p(values * (float(params["target_total"]) / np.maximum(total, 1.0)))


def _params(found: Prediction) -> Mapping[str, Any]:
    return found.record["params"]


def _counts(adata: AnnData, layer: Any, genes: pd.Index) -> Any:
    """Some genes as they were measured."""
    return read_counts(
        adata.X if layer is None else adata.layers[str(layer)], adata.var_names.get_indexer(genes)
    )


def _block(adata: AnnData, layer: Any, genes: pd.Index) -> np.ndarray:
    """The same, dense."""
    block = _counts(adata, layer, genes)
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)
