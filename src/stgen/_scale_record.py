"""The record of a conversion to µm: for every section the scale, why, and what it was true of.

A record in ``uns`` outlives what it describes: `anndata.concat` drops it or hands on that of one object, a section is
taken out, coordinates are replaced. So it keeps, for each section, how many spots there were, where they lay, and the
places of a few of them by name. A part of the same object passes; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stgen import _keys

from ._by_name import some
from ._labels import read_labels
from ._warn import warn

if TYPE_CHECKING:
    from anndata import AnnData

N_WITNESSES = 8
"""Spots of a section whose places are kept by name."""
_NUMBERS, _NAMES = ("um_per_unit", "n_obs", "extent", "offset_um"), ("section", "reason", "spot")


@dataclass(frozen=True, eq=False)
class ScaleRecord:
    """``uns["spatial_um"]``. S sections."""

    key: str
    """Slot of ``obsm`` that is in µm."""
    from_key: str
    """Slot that it was converted from."""
    library_key: str
    """Column of ``obs`` that names the sections; empty if there is one, without a name."""
    section: NDArray[Any]
    """(S,) names."""
    um_per_unit: NDArray[np.float64]
    """(S,) µm that one unit of ``from_key`` is."""
    reason: NDArray[Any]
    """(S,) how that is known."""
    n_obs: NDArray[np.int64]
    """(S,) spots."""
    extent: NDArray[np.float64]
    """(S, 4) least x, least y, largest x, largest y, µm."""
    offset_um: NDArray[np.float64]
    """(S, 2) what was added after scaling: half a tile where coordinates were corners of tiles, else 0."""
    spot: NDArray[Any]
    """(W,) names of a few spots."""
    spot_um: NDArray[np.float64]
    """(W, 2) their places, µm."""

    @classmethod
    def make(
        cls,
        adata: AnnData,
        xy: NDArray[np.float64],
        names: NDArray[np.str_] | None,
        *,
        key: str,
        from_key: str,
        library_key: str | None,
        scales: Mapping[str, tuple[float, str]],
        offset_um: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> Self:
        """The record of coordinates ``xy``, already in µm; ``scales`` gives scale and reason of each section."""
        section = np.full(len(xy), "") if names is None else names
        found = np.unique(section)
        rows = [np.flatnonzero(section == name) for name in found]
        witnesses = np.concatenate([_witnesses(xy, here) for here in rows])
        nothing = np.zeros(2)
        return cls(
            key=key,
            from_key=from_key,
            library_key=library_key or "",
            section=found.astype(object),
            um_per_unit=np.array([scales[name][0] for name in found]),
            reason=np.array([scales[name][1] for name in found], dtype=object),
            n_obs=np.array([len(here) for here in rows]),
            extent=np.array([[*xy[here].min(axis=0), *xy[here].max(axis=0)] for here in rows]),
            offset_um=np.array([(offset_um or {}).get(name, nothing) for name in found]),
            spot=adata.obs_names.to_numpy()[witnesses].astype(object),
            spot_um=xy[witnesses],
        )

    def stored(self) -> dict[str, Any]:
        """In plain values that h5ad and zarr keep."""
        return dict(vars(self))

    @classmethod
    def of(cls, adata: AnnData, key: str) -> Self | None:
        """The record of ``obsm[key]``; ``None`` if there is none, or only what a concatenation left of several."""
        raw = adata.uns.get(_keys.SPATIAL_UM)
        if raw is None or (hasattr(raw, "get") and raw.get("key", key) != key):
            return None
        fields = cls.__dataclass_fields__
        missing = [name for name in fields if not hasattr(raw, "get") or name not in raw]
        values = {} if missing else {name: raw[name] for name in fields}
        values |= {
            name: np.atleast_1d(np.asarray(one, dtype=np.float64))
            for name, one in values.items()
            if name in _NUMBERS
        }
        values |= {
            name: np.atleast_1d(np.asarray(one, dtype=object)).astype(str).astype(object)
            for name, one in values.items()
            if name in _NAMES
        }
        if missing or len({len(values[name]) for name in (*_NUMBERS, "section", "reason")}) > 1:
            return cls._torn(adata, key, missing)
        values["spot_um"] = np.asarray(values["spot_um"], dtype=np.float64).reshape(-1, 2)
        return cls(**values | {name: str(values[name]) for name in ("key", "from_key", "library_key")})

    @classmethod
    def _torn(cls, adata: AnnData, key: str, missing: list[str]) -> None:
        """Say that what is there is no record; a slot that is called µm can do without one."""
        why = (
            f"uns[{_keys.SPATIAL_UM!r}] must say for each section how coordinates were converted to µm; it "
            + (f"has no {missing[0]!r}" if missing else "has more of one than of another")
            + ". It is put together from several (`anndata.concat(..., uns_merge=...)`), or written by hand."
        )
        if key != _keys.SPATIAL_UM or key not in adata.obsm:
            raise ValueError(f"{why} {_remedy(adata, key)}")
        warn(
            f"{why} obsm[{key!r}] is taken for µm by its name alone. Call `stg.pp.coordinates_in_um` again, or delete "
            f"`adata.uns[{_keys.SPATIAL_UM!r}]`."
        )

    # -------------------------------------------------------------------------------------------- does it still hold

    def misfit(self, adata: AnnData, xy: NDArray[np.float64]) -> str:
        """What of these coordinates, in µm, the record does not describe; empty if it describes all."""
        section = self.sections(adata)
        if section is None:  # its column was dropped: then all that is known of all sections together
            whole = np.r_[self.extent[:, :2].min(axis=0), self.extent[:, 2:].max(axis=0)]
            return _beyond(xy, "", int(self.n_obs.sum()), whole) or self._moved(adata, xy)
        strange = [str(name) for name in np.unique(section) if name not in set(self.section)]
        if strange:
            return f"it knows {_sections(self.section)}, and there is section {some(map(repr, strange))}"
        for name, n, extent in zip(self.section, self.n_obs, self.extent, strict=True):
            beyond = _beyond(xy[section == name], str(name), int(n), extent)
            if beyond:
                return beyond
        return self._moved(adata, xy)

    def _moved(self, adata: AnnData, xy: NDArray[np.float64]) -> str:
        known = pd.Index(self.spot)
        if not adata.obs_names.is_unique or not known.is_unique:
            return ""
        where = adata.obs_names.astype(str).get_indexer(known)
        there = where >= 0
        gap = np.abs(xy[where[there]] - self.spot_um[there]).max(axis=1) if there.any() else np.zeros(0)
        moved = gap > 1e-6 * np.maximum(1.0, np.abs(self.spot_um[there]).max(axis=1, initial=0.0))
        if moved.any():
            name, before, now = (
                known[there][moved][0],
                self.spot_um[there][moved][0],
                xy[where[there]][moved][0],
            )
            return f"{name} lay at ({before[0]:.6g}, {before[1]:.6g}) µm and lies at ({now[0]:.6g}, {now[1]:.6g})"
        return ""

    def check(self, adata: AnnData, xy: NDArray[np.float64]) -> None:
        """Raise unless the record describes these coordinates."""
        misfit = self.misfit(adata, xy)
        if misfit:
            raise ValueError(
                f"obsm[{self.key!r}] must be in µm, and uns[{_keys.SPATIAL_UM!r}] no longer describes it: {misfit}. "
                f"{_remedy(adata, self.key)}"
            )

    def sections(self, adata: AnnData) -> NDArray[np.str_] | None:
        """Section of every row as the record calls them; ``None`` if its column is missing."""
        if self.library_key and self.library_key in adata.obs:
            return read_labels(adata.obs[self.library_key]).to_numpy().astype(str)
        if len(self.section) == 1:
            return np.full(adata.n_obs, self.section[0])
        return None

    def scale_by_section(self, adata: AnnData, names: NDArray[np.str_] | None) -> dict[str, float]:
        """µm per unit of ``from_key``, for each of the sections that the caller tells apart."""
        own = self.sections(adata)
        if own is None and len(set(self.um_per_unit)) > 1:
            raise ValueError(
                f"uns[{_keys.SPATIAL_UM!r}] has {len(self.section)} sections with different scales and names them by "
                f"obs[{self.library_key!r}], which does not exist here. Bring that column back."
            )
        own = np.full(adata.n_obs, self.section[0]) if own is None else own
        scale = dict(zip(map(str, self.section), map(float, self.um_per_unit), strict=True))
        asked = np.full(adata.n_obs, "") if names is None else names
        found: dict[str, float] = {}
        for name in np.unique(asked):
            values = sorted({scale[str(one)] for one in np.unique(own[asked == name])})
            if len(values) > 1:
                raise ValueError(
                    f"Sections of obs[{self.library_key!r}] have {len(values)} scales ({some(f'{v:.4g}' for v in values)} "
                    f"µm per unit). Say `library_key={self.library_key!r}`."
                )
            found[str(name)] = values.pop()
        return found

    def as_text(self, name: str | None = None) -> str:
        """The scale and why, for a message."""
        i = 0 if name is None or name not in self.section else list(self.section).index(name)
        return f"{self.um_per_unit[i]:.4g} µm per unit, {self.reason[i]}"


def _beyond(xy: NDArray[np.float64], name: str, n: int, extent: NDArray[np.float64]) -> str:
    """Which rows of a section cannot be a part of the ``n`` that lay in ``extent``."""
    of = f" of section {name!r}" if name else ""
    if len(xy) > n:
        return f"it was made for {n} rows{of}, and there are {len(xy)}"
    left, low, right, high = extent
    slack = 1e-6 * max(1.0, float(np.abs(extent).max()))
    outside = ((xy < [left - slack, low - slack]) | (xy > [right + slack, high + slack])).any(axis=1)
    if not outside.any():
        return ""
    return (
        f"rows{of} lay in x {left:.6g} to {right:.6g} and y {low:.6g} to {high:.6g} µm, and {int(outside.sum())} of "
        f"{len(xy)} lie outside of that"
    )


def _witnesses(xy: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spots whose places tell whether a section was moved, turned, scaled or reordered."""
    order = rows[np.lexsort(xy[rows].T)]
    return order[np.unique(np.linspace(0, len(order) - 1, N_WITNESSES).astype(int))]


def _sections(names: NDArray[Any]) -> str:
    return "one section" if list(names) == [""] else f"section {some(map(repr, map(str, names)))}"


def _remedy(adata: AnnData, key: str) -> str:
    again = (
        f"Call `stg.pp.coordinates_in_um` again; it starts from obsm[{_keys.SPATIAL!r}]."
        if key == _keys.SPATIAL_UM and _keys.SPATIAL in adata.obsm
        else "Convert again with `stg.pp.coordinates_in_um`, and give the scale."
    )
    return f"{again} If obsm[{key!r}] is known to be in µm, delete `adata.uns[{_keys.SPATIAL_UM!r}]`" + (
        "." if key == _keys.SPATIAL_UM else f" and name it obsm[{_keys.SPATIAL_UM!r}]."
    )
