"""Imputation without places: a spot is known by itself alone, it is said once, and nothing changes where places are."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import stgen as stg
from stgen import _keys
from stgen.models.causalged._views import NEIGHBOURHOODS, Predictor, Spots
from stgen.testing import changed_slots

TINY = {"width": 8, "n_layers": 1, "n_heads": 2, "n_axes": 4}
SHORT = {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False}
DRAWS = {"n_samples": 2, "n_steps": 2}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT, **DRAWS}
N = 80


@pytest.fixture(scope="module")
def tissue():
    import torch

    torch.set_num_threads(1)
    return stg.datasets.toy_tissue(
        n_sections=2, n_patients=2, spots_per_section=N // 2, n_genes=40, histology="none"
    )


@pytest.fixture
def reference(tissue):
    return stg.datasets.toy_reference(tissue, n_cells=100)


@pytest.fixture
def placed(tissue):
    return tissue[:, ::2].copy()


@pytest.fixture
def lost(placed):
    del placed.obsm[_keys.SPATIAL]
    return placed


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """A model that was fitted without places and kept."""
    path = tmp_path_factory.mktemp("kept") / "model"
    adata = tissue[:, ::2].copy()
    cells = stg.datasets.toy_reference(tissue, n_cells=100)
    stg.tl.causalged_impute(adata, cells, spatial_key=False, save=path, **FAST)
    return path


def test_a_table_without_places_is_imputed_and_it_is_said(lost, reference):
    before = lost.copy()
    with pytest.warns(
        UserWarning, match=r"obsm\['spatial'\] does not exist, so each spot is imputed .* alone"
    ) as said:
        stg.tl.causalged_impute(lost, reference, **FAST)
    assert len([one for one in said if "does not exist" in str(one.message)]) == 1
    assert np.isfinite(lost.obsm["causalged"]).all()
    assert "spatial_key" not in lost.uns["causalged"]["params"]
    assert lost.uns["causalged"]["seen_in_training"]["n_spots"] == N
    assert set(changed_slots(before, lost)) == {
        f"{where}['{key}']"
        for where, key in [
            ("obsm", "causalged"),
            ("obsm", "causalged_sd"),
            ("uns", "causalged"),
            ("uns", "causalged_sd"),
        ]
    }


def test_places_that_are_not_read_change_nothing(placed, lost_and_said, reference):
    stg.tl.causalged_impute(placed, reference, spatial_key=False, **FAST)
    np.testing.assert_array_equal(placed.obsm["causalged"], lost_and_said.obsm["causalged"])


@pytest.fixture
def lost_and_said(tissue, reference):
    adata = tissue[:, ::2].copy()
    del adata.obsm[_keys.SPATIAL]
    stg.tl.causalged_impute(adata, reference, spatial_key=False, **FAST)
    return adata


def test_a_kept_model_answers_alike_with_and_without_places(folder, placed, lost_and_said):
    model = stg.models.CausalGeD.load(folder, accelerator="cpu")
    bare = ad.AnnData(placed.X, placed.obs, placed.var)
    for adata in (placed, bare):
        stg.tl.causalged_impute(adata, model=model, **DRAWS)
        np.testing.assert_allclose(
            adata.obsm["causalged"], lost_and_said.obsm["causalged"], rtol=1e-5, atol=1e-6
        )
        assert "spatial_key" not in adata.uns["causalged"]["params"]
    with pytest.raises(ValueError, match=r"fitted without places; got `spatial_key='spatial'`"):
        stg.tl.causalged_impute(placed, model=model, spatial_key="spatial")


def test_a_model_with_places_refuses_spots_without(placed, reference, tmp_path):
    stg.tl.causalged_impute(placed, reference, save=tmp_path / "m", **FAST)
    model = stg.models.CausalGeD.load(tmp_path / "m", accelerator="cpu")
    bare = ad.AnnData(placed.X, placed.obs, placed.var)
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] does not exist.* fitted with places"):
        stg.tl.causalged_impute(bare, model=model)
    with pytest.raises(ValueError, match=r"fitted with places .*got `spatial_key=False`"):
        stg.tl.causalged_impute(placed, model=model, spatial_key=False)
    with pytest.raises(KeyError, match="fitted with places"):
        model.impute(bare)


def test_places_that_cannot_be_used_are_refused_with_the_way_out(placed, reference):
    placed.obsm[_keys.SPATIAL][3] = np.nan
    before = placed.copy()
    with pytest.raises(ValueError, match=r"must be finite; 1 of 80 .* without places: `spatial_key=False`"):
        stg.tl.causalged_impute(placed, reference, **FAST)
    with pytest.raises(ValueError, match=r"must be finite; 1 of 80 .* without places: `spatial_key=False`"):
        stg.models.CausalGeD.setup_anndata(placed)
    assert not changed_slots(before, placed)
    stg.tl.causalged_impute(placed, reference, spatial_key=False, **FAST)
    assert np.isfinite(placed.obsm["causalged"]).all()


def test_a_key_that_is_named_must_exist(lost, reference):
    with pytest.raises(
        KeyError, match=r"obsm\['um'\] does not exist; .* without places: `spatial_key=False`"
    ):
        stg.tl.causalged_impute(lost, reference, spatial_key="um", **FAST)
    with pytest.raises(ValueError, match="or False to impute without places; got True"):
        stg.tl.causalged_impute(lost, reference, spatial_key=True, **FAST)
    with pytest.raises(KeyError, match=r"obs\['slide'\] does not exist"):
        stg.models.CausalGeD.setup_anndata(lost, spatial_key=False, library_key="slide")


def test_without_places_the_views_are_those_of_the_spot_itself(reference):
    from stgen.models.causalged._reference import summarise

    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(50, 12)).astype(np.float32)
    near = np.argsort(rng.random((50, 50)), axis=1)[:, : max(NEIGHBOURHOODS)]
    alone, among = (Spots(x, one, np.arange(50)) for one in (None, near))
    assert len(alone.of_sample) == len(alone.rows(np.arange(3))) == 1
    np.testing.assert_array_equal(alone.of_sample[0], (x - x.mean(axis=0)) / x.std(axis=0))
    cells = reference.X.toarray().astype(np.float32)

    def blocks():
        from scipy import sparse

        yield sparse.csr_matrix(np.log1p(cells))

    summary = summarise(blocks, np.arange(12), 8, 2, 0)
    predictor = Predictor.make(summary, np.arange(12), np.arange(12), np.arange(12, 20))
    own = list(predictor.views(alone.of_sample))
    every = list(predictor.views(among.of_sample))
    assert len(own) == 3 and len(every) == 3 * len(NEIGHBOURHOODS)
    for one, same in zip(own, every[:: len(NEIGHBOURHOODS)], strict=True):
        np.testing.assert_array_equal(one, same)


def test_tables_and_plots_of_genes_need_no_places(lost, reference):
    import matplotlib.pyplot as plt

    stg.tl.causalged_impute(lost, reference, spatial_key=False, **FAST)
    assert stg.get.imputed(lost).n_obs == N
    stg.pl.predictability(lost)
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] does not exist"):
        stg.pl.imputed(lost, list(lost.uns["causalged"]["genes"][:1]), section="s1")
    plt.close("all")
