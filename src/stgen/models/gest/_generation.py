"""Unseen places, round after round: seen cells answer for the unseen ones around them, and these are then seen.

Only places, indices and distributions pass here: which windows are asked for which places, and how answers are put
together.

n seen cells, m places that are asked for, B windows, N cells of a window, Q places asked in a window, K meta cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stgen.data._grid import CellGrid

TOKENS_AT_ONCE = 8192
"""Cells in the windows of one batch when the model is applied."""
_TIED = 16
"""Cells more than asked for that are looked at, because cells of a lattice are equally far."""


class Cells(NamedTuple):
    """Where cells (or places) are."""

    xy: np.ndarray
    """µm, cells × 2."""
    section: np.ndarray
    """Codes of sections."""

    def joined(self, other: Cells) -> Cells:
        """These cells, then the others."""
        return Cells(np.concatenate([self.xy, other.xy]), np.concatenate([self.section, other.section]))

    def at(self, rows: np.ndarray) -> Cells:
        """Some of the cells."""
        return Cells(self.xy[rows], self.section[rows])


class Windows(NamedTuple):
    """Windows around seen cells, and what is asked in each."""

    label: np.ndarray
    """(B, N) meta cells; beyond ``size`` anything."""
    size: np.ndarray
    offset: np.ndarray
    """(B, N, 2) µm from the centre."""
    query: np.ndarray
    """(B, Q, 2) µm from the centre."""
    is_asked: np.ndarray
    """(B, Q) whether a query is one; the others fill rows."""


Ask = Callable[[Windows], np.ndarray]
"""Answers (V values each) to the queries that are asked: distributions over meta cells, or profiles."""


@dataclass(frozen=True)
class Filled:
    """What was found for places that were asked for, in their order."""

    value: np.ndarray
    """(m, V) averaged answers: distributions over meta cells, or profiles."""
    label: np.ndarray
    """(m,) meta cell that a place is seen as."""
    round: np.ndarray
    """(m,) the round that answered, from 1; 0 where no seen cell was within reach."""
    n_windows: np.ndarray
    """(m,) windows whose answers were averaged."""


def fill(
    seen: Cells,
    label: np.ndarray,
    asked: Cells,
    ask: Ask,
    *,
    n_values: int,
    label_of: Callable[[np.ndarray], np.ndarray],
    window_um: float,
    max_cells: int,
    n_windows: int,
    max_rounds: int,
) -> Filled:
    """Answer for places round after round; a place that is answered is seen as the meta cell of its averaged answer.

    Where nothing is within reach, the answer is all zeros.
    """
    m = len(asked.xy)
    out = Filled(
        np.zeros((m, n_values), np.float32),
        np.zeros(m, np.int64),
        np.zeros(m, np.int64),
        np.zeros(m, np.int64),
    )
    todo = np.arange(m)
    for number in range(1, max_rounds + 1):
        place, centre = windows_of_round(*seen, *asked.at(todo), reach=window_um / 2, n_windows=n_windows)
        if len(place) == 0:
            break
        grid = CellGrid(seen.xy, seen.section, window_um=window_um)
        total, count = _answers(seen, label, asked.xy[todo], place, centre, ask, grid, n_values, max_cells)
        done = np.flatnonzero(count)
        new = todo[done]
        out.value[new] = total[done] / count[done, None]
        out.label[new] = label_of(out.value[new])
        out.round[new], out.n_windows[new] = number, count[done]
        seen = seen.joined(asked.at(new))
        label = np.concatenate([label, out.label[new]])
        todo = np.delete(todo, done)
        if len(todo) == 0:
            break
    if len(todo):  # nothing within reach: the nearest seen cell of the section, and it is said
        out.label[todo] = label[nearest_seen(*seen, *asked.at(todo))]
    return out


def _answers(
    seen: Cells,
    label: np.ndarray,
    xy: np.ndarray,
    place: np.ndarray,
    centre: np.ndarray,
    ask: Ask,
    grid: CellGrid,
    n_values: int,
    max_cells: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of answers over the windows that answer for each place, and how many those are."""
    total = np.zeros((len(xy), n_values), np.float32)
    count = np.zeros(len(xy), np.int64)
    order = np.argsort(centre, kind="stable")
    place, centre = place[order], centre[order]
    centres, first, n_asked = np.unique(centre, return_index=True, return_counts=True)
    usual = grid.count(seen.xy[centres[:64]], seen.section[centres[:64]]).mean()
    step = max(1, int(TOKENS_AT_ONCE / max(usual, 1.0)))
    for start in range(0, len(centres), step):
        chunk = slice(start, start + step)
        around, n = seen.at(centres[chunk]), n_asked[chunk]
        (row, size, _), offset = grid.windows_and_offsets(*around, max_cells=max_cells)
        which = first[chunk][:, None] + np.minimum(np.arange(n.max()), n[:, None] - 1)
        query = (xy[place[which]] - around.xy[:, None]).astype(np.float32)
        is_asked = np.arange(n.max()) < n[:, None]
        np.add.at(total, place[which][is_asked], ask(Windows(label[row], size, offset, query, is_asked)))
        np.add.at(count, place[which][is_asked], 1)
    return total, count


def windows_of_round(
    seen_xy: np.ndarray,
    seen_section: np.ndarray,
    xy: np.ndarray,
    section: np.ndarray,
    *,
    reach: float,
    n_windows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Which seen cells answer for which places: pairs (place, seen cell), a place's nearest cells first.

    ``reach`` is half the window's side: a place beyond it in x or y is not in the window of that cell.
    """
    places, cells = [], []
    for code in np.unique(section):
        here, there = np.flatnonzero(section == code), np.flatnonzero(seen_section == code)
        if len(there) == 0:
            continue
        near = _nearest(seen_xy[there], xy[here], n_windows)
        inside = np.abs(seen_xy[there][near] - xy[here][:, None]).max(axis=2) <= reach
        place, rank = np.nonzero(inside)
        places.append(here[place])
        cells.append(there[near[place, rank]])
    empty = np.empty(0, dtype=np.int64)
    return (np.concatenate(places), np.concatenate(cells)) if places else (empty, empty)


def nearest_seen(
    seen_xy: np.ndarray, seen_section: np.ndarray, xy: np.ndarray, section: np.ndarray
) -> np.ndarray:
    """The seen cell nearest to each place, in its section."""
    found = np.empty(len(xy), dtype=np.int64)
    for code in np.unique(section):
        here, there = np.flatnonzero(section == code), np.flatnonzero(seen_section == code)
        found[here] = there[_nearest(seen_xy[there], xy[here], 1)[:, 0]]
    return found


def _nearest(cells: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """(places, k) nearest cells. Of cells as far, those with the smaller x, then y: not those a tree finds first."""
    n = min(k + _TIED, len(cells))
    distance, near = (part.reshape(len(places), n) for part in cKDTree(cells).query(places, k=n))
    order = np.lexsort((cells[near, 1], cells[near, 0], np.round(distance, 3)), axis=1)
    return np.take_along_axis(near, order, axis=1)[:, :k]
