"""Where things are: points, layers, cell types and smooth fields of the toy tissue, all in µm.

Sections of one patient are sisters: their fields are a mixture of fields shared by the patient and fields of
their own (``section_similarity``). Coordinates alone therefore say much about a sister section and little about
another patient, as in real tissue, where that is the commonest leak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from ._toy_parameters import STATES, ToyParameters

_N_WAVES = 48
_IMMUNE_FRACTION = 0.1


@dataclass(frozen=True)
class Layout:
    """One section: points × things."""

    xy: np.ndarray
    """µm, smallest x and y one margin from 0 in every section."""
    layer: np.ndarray
    """Layer number of every point."""
    composition: np.ndarray
    """Share of every cell type; one type alone where a point is a cell."""
    states: np.ndarray
    """Looks that composition does not set, in the order of ``STATES``."""
    fields: np.ndarray
    """Smooth fields that the H&E does not show."""


def lay_out_section(parameters: ToyParameters, section: int, n_hidden: int) -> Layout:
    """Points, layers, cell types and fields of one section."""
    patient = int(parameters.patient_of_section[section])
    xy = _points(parameters, patient, section)
    n_types = parameters.n_cell_types
    fields = _smooth_fields(parameters, patient, section, xy, 1 + (n_types - 1) + len(STATES) + n_hidden)
    warp, type_fields, states, hidden = np.split(fields, [1, n_types, n_types + len(STATES)], axis=1)
    rng = parameters.rng("composition", section)
    depth = _depth_in_tissue(parameters, patient, section, xy) + 0.07 * warp[:, 0]
    edges = _layer_edges(parameters, patient)
    composition = _composition(parameters, depth, edges, type_fields, rng)
    # a little roughness: a real spot is not the mean of its surroundings
    states = 0.95 * states + np.sqrt(1 - 0.95**2) * rng.standard_normal(states.shape)
    return Layout(xy, np.searchsorted(edges, depth), composition, states, hidden)


def _points(parameters: ToyParameters, patient: int, section: int) -> np.ndarray:
    """Exactly the wanted number of grid points, inside a wobbly outline."""
    n, spacing = parameters.spots_per_section, parameters.spacing_um
    reach = int(np.ceil(np.sqrt(n))) + 2
    column, row = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    if parameters.grid == "hexagonal":
        grid = np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], axis=-1).reshape(-1, 2)
    else:
        grid = np.stack([column, row], axis=-1).reshape(-1, 2).astype(float)
    outline = parameters.rng("patient", patient, 0).uniform(0, 2 * np.pi, 2)
    angle = np.arctan2(grid[:, 1], grid[:, 0])
    wobble = 1 + 0.10 * np.cos(2 * angle + outline[0]) + 0.06 * np.cos(3 * angle + outline[1])
    inside = np.argsort(np.hypot(grid[:, 0], grid[:, 1]) * wobble, kind="stable")[:n]
    xy = grid[np.sort(inside)] * spacing
    if parameters.unit == "cells":
        xy = xy + parameters.rng("points", section).normal(0, 0.2 * spacing, xy.shape)
    # every section starts at the same place, so that its origin tells nothing
    return xy - xy.min(axis=0) + parameters.margin_um


def _smooth_fields(
    parameters: ToyParameters, patient: int, section: int, xy: np.ndarray, n_fields: int
) -> np.ndarray:
    """Fields of unit variance: part the patient's, part the section's own."""
    shared = _waves(parameters.rng("patient", patient, 1), xy, n_fields, parameters.length_um)
    own = _waves(parameters.rng("section", section, 0), xy, n_fields, parameters.length_um)
    share = parameters.section_similarity
    return np.sqrt(share) * shared + np.sqrt(1 - share) * own


def _waves(rng: np.random.Generator, xy: np.ndarray, n_fields: int, length_um: float) -> np.ndarray:
    """Random Fourier features: a Gaussian field with a squared-exponential kernel of this length."""
    fields = np.empty((len(xy), n_fields))
    for field in range(n_fields):
        frequency = rng.standard_normal((2, _N_WAVES)) / length_um
        phase = rng.uniform(0, 2 * np.pi, _N_WAVES)
        fields[:, field] = np.cos(xy @ frequency + phase).sum(axis=1) * np.sqrt(2 / _N_WAVES)
    return fields


def _depth_in_tissue(parameters: ToyParameters, patient: int, section: int, xy: np.ndarray) -> np.ndarray:
    """0 at one edge of the tissue, 1 at the opposite one; the direction is the patient's."""
    angle = parameters.rng("patient", patient, 2).uniform(0, 2 * np.pi)
    angle += parameters.rng("section", section, 1).normal(0, 0.1)
    along = xy @ np.array([np.cos(angle), np.sin(angle)])
    return (along - along.min()) / np.ptp(along)


def _layer_edges(parameters: ToyParameters, patient: int) -> np.ndarray:
    """Depths where one layer ends and the next begins."""
    widths = parameters.rng("patient", patient, 3).dirichlet(np.full(parameters.n_layers, 25.0))
    return np.cumsum(widths)[:-1]


def _composition(
    parameters: ToyParameters,
    depth: np.ndarray,
    edges: np.ndarray,
    type_fields: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Share of every cell type: set by the layer, bent by smooth fields; senders are scattered evenly.

    Senders keep no company: whether a point has them says nothing about the points around it. Otherwise
    their neighbours would differ even with the neighbour effect switched off.
    """
    n_layers, n_types = parameters.n_layers, parameters.n_cell_types
    preference = parameters.rng("layers").normal(0, 0.5, (n_layers, n_types - 1))
    preference[np.arange(n_layers), np.arange(n_layers) % (n_types - 1)] += 2.2
    of_layer = _softmax(preference)
    # the overlap of two layers is about 3 % of the tissue wide
    below = expit((depth[:, None] - np.r_[-np.inf, edges]) / 0.015)
    above = expit((depth[:, None] - np.r_[edges, np.inf]) / 0.015)
    mixed = np.log(np.maximum(below - above, 1e-9) @ of_layer)
    mixed = mixed + 0.6 * type_fields + 0.25 * rng.standard_normal(type_fields.shape)
    resident = _softmax(mixed)
    if parameters.unit == "cells":
        return _draw_types(resident, rng)
    sender = rng.beta(4 * _IMMUNE_FRACTION, 4 * (1 - _IMMUNE_FRACTION), len(depth))
    return np.column_stack([resident * (1 - sender)[:, None], sender])


def _draw_types(resident: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One type per cell, as a row with a single 1."""
    n_cells, n_resident = resident.shape
    passed = rng.random((n_cells, 1)) > np.cumsum(resident, axis=1)
    drawn = np.minimum(passed.sum(axis=1), n_resident - 1)
    drawn[rng.random(n_cells) < _IMMUNE_FRACTION] = n_resident
    return np.eye(n_resident + 1)[drawn]


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)
