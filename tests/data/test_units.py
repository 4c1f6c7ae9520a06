"""Pixels, indices and other units do not pass for µm; what is in µm does."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen.data._fields import CoordinatesField
from stgen.data._places import read_places


def square(n=7, pitch=100.0):
    x, y = (one.ravel() for one in np.meshgrid(np.arange(n), np.arange(n)))
    return np.c_[x, y] * pitch


def table(xy, **obs):
    return ad.AnnData(
        np.ones((len(xy), 2), dtype=np.float32),
        obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(len(xy))]),
        obsm={"spatial": np.asarray(xy, dtype=np.float64)},
    )


def visium(um_per_px):
    row, col = (one.ravel() for one in np.mgrid[:12, :24])
    keep = (row + col) % 2 == 0
    row, col = row[keep], col[keep]
    return table(np.c_[50.0 * col, 50 * np.sqrt(3) * row] / um_per_px, array_row=row, array_col=col)


def test_pixels_of_a_visium_table_without_scale_factors_are_refused():
    """As spatialdata_io writes them: 290 pixels apart, which is a pitch that µm could have."""
    with pytest.raises(
        ValueError,
        match=r"one unit is 0.345 µm \(the lattice of Visium spots.*no conversion is recorded.*coordinates_in_um",
    ):
        read_places(visium(0.345))
    read_places(visium(1.0))


def test_a_slot_called_um_is_believed_unless_the_lattice_speaks_against_it():
    adata = visium(0.345)
    adata.obsm["spatial_um"] = adata.obsm["spatial"] * 0.345
    assert read_places(adata).xy.max() == pytest.approx(50 * 23)
    adata.obsm["spatial_um"] = adata.obsm["spatial"].copy()
    with pytest.raises(ValueError, match=r"obsm\['spatial_um'\] must be in µm; one unit is 0.345 µm"):
        read_places(adata)


def test_the_pixel_size_of_bins_betrays_pixels_and_lets_um_pass():
    adata = table(square(pitch=29.3))
    adata.uns["spatial"] = {
        "hd": {"scalefactors": {"microns_per_pixel": 0.273, "spot_diameter_fullres": 29.3}}
    }
    with pytest.raises(ValueError, match=r"one unit is 0.273 µm .*`microns_per_pixel`"):
        read_places(adata)
    adata.obsm["spatial"] = square(pitch=8.0)
    read_places(adata)


def test_coordinates_of_a_slide_that_was_tiled_are_pixels():
    adata = table(square(pitch=325.0))
    adata.uns["slide_properties"] = {"mpp": 0.69}
    with pytest.raises(ValueError, match=r"one unit is 0.69 µm \(`mpp` of uns\['slide_properties'\]"):
        read_places(adata)


def test_tiles_of_a_slide_without_a_pixel_size_are_not_taken_for_um():
    adata = table(square(pitch=325.0))
    adata.uns["slide_properties"], adata.uns["tile_spec"] = {"mpp": None}, {"width": 224, "height": 224}
    with pytest.raises(
        ValueError, match=r"corners of tiles, in pixels of a slide whose pixel size is not known"
    ):
        read_places(adata)
    stg.pp.coordinates_in_um(adata, um_per_unit=0.5)
    assert read_places(adata).xy.min() == 56


def test_objects_of_which_only_some_were_converted_name_the_way_out():
    one, two = table(square()), table(square() + 5000)
    two.obs_names = [f"d{i}" for i in range(49)]
    stg.pp.coordinates_in_um(one, um_per_unit=0.5)
    both = ad.concat([one, two], join="outer")
    with pytest.raises(ValueError, match=r"49 of 98 spots have NaN.*only some of several objects converted"):
        read_places(both)
    stg.pp.coordinates_in_um(both, um_per_unit=0.5)
    assert np.isfinite(read_places(both).xy).all()


def test_a_scale_by_section_in_uns_is_read_section_by_section():
    adata = table(np.r_[square(), square()], section=["a"] * 49 + ["b"] * 49)
    adata.uns["um_per_unit"] = {"a": 1.0, "b": 0.5}
    with pytest.raises(ValueError, match=r"one unit of section 'b' is 0.5 µm"):
        read_places(adata, library_key="section")
    read_places(adata[:49].copy())
    adata.uns["um_per_unit"] = {"a": 1.0}
    with pytest.raises(ValueError, match="has no value for section 'b'; it has a"):
        read_places(adata, library_key="section")


def test_one_section_in_pixels_does_not_hide_behind_many_in_um():
    xy = np.r_[square(), square(), square() * 20]
    adata = table(xy, section=np.repeat(["a", "b", "c"], 49))
    with pytest.raises(ValueError, match="is 2000 in section 'c', outside 1–1000 µm"):
        read_places(adata, library_key="section")


def test_sections_of_different_pitch_are_said():
    adata = table(np.r_[square(), square() * 2.9], section=np.repeat(["a", "b"], 49))
    with pytest.warns(UserWarning, match="are 100 µm apart in section 'a' and 290 µm in section 'b'"):
        read_places(adata, library_key="section")


def test_a_new_slide_whose_spots_lie_otherwise_than_those_of_training_is_said():
    field = CoordinatesField()
    facts = field.facts(table(square()))
    with pytest.warns(
        UserWarning, match="are 290 µm apart; those that the model was fitted on are 100 apart"
    ):
        field.compare(facts, table(square() * 2.9))
    field.compare(facts, table(square(9)))
    field.compare({"n_sections": 1}, table(square() * 2.9))  # a model that was saved before pitches were kept


def test_indices_of_an_array_are_no_places():
    with pytest.raises(
        ValueError, match=r"whole numbers .* look like indices of an array.*200 on the first ST"
    ):
        read_places(table(square(pitch=1.0)))
    st = table(square(pitch=1.0))
    stg.pp.coordinates_in_um(st, um_per_unit=200)
    assert read_places(st).xy.max() == 1200


def test_blocks_are_cut_in_um():
    adata = visium(0.345)
    with pytest.raises(ValueError, match=r"one unit is 0.345 µm"):
        stg.pp.split(adata, by="block", block_um=400)
    stg.pp.coordinates_in_um(adata)
    stg.pp.split(adata, by="block", block_um=400)
    blocks = adata.obs["split"].groupby(
        [(adata.obsm["spatial_um"][:, i] // 400).astype(int) for i in (0, 1)], observed=True
    )
    assert (blocks.nunique() == 1).all()


def test_regions_of_a_spatialdata_table_are_sections():
    adata = table(np.r_[square(), square() + 7], region=np.repeat(["left", "right"], 49))
    adata.uns["spatialdata_attrs"] = {
        "region_key": "region",
        "region": ["left", "right"],
        "instance_key": "id",
    }
    places = read_places(adata)
    assert places.section is not None
    np.testing.assert_array_equal(places.section, np.repeat([0, 1], 49))
    one = adata[:49].copy()
    assert read_places(one).section is None


def test_spots_without_a_row_hide_no_pixels_of_the_others():
    adata = visium(0.345)
    adata.obs["array_row"] = adata.obs["array_row"].astype("Int64")
    adata.obs.iloc[3, 0] = pd.NA
    with pytest.raises(ValueError, match=r"one unit is 0.345 µm \(the lattice of Visium spots"):
        read_places(adata)


def test_a_handful_of_spots_on_the_lattice_is_enough_to_see_pixels():
    few = visium(0.345)[[0, 1, 12, 13]]
    with pytest.raises(ValueError, match=r"one unit is 0.345 µm \(the lattice of Visium spots"):
        read_places(few)


def test_capture_areas_beside_each_other_are_known_by_their_lattice():
    """Rows and columns begin anew in each, and nobody named the sections."""
    left, right = visium(0.345), visium(0.345)
    right.obsm["spatial"] += [50_000, 300]
    both = ad.concat([left, right], index_unique="-")
    with pytest.raises(ValueError, match=r"one unit is 0.345 µm \(the lattice of Visium spots"):
        read_places(both)
    stg.pp.coordinates_in_um(both)
    assert both.uns["spatial_um"]["um_per_unit"][0] == pytest.approx(0.345)
    read_places(both)


@pytest.mark.parametrize("size", [float("nan"), -1.0, 0.0, "unknown"])
def test_a_pixel_size_that_is_no_length_is_not_known(size):
    adata = visium(0.345)
    adata.uns["spatial"] = {"v": {"scalefactors": {"microns_per_pixel": size, "spot_diameter_fullres": size}}}
    stg.pp.coordinates_in_um(adata)
    assert adata.uns["spatial_um"]["um_per_unit"][0] == pytest.approx(0.345)
