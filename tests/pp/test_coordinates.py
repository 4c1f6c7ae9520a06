import anndata as ad
import numpy as np
import pytest

import stgen as stg
from stgen.pp._coordinates import lattice_pitch


@pytest.fixture
def pixels(make_slide):
    """A slide whose coordinates are pixels of 0.5 µm."""
    adata = make_slide()
    adata.obsm["spatial"] = adata.obsm["spatial"] / 0.5
    return adata


@pytest.mark.parametrize(
    "settings", [{"um_per_unit": 0.5}, {"spot_pitch_um": 100}, {}, {"um_per_unit": 0.5, "spot_pitch_um": 100}]
)
def test_every_source_of_the_scale_gives_um(pixels, slide, settings):
    if not settings:
        pixels.uns["um_per_unit"] = 0.5
    stg.pp.coordinates_in_um(pixels, **settings)
    np.testing.assert_allclose(pixels.obsm["spatial"], slide.obsm["spatial"])
    assert pixels.uns["spatial_um"]["um_per_unit"] == pytest.approx(0.5)
    assert pixels.uns["spatial_um"]["key"] == "spatial"


def test_the_rule_of_files_stays_true_after_conversion(pixels, slide):
    pixels.uns["um_per_unit"] = 0.5
    pixels.uns["um_per_unit_reason"] = "spot pitch"
    stg.pp.coordinates_in_um(pixels)
    np.testing.assert_allclose(pixels.obsm["spatial"] * pixels.uns["um_per_unit"], slide.obsm["spatial"])
    assert pixels.uns["spatial_um"]["reason"] == "spot pitch"


def test_sections_may_have_different_scales(make_slide):
    parts = [make_slide(section="a"), make_slide(section="b")]
    both = ad.concat(parts)
    truth = both.obsm["spatial"].copy()
    both.obsm["spatial"][:48] /= 0.5
    both.obsm["spatial"][48:] /= 0.7
    by_pitch = stg.pp.coordinates_in_um(both, spot_pitch_um=100, library_key="section", copy=True)
    by_dict = stg.pp.coordinates_in_um(
        both, um_per_unit={"a": 0.5, "b": 0.7}, library_key="section", copy=True
    )
    np.testing.assert_allclose(by_pitch.obsm["spatial"], truth)
    np.testing.assert_allclose(by_dict.obsm["spatial"], truth)
    assert list(by_dict.uns["spatial_um"]["section"]) == ["a", "b"]
    np.testing.assert_allclose(by_dict.uns["spatial_um"]["um_per_unit_of_section"], [0.5, 0.7])


@pytest.mark.parametrize("grid", ["square", "hexagonal"])
def test_the_pitch_of_a_jittered_grid_is_not_biased(grid):
    x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
    if grid == "hexagonal":
        x, y = x + 0.5 * (y % 2), y * np.sqrt(3) / 2
    xy = np.stack([x.ravel(), y.ravel()], axis=1) * 100
    assert lattice_pitch(xy) == pytest.approx(100)
    xy += np.random.default_rng(0).normal(0, 4, xy.shape)
    assert lattice_pitch(xy) == pytest.approx(100, rel=0.02)


def test_converting_twice_does_nothing_and_another_scale_is_refused(pixels, refused):
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5)
    once = pixels.obsm["spatial"].copy()
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5)
    stg.pp.coordinates_in_um(pixels)
    np.testing.assert_array_equal(pixels.obsm["spatial"], once)
    with refused(pixels, ValueError, "is in µm already .* would scale it twice"):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.7)


def test_another_key_keeps_the_pixels(pixels, slide):
    before = pixels.obsm["spatial"].copy()
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, key_added="um")
    np.testing.assert_array_equal(pixels.obsm["spatial"], before)
    np.testing.assert_allclose(pixels.obsm["um"], slide.obsm["spatial"])
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5)
    np.testing.assert_allclose(pixels.obsm["spatial"], slide.obsm["spatial"])


def test_the_record_survives_a_file(pixels, tmp_path):
    stg.pp.coordinates_in_um(pixels, spot_pitch_um=100)
    pixels.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["spatial_um"]["reason"] == "spot pitch of 100 µm"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {},
            ValueError,
            "neighbouring spots are 200 units apart. Give `um_per_unit=` .* `spot_pitch_um=100` for Visium",
        ),
        ({"um_per_unit": 0.001}, ValueError, "would be 0.2 µm apart; plausible are 1 to 1000 µm"),
        ({"um_per_unit": 50}, ValueError, r"would be 1e\+04 µm apart"),
        ({"um_per_unit": -1}, ValueError, "must be above 0; got -1"),
        ({"um_per_unit": 6.0, "spot_pitch_um": 100}, ValueError, "contradict each other.*hires"),
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\] does not exist; obsm has \['spatial'\]"),
        (
            {"um_per_unit": {"b": 1}, "library_key": "section"},
            ValueError,
            "has no value for section s1; it has b",
        ),
    ],
)
def test_bad_input_is_named_and_changes_nothing(pixels, refused, settings, error, message):
    with refused(pixels, error, message):
        stg.pp.coordinates_in_um(pixels, **settings)


def test_nan_three_columns_and_overlapping_sections_are_named(pixels, make_slide, refused):
    xy = pixels.obsm["spatial"]
    pixels.obsm["nan"] = np.where(np.arange(len(xy))[:, None] < 2, np.nan, xy)
    pixels.obsm["three"] = np.c_[xy, xy[:, 0]]
    with pytest.raises(
        ValueError, match="2 of 48 spots have NaN or infinite coordinates, such as s1_0, s1_1"
    ):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, spatial_key="nan")
    with pytest.raises(ValueError, match=r"must be spots × 2 \(x, y\); its shape is \(48, 3\)"):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, spatial_key="three")
    both = ad.concat([make_slide(section="a"), make_slide(section="b")])
    with refused(both, ValueError, "library_key='section'"):
        stg.pp.coordinates_in_um(both, um_per_unit=0.5)
    del both.obs["section"]
    with refused(both, ValueError, "lie exactly on another spot .*`library_key="):
        stg.pp.coordinates_in_um(both, um_per_unit=0.5)


def test_one_spot_can_be_converted_but_has_no_pitch(pixels):
    one = pixels[:1].copy()
    stg.pp.coordinates_in_um(one, um_per_unit=0.5, copy=True)
    with pytest.raises(ValueError, match="The pitch cannot be measured"):
        stg.pp.coordinates_in_um(one, spot_pitch_um=100)


def test_backed_coordinates_are_converted_in_place_and_cannot_be_copied(pixels, tmp_path):
    pixels.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    stg.pp.coordinates_in_um(backed, um_per_unit=0.5)
    assert lattice_pitch(backed.obsm["spatial"]) == pytest.approx(100)
    with pytest.raises(
        ValueError, match=r"A backed AnnData cannot be copied in memory. Call `adata.to_memory\(\)`"
    ):
        stg.pp.coordinates_in_um(backed, um_per_unit=0.5, copy=True)
