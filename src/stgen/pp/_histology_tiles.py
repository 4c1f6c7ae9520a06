"""Spot-centred tiles of a fixed size in µm, whatever the image's resolution."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stgen import _keys
from stgen._docs import shared_doc
from stgen._scale_record import ScaleRecord
from stgen.data._names import some
from stgen.data._places import library_column, raw_xy, section_names, um_slot
from stgen.data._spacing import grid_of
from stgen.data._tiles import all_blank, warn_of_blank
from stgen.data._unit_evidence import SCALE_SLACK
from stgen.data._units import check_units

from ._coordinates import LARGEST_PITCH_UM, LEAST_PITCH_UM, Scale, find_scales, given_scale
from ._editing import check_adata, editable
from ._tile_reader import (
    ArrayTiles,
    ImageTiles,
    StoredTiles,
    TileReader,
    check_pixel_size,
    stack,
)

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

TILE_UM, TILE_PX = 112.0, 224


@shared_doc
def histology_tiles(
    adata: AnnData,
    image: Any,
    *,
    tile_um: float = TILE_UM,
    tile_px: int = TILE_PX,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    coordinates: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    key_added: str = _keys.TILES,
    copy: bool = False,
) -> AnnData | None:
    """Cut a tile around every spot.

    All tiles show the same length of tissue, ``tile_um``, on ``tile_px`` pixels. Tiles are large: 20,000 of
    them are 3 GB. :func:`stgen.pp.embed_histology` takes an image as well and never keeps them.

    Parameters
    ----------
    adata
        %(adata)s
    image
        Path (jpg, png, tif), array height × width × 3 (numpy, memory-mapped, zarr or dask; uint8, or floats
        from 0 to 1), or the name of pictures in ``uns["spatial"]``, such as ``"hires"``. For several sections
        a dict section → image. A fourth channel of a file is opacity if the file says so; that of an array is taken as
        opacity, which is warned of. A picture that says it is stored turned (EXIF) is refused: coordinates may count
        pixels before or after that.
    tile_um
        Side of a tile, µm.
    tile_px
        Side of a tile, pixels.
    um_per_px
        Pixel size of the image, µm; a dict section → number if sections differ. ``None`` takes it from what is known of
        the unit of the coordinates, in the order of :func:`stgen.pp.coordinates_in_um`.
    spot_pitch_um
        Distance between the centres of neighbouring spots: 100 on Visium, 200 on the first ST arrays. With
        ``um_per_px`` it is a check.
    coordinates
        ``"px"``: ``obsm[spatial_key]`` counts pixels of this very image. ``"um"``: places are in µm from the
        image's upper left corner, in ``obsm["spatial_um"]`` where that exists. ``None``: µm if
        :func:`stgen.pp.coordinates_in_um` wrote them, else pixels. For a downscaled image convert to µm first, and give
        the downscaled image's ``um_per_px``.
    spatial_key
        Key in ``obsm`` of the coordinates, spots × 2 (x to the right, y down).
    library_key
        %(library_key)s
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, uint8, spots × pixels × pixels × 3;
    ``obs[key_added + "_outside"]``, the share of a tile that lies outside of the image and was filled with white;
    ``obs[key_added + "_blank"]``, whether a tile shows nothing (no contrast, as bare glass), which is also warned of;
    and ``uns[key_added]["params"]``.

    Raises
    ------
    ValueError
        If the pixel size is unknown, implausible (not 0.1 to 10 µm), or contradicts the pitch; if spots lie
        outside of the image; if sections overlap and no ``library_key`` tells them apart; if the image has 16
        bits, floats of another range, channels first, or several pages.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(histology="images", n_sections=1, n_patients=1, spots_per_section=50)
    >>> stg.pp.histology_tiles(adata, "hires", library_key="section", tile_px=56)
    >>> adata.obsm["tiles"].shape
    (50, 56, 56, 3)
    """
    check_adata(adata, copy=copy)
    reader = open_image_tiles(
        adata,
        image,
        tile_um=tile_um,
        tile_px=tile_px,
        um_per_px=um_per_px,
        spot_pitch_um=spot_pitch_um,
        coordinates=coordinates,
        spatial_key=spatial_key,
        library_key=library_key,
    )
    n_bytes = len(reader) * tile_px**2 * 3
    if n_bytes > 4e9:
        logger.warning(
            "These tiles take %.0f GB; embed_histology(adata, image) does not keep them.", n_bytes / 1e9
        )
    tiles = stack(reader)
    adata = editable(adata, copy=copy)
    _write_tiles(adata, tiles, reader, key_added, _by_section(reader.um_per_px))
    return adata if copy else None


@shared_doc
def read_tiles(
    adata: AnnData,
    path: str | Path | list[str | Path] | Mapping[str, str | Path],
    *,
    tile_um: float | None = None,
    key_added: str = _keys.TILES,
    copy: bool = False,
) -> AnnData | None:
    """Read tiles that were cut and stored before.

    Parameters
    ----------
    adata
        %(adata)s
    path
        One h5 file, or several (a list, or a dict whose values are paths), with the datasets ``jpeg`` (one
        encoded tile per spot) and ``obs_names``. Files may hold more spots than ``adata``, in any order:
        tiles are joined by name.
    tile_um
        Side of a tile, µm, for files that do not say it (attributes ``mpp`` and ``size_px``).
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, uint8, spots × pixels × pixels × 3, ``obs`` columns and
    ``uns[key_added]["params"]`` as :func:`stgen.pp.histology_tiles` does.

    Raises
    ------
    ValueError
        If a spot has no tile, a tile is stored twice, cannot be decoded, has 16 bits or another size than the first, or
        the size of tiles is unknown.
    """
    check_adata(adata, copy=copy)
    reader = open_stored_tiles(adata, path, tile_um=tile_um)
    tiles = stack(reader)
    adata = editable(adata, copy=copy)
    _write_tiles(adata, tiles, reader, key_added, {"um_per_px": reader.tile_um / reader.tile_px})
    return adata if copy else None


def _write_tiles(
    adata: AnnData, tiles: NDArray[np.uint8], reader: TileReader, key: str, pixel_size: Mapping[str, Any]
) -> None:
    blank = all_blank(tiles)
    warn_of_blank(blank, adata.obs_names)
    adata.obsm[key] = tiles
    adata.obs[f"{key}_outside"] = reader.outside
    adata.obs[f"{key}_blank"] = blank
    adata.uns[key] = {
        "params": {
            "tile_um": float(reader.tile_um),
            "tile_px": int(reader.tile_px),
            **pixel_size,
            "n_padded": int((reader.outside > 0).sum()),
            "n_blank": int(blank.sum()),
        }
    }


def _by_section(um_per_px: Mapping[str, float]) -> dict[str, Any]:
    """Pixel size of the image, or that of each section where they differ."""
    sizes = np.array(list(um_per_px.values()))
    if len(np.unique(sizes)) == 1:
        return {"um_per_px": float(sizes[0])}
    return {"um_per_px": sizes, "section": np.array(list(um_per_px), dtype=object)}


def open_stored_tiles(adata: AnnData, path: Any, *, tile_um: float | None) -> StoredTiles:
    """A stream of stored tiles."""
    paths = list(path.values()) if isinstance(path, Mapping) else path
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return StoredTiles([Path(one) for one in paths], adata.obs_names, tile_um=tile_um)


def open_array_tiles(adata: AnnData, key: str, *, tile_um: float | None) -> ArrayTiles:
    """A stream of the tiles in ``obsm``."""
    if key not in adata.obsm:
        raise KeyError(
            f"obsm[{key!r}] does not exist; obsm has {list(adata.obsm)}. Cut tiles with "
            "`stg.pp.histology_tiles`."
        )
    recorded = adata.uns.get(key, {})
    params = recorded.get("params", {}) if hasattr(recorded, "get") else {}
    size = params.get("tile_um", tile_um)
    if tile_um is not None and size is not None and abs(size / tile_um - 1) > 0.01:
        raise ValueError(
            f"`tile_um` is {tile_um:g}, but uns[{key!r}] says that the tiles of obsm[{key!r}] show {size:g} µm. Leave it out, "
            "or cut tiles again."
        )
    if size is None:
        raise ValueError(
            f"uns[{key!r}] does not say how large the tiles of obsm[{key!r}] are. Give `tile_um=`."
        )
    reader = ArrayTiles(adata.obsm[key], float(size), name=f"obsm[{key!r}]")
    if f"{key}_outside" in adata.obs:
        reader.outside = adata.obs[f"{key}_outside"].to_numpy(np.float32)
    return reader


def open_image_tiles(
    adata: AnnData,
    image: Any,
    *,
    tile_um: float,
    tile_px: int,
    um_per_px: float | Mapping[str, float] | None,
    spot_pitch_um: float | None,
    coordinates: str | None,
    spatial_key: str,
    library_key: str | None,
) -> ImageTiles:
    """A stream of tiles around the spots of an image; everything that can be checked is checked here."""
    if coordinates not in ("um", "px", None):
        raise ValueError(f"`coordinates` must be 'um', 'px' or None; got {coordinates!r}.")
    slot = um_slot(adata, spatial_key)
    in_um = _is_in_um(adata, slot, um_per_px) if coordinates is None else coordinates == "um"
    key = slot if in_um else spatial_key
    xy = raw_xy(adata, key)
    column = library_column(adata, library_key)
    names = section_names(adata, xy, column, key)
    section = np.full(len(xy), "") if names is None else names
    images, per_unit = _images_of_sections(adata, image, np.unique(section), column)
    if in_um:
        check_units(adata, key, xy, names)
        sizes = _sizes_of_um(adata, key, xy, names, per_unit, um_per_px, spot_pitch_um)
    else:
        scales = _scales_of_pixels(adata, key, xy, names, per_unit, um_per_px, spot_pitch_um)
        sizes = {name: scale.um_per_unit / per_unit[name] for name, scale in scales.items()}
        # from the corner of a tile of LazySlide to its centre
        xy = xy + np.array([scales[name].offset_um / scales[name].um_per_unit for name in section])
    for name, size in sizes.items():
        check_pixel_size(size, name)
    size_of_spot = np.array([sizes[name] for name in section])[:, None]
    drawn = xy if in_um else xy * np.array([per_unit[name] for name in section])[:, None]
    _check_pitch(drawn if in_um else drawn * size_of_spot, section)
    return ImageTiles(
        images=images,
        section=section,
        centre=drawn / size_of_spot if in_um else drawn,
        um_per_px=sizes,
        tile_um=tile_um,
        tile_px=tile_px,
    )


def _is_in_um(adata: AnnData, slot: str, um_per_px: Any) -> bool:
    """Whether places are read in µm: they are recorded so, or were (a concat forgets) and the image's scale is given."""
    return ScaleRecord.of(adata, slot) is not None or (slot == _keys.SPATIAL_UM and um_per_px is not None)


def _sizes_of_um(
    adata: AnnData,
    key: str,
    xy: NDArray[np.float64],
    names: NDArray[np.str_] | None,
    per_unit: Mapping[str, float],
    um_per_px: float | Mapping[str, float] | None,
    spot_pitch_um: float | None,
) -> dict[str, float]:
    """Pixel size of the image that coordinates in µm are laid on."""
    if spot_pitch_um is not None:
        find_scales(adata, key, xy, names, um_per_unit=1.0, spot_pitch_um=spot_pitch_um)
    record = ScaleRecord.of(adata, key)
    if um_per_px is not None:
        given = given_scale(um_per_px, np.array(list(per_unit)), "um_per_px")
        _check_pictures(adata, record, names, per_unit, given)
        return given
    unit = {} if record is None else record.scale_by_section(adata, names)
    # a scale of 1 means that coordinates never were pixels, so it says nothing about the image
    if not unit or all(unit[name] == 1.0 and per_unit[name] == 1.0 for name in unit):
        raise ValueError(
            f"The pixel size of the image is not known (obsm[{key!r}] is in µm). Give `um_per_px=`."
        )
    return {name: unit[name] / per_unit[name] for name in unit}


def _check_pictures(
    adata: AnnData,
    record: ScaleRecord | None,
    names: NDArray[np.str_] | None,
    per_unit: Mapping[str, float],
    given: Mapping[str, float],
) -> None:
    """Raise if a pixel size is given that pictures of ``uns``, whose size is known, do not have."""
    if record is None or all(one == 1.0 for one in per_unit.values()):
        return
    for name, unit in record.scale_by_section(adata, names).items():
        known = unit / per_unit[name]
        if unit != 1.0 and abs(given[name] / known - 1) > SCALE_SLACK:
            raise ValueError(
                f"`um_per_px` is {given[name]:.4g}{_of(name)}, but a pixel of this picture is {known:.4g} µm: "
                f"{unit:.4g} µm per unit by uns['spatial_um'], {per_unit[name]:.4g} pixels per unit by uns['spatial']. "
                "Leave `um_per_px` out."
            )


def _scales_of_pixels(
    adata: AnnData,
    key: str,
    xy: NDArray[np.float64],
    names: NDArray[np.str_] | None,
    per_unit: Mapping[str, float],
    um_per_px: float | Mapping[str, float] | None,
    spot_pitch_um: float | None,
) -> dict[str, Scale]:
    """From pixels that coordinates count, on the image or on what it is a reduced copy of, to µm."""
    given = None if um_per_px is None else given_scale(um_per_px, np.array(list(per_unit)), "um_per_px")
    return find_scales(
        adata,
        key,
        xy,
        names,
        um_per_unit=None if given is None else {name: given[name] * per_unit[name] for name in given},
        spot_pitch_um=spot_pitch_um,
        argument="um_per_px",
    )


def _images_of_sections(
    adata: AnnData, image: Any, names: NDArray[np.str_], library_key: str | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """The image of every section, and its pixels per unit of the coordinates (1 but for pictures of ``uns``)."""
    pictures = adata.uns.get(_keys.IMAGES, {})
    stored = sorted({key for one in pictures.values() for key in one.get("images", {})}) if pictures else []
    if isinstance(image, str) and image in stored:
        return _pictures(pictures, image, names)
    if isinstance(image, Mapping):
        if library_key is None:
            raise ValueError(
                "A dict section → image needs `library_key=`, the column of `obs` that names the sections."
            )
        image = {str(name): one for name, one in image.items()}
        missing = [name for name in names if name not in image]
        if missing:
            raise ValueError(f"There is no image for section {some(missing)}; the dict has {some(image)}.")
        return {name: image[name] for name in names}, dict.fromkeys(names, 1.0)
    if len(names) > 1:
        raise ValueError(
            f"obs[{library_key!r}] names {len(names)} sections ({some(names)}), but there is one image. Give "
            "a dict section → image."
        )
    return {names[0]: image}, {names[0]: 1.0}


def _pictures(
    pictures: Mapping[str, Any], key: str, names: NDArray[np.str_]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Pictures as scanpy and squidpy keep them: with pixels per unit of the coordinates."""
    images, per_unit = {}, {}
    for name in map(str, names):
        library = name
        if name == "" and len(pictures) == 1:
            library = next(iter(pictures))
        if library not in pictures or key not in pictures[library].get("images", {}):
            remedy = (
                "Call sections as uns['spatial'] does, in the column of `obs` that `library_key=` names."
                if name
                else "Several sections need `library_key=`."
            )
            raise ValueError(
                f"uns['spatial'] has no picture {key!r}{_of(name)}; it has {some(pictures)}. {remedy}"
            )
        factors = pictures[library].get("scalefactors", {})
        if f"tissue_{key}_scalef" not in factors:
            raise ValueError(
                f"uns['spatial'][{library!r}]['scalefactors'] must have 'tissue_{key}_scalef'; it has "
                f"{some(factors)}."
            )
        images[name] = pictures[library]["images"][key]
        per_unit[name] = float(factors[f"tissue_{key}_scalef"])
    return images, per_unit


def _check_pitch(xy_um: NDArray[np.float64], section: NDArray[np.str_]) -> None:
    for name in np.unique(section):
        pitch = grid_of(xy_um[section == name]).pitch
        if np.isfinite(pitch) and not LEAST_PITCH_UM <= pitch <= LARGEST_PITCH_UM:
            raise ValueError(
                f"Neighbouring spots would be {pitch:.4g} µm apart{_of(name)}; plausible are "
                f"{LEAST_PITCH_UM:g} to {LARGEST_PITCH_UM:g} µm. Check `um_per_px` and `coordinates` ('um' "
                "or 'px')."
            )


def _of(name: str) -> str:
    return f" of section {name!r}" if name else ""
