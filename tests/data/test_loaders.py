"""A batch is gathered by indexing: it equals what indexing the AnnData by hand gives."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stgen import _keys
from stgen.data import _loaders
from stgen.data._fields import CoordinatesField, CountsField, HistologyField, PatientField, SplitField
from stgen.data._loaders import BATCHES_PER_CHUNK, Batches, SpotTable, centred, name_keys
from stgen.data._windows import neighbour_index

FIELDS = [HistologyField(), CoordinatesField(library_key="section"), CountsField()]


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 100.0
    xy = np.concatenate([grid, grid + 40.0])
    obs = pd.DataFrame({"section": ["a"] * 25 + ["b"] * 25}, index=[f"s{i}" for i in range(50)])
    adata = ad.AnnData(
        rng.poisson(2, size=(50, 4)).astype(np.int32), obs=obs, var=pd.DataFrame(index=list("ABCD"))
    )
    adata.obsm[_keys.SPATIAL] = xy
    adata.obsm[_keys.HISTOLOGY] = rng.normal(size=(50, 3)).astype(np.float32)
    return adata


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_batch_is_what_indexing_gives(adata, layout):
    counts = adata.X.copy()
    adata.X = layout(counts)
    rows = torch.tensor([30, 2, 2, 49])
    batch = SpotTable.read(adata, FIELDS, n_neighbors=3).batch(rows)
    near = neighbour_index(adata.obsm[_keys.SPATIAL], adata.obs["section"], n_neighbors=3)[rows]
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["histology"], adata.obsm[_keys.HISTOLOGY][rows])
    np.testing.assert_array_equal(batch["neighbours"], adata.obsm[_keys.HISTOLOGY][near])
    np.testing.assert_array_equal(batch["counts"], counts[rows])
    assert {name: value.dtype for name, value in batch.items()} == {
        "index": torch.int64,
        "key": torch.int64,
        "histology": torch.float32,
        "neighbours": torch.float32,
        "xy": torch.float32,
        "counts": torch.float32,
        "unit": torch.int64,
        "patch": torch.int64,
    }


def test_inputs_alone_leave_counts_unread(adata):
    adata.X = np.full(adata.shape, np.nan)
    batch = SpotTable.read(adata, FIELDS, targets=False).batch(torch.arange(3))
    assert set(batch) == {"index", "key", "histology", "xy"}


def test_genes_come_in_the_order_that_is_asked_for(adata):
    expected = adata.X[:, [2, 0]]
    table = SpotTable.read(adata[:, ::-1], FIELDS, genes=["C", "A"])
    np.testing.assert_array_equal(table.counts_nG, expected)


def test_places_are_relative_to_the_centre_of_their_section(adata):
    xy = adata.obsm[_keys.SPATIAL]
    codes = np.repeat([0, 1], 25)
    out = centred(xy, codes)
    for code in (0, 1):
        here = out[codes == code]
        np.testing.assert_allclose(here.min(0), -here.max(0))
        np.testing.assert_allclose(here - here[0], (xy - xy[codes == code][0])[codes == code])
    np.testing.assert_allclose(centred(xy + [1e4, -3e3], codes), out)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(centred(xy[order], codes[order]), out[order])


def test_the_key_of_a_spot_is_its_name(adata):
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(name_keys(adata.obs_names)[order], name_keys(adata.obs_names[order]))
    assert len(np.unique(name_keys(adata.obs_names))) == 50
    # the same number in every session, or a saved sample could not be repeated
    assert name_keys(pd.Index(["s0"])).tolist() == [4234924779662071216]


def test_units_are_the_largest_groups_that_tell_training_rows_apart(adata):
    def units(*fields):
        return SpotTable.read(adata, [*FIELDS[:2], CountsField(), *fields]).unit_n[:40].tolist()

    adata.obs["patient"] = ["p1"] * 10 + ["p2"] * 30 + ["p0"] * 10
    adata.obs["split"] = ["train"] * 40 + ["test"] * 10
    assert units(PatientField("patient"), SplitField("split")) == [0] * 10 + [1] * 30
    adata.obs["patient"] = ["p1"] * 40 + ["p0"] * 10  # one patient to train on: sections
    assert units(PatientField("patient"), SplitField("split")) == [0] * 25 + [1] * 15
    adata.obs["section"] = "a"
    assert set(units()) == {0, 1, 2, 3, 4}


def test_the_table_shares_memory_with_the_embedding(adata):
    table = SpotTable.read(adata, FIELDS, targets=False)
    assert table.histology_nF.data_ptr() == adata.obsm[_keys.HISTOLOGY].ctypes.data


def test_read_only_arrays_give_no_torch_warning(adata):
    adata.obsm[_keys.HISTOLOGY].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpotTable.read(adata, FIELDS)


def test_a_view_is_read_like_its_copy(adata):
    view = adata[10:40:3]
    for name, value in SpotTable.read(view, FIELDS, n_neighbors=2).batch(torch.arange(5)).items():
        copy = SpotTable.read(view.copy(), FIELDS, n_neighbors=2).batch(torch.arange(5))
        torch.testing.assert_close(value, copy[name])
    assert view.is_view


# order ------------------------------------------------------------------------------------------------------


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


@pytest.fixture
def table(adata):
    return SpotTable.read(adata, FIELDS)


def test_in_order_every_row_comes_once(table):
    batches = Batches(table, np.arange(10, 50), 16)
    assert indices(batches) == [list(range(10, 26)), list(range(26, 42)), list(range(42, 50))]
    assert indices(batches) == indices(batches)
    assert len(batches) == 3


@pytest.mark.parametrize(("n", "size"), [(50, 16), (50, 50), (50, 64), (7, 3), (1, 4)])
def test_shuffled_every_row_comes_once_in_batches_of_even_size(table, n, size):
    batches = Batches(table, np.arange(n), size, seed=lambda: 3)
    found = indices(batches)
    assert sorted(row for batch in found for row in batch) == list(range(n))
    sizes = [len(batch) for batch in found]
    assert len(found) == len(batches)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_of_an_epoch_decides_its_order(table):
    seeds = iter([1, 2, 1])
    batches = Batches(table, np.arange(50), 16, seed=lambda: next(seeds))
    first, second, third = indices(batches), indices(batches), indices(batches)
    assert first == third
    assert first != second


def test_shuffling_leaves_the_global_generator_alone(table):
    before = torch.get_rng_state()
    indices(Batches(table, np.arange(50), 16, seed=lambda: 1))
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_every_batch(table):
    whole = indices(Batches(table, np.arange(50), 16, seed=lambda: 1))
    parts = [indices(Batches(table, np.arange(50), 16, seed=lambda: 1, part=(i, 2))) for i in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts)] == [sorted(batch) for batch in whole]


def test_no_rows_give_no_batches(table):
    batches = Batches(table, np.empty(0, dtype=int), 16, seed=lambda: 1)
    assert len(batches) == 0
    assert [b for b in batches if len(b["index"])] == []


class SizedRows:
    """Rows whose samples have lengths."""

    def __init__(self, sizes):
        self.known = torch.as_tensor(sizes)

    def __len__(self):
        return len(self.known)

    def batch(self, rows):
        return {"index": rows}

    def sizes(self, rows):
        return self.known[rows]


@pytest.mark.parametrize(("n", "size"), [(5000, 16), (1616, 16), (50, 16), (50, 64), (7, 3), (1, 4)])
def test_rows_of_similar_size_come_together_and_every_row_comes_once(n, size):
    sizes = np.random.default_rng(0).integers(1, 400, 2 * n)
    rows = np.arange(2 * n)[1::2]
    batches = Batches(SizedRows(sizes), rows, size, seed=lambda: 3)
    found = indices(batches)
    assert sorted(row for batch in found for row in batch) == rows.tolist()
    assert len(found) == len(batches) == -(-n // size)
    lengths = [len(batch) for batch in found]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    if len(found) > 20:
        spread = np.mean([np.ptp(sizes[batch]) for batch in found])
        assert spread < 2 * 400 / min(len(found), BATCHES_PER_CHUNK)
        # neither small windows first nor large ones
        means = [sizes[batch].mean() for batch in found]
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_batches_of_similar_size_depend_on_the_seed_only_and_differ_between_epochs():
    table = SizedRows(np.random.default_rng(0).integers(1, 400, 3000))
    seeds = iter([1, 2, 1])
    batches = Batches(table, np.arange(3000), 16, seed=lambda: next(seeds))
    before = torch.get_rng_state()
    first, second, third = indices(batches), indices(batches), indices(batches)
    assert first == third
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})
    assert torch.equal(before, torch.get_rng_state())


def test_in_order_sizes_change_nothing():
    table = SizedRows(np.random.default_rng(0).integers(1, 400, 50))
    assert indices(Batches(table, np.arange(50), 16))[0] == list(range(16))


def test_processes_share_rows_of_similar_size():
    sizes = np.random.default_rng(0).integers(1, 400, 1600)
    whole = indices(Batches(SizedRows(sizes), np.arange(1600), 16, seed=lambda: 1))
    parts = [
        indices(Batches(SizedRows(sizes), np.arange(1600), 16, seed=lambda: 1, part=(i, 2))) for i in (0, 1)
    ]
    assert [sorted(a + b) for a, b in zip(*parts)] == [sorted(batch) for batch in whole]
    assert np.mean([abs(sizes[a].mean() - sizes[b].mean()) for a, b in zip(*parts)]) < 5


def test_what_only_reads_rows_takes_as_many_as_the_bytes_allow(table, monkeypatch):
    row = sum(values.nbytes for values in table.batch(torch.arange(1)).values())
    monkeypatch.setattr(_loaders, "BYTES_AT_ONCE", 12 * row + row // 2)
    assert indices(Batches(table, np.arange(50))) == [
        list(part) for part in np.split(np.arange(50), range(12, 50, 12))
    ]
    monkeypatch.setattr(_loaders, "BYTES_AT_ONCE", 1)
    assert indices(Batches(table, np.arange(3))) == [[0], [1], [2]]
    assert len(Batches(table, np.empty(0, dtype=int))) == 0


def test_sparse_counts_stay_sparse_and_only_batches_are_dense(adata):
    counts = adata.X.copy()
    adata.X = sparse.csr_matrix(counts)
    table = SpotTable.read(adata, FIELDS)
    assert sparse.issparse(table.counts_nG)
    np.testing.assert_array_equal(table.batch(torch.tensor([4, 1]))["counts"], counts[[4, 1]])
