"""Places in µm. What a table says about its coordinates, or one spot pitch, tells which unit they are in.

Arrays of spots have a known pitch (100 µm on Visium, 200 µm on ST), so that the distance between neighbouring
spots gives the scale of any picture they are drawn on, and betrays a scale that cannot be right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stgen import _keys
from stgen._docs import shared_doc
from stgen._scale_record import ScaleRecord
from stgen._warn import number, warn
from stgen.data._names import some
from stgen.data._places import library_column, raw_xy, section_names
from stgen.data._spacing import grid_of
from stgen.data._unit_evidence import (
    SCALE_SLACK,
    VISIUM_DIAMETERS_UM,
    Evidence,
    half_tile_um,
    hinted,
    measured,
    told,
)
from stgen.data._units import LARGEST_PITCH_UM, LEAST_PITCH_UM

from ._editing import check_adata, editable

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

PITCH_HINT = "`spot_pitch_um=100` for Visium, 200 for the first ST arrays"


@shared_doc
def coordinates_in_um(
    adata: AnnData,
    *,
    um_per_unit: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    key_added: str = _keys.SPATIAL_UM,
    copy: bool = False,
) -> AnnData | None:
    """Write coordinates in µm beside those that a reader wrote.

    ``obsm["spatial"]`` stays as it is, so that spots go on lying on their picture in scanpy and squidpy. Models and tasks
    of this package read ``obsm["spatial_um"]`` where it is.

    The scale of a section is, in this order: ``um_per_unit``; ``microns_per_pixel`` of the scale factors in
    ``uns["spatial"]``, or ``mpp`` of a slide that LazySlide tiled; the lattice of spots, where ``obs`` has ``array_row`` and
    ``array_col`` (Visium, and HD whose names tell the size of a bin); ``spot_pitch_um`` divided by the measured distance
    of neighbouring spots; ``uns["um_per_unit"]``, a number or a dict by section. All that is known is compared, and a
    contradiction is refused.

    Parameters
    ----------
    adata
        %(adata)s
    um_per_unit
        µm that one unit of the coordinates is (the pixel size, if they are pixels); a dict section → number
        if sections differ.
    spot_pitch_um
        Distance between the centres of neighbouring spots: 100 on Visium, 200 on the first ST arrays. Only
        for spots on a grid. It is not the diameter of a spot, which is 55 µm on Visium.
    spatial_key
        Key in ``obsm`` of the coordinates, spots × 2, in their present unit.
    library_key
        %(library_key)s A table of several regions of a SpatialData has them as sections.
    key_added
        Key in ``obsm`` of the result.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, spots × 2, µm, and ``uns["spatial_um"]``, the record that models
    check before they believe it: ``key``, ``from_key``, ``library_key``, and for each ``section`` its ``um_per_unit``,
    the ``reason`` for it, ``n_obs``, ``extent`` (x and y from, x and y to, µm), ``offset_um``, and the places ``spot_um``
    of a few spots ``spot``.

    Raises
    ------
    ValueError
        If no scale is known; if what is known contradicts what is given; if neighbouring spots would then lie closer
        than 1 µm or farther than 1000 µm apart; if a spot's diameter is given as a pitch; if ``key_added`` holds
        something else.

    Warns
    -----
    UserWarning
        If an earlier conversion with another scale is replaced, or a constant third column is left out.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> adata.obsm["pixels"] = adata.obsm["spatial"] * 2
    >>> stg.pp.coordinates_in_um(adata, um_per_unit=0.5, spatial_key="pixels", library_key="section")
    >>> adata.uns["spatial_um"]["reason"][0]
    'given as um_per_unit'
    """
    check_adata(adata, copy=copy)
    xy = raw_xy(adata, spatial_key)
    column = library_column(adata, library_key)
    names = section_names(adata, xy, column, spatial_key)
    found = find_scales(adata, spatial_key, xy, names, um_per_unit=um_per_unit, spot_pitch_um=spot_pitch_um)
    section = np.full(len(xy), "") if names is None else names
    converted = np.empty_like(xy)
    for name, scale in found.items():
        here = section == name
        converted[here] = xy[here] * scale.um_per_unit + scale.offset_um
        check_pitch(converted[here], scale.um_per_unit, spatial_key, name)
    _check_slot(adata, spatial_key, key_added, found, converted)
    record = ScaleRecord.make(
        adata,
        converted,
        names,
        key=key_added,
        from_key=spatial_key,
        library_key=column,
        scales={name: (scale.um_per_unit, scale.reason) for name, scale in found.items()},
        offset_um={name: scale.offset_um for name, scale in found.items()},
    )
    adata = editable(adata, copy=copy)
    adata.obsm[key_added] = converted
    adata.uns[_keys.SPATIAL_UM] = record.stored()
    return adata if copy else None


class Scale(NamedTuple):
    """From the unit of coordinates to µm, in one section."""

    um_per_unit: float
    reason: str
    offset_um: NDArray[np.float64]


def find_scales(
    adata: AnnData,
    key: str,
    xy: NDArray[np.float64],
    names: NDArray[np.str_] | None,
    *,
    um_per_unit: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    argument: str = "um_per_unit",
) -> dict[str, Scale]:
    """µm per unit of ``obsm[key]`` in every section, from all that is given and known; contradictions are refused."""
    section = np.full(len(xy), "") if names is None else names
    found = np.unique(section)
    given = {} if um_per_unit is None else given_scale(um_per_unit, found, argument)
    is_um = _is_recorded_um(adata, key, xy)
    scales: dict[str, Scale] = {}
    for name in map(str, found):
        rows = np.flatnonzero(section == name)
        known = [Evidence(given[name], f"given as {argument}", SCALE_SLACK)] if name in given else []
        sure = [Evidence(1.0, is_um, 1e-6)] if is_um else measured(adata, key, xy, rows, name)
        known += sure
        if spot_pitch_um is not None:
            known.append(_of_the_pitch(xy[rows], spot_pitch_um, name))
        known += [] if is_um else told(adata, name)
        scale = _agreed(known, list(hinted(adata, key, xy[rows], name, sure)), key, name, xy[rows], argument)
        if not sure and key == _keys.SPATIAL:  # a slide of unknown pixel size was tiled all the same
            scale = scale._replace(offset_um=half_tile_um(adata, scale.um_per_unit))
        scales[name] = scale
    return scales


def _is_recorded_um(adata: AnnData, key: str, xy: NDArray[np.float64]) -> str:
    """Why this very slot is known to be in µm; empty if it is not, or its record is of other coordinates."""
    record = ScaleRecord.of(adata, key)
    return "" if record is None or record.misfit(adata, xy) else f"in µm already: {record.as_text()}"


def _agreed(
    known: list[Evidence], hints: list[Evidence], key: str, name: str, xy: NDArray[np.float64], argument: str
) -> Scale:
    """The first that is known, if nothing else that is known speaks against it."""
    if not known:
        what = "pixel size of the image" if argument == "um_per_px" else "scale of the coordinates"
        raise ValueError(
            f"The {what} is not known{_of(name)}: neighbouring spots are {grid_of(xy).pitch:.4g} units "
            f"apart. Give `{argument}=` (µm per pixel, if they are pixels; 1 if they are µm), or the distance of "
            f"neighbouring spots, {PITCH_HINT}."
        )
    chosen = known[0]
    for other in [*known[1:], *hints]:
        if other.contradicts(chosen.um_per_unit):
            raise ValueError(
                f"What is known of the unit of obsm[{key!r}] contradicts each other{_of(name)}: {chosen.um_per_unit:.4g} µm "
                f"per unit ({chosen.reason}), and {other.um_per_unit:.4g} ({other.reason}). Are the coordinates those of "
                "another image (hires instead of full resolution), or in µm already? Correct whichever is wrong: the "
                "argument, or what `uns` says."
            )
    offset = next((one.offset_um for one in known if one.offset_um is not None), np.zeros(2))
    return Scale(chosen.um_per_unit, chosen.reason, offset)


def given_scale(
    value: float | Mapping[str, float], names: NDArray[np.str_], argument: str
) -> dict[str, float]:
    """One scale per section from a number or a dict."""
    if isinstance(value, Mapping):
        value = {str(name): scale for name, scale in value.items()}
        missing = [name for name in names if name not in value]
        if missing == [""]:
            raise ValueError(
                f"`{argument}` is a dict by section ({some(value)}), which needs `library_key=`, the column of `obs` that "
                "names the sections."
            )
        if missing:
            raise ValueError(f"`{argument}` has no value for section {some(missing)}; it has {some(value)}.")
        scales = {str(name): float(value[name]) for name in names}
    else:
        scales = {str(name): float(value) for name in names}
    for name, scale in scales.items():
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"`{argument}` must be above 0; got {scale!r}{_of(name)}.")
    return scales


def _of_the_pitch(xy: NDArray[np.float64], spot_pitch_um: float, name: str) -> Evidence:
    """µm per unit, from a grid of spots."""
    if not (np.isfinite(spot_pitch_um) and spot_pitch_um > 0):
        raise ValueError(f"`spot_pitch_um` must be a distance in µm above 0; got {spot_pitch_um!r}.")
    grid = grid_of(xy)
    if not grid.pitch > 0:
        raise ValueError(
            f"The pitch cannot be measured{_of(name)}: it has too few spots, or they lie on each other. "
            "Give the scale itself."
        )
    if grid.is_regular and grid.n_neighbors == 6 and float(spot_pitch_um) in VISIUM_DIAMETERS_UM:
        raise ValueError(
            f"`spot_pitch_um` is the distance between the centres of neighbouring spots, 100 µm on Visium; {spot_pitch_um:g} "
            "µm is the diameter of a spot there. Say `spot_pitch_um=100`, or give `um_per_unit=`."
        )
    return Evidence(spot_pitch_um / grid.pitch, f"spot pitch of {spot_pitch_um:g} µm", SCALE_SLACK)


def check_pitch(xy_um: NDArray[np.float64], scale: float, key: str, name: str) -> None:
    """Raise if neighbouring spots would be implausibly close or far."""
    pitch = grid_of(xy_um).pitch
    if np.isfinite(pitch) and not LEAST_PITCH_UM <= pitch <= LARGEST_PITCH_UM:
        raise ValueError(
            f"With {scale:.4g} µm per unit, neighbouring spots of obsm[{key!r}] would be "
            f"{number(pitch, LEAST_PITCH_UM, LARGEST_PITCH_UM)} µm apart{_of(name)}; plausible are {LEAST_PITCH_UM:g} to {LARGEST_PITCH_UM:g} "
            f"µm. Check the scale, or give {PITCH_HINT}."
        )


def _check_slot(
    adata: AnnData, key: str, key_added: str, scales: Mapping[str, Scale], xy: NDArray[np.float64]
) -> None:
    """The result replaces earlier results of this function, with a word if they differ, and nothing else."""
    if key_added == key:
        if any(one.um_per_unit != 1.0 or one.offset_um.any() for one in scales.values()):
            raise ValueError(
                f"`key_added` is `spatial_key`, {key!r}: spots would no longer lie on their picture in scanpy and squidpy. "
                f"Leave `key_added` out; models read obsm[{_keys.SPATIAL_UM!r}]."
            )
        return
    record = adata.uns.get(_keys.SPATIAL_UM, {})
    is_ours = hasattr(record, "get") and record.get("key") == key_added
    if key_added in adata.obsm and not is_ours and key_added != _keys.SPATIAL_UM:
        raise ValueError(
            f"obsm[{key_added!r}] exists and is not in µm by an earlier call. Choose another `key_added`."
        )
    if key_added not in adata.obsm:
        return
    before = np.asarray(adata.obsm[key_added], dtype=np.float64)[:, :2]
    moved = float(np.nanmax(np.abs(before - xy), initial=0.0))
    if moved > 1e-6 * max(1.0, float(np.abs(xy).max(initial=0.0))):
        first = next(iter(scales.values()))
        warn(
            f"obsm[{key_added!r}] held other places, up to {moved:.4g} µm away, and is replaced; one unit of obsm[{key!r}] is now "
            f"{first.um_per_unit:.4g} µm ({first.reason}). Results and tiles made before go with the old places."
        )


def _of(name: str) -> str:
    return f" in section {name!r}" if name else ""
