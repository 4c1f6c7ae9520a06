"""Sections to train on, put together in one table of our own, so that nothing of the user's is touched or marked.

Genes are those that all sections have; the panel is chosen from training rows by the rule of :func:`stgen.pp.gene_panel`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._warn import warn
from stgen.data._fields import (
    CoordinatesField,
    CountsField,
    Field,
    HistologyField,
    SplitField,
    check_counts,
    read_counts,
)
from stgen.data._identity import Spots
from stgen.data._names import align_genes, check_unique, some, spelling_hint
from stgen.data._places import library_column
from stgen.data._splits import read_split
from stgen.data._tiles import TilesField
from stgen.pp._editing import check_adata, obs_column
from stgen.pp._gene_panel import rank_by_mean_and_sd

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")


class Slots(NamedTuple):
    """Where the sections keep what a model reads. ``None`` among the columns: there is none."""

    layer: str | None
    histology: str | None
    """``None`` for models that read expression alone, or tiles."""
    spatial: str
    library: str | None
    patient: str | None
    split: str | None
    labels: str | None = None
    """A column to learn, in which values may be missing."""
    tiles: str | None = None
    """In place of ``histology``, for models that read pixels."""


def training_table(
    train_on: Any,
    slots: Slots,
    *,
    genes: Sequence[str] | None,
    n_genes: int | None,
    expression: str | None = None,
) -> tuple[AnnData, Slots]:
    """Expression of the panel, histology and places of all sections in one AnnData, and the slots they are in.

    Parameters
    ----------
    train_on
        One AnnData, a list of them, or a mapping from section to AnnData.
    slots
        Where to read; columns that are ``None`` are looked for under their usual names.
    genes
        The panel. ``None``: that of ``var["gene_panel"]``, else chosen.
    n_genes
        Largest size of a chosen panel. ``None`` takes all genes that the sections share, whatever the panel.
    expression
        For a model that reads expression: ``"counts"`` or ``"log"``, see
        :class:`stgen.data._expression.ExpressionField`.
    """
    from anndata import AnnData

    names, sections = _named_sections(train_on)
    slots = _found_columns(sections, slots, several=names is not None)
    field = _field(slots.layer, expression)
    image, xy = _inputs(sections, names, slots, field)
    obs = _obs(sections, names, slots)
    panel = _given_panel(sections, genes, carried=n_genes is not None)
    shared = _shared_genes(sections) if panel is None else panel
    blocks = [
        read_counts(field.matrix(one), align_genes(shared, one.var_names, var=one.var)) for one in sections
    ]
    counts = blocks[0] if len(blocks) == 1 else _stacked(blocks)
    if panel is None and n_genes is not None and len(shared) > n_genes:
        chosen = _chosen_panel(counts, shared, n_genes, _training_rows(obs, slots.split))
        counts, shared = counts[:, chosen], shared[chosen]
    table = AnnData(obs=obs, var=pd.DataFrame(index=shared))
    if expression is None or slots.layer is None:
        table.X = counts
    else:  # a model that reads expression goes on reading the same layer
        table.layers[slots.layer] = counts
    table.obsm[slots.spatial] = xy
    if slots.tiles is not None:
        _keep_image(table, slots.tiles, image, slots.tiles, sections[0])
    elif slots.histology is not None:
        _keep_image(table, slots.histology, image, _keys.HISTOLOGY_PARAMS, sections[0])
    return table, slots


def _keep_image(table: AnnData, key: str, image: np.ndarray | None, record: str, first: AnnData) -> None:
    """What the image shows, and what ``uns`` says about it; sections that differ in that were refused."""
    table.obsm[key] = image
    if record in first.uns:
        table.uns[record] = first.uns[record]


def check_images_alike(slots: Slots, *named: tuple[str, AnnData]) -> None:
    """Raise unless a model fitted on the first could read the images of all. Names are how messages begin."""
    image, facts = _image(slots), None
    if image is None:
        return
    for name, one in named:
        try:
            if facts is None:
                facts = image.size(one) if isinstance(image, TilesField) else image.facts(one)
            else:
                image.compare(facts, one)
        except (KeyError, ValueError) as error:
            if not name:
                raise
            raise type(error)(f"{name}: {error.args[0]}") from None


def _image(slots: Slots) -> HistologyField | TilesField | None:
    if slots.tiles is not None:
        return TilesField(slots.tiles)
    return None if slots.histology is None else HistologyField(slots.histology)


def training_spots(train_on: Any, slots: Slots, fields: Sequence[Field]) -> Spots:
    """What identifies the rows that train, in the user's objects.

    In the table that trains, names may have got an ending and sections a name that nobody else knows; neither tells spots
    of the user's apart.
    """
    _, sections = _named_sections(train_on)
    spots = Spots.joined([Spots.of(one, fields) for one in sections])
    if slots.split is None:
        return spots
    return spots.rows(np.concatenate([read_split(one.obs, slots.split).train for one in sections]))


def _field(layer: str | None, expression: str | None) -> CountsField:
    if expression is None:
        return CountsField(layer)
    from stgen.data._expression import SCALES, ExpressionField

    if expression not in SCALES:
        raise ValueError(f"`expression` must be one of {', '.join(map(repr, SCALES))}; got {expression!r}.")
    return ExpressionField(layer, scale=expression, rows_are="cells")


def check_values(adata: AnnData, field: CountsField, where: str = "") -> None:
    """Raise unless the slot holds what the field says: counts, or log-normalised expression."""
    scale = getattr(field, "scale", None)
    values, name = field.matrix(adata), field.name + where
    if scale == "log":
        from stgen.data._expression import check_logs

        check_logs(values, name)
        return
    try:
        check_counts(values, name)
    except ValueError as error:
        if scale is None or "whole numbers" not in str(error):
            raise
        raise ValueError(f"{error} If they are log-normalised, say `expression='log'`.") from None


def _named_sections(train_on: Any) -> tuple[list[str] | None, list[AnnData]]:
    """Sections with their names; no names for an AnnData that is not in a list."""
    if isinstance(train_on, Mapping):
        names, sections = [str(name) for name in train_on], list(train_on.values())
    elif isinstance(train_on, list | tuple):
        sections = list(train_on)
        names = [f"section_{i + 1}" for i in range(len(sections))]
    else:
        names, sections = None, [train_on]
    if not sections:
        raise ValueError("`train_on` is empty; give an AnnData or a list of sections.")
    for one in sections:
        check_adata(one, copy=False)
    return names, sections


def _found_columns(sections: list[AnnData], slots: Slots, *, several: bool) -> Slots:
    """Columns as they are called here; the library column of a list is made where sections have none."""

    def found(key: str | None, usual: str) -> str | None:
        everywhere = all(usual in one.obs for one in sections)
        return key if key is not None else (usual if everywhere else None)

    regions = {library_column(one) for one in sections} - {None}
    if len(regions) > 1 and slots.library is None:
        raise ValueError(
            f"The tables of `train_on` call their regions differently ({some(sorted(map(str, regions)))} of `obs`). Name the "
            "sections in one column of that name everywhere, with `library_key=`."
        )
    made = next(iter(regions), _keys.LIBRARY if several else None)
    library = found(slots.library, _keys.LIBRARY) or made
    return slots._replace(
        library=library,
        patient=found(slots.patient, _keys.PATIENT),
        split=found(slots.split, _keys.SPLIT),
    )


def _inputs(
    sections: list[AnnData], names: list[str] | None, slots: Slots, field: CountsField
) -> tuple[np.ndarray | None, np.ndarray]:
    """Images and places of all sections; what is wrong with one is said before they are put together."""
    place, image = CoordinatesField(slots.spatial, slots.library, field.rows_are), _image(slots)
    called = [f"Section {name!r}" for name in names or []] or [""]
    check_images_alike(slots, *zip(called, sections, strict=True))
    for i, one in enumerate(sections):
        where = "" if names is None else f" of section {names[i]!r}"
        check_unique(
            one.var_names, f"Gene names{where}", "Run `adata.var_names_make_unique()` or drop the copies."
        )
        check_values(one, field, where)
    xy = np.concatenate([place.read(one)[0] for one in sections])
    if image is None:
        return None, xy
    if len(sections) == 1:  # tiles are large; training only reads them
        return image.read(sections[0]), xy
    return np.concatenate([image.read(one) for one in sections]), xy


def _obs(sections: list[AnnData], names: list[str] | None, slots: Slots) -> pd.DataFrame:
    """The columns that training asks for, and names of spots that are unique."""
    parts = []
    gaps = [slots.labels] if slots.labels is not None else []
    for i, one in enumerate(sections):
        kept = [key for key in (slots.library, slots.patient, slots.split) if key is not None]
        part = {key: obs_column(one, key).astype(str) for key in kept if names is None or key in one.obs}
        if names is not None and slots.library not in one.obs:
            part[str(slots.library)] = pd.Series(names[i], index=one.obs_names)
        part |= {key: one.obs[key].astype(object) for key in gaps if key in one.obs}
        missing = [key for key in [*kept, *gaps] if key not in part]
        if missing:
            raise KeyError(f"obs[{missing[0]!r}] does not exist; obs has {list(one.obs.columns)}.")
        parts.append(pd.DataFrame(part, index=one.obs_names))
    if names is not None:
        _check_distinct([part[slots.library] for part in parts])
    obs = pd.concat(parts)
    if not obs.index.is_unique:
        obs.index = [f"{name}-{i}" for i, part in enumerate(parts) for name in part.index]
    return obs


def _check_distinct(columns: list[pd.Series]) -> None:
    """Two AnnDatas of a list are two sections."""
    seen: set[str] = set()
    for column in columns:
        twice = sorted(seen & set(column))
        if twice:
            raise ValueError(
                f"Section {some(twice)} is in two AnnDatas of `train_on`. Give each section once, or name them: "
                "`train_on={'first': adata, …}` without that column."
            )
        seen |= set(column)


def _given_panel(sections: list[AnnData], genes: Sequence[str] | None, *, carried: bool) -> pd.Index | None:
    """The user's genes, else (if asked for) the panel that the sections carry."""
    if genes is not None:
        panel = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
        check_unique(panel, "`genes`", "Name every gene once.")
        return panel
    if not carried or not all(_keys.PANEL in one.var for one in sections):
        return None
    panels = [one.var_names[one.var[_keys.PANEL].to_numpy(dtype=bool)].astype(str) for one in sections]
    if any(set(panel) != set(panels[0]) for panel in panels):
        raise ValueError(
            f"The sections carry different panels in var[{_keys.PANEL!r}]. Name one with `genes=`, or drop the column to "
            "have one chosen from all of them."
        )
    return panels[0]


def _shared_genes(sections: list[AnnData]) -> pd.Index:
    """Genes that all sections have, in the order of the first."""
    first = sections[0].var_names.astype(str)
    shared = first
    for one in sections[1:]:
        found = one.var_names.astype(str)
        if not shared.isin(found).any():
            align_genes(shared, found, var=one.var)  # says what is likely wrong
        lost = shared[~shared.isin(found)]
        if hint := spelling_hint(lost, found):
            warn(
                f"{len(lost)} of {len(shared)} genes are not in every section of `train_on` and are not used.{hint}"
            )
        shared = shared[shared.isin(found)]
    most = max(one.n_vars for one in sections)
    if len(shared) < most:
        logger.warning(
            "The sections have %s genes; only the %d that all of them have are used.",
            " and ".join(sorted({str(one.n_vars) for one in sections})),
            len(shared),
        )
    return shared


def _stacked(blocks: list[Any]) -> Any:
    if any(sparse.issparse(block) for block in blocks):
        return sparse.vstack([sparse.csr_matrix(block) for block in blocks], format="csr")
    return np.concatenate(blocks)


def _training_rows(obs: pd.DataFrame, split: str | None) -> np.ndarray:
    from anndata import AnnData

    mask = np.zeros(len(obs), dtype=bool)
    mask[SplitField(split).rows(AnnData(obs=obs))[0]] = True
    return mask


def _chosen_panel(counts: Any, genes: pd.Index, n_genes: int, rows: np.ndarray) -> np.ndarray:
    """Columns of the panel, best first."""
    order = rank_by_mean_and_sd(counts, genes.tolist(), rows=rows)
    if len(order) < n_genes:
        raise ValueError(
            f"Only {len(order)} genes have counts in the {int(rows.sum())} training rows, so that a panel of {n_genes} would "
            "hold silent genes. Lower `n_genes`."
        )
    return order[:n_genes]
