"""Windows: which cells lie in the square around a place, within a section and a pool.

Cells are sorted once into strips, within a strip by x, so that a window is a few runs of memory whose ends are
found by bisection; never all pairs. Places are kept as whole nanometres from the centre of their section: four
bytes per coordinate, and borders and ties are decided exactly, wherever on the slide a section lies.

n cells, B windows, N cells of the longest window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from stgen._warn import number, warn

_NM = 1000.0
"""Nanometres in a µm."""
_WIDEST_UM = 1e6
"""A section or window wider than a metre is not in µm; below it, squared distances in nm fit 64 bits."""
_STRIPS_PER_WINDOW = 4
_SAMPLED = 2000
"""Cells whose surroundings are looked at for a density."""


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep compiled code, such as a read-only installation without a home
        return numba.njit(nogil=True)(function)


class Windows(NamedTuple):
    """Cells of several windows, nearest to the centre first."""

    row: NDArray[np.int64]
    """Row numbers, windows × cells of the longest, padded with −1."""
    size: NDArray[np.int64]
    """Cells listed per window."""
    n_inside: NDArray[np.int64]
    """Cells inside each window before the cap."""


class CellGrid:
    """Cells of several sections, sorted so that a window is a few runs of memory.

    Parameters
    ----------
    xy
        Places in µm, cells × 2. They are rounded to the nanometre.
    section
        Section of every cell, as integer codes. ``None`` means one section.
    window_um
        Side of a window.
    pool
        Cells of different pools never meet in a window: training cells never see validation cells. Cells
        of pool −1 are in no window. ``None`` means one pool, 0.
    """

    def __init__(
        self,
        xy: ArrayLike,
        section: ArrayLike | None,
        *,
        window_um: float,
        pool: ArrayLike | None = None,
    ) -> None:
        xy = _checked_places(xy, "Coordinates")
        self.window_um = _checked_window(window_um)
        # a whole number of nm is inside up to half the window; the addend mends 100.3 * 500 = 50149.99…
        self._half = int(np.floor(self.window_um / 2 * _NM + 1e-6))
        section = _codes(section, len(xy), "section")
        pool = _codes(pool, len(xy), "pool")
        self._sections, section = np.unique(section, return_inverse=True)
        self._pools, pool = np.unique(pool, return_inverse=True)
        self._centre_um = _centres(xy, section, len(self._sections))
        place = np.empty(xy.shape, dtype=np.int32)
        np.rint((xy - self._centre_um[section]) * _NM, out=place, casting="unsafe")
        self._sort(place, section * len(self._pools) + pool)

    def _sort(self, place: NDArray[np.int32], group: NDArray[np.int64]) -> None:
        """Order cells by group (section and pool), strip, x, y and row."""
        n_groups = len(self._sections) * len(self._pools)
        low = np.zeros(n_groups, dtype=np.int64)
        height = np.ones(n_groups, dtype=np.int64)
        n_strips = np.zeros(n_groups, dtype=np.int64)
        by_group = np.split(
            np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=n_groups))[:-1]
        )
        for code, rows in enumerate(by_group):
            if len(rows):
                y = place[rows, 1]
                low[code], extent = int(y.min()), int(y.max()) - int(y.min())
                # no more strips than cells, however small the window
                height[code] = max(2 * self._half // _STRIPS_PER_WINDOW, -(-(extent + 1) // len(rows)), 1)
                n_strips[code] = extent // height[code] + 1
        del by_group
        first = np.concatenate([[0], np.cumsum(n_strips)])
        strip = first[group] + (place[:, 1] - low[group]) // height[group]
        self._strip_start = np.concatenate([[0], np.cumsum(np.bincount(strip, minlength=first[-1]))])
        # strip and x in one number: two keys sort faster than three
        key = (strip << 32) + (place[:, 0].astype(np.int64) + 2**31)
        del strip
        order = np.lexsort((place[:, 1], key))
        del key
        self._x, self._y = place[order, 0], place[order, 1]
        self._row = order.astype(np.int32)
        self._at = np.empty(len(order), dtype=np.int32)
        self._at[order] = np.arange(len(order), dtype=np.int32)
        self._low, self._height, self._first_strip = low, height, first

    def __len__(self) -> int:
        return len(self._row)

    @property
    def nbytes(self) -> int:
        """Memory of the index and the places."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def windows(
        self,
        centres: ArrayLike,
        section: ArrayLike | None = None,
        pool: ArrayLike | None = None,
        *,
        max_cells: int,
    ) -> Windows:
        """Cells of the square around each centre, nearest first.

        Parameters
        ----------
        centres
            Places in µm, windows × 2, on the scale of ``xy``.
        section
            Section of every centre. One that holds no cells gives empty windows. ``None`` if there is one.
        pool
            Pool whose cells are looked for. ``None`` means pool 0.
        max_cells
            Of more cells, those nearest to the centre are kept.

        Notes
        -----
        A cell on the border is inside. Of cells at one distance those with the smaller x, then the smaller
        y, then the smaller row number come first.
        """
        return self.windows_and_offsets(centres, section, pool, max_cells=max_cells)[0]

    def windows_and_offsets(
        self,
        centres: ArrayLike,
        section: ArrayLike | None = None,
        pool: ArrayLike | None = None,
        *,
        max_cells: int,
    ) -> tuple[Windows, NDArray[np.float32]]:
        """:meth:`windows`, and µm from the centre to each cell, windows × cells × 2; 0 at the padding."""
        xy, group = self._asked(centres, section, pool)
        return self._search(xy, group, checked_max_cells(max_cells))

    def count(
        self, centres: ArrayLike, section: ArrayLike | None = None, pool: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """How many cells lie in the square around each centre."""
        return self._count(*self._asked(centres, section, pool))

    def windows_around(
        self, rows: NDArray[np.integer], *, max_cells: int
    ) -> tuple[Windows, NDArray[np.float32]]:
        """:meth:`windows_and_offsets` around cells of the grid, each in its own section and pool."""
        return self._search(*self._own(rows), max_cells)

    def count_around(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many cells lie in the window of each of these cells, itself included."""
        return self._count(*self._own(rows))

    def _own(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place and group of cells of the grid; −1 for those whose pool is in no window."""
        at = self._at[rows]
        xy = np.stack([self._x[at], self._y[at]], axis=1).astype(np.int64)
        strip = np.searchsorted(self._strip_start, at, side="right") - 1
        group = np.searchsorted(self._first_strip, strip, side="right") - 1
        return xy, np.where(self._pools[group % len(self._pools)] < 0, -1, group)

    def _search(
        self, xy: NDArray[np.int64], group: NDArray[np.int64], max_cells: int
    ) -> tuple[Windows, NDArray[np.float32]]:
        n_inside = self._count(xy, group)
        size = np.minimum(n_inside, max_cells)
        longest = int(size.max(initial=0))
        row = np.full((len(xy), longest), -1, dtype=np.int64)
        offset = np.zeros((len(xy), longest, 2), dtype=np.float32)
        if longest:
            fullest = int(n_inside.max())
            _fill(xy, group, self._half, *self._index(), self._row, fullest, row, offset)
        return Windows(row, size, n_inside), offset

    def _count(self, xy: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
        n_inside = np.zeros(len(xy), dtype=np.int64)
        _count_inside(xy, group, self._half, *self._index(), n_inside)
        return n_inside

    def _index(self) -> tuple[NDArray[Any], ...]:
        return self._x, self._y, self._strip_start, self._first_strip, self._low, self._height

    def _asked(
        self, centres: ArrayLike, section: ArrayLike | None, pool: ArrayLike | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Centres in nm of their section, and the group of cells that each looks for, −1 where it is empty."""
        centres = _checked_places(centres, "Centres")
        if section is None and len(self._sections) > 1:
            raise ValueError(
                f"`section` must name the section of every centre: there are {len(self._sections)} sections."
            )
        own_section = (
            np.zeros(len(centres), dtype=np.int64)
            if section is None
            else _position(self._sections, _codes(section, len(centres), "section"))
        )
        asked = _codes(pool, len(centres), "pool")
        own_pool = np.where(asked < 0, -1, _position(self._pools, asked))
        known = (own_section >= 0) & (own_pool >= 0)
        group = np.where(known, own_section * len(self._pools) + own_pool, -1)
        if not len(self._sections):
            return np.zeros(centres.shape, dtype=np.int64), group
        # far outside everything is as empty as a little outside, and does not overflow
        away = np.clip(centres - self._centre_um[own_section], -4 * _WIDEST_UM, 4 * _WIDEST_UM)
        return np.rint(away * _NM).astype(np.int64), group


@_compiled
def _strips(cy: int, half: int, low: int, height: int, n_strips: int) -> tuple[int, int]:
    """First strip and one past the last that a window touches."""
    first = max((cy - half - low) // height, 0)
    last = min((cy + half - low) // height, n_strips - 1)
    return first, last + 1


@_compiled
def _bisect(x: NDArray[np.int32], start: int, stop: int, value: int) -> int:
    """First position from ``start`` whose x is at least ``value``."""
    while start < stop:
        middle = (start + stop) // 2
        if x[middle] < value:
            start = middle + 1
        else:
            stop = middle
    return start


@_compiled
def _count_inside(
    xy: NDArray[np.int64],
    group: NDArray[np.int64],
    half: int,
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    strip_start: NDArray[np.int64],
    first_strip: NDArray[np.int64],
    low: NDArray[np.int64],
    height: NDArray[np.int64],
    n_inside: NDArray[np.int64],
) -> None:
    for b in range(len(xy)):
        g = group[b]
        if g < 0:
            continue
        cx, cy = xy[b, 0], xy[b, 1]
        n_strips = first_strip[g + 1] - first_strip[g]
        first, last = _strips(cy, half, low[g], height[g], n_strips)
        n = 0
        for strip in range(first, last):
            stop = strip_start[first_strip[g] + strip + 1]
            start = _bisect(x, strip_start[first_strip[g] + strip], stop, cx - half)
            stop = _bisect(x, start, stop, cx + half + 1)
            bottom = low[g] + strip * height[g]
            if bottom >= cy - half and bottom + height[g] - 1 <= cy + half:
                n += stop - start
            else:
                for i in range(start, stop):
                    if abs(y[i] - cy) <= half:
                        n += 1
        n_inside[b] = n


@_compiled
def _into_rings(
    distance: NDArray[np.int64], n: int, wanted: int, next_in: NDArray[np.int64], order: NDArray[np.int64]
) -> int:
    """Order cells by rings of equal area around the centre, those that hold the nearest; how many these are.

    Cells lie evenly enough that a ring holds one or a few, so that hardly anything is left to sort.
    """
    farthest = 0
    for i in range(n):
        farthest = max(farthest, distance[i])
    # just below one ring per cell: the farthest cell is in the last ring whatever the rounding
    per_distance = 0.999 * n / (farthest + 1.0)
    next_in[:n] = 0
    for i in range(n):
        next_in[int(distance[i] * per_distance)] += 1
    n_kept = 0
    for ring in range(n):
        in_ring = next_in[ring]
        # rings beyond the wanted cells get no room
        next_in[ring] = n_kept if n_kept < wanted else -1
        if n_kept < wanted:
            n_kept += in_ring
    for i in range(n):
        ring = int(distance[i] * per_distance)
        if next_in[ring] >= 0:
            order[next_in[ring]] = i
            next_in[ring] += 1
    return n_kept


@_compiled
def _settle(
    order: NDArray[np.int64],
    n: int,
    found: NDArray[np.int64],
    distance: NDArray[np.int64],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    row: NDArray[np.int32],
) -> None:
    """Sort what is nearly sorted by distance, then x, y and row."""
    for k in range(1, n):
        moving = order[k]
        i, away = found[moving], distance[moving]
        at = k
        while at > 0:
            before = order[at - 1]
            j = found[before]
            if distance[before] < away:
                break
            if distance[before] == away and (
                x[j] < x[i] or (x[j] == x[i] and (y[j] < y[i] or (y[j] == y[i] and row[j] < row[i])))
            ):
                break
            order[at] = before
            at -= 1
        order[at] = moving


@_compiled
def _fill(
    xy: NDArray[np.int64],
    group: NDArray[np.int64],
    half: int,
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    strip_start: NDArray[np.int64],
    first_strip: NDArray[np.int64],
    low: NDArray[np.int64],
    height: NDArray[np.int64],
    row: NDArray[np.int32],
    fullest: int,
    listed: NDArray[np.int64],
    offset: NDArray[np.float32],
) -> None:
    found = np.empty(fullest, dtype=np.int64)
    distance = np.empty(fullest, dtype=np.int64)
    order = np.empty(fullest, dtype=np.int64)
    next_in = np.empty(fullest, dtype=np.int64)
    for b in range(len(xy)):
        g = group[b]
        if g < 0:
            continue
        cx, cy = xy[b, 0], xy[b, 1]
        first, last = _strips(cy, half, low[g], height[g], first_strip[g + 1] - first_strip[g])
        n = 0
        for strip in range(first, last):
            stop = strip_start[first_strip[g] + strip + 1]
            start = _bisect(x, strip_start[first_strip[g] + strip], stop, cx - half)
            for i in range(start, stop):
                dx, dy = x[i] - cx, y[i] - cy
                if dx > half:
                    break
                if abs(dy) <= half:
                    found[n] = i
                    distance[n] = dx * dx + dy * dy
                    n += 1
        n_kept = _into_rings(distance, n, listed.shape[1], next_in, order)
        _settle(order, n_kept, found, distance, x, y, row)
        for k in range(min(n_kept, listed.shape[1])):
            i = found[order[k]]
            listed[b, k] = row[i]
            offset[b, k, 0] = (x[i] - cx) / _NM
            offset[b, k, 1] = (y[i] - cy) / _NM


def default_window_um(
    xy: ArrayLike, section: ArrayLike | None = None, *, n_cells: int = 200, min_cells: int = 50
) -> float:
    """Side of the square that holds about ``n_cells`` cells at the sections' median density.

    Parameters
    ----------
    xy
        Places in µm, cells × 2.
    section
        Section of every cell, as integer codes.
    n_cells
        Cells that a window should hold.
    min_cells
        A window holds at most a quarter of its section, as arrays of a few hundred spots would otherwise be
        one window, but at least this many cells.

    Notes
    -----
    Density is measured in squares around cells, so that holes and ragged borders of a tissue, and the empty
    parts of its bounding box, hardly count.
    """
    xy = _checked_places(xy, "Coordinates")
    section = _codes(section, len(xy), "section")
    sides = []
    for code in np.unique(section):
        here = xy[section == code]
        n = min(max(min_cells, len(here) // 4), n_cells)
        area = _area_per_cell(here, min(n, len(here))) if len(here) > 1 else 0.0
        if area > 0:
            sides.append(np.sqrt(n * area))
    if not sides:
        raise ValueError(
            f"A window needs sections of several cells at different places; got {len(xy)} cells in "
            f"{len(np.unique(section))} sections, none with two places. Check `library_key`."
        )
    return float(np.median(sides))


def _area_per_cell(xy: NDArray[np.float64], n: int) -> float:
    """Ground per cell, where a typical cell sees its ``n`` nearest.

    A mean over the squares that just hold n/2 to n cells: on a lattice many cells enter a square at once, and
    a single square would give one of few values.
    """
    asked = xy[:: max(1, len(xy) // _SAMPLED)]
    n_others = np.arange(max(1, n // 2), n)
    half = cKDTree(xy).query(asked, k=n_others + 1, p=np.inf)[0]
    return float(np.median(((2 * half) ** 2 / n_others).mean(axis=1)))


def check_window(n_inside: ArrayLike, window_um: float) -> None:
    """Raise if cells are alone in their windows; warn if a window holds far more than anyone needs.

    Parameters
    ----------
    n_inside
        Cells in the windows around some cells, the central one included, from :meth:`CellGrid.count`.
    window_um
        Side of the windows.
    """
    n_inside = np.asarray(n_inside)
    if not len(n_inside):
        return
    typical = float(np.median(n_inside))
    remedy = (
        "Are coordinates in µm? `stg.pp.coordinates_in_um` converts pixels; else choose another `window_um`."
    )
    if typical < 2:
        raise ValueError(
            f"A window of {window_um:g} µm must hold several cells; the typical one holds {typical:g}, the "
            f"fullest {int(n_inside.max())}. {remedy}"
        )
    if typical > 10_000:
        warn(
            f"A typical window of {window_um:g} µm holds {typical:.0f} cells, where a few hundred are enough. "
            f"{remedy}"
        )


def checked_max_cells(max_cells: int) -> int:
    """The cap of a window, if it is one."""
    if isinstance(max_cells, bool) or int(max_cells) != max_cells or max_cells < 1:
        raise ValueError(f"`max_cells` must be a whole number, at least 1; got {max_cells!r}.")
    return int(max_cells)


def _checked_places(xy: ArrayLike, name: str) -> NDArray[np.float64]:
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"{name} must be n × 2; got shape {xy.shape}.")
    finite = np.isfinite(xy)
    if not finite.all():
        n_bad = int((~finite.all(axis=1)).sum())
        raise ValueError(f"{name} must be finite; {n_bad} of {len(xy)} have NaN or infinite values.")
    return xy


def _checked_window(window_um: float) -> float:
    if not 0 < window_um <= _WIDEST_UM:
        raise ValueError(f"`window_um` must be above 0 and at most {_WIDEST_UM:g} µm; got {window_um!r}.")
    return float(window_um)


def _codes(codes: ArrayLike | None, n: int, name: str) -> NDArray[np.int64]:
    """Integer codes of every row; zeros where there are none."""
    if codes is None:
        return np.zeros(n, dtype=np.int64)
    codes = np.asarray(codes)
    if codes.shape != (n,) or codes.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must hold one integer code per row; expected shape ({n},), got {codes.dtype} of shape "
            f"{codes.shape}."
        )
    return codes.astype(np.int64, copy=False)


def _position(known: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each code stands among the known ones, −1 if nowhere."""
    if not len(known):
        return np.full(len(asked), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, at, -1)


def _centres(xy: NDArray[np.float64], section: NDArray[np.int64], n_sections: int) -> NDArray[np.float64]:
    """Centre of each section's bounding box, to the µm: half a nanometre would be rounded to either side."""
    low = np.full((n_sections, 2), np.inf)
    high = np.full((n_sections, 2), -np.inf)
    for axis in (0, 1):
        np.minimum.at(low[:, axis], section, xy[:, axis])
        np.maximum.at(high[:, axis], section, xy[:, axis])
    widest = float((high - low).max(initial=0.0))
    if widest > _WIDEST_UM:
        raise ValueError(
            f"Coordinates must be in µm; a section is {number(widest, _WIDEST_UM)} wide, more than a metre. "
            "Convert with `stg.pp.coordinates_in_um`."
        )
    return np.rint((low + high) / 2)
