import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import rankdata

import stgen as stg


@pytest.fixture
def counts():
    """120 spots × 60 genes of very different levels; names are not in order of level."""
    rng = np.random.default_rng(0)
    level = rng.permutation(np.geomspace(0.05, 50, 60))
    return rng.poisson(rng.gamma(1.5, level / 1.5, (120, 60)))


def table(counts, kind=sparse.csr_matrix):
    names = [f"g{i:02d}" for i in range(counts.shape[1])]
    adata = ad.AnnData(kind(counts), var=pd.DataFrame(index=names))
    adata.obs_names = [f"s{i}" for i in range(adata.n_obs)]
    return adata


def slow_panel(counts, n):
    """The rule, word for word."""
    rank = rankdata(-counts.mean(axis=0)) + rankdata(-counts.std(axis=0))
    order = sorted(range(counts.shape[1]), key=lambda g: (rank[g], g))
    return [f"g{g:02d}" for g in order[:n]]


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_the_panel_equals_the_rule_for_every_kind_of_matrix(counts, kind, dtype):
    adata = table(counts.astype(dtype), kind)
    stg.pp.gene_panel(adata, n_genes=20)
    assert list(adata.uns["gene_panel"]["genes"]) == slow_panel(counts, 20)
    assert set(adata.var_names[adata.var["gene_panel"]]) == set(slow_panel(counts, 20))


def test_poisoned_test_rows_change_nothing(counts):
    adata = table(counts)
    adata.obs["split"] = np.repeat(["train", "validation", "test"], 40)
    stg.pp.gene_panel(adata, n_genes=20)
    poisoned = counts.copy()
    poisoned[40:] = np.random.default_rng(1).poisson(500, (80, 60))
    other = table(poisoned)
    other.obs["split"] = adata.obs["split"]
    stg.pp.gene_panel(other, n_genes=20)
    assert (
        list(other.uns["gene_panel"]["genes"])
        == list(adata.uns["gene_panel"]["genes"])
        == slow_panel(counts[:40], 20)
    )
    assert adata.uns["gene_panel"]["n_train"] == 40


@pytest.mark.parametrize("rule", ["mean_and_sd_ranks", "seurat_v3"])
def test_neither_the_order_of_genes_nor_of_spots_matters(counts, rule):
    if rule == "seurat_v3":
        pytest.importorskip("skmisc", reason="seurat_v3 needs scikit-misc")
    counts[:, 10] = counts[:, 20] = counts[:, 30]  # ties
    rng = np.random.default_rng(0)
    adata = table(counts)
    shuffled = adata[rng.permutation(120), rng.permutation(60)].copy()
    for one in (adata, shuffled):
        stg.pp.gene_panel(one, n_genes=25, rule=rule)
    assert set(adata.uns["gene_panel"]["genes"]) == set(shuffled.uns["gene_panel"]["genes"])
    if rule == "mean_and_sd_ranks":
        assert list(adata.uns["gene_panel"]["genes"]) == list(shuffled.uns["gene_panel"]["genes"])


def test_a_mask_of_training_rows_and_a_layer(counts):
    adata = table(counts * 0 + 1)
    adata.layers["counts"] = counts
    mask = np.arange(120) < 50
    stg.pp.gene_panel(adata, n_genes=10, layer="counts", train=mask)
    assert list(adata.uns["gene_panel"]["genes"]) == slow_panel(counts[:50], 10)


def test_a_backed_file_is_read_in_blocks_and_gives_the_same(counts, tmp_path, monkeypatch):
    monkeypatch.setattr("stgen.data._fields.N_ROWS_AT_ONCE", 7)
    adata = table(counts)
    adata.obs["split"] = np.where(np.arange(120) % 3, "train", "test")
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    stg.pp.gene_panel(backed, n_genes=20)
    stg.pp.gene_panel(adata, n_genes=20)
    assert list(backed.uns["gene_panel"]["genes"]) == list(adata.uns["gene_panel"]["genes"])
    with pytest.raises(ValueError, match=r"Call `adata.to_memory\(\)` first"):
        stg.pp.gene_panel(backed, n_genes=20, subset=True)


def test_subset_keeps_the_panel_and_names_with_slashes_survive_a_file(counts, tmp_path):
    adata = table(counts)
    adata.var_names = [f"CCL{i}/L1" for i in range(60)]
    stg.pp.gene_panel(adata, n_genes=5, subset=True)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert again.shape == (120, 5)
    assert set(again.uns["gene_panel"]["genes"]) == set(again.var_names)
    assert again.uns["gene_panel"]["params"]["rows"] == "all"


def test_constant_and_silent_genes_come_last_or_not_at_all(counts):
    counts[:, :50] = 0
    counts[:, 50] = 3
    adata = table(counts)
    stg.pp.gene_panel(adata, n_genes=10)
    assert adata.var["gene_panel"].to_numpy().nonzero()[0].min() == 50
    with pytest.raises(ValueError, match="Only 10 genes have counts in the 120 training rows"):
        stg.pp.gene_panel(adata, n_genes=11)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: setattr(a, "X", a.X / 2), "X must hold counts; found .* not whole numbers"),
        (lambda a: setattr(a, "X", -a.X), "X must hold counts; found negative values"),
        (lambda a: setattr(a, "var_names", ["x"] * 60), "Gene names must be unique"),
        (lambda a: a.obs.__setitem__("split", "test"), r"There is no training row \(split == train\)"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(counts, refused, spoil, message):
    adata = table(counts.astype(float))
    spoil(adata)
    with refused(adata, ValueError, message):
        stg.pp.gene_panel(adata, n_genes=5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_genes": 61}, ValueError, "from 1 to the 60 genes of this AnnData; got 61"),
        ({"n_genes": 0}, ValueError, "got 0"),
        ({"rule": "variance"}, ValueError, "must be one of 'mean_and_sd_ranks', 'seurat_v3'; got 'variance'"),
        ({"layer": "raw"}, KeyError, r"layers\['raw'\] does not exist; layers has \[\]"),
        ({"split_key": "fold"}, KeyError, r"obs\['fold'\] does not exist"),
        ({"train": np.ones(3, bool)}, ValueError, "must say True or False for each of the 120 spots"),
    ],
)
def test_bad_arguments_are_named(counts, refused, settings, error, message):
    adata = table(counts)
    with refused(adata, error, message):
        stg.pp.gene_panel(adata, **{"n_genes": 5} | settings)
