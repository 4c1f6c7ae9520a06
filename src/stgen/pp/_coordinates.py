"""Places in µm. One spot pitch tells which unit the coordinates are in.

Arrays of spots have a known pitch (100 µm on Visium, 200 µm on ST), so that the distance between neighbouring
spots gives the scale of any picture they are drawn on, and betrays a scale that cannot be right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import check_one_section, some

from ._editing import check_adata, coordinates, editable, obs_column

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

LEAST_PITCH_UM, LARGEST_PITCH_UM = 1.0, 1000.0
PITCH_HINT = "`spot_pitch_um=100` for Visium, 200 for the first ST arrays"


@shared_doc
def coordinates_in_um(
    adata: AnnData,
    *,
    um_per_unit: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Convert coordinates to µm.

    The scale is, in this order: ``um_per_unit``; the spot pitch divided by the measured distance of
    neighbouring spots, section by section; ``uns["um_per_unit"]``.

    Parameters
    ----------
    adata
        %(adata)s
    um_per_unit
        µm that one unit of the coordinates is (the pixel size, if they are pixels); a dict section → number
        if sections differ.
    spot_pitch_um
        Distance between the centres of neighbouring spots: 100 on Visium, 200 on the first ST arrays. Only
        for spots on a grid.
    spatial_key
        Key in ``obsm`` of the coordinates, spots × 2, in their present unit.
    library_key
        %(library_key)s
    key_added
        Key in ``obsm`` of the result. ``None`` replaces ``obsm[spatial_key]``; give another key to keep
        coordinates that fit an image for plotting.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, and ``uns["spatial_um"]``: the scale (``um_per_unit``,
    and by ``section`` where they differ), the ``reason`` for it, and the ``key`` that is now in µm. If
    ``uns["um_per_unit"]`` exists and coordinates were replaced, it becomes 1.

    Raises
    ------
    ValueError
        If no scale is known; if neighbouring spots would then lie closer than 1 µm or farther than 1000 µm
        apart; if the given scale and the given pitch disagree; if coordinates are already in µm and another
        scale is asked for. (Asking again for the same is answered by doing nothing, so that a notebook cell
        can be run twice.)

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> adata.obsm["pixels"] = adata.obsm["spatial"] * 2
    >>> scale = {"um_per_unit": 0.5, "spatial_key": "pixels", "key_added": "um"}
    >>> stg.pp.coordinates_in_um(adata, library_key="section", **scale)
    >>> adata.uns["spatial_um"]["reason"]
    'given as um_per_unit'
    """
    check_adata(adata, copy=copy)
    xy = coordinates(adata, spatial_key)
    section = sections_of(adata, xy, library_key, spatial_key)
    target = spatial_key if key_added is None else key_added
    done = recorded_scale(adata, spatial_key)
    if done is not None:
        _check_same_scale(done, um_per_unit, spatial_key)
        logger.info("obsm[%r] is in µm already; nothing is converted.", spatial_key)
        if target == spatial_key:
            return adata.copy() if copy else None

    names = np.unique(section)
    if done is not None:
        scales, reason = dict.fromkeys(names, 1.0), "already in µm"
    else:
        scales, reason = _find_scales(adata, xy, section, um_per_unit, spot_pitch_um)
    factor = np.array([scales[name] for name in section])
    converted = xy * factor[:, None]
    _check_pitch(converted, section, spatial_key, scales)

    values = np.array([scales[name] for name in names])
    record: dict[str, Any] = {"um_per_unit": float(np.median(values)), "reason": reason, "key": target}
    if len(np.unique(values)) > 1:
        record |= {"section": names.astype(str), "um_per_unit_of_section": values}
    adata = editable(adata, copy=copy)
    adata.obsm[target] = converted
    adata.uns[_keys.SPATIAL_UM] = record
    if target == spatial_key and _keys.UM_PER_UNIT in adata.uns:
        adata.uns[_keys.UM_PER_UNIT] = 1.0
    return adata if copy else None


def sections_of(
    adata: AnnData, xy: NDArray[np.float64], library_key: str | None, key: str
) -> NDArray[np.str_]:
    """Section name of every spot; one nameless section without ``library_key``."""
    if library_key is not None:
        return obs_column(adata, library_key).astype(str).to_numpy().astype(str)
    check_one_section(xy, adata.obs, key)
    return np.full(adata.n_obs, "", dtype="U1")


def recorded_scale(adata: AnnData, key: str) -> Mapping[str, Any] | None:
    """What ``uns`` says about the conversion of ``obsm[key]``, if it was converted."""
    record = adata.uns.get(_keys.SPATIAL_UM)
    if not hasattr(record, "get"):
        return None
    return record if record.get("key", _keys.SPATIAL) == key else None


def lattice_pitch(xy: NDArray[np.float64]) -> float:
    """Distance between neighbouring spots of a grid; NaN for fewer than two spots.

    The nearest neighbour alone is biased: of four or six jittered ones it is the closest. So all neighbours
    of the first ring count; the second ring of a square grid begins at 1.41 pitches, of a hexagonal one at
    1.73.
    """
    if len(xy) < 2:
        return float("nan")
    # a few thousand spots are enough for a median
    asked = xy[:: max(1, len(xy) // 5000)]
    distance = cKDTree(xy).query(asked, k=min(7, len(xy)))[0][:, 1:]
    return float(np.median(distance[distance <= 1.25 * np.median(distance[:, 0])]))


def given_scale(
    value: float | Mapping[str, float], names: NDArray[np.str_], argument: str
) -> dict[str, float]:
    """One scale per section from a number or a dict."""
    if isinstance(value, Mapping):
        value = {str(name): scale for name, scale in value.items()}
        missing = [name for name in names if name not in value]
        if missing:
            raise ValueError(f"`{argument}` has no value for section {some(missing)}; it has {some(value)}.")
        scales = {name: float(value[name]) for name in names}
    else:
        scales = dict.fromkeys(names, float(value))
    for name, scale in scales.items():
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"`{argument}` must be above 0; got {scale!r}{_of(name)}.")
    return scales


def scale_from_pitch(
    xy: NDArray[np.float64], section: NDArray[np.str_], spot_pitch_um: float
) -> dict[str, float]:
    """µm per unit of every section, from its grid of spots."""
    if not (np.isfinite(spot_pitch_um) and spot_pitch_um > 0):
        raise ValueError(f"`spot_pitch_um` must be a distance in µm above 0; got {spot_pitch_um!r}.")
    scales = {}
    for name in np.unique(section):
        pitch = lattice_pitch(xy[section == name])
        if not pitch > 0:
            raise ValueError(
                f"The pitch cannot be measured{_of(name)}: it has too few spots, or they lie on each other. "
                "Give the scale itself."
            )
        scales[name] = spot_pitch_um / pitch
    return scales


def check_agreement(scales: Mapping[str, float], by_pitch: Mapping[str, float], argument: str) -> None:
    """Raise if a scale and a spot pitch, both given, contradict each other by more than 10 %."""
    for name, scale in scales.items():
        if abs(scale / by_pitch[name] - 1) > 0.1:
            raise ValueError(
                f"`{argument}` = {scale:.4g} and the spot pitch contradict each other{_of(name)}: the pitch "
                f"gives {by_pitch[name]:.4g} µm per unit. Are the coordinates those of another image (hires "
                "instead of full resolution)? One spot pitch tells which image you have."
            )


def _find_scales(
    adata: AnnData,
    xy: NDArray[np.float64],
    section: NDArray[np.str_],
    um_per_unit: float | Mapping[str, float] | None,
    spot_pitch_um: float | None,
) -> tuple[dict[str, float], str]:
    by_pitch = None if spot_pitch_um is None else scale_from_pitch(xy, section, spot_pitch_um)
    if um_per_unit is not None:
        scales = given_scale(um_per_unit, np.unique(section), "um_per_unit")
        if by_pitch is not None:
            check_agreement(scales, by_pitch, "um_per_unit")
        return scales, "given as um_per_unit"
    if by_pitch is not None:
        return by_pitch, f"spot pitch of {spot_pitch_um:g} µm"
    if _keys.UM_PER_UNIT in adata.uns:
        scales = given_scale(adata.uns[_keys.UM_PER_UNIT], np.unique(section), "uns['um_per_unit']")
        return scales, str(adata.uns.get(_keys.UM_PER_UNIT_REASON, "read from the file"))
    pitch = lattice_pitch(xy[section == section[0]])
    raise ValueError(
        f"The scale of the coordinates is not known: neighbouring spots are {pitch:.4g} units apart. Give "
        "`um_per_unit=` (µm per pixel, if they are pixels; 1 if they are µm), or the distance of "
        f"neighbouring spots, {PITCH_HINT}."
    )


def _check_pitch(
    xy: NDArray[np.float64], section: NDArray[np.str_], key: str, scales: Mapping[str, float]
) -> None:
    for name in np.unique(section):
        pitch = lattice_pitch(xy[section == name])
        if np.isfinite(pitch) and not LEAST_PITCH_UM <= pitch <= LARGEST_PITCH_UM:
            raise ValueError(
                f"With {scales[name]:.4g} µm per unit, neighbouring spots of obsm[{key!r}] would be "
                f"{pitch:.4g} µm apart{_of(name)}; plausible are {LEAST_PITCH_UM:g} to {LARGEST_PITCH_UM:g} "
                f"µm. Check the scale, or give {PITCH_HINT}."
            )


def _check_same_scale(
    done: Mapping[str, Any], um_per_unit: float | Mapping[str, float] | None, key: str
) -> None:
    """A second conversion would scale twice; asking for what was done is harmless."""
    if um_per_unit is None:
        return
    asked = list(um_per_unit.values()) if isinstance(um_per_unit, Mapping) else [um_per_unit]
    before = np.append(np.asarray(done.get("um_per_unit_of_section", [])), [done["um_per_unit"], 1.0])
    if any(np.abs(before / float(scale) - 1).min() > 1e-6 for scale in asked):
        raise ValueError(
            f"obsm[{key!r}] is in µm already (uns[{_keys.SPATIAL_UM!r}]: {float(done['um_per_unit']):.4g} µm "
            f"per unit, {done.get('reason', 'no reason recorded')}); converting again with {some(asked)} "
            "would scale it twice. Start from the original coordinates."
        )


def _of(name: str) -> str:
    return f" in section {name!r}" if name else ""
