import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

from stgen.pp._descriptors import (
    _average,
    _colour,
    _otsu,
    _patterns,
    describe_tiles,
    descriptor_names,
)


@pytest.fixture
def tiles(tissue):
    return np.stack([tissue(224, 224, n_nuclei=n, seed=n) for n in (0, 10, 40, 120)])


def column(features, name):
    return features[:, descriptor_names().index(name)]


def test_there_are_108_named_numbers(tiles):
    names = descriptor_names()
    features = describe_tiles(tiles, um_per_px=0.5)
    assert features.shape == (4, 108)
    assert features.dtype == np.float32
    assert len(set(names)) == 108
    assert sum(name.startswith("centre_") for name in names) == 54


def test_colour_equals_numpy_tile_by_tile(tiles):
    channels = np.moveaxis(tiles, 3, 1) / np.float32(255)
    fast = _colour(channels.astype(np.float32)).reshape(4, 3, 5)
    for i, c in np.ndindex(4, 3):
        pixels = channels[i, c].ravel()
        np.testing.assert_allclose(fast[i, c, :2], [pixels.mean(), pixels.std()], rtol=1e-4)
        np.testing.assert_allclose(fast[i, c, 2:], np.percentile(pixels, [5, 50, 95]), atol=0.005)


def slow_patterns(image, radius):
    """Ten shares by a loop over pixels and neighbours."""
    shares = np.zeros(10)
    offsets = [(round(-radius * np.sin(a)), round(radius * np.cos(a))) for a in np.arange(8) * np.pi / 4]
    for y in range(radius, image.shape[0] - radius):
        for x in range(radius, image.shape[1] - radius):
            bits = [int(image[y + dy, x + dx] >= image[y, x]) for dy, dx in offsets]
            changes = sum(bits[i] != bits[i - 1] for i in range(8))
            shares[sum(bits) if changes <= 2 else 9] += 1
    return shares / shares.sum()


@pytest.mark.parametrize("radius", [1, 2])
def test_patterns_equal_a_loop_over_pixels(radius):
    images = np.random.default_rng(0).integers(0, 9, (2, 15, 18)).astype(np.uint8)
    slow = [slow_patterns(image, radius) for image in images]
    np.testing.assert_allclose(_patterns(images, radius=radius), slow, atol=1e-6)


def test_thresholds_equal_scikit_image():
    rng = np.random.default_rng(0)
    images = np.concatenate([rng.normal(0, 1, (3, 20, 30)), rng.normal(5, 1.5, (3, 20, 30))], axis=1).astype(
        np.float32
    )
    bin_width = np.ptp(images, axis=(1, 2)).max() / 256
    np.testing.assert_allclose(
        _otsu(images), [threshold_otsu(image) for image in images], atol=1.01 * bin_width
    )


def test_stains_are_those_of_scikit_image_up_to_its_units(tiles):
    """scikit-image clips at 0 and takes another logarithm; the median of haematoxylin is neither."""
    ours = column(describe_tiles(tiles, um_per_px=0.5), "tile_haematoxylin_p95")
    coarse = _average(tiles, 2)
    theirs = [np.percentile(rgb2hed(tile)[..., 0], 95) * 6 for tile in coarse]  # log10(1e-6) = -6
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=0.03)


def test_planted_nuclei_are_counted(tissue):
    for n in (10, 25, 50):
        found = [
            column(
                describe_tiles(tissue(224, 224, n_nuclei=n, seed=s)[None], um_per_px=0.5),
                "tile_nuclear_density",
            )[0]
            for s in range(8)
        ]
        per_tile = np.mean(found) * 1.12**2
        assert 0.7 * n < per_tile < 1.15 * n


def test_more_nuclei_mean_more_density_area_and_stain(tiles):
    features = describe_tiles(tiles, um_per_px=0.5)
    for name in (
        "tile_nuclear_density",
        "tile_nuclear_area",
        "centre_nuclear_area",
        "tile_haematoxylin_mean",
    ):
        assert (np.diff(column(features, name)) > 0).all(), name
    assert column(features, "tile_nuclear_density")[0] == 0, "pink without nuclei has none"


def test_density_is_per_area_and_does_not_depend_on_the_pixel_size(tissue):
    fine = tissue(448, 448, n_nuclei=60, seed=1)
    coarse = _average(fine[None], 2)
    at_half = column(describe_tiles(fine[None], um_per_px=0.5), "tile_nuclear_density")
    at_one = column(describe_tiles(coarse, um_per_px=1.0), "tile_nuclear_density")
    np.testing.assert_allclose(at_half, at_one, rtol=0.05)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_tiles_have_finite_descriptors(value):
    features = describe_tiles(np.full((2, 224, 224, 3), value, np.uint8), um_per_px=0.5)
    assert np.isfinite(features).all()
    assert (column(features, "tile_nuclear_area") == 0).all()


def test_a_tile_is_described_by_itself_alone(tiles):
    together = describe_tiles(tiles, um_per_px=0.5)
    for i in range(4):
        np.testing.assert_array_equal(describe_tiles(tiles[i : i + 1], um_per_px=0.5)[0], together[i])


def test_the_centre_does_not_see_the_rim(tiles):
    rim = tiles.copy()
    rim[:, :26] = rim[:, -26:] = rim[:, :, :26] = rim[:, :, -26:] = 255
    names = [
        n for n in descriptor_names() if n.startswith("centre_") and "nuclear" not in n and "_inside" not in n
    ]
    names = [n for n in names if "_outside" not in n]
    before, after = (describe_tiles(t, um_per_px=0.5) for t in (tiles, rim))
    for name in names:
        np.testing.assert_array_equal(column(before, name), column(after, name))


def test_tiles_too_small_to_describe_are_refused():
    with pytest.raises(ValueError, match=r"at least 32 pixels a side at 0\.5 µm per pixel; got 20 × 20"):
        describe_tiles(np.zeros((1, 20, 20, 3), np.uint8), um_per_px=0.5)
