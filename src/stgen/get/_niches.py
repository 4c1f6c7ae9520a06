"""Niches and labels of cells as tables: where each cell lies and how sure its niche is, meta cells, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen._labels import read_labels, spelling, without_cast
from stgen.data._places import library_column, read_xy

if TYPE_CHECKING:
    from anndata import AnnData

NORMALIZE = ("truth", "prediction")


@shared_doc
def niches(
    adata: AnnData,
    key: str = _keys.GEST_NICHE,
    *,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
) -> pd.DataFrame:
    """Where every cell lies and which niche it is in, one row for each cell.

    Parameters
    ----------
    adata
        %(adata)s
    key
        Column of ``obs``: niches of :func:`stgen.tl.gest_annotate`, or clusters of a niche embedding.
    spatial_key
        %(spatial_key)s
    library_key
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists.

    Returns
    -------
    Table with ``section`` (if there is one), ``x``, ``y`` and ``niche``; where some cells taught the labels, ``learned``
    (leave those out of any score); where there are probabilities of niches, ``probability`` of the niche that was called and then one column for each niche.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=50)
    >>> list(stg.get.niches(adata, "region"))
    ['section', 'x', 'y', 'niche']
    """
    _check_column(adata, key)
    table = places(adata, spatial_key, library_key)
    table["niche"] = without_cast(adata.obs[key])
    learned = learned_cells(adata, key)
    if learned is not None:
        table["learned"] = learned
    found = _probabilities(adata, key)
    if found is not None:
        table["probability"] = found.max(axis=1)
        table = pd.concat([table, found], axis=1)
    return table


def places(adata: AnnData, spatial_key: str, library_key: str | None) -> pd.DataFrame:
    """Section, x and y of every cell."""
    xy = read_xy(adata, spatial_key, rows_are="cells")
    library_key = library_column(adata, library_key, usual=_keys.LIBRARY)
    table = pd.DataFrame(index=adata.obs_names)
    if library_key is not None:
        table["section"] = adata.obs[library_key]
    table["x"], table["y"] = xy[:, 0], xy[:, 1]
    return table


def _check_column(adata: AnnData, key: str) -> None:
    if key not in adata.obs:
        raise KeyError(f"obs[{key!r}] does not exist; obs has {list(adata.obs.columns)}.")


def learned_cells(adata: AnnData, key: str) -> np.ndarray | None:
    """Which cells taught the model that wrote ``obs[key]``; ``None`` if none did."""
    column = _keys.learned_key(key)
    if column not in adata.obs or not isinstance(adata.uns.get(key), Mapping):
        return None
    return adata.obs[column].to_numpy(dtype=bool)


def _probabilities(adata: AnnData, key: str) -> pd.DataFrame | None:
    """Cells × classes, if they were written beside the labels."""
    record, slot = adata.uns.get(key), _keys.probability_key(key)
    if slot not in adata.obsm or not isinstance(record, Mapping) or "classes" not in record:
        return None
    values = np.asarray(adata.obsm[slot])
    return pd.DataFrame(values, index=adata.obs_names, columns=[str(name) for name in record["classes"]])


@shared_doc
def confusion(
    adata: AnnData,
    truth: str,
    prediction: str = _keys.GEST_NICHE,
    *,
    normalize: str | None = None,
    with_learned: bool = False,
) -> pd.DataFrame:
    """How often each true label was called each label.

    Parameters
    ----------
    adata
        %(adata)s
    truth
        Column of ``obs`` with true labels. Cells without one are left out.
    prediction
        Column of ``obs`` with labels that were called.
    normalize
        ``"truth"`` divides by the cells of each true label, ``"prediction"`` by those of each label called. ``None``
        counts cells.
    with_learned
        Also count cells whose label taught the model that calls (``obs["{prediction}_learned"]`` of
        :func:`stgen.tl.gest_annotate`). By default they are left out, and ``attrs["n_learned"]`` says how many: a
        model that has seen the answer is not judged by it.

    Returns
    -------
    Table, true labels × labels called. Labels that both have come first and in the same order, so that agreement is the
    diagonal.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=50)
    >>> stg.get.confusion(adata, "region", "region", normalize="truth").to_numpy().trace()
    4.0
    """
    if normalize is not None and normalize not in NORMALIZE:
        raise ValueError(
            f"`normalize` must be one of {', '.join(map(repr, NORMALIZE))} or None; got {normalize!r}."
        )
    for key in (truth, prediction):
        _check_column(adata, key)
    true, called = (read_labels(adata.obs[key], f"obs[{key!r}]") for key in (truth, prediction))
    is_judged = (true.notna() & called.notna()).to_numpy()
    if not is_judged.any():
        raise ValueError(f"No cell has a label in both obs[{truth!r}] and obs[{prediction!r}].")
    learned = None if with_learned else learned_cells(adata, prediction)
    n_learned = 0 if learned is None else int((is_judged & learned).sum())
    if learned is not None:
        is_judged = is_judged & ~learned
    if not is_judged.any():
        raise ValueError(
            f"All {n_learned} cells with a label in obs[{truth!r}] taught the model that wrote obs[{prediction!r}], so that "
            "none is left to judge it by. Name cells that did not teach, or say `with_learned=True` to count these."
        )
    true, called = true[is_judged], called[is_judged]
    rows = _in_order(adata.obs[truth], set(true))
    columns = _in_order(adata.obs[prediction], set(called))
    both = [name for name in rows if name in set(columns)]
    rows = both + [name for name in rows if name not in both]
    columns = both + [name for name in columns if name not in both]
    table = pd.crosstab(true.to_numpy(), called.to_numpy()).reindex(index=rows, columns=columns, fill_value=0)
    table.index.name, table.columns.name = truth, prediction
    table.attrs["n_learned"] = n_learned
    if normalize == "truth":
        return table.div(table.sum(axis=1), axis=0)
    return table if normalize is None else table.div(table.sum(axis=0), axis=1)


def _order(column: pd.Series) -> list[str]:
    """Labels in the order of their categories, else of the alphabet."""
    is_categorical = isinstance(column.dtype, pd.CategoricalDtype)
    known = (
        map(spelling, column.cat.categories) if is_categorical else sorted(set(read_labels(column).dropna()))
    )
    return [name for name in dict.fromkeys(known) if name is not None]


def _in_order(column: pd.Series, present: set[str]) -> list[str]:
    """Labels that occur, in that order."""
    return [name for name in _order(column) if name in present]


@shared_doc
def meta_cells(adata: AnnData, key: str = _keys.X_GEST, *, by: str | Sequence[str] | None = None) -> AnnData:
    """Meta cells of the model behind a niche embedding, as an AnnData that scanpy can go on with.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_niche_embed` wrote to.
    key
        Key of the embedding.
    by
        Columns of ``obs`` with labels: for each, the commonest label among a meta cell's cells and its share of them.

    Returns
    -------
    AnnData, meta cells × genes. ``X`` is mean expression, log-normalised; ``obs`` has ``n_trained`` (cells it stands for
    in training), ``n_cells`` (cells of ``adata``), and for each column of ``by`` that label and ``"{label}_share"``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=100, unit="cells")
    >>> stg.tl.gest_niche_embed(adata, train_kwargs={"max_epochs": 1})
    >>> stg.get.meta_cells(adata, by="cell_type").n_obs
    16
    """
    from anndata import AnnData as Table

    record = adata.uns.get(key, {})
    stored = record.get("meta_cells") if isinstance(record, Mapping) else None
    if stored is None or _keys.meta_cell_key(key) not in adata.obs:
        raise KeyError(
            f"uns[{key!r}] holds no meta cells; uns has {list(adata.uns)}. Embed niches with "
            "`stg.tl.gest_niche_embed`, or name the key of the embedding with `key=`."
        )
    profile = np.asarray(stored["profile"])
    label = adata.obs[_keys.meta_cell_key(key)].to_numpy()
    obs = pd.DataFrame(
        {
            "n_trained": np.asarray(stored["n_cells"]),
            "n_cells": np.bincount(label, minlength=len(profile)),
        },
        index=[str(i) for i in range(len(profile))],
    )
    for column in [by] if isinstance(by, str) else list(by or []):
        _check_column(adata, column)
        obs[column], obs[f"{column}_share"] = _commonest(adata.obs[column], label, len(profile))
    var = pd.DataFrame(index=[str(gene) for gene in record["genes"]])
    return Table(X=profile.copy(), obs=obs, var=var)


def _commonest(column: pd.Series, label: np.ndarray, n: int) -> tuple[Any, np.ndarray]:
    """The commonest label of each meta cell, and its share; none where it has no labelled cell."""
    named = read_labels(column, f"obs[{column.name!r}]")
    values = pd.Series(pd.Categorical(named, categories=_order(column)))
    code, categories = values.cat.codes.to_numpy(), values.cat.categories
    known = code >= 0
    table = np.zeros((n, len(categories)), dtype=np.int64)
    np.add.at(table, (label[known], code[known]), 1)
    total = table.sum(axis=1)
    best = np.where(total > 0, table.argmax(axis=1) if len(categories) else -1, -1)
    with np.errstate(invalid="ignore"):
        share = np.where(total > 0, table.max(axis=1, initial=0) / np.maximum(total, 1), np.nan)
    return pd.Categorical.from_codes(best, categories=categories), share
