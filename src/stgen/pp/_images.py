"""Images that are read a window at a time: files, arrays, and the pictures in ``uns``.

An image answers two questions: how large it is, and what a window of it looks like as RGB, uint8. Only what
can be seen as such without guessing is accepted: transparent pixels become white, grey becomes RGB, floats
from 0 to 1 are scaled; 16-bit images and other floats are refused, because their white point is not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WHITE = 255
_TIFF = (".tif", ".tiff", ".btf")


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
        return PillowImage(path)
    if hasattr(image, "getbands"):  # an image of Pillow
        image = np.asarray(image)
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise TypeError(f"The {name} must be a path or an array; got {type(image).__name__}.")
    return ArrayImage(image, name)


class PillowImage:
    """A file that Pillow reads. It is decoded whole on the first window, as 8-bit pixels."""

    _READABLE = ("RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoded: Any = None
        with _open_without_size_limit(path) as header:
            if header.mode not in self._READABLE:
                raise ValueError(
                    f"The image {path.name!r} must have 8 bits per channel; its mode is {header.mode!r}. "
                    f"{_REMEDY}"
                )
            self.width, self.height = header.size

    def window(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a window, RGB."""
        if self._decoded is None:
            # `load` reads everything and closes the file
            self._decoded = _open_without_size_limit(self._path)
            self._decoded.load()
        pixels = self._decoded.crop((left, top, right, bottom))
        if pixels.mode in ("RGBA", "LA", "PA") or "transparency" in pixels.info:
            return _on_white(np.asarray(pixels.convert("RGBA")))
        return np.asarray(pixels.convert("RGB"))


class ArrayImage:
    """An array height × width × 3 or 4, which may live on disk."""

    def __init__(self, pixels: Any, name: str = "image") -> None:
        shape = tuple(pixels.shape)
        if len(shape) != 3 or shape[2] not in (3, 4):
            hint = " Move the channels to the end." if len(shape) == 3 and shape[0] in (3, 4) else ""
            raise ValueError(f"The {name} must be height × width × 3 (RGB); its shape is {shape}.{hint}")
        self._scale = 1
        if pixels.dtype.kind == "f":
            _check_floats(pixels, name)
            self._scale = WHITE
        elif pixels.dtype != np.uint8:
            raise ValueError(
                f"The {name} must have 8 bits per channel (uint8); its dtype is {pixels.dtype}. {_REMEDY}"
            )
        self._pixels = pixels
        self.height, self.width = shape[:2]

    def window(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Pixels of a window, RGB."""
        pixels = np.asarray(self._pixels[top:bottom, left:right])
        if self._scale != 1:
            pixels = np.rint(pixels * self._scale).astype(np.uint8)
        return _on_white(pixels) if pixels.shape[2] == 4 else pixels


_REMEDY = "Scale it so that white is 255, and convert it: `image = (image / white * 255).astype('uint8')`."


def _check_floats(pixels: Any, name: str) -> None:
    """Floats from 0 to 1 are how scanpy keeps pictures; any other range has no known white."""
    low, high = float(np.asarray(pixels.min())), float(np.asarray(pixels.max()))
    if low < 0 or high > 1 or np.isnan(low + high):
        raise ValueError(
            f"The {name} must be uint8, or floats from 0 to 1; it has floats from {low:g} to {high:g}. "
            f"{_REMEDY}"
        )


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transparent pixels over white glass."""
    opacity = rgba[..., 3:].astype(np.float32) / WHITE
    return np.rint(rgba[..., :3] * opacity + WHITE * (1 - opacity)).astype(np.uint8)


def _open_without_size_limit(path: Path) -> Any:
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
            axes = file.series[0].axes
        pixels: NDArray
        try:
            pixels = tifffile.memmap(path, mode="r")
        except ValueError:  # compressed
            pixels = tifffile.imread(path)
    except Exception:  # an unknown compression or dialect: let Pillow try, and complain if it must
        return None
    if axes.endswith("S") and pixels.ndim == 3:
        return pixels
    return np.moveaxis(pixels, 0, -1) if axes.startswith("S") and pixels.ndim == 3 else None
