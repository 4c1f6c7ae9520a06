"""Which spots are the same: section, name and place agree, and a name alone proves nothing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stgen import _keys
from stgen.data._fields import CoordinatesField, HistologyField
from stgen.data._identity import Spots

N = 30
FIELDS = [CoordinatesField(library_key=_keys.LIBRARY), HistologyField()]


def slide(seed=0, section=None, image=True):
    """A slide with the barcodes of every slide."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(N, 2) * 100.0 + rng.uniform(0, 9, 2)
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"AAAC{i}-1" for i in range(N)]))
    adata.obsm[_keys.SPATIAL] = xy
    if image:
        adata.obsm[_keys.HISTOLOGY] = rng.normal(size=(N, 40)).astype(np.float32)
    if section is not None:
        adata.obs[_keys.LIBRARY] = section
    return adata


def among(one, other):
    return Spots.of(one, FIELDS).among(Spots.of(other, FIELDS))


@pytest.mark.parametrize("section", [None, "s1"])
def test_a_spot_is_itself_in_any_order_subset_and_file(section, tmp_path):
    adata = slide(section=section)
    order = np.random.default_rng(1).permutation(N)
    assert among(adata[order].copy(), adata).all()
    np.testing.assert_array_equal(among(adata, adata[order[:7]].copy()), np.isin(np.arange(N), order[:7]))
    adata.write_h5ad(tmp_path / "slide.h5ad")
    assert among(ad.read_h5ad(tmp_path / "slide.h5ad"), adata).all()


@pytest.mark.parametrize("sections", [(None, None), ("s1", "s2"), ("s1", None), (None, "s2")])
def test_the_same_barcodes_on_another_slide_are_other_spots(sections):
    assert not among(slide(0, sections[0]), slide(1, sections[1])).any()


def test_the_same_place_in_a_section_of_another_name_is_another_spot():
    assert not among(slide(0, "s1"), slide(0, "s2")).any()


def test_a_section_without_a_name_of_its_own_is_known_by_name_and_place():
    assert among(slide(0, "s1"), slide(0)).all()


def test_ideal_lattices_are_told_apart_by_what_the_image_shows():
    one, other = slide(0), slide(1)
    other.obsm[_keys.SPATIAL] = one.obsm[_keys.SPATIAL]
    assert not among(one, other).any()
    other.obsm[_keys.HISTOLOGY] = one.obsm[_keys.HISTOLOGY].astype(np.float16)  # embedded in half precision
    assert among(one, other).all()


def test_moved_spots_of_one_name_are_other_spots():
    one, other = slide(), slide()
    other.obsm[_keys.SPATIAL][3:] += 0.5
    np.testing.assert_array_equal(among(one, other), np.arange(N) < 3)


def test_barcodes_repeat_between_sections_of_one_list():
    joined = Spots.joined([Spots.of(slide(seed, f"s{seed}"), FIELDS) for seed in range(3)])
    assert Spots.of(slide(1, "s1"), FIELDS).among(joined).all()
    assert not Spots.of(slide(1, "s9"), FIELDS).among(joined).any()
    assert joined.rows(np.arange(N, 2 * N)).among(Spots.of(slide(1), FIELDS)).all()
    assert joined.among(Spots.of(slide(1, "s1"), FIELDS)).sum() == N


def test_what_one_part_does_not_know_is_not_known_of_all():
    joined = Spots.joined([Spots.of(one, FIELDS) for one in (slide(0), slide(1, image=False))])
    assert joined.image is None
    assert Spots.of(slide(0), FIELDS).among(joined).all()


def test_a_name_alone_proves_nothing():
    def named(section):
        return Spots(pd.Index(["a", "b"]), np.array([section, section], dtype=object), None)

    assert not named(None).among(named(None)).any()
    assert not named("s1").among(named(None)).any()
    assert named("s1").among(named("s1")).all()
    assert not named("s1").among(None).any()
