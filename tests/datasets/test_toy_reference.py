"""The reference is of the same tissue: same types, same programmes, another technology."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from stgen import _keys as keys
from stgen import datasets


@pytest.fixture(scope="module")
def tissue() -> anndata.AnnData:
    return datasets.toy_tissue(truth=True, random_state=4, n_genes=120)


@pytest.fixture(scope="module")
def reference(tissue) -> anndata.AnnData:
    return datasets.toy_reference(tissue, n_cells=1500, random_state=4)


def log_normalised(adata: anndata.AnnData) -> np.ndarray:
    counts = adata.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1000)


def test_genes_and_types_are_those_of_the_tissue(tissue, reference):
    assert list(reference.var_names) == list(tissue.var_names)
    assert set(reference.obs[keys.CELL_TYPE]) == set(tissue.uns[keys.TOY]["cell_types"])
    assert reference.X.dtype == np.int32 and reference.X.min() >= 0
    assert np.median(np.asarray(reference.X.sum(axis=1))) == pytest.approx(1500, rel=0.3)


def test_type_means_follow_the_planted_profiles(tissue, reference):
    profiles = datasets.toy_truth(tissue).profiles
    kind = reference.obs[keys.CELL_TYPE].to_numpy()
    counts = reference.X.toarray() / reference.obs[keys.DEPTH].to_numpy()[:, None]
    means = np.stack([counts[kind == k].mean(axis=0) for k in profiles], axis=1)
    kept = counts.mean(axis=0) > 2
    measured = np.log(means[kept]) - np.log(means[kept]).mean(axis=1, keepdims=True)
    planted = np.log(profiles.to_numpy()[kept])
    planted = planted - planted.mean(axis=1, keepdims=True)
    assert np.corrcoef(measured.ravel(), planted.ravel())[0, 1] > 0.9


def test_cells_of_one_type_still_share_modules(tissue, reference):
    kind = reference.obs[keys.CELL_TYPE].to_numpy()
    values = log_normalised(reference)
    for k in np.unique(kind):
        values[kind == k] -= values[kind == k].mean(axis=0)
    correlation = np.corrcoef(values.T)
    module = tissue.var["module"].to_numpy()
    pair = ~np.eye(len(module), dtype=bool)
    together = (module[:, None] == module) & (module >= 0)[:, None] & pair
    assert correlation[together].mean() > correlation[~together & pair].mean() + 0.1


def test_what_the_reference_teaches_helps_in_the_tissue(tissue, reference):
    """Ridge from measured to unmeasured genes, fitted in the reference, correlates with held-out genes in space."""
    from sklearn.linear_model import Ridge

    cells, spots = log_normalised(reference), log_normalised(tissue)
    cells, spots = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (cells, spots))
    measured = np.arange(tissue.n_vars) % 2 == 0
    predicted = Ridge(200.0).fit(cells[:, measured], cells[:, ~measured]).predict(spots[:, measured])
    scores = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, spots[:, ~measured].T)]
    assert 0.15 < np.mean(scores) < 0.9


def test_another_technology_changes_gene_means(tissue, reference):
    tissue_mean, mean = (np.asarray(a.X.mean(axis=0)).ravel() for a in (tissue, reference))
    ratio = np.log(mean / mean.sum()) - np.log(tissue_mean / tissue_mean.sum())
    assert 0.2 < np.std(ratio) < 1.2
    assert np.corrcoef(ratio, np.log(reference.var["technology_factor"]))[0, 1] > 0.8


def test_selection_of_genes_gives_a_reference_of_these_genes(tissue):
    assert list(datasets.toy_reference(tissue[:, 10:20], n_cells=20).var_names) == list(
        tissue.var_names[10:20]
    )


def test_the_tissue_is_left_as_it_was(tissue):
    before = tissue.copy()
    datasets.toy_reference(tissue, n_cells=20)
    assert (before.X != tissue.X).nnz == 0 and before.uns.keys() == tissue.uns.keys()


def test_errors_name_what_is_missing(tissue):
    with pytest.raises(KeyError, match=r"uns\['toy_tissue'\] does not exist.*stgen.datasets.toy_tissue"):
        datasets.toy_reference(anndata.AnnData(np.ones((3, 2))))
    with pytest.raises(ValueError, match="`n_cells` must be an integer of at least 2; got 1"):
        datasets.toy_reference(tissue, n_cells=1)
    with pytest.raises(ValueError, match="`technology_sd` must be a number of at least 0; got -1"):
        datasets.toy_reference(tissue, technology_sd=-1)
