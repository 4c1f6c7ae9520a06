"""What can be asked of the toy tissue: its parameters, its cell types and its random streams.

Every ingredient draws from a stream of its own, named here. Switching one ingredient off, or adding a
section, therefore leaves the draws of all others as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

UNITS = ("spots", "cells")
GRIDS = ("hexagonal", "square")
HISTOLOGY = ("features", "images", "both", "none")
STATES = ("crowding", "swelling", "chromatin", "fibre")
SENDER = "immune"

# The first number of each key: never renumber one, or tissues of a known seed change.
STREAMS = {
    "layers": 0,
    "patient": 1,
    "section": 2,
    "points": 3,
    "composition": 4,
    "programmes": 5,
    "genes": 6,
    "neighbour_genes": 7,
    "depth": 8,
    "batch": 9,
    "counts": 10,
    "neighbour_counts": 11,
    "stain": 12,
    "descriptors": 13,
    "image": 14,
    "reference": 15,
}


class CellType(NamedTuple):
    """How cells of one type look in H&E: density in cells per mm², radius in µm, the rest relative."""

    name: str
    density: float
    radius_um: float
    elongation: float
    darkness: float
    eosin: float
    fibre: float
    vacuole: float


_LOOKS = (
    CellType("tumour", 3400.0, 5.4, 1.25, 0.75, 0.34, 0.10, 0.0),
    CellType("stroma", 1300.0, 3.4, 3.0, 0.95, 0.42, 1.00, 0.0),
    CellType("epithelium", 4600.0, 3.9, 1.60, 1.05, 0.45, 0.05, 0.0),
    CellType("muscle", 1100.0, 3.6, 3.6, 0.80, 0.80, 0.45, 0.0),
    CellType("fat", 700.0, 2.8, 2.4, 0.90, 0.25, 0.05, 1.0),
    CellType("macrophage", 2300.0, 4.6, 1.45, 0.60, 0.58, 0.15, 0.0),
)
_SENDER_LOOK = CellType(SENDER, 7500.0, 2.8, 1.08, 1.40, 0.30, 0.05, 0.0)

TOY_TUNE_SEEDS = tuple(range(10))
"""Seeds for trying things out: choose widths, rates and defaults on these."""
TOY_JUDGE_SEEDS = tuple(range(1001, 1011))
"""Seeds for the reported numbers: look at these once, at the end."""
TOY_JUDGE: Mapping[str, Any] = MappingProxyType(
    {
        "n_layers": 5,
        "n_modules": 6,
        "module_share": 0.6,
        "morphology_share": 0.4,
        "nonlinearity": 0.6,
        "section_similarity": 0.5,
        "dispersion": 0.25,
        "depth_sd": 0.45,
        "batch_sd": 0.2,
        "stain_sd": 0.2,
        "histology_noise": 0.4,
    }
)
"""The changed parameter set that benchmarks judge on: ``toy_tissue(**TOY_JUDGE, random_state=1001)``.

Less morphology, more noise, more layers and fewer modules than the defaults, which are for tuning.
"""


@dataclass(frozen=True, kw_only=True)
class ToyParameters:
    """Checked parameters of one toy tissue; the texts and defaults are those of :func:`toy_tissue`."""

    n_sections: int
    n_patients: int
    spots_per_section: int
    n_genes: int
    unit: str
    grid: str
    pitch_um: float
    density_per_mm2: float
    n_layers: int
    n_cell_types: int
    n_modules: int
    module_share: float
    morphology_share: float
    nonlinearity: float
    neighbour_effect: float
    neighbour_share: float
    neighbour_radius_um: float | None
    smoothness_um: float | None
    section_similarity: float
    panel_total: float | None
    dispersion: float
    depth_sd: float
    batch_sd: float
    stain_sd: float
    histology: str
    n_histology_features: int
    histology_noise: float
    um_per_px: float
    random_state: int

    def __post_init__(self) -> None:
        for name, choices in (("unit", UNITS), ("grid", GRIDS), ("histology", HISTOLOGY)):
            _check_choice(name, getattr(self, name), choices)
        for name, low, high in _INTEGERS:
            _check_number(name, getattr(self, name), low, high, Integral)
        for name, low, high in _REALS:
            _check_number(name, getattr(self, name), low, high, Real)
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.n_patients > self.n_sections:
            raise ValueError(
                f"`n_patients` must be at most `n_sections`, as every patient has a section; got "
                f"{self.n_patients} patients and {self.n_sections} sections. Raise `n_sections`."
            )
        if self.module_share > 0 and self.n_modules > self.n_genes:
            raise ValueError(
                f"`n_modules` must be at most `n_genes`; got {self.n_modules} modules for "
                f"{self.n_genes} genes. Lower `n_modules` or set `module_share=0`."
            )

    @property
    def spacing_um(self) -> float:
        """Distance between neighbouring grid points."""
        if self.unit == "spots":
            return float(self.pitch_um)
        area_um2 = 1e6 / self.density_per_mm2
        return float(np.sqrt(area_um2 * 2 / np.sqrt(3)) if self.grid == "hexagonal" else np.sqrt(area_um2))

    @property
    def margin_um(self) -> float:
        """Glass around the outermost points."""
        return 1.6 * self.spacing_um

    @property
    def reach_um(self) -> float:
        """How far a sender reaches."""
        return self.neighbour_radius_um or self.spacing_um * (1.5 if self.unit == "spots" else 2.5)

    @property
    def length_um(self) -> float:
        """Length scale of the smooth fields."""
        return self.smoothness_um or self.spacing_um * (4.0 if self.unit == "spots" else 7.0)

    @property
    def total(self) -> float:
        """Expected counts of a point of depth 1."""
        return self.panel_total or (2000.0 if self.unit == "spots" else 600.0)

    @property
    def cell_types(self) -> tuple[CellType, ...]:
        """The types of this tissue; the sender is always the last."""
        return (*_LOOKS[: self.n_cell_types - 1], _SENDER_LOOK)

    @property
    def cell_type_names(self) -> list[str]:
        """Names of the types, in the order of the columns of every composition."""
        return [cell_type.name for cell_type in self.cell_types]

    @property
    def section_names(self) -> list[str]:
        """``s1``, ``s2``, …"""
        return [f"s{i + 1}" for i in range(self.n_sections)]

    @property
    def patient_of_section(self) -> np.ndarray:
        """Patient number of every section: consecutive sections belong to one patient."""
        return np.arange(self.n_sections) * self.n_patients // self.n_sections

    def looks(self, field: str) -> np.ndarray:
        """One column of the table of looks, types in order."""
        return np.array([getattr(cell_type, field) for cell_type in self.cell_types])

    def rng(self, stream: str, *index: int) -> np.random.Generator:
        """The generator of one ingredient (of one patient or section, for one purpose)."""
        return stream_rng(self.random_state, stream, *index)

    def to_uns(self) -> dict[str, Any]:
        """Plain numbers and strings, which every AnnData format can keep; defaults that depend, as they became."""
        resolved = {
            "neighbour_radius_um": self.reach_um,
            "smoothness_um": self.length_um,
            "panel_total": self.total,
        }
        return {name: _plain(value) for name, value in {**asdict(self), **resolved}.items()}


def stream_rng(random_state: int, stream: str, *index: int) -> np.random.Generator:
    """An independent generator for ``stream``; equal seeds give equal streams."""
    key = (STREAMS[stream], *index)
    return np.random.default_rng(np.random.SeedSequence(int(random_state), spawn_key=key))


_INTEGERS: tuple[tuple[str, float, float | None], ...] = (
    ("n_sections", 1, None),
    ("n_patients", 1, None),
    ("spots_per_section", 10, None),
    ("n_genes", 2, None),
    ("n_layers", 1, None),
    ("n_cell_types", 3, len(_LOOKS) + 1),
    ("n_modules", 1, None),
    ("n_histology_features", 1, None),
    ("random_state", 0, None),
)
_REALS: tuple[tuple[str, float, float | None], ...] = (
    ("module_share", 0, 1),
    ("morphology_share", 0, 1),
    ("nonlinearity", 0, 1),
    ("neighbour_effect", 0, None),
    ("neighbour_share", 0, 1),
    ("section_similarity", 0, 1),
    ("dispersion", 0, None),
    ("depth_sd", 0, None),
    ("batch_sd", 0, None),
    ("stain_sd", 0, None),
    ("histology_noise", 0, None),
)
_POSITIVE = (
    "pitch_um",
    "density_per_mm2",
    "neighbour_radius_um",
    "smoothness_um",
    "panel_total",
    "um_per_px",
)


def _plain(value: Any) -> str | int | float:
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, Integral) else float(value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def _check_number(name: str, value: Any, low: float, high: float | None, kind: type) -> None:
    """One message for wrong kinds and for wrong sizes, naming the allowed range."""
    wanted = "an integer" if kind is Integral else "a number"
    allowed = f"{wanted} of at least {low}" if high is None else f"{wanted} from {low} to {high}"
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be {allowed}; got {value!r} of type {type(value).__name__}.")
    number = float(value)  # type: ignore[arg-type]
    # NaN fails every comparison and lands here too
    if not (np.isfinite(number) and number >= low and (high is None or number <= high)):
        raise ValueError(f"`{name}` must be {allowed}; got {value!r}.")


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number above 0; got {value!r} of type {type(value).__name__}.")
    if not (np.isfinite(float(value)) and float(value) > 0):
        raise ValueError(f"`{name}` must be a finite number above 0; got {value!r}.")
