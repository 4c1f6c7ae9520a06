"""Histology as numbers: one feature vector per spot, in the order of spots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from stgen import _keys
from stgen._by_name import in_order
from stgen._docs import shared_doc
from stgen._settings import settings
from stgen.data._fields import some
from stgen.data._tiles import is_blank, warn_of_blank

from ._editing import check_adata, editable
from ._encoders import DESCRIPTORS, Encoder, make_encoder
from ._histology_tiles import TILE_PX, TILE_UM, open_array_tiles, open_image_tiles, open_stored_tiles
from ._tile_reader import ArrayTiles, TileReader, stack_of_arrays

if TYPE_CHECKING:
    from anndata import AnnData


@shared_doc
def embed_histology(
    adata: AnnData,
    image: Any = None,
    *,
    tiles: Any = None,
    features: Any = None,
    encoder: Any = DESCRIPTORS,
    encoder_kwargs: Mapping[str, Any] | None = None,
    transform: Callable[[NDArray[np.uint8]], Any] | None = None,
    tile_um: float | None = None,
    tile_px: int = TILE_PX,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    coordinates: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    key_added: str = _keys.HISTOLOGY,
    batch_size: int = 32,
    accelerator: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Describe the histology around every spot by a feature vector.

    Tiles come from an image, from tiles that were cut before, or not at all if the features exist already.
    From an image they are cut, encoded and forgotten batch by batch, so that memory does not grow with the
    number of spots.

    Parameters
    ----------
    adata
        %(adata)s
    image
        Image, or dict section → image, as for :func:`stgen.pp.histology_tiles`, which also explains
        ``tile_um``, ``tile_px``, ``um_per_px``, ``spot_pitch_um``, ``coordinates``, ``spatial_key`` and
        ``library_key``.
    tiles
        Instead of an image: a key of ``obsm``, an array spots × pixels × pixels × 3 (uint8) in the order of
        spots or a list of such tiles, or path(s) of stored tiles as for :func:`stgen.pp.read_tiles`. With neither image, tiles nor
        features, ``obsm["tiles"]`` is used.
    features
        Instead of tiles: features from elsewhere, as a DataFrame whose index has the names of all spots
        (joined by name, further rows are left out), an array or a DataFrame without names in the order of spots, or a key of ``obsm``.
        ``encoder`` then only names them.
    encoder
        ``"descriptors"``: 108 numbers for colour, texture and nuclear density at two crops; no weights, no
        download. A timm model by name (``"resnet50"``, ``"hf-hub:organisation/model"``; ``pip install
        "stgen[histology]"``), fed with its own size and colour statistics; mind the licence of its weights,
        which is recorded where timm knows it. A ``torch.nn.Module``, which gets tensors B × 3 × p × p
        normalised with the colour statistics of ImageNet and runs where its weights are. Any other function
        gets uint8 arrays B × p × p × 3. All return B × features.
    encoder_kwargs
        For timm: further arguments of ``timm.create_model``.
    transform
        Replaces the preparation of tiles: from uint8 arrays B × p × p × 3 to whatever the encoder takes.
    tile_um
        Side of a tile, µm. ``None`` is 112 for images, and what stored tiles say of themselves.
    tile_px
        Side of a tile cut from an image, pixels.
    um_per_px
        Pixel size of the image, µm.
    spot_pitch_um
        Distance between the centres of neighbouring spots, µm.
    coordinates
        Whether ``obsm[spatial_key]`` is in ``"px"`` or ``"um"``.
    spatial_key
        Key in ``obsm`` of the coordinates.
    library_key
        %(library_key)s
    key_added
        Key in ``obsm`` of the features.
    batch_size
        Tiles that are held at once.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``, for timm models.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``, float32, spots × features, and ``uns["histology"]``:
    ``encoder``, ``tile_um``, ``n_features``, ``feature_names`` where they have names, ``licence`` where it is
    known, ``key_added``, and ``params``, with the number of tiles that show nothing (``n_blank``), which is also warned of.

    Raises
    ------
    ValueError
        If features are NaN or infinite, spots have no tile or no features, weights cannot be had, and for all
        reasons of :func:`stgen.pp.histology_tiles`.
    ImportError
        If a timm model is named and timm is not installed.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(histology="images", n_sections=1, n_patients=1, spots_per_section=50)
    >>> stg.pp.embed_histology(adata, "hires", library_key="section")
    >>> adata.obsm["X_histology"].shape
    (50, 108)
    """
    check_adata(adata, copy=copy)
    _check_one_source(image=image, tiles=tiles, features=features)
    if int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of tiles, at least 1; got {batch_size!r}.")
    if features is not None:
        embedding, record = _join_features(adata, features, encoder, tile_um)
    else:
        if image is not None:
            reader: TileReader = open_image_tiles(
                adata,
                image,
                tile_um=TILE_UM if tile_um is None else tile_um,
                tile_px=tile_px,
                um_per_px=um_per_px,
                spot_pitch_um=spot_pitch_um,
                coordinates=coordinates,
                spatial_key=spatial_key,
                library_key=library_key,
            )
        else:
            reader = _open_tiles(adata, tiles, tile_um)
        encode = make_encoder(
            encoder,
            um_per_px=reader.tile_um / reader.tile_px,
            transform=transform,
            encoder_kwargs=encoder_kwargs,
            accelerator=accelerator,
        )
        embedding, blank = _encode(reader, encode, batch_size)
        record = _describe(reader, encode, "tiles" if image is None else "image", blank)
    _check_features(embedding, adata, str(record["encoder"]))

    if features is None:
        warn_of_blank(blank, adata.obs_names)
    adata = editable(adata, copy=copy)
    adata.obsm[key_added] = embedding
    adata.uns[_keys.HISTOLOGY_PARAMS] = record | {
        "n_features": int(embedding.shape[1]),
        "key_added": key_added,
    }
    return adata if copy else None


def _check_one_source(**sources: Any) -> None:
    given = [f"`{name}`" for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"Give one of `image`, `tiles` and `features`; got {' and '.join(given)}.")


def _describe(reader: TileReader, encode: Encoder, source: str, blank: NDArray[np.bool_]) -> dict[str, Any]:
    """What ``uns`` keeps about features that were made from tiles."""
    record: dict[str, Any] = {"encoder": encode.name, "tile_um": float(reader.tile_um)} | encode.facts
    if encode.feature_names is not None:
        record["feature_names"] = np.array(encode.feature_names, dtype=str)
    record["params"] = {
        "source": source,
        "tile_px": int(reader.tile_px),
        "n_padded": int((reader.outside > 0).sum()),
        "n_blank": int(blank.sum()),
    }
    return record


def _open_tiles(adata: AnnData, tiles: Any, tile_um: float | None) -> TileReader:
    if tiles is None:
        if _keys.TILES not in adata.obsm:
            raise ValueError(
                "There is nothing to embed: give `image=`, `tiles=` or `features=`; obsm has "
                f"{list(adata.obsm)}, and no {_keys.TILES!r}."
            )
        tiles = _keys.TILES
    if isinstance(tiles, str) and (tiles in adata.obsm or not Path(tiles).suffix):
        return open_array_tiles(adata, tiles, tile_um=tile_um)
    if isinstance(tiles, (list, tuple)) and len(tiles) and hasattr(tiles[0], "shape"):
        tiles = stack_of_arrays(tiles)
    if isinstance(tiles, (str, Path, list, tuple, Mapping)):
        return open_stored_tiles(adata, tiles, tile_um=tile_um)
    if len(tiles) != adata.n_obs:
        raise ValueError(
            f"`tiles` must have one tile per spot, in their order: {adata.n_obs} spots, {len(tiles)} tiles."
        )
    if tile_um is None:
        raise ValueError(
            "How large the tiles of an array are is not known. Give `tile_um=`, the side of a tile in µm."
        )
    return ArrayTiles(tiles, float(tile_um), name="`tiles`")


def _encode(
    reader: TileReader, encode: Encoder, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of all tiles, and which were blank; each batch of tiles is forgotten."""
    from tqdm.auto import tqdm

    embedding: NDArray[np.float32] | None = None
    blank = np.zeros(len(reader), dtype=bool)
    with tqdm(
        total=len(reader), desc="Histology", unit="tile", disable=not settings.progress_bar, leave=False
    ) as bar:
        for rows, batch in reader.batches(batch_size):
            blank[rows] = is_blank(batch)
            part = encode(batch)
            if embedding is None:
                embedding = np.empty((len(reader), part.shape[1]), dtype=np.float32)
            if part.shape[1] != embedding.shape[1]:
                raise ValueError(
                    "The encoder must return the same features for every tile; it returned "
                    f"{embedding.shape[1]}, then {part.shape[1]}."
                )
            embedding[rows] = part
            bar.update(len(rows))
    assert embedding is not None, "there is at least one spot"
    return embedding, blank


def _join_features(
    adata: AnnData, features: Any, encoder: Any, tile_um: float | None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Features from elsewhere in the order of spots, and what ``uns`` keeps about them."""
    named = encoder if isinstance(encoder, str) and encoder != DESCRIPTORS else "precomputed"
    record: dict[str, Any] = {"encoder": named, "params": {"source": "features"}}
    if tile_um is not None:
        record["tile_um"] = float(tile_um)
    if isinstance(features, str):
        if features not in adata.obsm:
            raise KeyError(f"obsm[{features!r}] does not exist; obsm has {list(adata.obsm)}.")
        features = adata.obsm[features]
    if isinstance(features, pd.DataFrame):
        features = in_order(features, adata.obs_names, "`features`")
        record["feature_names"] = np.array(features.columns.astype(str), dtype=str)
        features = features.to_numpy()
    features = features.toarray() if sparse.issparse(features) else np.asarray(features)
    if features.dtype.kind not in "fiu":
        raise ValueError(f"`features` must be numbers; their dtype is {features.dtype}.")
    if features.ndim != 2 or features.shape[0] != adata.n_obs or features.shape[1] == 0:
        raise ValueError(
            f"`features` must be spots × features, here {adata.n_obs} × F; their shape is {features.shape}."
        )
    return features.astype(np.float32), record


def _check_features(embedding: NDArray[np.float32], adata: AnnData, encoder: str) -> None:
    finite: NDArray[Any] = np.atleast_1d(np.isfinite(embedding).all(axis=1))
    bad = ~finite
    if bad.any():
        raise ValueError(
            f"Features of {encoder!r} must be finite; {int(bad.sum())} of {len(bad)} spots have NaN or "
            f"infinite ones, such as {some(adata.obs_names[bad])}. Drop these spots, or mend the encoder."
        )
