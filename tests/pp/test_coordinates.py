"""µm beside what a reader wrote: every source of a scale, in order; contradictions and replacements are said."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen.data._spacing import grid_of


@pytest.fixture
def pixels(make_slide):
    """A slide whose coordinates are pixels of 0.5 µm."""
    adata = make_slide()
    adata.obsm["spatial"] = adata.obsm["spatial"] / 0.5
    return adata


def visium(n_row=12, n_col=24, um_per_px=0.3, angle=0.0, round_to=None):
    """Spots of a Visium array in pixels of the full-resolution image, with their rows and columns; µm beside."""
    row, col = (one.ravel() for one in np.mgrid[:n_row, :n_col])
    keep = (row + col) % 2 == 0
    row, col = row[keep], col[keep]
    um = np.c_[50.0 * col, 50.0 * np.sqrt(3) * row]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = um @ turn.T / um_per_px + 3000
    adata = ad.AnnData(
        np.ones((len(row), 3), dtype=np.float32),
        obs=pd.DataFrame({"array_row": row, "array_col": col}, index=[f"AAAC{i}-1" for i in range(len(row))]),
        var=pd.DataFrame(index=["a", "b", "c"]),
    )
    adata.obsm["spatial"] = xy if round_to is None else np.round(xy, round_to)
    return adata


@pytest.mark.parametrize(
    "settings", [{"um_per_unit": 0.5}, {"spot_pitch_um": 100}, {}, {"um_per_unit": 0.5, "spot_pitch_um": 100}]
)
def test_every_source_of_the_scale_gives_um(pixels, slide, settings):
    if not settings:
        pixels.uns["um_per_unit"] = 0.5
    stg.pp.coordinates_in_um(pixels, **settings)
    np.testing.assert_allclose(pixels.obsm["spatial_um"], slide.obsm["spatial"])
    assert pixels.uns["spatial_um"]["um_per_unit"] == pytest.approx(0.5)
    assert pixels.uns["spatial_um"]["key"] == "spatial_um"


def test_what_a_reader_wrote_stays_so_that_spots_lie_on_their_picture(pixels, slide):
    before = pixels.obsm["spatial"].copy()
    pixels.uns["um_per_unit"], pixels.uns["um_per_unit_reason"] = 0.5, "spot pitch"
    stg.pp.coordinates_in_um(pixels)
    np.testing.assert_array_equal(pixels.obsm["spatial"], before)
    assert pixels.uns["um_per_unit"] == 0.5
    assert pixels.uns["spatial_um"]["reason"] == ["spot pitch"]


def test_sections_may_have_different_scales(make_slide):
    parts = [make_slide(section="a"), make_slide(section="b")]
    both = ad.concat(parts)
    truth = both.obsm["spatial"].copy()
    both.obsm["spatial"][:48] /= 0.5
    both.obsm["spatial"][48:] /= 0.7
    for settings in ({"spot_pitch_um": 100}, {"um_per_unit": {"a": 0.5, "b": 0.7}}):
        made = stg.pp.coordinates_in_um(both, library_key="section", copy=True, **settings)
        np.testing.assert_allclose(made.obsm["spatial_um"], truth)
        assert list(made.uns["spatial_um"]["section"]) == ["a", "b"]
        np.testing.assert_allclose(made.uns["spatial_um"]["um_per_unit"], [0.5, 0.7])


@pytest.mark.parametrize("grid", ["square", "hexagonal"])
def test_the_pitch_of_a_jittered_grid_is_not_biased(grid):
    x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
    if grid == "hexagonal":
        x, y = x + 0.5 * (y % 2), y * np.sqrt(3) / 2
    xy = np.stack([x.ravel(), y.ravel()], axis=1) * 100
    assert grid_of(xy).pitch == pytest.approx(100)
    assert grid_of(xy).is_regular
    assert grid_of(xy).n_neighbors == (4 if grid == "square" else 6)
    xy += np.random.default_rng(0).normal(0, 4, xy.shape)
    assert grid_of(xy).pitch == pytest.approx(100, rel=0.02)


def test_rounding_to_pixels_does_not_bias_the_pitch():
    x, y = np.meshgrid(np.arange(60.0), np.arange(60.0))
    xy = np.stack([(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()], axis=1) * 137.3
    assert grid_of(np.round(xy)).pitch == pytest.approx(137.3, rel=3e-4)


# ------------------------------------------------------------------------------------------- what a table says itself


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
def test_the_lattice_of_visium_spots_gives_the_scale_exactly_also_when_turned_and_rounded(angle):
    adata = visium(n_row=40, n_col=80, um_per_px=0.3447, angle=angle, round_to=0)
    stg.pp.coordinates_in_um(adata)
    record = adata.uns["spatial_um"]
    assert record["um_per_unit"][0] == pytest.approx(0.3447, rel=2e-4)
    assert "lattice of Visium spots" in record["reason"][0]


@pytest.mark.parametrize("name", ["s_008um_00001_00002-1", "bin-1"])
def test_bins_of_visium_hd_know_their_size_by_name_or_region(name):
    row, col = (one.ravel() for one in np.mgrid[:15, :15])
    adata = ad.AnnData(
        np.ones((225, 2), dtype=np.float32),
        obs=pd.DataFrame(
            {"array_row": row, "array_col": col, "region": "tonsil_square_008um"},
            index=[name.replace("00001", f"{i:05d}") + f"-{i}" for i in range(225)],
        ),
    )
    adata.obsm["spatial"] = np.c_[col, row] * 29.3
    stg.pp.coordinates_in_um(adata)
    assert adata.uns["spatial_um"]["um_per_unit"][0] == pytest.approx(8 / 29.3)
    assert grid_of(adata.obsm["spatial_um"]).pitch == pytest.approx(8)


def test_microns_per_pixel_comes_before_the_pitch(pixels, slide):
    pixels.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": 0.5}}}
    stg.pp.coordinates_in_um(pixels)
    np.testing.assert_allclose(pixels.obsm["spatial_um"], slide.obsm["spatial"])
    assert "microns_per_pixel" in pixels.uns["spatial_um"]["reason"][0]


def test_corners_of_tiles_of_a_slide_become_their_centres():
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    corner_px = np.stack([x.ravel(), y.ravel()], axis=1) * 448
    adata = ad.AnnData(np.ones((64, 4), dtype=np.float32), obsm={"spatial": corner_px})
    adata.obs_names = [f"t{i}" for i in range(64)]
    adata.uns["slide_properties"] = {"mpp": 0.25}
    adata.uns["tile_spec"] = {"width": 224, "height": 224, "mpp": 0.5}
    stg.pp.coordinates_in_um(adata)
    np.testing.assert_allclose(adata.obsm["spatial_um"], corner_px * 0.25 + 56)


def test_regions_of_a_table_are_sections(make_slide):
    both = ad.concat([make_slide(section="a"), make_slide(section="b")])
    both.obs["region"] = both.obs["section"].to_numpy()
    del both.obs["section"]
    both.uns["spatialdata_attrs"] = {
        "region": ["a", "b"],
        "region_key": "region",
        "instance_key": "spot",
    }
    stg.pp.coordinates_in_um(both, um_per_unit={"a": 1.0, "b": 2.0})
    np.testing.assert_allclose(both.obsm["spatial_um"][48:], both.obsm["spatial"][48:] * 2)
    assert both.uns["spatial_um"]["library_key"] == "region"


# ------------------------------------------------------------------------------------------------------ contradictions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"spot_pitch_um": 55},
            "`spot_pitch_um` is the distance between the centres .* 55 µm is the diameter of a spot there",
        ),
        (
            {"spot_pitch_um": 200},
            r"contradicts each other: 0.3 µm per unit \(the lattice of Visium .*and 0.6 \(spot pitch of 200",
        ),
        (
            {"um_per_unit": 1},
            r"1 µm per unit \(given as um_per_unit\), and 0.3 \(the lattice of Visium spots, which lie 100 µm",
        ),
        ({"um_per_unit": 3.0}, "hires instead of full resolution"),
    ],
)
def test_what_contradicts_the_lattice_is_refused(refused, settings, message):
    adata = visium()
    with refused(adata, ValueError, message):
        stg.pp.coordinates_in_um(adata, **settings)


@pytest.mark.parametrize("settings", [{"spot_pitch_um": 100}, {"um_per_unit": 0.5}])
def test_a_scale_that_uns_contradicts_is_refused_not_chosen(pixels, refused, settings):
    pixels.uns["um_per_unit"] = 1.0
    with refused(pixels, ValueError, r"0.5 µm per unit .*, and 1 \(read from uns\['um_per_unit'\]\)"):
        stg.pp.coordinates_in_um(pixels, **settings)


def test_a_diameter_that_contradicts_is_a_cross_check_only(pixels, refused):
    pixels.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 120.0}}}
    with refused(pixels, ValueError, "The scale of the coordinates is not known"):
        stg.pp.coordinates_in_um(pixels)
    with refused(pixels, ValueError, "spots lie 200 apart and are 120 pixels wide"):
        stg.pp.coordinates_in_um(pixels, um_per_unit=1.0)
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5)


def test_array_indices_are_no_places(refused):
    adata = visium()
    adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy().astype(float)
    with refused(adata, ValueError, "holds array indices, not places: rows and columns of a staggered array"):
        stg.pp.coordinates_in_um(adata, um_per_unit=50)


def test_coordinates_in_another_order_than_their_array_are_refused(refused):
    adata = visium()
    adata.obsm["spatial"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    with refused(
        adata, ValueError, r"does not follow obs\['array_row'\] .* in different orders; join them by name"
    ):
        stg.pp.coordinates_in_um(adata, um_per_unit=0.3)


# -------------------------------------------------------------------------------------------------------- run it again


def test_a_cell_that_is_run_again_gives_the_same(pixels, slide):
    for _ in range(2):
        stg.pp.coordinates_in_um(pixels, spot_pitch_um=100)
        np.testing.assert_allclose(pixels.obsm["spatial_um"], slide.obsm["spatial"])


def test_another_scale_replaces_the_first_and_says_so(pixels):
    stg.pp.coordinates_in_um(pixels, spot_pitch_um=100)
    with pytest.warns(
        UserWarning,
        match=r"held other places, up to .* µm away, and is replaced; .* is now 1 µm \(spot pitch of 200",
    ):
        stg.pp.coordinates_in_um(pixels, spot_pitch_um=200)
    assert grid_of(pixels.obsm["spatial_um"]).pitch == pytest.approx(200)


def test_pixels_that_replace_um_are_not_taken_for_um(slide, refused):
    """The toy's mark says that `spatial` is in µm; put pixels there, and the mark describes them no longer."""
    toy = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=60, n_genes=20)
    um = np.asarray(toy.obsm["spatial"]).copy()
    with refused_um(toy):
        stg.pp.coordinates_in_um(toy, um_per_unit=0.5)
    toy.obsm["spatial"] = um / 0.5
    with pytest.raises(ValueError, match="The scale of the coordinates is not known"):
        stg.pp.coordinates_in_um(toy)
    stg.pp.coordinates_in_um(toy, um_per_unit=0.5)
    np.testing.assert_allclose(toy.obsm["spatial_um"], um)


def refused_um(adata):
    return pytest.raises(ValueError, match=r"and 1 \(in µm already: 1 µm per unit, simulated in µm\)")


def test_the_readers_slot_is_not_overwritten(pixels, refused):
    with refused(pixels, ValueError, "spots would no longer lie on their picture in scanpy and squidpy"):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, key_added="spatial")
    pixels.obsm["X_pca"] = np.zeros((48, 2))
    with refused(pixels, ValueError, r"obsm\['X_pca'\] exists and is not in µm by an earlier call"):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, key_added="X_pca")


def test_another_key_can_be_chosen(pixels, slide):
    stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, key_added="um")
    np.testing.assert_allclose(pixels.obsm["um"], slide.obsm["spatial"])
    assert "spatial_um" not in pixels.obsm


def test_the_record_survives_a_file(pixels, tmp_path):
    stg.pp.coordinates_in_um(pixels, spot_pitch_um=100)
    pixels.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert list(again.uns["spatial_um"]["reason"]) == ["spot pitch of 100 µm"]
    pixels.write_zarr(tmp_path / "a.zarr")
    for one in (again, ad.read_zarr(tmp_path / "a.zarr")):
        stg.pp.coordinates_in_um(one, spot_pitch_um=100)
        np.testing.assert_allclose(one.obsm["spatial_um"], pixels.obsm["spatial_um"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {},
            ValueError,
            "neighbouring spots are 200 units apart. Give `um_per_unit=` .* `spot_pitch_um=100` for Visium",
        ),
        ({"um_per_unit": 0.001}, ValueError, "would be 0.2 µm apart; plausible are 1 to 1000 µm"),
        ({"um_per_unit": 50}, ValueError, r"would be 10000 µm apart"),
        ({"um_per_unit": -1}, ValueError, "must be above 0; got -1"),
        ({"um_per_unit": 6.0, "spot_pitch_um": 100}, ValueError, "contradicts each other.*hires"),
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\] does not exist; obsm has \['spatial'\]"),
        (
            {"um_per_unit": {"b": 1}, "library_key": "section"},
            ValueError,
            "has no value for section s1; it has b",
        ),
        ({"um_per_unit": {"s1": 1}}, ValueError, "is a dict by section .* needs `library_key=`"),
        ({"library_key": "slide"}, KeyError, r"obs\['slide'\] does not exist; obs has \['section'\]"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(pixels, refused, settings, error, message):
    with refused(pixels, error, message):
        stg.pp.coordinates_in_um(pixels, **settings)


def test_nan_and_overlapping_sections_are_named(pixels, make_slide, refused):
    xy = pixels.obsm["spatial"]
    pixels.obsm["nan"] = np.where(np.arange(len(xy))[:, None] < 2, np.nan, xy)
    with pytest.raises(
        ValueError, match="2 of 48 spots have NaN or infinite coordinates, such as s1_0, s1_1"
    ):
        stg.pp.coordinates_in_um(pixels, um_per_unit=0.5, spatial_key="nan")
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
    assert grid_of(backed.obsm["spatial_um"]).pitch == pytest.approx(100)
    with pytest.raises(
        ValueError, match=r"A backed AnnData cannot be copied in memory. Call `adata.to_memory\(\)`"
    ):
        stg.pp.coordinates_in_um(backed, um_per_unit=0.5, copy=True)


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_tiles_of_a_slide_of_unknown_pixel_size_are_moved_to_their_centres_too(unknown):
    corners = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) * 512.0
    adata = ad.AnnData(np.ones((16, 2), dtype=np.float32), obsm={"spatial": corners})
    adata.uns["slide_properties"] = {"mpp": unknown}
    adata.uns["tile_spec"] = {"width": 512, "height": 512, "mpp": unknown}
    stg.pp.coordinates_in_um(adata, um_per_unit=0.5)
    np.testing.assert_allclose(adata.obsm["spatial_um"], corners * 0.5 + 128)
