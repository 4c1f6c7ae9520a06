"""Example tiles of every code: what a code of the image looks like, one row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stgen import _keys
from stgen._by_name import in_order, names_of
from stgen._warn import warn

from ._axes import INK, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.06
"""Between tiles, as a share of their side."""


def code_tiles(
    codes: ArrayLike | pd.Series,
    tiles: Any,
    *,
    n_codes: int = 8,
    n_tiles: int = 6,
    ax: Axes | None = None,
) -> Axes:
    """Draw example tiles of the most used codes, one code per row.

    Examples are taken at even steps through the spots of a code, so that all sections have their say and the same call
    draws the same tiles.

    Parameters
    ----------
    codes
        The code of every spot: numbers or categories, such as a column of ``obs``. Spots without one (NaN) are left out. A
        Series is joined by name where ``tiles`` are those of an AnnData.
    tiles
        Tiles in the order of spots: an array spots × height × width × 3 (RGB; numpy, h5 or zarr; uint8, or floats from 0
        to 1), or a list of such tiles, which may differ in size; or the AnnData that has them in ``obsm["tiles"]``. Only
        those that are drawn are read.
    n_codes
        Number of codes to draw, the most used first.
    n_tiles
        Number of tiles for each code; a code with fewer spots has fewer.
    ax
        Axes to draw on.

    Returns
    -------
    Axes. Labels give the code and the share of spots that have it.

    Raises
    ------
    ValueError
        If codes and tiles are not of the same spots, or a tile is not height × width × 3.

    Warns
    -----
    UserWarning
        If codes have names and tiles have none, so that nothing says whether they are in the same order.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(histology="images", n_sections=1, n_patients=1, spots_per_section=50)
    >>> stg.pp.histology_tiles(adata, "hires", library_key="section", tile_px=32)
    >>> ax = stg.pl.code_tiles(adata.obs["cell_type"], adata, n_codes=3)
    """
    codes, tiles = _same_spots(codes, tiles)
    code = _one_per_spot(codes)
    _check_numbers(n_codes=n_codes, n_tiles=n_tiles)
    n_stored = len(tiles) if isinstance(tiles, Sequence) else int(np.shape(tiles)[0])
    if n_stored != len(code):
        raise ValueError(
            f"`codes` and `tiles` must be of the same spots; got {len(code)} codes and {n_stored} tiles."
        )
    counts = code.value_counts(sort=False)
    counts = counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")
    if counts.empty:
        raise ValueError(f"`codes` has no code: all {len(code)} values are missing.")
    shown = counts.index[:n_codes]
    ax = one_axes(ax, 1.3 + 0.8 * n_tiles, 0.2 + 0.8 * len(shown))
    for row, value in enumerate(shown):
        for column, spot in enumerate(_examples(np.flatnonzero((code == value).to_numpy()), n_tiles)):
            left, top = column * (1 + GAP), row * (1 + GAP)
            ax.imshow(_tile(tiles[int(spot)], int(spot)), extent=(left, left + 1, top + 1, top))
    height, width = (n * (1 + GAP) - GAP for n in (len(shown), n_tiles))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[])
    names = [f"{_name(value)}  ({_percent(counts[value] / len(code))})" for value in shown]
    ax.set_yticks(np.arange(len(shown)) * (1 + GAP) + 0.5, names)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, colors=INK)
    n_left = len(counts) - len(shown)
    if n_left:
        share = (counts.sum() - counts[shown].sum()) / len(code)
        more = f"{n_left} more code{'s' if n_left > 1 else ''}"
        ax.set_xlabel(f"{more}, {_percent(share)} of spots", color=INK, fontsize="small")
    return ax


def _same_spots(codes: Any, tiles: Any) -> tuple[Any, Any]:
    """Codes joined to the spots of the tiles, where both have names; and the tiles."""
    if not hasattr(tiles, "obs_names"):
        if names_of(codes) is not None:
            warn(
                "`codes` has names and `tiles` has none, so that both are taken to be in the same order. Give the AnnData "
                "as `tiles` to join them by name, or `codes.to_numpy()` if the order is right."
            )
        return codes, tiles
    if _keys.TILES not in tiles.obsm:
        raise KeyError(
            f"obsm[{_keys.TILES!r}] does not exist; obsm has {list(tiles.obsm)}. Run `stg.pp.histology_tiles` first."
        )
    return in_order(codes, tiles.obs_names, "`codes`"), tiles.obsm[_keys.TILES]


def _one_per_spot(codes: Any) -> pd.Series:
    if not isinstance(codes, pd.Series | pd.Categorical):
        codes = np.asarray(codes)
        if codes.ndim != 1:
            raise ValueError(
                f"`codes` must be one code per spot; its shape is {codes.shape}. With several tokens per spot, draw them "
                "one by one: `codes[:, 0]`."
            )
    return pd.Series(codes).reset_index(drop=True)


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a whole number, at least 1; got {value!r}.")


def _examples(spots: np.ndarray, n: int) -> np.ndarray:
    """At most n of them, at even steps."""
    return spots if len(spots) <= n else spots[(2 * np.arange(n) + 1) * len(spots) // (2 * n)]


def _tile(tile: Any, spot: int) -> np.ndarray:
    tile = np.asarray(tile)
    if tile.ndim != 3 or tile.shape[2] != 3:
        is_first = tile.ndim == 3 and tile.shape[0] == 3
        hint = " Move the channels to the end: `np.moveaxis(tiles, 1, -1)`." if is_first else ""
        raise ValueError(
            f"Tiles must be height × width × 3 (RGB); that of spot {spot} has shape {tile.shape}.{hint}"
        )
    is_unit = tile.dtype.kind == "f" and tile.size and tile.min() >= 0 and tile.max() <= 1
    if tile.dtype != np.uint8 and not is_unit:
        found = f"is {tile.dtype}" + (f" from {tile.min():g} to {tile.max():g}" if tile.size else "")
        raise ValueError(f"Tiles must be uint8, or floats from 0 to 1; that of spot {spot} {found}.")
    return tile


def _name(code: Any) -> str:
    return f"{code:g}" if isinstance(code, float) else str(code)  # numbers beside NaN are floats


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"
