"""A record of a conversion notices when it no longer describes the coordinates beside it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen._scale_record import ScaleRecord
from stgen.data._places import read_places


def section(name, um_per_px, n=6, origin=0.0):
    """A square grid of spots 100 µm apart, in pixels."""
    x, y = (one.ravel() for one in np.meshgrid(np.arange(n), np.arange(n)))
    adata = ad.AnnData(
        np.ones((n * n, 2), dtype=np.float32),
        obs=pd.DataFrame({"section": name}, index=[f"{name}_{i}" for i in range(n * n)]),
    )
    adata.obsm["spatial"] = (np.c_[x, y] * 100.0 + origin) / um_per_px
    return adata


@pytest.fixture
def pair():
    """Two sections of one table, converted; their pixels differ."""
    both = ad.concat([section("s1", 0.5), section("s2", 0.25, origin=50)])
    stg.pp.coordinates_in_um(both, um_per_unit={"s1": 0.5, "s2": 0.25}, library_key="section")
    return both


def um(adata):
    return read_places(adata, library_key="section").xy


def test_parts_orders_and_copies_of_an_object_keep_their_record(pair):
    order = np.random.default_rng(0).permutation(pair.n_obs)
    for one in (pair[pair.obs["section"] == "s2"], pair[order], pair[::3].copy(), pair.copy()):
        expected = pd.DataFrame(pair.obsm["spatial_um"], index=pair.obs_names).loc[one.obs_names]
        np.testing.assert_array_equal(um(one), expected.to_numpy())


def test_a_part_has_its_own_scale_not_a_median(pair):
    one = pair[pair.obs["section"] == "s2"].copy()
    record = ScaleRecord.of(one, "spatial_um")
    assert record.scale_by_section(one, None) == {"": 0.25}
    assert record.scale_by_section(pair, pair.obs["section"].to_numpy(str)) == {"s1": 0.5, "s2": 0.25}
    with pytest.raises(
        ValueError, match=r"have 2 scales \(0.25, 0.5 µm per unit\). Say `library_key='section'`"
    ):
        record.scale_by_section(pair, None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda xy: xy * 2, "lie outside of that"),
        (lambda xy: xy / 2 + 100, r"lay at \(.*\) µm and lies at"),
        (lambda xy: xy[:, ::-1] + [[0.0, 0.1]], "lie outside|lies at"),
        (lambda xy: xy[np.random.default_rng(1).permutation(len(xy))], "lies at|lie outside"),
    ],
    ids=["larger", "smaller", "turned", "reordered"],
)
def test_changed_coordinates_are_noticed(pair, change, why):
    pair.obsm["spatial_um"] = change(pair.obsm["spatial_um"])
    with pytest.raises(
        ValueError,
        match=rf"obsm\['spatial_um'\] must be in µm, and .* no longer describes it: .*({why}).*Call `stg.pp.coord",
    ):
        um(pair)
    stg.pp.coordinates_in_um(pair, um_per_unit={"s1": 0.5, "s2": 0.25}, library_key="section")
    assert um(pair).max() == 550


def test_a_section_that_the_record_does_not_know_is_noticed(pair):
    pair.obs["section"] = pair.obs["section"].astype(str).replace("s2", "s3")
    with pytest.raises(ValueError, match="it knows section 's1', 's2', and there is section 's3'"):
        um(pair)


def test_a_record_whose_column_was_dropped_still_knows_extent_and_places(pair):
    scales = ScaleRecord.of(pair, "spatial_um")
    one = pair[pair.obs["section"] == "s2"].copy()
    del one.obs["section"]
    assert len(read_places(one).xy) == 36
    with pytest.raises(
        ValueError, match=r"different scales and names them by obs\['section'\], which does not"
    ):
        scales.scale_by_section(one, None)
    one.obsm["spatial_um"] = one.obsm["spatial_um"] + 1
    with pytest.raises(ValueError, match=r"lie outside of that|lies at"):
        read_places(one)


def test_a_concatenation_that_keeps_one_record_is_noticed():
    one, two = section("s1", 0.5), section("s2", 0.25)
    for adata, scale in ((one, 0.5), (two, 0.25)):
        stg.pp.coordinates_in_um(adata, um_per_unit=scale)
    lost = ad.concat([one, two])
    np.testing.assert_array_equal(um(lost), np.r_[one.obsm["spatial_um"], two.obsm["spatial_um"]])
    first = ad.concat([one, two], uns_merge="first")
    with pytest.raises(ValueError, match="it was made for 36 rows, and there are 72"):
        um(first)
    torn = ad.concat([one, two], uns_merge="unique")
    with pytest.warns(UserWarning, match="put together from several .* is taken for µm by its name alone"):
        np.testing.assert_array_equal(um(torn), um(lost))


def test_a_concatenation_of_converted_sections_is_never_scaled_twice():
    one, two = section("s1", 0.5), section("s2", 0.25)
    for adata, scale in ((one, 0.5), (two, 0.25)):
        stg.pp.coordinates_in_um(adata, um_per_unit=scale)
    both = ad.concat([one, two])
    before = both.obsm["spatial_um"].copy()
    stg.pp.coordinates_in_um(both, um_per_unit={"s1": 0.5, "s2": 0.25}, library_key="section")
    np.testing.assert_array_equal(both.obsm["spatial_um"], before)
    with pytest.warns(UserWarning, match="held other places, up to 500 µm away, and is replaced"):
        stg.pp.coordinates_in_um(both, um_per_unit=0.5, library_key="section")


def test_a_slot_that_went_without_its_record_is_named(pair):
    del pair.obsm["spatial_um"]
    with pytest.raises(
        ValueError, match=r"converted to obsm\['spatial_um'\], which does not exist \(any more\)"
    ):
        um(pair)


def test_another_key_is_named_where_the_readers_slot_is_read():
    one = section("s1", 0.5)
    stg.pp.coordinates_in_um(one, um_per_unit=0.5, key_added="um")
    with pytest.raises(ValueError, match=r"it was converted to obsm\['um'\]. Say `spatial_key='um'`"):
        read_places(one)
    assert read_places(one, "um").xy.max() == 500


def test_centroids_that_squidpy_writes_are_not_read_and_it_is_said():
    one = section("s1", 0.5)
    stg.pp.coordinates_in_um(one, um_per_unit=0.5)
    one.obsm["spatial"] = one.obsm["spatial"] * 1.45
    with pytest.warns(UserWarning, match=r"is not what obsm\['spatial_um'\] was converted from any more"):
        assert read_places(one).xy.max() == 500


def test_a_record_written_by_hand_is_refused_with_what_it_lacks():
    one = section("s1", 1.0)
    one.uns["spatial_um"] = {"um_per_unit": 1.0}
    with pytest.raises(ValueError, match=r"it has no 'key'.*written by hand"):
        read_places(one)
