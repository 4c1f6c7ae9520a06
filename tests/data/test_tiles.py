"""Tiles at the door of a model: what is refused, what is warned of, and that bytes stay bytes."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stgen import _keys
from stgen.data._fields import CoordinatesField, CountsField, field_from
from stgen.data._tiles import TilesField, all_blank

N, P = 12, 32


def make(tiles=None, *, tile_um=112.0):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        rng.poisson(3, size=(N, 4)).astype(np.float32),
        obs=pd.DataFrame(index=[f"spot{i}" for i in range(N)]),
        obsm={_keys.SPATIAL: rng.uniform(0, 3000, (N, 2))},
    )
    adata.obsm[_keys.TILES] = rng.integers(0, 256, (N, P, P, 3)).astype(np.uint8) if tiles is None else tiles
    adata.uns[_keys.TILES] = {"params": {"tile_um": tile_um}}
    return adata


def shaped(*shape, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, 256, (N, *shape)).astype(dtype)


FIELD = TilesField()


def test_facts_are_size_and_blank_tiles():
    assert FIELD.facts(make()) == {"tile_px": P, "tile_um": 112.0, "n_blank": 0}
    assert field_from(FIELD.saved()) == FIELD


def test_a_missing_slot_names_those_that_exist():
    adata = make()
    del adata.obsm[_keys.TILES]
    with pytest.raises(
        KeyError, match=r"obsm\['tiles'\] does not exist; obsm has \['spatial'\]\. Cut tiles with"
    ):
        FIELD.facts(adata)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (shaped(3, P, P), r"must be spots × p × p × 3.*np\.moveaxis\(tiles, 1, -1\)"),
        (shaped(P, P, 4), r"\(12, 32, 32, 4\).*tiles\[\.\.\., :3\]"),
        (shaped(P, P), r"If they are grey, repeat them"),
        (shaped(P, P, 1), r"If they are grey, repeat them"),
        (shaped(P, 2 * P, 3), r"Tiles are square: cut or pad"),
        (
            shaped(P, P, 3, dtype=np.uint16) * 200,
            r"must be uint8.*uint16.*value of white paper in this camera",
        ),
        (shaped(P, P, 3) / np.float32(255), r"must be uint8.*float32.*tiles / 1 \* 255"),
        (shaped(P, P, 3, dtype=np.float32), r"must be uint8.*float32.*tiles / 255 \* 255"),
        (shaped(56, 56, 3), r"multiple of 32 pixels a side; they are 56 × 56.*tile_px=32"),
        (shaped(20, 20, 3), r"multiple of 32 pixels a side; they are 20 × 20.*tile_px=32"),
        (shaped(100, 100, 3), r"multiple of 32 pixels a side; they are 100 × 100.*tile_px=96"),
    ],
)
def test_other_tiles_are_refused_with_a_remedy(tiles, message):
    with pytest.raises(ValueError, match=r"obsm\['tiles'\].*" + message):
        FIELD.facts(make(tiles))


def test_tiles_of_another_size_than_those_of_training_are_refused():
    facts = FIELD.facts(make())
    FIELD.compare(facts, make(shaped(P, P, 3)))
    with pytest.raises(ValueError, match=r"fitted on tiles of 32 × 32 pixels; .* are 64 × 64\. .*tile_px=32"):
        FIELD.compare(facts, make(shaped(64, 64, 3)))
    with pytest.raises(ValueError, match=r"fitted on tiles of 112 µm; .* are 56 µm wide\. .*tile_um=112"):
        FIELD.compare(facts, make(tile_um=56.0))


def test_blank_tiles_are_counted_and_warned_of(caplog):
    adata = make()
    adata.obsm[_keys.TILES][[2, 5]] = 240
    with caplog.at_level(logging.WARNING, logger="stgen"):
        assert FIELD.facts(adata)["n_blank"] == 2
    assert "2 of 12 tiles are blank" in caplog.text and "spot2" in caplog.text
    adata.obsm[_keys.TILES][:] = 0
    with caplog.at_level(logging.WARNING, logger="stgen"):
        assert FIELD.facts(adata)["n_blank"] == N
    assert "All 12 tiles are blank" in caplog.text


def test_blank_tiles_are_found_a_few_at_a_time():
    tiles = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3)).astype(np.uint8)
    tiles[[0, 255, 256, 599]] = 17
    assert np.flatnonzero(all_blank(tiles)).tolist() == [0, 255, 256, 599]
    assert all_blank(tiles[:0]).shape == (0,)


# the table ---------------------------------------------------------------------------------------------------


def table_of(adata, **options):
    from stgen.data._loaders import TileTable

    return TileTable.read(adata, [FIELD, CoordinatesField(), CountsField()], **options)


def test_a_batch_has_the_tiles_of_its_rows_as_bytes():
    import torch

    adata = make()
    table = table_of(adata)
    rows = torch.tensor([7, 1, 1])
    batch = table.batch(rows)
    assert len(table) == N
    assert batch["tiles"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["tiles"], adata.obsm[_keys.TILES][[7, 1, 1]])
    np.testing.assert_array_equal(batch["counts"], adata.X[[7, 1, 1]])
    assert set(table_of(adata, targets=False).batch(rows)) == {"index", "key", "histology", "xy", "tiles"}
    batch["tiles"].zero_()
    assert adata.obsm[_keys.TILES][1].any()


def test_the_table_shares_memory_with_the_data():
    adata = make()
    assert np.shares_memory(table_of(adata).tiles_nppc, adata.obsm[_keys.TILES])
