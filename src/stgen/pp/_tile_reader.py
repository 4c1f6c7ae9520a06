"""Tiles as a stream: cut around spots when asked for, section after section, and not kept.

20,000 tiles of 224 × 224 pixels are 3 GB; a reader holds one image and one batch. Whoever wants the tiles
themselves stacks the batches, whoever wants features throws each batch away.

A point (x, y) of an image lies in the pixel of column ⌊x⌋ and row ⌊y⌋. n tiles, p pixels per side.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stgen._warn import number
from stgen.data._fields import some
from stgen.data._tiles import check_tiles

from ._images import DAMAGE, WHITE, SourceImage, as_rgb, check_readable, damaged, open_image

LEAST_UM_PER_PX, LARGEST_UM_PER_PX = 0.1, 10.0

_MARGIN = 4
"""Pixels around a window that the resampling filter may look at."""
_SAME_SIZE = 1e-3
"""A window this close to the tile in size is copied, not resampled: a tenth of a pixel over 100."""


class TileReader(Protocol):
    """Tiles of n spots, RGB, uint8."""

    tile_um: float
    tile_px: int
    outside: NDArray[np.float32]
    """Share of each tile that lies outside of its image, and is white."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Spot numbers and their tiles, every spot once."""
        ...


def stack(reader: TileReader) -> NDArray[np.uint8]:
    """All tiles in the order of spots: n × p × p × 3."""
    tiles = np.empty((len(reader), reader.tile_px, reader.tile_px, 3), dtype=np.uint8)
    for rows, batch in reader.batches(64):
        tiles[rows] = batch
    return tiles


@dataclass
class ImageTiles:
    """Tiles cut from one image per section."""

    images: Mapping[str, Any]
    section: NDArray[np.str_]
    centre: NDArray[np.float64]
    """Pixels of the section's image."""
    um_per_px: Mapping[str, float]
    tile_um: float
    tile_px: int
    outside: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tile_um) and self.tile_um > 0):
            raise ValueError(f"`tile_um` must be a length in µm above 0; got {self.tile_um!r}.")
        if int(self.tile_px) != self.tile_px or self.tile_px < 1:
            raise ValueError(f"`tile_px` must be a whole number of pixels, at least 1; got {self.tile_px!r}.")
        self.outside = np.zeros(len(self.centre), dtype=np.float32)
        for name in np.unique(self.section):
            here = self.section == name
            # opened again when its tiles are cut: only one image is ever held
            image = open_image(self.images[name], f"image{_of(name)}")
            _check_inside(self.centre[here], image, name)
            window = self.window_px(name)
            if window > max(image.height, image.width):
                raise ValueError(
                    f"A tile of {self.tile_um:g} µm would be {number(window, max(image.width, image.height))} pixels wide at "
                    f"{self.um_per_px[name]:.4g} µm per pixel, more than the image{_of(name)} ({image.width} "
                    f"× {image.height}). Check `um_per_px`."
                )
            self.outside[here] = _share_outside(self.centre[here], image, window)

    def __len__(self) -> int:
        return len(self.centre)

    def window_px(self, name: str) -> float:
        """Side of a tile in pixels of the section's image."""
        return self.tile_um / self.um_per_px[name]

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Spot numbers and their tiles, section after section, each from top to bottom."""
        for name in np.unique(self.section):
            image = open_image(self.images[name], f"image{_of(name)}")
            rows = np.flatnonzero(self.section == name)
            rows = rows[np.argsort(self.centre[rows, 1], kind="stable")]
            for start in range(0, len(rows), batch_size):
                some_rows = rows[start : start + batch_size]
                yield (
                    some_rows,
                    np.stack([self._cut(image, self.centre[i], self.window_px(name)) for i in some_rows]),
                )

    def _cut(self, image: SourceImage, centre: NDArray[np.float64], window: float) -> NDArray[np.uint8]:
        x, y = centre
        if abs(window / self.tile_px - 1) < _SAME_SIZE:
            half = self.tile_px // 2
            left, top = int(np.floor(x)) - half, int(np.floor(y)) - half
            return _read_padded(image, top, top + self.tile_px, left, left + self.tile_px)
        from PIL import Image

        left, top = int(np.floor(x - window / 2)) - _MARGIN, int(np.floor(y - window / 2)) - _MARGIN
        side = int(np.ceil(window)) + 2 * _MARGIN + 1
        around = Image.fromarray(_read_padded(image, top, top + side, left, left + side))
        box = (x - window / 2 - left, y - window / 2 - top, x + window / 2 - left, y + window / 2 - top)
        size = (self.tile_px, self.tile_px)
        return np.asarray(around.resize(size, Image.Resampling.LANCZOS, box=box))


def check_pixel_size(um_per_px: float, name: str = "") -> None:
    """Raise if no microscope makes such pixels of tissue."""
    if not LEAST_UM_PER_PX <= um_per_px <= LARGEST_UM_PER_PX:
        raise ValueError(
            f"A pixel of {number(um_per_px, LEAST_UM_PER_PX, LARGEST_UM_PER_PX)} µm{_of(name)} is implausible; expected {LEAST_UM_PER_PX:g} to "
            f"{LARGEST_UM_PER_PX:g} µm (0.25 at 40×, 0.5 at 20×, 3 to 10 for a hires picture). Check "
            "`um_per_px` or `spot_pitch_um`."
        )


def _check_inside(centre: NDArray[np.float64], image: SourceImage, name: str) -> None:
    inside = ((centre >= 0) & (centre < (image.width, image.height))).all(axis=1)
    if inside.all():
        return
    (x0, y0), (x1, y1) = centre.min(axis=0), centre.max(axis=0)
    ratio = max(x1 / image.width, y1 / image.height)
    hint = (
        f" They would fit an image {ratio:.3g} times as large: is this the hires picture, and do coordinates "
        "count pixels of the full-resolution image? One spot pitch tells which you have."
        if ratio > 1.2
        else " Drop these spots, or check that the image is that of this section."
    )
    raise ValueError(
        f"{int((~inside).sum())} of {len(centre)} spots lie outside of the image{_of(name)}: it is "
        f"{image.width} × {image.height} pixels, spots lie at x {number(x0, 0)} to "
        f"{number(x1, image.width)}, y {number(y0, 0)} to {number(y1, image.height)} "
        f"pixels.{hint}"
    )


def _share_outside(centre: NDArray[np.float64], image: SourceImage, window: float) -> NDArray[np.float64]:
    size = np.array([image.width, image.height])
    low, high = centre - window / 2, centre + window / 2
    inside = np.prod(np.maximum(np.minimum(high, size) - np.maximum(low, 0), 0), axis=1) / window**2
    crosses = ((low < 0) | (high > size)).any(axis=1)
    return np.where(crosses, np.clip(1 - inside, 0, 1), 0)


def _read_padded(image: SourceImage, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
    """A window that may reach over the border; what lies outside is white, like glass."""
    t, b, l, r = max(top, 0), min(bottom, image.height), max(left, 0), min(right, image.width)
    if (t, b, l, r) == (top, bottom, left, right):
        return image.window(t, b, l, r)
    pixels = np.full((bottom - top, right - left, 3), WHITE, dtype=np.uint8)
    if t < b and l < r:
        pixels[t - top : b - top, l - left : r - left] = image.window(t, b, l, r)
    return pixels


@dataclass
class ArrayTiles:
    """Tiles that somebody cut before, n × p × p × 3 in the order of spots."""

    tiles: Any
    tile_um: float
    name: str = "tiles"

    def __post_init__(self) -> None:
        check_tiles(self.tiles, self.name)
        self.tile_px = int(self.tiles.shape[1])
        self.outside = np.zeros(len(self), dtype=np.float32)

    def __len__(self) -> int:
        return int(self.tiles.shape[0])

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Slices in order."""
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, min(start + batch_size, len(self)))
            yield rows, np.asarray(self.tiles[rows[0] : rows[-1] + 1])


def stack_of_arrays(tiles: Sequence[Any]) -> NDArray[Any]:
    """A list of tiles as one array; they must be of one shape."""
    shapes: dict[tuple[int, ...], int] = {}
    for one in tiles:
        shapes[np.shape(one)] = shapes.get(np.shape(one), 0) + 1
    if len(shapes) > 1:
        found = "; ".join(
            f"{n} of {' × '.join(map(str, shape))}"
            for shape, n in sorted(shapes.items(), key=lambda x: -x[1])
        )
        raise ValueError(f"`tiles` must be of one size; got {found}. Cut or resize them to one `tile_px`.")
    return np.stack([np.asarray(one) for one in tiles])


class StoredTiles:
    """Tiles stored as JPEG in h5 files (``jpeg`` and ``obs_names``), joined to spots by name."""

    def __init__(self, paths: list[Path], obs_names: Any, *, tile_um: float | None) -> None:
        self._place: dict[str, tuple[Path, int]] = {}
        self._said_px: dict[Path, float] = {}
        sizes = [self._read_index(path) for path in paths]
        missing = [name for name in obs_names if name not in self._place]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(obs_names)} spots have no stored tile, such as {some(missing)}; the "
                f"files have {len(self._place)} tiles, such as {some(self._place)}. Tiles are joined by "
                "`obs_names`."
            )
        self._names = [str(name) for name in obs_names]
        self.tile_px = self._side_of_first()
        self._check_said_sides()
        self.tile_um = _agreed_size(sizes, tile_um, self.tile_px)
        self.outside = np.zeros(len(self._names), dtype=np.float32)

    def _read_index(self, path: Path) -> float | None:
        """Remember where each tile is; the size of tiles in µm if the file says so."""
        if not path.is_file():
            raise FileNotFoundError(f"The file of tiles {str(path)!r} does not exist.")
        with _opened(path) as file:
            absent = [key for key in ("jpeg", "obs_names") if key not in file]
            if absent:
                raise ValueError(
                    f"{path.name!r} must have the datasets 'jpeg' and 'obs_names'; it has {list(file)}."
                )
            names = [
                name.decode() if isinstance(name, bytes) else str(name) for name in _read(file, "obs_names")
            ]
            um_per_px, side = file.attrs.get("mpp"), file.attrs.get("size_px")
        if side is not None:
            self._said_px[path] = float(side)
        for i, name in enumerate(names):
            if name in self._place:
                raise ValueError(
                    f"The tile of spot {name!r} is stored twice ({self._place[name][0].name!r}, "
                    f"{path.name!r})."
                )
            self._place[name] = (path, i)
        return None if um_per_px is None or side is None else float(um_per_px) * float(side)

    def _side_of_first(self) -> int:
        first = self._names[0]
        height, width = self._decode([first])[0].shape[:2]
        if height != width:
            raise ValueError(
                f"Stored tiles must be square; that of spot {first!r} is {width} × {height} pixels."
            )
        return int(height)

    def _check_said_sides(self) -> None:
        """A file whose `size_px` is not that of its tiles would give a wrong size in µm."""
        for path, side in self._said_px.items():
            if side != self.tile_px:
                raise ValueError(
                    f"{path.name!r} says that its tiles have {number(side, self.tile_px)} pixels a side (attribute `size_px`), but they have "
                    f"{self.tile_px}. Correct the attribute, or the tiles."
                )

    def __len__(self) -> int:
        return len(self._names)

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Spot numbers and their tiles, file after file."""
        by_file: dict[Path, list[int]] = {}
        for row, name in enumerate(self._names):
            by_file.setdefault(self._place[name][0], []).append(row)
        for rows in by_file.values():
            rows = sorted(rows, key=lambda row: self._place[self._names[row]][1])
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                yield (
                    np.array(chosen),
                    self._of_one_size([self._names[row] for row in chosen]),
                )

    def _of_one_size(self, names: list[str]) -> NDArray[np.uint8]:
        tiles = self._decode(names)
        wrong = [
            (name, tile.shape) for name, tile in zip(names, tiles) if tile.shape[:2] != (self.tile_px,) * 2
        ]
        if wrong:
            name, shape = wrong[0]
            raise ValueError(
                f"Stored tiles must be of one size; that of spot {name!r} is {shape[1]} × {shape[0]} pixels, the first one "
                f"is {self.tile_px} × {self.tile_px}. Store all tiles in one size."
            )
        return np.stack(tiles)

    def _decode(self, names: list[str]) -> list[NDArray[np.uint8]]:
        """Tiles of spots that are stored in one file, in increasing places."""
        path = self._place[names[0]][0]
        with _opened(path) as file:
            encoded = _read(file, "jpeg", [self._place[name][1] for name in names])
        return [_decoded(bytes(one), name, path) for one, name in zip(encoded, names)]


def _opened(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except DAMAGE as error:
        raise damaged(f"file of tiles {path.name!r}", error) from error


def _read(file: Any, key: str, rows: Any = slice(None)) -> Any:
    try:
        return file[key][rows]
    except DAMAGE as error:
        raise damaged(f"file of tiles {Path(file.filename).name!r}", error) from error


def _decoded(encoded: bytes, spot: str, path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    name = f"tile of spot {spot!r} in {path.name!r}"
    message = f"The {name} cannot be decoded ({len(encoded)} bytes). Store tiles as JPEG or PNG."
    try:
        image = Image.open(io.BytesIO(encoded))
    except DAMAGE as error:
        raise ValueError(message) from error
    check_readable(image, name)
    try:
        return as_rgb(image)
    except DAMAGE as error:
        raise ValueError(message) from error


def _agreed_size(sizes: list[float | None], given: float | None, tile_px: int) -> float:
    """Size of the tiles in µm: what the files say, what the user says, and no contradiction."""
    said = {size for size in sizes if size is not None} | ({float(given)} if given is not None else set())
    if not said:
        raise ValueError(
            f"The files do not say how large their tiles of {tile_px} pixels are (attributes `mpp`, "
            "`size_px`). Give `tile_um=`."
        )
    if max(said) > 1.01 * min(said):
        raise ValueError(
            f"Stored tiles must be of one size; found {some(sorted(said))} µm. Check `tile_um` and the files."
        )
    return next(iter(said))


def _of(name: str) -> str:
    # numpy's strings say that they are numpy's
    return f" of section {str(name)!r}" if name else ""
