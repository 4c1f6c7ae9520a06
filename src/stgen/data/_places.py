"""Whether coordinates can be what models take them for: µm, one section at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from stgen import _keys


def spot_pitch(xy: np.ndarray, section: np.ndarray | None = None) -> float:
    """Median distance to the nearest spot of the same section; NaN if no section has two spots."""
    section = np.zeros(len(xy), dtype=np.int64) if section is None else section
    distances = []
    for code in np.unique(section):
        here = xy[section == code]
        if len(here) > 1:
            # a few thousand spots are enough for a median
            asked = here[:: max(1, len(here) // 2000)]
            distances.append(cKDTree(here).query(asked, k=2)[0][:, 1])
    return float(np.median(np.concatenate(distances))) if distances else float("nan")


def check_scale(
    xy: np.ndarray,
    section: np.ndarray | None,
    uns: Any,
    key: str = _keys.SPATIAL,
    *,
    rows_are: str = "spots",
) -> None:
    """Raise if coordinates are plainly not µm, by their pitch or by a scale in ``uns`` that nobody used."""
    remedy = "Convert with `stg.pp.coordinates_in_um`."
    um_per_unit = uns.get(_keys.UM_PER_UNIT)
    converted = _converted(uns, key)
    if um_per_unit is not None and float(um_per_unit) != 1.0 and not converted:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; uns[{_keys.UM_PER_UNIT!r}] says one unit is "
            f"{float(um_per_unit):g} µm, and no conversion is recorded in uns[{_keys.SPATIAL_UM!r}]. {remedy}"
        )
    pitch = spot_pitch(xy, section)
    if np.isnan(pitch):
        return
    if pitch == 0:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; most {rows_are} lie exactly on another {rows_are.removesuffix('s')}. "
            "Overlapping sections need `library_key=`, the column of `obs` that tells them apart."
        )
    if not 1 <= pitch <= 1000:
        raise ValueError(
            f"obsm[{key!r}] must be in µm; the median distance between neighbouring {rows_are} is {pitch:.4g}, "
            f"outside 1–1000 µm, so these look like pixels or another unit. {remedy}"
        )
    diameter = _visium_diameter(uns)
    if diameter and not converted and not 90 < pitch < 110 and 1.5 < pitch / diameter < 2.1:
        # Visium: pitch 100 µm, spots 55 to 65 µm, so the ratio betrays pixels of the full-resolution image
        raise ValueError(
            f"obsm[{key!r}] must be in µm; neighbouring spots are {pitch:.4g} apart where `uns['spatial']` "
            f"gives spots a diameter of {diameter:.4g} pixels, so these are pixels. {remedy}"
        )


def _converted(uns: Any, key: str) -> bool:
    """Whether ``uns`` records that this slot was converted to µm."""
    record = uns.get(_keys.SPATIAL_UM)
    return hasattr(record, "get") and record.get("key", _keys.SPATIAL) == key


def _visium_diameter(uns: Any) -> float | None:
    """Spot diameter in full-resolution pixels, if ``uns`` describes a Visium slide."""
    libraries = uns.get(_keys.SPATIAL, {})
    for library in libraries.values() if hasattr(libraries, "values") else []:
        factors = library.get("scalefactors", {}) if hasattr(library, "get") else {}
        if "spot_diameter_fullres" in factors:
            return float(factors["spot_diameter_fullres"])
    return None


# names that mean a section and little else; `batch` or `slice` may cut one section into parts
_LIBRARY_COLUMNS = (
    _keys.LIBRARY,
    "section_id",
    "library_id",
    "library",
    "sample",
    "sample_id",
    "slide",
    "slide_id",
)


def check_one_section(
    xy: np.ndarray, obs: pd.DataFrame, key: str = _keys.SPATIAL, *, rows_are: str = "spots"
) -> None:
    """Raise if rows without a ``library_key`` are plainly several sections lying on each other."""
    for column in _LIBRARY_COLUMNS:
        if column in obs and obs[column].nunique() > 1 and _overlap(xy, obs[column]):
            raise ValueError(
                f"Without `library_key` all {rows_are} are one section, but obs[{column!r}] has "
                f"{obs[column].nunique()} values "
                f"whose {rows_are} overlap in obsm[{key!r}]. Say `library_key={column!r}`, or move the sections "
                "apart."
            )
    n_copies = len(xy) - len(np.unique(xy, axis=0))
    if len(xy) > 1 and n_copies > 0.1 * len(xy):
        raise ValueError(
            f"{n_copies} of {len(xy)} {rows_are} lie exactly on another {rows_are.removesuffix('s')} in "
            f"obsm[{key!r}]. Overlapping sections need `library_key=`, the column of `obs` that tells them apart."
        )


def _overlap(xy: np.ndarray, section: pd.Series) -> bool:
    """Whether the bounding boxes of two sections share ground."""
    codes, names = pd.factorize(section)
    groups = [xy[codes == code] for code in range(len(names))]
    boxes = [(here.min(axis=0), here.max(axis=0)) for here in groups]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            if (np.minimum(high, other_high) > np.maximum(low, other_low)).all():
                return True
    return False
