"""The words of a split are read in one place: a word that is not known is refused everywhere, with the nearest that is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys
from stgen.data._splits import read_split


@pytest.fixture
def tissue():
    return stg.datasets.toy_tissue(n_sections=4, n_patients=1, spots_per_section=60, n_genes=12)


def named(adata, train):
    """The first section is for testing, the others are called ``train``."""
    adata.obs[_keys.SPLIT] = np.where(adata.obs[_keys.LIBRARY] == "s1", _keys.TEST, train)
    return adata


@pytest.mark.parametrize("kind", [list, np.array, pd.Categorical])
def test_each_spot_has_the_role_it_is_called(kind):
    roles = read_split(
        pd.DataFrame({"split": kind(["test", "train", "buffer", "validation", "train"])}), "split"
    )
    assert {word: np.flatnonzero(mask).tolist() for word, mask in roles._asdict().items()} == {
        "train": [1, 4],
        "validation": [3],
        "test": [0],
        "buffer": [2],
    }
    np.testing.assert_array_equal(np.flatnonzero(roles.is_seen), [1, 3, 4])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("Train", "train"),
        ("TRAIN", "train"),
        ("train ", "train"),
        ("training", "train"),
        ("val", "validation"),
        ("valid", "validation"),
        ("Testing", "test"),
        ("bufer", "buffer"),
    ],
)
def test_a_word_that_is_not_known_is_named_with_the_nearest_that_is(word, meant):
    obs = pd.DataFrame({"role": [word, word, "test"]})
    with pytest.raises(
        ValueError, match=rf"obs\['role'\] .*found '{word}' \(2 spots\): did you mean '{meant}'\? Write it"
    ):
        read_split(obs, "role")


def test_a_word_like_none_of_them_is_named_without_a_guess():
    with pytest.raises(ValueError, match=r"found 'A' \(1 spots\)\. Write it with `stg\.pp\.split`"):
        read_split(pd.DataFrame({"role": ["A", "test"]}), "role")


@pytest.mark.parametrize("gap", [np.nan, None, pd.NA, pd.NaT, "nan", "None", "<NA>", ""])
def test_spots_without_a_word_are_counted_and_refused(gap):
    obs = pd.DataFrame({"role": pd.Series([gap, "train", gap, "test"], dtype=object)})
    with pytest.raises(ValueError, match=r"found 2 missing.*may read are called 'buffer'"):
        read_split(obs, "role")


WORDS = ["Train", "TRAIN", "train ", "training", "val"]


@pytest.mark.parametrize("word", WORDS)
def test_the_guard_against_shared_patients_cannot_be_switched_off_by_a_word(tissue, word):
    tissue.layers["made"] = tissue.X.copy()
    with pytest.raises(ValueError, match="Patient p1 is in both training and evaluation"):
        stg.tl.evaluate(named(tissue, _keys.TRAIN), "made", min_counts=1, n_boot=10)
    with pytest.raises(ValueError, match=f"found '{word}' \\(180 spots\\): did you mean"):
        stg.tl.evaluate(named(tissue, word), "made", min_counts=1, n_boot=10)


def panel(adata):
    stg.pp.gene_panel(adata, n_genes=5)


def again(adata):
    stg.pp.split(adata, by="random", test=0, validation=0.5, within="test")


def genst_rows(adata):
    from stgen.models.genst._sections import rows_to_report

    rows_to_report(adata, _keys.SPLIT, None)


def judged(adata):
    from stgen.tl._records import rows_to_judge

    rows_to_judge(adata, _keys.SPLIT)


def trained(adata):
    stg.models.GenAR.setup_anndata(adata, split_key=_keys.SPLIT, library_key=_keys.LIBRARY)


def labelled(adata):
    from stgen.tl._gest_source import labels_to_learn

    labels_to_learn(adata, "region", _keys.SPLIT)


@pytest.mark.parametrize("reader", [panel, again, genst_rows, judged, trained, labelled])
def test_every_reader_refuses_the_same_words(tissue, reader):
    reader(named(tissue.copy(), _keys.TRAIN))
    tissue = named(tissue, "Train")
    before = tissue.copy()
    with pytest.raises(ValueError, match=r"found 'Train' \(180 spots\): did you mean 'train'\?"):
        reader(tissue)
    from stgen.testing import changed_slots

    assert not changed_slots(before, tissue)


def test_no_other_place_compares_a_column_with_the_words():
    """Words are compared where they are read, and written where a split is made."""
    source = Path(stg.__file__).parent
    compares = re.compile(
        r"(==|!=) _keys\.(TRAIN|VALIDATION|TEST|BUFFER)\b|isin\([^\n]*_keys\.(TRAIN|VALIDATION|TEST)"
    )
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if compares.search(path.read_text())
    }
    assert found == {"data/_splits.py"}


# -------------------------------------------------------------------------------------------- something must be left


def test_a_buffer_that_eats_all_training_spots_is_refused(tissue):
    before = tissue.copy()
    with pytest.raises(
        ValueError, match=r"No spot is left for training: .*buffer \(\d+\).*Lower `buffer_um`"
    ):
        stg.pp.split(tissue, by="block", block_um=100, buffer_um=300)
    from stgen.testing import changed_slots

    assert not changed_slots(before, tissue)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "section", "test": ["s1", "s2"], "validation": ["s3", "s4"]}, "name fewer"),
        ({"by": "patient", "test": ["p1"], "validation": 0}, "split finer"),
        ({"by": "patient"}, "split finer"),
    ],
)
def test_groups_that_take_all_are_refused(tissue, settings, message):
    with pytest.raises(ValueError, match=f"is left for training.*{message}"):
        stg.pp.split(tissue, **settings)


def test_a_block_larger_than_the_tissue_leaves_nothing_to_divide():
    slide = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=60, n_genes=12)
    with pytest.raises(
        ValueError, match=r"No block is left for training.*make blocks smaller \(`block_um=`\)"
    ):
        stg.pp.split(slide, by="block", block_um=1e6)


@pytest.mark.filterwarnings("ignore:Patient p1 has sections")
def test_rows_within_an_earlier_split_must_leave_some(tissue):
    stg.pp.split(tissue, by="section", test=["s1", "s2", "s3"], validation=0)
    before = tissue.obs[_keys.SPLIT].copy()
    with pytest.raises(ValueError, match="No section is left for training: there is 1"):
        stg.pp.split(tissue, by="section", validation=0.5, test=0, within="train")
    with pytest.raises(ValueError, match=r"`within` must be one of 'train', .*; got 'Train'"):
        stg.pp.split(tissue, by="section", within="Train")
    pd.testing.assert_series_equal(tissue.obs[_keys.SPLIT], before)
