"""What a model reads from an AnnData, checked at the door.

A field names one slot, says what is expected there, and knows whether it is a *target*: a slide with H&E and
no genes at all must be predictable, so applying a model reads its inputs only. Fields keep facts of the data
they were registered with (widths, gene names, the encoder) and compare new data with those facts, by name
where there are names.

Fields speak the protocol of scvi-tools' ``AnnDataManager`` (``register_field`` and its relatives) without
importing it. Facts are JSON-able, because a saved model keeps them as json. Errors say what was expected,
what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from scipy import sparse

from stgen import _keys
from stgen._by_name import names_of
from stgen._labels import full_column
from stgen._warn import number, share, warn

from ._names import align_genes, check_unique, some
from ._places import Places, library_column, places_and_grids, read_places, um_slot
from ._points import finite_rows
from ._spacing import Grid, pitch_facts
from ._splits import read_split
from ._units import compare_with_training

if TYPE_CHECKING:
    from anndata import AnnData

Facts = dict[str, Any]

N_ROWS_AT_ONCE = 4096
"""Rows that are read at once from a file or looked at in one check."""
N_VALUES_AT_ONCE = 2**24
"""Values that are looked at in one check."""


# ----------------------------------------------------------------------------------------------------- counts


def check_counts(X: Any, name: str = "X", argument: str = "layer") -> None:
    """Raise unless ``X`` holds counts: finite, not negative, whole numbers (of any dtype).

    Parameters
    ----------
    X
        Dense array, sparse matrix, or a matrix of a backed AnnData; it is read in blocks of rows.
    name
        How the message calls it, for example ``layers['counts']``.
    argument
        Argument of the caller's that names the layer of counts.
    """
    for values in _value_blocks(X):
        if values.dtype.kind in "ub":
            continue
        if values.dtype.kind not in "if":
            raise ValueError(f"{name} must hold counts; its dtype is {values.dtype}.")
        _check_count_values(values, name, argument)


def _value_blocks(X: Any) -> Iterator[np.ndarray]:
    """Stored values of ``X``, few enough at once that what is computed from them stays small."""
    for block in _row_blocks(X):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        flat = values.ravel(order="K")  # a view wherever memory is in one piece
        for start in range(0, flat.size, N_VALUES_AT_ONCE):
            yield flat[start : start + N_VALUES_AT_ONCE]


def _check_count_values(values: np.ndarray, name: str, argument: str) -> None:
    remedy = f"Give raw counts, or name the layer that holds them with `{argument}=`."
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} must hold counts; found {n_bad} values that are NaN or infinite. {remedy}")
    if (values < 0).any():
        raise ValueError(
            f"{name} must hold counts; found negative values, the lowest {values.min():g}. {remedy}"
        )
    if values.dtype.kind == "f":
        broken = values != np.floor(values)
        if broken.any():
            example = values[broken].flat[0]
            raise ValueError(
                f"{name} must hold counts; found {share(int(broken.sum()), broken.size)} of values that are not whole numbers, "
                f"such as {number(example, round(float(example)))}. It looks normalised or transformed. {remedy}"
            )


def _row_blocks(X: Any) -> Iterator[Any]:
    """``X`` in blocks of rows, each in memory. Matrices in memory come in one piece."""
    if isinstance(X, np.ndarray) or sparse.issparse(X):
        yield X
        return
    if getattr(X, "format", None) == "csc" and hasattr(X, "to_memory"):
        # rows of a compressed-column file can only be had by reading all of it
        yield X.to_memory()
        return
    for start in range(0, X.shape[0], N_ROWS_AT_ONCE):
        block = X[start : start + N_ROWS_AT_ONCE]
        yield block.compute() if hasattr(block, "compute") else block


def read_counts(X: Any, genes: np.ndarray | None = None) -> sparse.csr_matrix | np.ndarray:
    """Counts as float32, rows × chosen genes: an array stays dense, all else becomes CSR."""
    if isinstance(X, np.ndarray):
        return np.ascontiguousarray(X if genes is None else X[:, genes], dtype=np.float32)
    blocks = []
    for block in _row_blocks(X):
        rows = sparse.csr_matrix(block)
        blocks.append((rows if genes is None else rows[:, genes]).astype(np.float32))
    return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")


# ----------------------------------------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Field:
    """One slot that a model reads."""

    registry_key: ClassVar[str]
    is_target: ClassVar[bool] = False
    """Whether it is what the model predicts. Targets are not read when a model is applied."""
    for_training: ClassVar[bool] = False
    """Whether only training asks for it, like the split."""

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData, such as ``obsm``."""
        raise NotImplementedError

    @property
    def attr_key(self) -> str | None:
        """Key in that attribute; ``None`` for ``X``."""
        raise NotImplementedError

    @property
    def is_empty(self) -> bool:
        """Whether the user named no slot, so that there is nothing to read."""
        return False

    def facts(self, adata: AnnData) -> Facts:
        """Check the slot and say what it holds."""
        raise NotImplementedError

    def compare(self, facts: Facts, adata: AnnData) -> None:
        """Raise if new data does not fit the facts a model was fitted with."""

    def saved(self) -> Facts:
        """What rebuilds this field: its class and its arguments."""
        return {"kind": type(self).__name__, **asdict(self)}

    # the protocol of AnnDataManager
    def register_field(self, adata: AnnData) -> Facts:
        """Check and remember."""
        return self.facts(adata)

    def transfer_field(self, state_registry: Facts, adata_target: AnnData, **kwargs: Any) -> Facts:
        """Check new data against what was remembered."""
        self.compare(state_registry, adata_target)
        return self.facts(adata_target)

    def get_data_registry(self) -> dict[str, str | None]:
        """Where the slot is."""
        return {} if self.is_empty else {"attr_name": self.attr_name, "attr_key": self.attr_key}

    def get_summary_stats(self, state_registry: Facts) -> dict[str, int]:
        """Numbers worth showing: facts whose name starts with ``n_``."""
        return {key: value for key, value in state_registry.items() if key.startswith("n_")}

    def view_state_registry(self, state_registry: Facts) -> None:
        """No table."""


@dataclass(frozen=True)
class CountsField(Field):
    """The target of expression models: counts, spots × genes, in ``X`` or a layer."""

    layer: str | None = None
    min_genes: int = 2

    rows_are: str = "spots"
    """How messages call rows."""

    registry_key: ClassVar[str] = "counts"
    is_target: ClassVar[bool] = True

    @property
    def attr_name(self) -> str:
        return "X" if self.layer is None else "layers"

    @property
    def attr_key(self) -> str | None:
        return self.layer

    @property
    def name(self) -> str:
        """How messages call the slot."""
        return "X" if self.layer is None else f"layers[{self.layer!r}]"

    def matrix(self, adata: AnnData) -> Any:
        """The matrix as it lies in the AnnData."""
        if self.layer is None:
            if adata.X is None:
                raise ValueError("X is empty; counts are expected there. Name the layer with `layer=`.")
            return adata.X
        if self.layer not in adata.layers:
            keys = [key for key in adata.layers if key is not None]
            raise KeyError(f"layers[{self.layer!r}] does not exist; layers has {keys}.")
        return adata.layers[self.layer]

    def facts(self, adata: AnnData) -> Facts:
        if adata.n_vars < self.min_genes:
            raise ValueError(f"At least {self.min_genes} genes are needed; this AnnData has {adata.n_vars}.")
        check_unique(adata.var_names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
        X = self.matrix(adata)
        check_counts(X, self.name)
        self._warn_about_silence(X, adata)
        return {"n_genes": adata.n_vars, "genes": [str(gene) for gene in adata.var_names]}

    def _warn_about_silence(self, X: Any, adata: AnnData) -> None:
        """Empty spots and genes that never vary can be fitted, but whoever has them should know."""
        totals, lowest, highest = [], np.full(adata.n_vars, np.inf), np.full(adata.n_vars, -np.inf)
        for block in _row_blocks(X):
            totals.append(np.asarray(block.sum(axis=1)).ravel())
            lowest = np.minimum(lowest, _extreme(block, "min"))
            highest = np.maximum(highest, _extreme(block, "max"))
        n_empty = int((np.concatenate(totals) == 0).sum())
        if n_empty:
            warn(
                f"{n_empty} of {adata.n_obs} {self.rows_are} have no counts in {self.name}; a model learns that they "
                "are empty. Drop them unless that is what they are.",
            )
        constant = adata.var_names[lowest == highest]
        if len(constant):
            warn(
                f"{len(constant)} of {adata.n_vars} genes have the same count in every {self.rows_are.removesuffix('s')}, such as "
                f"{some(constant)}; nothing can be learned about them and most scores are undefined.",
            )

    def read(self, adata: AnnData, genes: Sequence[str] | None = None) -> sparse.csr_matrix | np.ndarray:
        """Counts of ``genes`` (default all), in their order, float32."""
        positions = None if genes is None else align_genes(genes, adata.var_names, var=adata.var)
        if positions is not None and np.array_equal(positions, np.arange(adata.n_vars)):
            positions = None
        return read_counts(self.matrix(adata), positions)

    def compare(self, facts: Facts, adata: AnnData) -> None:
        align_genes(facts["genes"], adata.var_names, var=adata.var)


def _extreme(block: Any, which: str) -> np.ndarray:
    """Column-wise minimum or maximum of a dense or sparse block."""
    found = getattr(block, which)(axis=0)
    return np.asarray(found.todense() if sparse.issparse(found) else found).ravel()


@dataclass(frozen=True)
class HistologyField(Field):
    """An input: the histology embedding, spots × features, in ``obsm``."""

    key: str = _keys.HISTOLOGY

    registry_key: ClassVar[str] = "histology"

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return self.key

    def read(self, adata: AnnData) -> np.ndarray:
        """The embedding, float32, checked. Shares memory with the AnnData where its type allows."""
        array = _obsm(
            adata,
            self.key,
            remedy="Make it with `stg.pp.embed_histology`, or name yours with `histology_key=`.",
        )
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(
                f"obsm[{self.key!r}] must be spots × features; its shape is {array.shape}. "
                "Embed the tiles first: `stg.pp.embed_histology`."
            )
        array = np.ascontiguousarray(array, dtype=np.float32)
        finite = finite_rows(array)
        if not finite.all():
            raise ValueError(
                f"obsm[{self.key!r}] must be finite; {int((~finite).sum())} of {len(finite)} spots have NaN "
                "or infinite "
                f"features, such as {some(adata.obs_names[~finite])}. Drop these spots or embed their tiles "
                "again."
            )
        return array

    def facts(self, adata: AnnData) -> Facts:
        facts: Facts = {"n_features": int(self.read(adata).shape[1])}
        recorded = self._recorded(adata)
        facts["encoder"] = str(recorded["encoder"]) if "encoder" in recorded else None
        facts["tile_um"] = float(recorded["tile_um"]) if "tile_um" in recorded else None
        columns = names_of(adata.obsm[self.key], axis=1)
        return facts if columns is None else facts | {"feature_names": columns.tolist()}

    def _recorded(self, adata: AnnData) -> Facts:
        """What ``uns`` says about this embedding."""
        recorded = adata.uns.get(_keys.HISTOLOGY_PARAMS, {})
        # `uns` describes the default slot; an embedding under another key is described only if it says so
        described = recorded.get("key_added", _keys.HISTOLOGY) if hasattr(recorded, "get") else None
        return recorded if described == self.key else {}

    def compare(self, facts: Facts, adata: AnnData) -> None:
        found = self.facts(adata)
        if found["n_features"] != facts["n_features"]:
            raise ValueError(
                f"obsm[{self.key!r}] must have the {facts['n_features']} features the model was fitted "
                f"with; it has {found['n_features']}. Embed with the same encoder{_named(facts['encoder'])}."
            )
        known, here = facts.get("feature_names"), found.get("feature_names")
        if known and here and known != here:
            i = next(i for i, (one, other) in enumerate(zip(known, here, strict=True)) if one != other)
            raise ValueError(
                f"obsm[{self.key!r}] must have the features that the model was fitted with, in their order; column {i} is "
                f"{here[i]!r} and was {known[i]!r}. Reorder or rename the columns of the table."
            )
        if facts["encoder"] and found["encoder"] and found["encoder"] != facts["encoder"]:
            raise ValueError(
                f"The model was fitted on features of the encoder {facts['encoder']!r}; obsm[{self.key!r}] "
                f"comes from {found['encoder']!r}. Embed with {facts['encoder']!r}."
            )
        if facts["tile_um"] and found["tile_um"] and abs(found["tile_um"] / facts["tile_um"] - 1) > 0.01:
            raise ValueError(
                f"The model was fitted on tiles of {facts['tile_um']:g} µm; these are {found['tile_um']:g} "
                "µm wide. Cut tiles of the same size: `stg.pp.histology_tiles`."
            )


def _named(name: str | None) -> str:
    return "" if name is None else f", {name!r}"


def _obsm(adata: AnnData, key: str, *, remedy: str) -> np.ndarray:
    """``obsm[key]`` as an array, whether it is stored as an array, a DataFrame or a sparse matrix."""
    if key not in adata.obsm:
        raise KeyError(f"obsm[{key!r}] does not exist; obsm has {list(adata.obsm)}. {remedy}")
    value = adata.obsm[key]
    if isinstance(value, pd.DataFrame):
        value = value.to_numpy()
    elif sparse.issparse(value):
        value = value.toarray()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"obsm[{key!r}] must be numbers; its dtype is {array.dtype}.")
    return array


@dataclass(frozen=True)
class CoordinatesField(Field):
    """An input: where spots are, x and y in µm, and which section each belongs to."""

    key: str = _keys.SPATIAL
    library_key: str | None = None
    rows_are: str = "spots"
    """How messages call rows."""

    registry_key: ClassVar[str] = "xy"

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return self.key

    def read(self, adata: AnnData) -> Places:
        """Coordinates (n, 2) float64 in µm, and the section of each spot as integer codes; both checked."""
        return read_places(adata, self.key, self._column(adata), rows_are=self.rows_are)

    def _column(self, adata: AnnData) -> str | None:
        """The library column here: a new slide without it is one section, or says otherwise itself."""
        return self.library_key if self.library_key in adata.obs else None

    def facts(self, adata: AnnData) -> Facts:
        library_column(adata, self.library_key)
        grids = self._grids(adata)
        return {"n_sections": len(grids), **pitch_facts(grids)}

    def _grids(self, adata: AnnData) -> dict[str, Grid]:
        return places_and_grids(adata, self.key, self._column(adata), rows_are=self.rows_are)[1]

    def compare(self, facts: Facts, adata: AnnData) -> None:
        compare_with_training(facts, um_slot(adata, self.key), self._grids(adata), self.rows_are)

    def transfer_field(self, state_registry: Facts, adata_target: AnnData, **kwargs: Any) -> Facts:
        self.compare(state_registry, adata_target)
        return replace(self, library_key=self._column(adata_target)).facts(adata_target)


@dataclass(frozen=True)
class PatientField(Field):
    """Which patient a spot comes from: for the model card, and checked against the split."""

    key: str | None = None

    registry_key: ClassVar[str] = "patient"
    for_training: ClassVar[bool] = True

    @property
    def attr_name(self) -> str:
        return "obs"

    @property
    def attr_key(self) -> str | None:
        return self.key

    @property
    def is_empty(self) -> bool:
        return self.key is None

    def facts(self, adata: AnnData) -> Facts:
        return {"n_patients": int(full_column(adata.obs, str(self.key)).nunique())}


@dataclass(frozen=True)
class SplitField(Field):
    """Which rows fit, which choose the stopping epoch, and which are left alone."""

    key: str | None = None

    registry_key: ClassVar[str] = "split"
    for_training: ClassVar[bool] = True

    @property
    def attr_name(self) -> str:
        return "obs"

    @property
    def attr_key(self) -> str | None:
        return self.key

    @property
    def is_empty(self) -> bool:
        return self.key is None

    def facts(self, adata: AnnData) -> Facts:
        train, validation, test = self.rows(adata)
        return {"n_train": len(train), "n_validation": len(validation), "n_test": len(test)}

    def rows(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row numbers of training, validation and test spots. Without a column every row is for training."""
        if self.key is None:
            nothing = np.empty(0, dtype=np.int64)
            return np.arange(adata.n_obs), nothing, nothing
        roles = read_split(adata.obs, self.key)
        if not roles.train.any():
            raise ValueError(f"obs[{self.key!r}] names no {_keys.TRAIN!r} row, so there is nothing to fit.")
        train, validation, test = map(np.flatnonzero, (roles.train, roles.validation, roles.test))
        return train, validation, test


def check_patients(adata: AnnData, patient: PatientField, split: SplitField) -> None:
    """Warn when a patient is in training and in test rows: scores then say less than they seem to.

    Validation rows may be of training patients; they only choose when to stop.
    """
    if patient.is_empty or split.is_empty:
        return
    who = full_column(adata.obs, str(patient.key)).to_numpy()
    train, _, test = split.rows(adata)
    both = set(who[train]) & set(who[test])
    if both:
        warn(
            f"Patient {some(sorted(both))} is in both {_keys.TRAIN!r} and {_keys.TEST!r} of obs[{split.key!r}]: "
            "scores will be of known patients. Split by patient (`stg.pp.split`) to score new ones."
        )


def check_observations(adata: AnnData, *, minimum: int = 1, rows_are: str = "spots") -> None:
    """Raise on too few rows, or rows that share a name."""
    if adata.n_obs < minimum:
        raise ValueError(f"At least {minimum} {rows_are} are needed; this AnnData has {adata.n_obs}.")
    check_unique(
        adata.obs_names,
        f"{rows_are.removesuffix('s').capitalize()} names",
        'Barcodes are the same on every slide: join sections with `anndata.concat(..., index_unique="-")`; else run '
        "`adata.obs_names_make_unique()`.",
    )


def field_from(saved: Facts) -> Field:
    """The field that :meth:`Field.saved` described."""
    kinds = {kind.__name__: kind for kind in _kinds(Field)}
    arguments = dict(saved)
    kind = arguments.pop("kind")
    if kind not in kinds:
        raise ValueError(f"Unknown field {kind!r}; known are {', '.join(kinds)}.")
    return kinds[kind](**arguments)


def _kinds(kind: type[Field]) -> Iterator[type[Field]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)
