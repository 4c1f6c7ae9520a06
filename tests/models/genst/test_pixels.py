"""The pixel back-end: tiles in place of an embedding, and everything else as before.

B batch, p pixels per side, P statistics, M tokens, d width, K codes.
"""

from __future__ import annotations

import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stgen as stg
from stgen import _keys
from stgen.models.genst._config import GenSTConfig
from stgen.models.genst._pixels import TileAutoencoder, absorbed, n_statistics, statistics

PX, M, d, K = 32, 4, 2, 5
TINY = {"back_end": "pixels", "n_tokens": 3, "token_width": 2, "n_codes": 6, "n_image_tokens": 4,
        "n_image_codes": 6, "hidden": 12}  # fmt: skip
SHORT = {"max_epochs": 3, "batch_size": 16, "accelerator": "cpu"}
KEYS = {"library_key": _keys.LIBRARY, "split_key": _keys.SPLIT, "tiles_key": _keys.TILES}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def make_tissue(px=PX, **changes):
    small = {"n_sections": 3, "n_patients": 3, "spots_per_section": 36, "n_genes": 10, "histology": "images"}
    adata = stg.datasets.toy_tissue(**{**small, **changes})
    stg.pp.histology_tiles(adata, "hires", library_key=_keys.LIBRARY, tile_px=px)
    roles = {"s1": _keys.TRAIN, "s2": _keys.VALIDATION, "s3": _keys.TEST}
    adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
    return adata


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


def build(adata, **changes):
    stg.models.GenST.setup_anndata(adata, **KEYS)
    return stg.models.GenST(adata, random_state=0, **{**TINY, **changes})


@pytest.fixture(scope="module")
def fitted(tissue):
    model = build(tissue.copy())
    model.train(**SHORT)
    return model


@pytest.fixture(scope="module")
def section(tissue):
    return tissue[tissue.obs[_keys.SPLIT] == _keys.TEST].copy()


# statistics of tiles -----------------------------------------------------------------------------------------


def tiles_of(n, px=PX, seed=0):
    """Tiles of several colours and grains."""
    rng = np.random.default_rng(seed)
    grain = rng.choice([1, 2, 4, 8], n)
    made = np.stack(
        [
            np.kron(rng.uniform(-1, 1, (px // g, px // g, 3)), np.ones((g, g, 1))) * rng.uniform(10, 60)
            + rng.uniform(100, 180, 3)
            for g in grain
        ]
    )
    return torch.from_numpy(made.clip(0, 255).astype(np.uint8))


def test_absorbed_light_of_white_is_none_and_of_black_is_finite():
    white, black = (absorbed(torch.full((1, PX, PX, 3), v, dtype=torch.uint8)) for v in (255, 0))
    assert white.shape == (1, 3, PX, PX)
    assert not white.any()
    assert black.isfinite().all() and (black > 5).all()


def test_statistics_do_not_tell_a_tile_from_its_mirror_images_and_tell_grain():
    stain = absorbed(tiles_of(8))
    found = statistics(stain)
    assert found.shape == (8, n_statistics(PX))
    for turned in (stain.flip(2), stain.flip(3), stain.transpose(2, 3)):
        torch.testing.assert_close(statistics(turned), found, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, :3], stain.mean((2, 3)))
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), scale_factor=4.0)
    spread = statistics(coarse)[0, 3:].unflatten(0, (-1, 2, 3))[:, 0].mean(-1)
    assert spread.argmax() == 2 and spread[:2].max() < 1e-3  # grains of four pixels: nothing at one and two


def test_spread_and_skewness_of_the_finest_scale_equal_numpy():
    stain = absorbed(tiles_of(3, seed=2)).double()
    x = stain.numpy()
    mean = x.reshape(3, 3, PX // 2, 2, PX // 2, 2).mean((3, 5))
    fine = x - mean.repeat(2, axis=2).repeat(2, axis=3)
    third = (fine**3).mean((2, 3))
    found = statistics(stain)
    np.testing.assert_allclose(found[:, 3:6], np.sqrt((fine**2).mean((2, 3))))
    np.testing.assert_allclose(found[:, 6:9], np.cbrt(third), atol=1e-9)


# the autoencoder ---------------------------------------------------------------------------------------------


def started(px=PX):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = TileAutoencoder(px, M, d, K, GenSTConfig(n_image_codes=K))
        auto.eval().start([tiles_of(60, px), tiles_of(60, px, seed=1)], torch.Generator().manual_seed(0))
    return auto


@pytest.mark.parametrize("px", [32, 64, 96])
def test_its_interface_is_that_of_the_autoencoder_of_features(px):
    auto, tiles = started(px), tiles_of(7, px, seed=2)
    with torch.no_grad():
        coded, error, commitment = auto(tiles)
        assert auto.encode(tiles).shape == coded.z.shape == (7, M, d)
        assert auto.decode(coded.z).shape == coded.x.shape == (7, auto.n_inputs)
        assert coded.code.shape == (7, M) and error.shape == commitment.shape == (7,)
        torch.testing.assert_close(auto.encode(tiles), coded.z)
        assert torch.equal(auto.books.nearest(coded.z), coded.code)


def test_tokens_start_from_the_principal_components_of_statistics():
    auto = started()
    with torch.no_grad():
        looks = statistics(absorbed(tiles_of(60)))
        torch.testing.assert_close(auto.encode(tiles_of(60)), auto.looks.encode(looks))
        z = auto.encode(torch.cat([tiles_of(60), tiles_of(60, seed=1)])).flatten(1)
    covariance = torch.cov(z.T)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 0.05 * covariance.diag().max()


def test_blank_tiles_give_no_nan_in_training_or_out():
    auto = started()
    blank = torch.stack([torch.full((PX, PX, 3), v, dtype=torch.uint8) for v in (0, 128, 255)])
    auto.train()
    coded, error, commitment = auto(blank, torch.Generator().manual_seed(0))
    (error.mean() + commitment.mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in auto.parameters())
    assert coded.z.isfinite().all() and error.isfinite().all()
    auto = TileAutoencoder(PX, M, d, 2, GenSTConfig())
    auto.eval().start([blank[:1].expand(10, -1, -1, -1)], torch.Generator().manual_seed(0))
    assert auto.encode(blank).isfinite().all()


def test_training_makes_tiles_again_better_than_it_starts():
    auto, tiles = started(), tiles_of(64, seed=3)
    optimiser = torch.optim.Adam(auto.parameters(), lr=3e-3)
    errors = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto.train()
        for _ in range(60):
            _, error, commitment = auto(tiles, torch.Generator().manual_seed(0))
            optimiser.zero_grad()
            (error + 0.25 * commitment).mean().backward()
            optimiser.step()
            errors.append(error.mean().item())
    assert np.mean(errors[-5:]) < 0.8 * errors[0]
    assert all(p.grad.any() for p in auto.parameters())


# the model ---------------------------------------------------------------------------------------------------


def example():
    from stgen.testing import Example

    return Example(adata=make_tissue(), setup=KEYS, config=TINY, train={"max_epochs": 3, "batch_size": 16})


@pytest.fixture(scope="module")
def case():
    from stgen.testing import Case

    return Case(stg.models.GenST, example())


@pytest.mark.parametrize("promise", [
    "an_untrained_verb_explains_itself",
    "one_seed_gives_one_result",
    "global_random_state_is_left_alone",
    "a_prediction_does_not_depend_on_its_batch",
    "permuting_observations_permutes_results",
    "permuting_genes_changes_nothing",
    "poisoned_test_rows_change_nothing",
    "poisoned_validation_rows_change_nothing_at_fixed_epochs",
    "every_parameter_gets_a_gradient",
    "one_batch_can_be_overfitted",
    "saved_and_loaded_it_answers_the_same",
    "a_resumed_training_equals_an_uninterrupted_one",
    "inputs_without_targets_suffice",
    "adata_changes_only_under_documented_keys",
])  # fmt: skip
def test_on_pixels_it_keeps_its_promise(promise, case):
    from stgen.testing import CHECKS

    CHECKS[promise](case)


def test_tiles_and_places_suffice(fitted, section):
    bare = ad.AnnData(
        obs=pd.DataFrame(index=section.obs_names),
        obsm={key: section.obsm[key] for key in (_keys.SPATIAL, _keys.TILES)},
    )
    pd.testing.assert_frame_equal(fitted.predict(bare), fitted.predict(section))
    assert fitted.embed(bare).shape == (section.n_obs, 6)
    assert fitted.codes(bare, modality="histology").shape == (section.n_obs, 4)
    assert fitted.predict(bare, n_samples=2).shape == (2, *section.shape)


def test_the_history_tells_its_phases(fitted):
    assert fitted.history["phase"]["phase"].tolist() == [1, 2, 2]
    assert "tile_px" in repr(fitted)


def test_other_tiles_give_other_answers(fitted, section):
    other = section.copy()
    other.obsm[_keys.TILES] = other.obsm[_keys.TILES][::-1].copy()
    assert not np.allclose(fitted.predict(section), fitted.predict(other))


def test_tiles_of_another_size_are_refused(fitted, section):
    other = section.copy()
    other.obsm[_keys.TILES] = other.obsm[_keys.TILES].repeat(2, axis=1).repeat(2, axis=2)
    with pytest.raises(ValueError, match=r"fitted on tiles of 32 × 32 pixels"):
        fitted.predict(other)


def test_what_is_registered_and_what_is_built_must_agree(tissue):
    with pytest.raises(
        ValueError, match=r"back_end='features' reads a histology embedding; `setup_anndata` registered tiles"
    ):
        build(tissue.copy(), back_end="features")
    adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=36, n_genes=10)
    stg.models.GenST.setup_anndata(adata, library_key=_keys.LIBRARY)
    with pytest.raises(ValueError, match=r"back_end='pixels' reads tiles; .*name tiles with `tiles_key=`"):
        stg.models.GenST(adata, **TINY)
    with pytest.raises(ValueError, match=r"`back_end` must be one of 'features', 'pixels'; got 'voxels'"):
        GenSTConfig(back_end="voxels")


def test_tiles_never_become_floats_all_at_once(fitted, section, monkeypatch):
    """Training, calibration and prediction hold one batch of floats, however many tiles there are."""
    from stgen.models.genst import _pixels

    at_once = []
    monkeypatch.setattr(_pixels, "absorbed", lambda tiles: at_once.append(len(tiles)) or absorbed(tiles))
    rows = np.arange(2000) % section.n_obs
    many = ad.AnnData(
        obs=pd.DataFrame(index=[f"spot{i}" for i in range(len(rows))]),
        obsm={
            _keys.TILES: section.obsm[_keys.TILES][rows],
            _keys.SPATIAL: np.random.default_rng(0).uniform(0, 5000, (len(rows), 2)),
        },
    )
    tracemalloc.start()
    fitted.predict(many, batch_size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(at_once) == 64 and sum(at_once) == 2000
    assert peak < 0.3 * many.obsm[_keys.TILES].nbytes


def test_a_report_reads_tiles(fitted, tissue):
    report = fitted.report(tissue, n_boot=20, n_halvings=1, n_permutations=2)
    assert len(report.genes) == 10


def test_one_call_predicts_from_tiles_and_records_where_they_lie(fitted, section):
    other = section.copy()
    other.obsm["cut"] = other.obsm.pop(_keys.TILES)
    del other.obs[_keys.SPLIT]
    stg.tl.genst_predict(other, model=fitted, tiles_key="cut")
    found = other.layers["genst_normalized"] if "genst_normalized" in other.layers else other.layers["genst"]
    assert np.isfinite(found).all()
    assert other.uns["genst"]["params"]["tiles_key"] == "cut"


def test_the_preset_reads_tiles_and_trains_for_longer(tissue):
    adata = tissue.copy()
    stg.models.GenST.setup_anndata(adata, **KEYS)
    model = stg.models.GenST(adata, preset="pixels", n_codes=6)
    assert model.config == GenSTConfig(back_end="pixels", n_codes=6)
    assert model.training_defaults.min_epochs > build(tissue.copy()).training_defaults.min_epochs
