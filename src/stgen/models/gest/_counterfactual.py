"""The same surrounding cells, generated with and without a change of some cells.

Cells are tokens as in training, that is, meta cells; a changed cell is either what its changed profile looks like to
the network, or the meta cell nearest to that. Everything but the changed tokens is equal in both answers, so no change
gives exactly the same answer.

n cells, B windows, N cells of a window, Q places asked in it, D width, T genes, d components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ...data._grid import CellGrid
from ._network import GeSTNetwork
from ._perturbation import Answers, Change, ring_of

TOKENS_AT_ONCE = 8192
"""Cells in the windows of one batch."""
N_FOLDS = 2
"""Cells around a changed cell are asked for in so many parts, each from the others."""


@dataclass(frozen=True)
class Tissue:
    """Cells as the network and the statistic see them."""

    xy: np.ndarray
    """(n, 2) µm."""
    section: np.ndarray
    """(n,) codes of sections."""
    x: np.ndarray
    """(n, T) log-normalised expression."""
    label: np.ndarray
    """(n,) meta cell."""


class Counterfactual:
    """A network, asked about one tissue as it is and as it would be.

    Parameters
    ----------
    network
        Fitted.
    tissue
        Cells.
    max_cells
        Cells of a window at most.
    quantized
        Show changed cells as their nearest meta cell.
    corner
        Corner that orders a window's cells.
    """

    def __init__(
        self, network: GeSTNetwork, tissue: Tissue, *, max_cells: int, quantized: bool, corner: int
    ) -> None:
        self.network, self.tissue = network, tissue
        self.max_cells, self.quantized, self.corner = max_cells, quantized, corner
        self.device = network.window_um.device
        self.grid = CellGrid(tissue.xy, tissue.section, window_um=float(network.window_um))
        self.label = torch.from_numpy(np.asarray(tissue.label, dtype=np.int64)).to(self.device)

    # ------------------------------------------------------------------------------------------------------- tokens

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(x, dtype=np.float32)).to(self.device)

    def changed_labels(self, change: Change) -> np.ndarray:
        """Nearest meta cell of every cell after the change; its own where nothing was done to it."""
        new = self.network.words.assign(self._tensor(change.after)).cpu().numpy()
        touched = (change.after != change.before).any(axis=1)
        return np.where(touched, new, self.tissue.label[change.rows])

    def _tokens(self, change: Change, label: Tensor, *, whole: bool) -> Tensor:
        """(m, D) the changed cells as tokens; ``label`` (m,) is what they were, ``whole``: nothing of it is left."""
        network, looks = self.network, self.network.table()
        touched = (change.after != change.before).any(axis=1)
        if self.quantized:
            new = looks[network.words.assign(self._tensor(change.after))]
        elif whole:
            new = network.look(self._tensor(change.after))
        else:
            # the change alone: a cell's noise would be strange to a network that was shown meta cells
            move = network.look(self._tensor(change.after)) - network.look(self._tensor(change.before))
            new = looks[label] + move
        return torch.where(torch.from_numpy(touched).to(self.device)[:, None], new, looks[label])

    # -------------------------------------------------------------------------------------------------------- asking

    def _expected(self, tokens: Tensor, row: np.ndarray, offset: np.ndarray, query: np.ndarray) -> Tensor:
        """(B, Q, T) expected expression at places, from the tokens with numbers ``row`` (B, N), −1 where none."""
        network = self.network
        cell = torch.from_numpy(row).to(self.device)
        h = network.ask(
            tokens[cell.clamp(min=0)],
            network.places(self._tensor(offset)),
            (cell >= 0).sum(1),
            network.places(self._tensor(query)),
            corner=self.corner,
        )
        if not network.config.quantized:
            return network.answer(h)
        return network.probabilities(h) @ network.words.profiles

    @torch.no_grad()
    def around_region(self, change: Change, cells: np.ndarray, *, whole: bool) -> np.ndarray:
        """(len(cells), T) how the expected expression of each of these cells moves, given all others of its window."""
        plain = self.network.table()[self.label]
        altered = plain.clone()
        rows = torch.from_numpy(change.rows).to(self.device)
        altered[rows] = self._tokens(change, self.label[rows], whole=whole)
        out = np.empty((len(cells), self.network.n_genes), dtype=np.float32)
        for part, row, offset in self._windows(cells):
            row, offset = _compact(row, offset, (row >= 0) & (row != cells[part][:, None]))
            here = np.zeros((len(part), 1, 2), dtype=np.float32)
            moved = self._expected(altered, row, offset, here) - self._expected(plain, row, offset, here)
            out[part] = moved[:, 0].cpu().numpy()
        return out

    @torch.no_grad()
    def around_each(
        self,
        change: Change,
        scored: np.ndarray,
        edges: np.ndarray,
        *,
        base: np.ndarray,
        whole: bool,
        rng: np.random.Generator,
    ) -> Answers:
        """How each changed cell, alone, moves the cells around it.

        ``base`` (n,) are the meta cells from which changes start, ``scored`` (n,) says which cells are asked for.
        """
        n = len(base)
        start = torch.from_numpy(np.asarray(base, dtype=np.int64)).to(self.device)
        rows = torch.from_numpy(change.rows).to(self.device)
        tokens = torch.cat([self.network.table()[start], self._tokens(change, start[rows], whole=whole)])
        fold = rng.integers(N_FOLDS, size=n)
        found: list[tuple[np.ndarray, ...]] = []
        for part, row, offset in self._windows(change.rows):
            distance = np.sqrt(np.square(offset.astype(np.float64)).sum(-1))
            ring = np.where(row >= 0, ring_of(distance, edges), -1)
            ask = scored[row] & (ring >= 0) & (row != change.rows[part][:, None])
            for number in range(N_FOLDS):
                asked = ask & (fold[row] == number)
                if not asked.any():
                    continue
                seen, place = _compact(row, offset, (row >= 0) & ~asked)
                who, where = _compact(row, offset, asked)
                numbers = np.where(seen == change.rows[part][:, None], n + part[:, None], seen)
                shift = self._expected(tokens, numbers, place, where) - self._expected(
                    tokens, seen, place, where
                )
                real = torch.from_numpy(who >= 0).to(self.device)
                shift = shift[real] @ self.network.words.components.T
                which, _ = np.nonzero(who >= 0)
                rings = np.take_along_axis(ring, np.argsort(~asked, axis=1, kind="stable"), 1)[
                    :, : who.shape[1]
                ]
                found.append((part[which], who[who >= 0], rings[who >= 0], shift.cpu().numpy()))
        if not found:
            d = self.network.words.components.shape[0]
            none = np.empty(0, dtype=np.int64)
            return Answers(none, none, none, np.empty((0, d), dtype=np.float32))
        return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _windows(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Windows around cells: positions in ``rows``, members (B, N), their offsets (B, N, 2)."""
        size = np.minimum(self.grid.count_around(rows), self.max_cells)
        order, start = np.argsort(size, kind="stable"), 0
        while start < len(rows):
            # sizes rise, so the last of the part decides; a doubling at most is wasted
            part = order[start : start + max(1, TOKENS_AT_ONCE // (2 * int(size[order[start]])))]
            start += len(part)
            windows, offset = self.grid.windows_around(rows[part], max_cells=self.max_cells)
            yield part, windows.row, offset


def nearest_other(tissue: Tissue, rows: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The nearest allowed cell of the section for each of ``rows``; the cell itself where there is none."""
    out = rows.copy()
    for code in np.unique(tissue.section[rows]):
        here = np.flatnonzero(tissue.section[rows] == code)
        there = np.flatnonzero((tissue.section == code) & allowed)
        if len(there):
            out[here] = there[cKDTree(tissue.xy[there]).query(tissue.xy[rows[here]])[1]]
    return out


def _compact(row: np.ndarray, offset: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept members of every window first, as many columns as the fullest needs (one at least), −1 elsewhere."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, : max(1, int(keep.sum(1).max()))]
    kept = np.take_along_axis(keep, order, 1)
    row = np.where(kept, np.take_along_axis(row, order, 1), -1)
    return row, np.where(kept[..., None], np.take_along_axis(offset, order[..., None], 1), 0)
