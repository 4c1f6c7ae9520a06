"""Niches, generated cells, meta cells and confusion come back as tidy tables."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys

N, HIDDEN = 30, 6


@pytest.fixture
def adata():
    """A section as `tl` leaves it: a generation, niches with probabilities, meta cells."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (N, 5)).astype(np.float32)
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame({_keys.LIBRARY: "s1"}, index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame(index=["A/B", "g1", "g2", "g3", "g4"]),
        obsm={_keys.SPATIAL: rng.uniform(0, 200, (N, 2))},
    )
    hidden = np.arange(N) < HIDDEN
    layer = np.full((N, 5), np.nan, dtype=np.float32)
    layer[hidden] = rng.gamma(2, size=(HIDDEN, 5))
    adata.layers["gest"] = layer
    adata.obs["gest_round"] = np.where(hidden, 1.0, np.nan)
    adata.obs["gest_n_windows"] = np.where(hidden, 8.0, np.nan)
    adata.obs["gest_isolated"] = np.arange(N) == 2
    adata.uns["gest"] = {
        "method": "GeST",
        "genes": np.array(adata.var_names, dtype=object),
        "panel": np.array(["A/B", "g1", "g2", "g3"], dtype=object),
        "scale": "normalized",
        "params": {"expression": "counts", "target_total": 20.0},
    }
    adata.obs["gest_niche"] = pd.Categorical(np.array(["core", "rim"])[np.arange(N) % 2])
    p = np.where(np.arange(N) % 2 == 0, 0.8, 0.1)
    adata.obsm["gest_niche_probability"] = np.c_[p, 1 - p]
    adata.uns["gest_niche"] = {"classes": np.array(["core", "rim"], dtype=object)}
    adata.obs["gest_meta_cell"] = np.arange(N) % 3
    adata.obs["type"] = pd.Categorical(["a"] * 15 + ["b"] * 15).set_categories(["b", "a"])
    profile = rng.gamma(2, size=(4, 5)).astype(np.float32)
    adata.uns["X_gest"] = {
        "genes": np.array(adata.var_names, dtype=object),
        "meta_cells": {"profile": profile, "n_cells": np.array([9, 9, 9, 3])},
    }
    return adata


# generated ---------------------------------------------------------------------------------------------------


def test_a_generation_has_one_row_for_each_cell_and_gene(adata):
    table = stg.get.generated(adata)
    assert len(table) == HIDDEN * 5
    assert list(table) == [
        "cell", "section", "x", "y", "round", "n_windows", "isolated", "gene", "generated", "measured",
    ]  # fmt: skip
    wide = table.pivot(index="cell", columns="gene", values="generated")
    np.testing.assert_allclose(wide.to_numpy(), adata.layers["gest"][:HIDDEN])
    assert table.loc[table["cell"] == "c2", "isolated"].all()
    assert table["isolated"].sum() == 5
    assert set(table["round"]) == {1}


def test_measured_is_on_the_scale_of_the_model(adata):
    table = stg.get.generated(adata).pivot(index="cell", columns="gene", values="measured")
    counts = adata.X[:HIDDEN, :4]
    expected = np.log1p(counts * 20 / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(table.iloc[:, :4].to_numpy(), expected, rtol=1e-6)
    assert table["g4"].isna().all()  # not in the panel of the model


def test_a_table_agrees_with_what_the_model_calls_normalized(tmp_path):
    tissue = stg.datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=60, n_genes=10, unit="cells", histology="none"
    )
    mask = np.arange(60) < 5
    stg.tl.gest_generate(
        tissue,
        mask=mask,
        save=tmp_path / "kept",
        model_kwargs={"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 4},
        train_kwargs={"max_epochs": 1, "accelerator": "cpu"},
    )
    expected = stg.models.GeST.load(tmp_path / "kept").normalized(tissue)
    found = stg.get.generated(tissue).pivot(index="cell", columns="gene", values="measured")
    np.testing.assert_allclose(found.loc[tissue.obs_names[mask]], expected[mask], rtol=1e-5)


def test_log_expression_is_measured_as_it_is(adata):
    del adata.uns["gest"]["params"]["target_total"]
    adata.layers["logs"] = np.log1p(adata.X)
    adata.uns["gest"]["params"] |= {"expression": "log", "layer": "logs"}
    table = stg.get.generated(adata, genes=["g2", "A/B"])
    np.testing.assert_allclose(
        table["measured"].to_numpy().reshape(HIDDEN, 2), np.log1p(adata.X)[:HIDDEN][:, [2, 0]], rtol=1e-6
    )


def test_genes_come_in_the_order_asked_for(adata):
    table = stg.get.generated(adata, genes=["g3", "A/B"])
    assert list(table["gene"][:2]) == ["g3", "A/B"]
    assert list(stg.get.generated(adata, genes="g1")["gene"].unique()) == ["g1"]
    with pytest.raises(KeyError, match=r"'gest' has no gene EPCAM; it has A/B, g1, g2, …"):
        stg.get.generated(adata, genes="EPCAM")


def test_what_is_no_generation_is_refused(adata):
    adata.layers["mine"] = adata.X.copy()
    with pytest.raises(KeyError, match=r"'mine' was not written by `stg.tl.gest_generate`"):
        stg.get.generated(adata, "mine")
    with pytest.raises(KeyError, match="There is no prediction 'no'"):
        stg.get.generated(adata, "no")


def test_without_sections_there_is_no_column(adata):
    del adata.obs[_keys.LIBRARY]
    assert "section" not in stg.get.generated(adata)
    assert "section" not in stg.get.niches(adata)


# niches ------------------------------------------------------------------------------------------------------


def test_niches_have_places_and_probabilities(adata):
    table = stg.get.niches(adata)
    assert list(table) == ["section", "x", "y", "niche", "probability", "core", "rim"]
    np.testing.assert_allclose(table["probability"], np.where(np.arange(N) % 2 == 0, 0.8, 0.9))
    np.testing.assert_array_equal(table[["x", "y"]], adata.obsm[_keys.SPATIAL])
    assert list(table.index) == list(adata.obs_names)


def test_any_column_is_a_niche(adata):
    assert list(stg.get.niches(adata, "type")) == ["section", "x", "y", "niche"]
    with pytest.raises(KeyError, match=r"obs\['leiden'\] does not exist; obs has"):
        stg.get.niches(adata, "leiden")
    with pytest.raises(KeyError, match=r"obsm\['um'\] does not exist; .* `spatial_key=`"):
        stg.get.niches(adata, spatial_key="um")


# confusion ---------------------------------------------------------------------------------------------------


def test_confusion_counts_cells(adata):
    adata.obs["truth"] = pd.Categorical(["core"] * 10 + ["rim"] * 10 + [None] * 5 + ["edge"] * 5)
    table = stg.get.confusion(adata, "truth")
    assert list(table.index) == ["core", "rim", "edge"]
    assert list(table.columns) == ["core", "rim"]
    assert table.to_numpy().sum() == 25
    assert table.loc["core", "core"] == 5
    for i, name in enumerate(adata.obs["truth"]):
        if isinstance(name, str):
            table.loc[name, adata.obs["gest_niche"].iloc[i]] -= 1
    assert not table.to_numpy().any()


@pytest.mark.parametrize(("normalize", "axis"), [("truth", 1), ("prediction", 0)])
def test_shares_sum_to_one(normalize, axis, adata):
    table = stg.get.confusion(adata, "type", normalize=normalize)
    np.testing.assert_allclose(table.sum(axis=axis), 1)


def test_order_of_categories_is_kept(adata):
    assert list(stg.get.confusion(adata, "type", "type").index) == ["b", "a"]


def test_confusion_of_nothing_is_refused(adata):
    adata.obs["none"] = np.nan
    with pytest.raises(
        ValueError, match=r"No cell has a label in both obs\['none'\] and obs\['gest_niche'\]"
    ):
        stg.get.confusion(adata, "none")
    with pytest.raises(KeyError, match=r"obs\['no'\] does not exist"):
        stg.get.confusion(adata, "no")
    with pytest.raises(
        ValueError, match="`normalize` must be one of 'truth', 'prediction' or None; got 'all'"
    ):
        stg.get.confusion(adata, "type", normalize="all")


# meta cells --------------------------------------------------------------------------------------------------


def test_meta_cells_are_an_anndata(adata):
    words = stg.get.meta_cells(adata, by="type")
    assert words.shape == (4, 5)
    np.testing.assert_array_equal(words.X, adata.uns["X_gest"]["meta_cells"]["profile"])
    assert list(words.obs["n_cells"]) == [10, 10, 10, 0]
    assert list(words.obs["n_trained"]) == [9, 9, 9, 3]
    assert list(words.var_names) == list(adata.var_names)


def test_the_commonest_label_and_its_share(adata):
    adata.obs["type"] = pd.Categorical([["a", "b", None][i % 3] for i in range(N)])
    adata.obs.iloc[0, adata.obs.columns.get_loc("type")] = "b"
    words = stg.get.meta_cells(adata, by=["type"])
    assert words.obs["type"].iloc[0] == "a"
    assert words.obs["type_share"].iloc[0] == 0.9
    assert words.obs["type_share"].iloc[1] == 1
    assert words.obs["type"].iloc[2:].isna().all()  # no labelled cell; no cell at all
    assert words.obs["type_share"].iloc[2:].isna().all()


def test_meta_cells_share_nothing(adata):
    stg.get.meta_cells(adata).X[:] = -1
    assert (adata.uns["X_gest"]["meta_cells"]["profile"] >= 0).all()


def test_no_meta_cells_say_where_they_come_from(adata):
    with pytest.raises(KeyError, match=r"uns\['X_scvi'\] holds no meta cells; .* `stg.tl.gest_niche_embed`"):
        stg.get.meta_cells(adata, "X_scvi")
    with pytest.raises(KeyError, match=r"obs\['no'\] does not exist"):
        stg.get.meta_cells(adata, by="no")


# perturbation ------------------------------------------------------------------------------------------------


@pytest.fixture
def perturbed(adata):
    columns = ["gene", "ring", "from_um", "to_um", "n_cells", "effect", "z", "p", "q", "call"]
    values = [["g1", "A/B"] * 2, [0, 0, 1, 1], [0.0, 0, 30, 30], [30.0, 30, 60, 60], [4, 4, 9, 9]]
    values += [[0.1, 0.2, 0.3, 0.4], [1.0, 2, 3, 4], [0.5, 0.4, 0.3, 0.2], [0.5] * 4, ["n.s."] * 3 + ["High"]]
    table = {
        name: np.array(value, dtype=object if name in ("gene", "call") else None)
        for name, value in zip(columns, values)
    }
    adata.uns["gest_perturb"] = {
        "columns": np.array(columns, dtype=object),
        "table": dict(sorted(table.items())),
        "facts": {"null": "sham", "share_changed": np.float64(0.5)},
        "comparison": {"accuracy": np.array([1.0]), "method": np.array(["GeST"], dtype=object)},
    }
    return adata


def test_a_perturbation_comes_back_as_the_table_it_was(perturbed):
    table = stg.get.perturbation(perturbed)
    assert list(table)[:3] == ["gene", "ring", "from_um"]
    assert list(table["effect"]) == [0.1, 0.2, 0.3, 0.4]
    assert table.attrs == {
        "null": "sham",
        "share_changed": 0.5,
        "comparison": {"method": ["GeST"], "accuracy": [1.0]},
    }
    assert "gene" in repr(table)  # which compares `attrs`


def test_genes_of_a_perturbation_come_in_the_order_asked_for(perturbed):
    table = stg.get.perturbation(perturbed, genes=["A/B", "g1"])
    assert list(table["gene"]) == ["A/B", "A/B", "g1", "g1"]
    assert list(table["ring"]) == [0, 1, 0, 1]
    with pytest.raises(KeyError, match="'gest_perturb' has no gene EPCAM; it has g1, A/B"):
        stg.get.perturbation(perturbed, genes="EPCAM")


def test_no_perturbation_says_where_it_comes_from(adata):
    with pytest.raises(
        KeyError, match=r"uns\['gest_perturb'\] holds no perturbation; .* `stg.tl.gest_perturb`"
    ):
        stg.get.perturbation(adata)
