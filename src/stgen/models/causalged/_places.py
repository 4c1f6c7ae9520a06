"""Imputation reads the neighbourhoods of spots where there are places, and the spots alone where there are none.

Missing places are no error, because dissociated cells and tables that lost them can be imputed; places that are there and
cannot be used are one, because a model without them is a worse one, and the user should choose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stgen import _keys
from stgen._warn import warn
from stgen.data._fields import CoordinatesField
from stgen.data._no_places import NoPlacesField

if TYPE_CHECKING:
    from anndata import AnnData

SpatialKey = str | Literal[False]
"""Key in ``obsm``, or ``False``: places are not read, even where there are some."""


def places_of(adata: AnnData, spatial_key: SpatialKey, library_key: str | None) -> CoordinatesField:
    """What reads the places of this AnnData, checked."""
    if spatial_key is True:
        raise ValueError(
            "`spatial_key` must be a key of `obsm`, or False to impute without places; got True."
        )
    if library_key is not None and library_key not in adata.obs:
        raise KeyError(f"obs[{library_key!r}] does not exist; obs has {list(adata.obs.columns)}.")
    if spatial_key is False:
        return NoPlacesField(library_key=library_key)
    if spatial_key == _keys.SPATIAL and _is_absent(adata, spatial_key):
        warn(
            f"obsm[{spatial_key!r}] does not exist, so each spot is imputed from what was measured in it alone, not in its "
            "neighbours. Name the places with `spatial_key=`, or say `spatial_key=False` if there are none."
        )
        return NoPlacesField(library_key=library_key)
    field = CoordinatesField(spatial_key, library_key)
    try:
        field.read(adata)
    except (KeyError, ValueError) as error:
        remedy = "Or impute without places: `spatial_key=False`."
        raise type(error)(f"{error.args[0]} {remedy}") from None
    return field


def check_places(place: CoordinatesField, adata: AnnData) -> None:
    """Raise if a model that reads neighbourhoods is given spots without places."""
    if not place.is_empty and _is_absent(adata, place.key):
        raise KeyError(
            f"obsm[{place.key!r}] does not exist; obsm has {list(adata.obsm)}. This CausalGeD was fitted with places and "
            "reads the neighbours of a spot. Name the places with `spatial_key=`, or fit a model without: "
            "`spatial_key=False`."
        )


def check_spatial_key(place: CoordinatesField, spatial_key: SpatialKey | None) -> None:
    """Raise if the user asks a fitted model for places that it does not read, or not to read those that it does."""
    if place.is_empty and spatial_key not in (None, False):
        raise ValueError(
            f"This CausalGeD was fitted without places; got `spatial_key={spatial_key!r}`. Leave `spatial_key` out, or fit a "
            "model with places."
        )
    if not place.is_empty and spatial_key is False:
        raise ValueError(
            "This CausalGeD was fitted with places and reads the neighbours of a spot; got `spatial_key=False`. Fit a model "
            "without places, or leave `spatial_key` out."
        )


def _is_absent(adata: AnnData, key: str) -> bool:
    return key not in adata.obsm and not (key == _keys.SPATIAL and _keys.SPATIAL_UM in adata.obsm)
