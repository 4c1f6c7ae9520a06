"""Images and tiles are either read right or refused with what was found and what to do."""

import io
import logging
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

import stgen as stg
from stgen.data._tiles import is_blank
from stgen.pp._images import open_image

GEOMETRY = {"um_per_px": 1, "coordinates": "um", "tile_px": 16, "tile_um": 16}
LARGER = GEOMETRY | {"tile_px": 64, "tile_um": 64}


@pytest.fixture
def image(tissue):
    return tissue(800, 1000)


def cut(slide, image):
    return stg.pp.histology_tiles(slide, image, copy=True, **GEOMETRY).obsm["tiles"]


def write_png16(path, pixels):
    """A PNG with 16 bits per channel, which Pillow reads but does not write."""
    height, width, n_channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[n_channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


# images -------------------------------------------------------------------------------------------------------------


def test_floats_to_one_opaque_alpha_and_pictures_of_pillow_give_the_same_tiles(slide, image):
    expected = cut(slide, image)
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    for same in (image / 255, (image / 255).astype(np.float32), opaque, opaque / 255, Image.fromarray(image)):
        np.testing.assert_array_equal(cut(slide, same), expected)


def test_arrays_on_disk_are_read_like_those_in_memory(slide, image, tmp_path):
    h5py = pytest.importorskip("h5py")
    zarr = pytest.importorskip("zarr")
    expected = cut(slide, image)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, pixels in (("bytes", image), ("floats", image / 255)):
            np.testing.assert_array_equal(cut(slide, file.create_dataset(name, data=pixels)), expected)
    stored = zarr.open_array(
        tmp_path / "a.zarr", mode="w", shape=image.shape, dtype="f4", chunks=(300, 300, 3)
    )
    stored[:] = image / 255
    np.testing.assert_array_equal(cut(slide, stored), expected)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_a_picture_of_pillow_means_the_same_as_its_file(image, mode):
    picture = Image.fromarray(image[:40, :50]).convert("RGB").convert(mode)
    pixels = open_image(picture).window(0, 40, 0, 50)
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i.astype(np.uint16) * 257,
            r"8 bits per channel \(uint8\); its dtype is uint16. Scale it so that",
        ),
        (lambda i: i.astype(np.int64), r"8 bits per channel \(uint8\); its dtype is int64"),
        (
            lambda i: i.astype(np.float32),
            "floats from 0 to 1; it has floats from 0 to 255. Scale it so that white",
        ),
        (lambda i: i / 255 * 2 - 1, "floats from 0 to 1; it has floats from -1 to 1"),
        (lambda i: np.where(i > 250, np.nan, i / 255), "it has floats from nan to nan"),
        (lambda i: np.moveaxis(i, 2, 0), r"Move the channels to the end: `np.moveaxis\(image, 0, -1\)`"),
        (
            lambda i: i[..., 0],
            r"its shape is \(800, 1000\). If it is grey, repeat it: `np.stack\(\[image\] \* 3",
        ),
        (
            lambda i: i[..., :1],
            r"shape is \(800, 1000, 1\). If it is grey, repeat it: `np.repeat\(image, 3, axis=2\)`",
        ),
        (lambda i: i[None], r"height × width × 3 \(RGB\); its shape is \(1, 800, 1000, 3\)"),
        (lambda i: Image.fromarray(i[..., 0].astype(np.int32)), "8 bits per channel; its mode is 'I'"),
    ],
)
def test_images_with_an_unknown_white_or_order_are_refused(slide, refused, image, change, message):
    image[0, 0], image[0, 1] = 0, 255
    with refused(slide, ValueError, message):
        stg.pp.histology_tiles(slide, change(image), **GEOMETRY)


@pytest.mark.parametrize("n_channels", [3, 4])
def test_a_png_of_16_bits_is_refused_not_cut_down(slide, refused, image, tmp_path, n_channels):
    """12 bits stored as 16 would come out sixteen times too dark."""
    pixels = np.dstack([image, image])[..., :n_channels].astype(np.uint16) * 16
    write_png16(tmp_path / "a.png", pixels)
    with refused(slide, ValueError, r"image 'a.png' must have 8 bits per channel; it has 16. Scale it"):
        stg.pp.histology_tiles(slide, tmp_path / "a.png", **GEOMETRY)


@pytest.mark.parametrize("with_tifffile", [True, False])
def test_tiffs_of_other_kinds_are_right_or_refused(
    slide, refused, image, tmp_path, monkeypatch, with_tifffile
):
    tifffile = pytest.importorskip("tifffile", reason="writes the files")
    tifffile.imwrite(tmp_path / "deep.tif", image.astype(np.uint16) * 16, photometric="rgb")
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(image, 2, 0).copy(), photometric="minisblack")
    tifffile.imwrite(tmp_path / "grey.tif", image[..., 0].copy(), photometric="minisblack")
    inks = Image.fromarray(image).convert("CMYK")
    inks.save(tmp_path / "inks.tif")
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(image, photometric="rgb", subifds=1)
        file.write(image[::2, ::2].copy(), photometric="rgb", subfiletype=1)
    if not with_tifffile:
        monkeypatch.setitem(sys.modules, "tifffile", None)
    with refused(slide, ValueError, "'deep.tif' must have 8 bits per channel"):
        stg.pp.histology_tiles(slide, tmp_path / "deep.tif", **GEOMETRY)
    with refused(slide, ValueError, r"'pages.tif' must be one RGB image; it holds 3 grey pages.*np.moveaxis"):
        stg.pp.histology_tiles(slide, tmp_path / "pages.tif", **GEOMETRY)
    grey = cut(slide, tmp_path / "grey.tif")
    np.testing.assert_array_equal(grey, cut(slide, np.stack([image[..., 0]] * 3, axis=2)))
    np.testing.assert_array_equal(
        cut(slide, tmp_path / "inks.tif"), cut(slide, np.asarray(inks.convert("RGB")))
    )
    np.testing.assert_array_equal(cut(slide, tmp_path / "pyramid.tif"), cut(slide, image))


# blank tiles --------------------------------------------------------------------------------------------------------


def test_glass_is_blank_and_tissue_is_not(tissue):
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(240, 2, (5, 64, 64, 3)), 0, 255).astype(np.uint8)
    pale = np.clip(rng.normal(200, 12, (5, 64, 64, 3)), 0, 255).astype(np.uint8)
    assert is_blank(glass).all() and is_blank(np.zeros((2, 9, 9, 3), np.uint8)).all()
    assert not is_blank(pale).any() and not is_blank(tissue(64, 64)[None]).any()


def test_blank_tiles_are_warned_of_counted_and_marked(slide, image, caplog):
    image[:, :290] = 245
    with caplog.at_level(logging.WARNING, "stgen"):
        stg.pp.histology_tiles(slide, image, **LARGER)
    on_glass = slide.obsm["spatial"][:, 0] < 258
    np.testing.assert_array_equal(slide.obs["tiles_blank"], on_glass)
    assert slide.uns["tiles"]["params"]["n_blank"] == on_glass.sum() == 12
    assert "12 of 48 tiles are blank (no contrast, as bare glass), such as s1_0, s1_1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stgen"):
        stg.pp.embed_histology(slide, image, **LARGER)
    assert "12 of 48 tiles are blank" in caplog.text
    assert slide.uns["histology"]["params"]["n_blank"] == 12
    assert np.isfinite(slide.obsm["X_histology"]).all()


def test_an_image_that_went_black_is_noticed(slide, image, caplog):
    with caplog.at_level(logging.WARNING, "stgen"):
        stg.pp.histology_tiles(slide, image / 255 / 255, **LARGER)  # scaled twice
    assert "All 48 tiles are blank" in caplog.text and "Check the image" in caplog.text


def test_tissue_is_not_warned_of(slide, image, caplog):
    with caplog.at_level(logging.WARNING, "stgen"):
        stg.pp.histology_tiles(slide, image, **LARGER)
    assert not caplog.messages and not slide.obs["tiles_blank"].any()


# tiles that were cut before -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: np.moveaxis(t, 3, 1),
            r"shape is \(48, 3, 32, 32\). Move the channels to the end: `np.moveaxis\(t",
        ),
        (
            lambda t: np.concatenate([t, t[..., :1]], 3),
            r"shape is \(48, 32, 32, 4\). Leave out the fourth channel",
        ),
        (lambda t: t[..., 0], r"shape is \(48, 32, 32\). If they are grey, repeat them"),
        (lambda t: t[:, :24], r"shape is \(48, 24, 32, 3\). Tiles are square"),
        (
            lambda t: t.astype(np.uint16) * 257,
            r"must be uint8, white being 255; its dtype is uint16.*the value of white",
        ),
        (lambda t: t / 255, r"its dtype is float64. Scale and convert: `tiles = np.rint\(tiles / 1 \* 255\)"),
        (
            lambda t: t.astype(np.float32),
            r"its dtype is float32. Scale and convert: `tiles = np.rint\(tiles / 255 \*",
        ),
        (
            lambda t: t / 127.5 - 1,
            r"np.rint\(tiles / white \* 255\).astype\('uint8'\)`, with the value of white",
        ),
        (lambda t: t[:40], "one tile per spot, in their order: 48 spots, 40 tiles"),
        (
            lambda t: [*t[:40], *t[40:, :24, :24]],
            "of one size; got 40 of 32 × 32 × 3; 8 of 24 × 24 × 3. Cut or resize",
        ),
    ],
)
def test_arrays_of_tiles_in_another_form_are_refused_with_the_remedy(slide, refused, change, message):
    tiles = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3)).astype(np.uint8)
    changed = change(tiles)
    with refused(slide, ValueError, message):
        stg.pp.embed_histology(slide, tiles=changed, tile_um=32)


def test_a_list_of_tiles_is_an_array_of_tiles(slide):
    tiles = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3)).astype(np.uint8)
    whole = stg.pp.embed_histology(slide, tiles=tiles, tile_um=32, copy=True).obsm["X_histology"]
    listed = stg.pp.embed_histology(slide, tiles=list(tiles), tile_um=32, copy=True).obsm["X_histology"]
    np.testing.assert_array_equal(whole, listed)


def test_another_size_in_um_than_the_tiles_were_cut_with_is_refused(slide, image):
    stg.pp.histology_tiles(slide, image, **GEOMETRY)
    with pytest.raises(
        ValueError, match=r"`tile_um` is 112, but uns\['tiles'\] says .* show 16 µm. Leave it out"
    ):
        stg.pp.embed_histology(slide, tile_um=112)


def test_an_encoder_that_wants_another_size_is_told_what_it_got(slide, image):
    def encoder(tiles):
        raise RuntimeError(f"size {tiles.shape[1]} does not match 224")

    with pytest.raises(RuntimeError, match="does not match 224") as caught:
        stg.pp.embed_histology(slide, image, encoder=encoder, **GEOMETRY)
    (note,) = caught.value.__notes__
    assert "'encoder' was given 32 tiles of 16 × 16 pixels" in note and "`tile_px=`" in note


def write_h5(path, names, encoded, **attributes):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        jpeg = file.create_dataset("jpeg", (len(names),), dtype=h5py.vlen_dtype(np.uint8))
        for i, one in enumerate(encoded):
            jpeg[i] = np.frombuffer(one, np.uint8)
        file["obs_names"] = np.array(names, dtype="S20")
        file.attrs.update({"mpp": 0.5, "size_px": 8} | attributes)


def png(tile):
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def stored(slide):
    """PNGs of 8 × 8 pixels for all spots."""
    tiles = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3)).astype(np.uint8)
    return tiles, [png(tile) for tile in tiles]


def test_stored_tiles_of_another_size_are_named(slide, refused, stored, tmp_path):
    tiles, encoded = stored
    encoded[7] = png(tiles[7][:6])
    write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
    with refused(slide, ValueError, "one size; that of spot 's1_7' is 8 × 6 pixels, the first one is 8 × 8"):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")
    encoded[0] = png(tiles[0][:6])
    write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
    with refused(slide, ValueError, "must be square; that of spot 's1_0' is 8 × 6 pixels"):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")


def test_a_file_that_is_wrong_about_its_tiles_is_refused(slide, refused, stored, tmp_path):
    write_h5(tmp_path / "a.h5", slide.obs_names, stored[1], size_px=224)
    with refused(slide, ValueError, r"'a.h5' says that its tiles have 224 pixels a side .*, but they have 8"):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")


def test_stored_tiles_of_16_bits_or_of_nonsense_are_named(slide, refused, stored, tmp_path):
    encoded = stored[1]
    write_png16(tmp_path / "deep.png", np.full((8, 8, 3), 4095, np.uint16))
    encoded[5] = (tmp_path / "deep.png").read_bytes()
    write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
    with refused(slide, ValueError, "tile of spot 's1_5' in 'a.h5' must have 8 bits per channel; it has 16"):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")
    for nonsense in (b"no picture", stored[1][0][:60]):
        encoded[5] = nonsense
        write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
        with refused(
            slide, ValueError, r"tile of spot 's1_5' in 'a.h5' cannot be decoded \(\d+ bytes\). Store"
        ):
            stg.pp.read_tiles(slide, tmp_path / "a.h5")


def test_transparent_stored_tiles_lie_on_white(slide, stored, tmp_path):
    tiles, encoded = stored
    rgba = np.dstack([tiles[3], np.full((8, 8), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    encoded[3] = png(rgba)
    write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
    stg.pp.read_tiles(slide, tmp_path / "a.h5")
    assert (slide.obsm["tiles"][3, :4] == 255).all()
    np.testing.assert_array_equal(slide.obsm["tiles"][3, 4:], tiles[3, 4:])
    np.testing.assert_array_equal(np.delete(slide.obsm["tiles"], 3, 0), np.delete(tiles, 3, 0))
