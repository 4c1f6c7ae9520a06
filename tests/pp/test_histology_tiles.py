import io

import anndata as ad
import numpy as np
import pytest
from PIL import Image

import stgen as stg
from stgen.pp._histology_tiles import open_image_tiles
from stgen.pp._tile_reader import stack


def pixels_of(adata, um_per_px):
    """The pixel each spot lies in."""
    return np.floor(adata.obsm["spatial"] / um_per_px).astype(int)


@pytest.mark.parametrize("um_per_px", [0.5, 1.0])
def test_the_middle_pixel_of_a_tile_is_the_spot(slide, coded_image, place_of, um_per_px):
    slide.obsm["spatial"] += np.random.default_rng(0).uniform(-20, 20, slide.obsm["spatial"].shape)
    image = coded_image(2000, 2000)
    stg.pp.histology_tiles(
        slide, image, tile_um=32 * um_per_px, tile_px=32, um_per_px=um_per_px, coordinates="um"
    )
    tiles = slide.obsm["tiles"]
    assert tiles.shape == (48, 32, 32, 3)
    assert tiles.dtype == np.uint8
    for tile, (x, y) in zip(tiles, pixels_of(slide, um_per_px)):
        assert place_of(tile[16, 16]) == (x, y)
        np.testing.assert_array_equal(tile, image[y - 16 : y + 16, x - 16 : x + 16])


def test_pixel_coordinates_are_pixels_of_the_image(slide, coded_image, place_of):
    image = coded_image(900, 1000)
    stg.pp.histology_tiles(slide, image, tile_um=21, tile_px=21, um_per_px=1, coordinates="px")
    for tile, (x, y) in zip(slide.obsm["tiles"], slide.obsm["spatial"]):
        assert place_of(tile[10, 10]) == (x, y)


@pytest.mark.parametrize(("tile_px", "um_per_px"), [(64, 0.5), (20, 0.73), (224, 2.5)])
def test_a_resampled_tile_shows_the_same_tissue(slide, tile_px, um_per_px):
    """A smooth image in µm looks the same whatever the pixels of image and tile."""

    def brightness(x, y):
        return 127 + 60 * np.sin(x / 60) + 60 * np.cos(y / 75)

    n = int(1000 / um_per_px)
    y, x = (np.mgrid[:n, :n] + 0.5) * um_per_px
    image = np.repeat(brightness(x, y)[..., None], 3, axis=2).round().astype(np.uint8)
    stg.pp.histology_tiles(slide, image, tile_um=112, tile_px=tile_px, um_per_px=um_per_px, coordinates="um")
    offset = (np.arange(tile_px) + 0.5) / tile_px * 112 - 56
    for tile, (cx, cy) in zip(slide.obsm["tiles"], slide.obsm["spatial"]):
        truth = brightness(cx + offset[None, :], cy + offset[:, None])
        assert np.abs(tile[..., 0] - truth).max() < 3


def test_border_tiles_are_white_outside_and_say_how_much(make_slide):
    adata = make_slide(origin=(10, 10))
    image = np.full((600, 800, 3), 100, np.uint8)
    stg.pp.histology_tiles(adata, image, tile_um=40, tile_px=40, um_per_px=1, coordinates="um")
    corner = adata.obsm["tiles"][0]
    assert (corner[:10] == 255).all()
    assert (corner[:, :10] == 255).all()
    assert (corner[10:, 10:] == 100).all()
    share = np.array([(tile == 255).mean() for tile in adata.obsm["tiles"]])
    np.testing.assert_allclose(adata.obs["tiles_outside"], share, atol=1e-6)
    assert adata.uns["tiles"]["params"]["n_padded"] == (share > 0).sum() > 0


def test_the_pitch_gives_the_pixel_size(slide, coded_image):
    slide.obsm["spatial"] = slide.obsm["spatial"] * 2
    image = coded_image(1500, 2000)
    stg.pp.histology_tiles(slide, image, tile_um=50, tile_px=100, spot_pitch_um=100)
    by_pitch = slide.obsm["tiles"].copy()
    assert slide.uns["tiles"]["params"]["um_per_px"] == pytest.approx(0.5)
    stg.pp.histology_tiles(slide, image, tile_um=50, tile_px=100, um_per_px=0.5)
    np.testing.assert_array_equal(slide.obsm["tiles"], by_pitch)


def test_conversion_to_um_does_not_move_tiles(slide, coded_image):
    slide.obsm["spatial"] = slide.obsm["spatial"] * 2
    slide.uns["um_per_unit"] = 0.5
    image = coded_image(1500, 2000)
    stg.pp.histology_tiles(slide, image, tile_um=30, tile_px=60)
    before = slide.obsm["tiles"]
    stg.pp.coordinates_in_um(slide)
    stg.pp.histology_tiles(slide, image, tile_um=30, tile_px=60)
    np.testing.assert_array_equal(slide.obsm["tiles"], before)


@pytest.mark.parametrize("suffix", ["png", "tif", "zip.tif"])
def test_files_and_arrays_give_the_same_tiles(slide, tissue, tmp_path, suffix):
    image = tissue(800, 1000)
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip.tif":
        Image.fromarray(image).save(path, compression="tiff_deflate")
    else:
        Image.fromarray(image).save(path)
    settings = {"tile_um": 60, "tile_px": 40, "um_per_px": 1, "coordinates": "um", "copy": True}
    from_file = stg.pp.histology_tiles(slide, path, **settings)
    from_array = stg.pp.histology_tiles(slide, image, **settings)
    np.testing.assert_array_equal(from_file.obsm["tiles"], from_array.obsm["tiles"])


def test_an_uncompressed_tiff_is_memory_mapped_also_with_channels_first(tissue, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="memory-mapped TIFF needs tifffile")
    from stgen.pp._images import open_image

    image = tissue(50, 60)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(image, 2, 0), photometric="rgb", planarconfig="separate")
    for name in ("a.tif", "b.tif"):
        opened = open_image(tmp_path / name)
        assert isinstance(opened._pixels, np.memmap) or isinstance(opened._pixels.base, np.memmap)
        np.testing.assert_array_equal(opened.window(10, 30, 5, 60), image[10:30, 5:60])


def test_a_large_picture_is_read_without_a_warning_about_its_size(slide, tmp_path, recwarn):
    limit = Image.MAX_IMAGE_PIXELS
    Image.fromarray(np.full((9500, 9500), 200, np.uint8)).save(tmp_path / "a.png", compress_level=1)
    stg.pp.histology_tiles(slide[:2].copy(), tmp_path / "a.png", tile_px=20, um_per_px=1, coordinates="um")
    assert not [w for w in recwarn if "decompression" in str(w.message)]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_transparent_grey_and_scaled_pictures_become_rgb(tmp_path):
    from stgen.pp._images import open_image

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", rgba):
        pixels = open_image(image).window(0, 4, 0, 4)
        assert (pixels[:2] == (10, 20, 30)).all()
        assert (pixels[2:] == 255).all()
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(tmp_path / "grey.png")
    assert (open_image(tmp_path / "grey.png").window(0, 4, 0, 4) == 77).all()
    assert (open_image(np.full((4, 4, 3), 0.2)).window(0, 4, 0, 4) == 51).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((800, 1000, 3), np.uint16), "8 bits per channel .*uint16"),
        (np.full((800, 1000, 3), 200.0), "floats from 0 to 1; it has floats from 200 to 200"),
        (np.zeros((800, 1000), np.uint8), r"height × width × 3 \(RGB\); its shape is \(800, 1000\)"),
        (np.zeros((3, 800, 1000), np.uint8), "Move the channels to the end"),
    ],
)
def test_images_that_cannot_be_read_without_guessing_are_refused(slide, refused, image, message):
    with refused(slide, ValueError, message):
        stg.pp.histology_tiles(slide, image, um_per_px=1, coordinates="um")


def test_files_that_cannot_be_read_are_named(slide, tmp_path, refused):
    with refused(slide, FileNotFoundError, r"absent.png' does not exist"):
        stg.pp.histology_tiles(slide, tmp_path / "absent.png", um_per_px=1)
    (tmp_path / "a.jpg").write_text("no picture")
    with refused(slide, ValueError, "'a.jpg' cannot be read as an image"):
        stg.pp.histology_tiles(slide, tmp_path / "a.jpg", um_per_px=1)
    Image.fromarray(np.zeros((800, 1000), np.uint16)).save(tmp_path / "b.png")
    with refused(slide, ValueError, "'b.png' must have 8 bits per channel; its mode is 'I;16'"):
        stg.pp.histology_tiles(slide, tmp_path / "b.png", um_per_px=1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, r"pixel size of the image is not known.*spot_pitch_um=100"),
        ({"um_per_px": 50}, ValueError, "A pixel of 50 µm is implausible; expected 0.1 to 10 µm"),
        ({"spot_pitch_um": 5}, ValueError, "A pixel of 0.05 µm is implausible"),
        (
            {"um_per_px": 0.5, "spot_pitch_um": 100},
            ValueError,
            r"contradicts each other: 0.5 µm per unit \(given as um_per_px\), and 1 \(spot pitch",
        ),
        ({"um_per_px": 1, "tile_um": 0}, ValueError, "`tile_um` must be a length in µm above 0"),
        ({"um_per_px": 1, "tile_px": 0}, ValueError, "at least 1; got 0"),
        ({"um_per_px": 1, "tile_um": 2000}, ValueError, "2000 pixels wide .* more than the image"),
        ({"um_per_px": 1, "coordinates": "mm"}, ValueError, "must be 'um', 'px' or None; got 'mm'"),
        (
            {"um_per_px": 1, "spatial_key": "xy"},
            KeyError,
            r"obsm\['xy'\] does not exist; obsm has \['spatial'\]",
        ),
        (
            {"um_per_px": {"s2": 1}, "library_key": "section"},
            ValueError,
            "has no value for section s1; it has s2",
        ),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(slide, refused, settings, error, message):
    with refused(slide, error, message):
        stg.pp.histology_tiles(slide, np.zeros((800, 1000, 3), np.uint8), **settings)


def test_spots_outside_are_counted_and_the_hires_picture_is_suspected(slide, refused):
    with refused(
        slide,
        ValueError,
        r"48 of 48 spots lie outside of the image: it is 120 × 90 pixels.*fit an image 7.22 times",
    ):
        stg.pp.histology_tiles(slide, np.zeros((90, 120, 3), np.uint8), um_per_px=1)
    with refused(
        slide, ValueError, "6 of 48 spots lie outside .* x 150 to 850, y 150 to 650 pixels. Drop these spots"
    ):
        stg.pp.histology_tiles(slide, np.zeros((800, 840, 3), np.uint8), um_per_px=1)


def test_a_scale_that_puts_spots_on_each_other_is_refused(make_slide, refused):
    adata = make_slide(pitch=4)
    with refused(adata, ValueError, "Neighbouring spots would be 0.4 µm apart"):
        stg.pp.histology_tiles(adata, np.zeros((800, 840, 3), np.uint8), um_per_px=0.1, coordinates="px")


@pytest.fixture
def two_sections(make_slide, tissue):
    both = ad.concat([make_slide(section="a"), make_slide(section="b", n_x=5)])
    order = np.random.default_rng(0).permutation(both.n_obs)
    return both[order].copy(), {"a": tissue(800, 1000, seed=1), "b": tissue(700, 900, seed=2)}


def test_every_section_is_cut_from_its_own_image(two_sections):
    adata, images = two_sections
    settings = {"tile_um": 60, "tile_px": 30, "um_per_px": 1, "coordinates": "um", "copy": True}
    both = stg.pp.histology_tiles(adata, images, library_key="section", **settings)
    for name, image in images.items():
        here = (adata.obs["section"] == name).to_numpy()
        alone = stg.pp.histology_tiles(adata[here].copy(), image, **settings)
        np.testing.assert_array_equal(both.obsm["tiles"][here], alone.obsm["tiles"])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda images: images, {}, "lies? exactly on|`library_key|library_key='section'"),
        (
            lambda images: images["a"],
            {"library_key": "section"},
            r"names 2 sections \(a, b\), but there is one image",
        ),
        (
            lambda images: {"a": images["a"]},
            {"library_key": "section"},
            "no image for section b; the dict has a",
        ),
    ],
)
def test_sections_without_their_image_are_named(two_sections, refused, change, settings, message):
    adata, images = two_sections
    with refused(adata, ValueError, message):
        stg.pp.histology_tiles(adata, change(images), um_per_px=1, coordinates="um", **settings)


def test_a_stream_in_any_batch_size_equals_all_at_once_and_holds_one_image(two_sections):
    adata, images = two_sections
    geometry = {"tile_um": 60, "tile_px": 30, "um_per_px": 1, "spot_pitch_um": None, "coordinates": "um"}
    reader = open_image_tiles(adata, images, spatial_key="spatial", library_key="section", **geometry)
    whole = stack(reader)
    for size in (1, 7, 1000):
        seen = np.zeros(len(reader), int)
        for rows, batch in reader.batches(size):
            assert len(rows) <= size
            seen[rows] += 1
            np.testing.assert_array_equal(batch, whole[rows])
        assert (seen == 1).all()


def test_pictures_in_uns_are_found_by_name(slide, tissue):
    image = tissue(400, 500)
    slide.obsm["spatial"] = slide.obsm["spatial"] / 0.25  # full-resolution pixels of 0.25 µm
    slide.uns["um_per_unit"] = 0.25
    slide.uns["spatial"] = {
        "s1": {"images": {"hires": image / 255}, "scalefactors": {"tissue_hires_scalef": 0.125}}
    }
    stg.pp.histology_tiles(slide, "hires", tile_um=40, tile_px=20)
    assert slide.uns["tiles"]["params"]["um_per_px"] == 2
    for tile, (x, y) in zip(slide.obsm["tiles"], (slide.obsm["spatial"] * 0.125).astype(int)):
        np.testing.assert_array_equal(tile, image[y - 10 : y + 10, x - 10 : x + 10])


def test_a_pixel_size_that_a_picture_of_uns_does_not_have_is_refused(slide, tissue, refused):
    slide.uns["spatial"] = {
        "v": {"images": {"hires": tissue(900, 900)}, "scalefactors": {"tissue_hires_scalef": 0.5}}
    }
    slide.obsm["spatial"] *= 2
    stg.pp.coordinates_in_um(slide, um_per_unit=0.5)
    message = (
        r"`um_per_px` is 1.3, but a pixel of this picture is 1 µm: 0.5 µm per unit .* Leave `um_per_px` out"
    )
    with refused(slide, ValueError, message):
        stg.pp.histology_tiles(slide, "hires", um_per_px=1.3)
    stg.pp.histology_tiles(slide, "hires", tile_px=8)
    assert slide.uns["tiles"]["params"]["um_per_px"] == 1.0


def test_corners_of_lazyslide_tiles_are_cut_around_their_centres_in_pixels_too(coded_image, place_of):
    corners = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) * 40.0
    adata = ad.AnnData(np.ones((16, 2), dtype=np.float32), obsm={"spatial": corners})
    adata.obs_names = [f"t{i}" for i in range(16)]
    adata.uns["slide_properties"] = {"mpp": 0.5}
    adata.uns["tile_spec"] = {"width": 40, "height": 40, "mpp": 0.5}
    stg.pp.histology_tiles(adata, coded_image(200, 200), tile_um=20, tile_px=40)
    for tile, (x, y) in zip(adata.obsm["tiles"], corners.astype(int)):
        assert place_of(tile[0, 0]) == (x, y)


def write_h5(path, names, tiles, **attributes):
    h5py = pytest.importorskip("h5py", reason="stored tiles are h5 files")
    with h5py.File(path, "w") as file:
        jpeg = file.create_dataset("jpeg", (len(names),), dtype=h5py.vlen_dtype(np.uint8))
        for i, tile in enumerate(tiles):
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "PNG")  # exact, and Pillow does not mind the name
            jpeg[i] = np.frombuffer(buffer.getvalue(), np.uint8)
        file["obs_names"] = np.array(names, dtype="S20")
        file.attrs.update(attributes)


def test_stored_tiles_are_joined_by_name(slide, tmp_path):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (48, 12, 12, 3)).astype(np.uint8)
    order = rng.permutation(48)
    names = slide.obs_names[order]
    write_h5(tmp_path / "a.h5", names[:30], tiles[order][:30], mpp=0.5, size_px=12)
    write_h5(tmp_path / "b.h5", [*names[30:], "other"], [*tiles[order][30:], tiles[0]], mpp=0.5, size_px=12)
    stg.pp.read_tiles(slide, [tmp_path / "a.h5", tmp_path / "b.h5"])
    np.testing.assert_array_equal(slide.obsm["tiles"], tiles)
    assert slide.uns["tiles"]["params"]["tile_um"] == 6


def test_stored_tiles_that_do_not_fit_are_named(slide, tmp_path, refused):
    tiles = np.zeros((48, 4, 4, 3), np.uint8)
    write_h5(tmp_path / "a.h5", slide.obs_names[:-2], tiles[:-2], mpp=0.5, size_px=4)
    with refused(
        slide, ValueError, "2 of 48 spots have no stored tile, such as s1_46, s1_47; the files have 46"
    ):
        stg.pp.read_tiles(slide, tmp_path / "a.h5")
    with refused(slide, ValueError, "The tile of spot 's1_0' is stored twice"):
        stg.pp.read_tiles(slide, [tmp_path / "a.h5", tmp_path / "a.h5"])
    write_h5(tmp_path / "b.h5", slide.obs_names, tiles)
    with refused(slide, ValueError, "do not say how large their tiles of 4 pixels are .* Give `tile_um=`"):
        stg.pp.read_tiles(slide, tmp_path / "b.h5")
    with refused(slide, FileNotFoundError, "c.h5' does not exist"):
        stg.pp.read_tiles(slide, tmp_path / "c.h5")
    write_h5(tmp_path / "d.h5", slide.obs_names, tiles, mpp=0.5, size_px=4)
    with refused(slide, ValueError, "must be of one size; found 2.0, 112.0 µm"):
        stg.pp.read_tiles(slide, tmp_path / "d.h5", tile_um=112.0)


def test_tiles_survive_a_file(slide, tissue, tmp_path):
    stg.pp.histology_tiles(slide, tissue(800, 1000), tile_px=8, um_per_px=1, coordinates="um")
    slide.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["tiles"], slide.obsm["tiles"])
    assert again.uns["tiles"]["params"]["tile_um"] == 112
