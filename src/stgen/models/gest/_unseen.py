"""Which cells, or which new places, a user wants generated; and what is wrong with the question.

n cells, m places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen._by_name import join_rows
from stgen.data._names import some
from stgen.data._rows import read_mask

from ._generation import Cells

if TYPE_CHECKING:
    from anndata import AnnData


def checked_mask(adata: AnnData, mask: Any) -> np.ndarray:
    """Cells to generate (n,), if they are some and leave some."""
    hidden = read_mask(adata, mask, "`mask`")
    if not hidden.any() or hidden.all():
        raise ValueError(
            f"`mask` must name some cells and leave some to see; it names {int(hidden.sum())} of {len(hidden)}."
        )
    return hidden


def hidden_cells(adata: AnnData, mask: Any, section: np.ndarray, library_key: str | None) -> np.ndarray:
    """Which cells are hidden (n,); every section keeps some to see."""
    mask = checked_mask(adata, mask)
    blind = np.isin(section, np.setdiff1d(section[mask], section[~mask]))
    if blind.any():
        names = sorted(adata.obs.loc[blind, library_key].astype(str).unique())
        raise ValueError(
            f"`mask` must leave some cells of every section to see; it names all of {some(names)}. Coordinates say "
            "nothing across sections: unmask some of its cells, or leave the section out."
        )
    return mask


def new_places(
    adata: AnnData, cells: Cells, places: Any, sections: Any, library_key: str | None
) -> tuple[Cells, pd.DataFrame]:
    """Places that no cell has yet, in the sections of the data, and their table of observations."""
    places, sections = join_rows(places=places, sections=sections)
    xy = np.asarray(places, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy) or not np.isfinite(xy).all():
        raise ValueError(f"`places` must be finite coordinates in µm, places × 2; got shape {xy.shape}.")
    obs = pd.DataFrame(index=[f"place_{i}" for i in range(len(xy))])
    key = library_key
    if key is None or key not in adata.obs:
        return Cells(xy, np.zeros(len(xy), dtype=np.int64)), obs
    names = adata.obs[key].astype(str).to_numpy()
    code = dict(zip(names, cells.section, strict=True))
    if sections is None and len(code) > 1:
        raise ValueError(
            f"`sections` must name the section of the places; there are {len(code)}: {some(sorted(code))}."
        )
    asked = next(iter(code)) if sections is None else sections
    listed = np.full(len(xy), asked, dtype=object) if isinstance(asked, str) else np.asarray(asked)
    strange = [name for name in pd.unique(listed.astype(str)) if name not in code]
    if strange or len(listed) != len(xy):
        raise ValueError(
            f"`sections` must name, for each of {len(xy)} places, one of {some(sorted(code))}; got {len(listed)} "
            f"names{', such as ' + some(strange) if strange else ''}."
        )
    obs[key] = listed.astype(str)
    return Cells(xy, np.array([code[name] for name in listed.astype(str)])), obs
