"""One call from a panel and a reference to genes that nobody measured: what is written, left alone, and refused."""

from __future__ import annotations

import gc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {"width": 8, "n_layers": 1, "n_heads": 2, "n_axes": 4}
SHORT = {"max_epochs": 1, "accelerator": "cpu"}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT, "n_samples": 2, "n_steps": 2}
DRAWS = {"n_samples": 2, "n_steps": 2}
COLUMNS = ["predictability", "low", "high", "gain", "gain_low", "gain_high", "verdict"]
SLASH = "CCL3/L1/L3"
N, M = 120, 15


@pytest.fixture(scope="module")
def tissue():
    """Two sections; a gene whose name holds a slash is among those that will not be measured."""
    import torch

    torch.set_num_threads(1)
    adata = stg.datasets.toy_tissue(
        n_sections=2, n_patients=2, spots_per_section=N // 2, n_genes=2 * M, histology="none"
    )
    adata.var_names = [*adata.var_names[:-1], SLASH]
    return adata


@pytest.fixture(scope="module")
def cells(tissue):
    return stg.datasets.toy_reference(tissue, n_cells=100)


@pytest.fixture
def reference(cells):
    return cells.copy()


@pytest.fixture
def panel(tissue):
    return tissue[:, ::2].copy()


@pytest.fixture(scope="module")
def folder(tissue, cells, tmp_path_factory):
    """A model that was trained on the panel and kept."""
    path = tmp_path_factory.mktemp("kept") / "model"
    stg.tl.causalged_impute(tissue[:, ::2].copy(), cells.copy(), save=path, **FAST)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return stg.models.CausalGeD.load(folder, accelerator="cpu")


def unchanged(before, after):
    from stgen.testing import changed_slots

    return changed_slots(before, after)


def without(adata, key="causalged"):
    """The object without results."""
    adata = adata.copy()
    for slot in (adata.obsm, adata.uns):
        for name in [name for name in slot if name.startswith(key)]:
            del slot[name]
    return adata


# what is written ---------------------------------------------------------------------------------------------


def test_imputed_genes_are_written_and_nothing_else_changes(tissue, panel, reference):
    before, cells_before = panel.copy(), reference.copy()
    assert stg.tl.causalged_impute(panel, reference, **FAST) is None
    assert panel.obsm["causalged"].shape == panel.obsm["causalged_sd"].shape == (N, M)
    assert panel.obsm["causalged"].dtype == panel.obsm["causalged_sd"].dtype == np.float32
    assert (panel.obsm["causalged"] >= 0).all()
    assert list(panel.uns["causalged"]["genes"]) == list(tissue.var_names[1::2])
    assert set(panel.obsm) - set(before.obsm) == {"causalged", "causalged_sd"}
    assert not unchanged(before, without(panel))
    assert not unchanged(cells_before, reference)


def test_results_are_those_of_the_model(model, panel):
    stg.tl.causalged_impute(panel, model=model, intervals=True, random_state=3, **DRAWS)
    made = model.impute(panel, random_state=3, **DRAWS)
    np.testing.assert_array_equal(panel.obsm["causalged"], made.X)
    for name in filter(None, made.layers):
        np.testing.assert_array_equal(panel.obsm[f"causalged_{name}"], made.layers[name])
    table = panel.uns["causalged"]["table"]
    assert list(table) == COLUMNS
    for name in COLUMNS:
        np.testing.assert_array_equal(table[name], made.var[name].to_numpy())


def test_intervals_are_written_when_asked_for_and_go_when_not(model, panel):
    stg.tl.causalged_impute(panel, model=model, intervals=True, **DRAWS)
    for mass in (50, 90):
        assert (panel.obsm[f"causalged_lower_{mass}"] <= panel.obsm[f"causalged_upper_{mass}"]).all()
    assert (panel.obsm["causalged_lower_90"] <= panel.obsm["causalged_lower_50"]).all()
    stg.tl.causalged_impute(panel, model=model, **DRAWS)
    assert not [name for name in [*panel.obsm, *panel.uns] if "lower" in name or "upper" in name]


def test_the_record_says_how_it_was_made(folder, panel):
    stg.tl.causalged_impute(panel, model=folder, order=[SLASH], n_sets=2, random_state=5, **DRAWS)
    record = panel.uns["causalged"]
    params = record["params"]
    assert (params["n_samples"], params["n_steps"], params["n_sets"]) == (2, 2, 2)
    assert list(params["order"]) == [SLASH]
    assert params["random_state"] == 5
    assert params["expression"] == "counts"
    assert params["library_key"] == _keys.LIBRARY
    assert params["target_total"] == np.median(np.asarray(panel.X.sum(axis=1)))
    assert record["model"]["path"] == str(folder)
    assert record["model"]["config"]["width"] == 8
    assert list(record["panel"]) == list(panel.var_names)
    assert list(record["seen_in_training"]["sections"]) == ["s1", "s2"]
    assert record["versions"]["stgen"] == stg.__version__


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files(kind, model, panel, tmp_path):
    stg.tl.causalged_impute(panel, model=model, intervals=True, order=[SLASH], **DRAWS)
    path = tmp_path / f"result.{kind}"
    getattr(panel, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    before, after = stg.get.imputed(panel), stg.get.imputed(back)
    assert SLASH in after.var_names
    np.testing.assert_array_equal(before.X, after.X)
    pd.testing.assert_frame_equal(before.var, after.var)
    stg.tl.causalged_impute(back, model=model, **DRAWS)  # what was read back is known as ours
    np.testing.assert_allclose(back.obsm["causalged"], panel.obsm["causalged"], atol=1e-5)


def test_spread_and_interval_come_with_the_names_of_their_genes(model, panel):
    stg.tl.causalged_impute(panel, model=model, intervals=True, **DRAWS)
    for key in ("causalged_sd", "causalged_upper_90"):
        table = stg.get.prediction(panel, key, genes=[SLASH])
        np.testing.assert_array_equal(table[SLASH], panel.obsm[key][:, -1])


def test_copy_leaves_the_original_alone_and_key_added_names_everything(model, panel):
    before = panel.copy()
    changed = stg.tl.causalged_impute(panel, model=model, copy=True, key_added="mine", **DRAWS)
    assert not unchanged(before, panel)
    assert {"mine", "mine_sd"} <= set(changed.obsm)
    assert not [name for name in [*changed.obsm, *changed.uns] if name.startswith("causalged")]
    assert stg.get.imputed(changed, "mine").shape == (N, M)


def test_a_view_becomes_an_object_and_its_parent_stays(model, tissue):
    parent = tissue.copy()
    view = parent[:, ::2]
    stg.tl.causalged_impute(view, model=model, **DRAWS)
    assert not view.is_view
    assert not unchanged(tissue, parent)


def test_a_new_result_replaces_the_one_before_and_nothing_else(model, panel):
    for _ in range(2):
        stg.tl.causalged_impute(panel, model=model, **DRAWS)
    panel.uns["causalged"] = {"note": "mine"}
    before = panel.copy()
    with pytest.raises(ValueError, match=r"obsm\['causalged'\] exists and is not a prediction of CausalGeD"):
        stg.tl.causalged_impute(panel, model=model, **DRAWS)
    assert not unchanged(before, panel)
    clean = without(panel)
    clean.obsm["causalged_sd"] = np.zeros((N, 3))
    with pytest.raises(ValueError, match=r"obsm\['causalged_sd'\] exists .* Choose another `key_added`"):
        stg.tl.causalged_impute(clean, model=model, **DRAWS)


def test_scanpy_goes_on_from_imputed_genes(model, panel):
    sc = pytest.importorskip("scanpy")
    stg.tl.causalged_impute(panel, model=model, **DRAWS)
    both = stg.get.imputed(panel, with_measured=True)
    sc.pp.pca(both, n_comps=5)
    # not the default method, which compiles for a minute
    sc.pp.neighbors(both, n_neighbors=5, method="gauss", transformer="sklearn")
    assert both.obsp["connectivities"].shape == (N, N)


# the model ---------------------------------------------------------------------------------------------------


def test_the_kept_model_gives_the_same(panel, reference, tmp_path):
    again = panel.copy()
    stg.tl.causalged_impute(panel, reference, save=tmp_path / "kept", **FAST)
    stg.tl.causalged_impute(again, model=tmp_path / "kept", **DRAWS)
    np.testing.assert_allclose(panel.obsm["causalged"], again.obsm["causalged"], atol=1e-5)
    np.testing.assert_allclose(panel.obsm["causalged_sd"], again.obsm["causalged_sd"], atol=1e-5)


def test_one_seed_gives_one_result(panel, reference):
    results = []
    for seed in (3, 3, 4):
        one = panel.copy()
        stg.tl.causalged_impute(one, reference, random_state=seed, **FAST)
        results.append(one.obsm["causalged"])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_no_table_stays_in_memory(panel, reference):
    stg.tl.causalged_impute(panel, reference, **FAST)
    gc.collect()
    CausalGeD = stg.models.CausalGeD
    held = [*CausalGeD._setup_adata_manager_store.values()]
    held += [
        manager for store in CausalGeD._per_instance_manager_store.values() for manager in store.values()
    ]
    assert not [manager for manager in held if manager.adata.shape == panel.shape]


def test_genes_are_imputed_in_the_order_asked_for(model, panel, reference):
    genes = [SLASH, "gene_002"]
    alone = panel.copy()
    stg.tl.causalged_impute(panel, model=model, genes=genes, **DRAWS)
    stg.tl.causalged_impute(alone, model=model, genes=SLASH, **DRAWS)
    assert list(panel.uns["causalged"]["genes"]) == genes
    assert alone.obsm["causalged"].shape == (N, 1)
    stg.tl.causalged_impute(alone, reference, genes=genes, **FAST)
    assert list(alone.uns["causalged"]["genes"]) == genes


def test_measured_genes_that_the_reference_lacks_change_nothing(panel, reference):
    stg.tl.causalged_impute(panel, reference, **FAST)
    rng = np.random.default_rng(0)
    more = ad.concat([panel, ad.AnnData(rng.poisson(9, (N, 3)).astype(np.float32), obs=panel.obs, var=pd.DataFrame(index=["x1", "x2", "x3"]))], axis=1)  # fmt: skip
    more.obs, more.obsm[_keys.SPATIAL] = panel.obs.copy(), panel.obsm[_keys.SPATIAL]
    with pytest.warns(UserWarning, match="3 measured genes are not in the reference and are not used: x1"):
        stg.tl.causalged_impute(more, reference, **FAST)
    np.testing.assert_allclose(more.obsm["causalged"], panel.obsm["causalged"], atol=1e-5)
    assert list(more.uns["causalged"]["panel"]) == list(panel.var_names)


def test_no_split_keeps_spots_from_training(panel, reference):
    other = panel.copy()
    stg.tl.causalged_impute(panel, reference, **FAST)
    other.obs[_keys.SPLIT] = ["train"] * (N // 2) + ["test"] * (N // 2)
    stg.tl.causalged_impute(other, reference, **FAST)
    np.testing.assert_array_equal(other.obsm["causalged"], panel.obsm["causalged"])


@pytest.mark.parametrize("layout", ["dense", "csc", "layer"])
def test_how_counts_lie_changes_nothing(layout, panel, reference):
    expected = panel.copy()
    stg.tl.causalged_impute(expected, reference, **FAST)
    keys = {}
    for one in (panel, reference):
        if layout == "layer":
            one.layers["raw"], one.X = one.X.copy(), np.full(one.shape, -0.5, dtype=np.float32)
            keys = {"layer": "raw", "reference_layer": "raw"}
        else:
            one.X = one.X.toarray() if layout == "dense" else sparse.csc_matrix(one.X)
    stg.tl.causalged_impute(panel, reference, **keys, **FAST)
    np.testing.assert_allclose(panel.obsm["causalged"], expected.obsm["causalged"], atol=1e-4)


def test_a_reference_on_disk_is_taken(panel, reference, tmp_path):
    expected = panel.copy()
    stg.tl.causalged_impute(expected, reference, **FAST)
    reference.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    stg.tl.causalged_impute(panel, backed, **FAST)
    np.testing.assert_allclose(panel.obsm["causalged"], expected.obsm["causalged"], atol=1e-5)


def test_logs_made_as_the_model_makes_them_give_what_counts_give(panel, reference):
    logged, cells = panel.copy(), reference.copy()
    for one in (logged, cells):
        total = np.asarray(one[:, panel.var_names].X.sum(axis=1)).astype(float)
        values = one.X.toarray() / np.maximum(total, 1) * np.median(total)
        one.X = np.log1p(values).astype(np.float32)
    stg.tl.causalged_impute(panel, reference, **FAST)
    stg.tl.causalged_impute(logged, cells, expression="log", reference_expression="log", **FAST)
    assert logged.uns["causalged"]["params"]["expression"] == "log"
    assert "target_total" not in logged.uns["causalged"]["params"]
    np.testing.assert_allclose(logged.obsm["causalged"], panel.obsm["causalged"], atol=1e-3)


def test_other_keys_than_those_of_training_can_be_named(model, panel):
    renamed = panel.copy()
    stg.tl.causalged_impute(panel, model=model, **DRAWS)
    renamed.obsm["um"] = renamed.obsm.pop(_keys.SPATIAL)
    renamed.obs["slice"] = renamed.obs.pop(_keys.LIBRARY)
    renamed.layers["raw"], renamed.X = renamed.X, np.zeros(renamed.shape)
    keys = {"spatial_key": "um", "library_key": "slice", "layer": "raw"}
    stg.tl.causalged_impute(renamed, model=model, **keys, **DRAWS)
    np.testing.assert_array_equal(renamed.obsm["causalged"], panel.obsm["causalged"])
    assert model._field(type(model._fields[0])).key == _keys.SPATIAL  # the model still reads its own keys


# what is refused ---------------------------------------------------------------------------------------------


def refused(panel, match, *args, error=ValueError, **kwargs):
    """The call fails with this message and leaves the object as it was."""
    before = panel.copy()
    with pytest.raises(error, match=match):
        stg.tl.causalged_impute(panel, *args, **kwargs)
    assert not unchanged(before, panel)


def test_a_reference_or_a_model_is_needed_and_not_both(model, panel, reference):
    refused(panel, "Give `reference` .* or `model` .*, and not both")
    refused(panel, "Give `reference` .* or `model` .*, and not both", reference, model=model)
    refused(
        panel,
        "`train_kwargs` is for training; with `model=` nothing is trained",
        model=model,
        train_kwargs={},
    )
    refused(panel, "Expected an AnnData; got DataFrame", pd.DataFrame(), error=TypeError)


def test_genes_are_checked_before_training(panel, reference, model):
    refused(panel, "`genes` must be in the reference. .*such as EPCAM", reference, genes=["EPCAM", SLASH])
    refused(panel, "must name genes that were not measured; 1 were: gene_001", reference, genes=["gene_001"])
    refused(
        panel, "must name genes that were not measured; 1 were: gene_001", model=model, genes=["gene_001"]
    )
    refused(panel, "`genes` must be in the reference", model=model, genes="EPCAM")
    refused(panel, "must name at least one gene", reference, genes=[])
    refused(panel, "`genes` must be unique; 1 repeat", reference, genes=[SLASH, SLASH])
    refused(panel, "nothing to impute", reference[:, panel.var_names].copy())


def test_sampling_is_checked_before_training(panel, reference):
    refused(panel, "`n_steps` must be a whole number, at least 1; got 0", reference, n_steps=0)
    refused(panel, "`order` must be 'predictable' or 'random', or names", reference, order="best")
    refused(
        panel, "`order` must name genes of the reference; 1 of 1 are not: Sox2", reference, order=["Sox2"]
    )
    refused(panel, "`batch_size` must be a whole number, at least 1; got -5", reference, batch_size=-5)
    refused(panel, "`batch_size` must be a whole number, at least 1; got 0", reference, batch_size=0)


def test_an_answer_that_is_too_large_is_refused_before_training(panel, reference, monkeypatch):
    from stgen.models.causalged import _model

    monkeypatch.setattr(_model, "MAX_BYTES", 1000)
    refused(panel, f"for {N} spots and {M} genes would take .*out=.* name fewer `genes`", reference)


def test_values_of_another_kind_are_refused_by_the_names_of_the_arguments(panel, reference):
    logs = reference.copy()
    logs.X = np.log1p(logs.X.toarray().astype(np.float32))
    refused(
        panel, r"In `reference`: X must hold counts.*`reference_layer=`.*`reference_expression='log'`", logs
    )
    refused(
        panel,
        r"In `reference`: layers\['raw'\] does not exist",
        reference,
        reference_layer="raw",
        error=KeyError,
    )
    refused(panel, "`expression` must be one of 'counts', 'log'; got 'raw'", reference, expression="raw")
    refused(
        panel, "In `reference`: `reference_expression` must be one of", reference, reference_expression="raw"
    )
    panel.X = np.log1p(panel.X.toarray().astype(np.float32))
    refused(panel, r"^X must hold counts.* say `expression='log'`", reference)


def test_a_model_of_counts_refuses_logs(model, panel):
    refused(panel, r"was fitted on `expression='counts'`; got 'log'", model=model, expression="log")
    panel.X = np.log1p(panel.X.toarray().astype(np.float32))
    refused(panel, "X must hold counts", model=model)


def test_too_few_shared_genes_are_refused_with_examples(panel, reference):
    reference.var_names = [name.upper() for name in reference.var_names]
    refused(panel, "At least 10 genes must be in both .*GENE_001.*upper and lower case", reference)


def test_missing_places_and_columns_are_named(panel, reference):
    refused(panel, r"obs\['slice'\] does not exist", reference, library_key="slice", error=KeyError)
    refused(panel, r"obsm\['um'\] does not exist", reference, spatial_key="um", error=KeyError)


def test_a_folder_that_is_taken_is_refused_before_training(panel, reference, folder):
    refused(panel, "already holds a model", reference, save=folder, error=FileExistsError)
    refused(panel, "must be a name without '/'", reference, key_added="a/b")


# what the verdicts are worth ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def partly_blind():
    """Imputed genes of a panel whose reference says nothing about every other of them, and nothing at all of one."""
    tissue = stg.datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=300, n_genes=80, histology="none"
    )
    reference = stg.datasets.toy_reference(tissue, n_cells=400)
    counts, rng = reference.X.toarray(), np.random.default_rng(0)
    for i in range(1, 80, 4):
        counts[:, i] = rng.permutation(counts[:, i])
    counts[:, 3] = 0
    reference.X = counts
    adata = tissue[:, ::2].copy()
    with pytest.warns(UserWarning, match="1 of 80 genes have the same count in every spot"):
        stg.tl.causalged_impute(
            adata, reference, model_kwargs={"use_network": False}, train_kwargs=SHORT, n_samples=1
        )
    table = stg.get.imputed(adata).var
    is_shuffled = table.index.isin(tissue.var_names[1::4])
    return table, is_shuffled, tissue.var_names[3]


def test_a_gene_that_the_reference_says_nothing_about_is_not_for_use(partly_blind):
    table, is_shuffled, _ = partly_blind
    assert (table["verdict"][is_shuffled] == "use").mean() <= 0.1


def test_a_gene_without_a_count_in_the_reference_is_expected_to_correlate_with_nothing(partly_blind):
    table, _, silent = partly_blind
    assert table.loc[silent, "verdict"] == "do not use"
    assert abs(table.loc[silent, "predictability"]) < 0.3


def test_a_gene_that_the_reference_knows_is_expected_to_gain(partly_blind):
    table, is_shuffled, silent = partly_blind
    known = ~is_shuffled & (table.index != silent)
    assert (table["verdict"][known] == "use").any()
    assert (table["gain"][known] > 0).mean() > 0.9


# on disk -----------------------------------------------------------------------------------------------------------


def test_a_store_holds_what_would_come_out_of_memory(model, panel, tmp_path):
    before = panel.copy()
    made = stg.tl.causalged_impute(panel, model=model, intervals=True, out=tmp_path / "made.zarr", **DRAWS)
    assert not unchanged(before, panel)
    stg.tl.causalged_impute(panel, model=model, intervals=True, **DRAWS)
    expected = stg.get.imputed(panel)
    for found in (made, ad.read_zarr(tmp_path / "made.zarr")):
        np.testing.assert_allclose(found.X[:], expected.X, rtol=1e-4, atol=1e-5)
        for name in filter(None, expected.layers):
            np.testing.assert_allclose(found.layers[name][:], expected.layers[name], rtol=1e-4, atol=1e-5)
        assert list(found.obs) == list(expected.obs) and set(found.obsm) == set(expected.obsm)
        assert list(found.var_names) == list(expected.var_names)
        np.testing.assert_array_equal(found.var["gain"], expected.var["gain"])
        assert found.uns["causalged"]["params"]["n_steps"] == expected.uns["causalged"]["params"]["n_steps"]
        assert list(found.uns["causalged"]["panel"]) == list(expected.uns["causalged"]["panel"])


def test_a_store_is_asked_for_before_anything_is_trained(panel, reference, tmp_path, monkeypatch):
    from stgen.models.causalged import _model

    (tmp_path / "made.zarr").mkdir()
    refused(panel, "made.zarr exists", reference, out=tmp_path / "made.zarr", error=FileExistsError)
    refused(panel, "With `out` nothing is written to `adata`", reference, out=tmp_path / "a.zarr", copy=True)
    monkeypatch.setattr(_model, "MAX_BYTES", 1000)
    made = stg.tl.causalged_impute(panel, reference, out=tmp_path / "a.zarr", **FAST)
    assert made.shape == (N, M)


# the answer may not have been seen --------------------------------------------------------------------------------------


def test_a_truth_that_training_had_measured_is_said_to_be_seen(model, panel):
    """Measured genes that are dropped and imputed again would look well imputed: the model has learned from them."""
    kept = panel[:, 2:].copy()
    dropped = list(panel.var_names[:2])
    with pytest.warns(
        UserWarning, match=r"2 of the 2 imputed genes were measured in training, such as"
    ) as said:
        stg.tl.causalged_impute(kept, model=model, genes=dropped)
    assert any("Judge imputation by genes that training never measured" in str(one.message) for one in said)
    assert list(kept.uns["causalged"]["seen_in_training"]["genes"]) == dropped
    stg.tl.causalged_impute(panel, model=model)
    assert "genes" not in panel.uns["causalged"]["seen_in_training"]
