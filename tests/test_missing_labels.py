"""A missing label is missing in every spelling, and a label has one spelling, wherever labels are read."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys
from stgen._labels import full_column, read_labels

GAPS = [np.nan, None, pd.NA, pd.NaT, float("nan")]
CAST = ["nan", "NaN", "None", "<NA>", "NaT", ""]


def as_text(column):
    """What `astype(str)` makes of a gap before pandas 3, and numpy and csv files still do: text."""
    return pd.Series([str(one) for one in column], index=column.index, dtype=object)


def listed(values):
    return list(values)


def objects(values):
    return np.array(values, dtype=object)


def series(values):
    return pd.Series(values, dtype=object, index=[f"c{i}" for i in range(len(values))])


def category(values):
    return pd.Series(values, dtype=object).astype("category")


KINDS = [listed, objects, series, category]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [*GAPS, *CAST], ids=repr)
def test_a_gap_is_missing_in_every_spelling_and_container(gap, kind):
    read = read_labels(kind(["a", gap, "b"]))
    assert read.tolist() == ["a", None, "b"]


def test_a_cast_of_a_column_with_gaps_is_read_like_the_column():
    column = pd.Series(["a", np.nan, "b", None], dtype=object)
    for cast in (column.astype(str), np.array(["a", np.nan, "b"]), column.astype("string").astype(str)):
        assert read_labels(cast).isna().tolist()[:3] == [False, True, False]


def test_text_that_a_cast_made_is_counted_aloud_once():
    with pytest.warns(UserWarning) as said:
        read_labels(["a", "nan", "nan", "None", np.nan], "obs['kind']")
    assert [str(one.message) for one in said] == [
        "3 labels of obs['kind'] are text that a cast makes of missing values ('None', 'nan'); they count as missing."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_labels(["a", np.nan, None], "obs['kind']")


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 1],
        [1.0, 2.0, 1.0],
        ["1", "2", "1"],
        [1, "2", 1.0],
        np.array([1, 2, 1], dtype=np.int32),
        np.array([1, 2, 1], dtype=np.float32),
        pd.array([1, 2, 1], dtype="Int64"),
        pd.array([1, 2, 1], dtype="Float64"),
        pd.Categorical([1, 2, 1]),
        pd.Categorical([1.0, 2.0, 1.0]),
        pd.Categorical(["1", "2", "1"]),
    ],
    ids=lambda values: f"{type(values).__name__}-{getattr(values, 'dtype', '')}",
)
def test_whole_numbers_have_one_spelling(values):
    assert read_labels(values).tolist() == ["1", "2", "1"]


def test_a_column_of_integers_with_a_gap_agrees_with_one_without():
    assert stg.metrics.ari([1, 2, 1, 2], pd.Series([1.0, 2.0, 1.0, 2.0])) == 1
    assert stg.metrics.f1_per_class([1, 2, 2], pd.Series([1, 2, np.nan]).fillna(2)) == {"1": 1.0, "2": 1.0}
    assert stg.metrics.balanced_accuracy(["1", "2"], np.array([1.0, 2.0])) == 1


def test_other_values_keep_theirs():
    assert read_labels([0.5, True, "L2/3", "none", " a"]).tolist() == ["0.5", "True", "L2/3", "none", " a"]


# ------------------------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize("metric", ["ami", "ari", "nmi", "macro_f1", "f1_per_class", "balanced_accuracy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [np.nan, None, pd.NA, "nan", "<NA>"], ids=repr)
def test_no_score_counts_a_missing_label_as_a_class(metric, gap, kind):
    score = getattr(stg.metrics, metric)
    labels = ["a", "b", gap, "a"]
    with pytest.raises(ValueError, match=r"1 label\(s\) are missing"):
        score(kind(labels), ["a", "b", "a", "a"])
    with pytest.raises(ValueError, match=r"1 label\(s\) are missing"):
        score(["a", "b", "a", "a"], kind(labels))


def test_a_list_made_of_a_column_with_gaps_is_refused_and_says_what_a_cast_does():
    column = pd.Series(["a", "b", np.nan])
    with pytest.raises(ValueError, match=r"1 label\(s\) are missing; drop"):
        stg.metrics.ari(list(column), ["a", "b", "c"])
    with pytest.raises(
        ValueError, match=r"1 label\(s\) are missing \(text such as 'nan' is what a cast makes"
    ):
        stg.metrics.ari(as_text(column), ["a", "b", "c"])


# ------------------------------------------------------------------------------------------------ tables, models, nulls


@pytest.fixture
def cells():
    return stg.datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=60, n_genes=12, unit="cells", histology="none"
    )


def with_gaps(adata, cast):
    """Every fifth region is missing."""
    region = adata.obs["region"].astype(str).where(np.arange(adata.n_obs) % 5 != 0)
    adata.obs["some"] = pd.Categorical(as_text(region)) if cast else pd.Categorical(region)
    return adata


def test_confusion_leaves_out_what_a_cast_made_missing(cells):
    expected = stg.get.confusion(with_gaps(cells, cast=False), "some", "region")
    with pytest.warns(UserWarning, match=r"12 labels of obs\['some'\] are text"):
        found = stg.get.confusion(with_gaps(cells, cast=True), "some", "region")
    assert found.to_numpy().sum() == 48
    pd.testing.assert_frame_equal(found, expected)


def test_confusion_has_one_row_for_1_and_for_1_0(cells):
    cells.obs["whole"] = np.arange(60) % 3
    cells.obs["gap"] = pd.Series(np.arange(60) % 3, index=cells.obs_names).where(np.arange(60) > 5)
    table = stg.get.confusion(cells, "whole", "gap")
    assert list(table.index) == list(table.columns) == ["0", "1", "2"]
    assert table.to_numpy().trace() == table.to_numpy().sum() == 54


def test_niches_are_missing_where_a_cast_wrote_text(cells):
    table = stg.get.niches(with_gaps(cells, cast=True), "some")
    assert table["niche"].isna().sum() == 12
    assert "nan" not in table["niche"].cat.categories


def test_neighbour_labels_learn_nothing_from_missing_ones(cells):
    from stgen.baselines import NeighbourLabels

    x, xy = np.log1p(cells.X.toarray()), cells.obsm[_keys.SPATIAL]
    plain = NeighbourLabels().fit(x, with_gaps(cells, cast=False).obs["some"], xy)
    with pytest.warns(UserWarning, match="12 labels of `labels` are text"):
        cast = NeighbourLabels().fit(x, with_gaps(cells, cast=True).obs["some"], xy)
    assert "nan" not in cast.classes_
    np.testing.assert_array_equal(cast.probabilities(x, xy), plain.probabilities(x, xy))
    listed = NeighbourLabels().fit(x, list(with_gaps(cells, cast=False).obs["some"]), xy)
    np.testing.assert_array_equal(listed.classes_, plain.classes_)


def test_kinds_of_cells_leave_missing_ones_without_a_name(cells):
    from stgen.models.gest._question import check_labels

    obs = with_gaps(cells, cast=False).obs
    kind, instance = check_labels(obs, "some", "layer_1")
    assert (kind == -1).sum() == 12
    np.testing.assert_array_equal(instance, (obs["some"] == "layer_1").to_numpy())
    with pytest.raises(ValueError, match=r"`cell_type` must be one of obs\['some'\]"):
        check_labels(obs, "some", "nan")
    obs["number"] = np.arange(60) % 2
    np.testing.assert_array_equal(check_labels(obs, "number", 1)[1], np.arange(60) % 2 == 1)


def test_a_model_learns_nothing_from_text_that_a_cast_made(cells):
    stg.models.GeST.setup_anndata(cells)
    model = stg.models.GeST(cells, width=16, n_layers=1, n_heads=2, n_meta_cells=8)
    model.train(max_epochs=1, accelerator="cpu", progress_bar=False)
    model.learn_labels("some", with_gaps(cells, cast=False))
    expected = model.annotate(cells)
    with pytest.warns(UserWarning, match=r"12 labels of obs\['some'\] are text"):
        model.learn_labels("some", with_gaps(cells, cast=True))
    pd.testing.assert_frame_equal(model.annotate(cells), expected)
    assert expected.attrs["n_learned"] == 48
    cells.obs["number"] = pd.Series(np.arange(60) % 2, index=cells.obs_names).where(np.arange(60) > 5)
    model.learn_labels("number", cells)
    assert model.module.classes == ["0", "1"]
    cells.obs["mixed"] = [1 if i % 2 else "1" for i in range(60)]
    with pytest.raises(ValueError, match="at least two classes of 2 cells; found only '1'"):
        model.learn_labels("mixed", cells)


# ---------------------------------------------------------------------------------------------- sections and patients


@pytest.mark.parametrize("gap", [np.nan, None, "nan", "<NA>"], ids=repr)
def test_a_section_or_patient_without_a_name_is_counted_and_refused(gap):
    adata = stg.datasets.toy_tissue(n_sections=2, n_patients=2, spots_per_section=20, n_genes=12)
    adata.obs["who"] = [gap, gap, *(["p"] * 18), *(["q"] * 20)]
    with pytest.raises(ValueError, match=r"obs\['who'\] must have a value for every spot; 2 are missing"):
        stg.pp.split(adata, by="patient", patient_key="who", test=0.5, validation=0)
    with pytest.raises(ValueError, match=r"obs\['who'\] must have a value for every spot; 2 are missing"):
        stg.models.GenAR.setup_anndata(adata, patient_key="who", library_key=_keys.LIBRARY)


def test_patients_are_known_again_whatever_the_type_of_their_numbers():
    as_int, as_float = ({"who": np.array([1, 2], dtype=kind)} for kind in (int, float))
    assert (
        full_column(pd.DataFrame(as_int), "who").tolist()
        == full_column(pd.DataFrame(as_float), "who").tolist()
    )
