"""The guard: coordinates that are plainly not µm are refused, section by section.

What a table says (:mod:`._unit_evidence`) and what is recorded (:mod:`stgen._scale_record`) must agree with a unit of 1 µm,
and spots must lie as spots or cells can (:mod:`._spacing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stgen import _keys
from stgen._scale_record import ScaleRecord
from stgen._warn import number, warn

from ._points import points
from ._spacing import Grid, differs, grid_of
from ._unit_evidence import Evidence, evidence, of_the_lattice, tiled_slide

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_PITCH_UM, LARGEST_PITCH_UM = 1.0, 1000.0
REMEDY = "Convert with `stg.pp.coordinates_in_um`."


def check_units(
    adata: AnnData,
    key: str,
    xy: NDArray[np.float64],
    names: NDArray[np.str_] | None,
    *,
    rows_are: str = "spots",
) -> dict[str, Grid]:
    """Raise if ``obsm[key]`` is plainly not in µm, section by section; warn if sections differ as units do.

    Returns how spots lie in each section, by name.
    """
    record = _valid_record(adata, key, xy)
    _check_not_left_behind(adata, key, xy, record)
    is_claimed = record is not None or key == _keys.SPATIAL_UM
    if (
        not is_claimed
        and key == _keys.SPATIAL
        and _keys.TILE_SPEC in adata.uns
        and not list(tiled_slide(adata))
    ):
        raise ValueError(
            f"obsm[{key!r}] must be in µm; uns[{_keys.TILE_SPEC!r}] says that these are corners of tiles, in pixels of a slide "
            "whose pixel size is not known. Give it to `stg.pp.coordinates_in_um(adata, um_per_unit=…)`."
        )
    section = np.full(len(xy), "") if names is None else names
    grids: dict[str, Grid] = {}
    for name in np.unique(section):
        rows = np.flatnonzero(section == name)
        if is_claimed:
            lattice = of_the_lattice(adata, key, xy[rows], rows)
            traces = [] if lattice is None else [lattice]
        else:
            traces = evidence(adata, key, xy, rows, str(name))
        _check_traces(adata, key, str(name), traces, is_claimed)
        grids[str(name)] = grid = grid_of(xy[rows])
        _check_pitch(key, str(name), xy[rows], grid.nearest, rows_are, is_claimed)
    _compare_pitches(key, grids)
    return grids


def _valid_record(adata: AnnData, key: str, xy: NDArray[np.float64]) -> ScaleRecord | None:
    """The record of this slot, if it still describes it.

    One that says that a reader's own coordinates are µm converted nothing: coordinates may be moved, and are then looked
    at as if nothing was recorded. A converted slot that no longer fits is an error.
    """
    record = ScaleRecord.of(adata, key)
    if record is None or record.key != record.from_key:
        if record is not None:
            record.check(adata, xy)
        return record
    misfit = record.misfit(adata, xy)
    if not misfit:
        return record
    warn(
        f"uns[{_keys.SPATIAL_UM!r}] says that obsm[{key!r}] is in µm ({record.as_text()}), but of other coordinates: {misfit}. "
        f"They are taken for µm as they are. {REMEDY.removesuffix('.')} if they are not."
    )
    return None


def _check_traces(adata: AnnData, key: str, name: str, traces: list[Evidence], is_claimed: bool) -> None:
    for one in traces:
        if not one.contradicts(1.0):
            continue
        remedy = (
            f"Convert again with `stg.pp.coordinates_in_um`; whatever wrote obsm[{key!r}] used another scale."
            if is_claimed
            else f"{REMEDY} If they are in µm already, put them in obsm[{_keys.SPATIAL_UM!r}]."
        )
        raise ValueError(
            f"obsm[{key!r}] must be in µm; one unit{_of(name)} is {one.um_per_unit:.4g} µm ({one.reason}), and "
            + (
                "a unit of 1 µm is recorded"
                if is_claimed
                else f"no conversion is recorded in uns[{_keys.SPATIAL_UM!r}]"
            )
            + f". {remedy}"
        )


def _check_pitch(
    key: str, name: str, xy: NDArray[np.float64], pitch: float, rows_are: str, is_claimed: bool
) -> None:
    if np.isnan(pitch):
        return
    one = rows_are.removesuffix("s")
    if pitch == 0:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; most {rows_are} lie exactly on another {one}{_of(name)}. "
            "Overlapping sections need `library_key=`, the column of `obs` that tells them apart."
        )
    if not LEAST_PITCH_UM <= pitch <= LARGEST_PITCH_UM:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; the median distance between neighbouring {rows_are} is "
            f"{number(pitch, LEAST_PITCH_UM, LARGEST_PITCH_UM)}{_of(name).replace(' of', ' in')}, outside {LEAST_PITCH_UM:g}–{LARGEST_PITCH_UM:g} µm, so these look like pixels or another unit. "
            f"{REMEDY}"
        )
    if not is_claimed and pitch < 1.5 and len(xy) > 8 and (xy == np.round(xy)).all():
        raise ValueError(
            f"obsm[{key!r}] must be in µm; its values{_of(name)} are whole numbers and neighbouring {rows_are} are {pitch:.3g} "
            "apart, so these look like indices of an array. Convert with `stg.pp.coordinates_in_um(adata, um_per_unit=…)`, "
            "where a unit is the distance of neighbouring rows: 200 on the first ST arrays."
        )


def _check_not_left_behind(
    adata: AnnData, key: str, xy: NDArray[np.float64], record: ScaleRecord | None
) -> None:
    """A record of another slot knows this one: as what was converted, or as what it no longer agrees with."""
    if record is None:
        other = adata.uns.get(_keys.SPATIAL_UM)
        other_key = str(other.get("key", key)) if hasattr(other, "get") else key
        if other_key == key or str(other.get("from_key", "")) != key:  # type: ignore[union-attr]
            return
        there = other_key in adata.obsm
        raise ValueError(
            f"obsm[{key!r}] must be in µm; uns[{_keys.SPATIAL_UM!r}] says that it was converted to obsm[{other_key!r}]"
            + (
                f". Say `spatial_key={other_key!r}`."
                if there
                else ", which does not exist (any more). Convert again with `stg.pp.coordinates_in_um`."
            )
        )
    if record.from_key == key or record.from_key not in adata.obsm:
        return
    names = record.sections(adata)
    if names is None:
        return
    index = {str(name): i for i, name in enumerate(record.section)}
    i = np.array([index[str(name)] for name in names])
    source = points(adata.obsm[record.from_key], f"obsm[{record.from_key!r}]")
    expected = source * record.um_per_unit[i][:, None] + record.offset_um[i]
    if not np.allclose(expected, xy, rtol=1e-5, atol=1e-3):
        warn(
            f"obsm[{record.from_key!r}] is not what obsm[{key!r}] was converted from any more; obsm[{key!r}] is used. squidpy "
            "writes centroids of elements there, which does no harm. If you changed coordinates on purpose, call "
            "`stg.pp.coordinates_in_um` again."
        )


def _compare_pitches(key: str, grids: Mapping[str, Grid]) -> None:
    """Sections of one table should have one pitch; cells vary, units vary more."""
    pitches = {name: grid.pitch for name, grid in grids.items() if np.isfinite(grid.pitch)}
    if len(pitches) < 2:
        return
    least, most = min(pitches, key=pitches.__getitem__), max(pitches, key=pitches.__getitem__)
    if differs(grids[least], grids[most]):
        warn(
            f"Neighbours in obsm[{key!r}] are {pitches[least]:.4g} µm apart in section {least!r} and {pitches[most]:.4g} µm "
            f"in section {most!r}. Are both in µm? {REMEDY}"
        )


def compare_with_training(
    facts: Mapping[str, Any], key: str, grids: Mapping[str, Grid], rows_are: str
) -> None:
    """Warn if spots lie as those of training would in another unit."""
    if "pitch_um" not in facts:
        return
    least, most = (Grid(one, one, facts["is_regular"], 0) for one in facts["pitch_um"])
    for name, grid in grids.items():
        if (grid.pitch < least.pitch and differs(grid, least)) or (
            grid.pitch > most.pitch and differs(grid, most)
        ):
            warn(
                f"Neighbouring {rows_are}{_of(name)} in obsm[{key!r}] are {grid.pitch:.4g} µm apart; those that the model was "
                f"fitted on are {least.pitch:.4g}"
                + (f" to {most.pitch:.4g}" if differs(least, most) else "")
                + f" apart. If this is no finer or coarser array, a unit is not a µm. {REMEDY}"
            )


def _of(name: str) -> str:
    return f" of section {name!r}" if name else ""
