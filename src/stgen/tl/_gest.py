"""Niches, unseen cells, labels and perturbations with one spatial transformer: find or fit a GeST, ask it, write.

Everything is computed before anything is written: a call that fails leaves the user's objects as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stgen import _keys
from stgen._docs import shared_doc
from stgen._warn import warn
from stgen.data._names import check_unique, some
from stgen.pp._editing import check_adata, editable

from ._gest_source import METHOD, Ready, Source, gest_record, quantization, ready_model, seen
from ._records import check_key, check_replaceable

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GeST

NICHES, GENERATION = "a niche embedding", "a generation"
READOUTS = ("weighted", "picked")


# --------------------------------------------------------------------------------------------------------------- niches


@shared_doc
def gest_niche_embed(
    adata: AnnData,
    *,
    model: GeST | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
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
    n_neighbors: int | None = None,
    batch_size: int | None = None,
    key_added: str = _keys.X_GEST,
    copy: bool = False,
) -> AnnData | None:
    """Embed the niche of every cell with :class:`stgen.models.GeST`: what the cells around it say about its place.

    Without ``model`` and ``train_on`` a model is trained on ``adata`` itself; no labels are needed.

    Parameters
    ----------
    adata
        Cells to embed.
    model
        %(gest_model)s
    train_on
        %(gest_train_on)s
    save
        %(gest_save)s
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
        %(gest_split_key)s
    model_kwargs
        %(gest_model_kwargs)s
    train_kwargs
        %(gest_train_kwargs)s
    random_state
        %(random_state)s
    n_neighbors
        Nearest cells over which the network's state is averaged; 0 for none. ``None`` means the default of
        :meth:`stgen.models.GeST.embed_niches`. More gives larger niches.
    batch_size
        Windows at once.
    key_added
        Key of the embedding.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, cells × D, float32; the number of each cell's meta cell in
    ``obs["gest_meta_cell"]`` (``key_added`` without its ``"X_"``, and ``"_meta_cell"``); and ``uns[key_added]``:
    ``params``, ``model`` (the facts of the model card, and its ``path``), ``meta_cells`` (``profile``, meta cells × genes,
    log-normalised, and ``n_cells``, those it stands for in training), ``genes``, ``quantization`` (how much of the
    expression of ``adata`` meta cells keep: ``r2`` and ``rmse``), ``seen_in_training`` and ``versions``.

    Raises
    ------
    ValueError
        If inputs are not like those the model was fitted on, or the result would replace something that is not a niche
        embedding.

    See Also
    --------
    stgen.pl.niches : Draw niches in space.
    stgen.pl.meta_cells : Draw meta cells on a UMAP.
    stgen.get.meta_cells : Meta cells as an AnnData.

    Examples
    --------
    >>> import scanpy as sc, stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200, unit="cells")
    >>> stg.tl.gest_niche_embed(adata, train_kwargs={"max_epochs": 1})
    >>> sc.pp.neighbors(adata, use_rep="X_gest")
    >>> sc.tl.leiden(adata, flavor="igraph")
    """
    check_adata(adata, copy=copy, rows_are="cells")
    check_key(key_added)
    label_key = _keys.meta_cell_key(key_added)
    check_replaceable(adata, key_added, METHOD, task=NICHES, slots=("obsm", "uns"))
    check_replaceable(adata, label_key, METHOD, task=NICHES, slots=("obs",), owner=key_added)
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
    )
    source.check()
    if model is not None and genes is not None:
        raise ValueError("`genes` are for training; a fitted GeST brings its own. Leave `genes` out.")
    ready = ready_model(adata, source, "embed niches")
    smoothing = {} if n_neighbors is None else {"n_neighbors": int(n_neighbors)}
    embedding = ready.reader.embed_niches(adata, batch_size=batch_size, **smoothing)
    labels = ready.reader._labels(adata)
    words = ready.fitted.module.words
    record = gest_record(
        ready,
        NICHES,
        seen(adata, ready, np.ones(adata.n_obs, dtype=bool)),
        {"random_state": int(random_state), **smoothing},
        genes=list(ready.fitted.genes),
        meta_cells={"profile": words.profiles.cpu().numpy(), "n_cells": words.size.cpu().numpy()},
        quantization=quantization(adata, ready.reader),
    )
    adata = editable(adata, copy=copy)
    adata.obsm[key_added] = embedding
    adata.obs[label_key] = labels
    adata.uns[key_added] = record
    return adata if copy else None


# --------------------------------------------------------------------------------------------------------- unseen cells


@shared_doc
def gest_generate(
    adata: AnnData,
    *,
    mask: Sequence[bool] | np.ndarray | str | None = None,
    places: np.ndarray | None = None,
    sections: Sequence[str] | str | None = None,
    model: GeST | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
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
    readout: str = "weighted",
    n_windows: int = 8,
    interpolate: bool = True,
    max_rounds: int = 100,
    random_state: int = 0,
    key_added: str = _keys.GEST,
    copy: bool = False,
) -> AnnData | None:
    """Generate the expression of cells from the cells around them, with :class:`stgen.models.GeST`.

    Of the cells to generate only places are used. Without ``model`` and ``train_on`` a model is trained on the other
    cells of ``adata``. Cells of a ``mask`` are written into ``adata``; cells at new ``places`` are an AnnData of their own.

    Parameters
    ----------
    adata
        Cells to see, and with ``mask`` also those to generate.
    mask
        Which cells to generate: a mask over the cells (a Series is joined by name), their names, or a column of ``obs`` that says
        True or False.
    places
        Instead of a mask: new places, µm, places × 2.
    sections
        Section of each of the new places, or the one of all; needed where ``adata`` has several.
    model
        %(gest_model)s
    train_on
        %(gest_train_on)s Where ``adata`` is among them, its cells to generate are left out.
    save
        %(gest_save)s
    genes
        Genes to generate; when training, genes to use. By default all of the model, when training all that the sections
        share.
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
        %(gest_split_key)s
    model_kwargs
        %(gest_model_kwargs)s
    train_kwargs
        %(gest_train_kwargs)s
    readout
        ``"weighted"``: expected expression, the mean of meta cells weighted by their probability. ``"picked"``: the
        profile of the likeliest meta cell, which is not smoothed and further from the truth on average.
    n_windows
        Windows whose answers are averaged for a cell: those of its nearest seen cells.
    interpolate
        Add what the network leaves unexplained in seen cells nearby, as far as that helps seen cells that are left out.
        Only for ``readout="weighted"``.
    max_rounds
        Rounds at most. A round generates what is within reach of seen cells, and these are seen in the next. What only
        later rounds reach is interpolated from seen cells where ``interpolate`` is on, because generated ones drift.
    random_state
        %(random_state)s
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    With ``mask``: ``None``, or the copy. Writes log-normalised expression to ``layers[key_added]`` if the genes are exactly
    ``var_names``, else to ``obsm[key_added]``, cells × genes, with the names of the genes in ``uns[key_added]["genes"]``;
    cells that were not generated are NaN. Beside it in ``obs``: ``"{key_added}_round"`` and ``"{key_added}_n_windows"``
    (NaN for cells that were not generated) and ``"{key_added}_isolated"``, for cells without a seen cell within reach.
    ``uns[key_added]`` holds ``params``, ``panel`` (genes that cells are normalised
    over), ``surface_share`` (the part of the answer that a surface over the section has), ``model``, ``quantization``,
    ``seen_in_training`` and ``versions``. :func:`stgen.get.generated` gives a table.

    With ``places``: an AnnData, places × genes, with the same in ``X``, ``obs`` and ``uns``, the places in
    ``obsm[spatial_key]`` and their sections in ``obs``. ``adata`` stays as it is.

    Raises
    ------
    ValueError
        If the mask names no cell or all of them, places are not finite or in no section of ``adata``, inputs are not like those the model was fitted on, or the result would
        replace something that is not a generation.

    Warns
    -----
    UserWarning
        If the model was trained on cells that are to be generated, or some of them are out of reach.

    See Also
    --------
    stgen.pl.generated : Draw generated beside true genes.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200, unit="cells")
    >>> xy = adata.obsm["spatial"]
    >>> hole = (abs(xy - xy.mean(axis=0)) < 40).all(axis=1)
    >>> stg.tl.gest_generate(adata, mask=hole, train_kwargs={"max_epochs": 1})
    >>> adata.layers["gest"][hole].shape == (hole.sum(), 100)
    True
    """
    check_adata(adata, copy=copy, rows_are="cells")
    check_key(key_added)
    if readout not in READOUTS:
        raise ValueError(f"`readout` must be one of {', '.join(map(repr, READOUTS))}; got {readout!r}.")
    if (mask is None) == (places is None):
        raise ValueError("Say which cells to generate with `mask`, or give new `places`, and not both.")
    if mask is not None:
        check_replaceable(adata, key_added, METHOD, task=GENERATION)
        for column in _outcome_keys(key_added).values():
            check_replaceable(adata, column, METHOD, task=GENERATION, slots=("obs",), owner=key_added)
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
    )
    source.check()
    from stgen.models.gest._unseen import checked_mask

    hidden = np.zeros(adata.n_obs, dtype=bool) if mask is None else checked_mask(adata, mask)
    ready = ready_model(adata, source, "generate", hidden=hidden)
    names = _genes_to_write(adata, ready, genes)
    known = seen(adata, ready, hidden)
    _warn_of_known_cells(known, int(hidden.sum()))

    which = {"mask": hidden} if places is None else {"places": places, "sections": sections}
    interpolate = interpolate and readout == "weighted"
    made = ready.reader.generate(
        adata, **which, n_windows=n_windows, interpolate=interpolate, max_rounds=max_rounds
    )
    outcome = {column: np.asarray(made.obs[name]) for name, column in _outcome_keys(key_added).items()}
    isolated = outcome[_keys.isolated_key(key_added)]
    _warn_of_isolated(made.obs_names[isolated], made.n_obs)
    values = np.asarray(made.X if readout == "weighted" else made.layers[readout], dtype=np.float32)
    values = values[:, made.var_names.get_indexer(names)]
    record = gest_record(
        ready,
        GENERATION,
        known,
        {
            "mask": mask if isinstance(mask, str) else None,
            "readout": readout,
            "n_windows": int(n_windows),
            "interpolate": bool(interpolate),
            "max_rounds": int(max_rounds),
            "random_state": int(random_state),
            "target_total": _target_total(adata, ready),
        },
        genes=names,
        panel=[gene for gene in ready.fitted.genes if gene in adata.var_names],
        scale="normalized",
        surface_share=_surface_share(made),
        n_generated=made.n_obs,
        n_isolated=int(isolated.sum()),
        quantization=quantization(adata[~hidden], ready.reader),
    )
    if places is not None:
        return _as_anndata(made, values, names, outcome, record, key_added)
    adata = editable(adata, copy=copy)
    _write_generated(adata, values, names, outcome, record, key_added, hidden)
    return adata if copy else None


def _surface_share(made: AnnData) -> float:
    """Share of the answer that a surface over the section has, on average over cells."""
    # nothing is said of it where nothing was interpolated
    return float(made.obs[_keys.SURFACE_SHARE].mean()) if _keys.SURFACE_SHARE in made.obs else 0.0


def _outcome_keys(key: str) -> dict[str, str]:
    """How generation went: names in what the model returns, and columns of ``obs`` that tell the user."""
    return {
        "round": _keys.round_key(key),
        "n_windows": _keys.n_windows_key(key),
        "isolated": _keys.isolated_key(key),
    }


def _write_generated(
    adata: AnnData,
    values: np.ndarray,
    names: list[str],
    outcome: Mapping[str, np.ndarray],
    record: dict[str, Any],
    key: str,
    hidden: np.ndarray,
) -> None:
    """Results where they belong; an earlier result under the same key may lie in the other slot."""
    for slot in (adata.layers, adata.obsm):
        if key in slot:
            del slot[key]
    in_layers = names == list(adata.var_names)
    (adata.layers if in_layers else adata.obsm)[key] = _spread(values, hidden)
    for column, one in outcome.items():
        adata.obs[column] = _spread(one, hidden)
    adata.uns[key] = record


def _as_anndata(
    made: AnnData,
    values: np.ndarray,
    names: list[str],
    outcome: Mapping[str, np.ndarray],
    record: dict[str, Any],
    key: str,
) -> AnnData:
    """Cells at new places as an object of their own."""
    import pandas as pd
    from anndata import AnnData as Table

    place = record["params"]
    library = [name for name in (place.get("library_key"),) if name in made.obs]
    new = Table(
        X=values,
        obs=made.obs[library].assign(**outcome),
        var=pd.DataFrame(index=names),
        obsm=dict(made.obsm),
    )
    new.uns[key] = record
    return new


def _genes_to_write(adata: AnnData, ready: Ready, genes: Sequence[str] | None) -> list[str]:
    """Names of the genes that are written, in the order of ``var_names`` where those are the same."""
    import pandas as pd

    known = pd.Index(ready.fitted.genes)
    if genes is None or ready.is_new:
        names = known
    else:
        names = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
        check_unique(names, "`genes`", "Name every gene once.")
        strange = names[~names.isin(known)]
        if len(strange):
            raise ValueError(
                f"`genes` must be among the {len(known)} of the model, such as {some(known)}; {len(strange)} of "
                f"{len(names)} are not: {some(strange)}."
            )
    if len(names) == adata.n_vars and set(names) == set(adata.var_names):
        names = adata.var_names
    return list(names)


def _target_total(adata: AnnData, ready: Ready) -> float | None:
    """Total to which counts of these cells are normalised; ``None`` for logs."""
    from stgen.data._expression import ExpressionField, shared_genes

    if ready.reader._field(ExpressionField).scale != "counts":
        return None
    module = ready.fitted.module
    here, _ = shared_genes(ready.fitted.genes, adata)
    share = (
        1.0 if len(here) == len(ready.fitted.genes) else float(module.gene_share.cpu().numpy()[here].sum())
    )
    return float(module.target_total) * share


def _spread(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Values of the generated cells among all cells; NaN (or False) elsewhere."""
    kind = np.float64 if values.dtype.kind in "iu" else values.dtype
    out = np.full((len(hidden), *values.shape[1:]), False if values.dtype.kind == "b" else np.nan, dtype=kind)
    out[hidden] = values
    return out


def _warn_of_known_cells(known: Mapping[str, Any], n_hidden: int) -> None:
    if "n_spots" in known:
        warn(
            f"The model was trained on {known['n_spots']} of the {n_hidden} cells that are to be generated: agreement with "
            "what they express says little. Train without them, for example here: leave out `model`. `uns` records it "
            "under 'seen_in_training'."
        )


def _warn_of_isolated(names: Any, n_hidden: int) -> None:
    if len(names):
        warn(
            f"{len(names)} of the {n_hidden} cells to generate have no seen cell within reach, such as {some(names)}. They "
            'are interpolated from seen cells, or get the profile of the nearest (`readout="picked"`, `interpolate=False`), '
            "and are flagged in `obs`; a model with a larger `window_um` reaches further."
        )
