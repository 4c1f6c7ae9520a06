"""What a pathologist sees at low effort, as 108 numbers per tile: colour, texture and nuclear density.

No weights, no download. Colour is described in RGB and in stain space (haematoxylin, eosin, residual by
colour deconvolution, Ruifrok & Johnston 2001), texture by uniform local binary patterns (Ojala et al. 2002),
nuclei by an Otsu threshold and by counting peaks of haematoxylin. Everything is measured on two crops of the
tile, so that what lies right under the spot can be told from what lies around it.

Colour and nuclei are read at about 1 µm per pixel: finer pixels carry JPEG noise rather than morphology.

B tiles, H × W pixels, h × w pixels after averaging to about 1 µm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CROPS = {"tile": 0.0, "centre": 0.125}
"""Crop name → share of the tile cut away on each side."""
PERCENTILES = (5, 50, 95)
CHANNELS = ("red", "green", "blue", "haematoxylin", "eosin", "residual")
NUCLEI = ("nuclear_area", "nuclear_density", "haematoxylin_inside", "haematoxylin_outside")

# Directions of haematoxylin, eosin and residual in optical density, Ruifrok & Johnston 2001.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).astype(np.float32)
_DENSITY = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)
_GREY = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)
# Otsu always finds two classes; below this optical density the darker one is background, not nuclei.
_FAINTEST_NUCLEUS = 0.15
_NUCLEUS_UM = 7.0
_SMALLEST_TILE = 16
_N_PATTERNS = 10


def descriptor_names() -> list[str]:
    """Names of the 108 descriptors, in the order of :func:`describe_tiles`."""
    statistics = ("mean", "sd", *(f"p{q}" for q in PERCENTILES))
    one_crop = [f"{channel}_{s}" for channel in CHANNELS for s in statistics]
    one_crop += [f"texture_{where}_{i}" for where in ("grey", "haematoxylin") for i in range(_N_PATTERNS)]
    one_crop += list(NUCLEI)
    return [f"{crop}_{name}" for crop in CROPS for name in one_crop]


def describe_tiles(tiles: NDArray[np.uint8], *, um_per_px: float) -> NDArray[np.float32]:
    """Describe tiles (B, H, W, 3) by 108 numbers each; see :func:`descriptor_names`."""
    factor = max(1, round(1.0 / um_per_px))
    if min(tiles.shape[1:3]) // factor < _SMALLEST_TILE:
        raise ValueError(
            f"Descriptors need tiles of at least {_SMALLEST_TILE * factor} pixels a side at {um_per_px:g} µm "
            f"per pixel; got {tiles.shape[1]} × {tiles.shape[2]}. Use a larger `tile_um` or `tile_px`."
        )
    grey = (tiles @ _GREY).astype(np.uint8)
    coarse = _average(tiles, factor)
    stains = _DENSITY[coarse] @ _UNMIX
    channels = np.concatenate(
        [np.moveaxis(coarse, 3, 1) / np.float32(255), np.moveaxis(stains, 3, 1)], axis=1
    )
    # eight bits for optical densities from -0.24 to 1.26: paler than the reference white to a dark nucleus
    haematoxylin = np.clip(stains[..., 0] * 170 + 40, 0, 255).astype(np.uint8)
    nuclei = _find_nuclei(stains[..., 0], um_per_px * factor)

    parts = []
    for share in CROPS.values():
        parts += [_colour(_crop(channels, share))]
        parts += [_patterns(_crop(grey, share), radius=1), _patterns(_crop(haematoxylin, share), radius=2)]
        parts += [_nuclear_density(*(_crop(x, share) for x in nuclei), pixel_um=um_per_px * factor)]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _crop(images: NDArray, share: float) -> NDArray:
    """Cut the same share from each side of the last two axes."""
    y, x = (round(n * share) for n in images.shape[-2:])
    return images[..., y : images.shape[-2] - y, x : images.shape[-1] - x]


def _average(tiles: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean of factor × factor pixels; pixels that do not fill a last block are left out."""
    if factor == 1:
        return tiles
    h, w = (n // factor for n in tiles.shape[1:3])
    total = np.zeros((len(tiles), h, w, 3), dtype=np.uint32)
    for dy in range(factor):
        for dx in range(factor):
            total += tiles[:, dy : h * factor : factor, dx : w * factor : factor]
    return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


def _colour(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean, spread and percentiles of each channel: (B, C, h, w) → (B, C · 5)."""
    # a contiguous copy is sorted faster, and numpy sums it pairwise, without which float32 loses digits
    pixels = np.array(channels.reshape(*channels.shape[:2], -1), order="C")
    pixels.sort(axis=2)
    ranks = [round(q / 100 * (pixels.shape[2] - 1)) for q in PERCENTILES]
    moments = np.stack([pixels.mean(axis=2), pixels.std(axis=2)], axis=2)
    return np.concatenate([moments, pixels[:, :, ranks]], axis=2).reshape(len(channels), -1)


def _uniform_patterns() -> NDArray[np.float32]:
    """Map of the 256 neighbour codes to ten patterns: number of ones if contiguous, else the rest."""
    mapping = np.zeros((256, _N_PATTERNS), dtype=np.float32)
    for code in range(256):
        bits = [(code >> i) & 1 for i in range(8)]
        changes = sum(bits[i] != bits[i - 1] for i in range(8))
        mapping[code, sum(bits) if changes <= 2 else _N_PATTERNS - 1] = 1
    return mapping


_PATTERN_OF_CODE = _uniform_patterns()


def _patterns(images: NDArray[np.uint8], *, radius: int) -> NDArray[np.float32]:
    """Share of each uniform binary pattern among the inner pixels: (B, h, w) → (B, 10)."""
    n, h, w = images.shape
    centre = images[:, radius : h - radius, radius : w - radius]
    codes = np.zeros(centre.shape, dtype=np.uint8)
    for bit in range(8):
        angle = 2 * np.pi * bit / 8
        y, x = radius + round(-radius * np.sin(angle)), radius + round(radius * np.cos(angle))
        codes |= (images[:, y : h - 2 * radius + y, x : w - 2 * radius + x] >= centre).view(np.uint8) << bit
    counts = _histograms(codes.reshape(n, -1), 256)
    return (counts @ _PATTERN_OF_CODE) / codes[0].size


def _histograms(values: NDArray, n_bins: int) -> NDArray[np.float32]:
    """Histogram of each row of integers below ``n_bins``."""
    offset = np.arange(len(values), dtype=np.int64)[:, None] * n_bins
    counts = np.bincount((values + offset).ravel(), minlength=len(values) * n_bins)
    return counts.reshape(len(values), n_bins).astype(np.float32)


def _find_nuclei(haematoxylin: NDArray[np.float32], pixel_um: float) -> tuple[NDArray, NDArray, NDArray]:
    """Smoothed haematoxylin, pixels in nuclei, and one peak per nucleus."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    smooth = gaussian_filter(haematoxylin, (0, 1 / pixel_um, 1 / pixel_um))
    blurred = gaussian_filter(haematoxylin, (0, 2 / pixel_um, 2 / pixel_um))
    inside = smooth > np.maximum(_otsu(smooth), _FAINTEST_NUCLEUS)[:, None, None]
    window = 2 * round(_NUCLEUS_UM / pixel_um / 2) + 1
    # touching nuclei merge into one region but keep their peaks, so peaks count them better than regions do
    peaks = inside & (maximum_filter(blurred, (1, window, window)) == blurred)
    return smooth, inside, peaks


def _otsu(images: NDArray[np.float32], n_bins: int = 256) -> NDArray[np.float32]:
    """Threshold of each image that splits it into the two most different classes (Otsu 1979)."""
    values = images.reshape(len(images), -1)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    width = np.maximum(high - low, 1e-6) / n_bins
    counts = _histograms(np.minimum((values - low) / width, n_bins - 1).astype(np.int64), n_bins).astype(
        float
    )
    below = counts.cumsum(axis=1)
    sums = (counts * np.arange(n_bins)).cumsum(axis=1)
    total, above = below[:, -1:], below[:, -1:] - below
    between = (sums[:, -1:] * below / total - sums) ** 2 / np.maximum(below * above, 1)
    return (low + (between.argmax(axis=1)[:, None] + 1) * width)[:, 0]


def _nuclear_density(
    haematoxylin: NDArray[np.float32], inside: NDArray[np.bool_], peaks: NDArray[np.bool_], *, pixel_um: float
) -> NDArray[np.float32]:
    """Area share, nuclei per 100 × 100 µm, mean haematoxylin inside and outside of nuclei: (B, 4)."""
    n_pixels = inside[0].size
    n_inside = inside.sum(axis=(1, 2))
    stain_inside = np.einsum("bhw,bhw->b", haematoxylin, inside)
    stain_outside = haematoxylin.sum(axis=(1, 2)) - stain_inside
    density = peaks.sum(axis=(1, 2)) / (n_pixels * pixel_um**2 / 1e4)
    # without nuclei (or nothing but nuclei) the missing side is 0, not NaN: a blank tile is an ordinary tile
    return np.stack(
        [
            n_inside / n_pixels,
            density,
            stain_inside / np.maximum(n_inside, 1),
            stain_outside / np.maximum(n_pixels - n_inside, 1),
        ],
        axis=1,
    )
