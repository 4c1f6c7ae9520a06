"""What imputed genes owe to measured ones."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg

N_MEASURED = 24
MEASURED = [f"g{i:02}" for i in range(N_MEASURED)]


def counts(n, seed):
    """Independent measured genes; ``child`` follows g05, ``rival`` is there where g07 is not, ``orphan`` follows nobody."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(1.0, 4.0, size=(n, N_MEASURED))
    level[:, 7] = rng.choice([0.2, 8.0], size=n)
    child, rival = level[:, 5], 8.5 - level[:, 7]
    orphan = rng.gamma(1.0, 4.0, size=n)
    return rng.poisson(np.column_stack([level, child, rival, orphan])).astype(np.float32)


def table(n, seed, names, columns):
    rng = np.random.default_rng(seed)
    return ad.AnnData(
        sparse.csr_matrix(counts(n, seed)[:, columns]),
        obs=pd.DataFrame(index=[f"{seed}_{i}" for i in range(n)]),
        var=pd.DataFrame(index=names),
        obsm={"spatial": rng.random((n, 2)) * 1000},
    )


@pytest.fixture(scope="module")
def model():
    import torch

    torch.set_num_threads(1)
    adata = table(300, 1, MEASURED, range(N_MEASURED))
    reference = table(800, 2, [*MEASURED, "child", "rival", "orphan"], range(N_MEASURED + 3))
    stg.models.CausalGeD.setup_anndata(adata)
    stg.models.CausalGeD.setup_reference(reference)
    model = stg.models.CausalGeD(adata, reference, use_network=False, width=16, n_layers=1, n_axes=4)
    model.train(max_epochs=1, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def found(model):
    return stg.get.gene_influence(model, genes=["child", "rival", "orphan"])


def of(found, gene):
    return found[found["gene"] == gene].set_index("withheld")


def test_every_gene_is_withheld_once_and_the_largest_change_comes_first(found):
    assert list(found) == ["gene", "withheld", "change", "null", "direction"]
    assert list(found["gene"].unique()) == ["child", "rival", "orphan"]
    for _, part in found.groupby("gene"):
        assert sorted(part["withheld"]) == MEASURED
        assert part["change"].is_monotonic_decreasing
        assert part["null"].nunique() == 1
    assert np.isfinite(found.select_dtypes("number")).all().all()


@pytest.mark.parametrize(("gene", "parent", "sign"), [("child", "g05", 1), ("rival", "g07", -1)])
def test_a_planted_relation_is_found_with_its_sign(gene, parent, sign, found):
    part = of(found, gene)
    assert part.index[0] == parent
    assert part["change"].iloc[0] > 3 * part["null"].iloc[0]
    assert part["change"].iloc[0] > 3 * part["change"].iloc[1]
    assert sign * part["direction"].iloc[0] > 0.5
    # hardly any other is above what a stranger does
    assert (part["change"].iloc[1:] > part["null"].iloc[1:]).mean() < 0.3


def test_a_change_is_what_leaving_the_gene_out_of_the_data_does(model, found):
    """Up to the depth of spots, which influence holds still."""
    adata = model.adata
    with pytest.warns(UserWarning, match="23 of the model's 24 genes are here"):
        less = model.impute(adata[:, [gene != "g05" for gene in MEASURED]].copy(), genes="child")
    whole = model.impute(genes="child")
    change = (whole.X - less.X).std() / whole.X.std()
    assert of(found, "child").loc["g05", "change"] == pytest.approx(change, rel=0.15)


def test_few_genes_may_be_withheld_and_give_the_same(model, found):
    few = stg.get.gene_influence(model, genes="child", withheld=["g09", "g05"])
    assert list(few["withheld"]) == ["g05", "g09"]
    np.testing.assert_allclose(few["change"], of(found, "child").loc[["g05", "g09"], "change"], atol=1e-5)


def test_what_was_measured_of_the_imputed_gene_plays_no_part(model, found):
    """There is nothing measured of it, and the model is not changed by the question."""
    again = stg.get.gene_influence(model, genes=["child", "rival", "orphan"])
    pd.testing.assert_frame_equal(again, found)


def test_the_network_is_asked_too_where_it_has_a_share(model):
    share = model.module.share.clone()
    before = stg.get.gene_influence(model, genes="child", withheld="g05", n_null=1)
    model.module.share.fill_(1.0)
    try:
        model.module.answer.weight.data.normal_(generator=None, std=0.3)
        after = stg.get.gene_influence(model, genes="child", withheld="g05", n_null=1)
    finally:
        model.module.share.copy_(share)
        model.module.answer.weight.data.zero_()
    assert not np.isclose(before["change"][0], after["change"][0], rtol=1e-3)


def test_what_cannot_be_asked_is_refused(model):
    with pytest.raises(TypeError, match="A fitted CausalGeD is expected as `model`; got AnnData"):
        stg.get.gene_influence(model.adata, genes="child")
    with pytest.raises(
        ValueError, match=r"`withheld` must name measured genes .*; child, Actb are not\. It reads 24"
    ):
        stg.get.gene_influence(model, genes="child", withheld=["child", "Actb"])
    with pytest.raises(ValueError, match=r"none given are not"):
        stg.get.gene_influence(model, genes="child", withheld=[])
    with pytest.raises(ValueError, match=r"genes that were not measured; 1 were: g05"):
        stg.get.gene_influence(model, genes="g05")
    with pytest.raises(ValueError, match=r"`n_null` must be a whole number, at least 1; got 0"):
        stg.get.gene_influence(model, genes="child", n_null=0)
    fresh = stg.models.CausalGeD(model.adata, model._reference_adata, width=16, n_layers=1, n_axes=4)
    with pytest.raises(RuntimeError, match="is not fitted"):
        stg.get.gene_influence(fresh, genes="child")
