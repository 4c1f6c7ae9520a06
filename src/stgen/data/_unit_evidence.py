"""What a table says about the unit of its coordinates: each trace that a reader or an instrument left.

Spots of an array carry their row and column, and a lattice fitted to the coordinates gives the units of one step, exactly.
Scale factors tell the pixel size of the full-resolution image, or the diameter of a spot on it. Files and slides tell
their own.
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

from ._names import some
from ._spacing import N_ASKED, grid_of

if TYPE_CHECKING:
    from anndata import AnnData

VISIUM_PITCH_UM = 100.0
VISIUM_DIAMETERS_UM = (55.0, 65.0)
"""Of a printed spot, and of what Space Ranger calls `spot_diameter_fullres`."""
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
    yield from tiled_slide(adata)
    factors = _scale_factors(adata, name)
    size, diameter = _length(factors.get("microns_per_pixel")), _length(factors.get("spot_diameter_fullres"))
    if size is None:
        return
    # bins touch and spots lie 1.54 to 1.82 diameters apart; if they do so with the diameter in µm, these are µm already
    ratio = grid_of(xy).pitch / diameter if diameter else float("nan")
    if 0.8 < ratio / size < 2.2 and not 0.8 < ratio < 2.2:
        return
    yield Evidence(size, "`microns_per_pixel` of the scale factors in uns['spatial']", LATTICE_SLACK)


def tiled_slide(adata: AnnData) -> Iterator[Evidence]:
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
