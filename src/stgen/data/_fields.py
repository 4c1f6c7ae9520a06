"""What a model reads from an AnnData, checked at the door.

A field names one slot, says what is expected there, and knows whether it is a *target*: a slide with H&E and no genes
at all must be predictable, so applying a model reads its inputs only. Fields keep facts of the data they were
registered with (widths, gene names, the encoder) and compare new data with those facts, by name where there are names.

Fields speak the protocol of scvi-tools' ``AnnDataManager`` (``register_field`` and its relatives) without importing it.
Facts are JSON-able, because a saved model keeps them as json. Errors say what was expected, what was found, and what to do.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from stgen import _keys

if TYPE_CHECKING:
    from anndata import AnnData

Facts = dict[str, Any]

N_ROWS_AT_ONCE = 4096
"""Rows that are read at once from a file or looked at in one check."""


# ---------------------------------------------------------------------------------------------------------- counts


def check_counts(X: Any, name: str = "X") -> None:
    """Raise unless ``X`` holds counts: finite, not negative, whole numbers (of any dtype).

    Parameters
    ----------
    X
        Dense array, sparse matrix, or a matrix of a backed AnnData; it is read in blocks of rows.
    name
        How the message calls it, for example ``layers['counts']``.
    """
    for block in _row_blocks(X):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if values.size == 0 or values.dtype.kind in "ub":
            continue
        if values.dtype.kind not in "if":
            raise ValueError(f"{name} must hold counts; its dtype is {values.dtype}.")
        _check_count_values(values, name)


def _check_count_values(values: np.ndarray, name: str) -> None:
    remedy = "Give raw counts, or name the layer that holds them with `layer=`."
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
            example = float(values[broken].flat[0])
            raise ValueError(
                f"{name} must hold counts; found {broken.mean():.0%} of values that are not whole numbers, "
                f"such as {example:.4g}. It looks normalised or transformed. {remedy}"
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


# ----------------------------------------------------------------------------------------------------------- names


def check_unique(names: pd.Index, what: str, remedy: str) -> None:
    """Raise if names repeat, with examples."""
    if names.is_unique:
        return
    repeated = names[names.duplicated()].unique()
    raise ValueError(f"{what} must be unique; {len(repeated)} repeat: {some(repeated)}. {remedy}")


def some(names: Iterable[Any], n: int = 3) -> str:
    """The first few names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:n]) + (", …" if len(listed) > n else "")


_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")


def looks_like_ensembl(names: Sequence[str] | pd.Index) -> bool:
    """Whether most names are Ensembl gene identifiers."""
    sample = [str(name) for name in names[:200]]
    return bool(sample) and sum(bool(_ENSEMBL.match(name)) for name in sample) > len(sample) / 2


def align_genes(
    expected: Sequence[str] | pd.Index, found: Sequence[str] | pd.Index, *, var: pd.DataFrame | None = None
) -> np.ndarray:
    """Where each expected gene is among the found ones, by name. The only place where genes are matched.

    Parameters
    ----------
    expected
        Genes that a model knows, in its order.
    found
        Genes of the data, in any order; there may be more of them.
    var
        ``adata.var`` of the data, searched for a column that would match, to name it in the message.

    Returns
    -------
    Integer positions such that ``found[positions] == expected``.
    """
    expected, found = pd.Index(expected).astype(str), pd.Index(found).astype(str)
    check_unique(found, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    positions = found.get_indexer(expected)
    missing = expected[positions < 0]
    if len(missing):
        raise ValueError(
            f"{len(expected)} genes are expected and {len(missing)} of them are not in this AnnData, "
            f"such as {some(missing)}; it has {len(found)} genes, such as {some(found)}. "
            + _naming_hint(expected, found, var)
        )
    return positions.astype(np.int64)


def _naming_hint(expected: pd.Index, found: pd.Index, var: pd.DataFrame | None) -> str:
    """What most likely went wrong when names do not match."""
    n_here = int(expected.isin(found).sum())
    var = pd.DataFrame() if var is None else var
    for column in var.columns:
        n_there = int(expected.isin(pd.Index(var[column]).astype(str)).sum())
        if n_there > max(n_here, len(expected) / 2):
            return f"`var[{column!r}]` has {n_there} of them: use it as `var_names`."
    if looks_like_ensembl(expected) != looks_like_ensembl(found):
        kinds = ("Ensembl identifiers", "symbols")
        learned, given = kinds if looks_like_ensembl(expected) else kinds[::-1]
        return f"The model learned {learned}, these look like {given}: rename `var_names`."
    if expected.str.upper().isin(found.str.upper()).sum() > n_here:
        return "Some match when upper and lower case are ignored: is it the same species, written in the same way?"
    bare = expected.str.replace(r"\.\d+$", "", regex=True)
    if bare.isin(found.str.replace(r"\.\d+$", "", regex=True)).sum() > n_here:
        return "Some match without the version suffix (`.1`): strip it on both sides."
    return "Use an AnnData that has all of them, or fit a model on the genes both have."


# ---------------------------------------------------------------------------------------------------------- fields


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
                f"{n_empty} of {adata.n_obs} spots have no counts in {self.name}; a model learns that they are empty. "
                "Drop them unless that is what they are.",
            )
        constant = adata.var_names[lowest == highest]
        if len(constant):
            warn(
                f"{len(constant)} of {adata.n_vars} genes have the same count in every spot, such as {some(constant)}; "
                "nothing can be learned about them and most scores are undefined.",
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
        finite = np.isfinite(array).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"obsm[{self.key!r}] must be finite; {int((~finite).sum())} of {len(finite)} spots have NaN or infinite "
                f"features, such as {some(adata.obs_names[~finite])}. Drop these spots or embed their tiles again."
            )
        return array

    def facts(self, adata: AnnData) -> Facts:
        facts: Facts = {"n_features": int(self.read(adata).shape[1])}
        recorded = self._recorded(adata)
        facts["encoder"] = str(recorded["encoder"]) if "encoder" in recorded else None
        facts["tile_um"] = float(recorded["tile_um"]) if "tile_um" in recorded else None
        return facts

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
                f"obsm[{self.key!r}] must have the {facts['n_features']} features the model was fitted with; it has "
                f"{found['n_features']}. Embed with the same encoder{_named(facts['encoder'])}."
            )
        if facts["encoder"] and found["encoder"] and found["encoder"] != facts["encoder"]:
            raise ValueError(
                f"The model was fitted on features of the encoder {facts['encoder']!r}; obsm[{self.key!r}] comes from "
                f"{found['encoder']!r}. Embed with {facts['encoder']!r}."
            )
        if facts["tile_um"] and found["tile_um"] and abs(found["tile_um"] / facts["tile_um"] - 1) > 0.01:
            raise ValueError(
                f"The model was fitted on tiles of {facts['tile_um']:g} µm; these are {found['tile_um']:g} µm wide. "
                "Cut tiles of the same size: `stg.pp.histology_tiles`."
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

    registry_key: ClassVar[str] = "xy"

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return self.key

    def read(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray | None]:
        """Coordinates (n, 2) float64 in µm, and the section of each spot as integer codes; both checked."""
        xy = _obsm(adata, self.key, remedy="Name yours with `spatial_key=`.").astype(np.float64)
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise ValueError(f"obsm[{self.key!r}] must be spots × 2 (x, y in µm); its shape is {xy.shape}.")
        finite = np.asarray(np.isfinite(xy).all(axis=1))
        if not finite.all():
            raise ValueError(
                f"obsm[{self.key!r}] must be finite; {int((~finite).sum())} of {len(finite)} spots have NaN or infinite "
                f"coordinates, such as {some(adata.obs_names[~finite])}. Drop these spots."
            )
        section = self._sections(adata)
        if section is None:
            check_one_section(xy, adata.obs, self.key)
        check_scale(xy, section, adata.uns, self.key)
        return xy, section

    def _sections(self, adata: AnnData) -> np.ndarray | None:
        if self.library_key is None or self.library_key not in adata.obs:
            # a new slide without the column is one section; `check_one_section` refuses it if it is not
            return None
        column = adata.obs[self.library_key]
        if column.isna().any():
            raise ValueError(
                f"obs[{self.library_key!r}] must name the section of every spot; {int(column.isna().sum())} are missing."
            )
        return pd.factorize(column, sort=True)[0]

    def facts(self, adata: AnnData) -> Facts:
        if self.library_key is not None and self.library_key not in adata.obs:
            raise KeyError(f"obs[{self.library_key!r}] does not exist; obs has {list(adata.obs.columns)}.")
        self.read(adata)
        return {"n_sections": 1 if self.library_key is None else int(adata.obs[self.library_key].nunique())}

    def compare(self, facts: Facts, adata: AnnData) -> None:
        self.read(adata)

    def transfer_field(self, state_registry: Facts, adata_target: AnnData, **kwargs: Any) -> Facts:
        self.compare(state_registry, adata_target)
        has_column = self.library_key is not None and self.library_key in adata_target.obs
        return {"n_sections": int(adata_target.obs[self.library_key].nunique()) if has_column else 1}


def spot_pitch(xy: np.ndarray, section: np.ndarray | None = None) -> float:
    """Median distance of a spot to its nearest neighbour in the same section; NaN if no section has two spots."""
    section = np.zeros(len(xy), dtype=np.int64) if section is None else section
    distances = []
    for code in np.unique(section):
        here = xy[section == code]
        if len(here) > 1:
            # a few thousand spots are enough for a median
            asked = here[:: max(1, len(here) // 2000)]
            distances.append(cKDTree(here).query(asked, k=2)[0][:, 1])
    return float(np.median(np.concatenate(distances))) if distances else float("nan")


def check_scale(xy: np.ndarray, section: np.ndarray | None, uns: Any, key: str = _keys.SPATIAL) -> None:
    """Raise if coordinates are plainly not µm: an implausible pitch, or a scale in ``uns`` that nobody applied."""
    remedy = "Convert with `stg.pp.coordinates_in_um`."
    um_per_unit = uns.get(_keys.UM_PER_UNIT)
    converted = _converted(uns, key)
    if um_per_unit is not None and float(um_per_unit) != 1.0 and not converted:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; uns[{_keys.UM_PER_UNIT!r}] says one unit is {float(um_per_unit):g} µm, "
            f"and no conversion is recorded in uns[{_keys.SPATIAL_UM!r}]. {remedy}"
        )
    pitch = spot_pitch(xy, section)
    if np.isnan(pitch):
        return
    if pitch == 0:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; most spots lie exactly on another spot. "
            "Overlapping sections need `library_key=`, the column of `obs` that tells them apart."
        )
    if not 1 <= pitch <= 1000:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; the median distance between neighbouring spots is {pitch:.4g}, outside "
            f"1–1000 µm, so these look like pixels or another unit. {remedy}"
        )
    diameter = _visium_diameter(uns)
    if diameter and not converted and not 90 < pitch < 110 and 1.5 < pitch / diameter < 2.1:
        # Visium: pitch 100 µm, spots 55 to 65 µm, so the ratio betrays pixels of the full-resolution image
        raise ValueError(
            f"obsm[{key!r}] must be in µm; neighbouring spots are {pitch:.4g} apart where `uns['spatial']` gives spots a "
            f"diameter of {diameter:.4g} pixels, so these are pixels. {remedy}"
        )


def _converted(uns: Any, key: str) -> bool:
    """Whether ``uns`` records that this slot was converted to µm."""
    record = uns.get(_keys.SPATIAL_UM)
    return hasattr(record, "get") and record.get("key", _keys.SPATIAL) == key


def _visium_diameter(uns: Any) -> float | None:
    """Spot diameter in full-resolution pixels, if ``uns`` describes a Visium slide."""
    libraries = uns.get(_keys.SPATIAL, {})
    for library in libraries.values() if hasattr(libraries, "values") else []:
        factors = library.get("scalefactors", {}) if hasattr(library, "get") else {}
        if "spot_diameter_fullres" in factors:
            return float(factors["spot_diameter_fullres"])
    return None


# names that mean a section and little else; `batch` or `slice` may cut one section into parts
_LIBRARY_COLUMNS = (
    _keys.LIBRARY,
    "section_id",
    "library_id",
    "library",
    "sample",
    "sample_id",
    "slide",
    "slide_id",
)


def check_one_section(xy: np.ndarray, obs: pd.DataFrame, key: str = _keys.SPATIAL) -> None:
    """Raise if spots without a ``library_key`` are plainly several sections lying on each other."""
    for column in _LIBRARY_COLUMNS:
        if column in obs and obs[column].nunique() > 1 and _overlap(xy, obs[column]):
            raise ValueError(
                f"Without `library_key` all spots are one section, but obs[{column!r}] has {obs[column].nunique()} values "
                f"whose spots overlap in obsm[{key!r}]. Say `library_key={column!r}`, or move the sections apart."
            )
    n_copies = len(xy) - len(np.unique(xy, axis=0))
    if len(xy) > 1 and n_copies > 0.1 * len(xy):
        raise ValueError(
            f"{n_copies} of {len(xy)} spots lie exactly on another spot in obsm[{key!r}]. Overlapping sections need "
            "`library_key=`, the column of `obs` that tells them apart."
        )


def _overlap(xy: np.ndarray, section: pd.Series) -> bool:
    """Whether the bounding boxes of two sections share ground."""
    codes, names = pd.factorize(section)
    groups = [xy[codes == code] for code in range(len(names))]
    boxes = [(here.min(axis=0), here.max(axis=0)) for here in groups]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            if (np.minimum(high, other_high) > np.maximum(low, other_low)).all():
                return True
    return False


@dataclass(frozen=True)
class PatientField(Field):
    """Which patient a spot comes from: kept in the model card, and checked not to be on both sides of the split."""

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
        if self.key not in adata.obs:
            raise KeyError(f"obs[{self.key!r}] does not exist; obs has {list(adata.obs.columns)}.")
        return {"n_patients": int(adata.obs[self.key].nunique())}


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
        if self.key not in adata.obs:
            raise KeyError(
                f"obs[{self.key!r}] does not exist; obs has {list(adata.obs.columns)}. Write it with `stg.pp.split`."
            )
        column = adata.obs[self.key].astype(object).to_numpy()
        names = (_keys.TRAIN, _keys.VALIDATION, _keys.TEST)
        strange = [value for value in pd.unique(column) if value not in (*names, _keys.BUFFER)]
        if strange:
            raise ValueError(
                f"obs[{self.key!r}] must hold {', '.join(map(repr, names))}; found {some(map(repr, strange))}. "
                "Write it with `stg.pp.split`."
            )
        train, validation, test = (np.flatnonzero(column == name) for name in names)
        if len(train) == 0:
            raise ValueError(f"obs[{self.key!r}] names no {_keys.TRAIN!r} row, so there is nothing to fit.")
        return train, validation, test


def check_patients(adata: AnnData, patient: PatientField, split: SplitField) -> None:
    """Warn when a patient is in training and in evaluation: scores then say less than they seem to."""
    if patient.is_empty or split.is_empty:
        return
    who = adata.obs[patient.key].astype(str).to_numpy()
    train, validation, test = split.rows(adata)
    sides = {_keys.VALIDATION: set(who[validation]), _keys.TEST: set(who[test])}
    both = set(who[train]) & set().union(*sides.values())
    if both:
        where = ", ".join(repr(name) for name, patients in sides.items() if patients & both)
        warn(
            f"Patient {some(sorted(both))} is in both {_keys.TRAIN!r} and {where} of obs[{split.key!r}]: scores will be of "
            "known patients. Split by patient (`stg.pp.split`) to score new ones."
        )


def warn(message: str) -> None:
    """Warn at the line of the user's that led here, not at one of ours."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("stgen", "scvi"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def check_observations(adata: AnnData, *, minimum: int = 1) -> None:
    """Raise on too few spots, or spots that share a name."""
    if adata.n_obs < minimum:
        raise ValueError(f"At least {minimum} spots are needed; this AnnData has {adata.n_obs}.")
    check_unique(adata.obs_names, "Spot names", "Run `adata.obs_names_make_unique()`.")


def field_from(saved: Facts) -> Field:
    """The field that :meth:`Field.saved` described."""
    kinds = {
        kind.__name__: kind
        for kind in (CountsField, HistologyField, CoordinatesField, PatientField, SplitField)
    }
    arguments = dict(saved)
    kind = arguments.pop("kind")
    if kind not in kinds:
        raise ValueError(f"Unknown field {kind!r}; known are {', '.join(kinds)}.")
    return kinds[kind](**arguments)
