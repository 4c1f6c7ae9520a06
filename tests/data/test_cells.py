"""A batch of windows holds the meta cells and places that a search of all pairs finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stgen.data._cells import CellTable
from stgen.data._loaders import Batches, SizedTable

N = 300


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return {
        "label": rng.integers(0, 40, N),
        "keys": rng.integers(-(2**62), 2**62, N),
        "xy": rng.uniform(0, 200, (N, 2)),
        "section": rng.integers(0, 2, N),
        "pool": rng.integers(-1, 2, N),
    }


@pytest.fixture
def table(cells):
    return CellTable.make(**cells, window_um=50, max_cells=9)


def test_a_batch_is_what_a_search_of_all_pairs_gives(cells, table):
    rows = torch.tensor([7, 250, 7, 31, 0])
    batch = table.batch(rows)
    assert {name: value.dtype for name, value in batch.items()} == {
        "index": torch.int64,
        "key": torch.int64,
        "size": torch.int64,
        "cell": torch.int64,
        "offset": torch.float32,
        "member": torch.int64,
        "label": torch.int64,
    }
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["key"], cells["keys"][rows])
    assert batch["member"].shape[1] == batch["size"].max()
    for b, row in enumerate(rows.tolist()):
        away = cells["xy"] - cells["xy"][row]
        met = (cells["section"] == cells["section"][row]) & (cells["pool"] == cells["pool"][row])
        inside = np.flatnonzero(met & (np.abs(away) <= 25).all(axis=1) & (cells["pool"] >= 0))
        inside = inside[np.argsort((away[inside] ** 2).sum(axis=1))][:9]
        size = len(inside)
        assert batch["size"][b] == size
        np.testing.assert_array_equal(batch["member"][b, :size], inside)
        np.testing.assert_array_equal(batch["cell"][b, :size], cells["label"][inside])
        np.testing.assert_allclose(batch["offset"][b, :size], away[inside], atol=2e-3)
        assert (batch["member"][b, size:] == -1).all()
        assert (batch["cell"][b, size:] == -1).all()
    torch.testing.assert_close(batch["label"], batch["cell"])


def test_the_centre_comes_first_in_its_own_window_unless_its_pool_is_in_none(cells, table):
    batch = table.batch(torch.arange(N))
    seen = torch.from_numpy(cells["pool"] >= 0)
    torch.testing.assert_close(batch["member"][seen, 0], torch.arange(N)[seen])
    assert (batch["offset"][seen, 0] == 0).all()
    assert (batch["size"][~seen] == 0).all()


def test_only_training_is_told_what_to_predict(cells):
    table = CellTable.make(**cells, window_um=50, max_cells=9, targets=False)
    assert "label" not in table.batch(torch.arange(3))


def test_sizes_are_those_of_the_batch(table):
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(table.sizes(rows), table.batch(rows)["size"])
    assert isinstance(table, SizedTable)


def test_a_window_does_not_depend_on_its_batch(table):
    together, alone = table.batch(torch.tensor([3, 200])), table.batch(torch.tensor([200]))
    size = int(alone["size"])
    for name in ("cell", "offset", "member"):
        torch.testing.assert_close(together[name][1, :size], alone[name][0])


def test_no_rows_give_an_empty_batch(table):
    batch = table.batch(torch.empty(0, dtype=torch.int64))
    assert batch["cell"].shape == (0, 0)
    assert batch["offset"].shape == (0, 0, 2)


def test_labels_take_two_bytes_while_they_fit(cells):
    table = CellTable.make(**cells, window_um=50)
    assert table.label_n.dtype == torch.int16
    cells["label"] = cells["label"] + 40_000
    wide = CellTable.make(**cells, window_um=50)
    assert wide.label_n.dtype == torch.int32
    torch.testing.assert_close(
        wide.batch(torch.arange(9))["cell"].clamp_min(39_999) - 40_000, table.batch(torch.arange(9))["cell"]
    )
    assert wide.nbytes - table.nbytes == 2 * N


def test_a_moved_table_keeps_its_windows(table):
    moved = table.to(torch.device("cpu"))
    assert len(moved) == N
    for name, value in moved.batch(torch.arange(9)).items():
        torch.testing.assert_close(value, table.batch(torch.arange(9))[name])


@pytest.mark.gpu
def test_on_a_gpu_batches_are_the_same(table):
    rows = torch.arange(N)
    for name, value in table.to("cuda").batch(rows).items():
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), table.batch(rows)[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros(N - 1, dtype=int)}, r"for each of 300 cells; got 299 and 300"),
        ({"keys": np.zeros(2, dtype=int)}, r"for each of 300 cells; got 300 and 2"),
        ({"label": np.full(N, -1)}, r"numbered from 0; got -1"),
        ({"label": np.zeros(N)}, r"whole numbers; got torch.float64"),
        ({"max_cells": 0}, r"`max_cells` must be a whole number, at least 1; got 0"),
    ],
)
def test_wrong_cells_are_named(cells, change, message):
    with pytest.raises(ValueError, match=message):
        CellTable.make(**(cells | {"window_um": 50} | change))


def test_training_pads_little():
    # half of the cells lie densely, half sparsely
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.uniform(0, 100, (2000, 2)), rng.uniform(200, 500, (2000, 2))])
    table = CellTable.make(np.zeros(4000, dtype=int), np.arange(4000), xy, window_um=20)

    def filled(batches):
        sizes = [batch["size"] for batch in batches]
        return sum(int(size.sum()) for size in sizes) / sum(len(size) * int(size.max()) for size in sizes)

    assert filled(Batches(table, np.random.default_rng(1).permutation(4000), 16)) < 0.5
    assert filled(Batches(table, np.arange(4000), 16, seed=lambda: 1)) > 0.9
