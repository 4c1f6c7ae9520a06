"""Which cells, or which new places, a user wants generated; and what is wrong with the question.

n cells, m places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen._by_name import join_rows
from stgen._warn import warn
from stgen.data._names import some
from stgen.data._places import library_column
from stgen.data._points import points
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
    try:
        xy = points(places, "`places`", rows_are="places")
    except ValueError as error:
        raise ValueError(f"`places` must be finite coordinates in µm, places × 2. {error}") from None
    if not len(xy):
        raise ValueError("`places` must be finite coordinates in µm, places × 2; there is none.")
    obs = pd.DataFrame(index=[f"place_{i}" for i in range(len(xy))])
    key = library_column(adata, library_key if library_key in adata.obs else None)
    if key is None:
        asked_for = Cells(xy, np.zeros(len(xy), dtype=np.int64))
        warn_of_far_places(asked_for, cells)
        return asked_for, obs
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
    asked_for = Cells(xy, np.array([code[name] for name in listed.astype(str)]))
    warn_of_far_places(asked_for, cells)
    return asked_for, obs


def warn_of_far_places(places: Cells, cells: Cells) -> None:
    """Say which places are farther from their section than it is wide: another unit, or another section's."""
    for code in np.unique(places.section):
        here, there = places.xy[places.section == code], cells.xy[cells.section == code]
        low, high = there.min(axis=0), there.max(axis=0)
        width = float(np.linalg.norm(high - low))
        gap = np.linalg.norm(np.maximum(0.0, np.maximum(low - here, here - high)), axis=1)
        far = gap > max(width, 1.0)
        if far.any():
            warn(
                f"{int(far.sum())} of {len(here)} `places` lie up to {gap.max():.6g} µm away from the section, which spans "
                f"x {low[0]:.6g} to {high[0]:.6g} and y {low[1]:.6g} to {high[1]:.6g} µm: what is said of them is what is said "
                "of its nearest cells. Are they in µm, with x before y, and of this section?"
            )
