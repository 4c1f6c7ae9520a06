"""Which unit coordinates are in: what a table says about it, and a guard that refuses pixels where µm are meant.

Readers leave traces. Spots of an array carry their row and column, and a lattice fitted to the coordinates gives the
units of one step, exactly. Scale factors tell the pixel size of the full-resolution image or the diameter of a spot on it.
Each trace is :class:`Evidence`: how many µm one unit should be, why, and how far it can be off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stgen import _keys
from stgen._scale_record import ScaleRecord
from stgen._warn import number, warn

from ._names import some
from ._points import points

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_PITCH_UM, LARGEST_PITCH_UM = 1.0, 1000.0
VISIUM_PITCH_UM = 100.0
VISIUM_DIAMETERS_UM = (55.0, 65.0)
"""Of a printed spot, and of what Space Ranger calls `spot_diameter_fullres`."""
REMEDY = "Convert with `stg.pp.coordinates_in_um`."
N_ASKED = 5000
"""Spots from which a pitch is taken: a few thousand are enough."""
LEAST_ON_LATTICE = 4
"""Spots that a lattice is fitted to: three fit any."""
LATTICE_SLACK, SCALE_SLACK = 0.05, 0.1


class Evidence(NamedTuple):
    """How many µm one unit of the coordinates should be."""

    um_per_unit: float
    reason: str
    slack: float
    """Largest deviation, as a part of the scale, that is no contradiction."""
    offset_um: NDArray[np.float64] | None = None
    """From a coordinate to the centre of what it stands for, µm, where that is not the coordinate."""

    def contradicts(self, um_per_unit: float) -> bool:
        """Whether a scale cannot be true if this is."""
        return abs(um_per_unit / self.um_per_unit - 1) > self.slack


# -------------------------------------------------------------------------------------------------------------- pitch


def spot_pitch(xy: NDArray[np.float64], section: NDArray[Any] | None = None) -> float:
    """Median distance to the nearest spot of the same section; NaN if no section has two spots."""
    section = np.zeros(len(xy), dtype=np.int64) if section is None else section
    distances = []
    for code in np.unique(section):
        here = xy[section == code]
        if len(here) > 1:
            distances.append(cKDTree(here).query(here[:: max(1, len(here) // 2000)], k=2)[0][:, 1])
    return float(np.median(np.concatenate(distances))) if distances else float("nan")


class Grid(NamedTuple):
    """How spots lie around a spot."""

    pitch: float
    """Mean distance between neighbours; NaN for fewer than two spots."""
    nearest: float
    """Median distance to the nearest one."""
    is_regular: bool
    """Whether all neighbours are equally far, as on an array."""
    n_neighbors: int
    """Neighbours of most spots: 6 on a hexagonal grid, 4 on a square one."""


def grid_of(xy: NDArray[np.float64]) -> Grid:
    """Pitch and kind of a grid of spots.

    The nearest neighbour alone is biased: of four or six jittered ones it is the closest. So all neighbours of the first
    ring count; the second ring of a square grid begins at 1.41 pitches, of a hexagonal one at 1.73. Their mean, not their
    median: coordinates rounded to pixels have few different distances, and a median picks one of them.
    """
    if len(xy) < 2:
        return Grid(float("nan"), float("nan"), False, 0)
    asked = xy[:: max(1, len(xy) // N_ASKED)]
    distance = cKDTree(xy).query(asked, k=min(7, len(xy)))[0][:, 1:]
    nearest = float(np.median(distance[:, 0]))
    is_near = distance <= 1.25 * nearest  # never empty: the median is among them
    near = distance[is_near]
    pitch = float(near.mean())
    most = int(np.bincount(is_near.sum(axis=1)).argmax())
    return Grid(pitch, nearest, bool(pitch > 0 and near.std() < 0.05 * pitch), most)


# ----------------------------------------------------------------------------------------------------------- evidence


def evidence(
    adata: AnnData, key: str, xy: NDArray[np.float64], rows: NDArray[np.int64], name: str
) -> list[Evidence]:
    """All that the table says about the unit of ``obsm[key]`` in one section, the surest first.

    Parameters
    ----------
    adata
        The table.
    key
        Slot of the coordinates.
    xy
        Coordinates of all rows, (n, 2).
    rows
        Rows of the section.
    name
        Its name; empty if there is one without a name.
    """
    sure = measured(adata, key, xy, rows, name)
    return [*sure, *told(adata, name), *hinted(adata, key, xy[rows], name, sure)]


def measured(
    adata: AnnData, key: str, xy: NDArray[np.float64], rows: NDArray[np.int64], name: str
) -> list[Evidence]:
    """Scales that instruments measured: the pixel size of the image, and the lattice of the array."""
    found = list(_of_the_image(adata, xy[rows], name)) if key == _keys.SPATIAL else []
    lattice = of_the_lattice(adata, key, xy[rows], rows)
    return found if lattice is None else [*found, lattice]


def told(adata: AnnData, name: str) -> Iterator[Evidence]:
    """The scale that a file tells of its coordinates."""
    value = adata.uns.get(_keys.UM_PER_UNIT)
    if value is None:
        return
    if isinstance(value, Mapping):
        known = {str(section): scale for section, scale in value.items()}
        name = name or _only_section(adata)
        if name not in known:
            raise ValueError(
                f"uns[{_keys.UM_PER_UNIT!r}] has no value for "
                + (f"section {name!r}" if name else "a table without named sections")
                + f"; it has {some(known)}. Name the column of `obs` with these with `library_key=`."
            )
        value = known[name]
    scale = float(np.asarray(value).reshape(-1)[0]) if np.size(value) == 1 else float("nan")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"uns[{_keys.UM_PER_UNIT!r}] must be a number above 0; it is {value!r}.")
    reason = str(adata.uns.get(_keys.UM_PER_UNIT_REASON, f"read from uns[{_keys.UM_PER_UNIT!r}]"))
    yield Evidence(scale, reason, SCALE_SLACK)


def _only_section(adata: AnnData) -> str:
    """The section that all rows name, where nobody said which column does; empty if there is none."""
    names = adata.obs[_keys.LIBRARY].astype(str).unique() if _keys.LIBRARY in adata.obs else []
    return str(names[0]) if len(names) == 1 else ""


def hinted(
    adata: AnnData, key: str, xy: NDArray[np.float64], name: str, sure: list[Evidence]
) -> Iterator[Evidence]:
    """The scale that the diameter of a Visium spot suggests: good enough to contradict one, not to be one."""
    factors = _scale_factors(adata, name) if key == _keys.SPATIAL else {}
    diameter = _length(factors.get("spot_diameter_fullres"))
    pitch = grid_of(xy).pitch
    # spots of Visium, 55 to 65 µm wide, lie 1.54 to 1.82 diameters apart; those of ST 2
    if sure or not diameter or not 1.5 < pitch / diameter < 1.9:
        return
    yield Evidence(
        VISIUM_PITCH_UM / pitch,
        f"spots lie {pitch:.4g} apart and are {diameter:.4g} pixels wide by `spot_diameter_fullres` in uns['spatial'], "
        "as on Visium, where they lie 100 µm apart",
        SCALE_SLACK,
    )


def _scale_factors(adata: AnnData, name: str) -> Mapping[str, Any]:
    """What Space Ranger says of the image of a section."""
    libraries = adata.uns.get(_keys.IMAGES, {})
    libraries = libraries if isinstance(libraries, Mapping) else {}
    only = next(iter(libraries.values())) if len(libraries) == 1 else {}
    library = libraries.get(name, only)
    factors = library.get("scalefactors", {}) if isinstance(library, Mapping) else {}
    return factors if isinstance(factors, Mapping) else {}


def _length(value: Any) -> float | None:
    """A number above 0; ``None`` for anything else that a file may hold in its place."""
    try:
        length = float(value)
    except (TypeError, ValueError):
        return None
    return length if np.isfinite(length) and length > 0 else None


def _of_the_image(adata: AnnData, xy: NDArray[np.float64], name: str) -> Iterator[Evidence]:
    """From scale factors of Space Ranger, or from the slide that LazySlide cut into tiles."""
    yield from _of_the_slide(adata)
    factors = _scale_factors(adata, name)
    size, diameter = _length(factors.get("microns_per_pixel")), _length(factors.get("spot_diameter_fullres"))
    if size is None:
        return
    # bins touch and spots lie 1.54 to 1.82 diameters apart; if they do so with the diameter in µm, these are µm already
    ratio = grid_of(xy).pitch / diameter if diameter else float("nan")
    if 0.8 < ratio / size < 2.2 and not 0.8 < ratio < 2.2:
        return
    yield Evidence(size, "`microns_per_pixel` of the scale factors in uns['spatial']", LATTICE_SLACK)


def _of_the_slide(adata: AnnData) -> Iterator[Evidence]:
    """Tiles of LazySlide: coordinates are the upper left corners, in pixels of the slide."""
    slide = adata.uns.get(_keys.SLIDE_PROPERTIES, {})
    size = _length(slide.get("mpp")) if hasattr(slide, "get") else None
    if size is None:
        return
    yield Evidence(
        size,
        "`mpp` of uns['slide_properties'], with tiles' upper left corners moved to their centres",
        LATTICE_SLACK,
        half_tile_um(adata, size),
    )


def half_tile_um(adata: AnnData, um_per_unit: float) -> NDArray[np.float64]:
    """From the corner of a tile of LazySlide to its centre, µm; 0 of anything else."""
    tile = adata.uns.get(_keys.TILE_SPEC, {})
    if not (hasattr(tile, "get") and {"width", "height"} <= set(tile)):
        return np.zeros(2)
    size = _length(tile.get("mpp")) or um_per_unit
    return np.array([float(tile["width"]), float(tile["height"])]) * size / 2


def of_the_lattice(
    adata: AnnData, key: str, xy: NDArray[np.float64], rows: NDArray[np.int64]
) -> Evidence | None:
    """Units of one step of the array, from ``obs["array_row"]`` and ``obs["array_col"]``."""
    if not {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(adata.obs.columns):
        return None
    steps = np.stack(
        [
            pd.to_numeric(adata.obs[one].iloc[rows], errors="coerce").to_numpy(np.float64, na_value=np.nan)
            for one in (_keys.ARRAY_ROW, _keys.ARRAY_COL)
        ],
        axis=1,
    )
    is_known = np.isfinite(steps).all(
        axis=1
    )  # spots that the array does not name say nothing about the others
    xy, rows, steps = xy[is_known], rows[is_known], steps[is_known]
    if len(rows) < LEAST_ON_LATTICE:
        return None
    is_one_area = len(np.unique(steps, axis=0)) == len(steps)
    fit = _fit_lattice(xy, steps) if is_one_area else _fit_neighbors(xy, steps)
    if fit is None:
        return None
    step, left = fit
    if left > 0.5 and is_one_area and len(rows) >= 8:
        raise ValueError(
            f"obsm[{key!r}] does not follow obs['array_row'] and obs['array_col']: {left:.0%} of where spots lie has nothing "
            "to do with their rows and columns. Coordinates and table are probably in different orders; join them by name."
        )
    along_row, along_col = (float(np.linalg.norm(one)) for one in step)
    if left > 0.01 or min(along_row, along_col) == 0:
        return None  # bent, as after a registration
    return _from_steps(adata, key, rows, steps, along_row, along_col, abs(np.linalg.det(step)))


def _fit_lattice(xy: NDArray[np.float64], steps: NDArray[np.float64]) -> tuple[NDArray[Any], float] | None:
    """(2, 2) x and y of a step of one row and of one column, and the share of where spots lie that is left over."""
    design = np.c_[np.ones(len(steps)), steps]
    if np.linalg.matrix_rank(design) < 3:
        return None
    solution = np.linalg.lstsq(design, xy, rcond=None)[0]
    spread = xy - xy.mean(axis=0)
    left = ((xy - design @ solution) ** 2).sum() / max((spread**2).sum(), 1e-30)
    return solution[1:], float(left)


def _fit_neighbors(xy: NDArray[np.float64], steps: NDArray[np.float64]) -> tuple[NDArray[Any], float] | None:
    """The same for several capture areas in one section, each with rows and columns of its own: by steps to neighbours."""
    here = np.arange(0, len(xy), max(1, len(xy) // N_ASKED))
    there = cKDTree(xy).query(xy[here], k=min(7, len(xy)))[1][:, 1:]
    step = (steps[there] - steps[here][:, None]).reshape(-1, 2)
    gap = (xy[there] - xy[here][:, None]).reshape(-1, 2)
    is_next = (np.abs(step) <= [1, 2]).all(axis=1) & step.any(axis=1)
    if is_next.mean() < 0.5 or np.linalg.matrix_rank(step[is_next]) < 2:
        return None
    step, gap = step[is_next], gap[is_next]
    solution = np.linalg.lstsq(step, gap, rcond=None)[0]
    return solution, float(((gap - step @ solution) ** 2).sum() / max((gap**2).sum(), 1e-30))


def _from_steps(
    adata: AnnData,
    key: str,
    rows: NDArray[np.int64],
    steps: NDArray[np.float64],
    along_row: float,
    along_col: float,
    area: float,
) -> Evidence | None:
    """The scale from the length of a step of one row and one column, in units of the coordinates."""
    is_staggered = bool((steps.sum(axis=1) % 2 == steps[0].sum() % 2).all())
    ratio = along_row / along_col
    if is_staggered and abs(ratio / np.sqrt(3) - 1) < 0.1:
        # Visium: two columns are one pitch, rows lie √3/2 pitches apart
        um = VISIUM_PITCH_UM * np.sqrt(np.sqrt(3) / 4 / area)
        return Evidence(um, "the lattice of Visium spots, which lie 100 µm apart", LATTICE_SLACK)
    if is_staggered and abs(ratio - 1) < 0.1 and len(steps) > 20:
        raise ValueError(
            f"obsm[{key!r}] holds array indices, not places: rows and columns of a staggered array are equally far apart in "
            "it. Take the coordinates that Space Ranger wrote (`pxl_col_in_fullres`, `pxl_row_in_fullres`), or make "
            "places in µm: 50 × array_col and 86.6 × array_row."
        )
    size = _bin_um(adata, rows)
    if size is None or abs(ratio - 1) > 0.1:
        return None
    return Evidence(size / np.sqrt(area), f"the lattice of bins of {size:g} µm", LATTICE_SLACK)


_BIN = re.compile(r"(?:^|_)(\d{3})um(?:_|$)")


def _bin_um(adata: AnnData, rows: NDArray[np.int64]) -> float | None:
    """Side of a bin of Visium HD, as names of bins or of their region say: ``s_008um_00301_00321-1``."""
    first = adata.obs.iloc[rows[:1]]
    texts = [str(first.index[0]), *(str(value) for value in first.to_numpy().ravel())]
    for text in texts:
        found = _BIN.search(text)
        if found:
            return float(found.group(1))
    return None


# -------------------------------------------------------------------------------------------------------------- guard


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
        and not list(_of_the_slide(adata))
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


def differs(one: Grid, other: Grid) -> bool:
    """Whether two pitches differ more than two tissues do: arrays hardly, cells by their density."""
    least, most = sorted([one.pitch, other.pitch])
    return bool(most > (1.2 if one.is_regular and other.is_regular else 4.0) * least)


def pitch_facts(grids: Mapping[str, Grid]) -> dict[str, Any]:
    """What a model remembers of how its training spots lay: least and largest pitch in µm, and whether on arrays."""
    pitches = [grid.pitch for grid in grids.values() if np.isfinite(grid.pitch)]
    if not pitches:
        return {}
    is_regular = all(grid.is_regular for grid in grids.values())
    return {"pitch_um": [min(pitches), max(pitches)], "is_regular": is_regular}


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
