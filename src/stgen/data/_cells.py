"""Cells as tokens: a cell is the meta cell that stands for it and its place; a sample is the window around it.

:class:`CellTable` keeps about twenty bytes per cell, so that millions of cells stay in memory, and finds windows
when a batch is asked for. Rows are the centres of windows.

n cells, B windows, N cells of the longest window in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stgen.nn._network import Batch

from ._grid import CellGrid, checked_max_cells

_PADDING = -1


@dataclass(frozen=True)
class CellTable:
    """Meta cells and their windows. Implements :class:`~stgen.data._loaders.Table`."""

    label_n: Tensor
    """Meta cell of each cell."""
    key_n: Tensor
    """Hash of the cell's name."""
    grid: CellGrid
    """Where cells lie."""
    max_cells: int
    """A window keeps its nearest cells up to this many."""
    targets: bool = True
    """Whether a batch says what training predicts."""

    @classmethod
    def make(
        cls,
        label: ArrayLike | Tensor,
        keys: ArrayLike,
        xy: ArrayLike,
        section: ArrayLike | None = None,
        *,
        pool: ArrayLike | None = None,
        window_um: float,
        max_cells: int = 512,
        targets: bool = True,
    ) -> CellTable:
        """The table of these cells.

        Parameters
        ----------
        label
            Meta cell of each cell.
        keys
            Number of each cell's name, from ``name_keys``.
        xy, section, pool, window_um
            As :class:`~stgen.data._grid.CellGrid` wants them.
        max_cells
            A window keeps its nearest cells up to this many.
        targets
            Whether a batch says what training predicts.
        """
        grid = CellGrid(xy, section, window_um=window_um, pool=pool)
        label = torch.as_tensor(np.asarray(label))
        key = torch.as_tensor(np.array(keys, dtype=np.int64))
        if len(label) != len(grid) or len(key) != len(grid):
            raise ValueError(
                f"Expected a meta cell and a key for each of {len(grid)} cells; got {len(label)} and {len(key)}."
            )
        return cls(_narrow(label), key, grid, checked_max_cells(max_cells), targets)

    def __len__(self) -> int:
        return len(self.label_n)

    def batch(self, rows: Tensor) -> Batch:
        """The windows around these rows, nearest cells first, padded with −1."""
        device = self.label_n.device
        windows, offset = self.grid.windows_around(rows.cpu().numpy(), max_cells=self.max_cells)
        rows = rows.to(device)
        member = torch.from_numpy(windows.row).to(device)
        cell = self.label_n[member.clamp_min(0)].long().masked_fill_(member < 0, _PADDING)
        batch = {
            "index": rows,
            "key": self.key_n[rows],
            "size": torch.from_numpy(windows.size).to(device),
            "cell": cell,
            "offset": torch.from_numpy(offset).to(device),
            "member": member,
        }
        return batch | {"label": cell.clone()} if self.targets else batch

    def sizes(self, rows: Tensor) -> Tensor:
        """Cells in the window of each row, by which batches are put together."""
        return torch.from_numpy(self.grid.count_around(rows.cpu().numpy())).clamp_max_(self.max_cells)

    def to(self, device: torch.device | str) -> CellTable:
        """The same table on another device. Windows are still found on the CPU."""
        return replace(self, label_n=self.label_n.to(device), key_n=self.key_n.to(device))

    @property
    def nbytes(self) -> int:
        """Memory of the tensors and of the grid."""
        return self.label_n.nbytes + self.key_n.nbytes + self.grid.nbytes


def _narrow(label: Tensor) -> Tensor:
    """Labels in as few bytes as hold them."""
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"Meta cells must be whole numbers; got {label.dtype}.")
    if len(label) and int(label.min()) < 0:
        raise ValueError(f"Meta cells must be numbered from 0; got {int(label.min())}.")
    fits = not len(label) or int(label.max()) <= torch.iinfo(torch.int16).max
    return label.to(torch.int16 if fits else torch.int32)
