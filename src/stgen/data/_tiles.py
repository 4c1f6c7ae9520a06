"""Spot-centred H&E tiles: what is refused at the door, and which tiles show nothing.

n spots, p pixels per side.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stgen import _keys

from ._fields import Facts, Field
from ._names import some

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

SIDE = 32
"""The side of a tile is a multiple of this many pixels, so that it can be halved five times."""
WHITE = 255
BLANK_SD = 4.0
"""Standard deviation of the most varied colour, of 255: tissue has 12 to 60, glass with noise of camera and JPEG 1 to 3."""
_OF_WHITE = ", with the value of white paper in this camera"


def check_tiles(tiles: Any, name: str) -> None:
    """Raise unless these are square RGB tiles of 8 bits, n × p × p × 3.

    Parameters
    ----------
    tiles
        Anything with shape, dtype and slices.
    name
        How the message calls them.
    """
    shape = tuple(tiles.shape)
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise ValueError(f"{name} must be spots × p × p × 3; its shape is {shape}.{_hint(shape)}")
    if tiles.dtype != np.uint8:
        white = _white_of(tiles)
        raise ValueError(
            f"{name} must be uint8, white being 255; its dtype is {tiles.dtype}. Scale and convert: "
            f"`tiles = np.rint(tiles / {white} * 255).astype('uint8')`{_OF_WHITE if white == 'white' else ''}."
        )


def _white_of(tiles: Any) -> str:
    """What white is, where that can be known: floats from 0 to 1, or values as of 8 bits."""
    first = np.asarray(tiles[:64])
    if not first.size or not np.isfinite(first).all() or first.min() < 0:
        return "white"
    if first.dtype.kind == "f" and first.max() <= 1:
        return "1"
    return "255" if 1 < first.max() <= WHITE and first.dtype != np.uint16 else "white"


def _hint(shape: tuple[int, ...]) -> str:
    """What somebody with tiles of this shape has to do."""
    if len(shape) == 2:
        return " That is an embedding, not tiles: cut tiles with `stg.pp.histology_tiles`."
    if len(shape) == 4 and shape[3] not in (3, 4) and shape[1] in (3, 4):
        return " Move the channels to the end: `np.moveaxis(tiles, 1, -1)`."
    if len(shape) == 4 and shape[3] == 4:
        return " Leave out the fourth channel, if it is opacity, after laying transparent pixels on white: `tiles[..., :3]`."
    if len(shape) == 3 or shape[3:] == (1,):
        return " If they are grey, repeat them: `np.repeat(tiles.reshape(n, p, p, 1), 3, axis=3)`."
    if len(shape) == 4 and shape[3] == 3:
        return " Tiles are square: cut or pad the longer side."
    return ""


def is_blank(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tiles without any contrast, n × p × p × 3: glass, padding, or a picture that went black."""
    step = max(1, tiles.shape[1] // 64)
    pixels = tiles[:, ::step, ::step].reshape(len(tiles), -1, 3).astype(np.float32)
    return np.asarray(pixels.std(axis=1).max(axis=1) < BLANK_SD)


def all_blank(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """:func:`is_blank` of many tiles, a few at a time."""
    parts = [is_blank(np.asarray(tiles[i : i + 256])) for i in range(0, len(tiles), 256)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def warn_of_blank(blank: NDArray[np.bool_], obs_names: Any) -> None:
    """Blank tiles are ordinary input, but nothing can be predicted from them, and the user should know."""
    if blank.any():
        which = "All" if blank.all() else f"{int(blank.sum())} of"
        logger.warning(
            "%s %d tiles are blank (no contrast, as bare glass), such as %s. %s",
            which,
            len(blank),
            some(obs_names[blank]),
            "Check the image and `coordinates`."
            if blank.all()
            else "Drop these spots if no tissue is there.",
        )


@dataclass(frozen=True)
class TilesField(Field):
    """An input: spot-centred tiles, spots × p × p × 3, uint8, in ``obsm``."""

    key: str = _keys.TILES

    registry_key: ClassVar[str] = "tiles"

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return self.key

    @property
    def name(self) -> str:
        """How messages call the slot."""
        return f"obsm[{self.key!r}]"

    def read(self, adata: AnnData) -> NDArray[np.uint8]:
        """The tiles as they lie there, checked."""
        if self.key not in adata.obsm:
            raise KeyError(
                f"{self.name} does not exist; obsm has {list(adata.obsm)}. Cut tiles with `stg.pp.histology_tiles`, or "
                "name yours with `tiles_key=`."
            )
        tiles = adata.obsm[self.key]
        tiles = tiles if hasattr(tiles, "dtype") and hasattr(tiles, "shape") else np.asarray(tiles)
        check_tiles(tiles, self.name)
        p = tiles.shape[1]
        if p == 0 or p % SIDE:
            below = max(p // SIDE, 1) * SIDE
            raise ValueError(
                f"{self.name} must have a multiple of {SIDE} pixels a side; they are {p} × {p}. Cut them again, such as "
                f"`stg.pp.histology_tiles(…, tile_px={below})`."
            )
        return tiles

    def size(self, adata: AnnData) -> Facts:
        """What :meth:`compare` compares; no pixel is looked at."""
        return {"tile_px": int(self.read(adata).shape[1]), "tile_um": self._tile_um(adata)}

    def facts(self, adata: AnnData) -> Facts:
        size = self.size(adata)
        blank = all_blank(self.read(adata))
        warn_of_blank(blank, adata.obs_names)
        return {**size, "n_blank": int(blank.sum())}

    def _tile_um(self, adata: AnnData) -> float | None:
        recorded = adata.uns.get(self.key, {})
        params = recorded.get("params", {}) if hasattr(recorded, "get") else {}
        return float(params["tile_um"]) if "tile_um" in params else None

    def compare(self, facts: Facts, adata: AnnData) -> None:
        p, tile_um = self.read(adata).shape[1], self._tile_um(adata)
        if p != facts["tile_px"]:
            raise ValueError(
                f"The model was fitted on tiles of {facts['tile_px']} × {facts['tile_px']} pixels; those of {self.name} "
                f"are {p} × {p}. Cut them alike: `stg.pp.histology_tiles(…, tile_px={facts['tile_px']})`."
            )
        if facts["tile_um"] and tile_um and abs(tile_um / facts["tile_um"] - 1) > 0.01:
            raise ValueError(
                f"The model was fitted on tiles of {facts['tile_um']:g} µm; those of {self.name} are {tile_um:g} µm wide. "
                f"Cut them alike: `stg.pp.histology_tiles(…, tile_um={facts['tile_um']:g})`."
            )
