"""Which spots are the same: a spot is known by its section and its name, never by its name alone.

Visium barcodes are the same list on every slide, and cells are numbered anew in every section. So a name that is the
same says nothing until something else agrees: the section where both sides name one, and the place. Where a side names no
section, what the image shows of a spot is compared too, because ideal lattices give every slide the same places.

n spots, m pairs of spots that share a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stgen._labels import full_column

from ._fields import CoordinatesField, Field, HistologyField
from ._places import library_column
from ._tiles import TilesField

if TYPE_CHECKING:
    from anndata import AnnData

SAME_PLACE_UM = 1e-3
"""Places that differ by less are the same: files round coordinates."""
N_GLIMPSED = 16
"""Numbers of a spot's image that are compared, spread over all of them."""


@dataclass(frozen=True)
class Spots:
    """What identifies spots; ``None`` where nothing is known."""

    name: pd.Index
    section: NDArray[np.object_]
    """(n,) ``None`` for spots whose section has no name of its own."""
    xy: NDArray[np.float64] | None
    """(n, 2) µm."""
    image: NDArray[np.float32] | None = None
    """(n, k) a few numbers of the embedding or the tile."""

    @classmethod
    def of(cls, adata: AnnData, fields: Sequence[Field]) -> Spots:
        """Spots as these fields read them. An image that is not there is not compared."""
        place = next(one for one in fields if isinstance(one, CoordinatesField))
        image = next((one for one in fields if isinstance(one, HistologyField | TilesField)), None)
        section = np.full(adata.n_obs, None, dtype=object)
        column = library_column(adata, place.library_key if place.library_key in adata.obs else None)
        if column is not None:
            section = full_column(adata.obs, column).to_numpy(dtype=object)
        glimpse = None if image is None or image.key not in adata.obsm else _glimpse(image.read(adata))
        return cls(adata.obs_names.astype(str), section, place.read(adata)[0], glimpse)

    @classmethod
    def joined(cls, parts: Sequence[Spots]) -> Spots:
        """All spots of several; what one part does not know is not known of any."""
        xy, image = [one.xy for one in parts], [one.image for one in parts]
        return cls(
            pd.Index(np.concatenate([one.name for one in parts])),
            np.concatenate([one.section for one in parts]),
            None if any(one is None for one in xy) else np.concatenate(xy),  # type: ignore[arg-type]
            None if any(one is None for one in image) else np.concatenate(image),  # type: ignore[arg-type]
        )

    def __len__(self) -> int:
        return len(self.name)

    def rows(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Spots:
        """Some of them."""
        return Spots(
            self.name[rows],
            self.section[rows],
            None if self.xy is None else self.xy[rows],
            None if self.image is None else self.image[rows],
        )

    def among(self, others: Spots | None) -> NDArray[np.bool_]:
        """(n,) which of these spots are among others, whatever their order. Nobody is among ``None``."""
        found = np.zeros(len(self), dtype=bool)
        if others is None:
            return found
        here, there = _pairs(self.name, others.name)
        mine, theirs = self.rows(here), others.rows(there)
        found[here[_same(mine, theirs)]] = True
        return found


def _pairs(one: pd.Index, other: pd.Index) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(m,) and (m,) rows that share a name; a name may be that of several."""
    left = pd.DataFrame({"name": one, "here": np.arange(len(one))})
    right = pd.DataFrame({"name": other, "there": np.arange(len(other))})
    both = left.merge(right, on="name")
    return both["here"].to_numpy(), both["there"].to_numpy()


def _same(one: Spots, other: Spots) -> NDArray[np.bool_]:
    """(m,) which pairs of the same name are the same spot: all that both sides know agrees, and that is something."""
    is_named = np.array([a is not None and b is not None for a, b in zip(one.section, other.section)], bool)
    same = ~is_named | (one.section == other.section)
    is_proved = is_named.copy()
    if one.xy is not None and other.xy is not None:
        same &= np.isclose(one.xy, other.xy, atol=SAME_PLACE_UM).all(axis=1)
        is_proved[:] = True
    if one.image is not None and other.image is not None and one.image.shape == other.image.shape:
        # the same tile embedded twice differs in the last digits, above all in half precision
        same &= is_named | np.isclose(one.image, other.image, rtol=1e-2, atol=1e-3).all(axis=1)
        is_proved[:] = True
    return same & is_proved


def _glimpse(image: NDArray) -> NDArray[np.float32]:
    """(n, k) numbers that are spread over all that the image shows."""
    flat = image.reshape(len(image), -1)
    columns = np.unique(np.linspace(0, flat.shape[1] - 1, N_GLIMPSED).astype(np.int64))
    return np.asarray(flat[:, columns], dtype=np.float32)
