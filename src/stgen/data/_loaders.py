"""Tables to tensors: a sample is an index array; a batch is gathered by indexing, not collated row by row.

:class:`SpotTable` reads an AnnData once, through its fields, into tensors; :meth:`SpotTable.batch` answers
row numbers with a batch dict. :class:`Batches` says which rows come together: in order for prediction and
preparation, shuffled by seed and epoch for training, where samples of similar length come together. Lightning
takes any iterable, so there is no per-sample work between table and network.

n spots, B batch, F features, k neighbours, G genes, p pixels per side of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from stgen._labels import read_labels
from stgen.nn._network import N_FOLDS, Batch

from ._fields import CoordinatesField, CountsField, Field, HistologyField, PatientField, SplitField
from ._patches import patches
from ._splits import read_split
from ._tiles import TilesField

if TYPE_CHECKING:
    from anndata import AnnData

BYTES_AT_ONCE = 8 * 1024**2
"""Size of a batch where all rows are read and none trained on: far larger is no faster, far smaller much slower."""

BATCHES_PER_CHUNK = 50
"""Rows of this many batches are sorted by size among themselves: enough that little is padded, and few enough
that batches of an epoch differ from those of the last."""


class Table(Protocol):
    """Data ready to be gathered: what a model family offers to the loaders."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows, on the device of the table."""
        ...


@runtime_checkable
class SizedTable(Table, Protocol):
    """A table whose samples differ in length, so that a batch is padded to its longest."""

    def sizes(self, rows: Tensor) -> Tensor:
        """Length of each of these rows' samples."""
        ...


@dataclass(frozen=True)
class SpotTable:
    """Spots as tensors: histology, its neighbours, place and, where loaded, counts."""

    key_n: Tensor
    """Hash of the spot's name."""
    histology_nF: Tensor
    xy_n2: Tensor
    """µm from the centre of the section."""
    neighbours_nk: Tensor | None = None
    """Row numbers of the nearest spots of the same section."""
    counts_nG: Tensor | sparse.csr_matrix | None = None
    unit_n: Tensor | None = None
    """What a spot shares errors with, for cross-fitting: patient, section or a random fifth. With targets."""
    patch_n: Tensor | None = None
    """Patch of nearby spots of one section and unit that a spot lies in. With targets."""

    @classmethod
    def read(
        cls,
        adata: AnnData,
        fields: Sequence[Field],
        *,
        n_neighbors: int = 0,
        targets: bool = True,
        genes: Sequence[str] | None = None,
    ) -> SpotTable:
        """Read what ``fields`` name, checked; targets only if asked for, in the order of ``genes``."""
        by_key = {field.registry_key: field for field in fields}
        histology, place, counts = (by_key.get(key) for key in ("histology", "xy", "counts"))
        assert histology is None or isinstance(histology, HistologyField)
        assert isinstance(place, CoordinatesField)
        assert isinstance(counts, CountsField)
        xy, section = place.read(adata)
        keys = name_keys(adata.obs_names)
        unit = patch = None
        if targets:
            unit = torch.from_numpy(_units(adata, by_key, section, keys))
            patch = torch.from_numpy(patches(xy, section, unit.numpy()))
        return cls(
            key_n=torch.from_numpy(keys),
            # where tiles take the embedding's place, it has no feature
            histology_nF=torch.zeros(adata.n_obs, 0)
            if histology is None
            else torch.from_numpy(_writable(histology.read(adata))),
            xy_n2=torch.from_numpy(centred(xy, section)),
            neighbours_nk=_neighbours(xy, section, n_neighbors) if n_neighbors else None,
            counts_nG=_rows_of_counts(counts.read(adata, genes)) if targets else None,
            unit_n=unit,
            patch_n=patch,
        )

    def __len__(self) -> int:
        return len(self.histology_nF)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        rows = rows.to(self.histology_nF.device)
        batch = {
            "index": rows,
            "key": self.key_n.index_select(0, rows),
            "histology": self.histology_nF.index_select(0, rows),
            "xy": self.xy_n2.index_select(0, rows),
        }
        if self.unit_n is not None:
            batch["unit"] = self.unit_n.index_select(0, rows)
        if self.patch_n is not None:
            batch["patch"] = self.patch_n.index_select(0, rows)
        if self.neighbours_nk is not None:
            near_Bk = self.neighbours_nk.index_select(0, rows)
            batch["neighbours"] = self.histology_nF.index_select(0, near_Bk.flatten()).unflatten(
                0, near_Bk.shape
            )
        if isinstance(self.counts_nG, Tensor):
            batch["counts"] = self.counts_nG.index_select(0, rows)
        elif self.counts_nG is not None:
            dense = self.counts_nG[rows.cpu().numpy()].toarray()
            batch["counts"] = torch.from_numpy(dense).to(rows.device)
        return batch

    def to(self, device: torch.device) -> SpotTable:
        """The same table on another device; sparse counts stay where they are."""
        return replace(
            self,
            key_n=self.key_n.to(device),
            histology_nF=self.histology_nF.to(device),
            xy_n2=self.xy_n2.to(device),
            neighbours_nk=None if self.neighbours_nk is None else self.neighbours_nk.to(device),
            counts_nG=self.counts_nG.to(device) if isinstance(self.counts_nG, Tensor) else self.counts_nG,
            unit_n=None if self.unit_n is None else self.unit_n.to(device),
            patch_n=None if self.patch_n is None else self.patch_n.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        tensors = (
            self.histology_nF,
            self.xy_n2,
            self.neighbours_nk,
            self.counts_nG,
            self.unit_n,
            self.patch_n,
        )
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class TileTable:
    """Spots whose histology is their tile: everything else of a spot is in ``spots``.

    Tiles stay what they are, bytes: 20,000 of 224 × 224 pixels are 3 GB, and would be 12 GB as floats. A batch gathers
    its own, and the network makes floats of them.
    """

    spots: SpotTable
    tiles_nppc: np.ndarray

    @classmethod
    def read(
        cls,
        adata: AnnData,
        fields: Sequence[Field],
        *,
        targets: bool = True,
        genes: Sequence[str] | None = None,
    ) -> TileTable:
        """Read what ``fields`` name, checked; targets only if asked for, in the order of ``genes``."""
        tiles = next(field for field in fields if isinstance(field, TilesField))
        return cls(SpotTable.read(adata, fields, targets=targets, genes=genes), tiles.read(adata))

    def __len__(self) -> int:
        return len(self.spots)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows; ``tiles`` are (B, p, p, 3) uint8."""
        chosen = np.ascontiguousarray(self.tiles_nppc[rows.cpu().numpy()])
        return {**self.spots.batch(rows), "tiles": torch.from_numpy(chosen)}


def name_keys(names: pd.Index) -> np.ndarray:
    """A number for each name, the same in every session, by which noise is keyed."""
    hashed = pd.util.hash_array(np.asarray(names, dtype=object), categorize=False)
    return hashed.view(np.int64).copy()


def _units(
    adata: AnnData, fields: dict[str, Field], section: np.ndarray | None, keys: np.ndarray
) -> np.ndarray:
    """What spots share errors with, as consecutive codes: patients, else sections, else random fifths.

    The first of these that tells training rows apart; rows that are not for training get any code.
    """
    split, patient = fields.get("split"), fields.get("patient")
    train = np.arange(adata.n_obs)
    # counts may also be read to look at them, of sections that nobody split
    if (
        isinstance(split, SplitField)
        and split.key is not None
        and split.key in adata.obs
        and read_split(adata.obs, split.key).train.any()
    ):
        train = split.rows(adata)[0]
    candidates = [section]
    if isinstance(patient, PatientField) and patient.key is not None and patient.key in adata.obs:
        candidates.insert(0, pd.factorize(read_labels(adata.obs[patient.key]), sort=True)[0])
    for codes in candidates:
        if codes is not None and len(known := np.unique(codes[train])) > 1:
            return np.searchsorted(known, codes).astype(np.int64)
    return keys % N_FOLDS


def centred(xy: np.ndarray, section: np.ndarray | None) -> np.ndarray:
    """Coordinates from the centre of each section's bounding box, float32.

    The box, not the mean: it does not depend on the order of rows, and little on how densely spots lie.
    """
    section = np.zeros(len(xy), dtype=np.int64) if section is None else section
    out = np.empty(xy.shape, dtype=np.float32)
    for code in np.unique(section):
        rows = section == code
        here = xy[rows]
        out[rows] = here - (here.min(axis=0) + here.max(axis=0)) / 2
    return out


def _neighbours(xy: np.ndarray, section: np.ndarray | None, n_neighbors: int) -> Tensor:
    from ._windows import neighbour_index

    return torch.from_numpy(
        np.ascontiguousarray(neighbour_index(xy, section, n_neighbors=n_neighbors), dtype=np.int64)
    )


def _rows_of_counts(counts: sparse.csr_matrix | np.ndarray) -> Tensor | sparse.csr_matrix:
    """An array as it is; of CSR each batch is made dense, which costs a fraction of a millisecond."""
    return torch.from_numpy(_writable(counts)) if isinstance(counts, np.ndarray) else counts


def _writable(array: np.ndarray) -> np.ndarray:
    """Torch warns about read-only arrays, which memory maps and some views are."""
    return array if array.flags.writeable else array.copy()


class Batches:
    """Rows of a table in batches, any number of times.

    Parameters
    ----------
    table
        What to gather from.
    rows
        Row numbers.
    batch_size
        Rows per batch. ``None``, for what reads all rows and trains on none, takes as many as ``BYTES_AT_ONCE`` hold.
        In order, all batches but the last are full; shuffled, they differ by one row at
        most, so that no small last batch gets the weight of a full one. Shuffled rows of a table that tells
        sizes come beside rows of similar size, so that little is padded.
    seed
        ``None`` keeps the order. Else a function that gives the seed of the coming epoch, asked when it
        begins.
    part
        ``(i, n)``: which of ``n`` processes this is; each sees its own share of every batch.
    """

    def __init__(
        self,
        table: Table,
        rows: np.ndarray,
        batch_size: int | None = None,
        *,
        seed: Callable[[], int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.table = table
        self.rows = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        self._batch_size = batch_size
        self.seed = seed
        self.part = part
        self._sizes: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Rows per batch."""
        if self._batch_size is None:
            width = sum(tensor.nbytes for tensor in self.table.batch(self.rows[:1]).values())
            self._batch_size = max(1, BYTES_AT_ONCE // max(1, width))
        return self._batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        i, n = self.part
        for rows in self._groups():
            yield self.table.batch(rows[i::n])

    def _groups(self) -> Sequence[Tensor]:
        if self.seed is None or len(self) == 0:
            return self.rows.split(self.batch_size)
        generator = torch.Generator().manual_seed(self.seed())
        batches = torch.randperm(len(self.rows), generator=generator).tensor_split(len(self))
        if isinstance(self.table, SizedTable):
            batches = self._of_similar_size(self.table, batches, generator)
        return [self.rows[at] for at in batches]

    def _of_similar_size(
        self, table: SizedTable, batches: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Sort rows by size within chunks of batches, and shuffle the batches that come of it."""
        if self._sizes is None:
            self._sizes = table.sizes(self.rows).cpu()
        sorted_batches: list[Tensor] = []
        n_chunks = -(-len(batches) // BATCHES_PER_CHUNK)
        for chunk in np.array_split(np.arange(len(batches)), n_chunks):
            at = torch.cat([batches[i] for i in chunk])
            at = at[self._sizes[at].argsort(stable=True)]
            sorted_batches += at.split([len(batches[i]) for i in chunk])
        return tuple(sorted_batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())
