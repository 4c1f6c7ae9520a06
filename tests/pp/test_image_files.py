"""What a file says of its pixels is believed, and a file that cannot be read is called by its name."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

import stgen as stg
from stgen.pp._images import open_image

from .test_tiles_at_the_door import GEOMETRY, png, write_h5

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def four(tissue):
    """H&E with a fourth channel that would make most of it white if it were opacity."""
    rgb = tissue(60, 80)
    fourth = np.zeros((60, 80), np.uint8)
    fourth[:, :20], fourth[:, 20:40] = 255, 128
    return np.dstack([rgb, fourth])


def pixels(path):
    opened = open_image(path)
    return opened.window(0, opened.height, 0, opened.width)


def on_white(rgba):
    opacity = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


# a fourth channel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_an_unspecified_fourth_channel_of_a_tiff_is_not_opacity(four, tmp_path, compression, planes, recwarn):
    stored = np.moveaxis(four, 2, 0).copy() if planes == "separate" else four
    said = {"photometric": "rgb", "planarconfig": planes, "extrasamples": ["unspecified"]}
    tifffile.imwrite(tmp_path / "a.tif", stored, compression=compression, **said)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), four[..., :3])
    assert not recwarn


def test_a_fourth_channel_that_a_tiff_calls_opacity_is_opacity(four, tmp_path, recwarn):
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), on_white(four))
    assert not recwarn


def test_colours_that_a_tiff_has_multiplied_by_opacity_are_not_multiplied_again(four, tmp_path):
    multiplied = four.copy()
    multiplied[..., :3] = np.rint(four[..., :3] * (four[..., 3:] / 255))
    tifffile.imwrite(tmp_path / "a.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    found, expected = pixels(tmp_path / "a.tif").astype(int), on_white(four).astype(int)
    assert np.abs(found - expected).max() <= 2  # what rounding took


def test_four_grey_channels_are_neither_colour_nor_opacity(four, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"image 'a\.tif' must be one RGB image; it holds 4 grey channels"):
        open_image(tmp_path / "a.tif")


def test_without_tifffile_the_tag_is_believed_as_well(four, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unspecified"])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), four[..., :3])


def test_a_fourth_channel_of_an_array_is_taken_as_opacity_and_flagged(four, tmp_path, recwarn):
    Image.fromarray(four).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), on_white(four))
    assert not recwarn  # a PNG says what it is
    with pytest.warns(
        UserWarning, match=r"four channels\. The fourth is taken as opacity.*`image\[\.\.\., :3\]`"
    ):
        np.testing.assert_array_equal(pixels(four), on_white(four))


# orientation --------------------------------------------------------------------------------------------------------


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_picture_that_says_it_is_turned_is_refused_in_every_format(tissue, tmp_path, kind, orientation):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(tissue(60, 80)).save(path, exif=turned(orientation))
    with pytest.raises(
        ValueError,
        match=rf"image 'a\.{kind}' says that it is stored turned or mirrored \(orientation {orientation}\).* as stored, give "
        r"`.*`; if as shown, `np\.asarray\(ImageOps\.exif_transpose",
    ):
        open_image(path)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(pixels(shown), shown)  # the remedy is a remedy


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [0, 1])
def test_a_picture_that_is_upright_is_read_as_it_is_stored(tissue, tmp_path, kind, orientation):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(tissue(60, 80)).save(path, exif=turned(orientation))
    np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path)))


def test_a_stored_tile_and_a_picture_of_pillow_that_are_turned_are_refused(slide, tissue, refused, tmp_path):
    tile = Image.fromarray(tissue(8, 8))
    encoded = [png(np.asarray(tile))] * slide.n_obs
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", exif=turned(6))
    encoded[5] = buffer.getvalue()
    write_h5(tmp_path / "a.h5", slide.obs_names, encoded)
    with refused(slide, ValueError, r"tile of spot 's1_5' in 'a\.h5' says that it is stored turned"):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="The image says that it is stored turned"):
        open_image(Image.open(io.BytesIO(encoded[5])))


# damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "zip.tif"])
def test_a_truncated_picture_is_named(slide, tissue, refused, tmp_path, kind, share):
    """At the latest when its pixels are read; never as black tissue."""
    path = tmp_path / f"whole.{kind}"
    if kind == "zip.tif":
        tifffile.imwrite(path, tissue(800, 1000), photometric="rgb", compression="zlib", tile=(128, 128))
    else:
        Image.fromarray(tissue(800, 1000)).save(path)
    whole = path.read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(whole[: int(share * len(whole))])
    with refused(
        slide,
        ValueError,
        rf"image.* 'cut\.{kind}' cannot be read: .*truncated or damaged; copy or export it again",
    ):
        stg.pp.histology_tiles(slide, tmp_path / f"cut.{kind}", **GEOMETRY)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif"):
        (tmp_path / name).write_bytes(b"no picture at all")
        with pytest.raises(ValueError, match=rf"'{name}' cannot be read as an image \(jpg, png or tif\)"):
            open_image(tmp_path / name)


def test_a_damaged_chunk_of_an_array_on_disk_is_named(tissue, tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = zarr.open_array(
        tmp_path / "a.zarr", mode="w", shape=(60, 80, 3), dtype="u1", chunks=(30, 80, 3), zarr_format=2
    )
    stored[:] = tissue(60, 80)
    (tmp_path / "a.zarr" / "1.0.0").write_bytes(b"damaged")
    opened = open_image(stored, "image of section 's1'")
    np.testing.assert_array_equal(opened.window(0, 30, 0, 80), tissue(60, 80)[:30])
    with pytest.raises(ValueError, match=r"image of section 's1' cannot be read: .*truncated or damaged"):
        opened.window(20, 50, 0, 80)


def test_a_truncated_file_of_tiles_is_named(slide, tissue, refused, tmp_path):
    write_h5(tmp_path / "a.h5", slide.obs_names, [png(tissue(8, 8))] * slide.n_obs)
    whole = (tmp_path / "a.h5").read_bytes()
    for name, content in (("cut.h5", whole[: len(whole) // 2]), ("none.h5", b"no h5 file")):
        (tmp_path / name).write_bytes(content)
        with refused(
            slide, ValueError, rf"The file of tiles '{name}' cannot be read: .*truncated or damaged"
        ):
            stg.pp.read_tiles(slide, tmp_path / name)
