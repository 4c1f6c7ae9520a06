"""Places of spots: the one reader of coordinates and of the sections they lie in.

A table has two kinds of coordinates. ``obsm["spatial"]`` is what a reader wrote and what scanpy and squidpy draw: pixels
as often as not. ``obsm["spatial_um"]`` is in µm, written by :func:`stgen.pp.coordinates_in_um`. Models and tasks read
the second where it is, else the first after :mod:`._units` has looked at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stgen import _keys
from stgen._labels import full_column
from stgen._scale_record import ScaleRecord

from ._points import points
from ._spacing import Grid
from ._units import check_units

if TYPE_CHECKING:
    from anndata import AnnData


class Places(NamedTuple):
    """Where spots are, and in which section."""

    xy: NDArray[np.float64]
    """Spots × 2, µm."""
    section: NDArray[np.int64] | None
    """Number of each spot's section; ``None`` if all lie in one."""


def read_places(
    adata: AnnData, key: str = _keys.SPATIAL, library_key: str | None = None, *, rows_are: str = "spots"
) -> Places:
    """Coordinates in µm and sections, checked: finite, one section at a time, and not plainly of another unit."""
    return places_and_grids(adata, key, library_key, rows_are=rows_are)[0]


def places_and_grids(
    adata: AnnData, key: str = _keys.SPATIAL, library_key: str | None = None, *, rows_are: str = "spots"
) -> tuple[Places, dict[str, Grid]]:
    """Places, and how they lie in each section by name."""
    slot = um_slot(adata, key)
    xy = raw_xy(adata, slot, rows_are=rows_are)
    names = section_names(adata, xy, library_key, slot, rows_are=rows_are)
    grids = check_units(adata, slot, xy, names, rows_are=rows_are)
    section = None if names is None else pd.factorize(names, sort=True)[0]
    return Places(xy, section), grids


def um_slot(adata: AnnData, key: str = _keys.SPATIAL) -> str:
    """The key of ``obsm`` that is read for ``key``: that in µm in place of the reader's."""
    return _keys.SPATIAL_UM if key == _keys.SPATIAL and _keys.SPATIAL_UM in adata.obsm else key


def read_xy(adata: AnnData, key: str = _keys.SPATIAL, *, rows_are: str = "spots") -> NDArray[np.float64]:
    """Coordinates as :func:`read_places` reads them, in whatever unit they are: for drawing and for conversion."""
    return raw_xy(adata, um_slot(adata, key), rows_are=rows_are)


def raw_xy(adata: AnnData, key: str, *, rows_are: str = "spots") -> NDArray[np.float64]:
    """Coordinates of this very slot, (n, 2) float64, finite."""
    if key not in adata.obsm:
        raise KeyError(
            f"obsm[{key!r}] does not exist; obsm has {list(adata.obsm)}. Name yours with `spatial_key=`."
        )
    remedy = ""
    if key == _keys.SPATIAL_UM and _keys.SPATIAL in adata.obsm:
        remedy = (
            f"Were only some of several objects converted before they were joined? Call `stg.pp.coordinates_in_um` again; it "
            f"starts from obsm[{_keys.SPATIAL!r}]. Or drop these {rows_are}."
        )
    return points(adata.obsm[key], f"obsm[{key!r}]", names=adata.obs_names, rows_are=rows_are, remedy=remedy)


# ----------------------------------------------------------------------------------------------------------- sections


def library_column(adata: AnnData, library_key: str | None = None, *, usual: str | None = None) -> str | None:
    """The column of ``obs`` that tells sections apart: the one named, else the usual one, else the regions of a table.

    A table of a SpatialData says in ``uns["spatialdata_attrs"]`` which column names the element that a row lies in; more
    than one of these are sections.
    """
    if library_key is not None:
        if library_key not in adata.obs:
            raise KeyError(f"obs[{library_key!r}] does not exist; obs has {list(adata.obs.columns)}.")
        return library_key
    if usual is not None and usual in adata.obs:
        return usual
    attrs = adata.uns.get(_keys.SPATIALDATA_ATTRS, {})
    region = attrs.get("region_key") if hasattr(attrs, "get") else None
    if region is not None and region in adata.obs and adata.obs[region].nunique() > 1:
        return str(region)
    return None


def section_names(
    adata: AnnData,
    xy: NDArray[np.float64],
    library_key: str | None,
    key: str = _keys.SPATIAL,
    *,
    usual: str | None = None,
    rows_are: str = "spots",
) -> NDArray[np.str_] | None:
    """Name of every row's section; ``None`` for one section, which is refused where it plainly is several."""
    column = library_column(adata, library_key, usual=usual)
    if column is None:
        check_one_section(xy, adata.obs, key, rows_are=rows_are)
        return None
    return full_column(adata.obs, column, rows_are=rows_are).to_numpy().astype(str)


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


def check_one_section(
    xy: NDArray[np.float64], obs: pd.DataFrame, key: str = _keys.SPATIAL, *, rows_are: str = "spots"
) -> None:
    """Raise if rows without a ``library_key`` are plainly several sections lying on each other."""
    for column in _LIBRARY_COLUMNS:
        if column in obs and obs[column].nunique() > 1 and _overlap(xy, obs[column]):
            raise ValueError(
                f"Without `library_key` all {rows_are} are one section, but obs[{column!r}] has "
                f"{obs[column].nunique()} values "
                f"whose {rows_are} overlap in obsm[{key!r}]. Say `library_key={column!r}`, or move the sections "
                "apart."
            )
    n_copies = len(xy) - len(np.unique(xy, axis=0))
    if len(xy) > 1 and n_copies > 0.1 * len(xy):
        raise ValueError(
            f"{n_copies} of {len(xy)} {rows_are} lie exactly on another {rows_are.removesuffix('s')} in "
            f"obsm[{key!r}]. Overlapping sections need `library_key=`, the column of `obs` that tells them apart."
        )


def _overlap(xy: NDArray[np.float64], section: pd.Series) -> bool:
    """Whether the bounding boxes of two sections share ground."""
    codes, names = pd.factorize(section)
    groups = [xy[codes == code] for code in range(len(names))]
    boxes = [(here.min(axis=0), here.max(axis=0)) for here in groups]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            if (np.minimum(high, other_high) > np.maximum(low, other_low)).all():
                return True
    return False


def write_places(made: AnnData, source: AnnData, xy: NDArray[np.float64], key: str) -> None:
    """Places of new rows, in µm, in the slots that ``source`` has: so that a concatenation mixes no units.

    Where ``source`` has µm in a slot of their own, the reader's slot gets the reader's unit.
    """
    slot = um_slot(source, key)
    made.obsm[slot] = xy
    record = ScaleRecord.of(source, slot)
    if slot == key or record is None or record.from_key != key:
        return
    names = record.sections(made)
    if names is not None and set(names) <= set(record.section):
        row = {str(name): i for i, name in enumerate(record.section)}
        i = np.array([row[str(name)] for name in names])
        made.obsm[key] = (xy - record.offset_um[i]) / record.um_per_unit[i][:, None]
