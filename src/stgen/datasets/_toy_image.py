"""What the H&E shows: images drawn nucleus by nucleus, and a fast stand-in for descriptors of them.

Both show the same thing, the morphology of :func:`morphology_of` seen through a section's stain, and nothing else:
hidden programmes and counts never reach a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

from ._toy_parameters import STATES, ToyParameters

_COARSE_UM = 12.0
_NUCLEI_PER_BATCH = 2000
_PATCH_VALUES = 2_000_000
_GLASS = 243.0
# optical density of haematoxylin and eosin in red, green, blue
_HAEMATOXYLIN = np.array([0.63, 0.69, 0.36])
_EOSIN = np.array([0.20, 0.88, 0.43])


@dataclass(frozen=True)
class Stain:
    """How one section was stained."""

    vectors: np.ndarray
    """Haematoxylin and eosin × red, green, blue."""
    strength: np.ndarray
    """Of haematoxylin and of eosin; 1 is usual."""


def stain_section(parameters: ToyParameters, section: int) -> Stain:
    """Colour is mostly the patient's (one laboratory, one day), strength also the section's."""
    patient = int(parameters.patient_of_section[section])
    shared, own = parameters.rng("stain", 0, patient), parameters.rng("stain", 1, section)
    spread = parameters.stain_sd
    tint = np.stack([_HAEMATOXYLIN, _EOSIN]) + 0.35 * spread * shared.standard_normal((2, 3))
    tint = tint.clip(0.02)
    strength = np.exp(spread * (0.7 * shared.standard_normal(2) + 0.7 * own.standard_normal(2)))
    return Stain(tint / np.linalg.norm(tint, axis=1, keepdims=True), strength)


def describe_morphology(
    parameters: ToyParameters, morphology: np.ndarray, section_of: np.ndarray, stains: list[Stain]
) -> np.ndarray:
    """Simulated descriptors: a bent, noisy mixture of morphology, shifted by each section's stain."""
    rng = parameters.rng("descriptors")
    n_seen, n_features = morphology.shape[1], parameters.n_histology_features
    spread = np.maximum(morphology.std(axis=0), 1e-12)
    seen = (morphology - morphology.mean(axis=0)) / spread
    n_bent = 64
    inner, shift = rng.standard_normal((n_seen, n_bent)) / np.sqrt(n_seen), rng.normal(0, 0.5, n_bent)
    outer = rng.standard_normal((n_bent, n_features)) / np.sqrt(n_bent)
    by_stain = rng.standard_normal((2, n_features))
    noise = parameters.histology_noise
    # an error made once per tile and shared by its features cannot be averaged away
    seen = seen + noise * rng.standard_normal(seen.shape)
    features = np.tanh(1.2 * seen @ inner + shift) @ outer
    stain = np.log([stain.strength for stain in stains])[section_of]
    features = features * (1 + 0.3 * stain.mean(axis=1, keepdims=True)) + 0.5 * stain @ by_stain
    features = features + 0.3 * noise * features.std(axis=0) * rng.standard_normal(features.shape)
    return features.astype(np.float32)


def draw_section(
    parameters: ToyParameters,
    section: int,
    xy: np.ndarray,
    composition: np.ndarray,
    states: np.ndarray,
    stain: Stain,
) -> np.ndarray:
    """An H&E-like image, height × width × 3, uint8; pixel (row, column) lies at y, x = (row, column) · µm per px."""
    rng = parameters.rng("image", section)
    size_um = xy.max(axis=0) + parameters.margin_um
    width, height = np.ceil(size_um / parameters.um_per_px).astype(int)
    tissue, eosin, fibre = _ground(parameters, xy, composition, states, (height, width))
    nuclei = _scatter_nuclei(parameters, xy, composition, states, rng)
    canvas = (height, width), parameters.um_per_px
    droplets = np.minimum(_draw_ellipses(*canvas, _droplets(parameters, nuclei, rng)), 1)
    blue = _draw_ellipses(*canvas, nuclei)
    pink = tissue * eosin * (1 + fibre * _collagen(tissue.shape, parameters.um_per_px, rng))
    pink = pink * (1 + 0.12 * _grain(tissue.shape, 4.0 / parameters.um_per_px, rng))
    # droplets wash out what lies in them, nuclei less than cytoplasm
    pink = np.maximum(pink, 0) * (1 - 0.92 * droplets)
    # nuclei that overlap get darker, but not without end; cytoplasm has a trace of blue
    blue = 1.3 * (1 - np.exp(-blue)) * (1 - 0.5 * droplets) + 0.05 * tissue * (1 - droplets)
    return _develop(blue, pink, stain, rng)


def _ground(
    parameters: ToyParameters,
    xy: np.ndarray,
    composition: np.ndarray,
    states: np.ndarray,
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel: tissue or glass (0 to 1), amount of eosin, strength of fibre texture."""
    step = max(min(_COARSE_UM, parameters.spacing_um / 4), parameters.um_per_px)
    rows, columns = (max(2, int(np.ceil(n * parameters.um_per_px / step)) + 1) for n in shape)
    grid_x, grid_y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
    n_near = min(4, len(xy))
    distance, near = cKDTree(xy).query(np.stack([grid_x, grid_y], axis=-1).reshape(-1, 2), k=n_near)
    weight = 1 / (distance + 0.15 * parameters.spacing_um) ** 2
    weight /= weight.sum(axis=1, keepdims=True)
    eosin = composition @ parameters.looks("eosin")
    fibre = 0.25 + composition @ parameters.looks("fibre")
    fibre = fibre * np.exp(0.6 * states[:, STATES.index("fibre")])
    spacing = parameters.spacing_um
    # smoothed, or the edge would be scalloped by the spots
    inside = (distance[:, 0] < 0.85 * spacing).astype(float).reshape(rows, columns)
    tissue = np.clip(4 * gaussian_filter(inside, 0.5 * spacing / step) - 1.5, 0, 1)
    coarse = (tissue, (weight * eosin[near]).sum(axis=1), (weight * fibre[near]).sum(axis=1))
    return tuple(  # type: ignore[return-value]
        _resample(values.reshape(rows, columns), step / parameters.um_per_px, shape) for values in coarse
    )


def _resample(coarse: np.ndarray, factor: float, shape: tuple[int, int]) -> np.ndarray:
    """A coarse map, linearly interpolated to pixels."""
    fine = zoom(coarse, factor, order=1, grid_mode=False, mode="nearest")
    padding = [(0, max(0, wanted - have)) for wanted, have in zip(shape, fine.shape)]
    return np.pad(fine, padding, mode="edge")[: shape[0], : shape[1]]


@dataclass(frozen=True)
class _Ellipses:
    """Nuclei (or droplets) of a section."""

    xy: np.ndarray
    radius_um: np.ndarray
    elongation: np.ndarray
    angle: np.ndarray
    darkness: np.ndarray
    vacuole: np.ndarray


def _scatter_nuclei(
    parameters: ToyParameters,
    xy: np.ndarray,
    composition: np.ndarray,
    states: np.ndarray,
    rng: np.random.Generator,
) -> _Ellipses:
    """Nuclei of a section: the cells themselves, or as many as the mixture of every spot asks for."""
    if parameters.unit == "cells":
        places, near = xy, np.arange(len(xy))
        kind = composition.argmax(axis=1)
    else:
        places, near = _crowd(parameters, xy, composition, states, rng)
        kind = _kinds(parameters, composition[near], rng)
    state = {name: states[near, i] for i, name in enumerate(STATES)}
    n = len(places)

    def vary(spread: float) -> np.ndarray:
        return np.exp(rng.normal(0, spread, n))

    return _Ellipses(
        places,
        parameters.looks("radius_um")[kind] * np.exp(0.2 * state["swelling"]) * vary(0.10),
        1 + (parameters.looks("elongation")[kind] - 1) * vary(0.2),
        _orientations(places, parameters.length_um, rng),
        parameters.looks("darkness")[kind] * np.exp(0.22 * state["chromatin"]) * vary(0.12),
        parameters.looks("vacuole")[kind] > 0,
    )


def _crowd(
    parameters: ToyParameters,
    xy: np.ndarray,
    composition: np.ndarray,
    states: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Places of nuclei and the spot each belongs to: a Poisson process thinned to the local density."""
    density = nuclear_density(parameters, composition, states)
    low, high = xy.min(axis=0) - parameters.spacing_um, xy.max(axis=0) + parameters.spacing_um
    n_candidates = rng.poisson(density.max() * np.prod(high - low) / 1e6)
    places = rng.uniform(low, high, (n_candidates, 2))
    tree = cKDTree(xy)
    distance, _ = tree.query(places)
    # a nucleus may belong to the spot next door, so that spots do not show as tiles
    _, near = tree.query(places + rng.normal(0, 0.15 * parameters.spacing_um, places.shape))
    kept = (rng.random(n_candidates) < density[near] / density.max()) & (
        distance < 0.7 * parameters.spacing_um
    )
    return places[kept], near[kept]


def nuclear_density(parameters: ToyParameters, composition: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Nuclei per mm² at every spot."""
    return (composition @ parameters.looks("density")) * np.exp(0.3 * states[:, STATES.index("crowding")])


def _kinds(parameters: ToyParameters, composition: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The type of every nucleus: dense types have more nuclei than their share of the tissue."""
    weight = np.cumsum(composition * parameters.looks("density"), axis=1)
    threshold = rng.random(len(weight)) * weight[:, -1]
    return (threshold[:, None] > weight).sum(axis=1).clip(max=weight.shape[1] - 1)


def _orientations(places: np.ndarray, length_um: float, rng: np.random.Generator) -> np.ndarray:
    """Angles that turn slowly through the tissue, with some disorder."""
    frequency = rng.standard_normal((2, 8)) / length_um
    slow = np.cos(places @ frequency + rng.uniform(0, 2 * np.pi, 8)).sum(axis=1) / 2
    return np.pi / 2 * slow + rng.normal(0, 0.35, len(places))


def _droplets(parameters: ToyParameters, nuclei: _Ellipses, rng: np.random.Generator) -> _Ellipses:
    """Fat droplets, each with its nucleus at the rim."""
    fat = nuclei.vacuole
    n = int(fat.sum())
    # cells of a dense section have no room for full-sized droplets
    radius = np.minimum(rng.uniform(13, 20, n), 0.45 * parameters.spacing_um)
    direction = rng.uniform(0, 2 * np.pi, n)
    aside = radius[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    elongation, angle = rng.uniform(1.0, 1.3, n), rng.uniform(0, np.pi, n)
    return _Ellipses(nuclei.xy[fat] + aside, radius, elongation, angle, np.full(n, 1.5), np.full(n, True))


def _draw_ellipses(shape: tuple[int, int], um_per_px: float, ellipses: _Ellipses) -> np.ndarray:
    """Sum of soft-edged ellipses of equal area πr²; batched so that memory stays small at fine pixels."""
    xy, angle, darkness = ellipses.xy, ellipses.angle, ellipses.darkness
    canvas = np.zeros(shape)
    if len(xy) == 0:
        return canvas
    centre = xy / um_per_px
    stretch, radius_px = np.sqrt(ellipses.elongation), ellipses.radius_um / um_per_px
    major, minor = radius_px * stretch, radius_px / stretch
    reach = int(np.ceil(1.3 * major.max())) + 1
    offset_y, offset_x = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, 1, -1)
    # edges about 1 µm soft, never sharper than a pixel
    softness = np.maximum(minor, 1.0)
    batch = max(1, min(_NUCLEI_PER_BATCH, _PATCH_VALUES // offset_x.size))
    for start in range(0, len(xy), batch):
        part = slice(start, start + batch)
        pixel = np.round(centre[part]).astype(int)
        column, row = pixel[:, :1] + offset_x, pixel[:, 1:] + offset_y
        dx, dy = column - centre[part, :1], row - centre[part, 1:]
        cos, sin = np.cos(angle[part])[:, None], np.sin(angle[part])[:, None]
        along, across = (dx * cos + dy * sin) / major[part, None], (dy * cos - dx * sin) / minor[part, None]
        inside = np.clip((1 - np.hypot(along, across)) * softness[part, None] + 0.5, 0, 1)
        ink = inside * darkness[part, None]
        drawn = (ink > 0) & (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        flat = np.bincount(row[drawn] * shape[1] + column[drawn], weights=ink[drawn], minlength=canvas.size)
        canvas += flat.reshape(shape)
    return canvas


def _collagen(shape: tuple[int, int], um_per_px: float, rng: np.random.Generator) -> np.ndarray:
    """Wavy fibres, about 12 and 20 µm apart, that come and go; between about −0.5 and 0.5."""
    y, x = np.mgrid[: shape[0], : shape[1]] * um_per_px
    angle = rng.uniform(0, np.pi)
    bend = 45.0 * _grain(shape, 90.0 / um_per_px, rng) + 7.0 * _grain(shape, 15.0 / um_per_px, rng)
    across = x * np.cos(angle) + y * np.sin(angle) + bend
    fine, coarse = (np.sin(2 * np.pi * across / max(period, 4 * um_per_px)) for period in (11.7, 20.3))
    strength = np.clip(0.6 + 0.4 * _grain(shape, 25.0 / um_per_px, rng), 0, 1.2)
    return 0.25 * strength * (fine + coarse)


def _grain(shape: tuple[int, int], sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Smoothed white noise of unit variance; coarse grain is made small and enlarged."""
    shrink = max(1, int(sigma_px // 3))
    small = tuple(n // shrink + 2 for n in shape)
    grain = gaussian_filter(rng.standard_normal(small), max(sigma_px / shrink, 0.3), mode="wrap")
    grain /= max(grain.std(), 1e-12)
    return _resample(grain, float(shrink), shape) if shrink > 1 else grain[: shape[0], : shape[1]]


def _develop(blue: np.ndarray, pink: np.ndarray, stain: Stain, rng: np.random.Generator) -> np.ndarray:
    """Optical densities to 8-bit colours by the Beer–Lambert law."""
    image = np.empty((*blue.shape, 3), dtype=np.uint8)
    haematoxylin, eosin = blue * stain.strength[0], pink * stain.strength[1]
    noise = rng.normal(0, 2.0, blue.shape)
    for channel in range(3):
        density = haematoxylin * stain.vectors[0, channel] + eosin * stain.vectors[1, channel]
        image[..., channel] = np.clip(_GLASS * np.exp(-density) + noise, 0, 255).round()
    return image
