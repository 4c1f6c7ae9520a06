import anndata as ad
import numpy as np
import pytest

import stgen as stg
from stgen import _keys


@pytest.fixture
def sections(make_slide):
    """Four sections of two patients."""
    parts = []
    for i, (section, patient) in enumerate([("C1", "C"), ("C2", "C"), ("D1", "D"), ("D2", "D")]):
        part = make_slide(section=section, seed=i)
        part.obs["patient"] = patient
        parts.append(part)
    return ad.concat(parts)


def together(adata, key):
    return adata.obs.groupby(key)[_keys.SPLIT].nunique().eq(1).all()


def test_a_patient_is_never_on_two_sides(sections):
    stg.pp.split(sections, by="patient", test=0.3, validation=0)
    assert together(sections, "patient")
    assert set(sections.obs["split"]) == {"train", "test"}


def test_sections_by_name(sections):
    del sections.obs["patient"]
    stg.pp.split(sections, by="section", test=["D2"], validation="C1")
    assert sections.obs["split"].groupby(sections.obs["section"]).first().to_dict() == {
        "C1": "validation",
        "C2": "train",
        "D1": "train",
        "D2": "test",
    }


def test_a_section_of_a_known_patient_is_said_to_be_one(sections):
    with pytest.warns(UserWarning, match="Patient D has sections in training and in test"):
        stg.pp.split(sections, by="section", test=["D2"], validation=0)


def test_blocks_stay_together_and_the_buffer_is_nobody_s(sections):
    stg.pp.split(sections, by="block", block_um=200, buffer_um=101, test=0.2, validation=0.1)
    split, xy = sections.obs["split"].to_numpy().astype(str), sections.obsm["spatial"]
    held_out = np.isin(split, ["test", "validation"])
    for name in ["C1", "D2"]:
        here = (sections.obs["section"] == name).to_numpy()
        train = xy[here & (split == "train")]
        gap = np.linalg.norm(train[:, None] - xy[here & held_out][None], axis=2)
        assert gap.size == 0 or gap.min() > 101
    assert (split == "buffer").any()
    assert list(sections.obs["split"].cat.categories) == ["train", "validation", "test", "buffer"]


def test_validation_can_be_cut_from_the_training_sections_of_an_earlier_split(sections):
    stg.pp.split(sections, by="patient", test=["D"], validation=0)
    stg.pp.split(sections, by="block", block_um=200, validation=0.2, test=0, within="train")
    is_test = (sections.obs["split"] == "test").to_numpy()
    np.testing.assert_array_equal(is_test, sections.obs["patient"] == "D")
    assert (sections.obs["split"] == "validation").any()


def test_the_split_follows_spots_and_not_their_order(sections):
    order = np.random.default_rng(0).permutation(sections.n_obs)
    for by in ("random", "block", "patient"):
        settings = {"by": by, "test": 0.25, "validation": 0, "block_um": 250, "random_state": 4}
        shuffled = stg.pp.split(sections[order].copy(), copy=True, **settings)
        straight = stg.pp.split(sections, copy=True, **settings)
        assert (shuffled.obs["split"].to_numpy() == straight.obs["split"].to_numpy()[order]).all()


def test_what_was_done_is_recorded_and_survives_a_file(sections, tmp_path):
    stg.pp.split(sections, by="patient", test=["D"], validation=0, random_state=7)
    sections.write_h5ad(tmp_path / "a.h5ad")
    params = ad.read_h5ad(tmp_path / "a.h5ad").uns["split"]["params"]
    assert params["by"] == "patient"
    assert params["random_state"] == 7
    assert list(params["test"]) == ["D"]


def test_a_copy_leaves_the_original_and_a_view_becomes_an_object_of_its_own(sections):
    changed = stg.pp.split(sections, by="random", copy=True)
    assert "split" in changed.obs
    assert "split" not in sections.obs
    view = sections[:20]
    stg.pp.split(view, by="random")
    assert "split" in view.obs
    assert not view.is_view
    assert "split" not in sections.obs


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"by": "donor"},
            ValueError,
            "`by` must be one of 'section', 'patient', 'block', 'random'; got 'donor'",
        ),
        (
            {"by": "section", "library_key": "slice"},
            KeyError,
            r"obs\['slice'\] does not exist; obs has \['section', 'patient'\]",
        ),
        (
            {"by": "patient", "test": ["E"]},
            ValueError,
            "names patient E, which does not exist; there are C, D",
        ),
        ({"by": "patient", "test": 0.5, "validation": 0.2}, ValueError, "No patient is left for training"),
        ({"by": "section", "buffer_um": 100}, ValueError, "between blocks"),
        ({"by": "random", "within": "train"}, KeyError, r"obs\['split'\] does not exist"),
        (
            {"by": "block", "spatial_key": "xy"},
            KeyError,
            r"obsm\['xy'\] does not exist; obsm has \['spatial'\]",
        ),
        ({"by": "block", "block_um": 0}, ValueError, "above 0; got 0"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(sections, refused, settings, error, message):
    with refused(sections, error, message):
        stg.pp.split(sections, **settings)


def test_a_missing_column_says_which_argument_names_it(slide, refused):
    with refused(
        slide, KeyError, r"name the column of `obs` with `patient_key=`; obs\['patient'\] does not exist"
    ):
        stg.pp.split(slide, by="patient")


def test_overlapping_sections_without_a_column_are_refused(sections, refused):
    sections.obs = sections.obs.rename(columns={"section": "slide_id"})
    with refused(sections, ValueError, "library_key"):
        stg.pp.split(sections, by="block")


def test_gaps_in_the_column_and_repeated_names_are_refused(sections, refused):
    sections.obs["patient"] = sections.obs["patient"].where(np.arange(sections.n_obs) > 2)
    with refused(sections, ValueError, "must have a value for every spot; 3 are missing"):
        stg.pp.split(sections, by="patient")
    sections.obs_names = ["a"] * sections.n_obs
    with pytest.raises(ValueError, match="Spot names must be unique"):
        stg.pp.split(sections, by="random")


def test_something_else_than_anndata_is_named():
    with pytest.raises(TypeError, match="Expected an AnnData; got DataFrame"):
        stg.pp.split(stg.datasets.toy_tissue(spots_per_section=10, n_sections=1, n_patients=1).obs)
