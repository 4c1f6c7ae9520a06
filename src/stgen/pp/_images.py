"""Images that are read a window at a time: files, arrays, and the pictures in ``uns``.

An image answers two questions: how large it is, and what a window of it looks like as RGB, uint8. Only what
can be seen as such without guessing is accepted: transparent pixels become white, grey becomes RGB, floats
from 0 to 1 are scaled; 16-bit images and other floats are refused, because their white point is not known,
stacks of grey pages, because they may be anything, and pictures that say they are to be turned, because nobody
knows whether coordinates count pixels before or after that (Pillow turns a TIFF and not a JPEG, OpenCV both).

A fourth channel is opacity where the file says so; what a TIFF calls unspecified is left out. An array says
nothing, and is taken as what an RGBA picture becomes when it is read, with a warning.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stgen._warn import number, warn

WHITE = 255
_NOT_YET_RGB, _YCBCR = (3, 5, 8, 9, 10), 6
"""What a TIFF says of its colours: palette, inks, L*a*b*; compressed YCbCr is decoded to RGB."""
_TIFF = (".tif", ".tiff", ".btf")
_GREY, _UNSPECIFIED, _PREMULTIPLIED = (0, 1), 0, 1
_ORIENTATION = 0x0112
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error, zlib.error)
"""What readers raise of files that are truncated or damaged."""


class SourceImage(Protocol):
    """An image with a size, and windows of it."""

    height: int
    width: int

    def window(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a window inside the image, height × width × 3."""
        ...


def open_image(image: Any, name: str = "image") -> SourceImage:
    """An image from a path (jpg, png, tif) or an array height × width × 3 (numpy, zarr, dask)."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"The {name} {str(path)!r} does not exist or is not a file.")
        if path.suffix.lower() in _TIFF:
            pixels = _map_tiff(path)
            if pixels is not None:
                return ArrayImage(pixels, f"{name} {path.name!r}")
        return PillowImage(path, f"{name} {path.name!r}")
    if hasattr(image, "getbands"):  # an image of Pillow
        return PillowImage(image, name)
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise TypeError(f"The {name} must be a path or an array; got {type(image).__name__}.")
    opened = ArrayImage(image, name)
    if image.shape[2] == 4:
        warn(
            f"The {name} is an array of four channels. The fourth is taken as opacity, and transparent pixels become white. "
            "If it is something else, leave it out: `image[..., :3]`."
        )
    return opened


class PillowImage:
    """An image of Pillow's, or a file that Pillow reads. It is decoded whole on the first window, as 8-bit pixels."""

    def __init__(self, source: Any, name: str = "image") -> None:
        self._source, self._name = source, name
        self._decoded: Any = None
        if isinstance(source, Path):
            with _open_without_size_limit(source, name) as header:
                check_readable(header, name)
                self.width, self.height = header.size
        else:
            check_readable(source, name)
            self.width, self.height = source.size

    def window(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a window, RGB."""
        if self._decoded is None:
            is_file = isinstance(self._source, Path)
            decoded = _open_without_size_limit(self._source, self._name) if is_file else self._source
            try:
                decoded.load()  # reads everything and closes the file
            except DAMAGE as error:
                raise damaged(self._name, error) from error
            check_upright(decoded, self._name)  # a PNG may say it at its end
            self._decoded = decoded
        return as_rgb(self._decoded.crop((left, top, right, bottom)))


_READABLE = ("RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1")


def check_readable(image: Any, name: str) -> None:
    """Raise unless an image of Pillow's, decoded or not, becomes RGB without guessing."""
    # Pillow cuts 16-bit colours down to their upper half without a word, which leaves 12-bit cameras nearly black
    raw = [str(tile[3]) for tile in getattr(image, "tile", []) if len(tile) > 3]
    is_deep = any(";16" in one for one in raw)
    if image.mode not in _READABLE or is_deep:
        found = "it has 16" if image.mode in _READABLE else f"its mode is {image.mode!r}"
        raise ValueError(f"The {name} must have 8 bits per channel; {found}. {_REMEDY}")
    check_upright(image, name)
    if image.mode in ("L", "1") and _next_page_has_its_size(image):
        raise ValueError(_pages_message(name, f"{image.n_frames} grey pages of one size"))


def check_upright(image: Any, name: str) -> None:
    """Raise if an image of Pillow's says that it is to be turned or mirrored."""
    from PIL import Image

    try:
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)  # a PNG's own would decode it whole
    except DAMAGE:  # metadata that nobody can read turn nothing
        return
    _check_orientation(orientation, name, stored="np.asarray(Image.open(path))")


def _check_orientation(orientation: Any, name: str, *, stored: str) -> None:
    if orientation in range(2, 9):
        raise ValueError(
            f"The {name} says that it is stored turned or mirrored (orientation {orientation}), and coordinates may count "
            f"pixels as stored or as shown. If they count them as stored, give `{stored}`; if as shown, "
            "`np.asarray(ImageOps.exif_transpose(Image.open(path)))`."
        )


def damaged(name: str, error: Any) -> ValueError:
    """What a reader says of a file, with the name of the file."""
    return ValueError(
        f"The {name} cannot be read: {error}. It is truncated or damaged; copy or export it again."
    )


def as_rgb(image: Any) -> NDArray[np.uint8]:
    """Pixels of an image of Pillow's, transparent ones over white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _next_page_has_its_size(image: Any) -> bool:
    """Channels or planes as pages; the levels of a pyramid differ in size."""
    if getattr(image, "n_frames", 1) == 1:
        return False
    size = image.size
    image.seek(1)
    is_same = image.size == size
    image.seek(0)
    return bool(is_same)


def _pages_message(name: str, found: str) -> str:
    return (
        f"The {name} must be one RGB image; it holds {found}. Save the one that you want, or if they "
        "are red, green and blue give an array: `np.moveaxis(tifffile.imread(path), 0, -1)`."
    )


class ArrayImage:
    """An array height × width × 3 or 4, which may live on disk."""

    def __init__(self, pixels: Any, name: str = "image") -> None:
        shape = tuple(pixels.shape)
        if len(shape) != 3 or shape[2] not in (3, 4):
            raise ValueError(
                f"The {name} must be height × width × 3 (RGB); its shape is {shape}.{_shape_hint(shape)}"
            )
        self._scale = 1
        if pixels.dtype.kind == "f":
            _check_floats(pixels, name)
            self._scale = WHITE
        elif pixels.dtype != np.uint8:
            raise ValueError(
                f"The {name} must have 8 bits per channel (uint8); its dtype is {pixels.dtype}. {_REMEDY}"
            )
        self._pixels, self._name = pixels, name
        self.height, self.width = shape[:2]

    def window(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a window, RGB."""
        try:
            pixels = np.asarray(self._pixels[top:bottom, left:right])
        except DAMAGE as error:
            raise damaged(self._name, error) from error
        if self._scale != 1:
            pixels = np.rint(pixels * self._scale).astype(np.uint8)
        return _on_white(pixels) if pixels.shape[2] == 4 else pixels


_REMEDY = "Scale it so that white is 255, and convert it: `image = (image / white * 255).astype('uint8')`."


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (3, 4):
        return " Move the channels to the end: `np.moveaxis(image, 0, -1)`."
    if len(shape) == 2:
        return " If it is grey, repeat it: `np.stack([image] * 3, axis=-1)`."
    return " If it is grey, repeat it: `np.repeat(image, 3, axis=2)`." if shape[2:] == (1,) else ""


def _check_floats(pixels: Any, name: str) -> None:
    """Floats from 0 to 1 are how scanpy keeps pictures; any other range has no known white."""
    # a strip at a time: it may live on disk, and arrays there have no `min`
    strips = (np.asarray(pixels[top : top + 1024]) for top in range(0, pixels.shape[0], 1024))
    ends = np.array([(strip.min(), strip.max()) for strip in strips], dtype=np.float64)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if low < 0 or high > 1 or np.isnan(low + high):
        raise ValueError(
            f"The {name} must be uint8, or floats from 0 to 1; it has floats from {number(low, 0)} to {number(high, 1)}. "
            f"{_REMEDY}"
        )


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transparent pixels over white glass."""
    opacity = rgba[..., 3:].astype(np.float32) / WHITE
    return np.rint(rgba[..., :3] * opacity + WHITE * (1 - opacity)).astype(np.uint8)


def _open_without_size_limit(path: Path, name: str) -> Any:
    """Open with Pillow, without its limit: that guards servers, and a slide of 100 megapixels is usual here."""
    from PIL import Image, UnidentifiedImageError

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path.name!r} cannot be read as an image (jpg, png or tif). Whole-slide formats need to be "
            "exported first."
        ) from error
    except DAMAGE as error:
        raise damaged(name, error) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _map_tiff(path: Path) -> Any:
    """The pixels of a TIFF, memory-mapped unless it is compressed; ``None`` leaves it to Pillow."""
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            axes, shape = file.series[0].axes, file.series[0].shape
            page = file.pages.first
            colours, is_compressed = int(page.photometric), int(page.compression) != 1
            extra = tuple(int(one) for one in page.extrasamples)
            orientation = page.tags.valueof(_ORIENTATION)
            end = max(map(sum, zip(page.dataoffsets, page.databytecounts)), default=0)
    except Exception:  # an unknown dialect: let Pillow try, and complain if it must
        return None
    if end > (size := path.stat().st_size):
        raise damaged(f"image {path.name!r}", f"it ends after {size:,} bytes, its pixels after {end:,}")
    _check_orientation(orientation, f"image {path.name!r}", stored="tifffile.imread(path)")
    if colours in _GREY and len(extra) > 2:
        raise ValueError(_pages_message(f"image {path.name!r}", f"{len(extra) + 1} grey channels"))
    if len(shape) > 3 or (len(shape) == 3 and "S" not in axes):
        kind = "images" if "S" in axes else "grey pages"
        found = f"{shape[0]} {kind} of one size (axes {axes}, shape {shape})"
        raise ValueError(_pages_message(f"image {path.name!r}", found))
    if colours in _NOT_YET_RGB or (colours == _YCBCR and not is_compressed) or "S" not in axes:
        return None  # Pillow knows how inks and bare luminance become colours
    if extra == (_PREMULTIPLIED,):
        return None  # and how colours that were multiplied by opacity come back
    try:
        pixels: NDArray
        try:
            pixels = tifffile.memmap(path, mode="r")
        except ValueError:  # compressed
            pixels = tifffile.imread(path)
    except Exception:  # an unknown compression or dialect: let Pillow try, and complain if it must
        return None
    if pixels.ndim != 3 or "S" not in (axes[0], axes[-1]):
        return None
    pixels = pixels if axes.endswith("S") else np.moveaxis(pixels, 0, -1)
    return pixels[..., :3] if pixels.shape[2] == 4 and extra in ((), (_UNSPECIFIED,)) else pixels
