"""Answers on disk: the same numbers, whole or not there at all."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import stgen as stg
from stgen import _keys
from stgen.models.causalged import _imputation, _store

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "n_axes": 4}
LAYERS = ["sd", "lower_50", "upper_50", "lower_90", "upper_90", "mass_50", "mass_90"]


@pytest.fixture(scope="module")
def panel():
    torch.set_num_threads(1)
    tissue = stg.datasets.toy_tissue(n_sections=2, n_patients=2, spots_per_section=60, n_genes=40)
    return tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue, n_cells=120)


@pytest.fixture(scope="module")
def model(panel):
    spatial, reference = panel
    stg.models.CausalGeD.setup_anndata(spatial, library_key=_keys.LIBRARY)
    stg.models.CausalGeD.setup_reference(reference)
    model = stg.models.CausalGeD(spatial, reference, **TINY)
    model.train(max_epochs=1, accelerator="cpu")
    model.module.share.fill_(1.0)
    return model


QUICK = {"n_samples": 2, "n_steps": 3}


@pytest.mark.parametrize("size", [None, 7, 50, 1000])
def test_the_store_holds_what_memory_would(size, model, tmp_path, monkeypatch):
    monkeypatch.setattr(_imputation, "VALUES_AT_ONCE", 20 * 33)  # blocks of 33 spots
    monkeypatch.setattr(_store, "CHUNK", (16, 7))
    whole = model.impute(**QUICK)
    made = model.impute(**QUICK, out=tmp_path / "made.zarr", batch_size=size)
    for kind, found in {"returned": made, "read": ad.read_zarr(tmp_path / "made.zarr")}.items():
        assert list(found.obs_names) == list(whole.obs_names), kind
        np.testing.assert_allclose(found.X[:], whole.X, rtol=1e-4, atol=1e-5)
        assert sorted(filter(None, found.layers)) == sorted(LAYERS)
        for name in LAYERS:
            np.testing.assert_allclose(found.layers[name][:], whole.layers[name], rtol=1e-4, atol=1e-5)
        assert found.var.astype({"verdict": object}).equals(whole.var.astype({"verdict": object})), kind
        assert found.uns[_keys.CAUSALGED]["share"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"made.zarr"}


def test_values_stay_on_disk_until_a_part_is_asked_for(model, tmp_path):
    made = model.impute(**QUICK, out=tmp_path / "made.zarr", intervals=False)
    assert not isinstance(made.X, np.ndarray) and not isinstance(made.layers["sd"], np.ndarray)
    part = made[5:9, ["gene_004", "gene_002"]].to_memory()
    whole = model.impute(**QUICK, intervals=False)
    np.testing.assert_allclose(part.X, whole[5:9, ["gene_004", "gene_002"]].X, rtol=1e-5)
    assert sorted(filter(None, made.layers)) == ["sd"]


def test_a_store_is_read_lazily(model, tmp_path):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    made = model.impute(**QUICK, out=tmp_path / "made.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "made.zarr")
    np.testing.assert_array_equal(np.asarray(lazy.X[:10]), made.X[:10])


def test_a_store_that_is_there_is_replaced_only_when_asked(model, tmp_path):
    path = tmp_path / "made.zarr"
    model.impute(**QUICK, genes="gene_002", out=path)
    with pytest.raises(
        FileExistsError, match=r"made\.zarr exists\. Choose another `out`, or say `overwrite=True`"
    ):
        model.impute(**QUICK, out=path)
    assert model.impute(**QUICK, genes=["gene_004", "gene_006"], out=path, overwrite=True).n_vars == 2
    assert {one.name for one in tmp_path.iterdir()} == {"made.zarr"}


def test_what_is_no_store_is_never_replaced(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"mine is no zarr store, so it is not replaced"):
        model.impute(**QUICK, out=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "kept"
    with pytest.raises(FileNotFoundError, match=r"The folder of `out` does not exist: .*nowhere"):
        model.impute(**QUICK, out=tmp_path / "nowhere" / "made.zarr")


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_leaves_nothing_and_takes_nothing(there, model, tmp_path, monkeypatch):
    """Whatever was there before stays."""
    path = tmp_path / "made.zarr"
    if there:
        model.impute(**QUICK, genes="gene_002", out=path)
    run, n = _imputation.Imputation.rows, []

    def fail(self, *args, **kwargs):
        n.append(1)
        if len(n) > 2:
            raise KeyboardInterrupt
        yield from run(self, *args, **kwargs)

    monkeypatch.setattr(_imputation.Imputation, "rows", fail)
    with pytest.raises(KeyboardInterrupt):
        model.impute(**QUICK, out=path, batch_size=16, overwrite=there)
    assert {one.name for one in tmp_path.iterdir()} == ({"made.zarr"} if there else set())
    if there:
        assert list(ad.read_zarr(path).var_names) == ["gene_002"]


def test_size_is_bounded_in_memory_only(model, tmp_path, monkeypatch):
    from stgen.models.causalged import _model

    monkeypatch.setattr(_model, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r'Write it to disk with `out="imputed.zarr"`'):
        model.impute(**QUICK)
    assert model.impute(**QUICK, out=tmp_path / "made.zarr").shape == (120, 20)


@pytest.mark.parametrize("shape", [(10**5, 10**3), (2 * 10**5, 2 * 10**3), (5000, 60_000), (10, 10**7)])
def test_blocks_hold_every_spot_once_and_few_values(shape):
    parts = _imputation.blocks(*shape, None, 1024)
    assert np.array_equal(np.concatenate(parts), np.arange(shape[0]))
    assert max(map(len, parts)) * shape[1] <= max(_imputation.VALUES_AT_ONCE, shape[1])
