"""Bad input is named at the door, with what was expected, what was found, and what to do."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen import _keys
from stgen.data._fields import (
    CoordinatesField,
    CountsField,
    HistologyField,
    PatientField,
    SplitField,
    align_genes,
    check_counts,
    check_observations,
    check_patients,
    field_from,
)
from stgen.data._names import looks_like_ensembl, spelling_hint
from stgen.data._spacing import spot_pitch
from stgen.data._units import check_units


def grid(side=6, pitch=100.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * pitch


def make(counts=None, *, n_features=4, **obs):
    rng = np.random.default_rng(0)
    xy = grid()
    counts = rng.poisson(3, size=(len(xy), 5)) if counts is None else counts
    index = [f"spot{i}" for i in range(len(xy))]
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(obs, index=index),
        var=pd.DataFrame(index=[f"G{g}" for g in range(counts.shape[1])]),
    )
    adata.obsm[_keys.SPATIAL] = xy
    adata.obsm[_keys.HISTOLOGY] = rng.normal(size=(len(xy), n_features)).astype(np.float32)
    return adata


# counts -----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_counts_of_any_layout_and_dtype_pass(layout, dtype):
    check_counts(LAYOUTS[layout](np.array([[0, 1, 7], [3, 0, 0]], dtype=dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.5, "33% of values that are not whole numbers, such as 0.5. It looks normalised"),
        (-1, "found negative values, the lowest -1"),
        (np.nan, "found 1 values that are NaN or infinite"),
        (np.inf, "found 1 values that are NaN or infinite"),
    ],
)
def test_what_is_not_counts_is_named_with_its_slot(layout, value, found):
    matrix = LAYOUTS[layout](np.array([[1, 1, value]], dtype=np.float32))
    with pytest.raises(ValueError, match=rf"layers\['log'\] must hold counts; .*{found}"):
        check_counts(matrix, "layers['log']")
    with pytest.raises(ValueError, match="Give raw counts, or name the layer that holds them with `layer=`"):
        check_counts(matrix)


def test_text_is_not_counts():
    with pytest.raises(ValueError, match="X must hold counts; its dtype is "):
        check_counts(np.array([["a"]]))


def test_a_rare_fraction_late_in_a_large_matrix_is_found():
    counts = np.zeros((9000, 3), dtype=np.float32)
    counts[-1, -1] = 1.5
    with pytest.raises(ValueError, match=r"such as 1.5"):
        check_counts(counts)


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_counts_of_a_backed_file_are_checked_and_read(layout, tmp_path):
    adata = make(LAYOUTS[layout](np.random.default_rng(0).poisson(2, size=(36, 5)).astype(np.float32)))
    expected = CountsField().read(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    facts = CountsField().facts(backed)
    assert facts["n_genes"] == 5
    read = CountsField().read(backed, ["G3", "G1"])
    wanted = expected.toarray() if sparse.issparse(expected) else expected
    np.testing.assert_array_equal(read.toarray(), wanted[:, [3, 1]])
    backed.file.close()


def test_a_layer_is_read_in_place_of_x():
    adata = make()
    adata.layers["raw"] = adata.X * 2
    np.testing.assert_array_equal(CountsField("raw").read(adata), adata.layers["raw"])


def test_a_missing_layer_names_those_that_exist():
    adata = make()
    adata.layers["raw"] = adata.X
    with pytest.raises(KeyError, match=r"layers\['counts'\] does not exist; layers has \['raw'\]"):
        CountsField("counts").facts(adata)


def test_no_x_says_where_counts_are_expected():
    bare = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["G1", "G2"]))
    with pytest.raises(ValueError, match="X is empty; counts are expected there"):
        CountsField().facts(bare)


def test_one_gene_is_too_few():
    with pytest.raises(ValueError, match="At least 2 genes are needed; this AnnData has 1"):
        CountsField().facts(make()[:, :1])


def test_repeated_genes_are_refused_with_examples():
    adata = make()
    adata.var_names = ["A", "B", "A", "C", "D"]
    with pytest.raises(
        ValueError, match=r"Gene names must be unique; 1 repeat: A\. Run `adata.var_names_make_unique"
    ):
        CountsField().facts(adata)


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_empty_spots_and_constant_genes_are_reported(layout):
    counts = np.random.default_rng(0).poisson(3, size=(36, 5))
    counts[4] = 0
    counts[:, 2] = 0
    with pytest.warns(UserWarning) as caught:
        CountsField().facts(make(LAYOUTS[layout](counts)))
    messages = [str(one.message) for one in caught]
    assert any("1 of 36 spots have no counts in X" in message for message in messages)
    assert any(
        "1 of 5 genes have the same count in every spot, such as G2" in message for message in messages
    )
    ours = {
        one.filename
        for one in caught
        if "of 36 spots" in str(one.message) or "of 5 genes" in str(one.message)
    }
    assert ours == {__file__}, "a warning points at the user's line"


def test_genes_with_slashes_and_large_counts_are_fine():
    adata = make(np.full((36, 2), 10**6) + np.arange(72).reshape(36, 2))
    adata.var_names = ["CCL3/L1/L3", "B"]
    assert CountsField().facts(adata)["genes"] == ["CCL3/L1/L3", "B"]
    np.testing.assert_array_equal(CountsField().read(adata), adata.X)


# gene names -------------------------------------------------------------------------------------------------


def test_genes_are_found_by_name_in_any_order():
    found = ["C", "A", "X", "B"]
    positions = align_genes(["A", "B", "C"], found)
    assert [found[p] for p in positions] == ["A", "B", "C"]


def test_partial_overlap_says_how_many_and_which():
    with pytest.raises(
        ValueError,
        match=r"3 genes are expected and 2 of them are not in this AnnData, such as B, C; it has 2",
    ):
        align_genes(["A", "B", "C"], ["A", "Z"])


def test_symbols_and_ensembl_are_told_apart():
    ensembl = [f"ENSG{i:011d}" for i in range(5)]
    symbols = ["TP53", "GAPDH", "ACTB", "CD3E", "EPCAM"]
    assert looks_like_ensembl(ensembl)
    assert looks_like_ensembl(["ENSMUSG00000000001.4"])
    assert not looks_like_ensembl(symbols)
    with pytest.raises(ValueError, match="The model learned symbols, these look like Ensembl identifiers"):
        align_genes(symbols, ensembl)
    with pytest.raises(ValueError, match="The model learned Ensembl identifiers, these look like symbols"):
        align_genes(ensembl, symbols)
    var = pd.DataFrame({"gene_ids": ensembl, "n": 1}, index=symbols)
    with pytest.raises(ValueError, match=r"`var\['gene_ids'\]` has 5 of them: use it as `var_names`"):
        align_genes(ensembl, symbols, var=var)


def test_case_and_versions_are_hinted_at():
    with pytest.raises(ValueError, match="match when upper and lower case are ignored"):
        align_genes(["Gapdh", "Actb"], ["GAPDH", "ACTB"])
    with pytest.raises(ValueError, match="match without the version suffix"):
        align_genes(["ENSG00000000001.1"], ["ENSG00000000001.2"])


@pytest.mark.parametrize(
    ("name", "other", "how"),
    [
        ("GAD1", "Gad1", "when upper and lower case are ignored"),
        ("GAD1", "GRCh38_GAD1", "without the genome prefix"),
        ("hg19-GAD1", "GAD1", "without the genome prefix"),
        ("mm10___Gad1", "GAD1", "when upper and lower case are ignored and without the genome prefix"),
        ("GRCh38-2020-A_GAD1", "GAD1", "without the genome prefix"),
        ("ENSG00000000001.1", "ENSG00000000001.12", "without the version suffix"),
        (
            "GRCh38_ENSG00000000001.1",
            "ENSG00000000001",
            "without the genome prefix and without the version suffix",
        ),
        ("AC012345", "AC012345.1", "without the version suffix"),
    ],
)
def test_one_gene_in_two_spellings_is_recognised_both_ways(name, other, how):
    for one, its in ((name, other), (other, name)):
        assert spelling_hint([one, "X"], ["A", its]) == (
            f" 1 of them is there {how} ({one} – {its}): rename them if they are the same genes."
        )


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("GAD1", ["GAD1", "Gad1"]),  # it is there as it is
        ("RP11-34P13.7", ["RP11-34P13.8"]),  # clones: another number is another gene
        ("AL627309.1", ["AL627309.5"]),
        ("HLA-A", ["HLA-B", "A"]),
        ("MM10", ["mm1"]),
        ("H2-K1", ["K1"]),
    ],
)
def test_two_genes_are_not_taken_for_one(name, known):
    assert spelling_hint([name], known) == ""


@pytest.mark.parametrize("n_alike", [0, 1, 5])
def test_the_hint_comes_whether_some_genes_match_or_none(n_alike):
    """Most match here, and the rest differ in case: that is no less worth saying than when none does."""
    expected = [f"Gene{i}" for i in range(8)]
    found = [name if i < n_alike else name.upper() for i, name in enumerate(expected)]
    with pytest.raises(ValueError, match=rf"{8 - n_alike} match when upper and lower case are ignored"):
        align_genes(expected, found)
    with pytest.raises(
        ValueError, match=rf"{8 - n_alike} match without the genome prefix \(Gene\d – GRCh38_Gene\d"
    ):
        align_genes(expected, [name if i < n_alike else f"GRCh38_{name}" for i, name in enumerate(expected)])
    var = pd.DataFrame({"symbol": expected}, index=found)
    with pytest.raises(ValueError, match=r"`var\['symbol'\]` has 8 of them"):
        align_genes(expected, found, var=var)


def test_repeated_names_are_refused_before_matching():
    with pytest.raises(ValueError, match="Gene names must be unique; 1 repeat: A"):
        align_genes(["A"], ["A", "A"])


# histology --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "float64", "frame", "sparse", "fortran"])
def test_an_embedding_is_read_as_float32_however_it_lies(kind):
    adata = make()
    values = adata.obsm[_keys.HISTOLOGY]
    adata.obsm[_keys.HISTOLOGY] = {
        "array": values,
        "float64": values.astype(np.float64),
        "frame": pd.DataFrame(values, index=adata.obs_names, columns=list("abcd")),
        "sparse": sparse.csr_matrix(values),
        "fortran": np.asfortranarray(values),
    }[kind]
    read = HistologyField().read(adata)
    assert read.dtype == np.float32
    assert read.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(read, values)


def test_a_float32_embedding_is_not_copied():
    adata = make()
    assert np.shares_memory(HistologyField().read(adata), adata.obsm[_keys.HISTOLOGY])


def test_a_missing_embedding_names_what_exists():
    adata = make()
    with pytest.raises(
        KeyError, match=r"obsm\['uni'\] does not exist; obsm has \['spatial', 'X_histology'\]"
    ):
        HistologyField("uni").facts(adata)
    with pytest.raises(
        KeyError, match=r"Make it with `stg.pp.embed_histology`, or name yours with `histology_key=`"
    ):
        HistologyField("uni").facts(adata)


def test_tiles_are_not_an_embedding():
    adata = make()
    adata.obsm["tiles"] = np.zeros((36, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"obsm\['tiles'\] must be spots × features; its shape is \(36, 8, 8, 3\)"
    ):
        HistologyField("tiles").facts(adata)


def test_a_boolean_embedding_is_refused():
    adata = make()
    adata.obsm["mask"] = np.ones((36, 2), dtype=bool)
    with pytest.raises(ValueError, match=r"obsm\['mask'\] must be numbers; its dtype is bool"):
        HistologyField("mask").facts(adata)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_with_holes_names_the_spots(value):
    adata = make()
    adata.obsm[_keys.HISTOLOGY][7, 1] = value
    with pytest.raises(
        ValueError, match="must be finite; 1 of 36 spots have NaN or infinite features, such as spot7"
    ):
        HistologyField().facts(adata)


def test_another_width_is_refused_at_prediction():
    facts = HistologyField().facts(make())
    with pytest.raises(ValueError, match="must have the 4 features the model was fitted with; it has 6"):
        HistologyField().compare(facts, make(n_features=6))


def test_another_encoder_or_tile_size_is_refused_at_prediction():
    known, other, wider, silent = make(), make(), make(), make()
    known.uns[_keys.HISTOLOGY_PARAMS] = {"encoder": "org/uni", "tile_um": 100.0}
    other.uns[_keys.HISTOLOGY_PARAMS] = {"encoder": "resnet50", "tile_um": 100.0}
    wider.uns[_keys.HISTOLOGY_PARAMS] = {"encoder": "org/uni", "tile_um": 200.0}
    facts = HistologyField().facts(known)
    with pytest.raises(ValueError, match=r"features of the encoder 'org/uni'; .* comes from 'resnet50'"):
        HistologyField().compare(facts, other)
    with pytest.raises(ValueError, match="fitted on tiles of 100 µm; these are 200 µm wide"):
        HistologyField().compare(facts, wider)
    HistologyField().compare(facts, silent)  # an embedding of unknown origin cannot be refused
    HistologyField().compare(HistologyField().facts(silent), other)


def test_features_with_names_must_come_in_the_order_of_training():
    adata = make()
    table = pd.DataFrame(np.asarray(adata.obsm[_keys.HISTOLOGY]), index=adata.obs_names)
    table.columns = [f"f{i}" for i in range(table.shape[1])]
    adata.obsm[_keys.HISTOLOGY] = table
    facts = HistologyField().facts(adata)
    HistologyField().compare(facts, adata)
    adata.obsm[_keys.HISTOLOGY] = table[table.columns[::-1]]
    with pytest.raises(ValueError, match=r"in their order; column 0 is 'f[1-9][0-9]*' and was 'f0'"):
        HistologyField().compare(facts, adata)


# coordinates ------------------------------------------------------------------------------------------------


def test_coordinates_must_exist_and_be_flat():
    adata = make()
    adata.obsm["deep"] = np.zeros((36, 4))
    with pytest.raises(KeyError, match=r"obsm\['xy'\] does not exist; .* Name yours with `spatial_key=`"):
        CoordinatesField("xy").facts(adata)
    with pytest.raises(
        ValueError, match=r"obsm\['deep'\] must be spots × 2 \(x, y\); its shape is \(36, 4\)"
    ):
        CoordinatesField("deep").facts(adata)


def test_missing_coordinates_name_the_spots():
    adata = make()
    adata.obsm[_keys.SPATIAL][3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 36 spots have NaN or infinite coordinates, such as spot3"):
        CoordinatesField().facts(adata)


@pytest.mark.parametrize("scale", [1e-4, 100.0])
def test_an_implausible_pitch_is_refused(scale):
    adata = make()
    adata.obsm[_keys.SPATIAL] = grid() * scale
    with pytest.raises(
        ValueError,
        match=r"must be in µm; the median distance between neighbouring spots is .*outside 1–1000 µm",
    ):
        CoordinatesField().facts(adata)


def test_a_scale_that_nobody_applied_is_refused():
    adata = make()
    adata.uns[_keys.UM_PER_UNIT] = 0.688
    with pytest.raises(
        ValueError, match=r"one unit is 0.688 µm .*, and no conversion is recorded .*stg.pp.coordinates_in_um"
    ):
        CoordinatesField().facts(adata)
    adata.uns[_keys.UM_PER_UNIT] = 1.0
    CoordinatesField().facts(adata)


def test_visium_pixels_betray_themselves():
    adata = make()
    adata.obsm[_keys.SPATIAL] = grid(pitch=138.0)
    adata.uns[_keys.SPATIAL] = {"lib": {"scalefactors": {"spot_diameter_fullres": 76.0}}}
    with pytest.raises(
        ValueError,
        match=r"one unit is 0.7246 µm \(spots lie 138 apart and are 76 pixels wide .* as on Visium",
    ):
        CoordinatesField().facts(adata)
    adata.obsm[_keys.SPATIAL] = grid(pitch=100.0)
    CoordinatesField().facts(adata)


def test_the_pitch_is_measured_within_sections():
    xy = np.concatenate([grid(), grid() + 3.0])
    section = np.repeat([0, 1], 36)
    assert spot_pitch(xy, section) == pytest.approx(100)
    assert spot_pitch(xy) < 5
    assert np.isnan(spot_pitch(xy[:1]))


def test_a_single_spot_has_no_pitch_to_check():
    check_units(make()[:1], _keys.SPATIAL, np.zeros((1, 2)), None)


def test_overlapping_sections_need_a_library_key():
    adata = make()
    both = ad.concat([adata, adata], keys=["a", "b"], label="sample", index_unique="-")
    with pytest.raises(
        ValueError, match=r"obs\['sample'\] has 2 values whose spots overlap.*Say `library_key='sample'`"
    ):
        CoordinatesField().facts(both)
    assert CoordinatesField(library_key="sample").facts(both)["n_sections"] == 2
    del both.obs["sample"]
    with pytest.raises(ValueError, match="36 of 72 spots lie exactly on another spot"):
        CoordinatesField().facts(both)


def test_sections_side_by_side_need_no_library_key():
    adata = make()
    both = ad.concat([adata, adata], keys=["a", "b"], label=_keys.LIBRARY, index_unique="-")
    both.obsm[_keys.SPATIAL] = np.concatenate([grid(), grid() + 10_000])
    CoordinatesField().facts(both)


def test_every_spot_needs_a_section():
    adata = make(section=["a"] * 35 + [None])
    with pytest.raises(ValueError, match=r"obs\['section'\] must have a value for every spot; 1 are missing"):
        CoordinatesField(library_key="section").facts(adata)
    with pytest.raises(KeyError, match=r"obs\['slide'\] does not exist; obs has \['section'\]"):
        CoordinatesField(library_key="slide").facts(adata)


def test_a_new_slide_may_lack_the_section_column():
    facts = CoordinatesField(library_key="section").facts(make(section=["a"] * 36))
    CoordinatesField(library_key="section").compare(facts, make())


# split and patients -----------------------------------------------------------------------------------------


def test_a_split_gives_three_sets_of_rows():
    values = ["train"] * 30 + ["validation"] * 3 + ["test"] * 2 + ["buffer"]
    for column in (values, pd.Categorical(values)):
        train, validation, test = SplitField("split").rows(make(split=column))
        assert (train.tolist(), validation.tolist(), test.tolist()) == (
            list(range(30)),
            [30, 31, 32],
            [33, 34],
        )


def test_without_a_split_all_rows_train():
    train, validation, test = SplitField().rows(make())
    assert (len(train), len(validation), len(test)) == (36, 0, 0)


@pytest.mark.parametrize("value", ["val", None, np.nan, True])
def test_a_strange_split_is_named(value):
    with pytest.raises(
        ValueError, match=r"obs\['split'\] must hold 'train', 'validation', 'test'; found .*`stg.pp.split`"
    ):
        SplitField("split").facts(make(split=["train"] * 35 + [value]))


def test_a_split_without_training_rows_is_refused():
    with pytest.raises(ValueError, match="names no 'train' row, so there is nothing to fit"):
        SplitField("split").facts(make(split=["test"] * 36))


def test_a_missing_split_says_how_to_make_one():
    with pytest.raises(
        KeyError, match=r"obs\['split'\] does not exist; obs has \[\]. Write it with `stg.pp.split`"
    ):
        SplitField("split").facts(make())


def test_a_patient_on_both_sides_is_named():
    adata = make(patient=["p1"] * 20 + ["p2"] * 16, split=["train"] * 25 + ["test"] * 11)
    with pytest.warns(UserWarning, match="Patient p2 is in both 'train' and 'test'"):
        check_patients(adata, PatientField("patient"), SplitField("split"))


def test_patients_kept_apart_are_silent():
    adata = make(patient=["p1"] * 20 + ["p2"] * 16, split=["train"] * 20 + ["test"] * 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_patients(adata, PatientField("patient"), SplitField("split"))
        check_patients(adata, PatientField(), SplitField("split"))


# observations and saving ------------------------------------------------------------------------------------


def test_too_few_spots_and_repeated_names_are_refused():
    with pytest.raises(ValueError, match="At least 2 spots are needed; this AnnData has 1"):
        check_observations(make()[:1], minimum=2)
    with pytest.raises(ValueError, match="At least 1 spots are needed; this AnnData has 0"):
        check_observations(make()[:0])
    adata = make()
    adata.obs_names = ["a"] * 36
    with pytest.raises(ValueError, match="Spot names must be unique; 1 repeat: a"):
        check_observations(adata)


@pytest.mark.parametrize(
    "field",
    [
        CountsField("raw"),
        HistologyField("uni"),
        CoordinatesField("xy", "lib"),
        PatientField("p"),
        SplitField("s"),
    ],
)
def test_a_field_comes_back_from_what_it_saved(field):
    assert field_from(field.saved()) == field


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match=r"Unknown field 'os.system'"):
        field_from({"kind": "os.system"})


def test_only_counts_are_a_target():
    targets = {
        kind
        for kind in (CountsField, HistologyField, CoordinatesField, PatientField, SplitField)
        if kind.is_target
    }
    assert targets == {CountsField}
