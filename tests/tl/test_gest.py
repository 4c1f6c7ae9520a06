"""One call from neighbours to niches and to unseen cells: what is written, what is left alone, what is refused."""

from __future__ import annotations

import gc
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 8}
SHORT = {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu"}
FAST = {"model_kwargs": TINY, "train_kwargs": SHORT}
NICHES = ["gest_meta_cell"]
GENERATED = ["gest_round", "gest_n_windows", "gest_isolated"]
N = 80


@pytest.fixture(scope="module")
def tissue():
    """Three sections of three patients; a gene whose name holds a slash."""
    import torch

    torch.set_num_threads(1)
    adata = stg.datasets.toy_tissue(
        n_sections=3, n_patients=3, spots_per_section=N, n_genes=12, unit="cells", histology="none"
    )
    adata.var_names = ["CCL3/L1/L3", *adata.var_names[1:]]
    return adata


def section(tissue, *names):
    return tissue[tissue.obs[_keys.LIBRARY].isin(names)].copy()


@pytest.fixture
def train(tissue):
    return section(tissue, "s1", "s2")


@pytest.fixture
def new(tissue):
    return section(tissue, "s3")


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """A model that was trained on two sections and kept."""
    path = tmp_path_factory.mktemp("kept") / "model"
    stg.tl.gest_niche_embed(section(tissue, "s3"), train_on=section(tissue, "s1", "s2"), save=path, **FAST)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return stg.models.GeST.load(folder, accelerator="cpu")


def unchanged(before, after, ignore=()):
    from stgen.testing import changed_slots

    return changed_slots(before, after, ignore=ignore)


def hole(adata, n=12):
    """The cells nearest to the centre of the first section."""
    xy = np.asarray(adata.obsm[_keys.SPATIAL])
    rows = np.arange(min(N, len(xy)))
    near = rows[np.argsort(np.square(xy[rows] - xy[rows].mean(axis=0)).sum(axis=1))[:n]]
    mask = np.zeros(adata.n_obs, dtype=bool)
    mask[near] = True
    return mask


def without(adata, *slots):
    """The object without results."""
    adata = adata.copy()
    for column in [*NICHES, *GENERATED]:
        if column in adata.obs:
            del adata.obs[column]
    for key in (_keys.X_GEST, _keys.GEST):
        for slot in (adata.layers, adata.obsm, adata.uns):
            if key in slot:
                del slot[key]
    return adata


# niches ------------------------------------------------------------------------------------------------------


def test_niches_are_those_of_the_model_and_nothing_else_changes(model, new):
    before = new.copy()
    assert stg.tl.gest_niche_embed(new, model=model) is None
    assert new.obsm["X_gest"].shape == (N, 16)
    assert new.obsm["X_gest"].dtype == np.float32
    np.testing.assert_array_equal(new.obsm["X_gest"], model.embed_niches(before))
    assert not unchanged(before, without(new))


def test_niches_are_as_large_as_asked_for(model, new):
    stg.tl.gest_niche_embed(new, model=model, n_neighbors=0)
    np.testing.assert_array_equal(new.obsm["X_gest"], model.embed_niches(new, n_neighbors=0))
    assert new.uns["X_gest"]["params"]["n_neighbors"] == 0


def test_meta_cells_are_kept_beside_the_niches(model, new):
    stg.tl.gest_niche_embed(new, model=model)
    meta = new.uns["X_gest"]["meta_cells"]
    assert meta["profile"].shape == (8, 12)
    assert meta["n_cells"].sum() == 2 * N
    assert set(new.obs["gest_meta_cell"]) <= set(range(8))
    values = model.normalized(new)
    lost = np.square(values - meta["profile"][new.obs["gest_meta_cell"]])
    assert new.uns["X_gest"]["quantization"]["rmse"] == pytest.approx(np.sqrt(lost.mean()), rel=1e-4)


def test_without_a_model_the_cells_themselves_train_one(new):
    before = new.copy()
    stg.tl.gest_niche_embed(new, **FAST)
    record = new.uns["X_gest"]
    assert record["model"]["n_training_spots"] == N
    assert record["seen_in_training"]["n_spots"] == N
    assert not unchanged(before, without(new))


def test_scanpy_goes_on_from_the_embedding(model, new):
    sc = pytest.importorskip("scanpy")
    stg.tl.gest_niche_embed(new, model=model)
    # not the default method, which compiles for a minute
    sc.pp.neighbors(new, use_rep="X_gest", n_neighbors=5, method="gauss", transformer="sklearn")
    assert new.uns["neighbors"]["params"]["use_rep"] == "X_gest"


def drawn_by_squidpy(adata, color):
    """Where `sq.pl.spatial_scatter` draws points, and the clusters its legend names."""
    sq = pytest.importorskip("squidpy")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    sq.pl.spatial_scatter(adata, color=color, shape=None, library_id="one")
    figure = plt.gcf()
    legend = {text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()}
    points = np.concatenate([points.get_offsets() for axis in figure.axes for points in axis.collections])
    plt.close(figure)
    return np.unique(points, axis=0), legend


@pytest.mark.slow
def test_squidpy_draws_what_comes_with_the_niches(model, new):
    stg.tl.gest_niche_embed(new, model=model)
    new.obs["gest_meta_cell"] = new.obs["gest_meta_cell"].astype(str).astype("category")
    points, legend = drawn_by_squidpy(new, "gest_meta_cell")
    np.testing.assert_allclose(points, np.unique(new.obsm[_keys.SPATIAL], axis=0))
    assert legend == set(new.obs["gest_meta_cell"])


@pytest.mark.slow
def test_squidpy_draws_clusters_of_niches(model, new):
    sc = pytest.importorskip("scanpy")
    pytest.importorskip("igraph", reason="sc.tl.leiden needs igraph")
    pytest.importorskip("leidenalg", reason="sc.tl.leiden needs leidenalg")
    stg.tl.gest_niche_embed(new, model=model)
    sc.pp.neighbors(new, use_rep="X_gest")
    sc.tl.leiden(new, flavor="igraph", n_iterations=2)
    points, legend = drawn_by_squidpy(new, "leiden")
    assert len(points) == new.n_obs
    assert legend == set(new.obs["leiden"])


def test_one_seed_gives_one_result(new):
    first, second, third = new.copy(), new.copy(), new.copy()
    stg.tl.gest_niche_embed(first, random_state=3, **FAST)
    stg.tl.gest_niche_embed(second, random_state=3, **FAST)
    stg.tl.gest_niche_embed(third, random_state=4, **FAST)
    np.testing.assert_array_equal(first.obsm["X_gest"], second.obsm["X_gest"])
    assert not np.array_equal(first.obsm["X_gest"], third.obsm["X_gest"])


def test_copy_leaves_the_original_alone(model, new):
    before = new.copy()
    changed = stg.tl.gest_niche_embed(new, model=model, copy=True, key_added="X_mine")
    assert not unchanged(before, new)
    assert "X_mine" in changed.obsm
    assert "mine_meta_cell" in changed.obs


def test_a_view_becomes_an_object_and_its_parent_stays(model, tissue):
    parent = tissue.copy()
    view = parent[parent.obs[_keys.LIBRARY] == "s3"]
    stg.tl.gest_niche_embed(view, model=model)
    assert not view.is_view
    assert not unchanged(tissue, parent)


def test_a_new_result_replaces_the_one_before_and_nothing_else(model, new):
    for _ in range(2):
        stg.tl.gest_niche_embed(new, model=model)
    mine = new.copy()
    mine.uns["X_gest"] = {"note": "mine"}
    before = mine.copy()
    with pytest.raises(ValueError, match=r"obsm\['X_gest'\] exists and is not a niche embedding of GeST"):
        stg.tl.gest_niche_embed(mine, model=model)
    assert not unchanged(before, mine)
    del new.uns["X_gest"], new.obsm["X_gest"]
    with pytest.raises(ValueError, match=r"obs\['gest_meta_cell'\] exists and is not .* Choose another"):
        stg.tl.gest_niche_embed(new, model=model)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_survive_files(kind, model, new, tmp_path):
    stg.tl.gest_niche_embed(new, model=model)
    stg.tl.gest_generate(new, mask=hole(new), model=model)
    path = tmp_path / f"result.{kind}"
    getattr(new, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    np.testing.assert_array_equal(back.obsm["X_gest"], new.obsm["X_gest"])
    np.testing.assert_array_equal(back.layers["gest"], new.layers["gest"])
    pd.testing.assert_frame_equal(back.obs[GENERATED], new.obs[GENERATED])
    assert back.uns["gest"]["params"]["readout"] == "weighted"
    np.testing.assert_array_equal(
        back.uns["X_gest"]["meta_cells"]["profile"], new.uns["X_gest"]["meta_cells"]["profile"]
    )


def test_the_record_says_how_it_was_made(folder, new):
    stg.tl.gest_niche_embed(new, model=folder, random_state=5)
    record = new.uns["X_gest"]
    assert record["params"]["expression"] == "counts"
    assert record["params"]["library_key"] == _keys.LIBRARY
    assert record["params"]["window_um"] > 0
    assert record["params"]["random_state"] == 5
    assert record["model"]["path"] == str(folder)
    assert record["model"]["config"]["width"] == 16
    assert list(record["train_sections"]) == ["s1", "s2"]
    assert list(record["genes"]) == list(new.var_names)
    assert record["seen_in_training"] == {}
    assert record["versions"]["stgen"] == stg.__version__


def test_sections_the_model_knows_are_recorded(model, tissue, recwarn):
    adata = section(tissue, "s2", "s3")
    stg.tl.gest_niche_embed(adata, model=model)
    assert list(adata.uns["X_gest"]["seen_in_training"]["sections"]) == ["s2"]
    assert not [one for one in recwarn if "trained on" in str(one.message)]  # nothing wrong with that


# training ----------------------------------------------------------------------------------------------------


def test_training_sections_are_neither_marked_nor_changed(train, new):
    before = train.copy()
    stg.tl.gest_niche_embed(new, train_on=train, **FAST)
    assert not unchanged(before, train)


def test_no_table_stays_in_memory(train, new):
    stg.tl.gest_niche_embed(new, train_on=train, **FAST)
    gc.collect()
    GeST = stg.models.GeST
    held = [*GeST._setup_adata_manager_store.values()]
    held += [manager for store in GeST._per_instance_manager_store.values() for manager in store.values()]
    assert not [manager for manager in held if manager.adata.n_obs == train.n_obs]


def test_a_list_of_sections_is_one_training_set(tissue, train, new):
    other = new.copy()
    stg.tl.gest_niche_embed(new, train_on=[section(tissue, "s1"), section(tissue, "s2")], **FAST)
    stg.tl.gest_niche_embed(other, train_on=train, **FAST)
    np.testing.assert_allclose(new.obsm["X_gest"], other.obsm["X_gest"], atol=1e-4)


def test_sections_are_named_by_you(tissue, new):
    sections = {name: section(tissue, old) for name, old in zip("AB", ("s1", "s2"))}
    for one in sections.values():
        del one.obs[_keys.LIBRARY], one.obs[_keys.PATIENT]
    stg.tl.gest_niche_embed(new, train_on=sections, **FAST)
    assert list(new.uns["X_gest"]["train_sections"]) == ["A", "B"]


def test_genes_are_those_that_all_sections_have(tissue, new, caplog):
    sections = [section(tissue, "s1"), section(tissue, "s2")[:, 10:2:-1].copy()]
    with caplog.at_level(logging.WARNING, logger="stgen"):
        stg.tl.gest_niche_embed(new, train_on=sections, **FAST)
    assert list(new.uns["X_gest"]["genes"]) == list(tissue.var_names[3:11])
    assert "only the 8 that all of them have are used" in caplog.text


def test_named_genes_are_used_and_a_gene_panel_for_images_is_not(new):
    new.var[_keys.PANEL] = np.arange(12) < 3
    stg.tl.gest_niche_embed(new, **FAST)
    assert len(new.uns["X_gest"]["genes"]) == 12
    stg.tl.gest_niche_embed(new, genes=list(new.var_names[:6]), **FAST)
    assert list(new.uns["X_gest"]["genes"]) == list(new.var_names[:6])


@pytest.mark.parametrize("layout", ["dense", "csc", "layer"])
def test_how_counts_lie_changes_nothing(layout, new, tmp_path):
    expected = new.copy()
    stg.tl.gest_niche_embed(expected, **FAST)
    keys = {}
    if layout == "layer":
        new.layers["raw"], new.X, keys = new.X.copy(), np.full(new.shape, -0.5), {"layer": "raw"}
    else:
        new.X = new.X.toarray() if layout == "dense" else sparse.csc_matrix(new.X)
    stg.tl.gest_niche_embed(new, save=tmp_path / "kept", **keys, **FAST)
    np.testing.assert_allclose(new.obsm["X_gest"], expected.obsm["X_gest"], atol=1e-5)
    stg.tl.gest_niche_embed(new, model=tmp_path / "kept")  # the model remembers the layer
    np.testing.assert_allclose(new.obsm["X_gest"], expected.obsm["X_gest"], atol=1e-5)


def test_log_normalised_expression_is_taken_as_it_is(new):
    new.X = np.log1p(new.X.toarray().astype(np.float32))
    stg.tl.gest_niche_embed(new, expression="log", **FAST)
    assert new.uns["X_gest"]["params"]["expression"] == "log"
    stg.tl.gest_generate(new, mask=hole(new), expression="log", **FAST)
    assert "target_total" not in new.uns["gest"]["params"]
    assert np.nanmax(new.layers["gest"]) <= new.X.max()


def test_other_keys_than_those_of_training_can_be_named(model, new):
    expected = model.embed_niches(new)
    renamed = new.copy()
    renamed.obsm["um"] = renamed.obsm.pop(_keys.SPATIAL)
    renamed.layers["raw"], renamed.X = renamed.X, np.zeros(new.shape)
    stg.tl.gest_niche_embed(renamed, model=model, spatial_key="um", layer="raw")
    np.testing.assert_array_equal(renamed.obsm["X_gest"], expected)
    np.testing.assert_array_equal(model.embed_niches(new), expected)  # the model still reads its own keys


def test_the_kept_model_gives_the_same(train, new, tmp_path):
    again = new.copy()
    stg.tl.gest_niche_embed(new, train_on=train, save=tmp_path / "kept", **FAST)
    stg.tl.gest_niche_embed(again, model=tmp_path / "kept")
    np.testing.assert_array_equal(new.obsm["X_gest"], again.obsm["X_gest"])


# unseen cells ------------------------------------------------------------------------------------------------


def test_unseen_cells_are_generated_and_seen_ones_left_empty(model, new):
    mask = hole(new)
    before = new.copy()
    assert stg.tl.gest_generate(new, mask=mask, model=model) is None
    made = model.generate(before, mask=mask)
    np.testing.assert_array_equal(new.layers["gest"][mask], made.X)
    assert np.isnan(new.layers["gest"][~mask]).all()
    np.testing.assert_array_equal(new.obs["gest_round"][mask], made.obs["round"])
    assert new.obs["gest_round"][~mask].isna().all()
    assert not new.obs["gest_isolated"].any()
    assert not unchanged(before, without(new))


def test_what_is_known_of_unseen_cells_reaches_nothing(new):
    mask = hole(new)
    poisoned = new.copy()
    X = poisoned.X.toarray().astype(np.float32)
    X[mask] = np.nan
    poisoned.X = X
    for one in (new, poisoned):
        stg.tl.gest_generate(one, mask=mask, **FAST)
    np.testing.assert_array_equal(new.layers["gest"], poisoned.layers["gest"])
    assert new.uns["gest"]["quantization"] == poisoned.uns["gest"]["quantization"]


@pytest.mark.parametrize("how", ["itself", "list", "mapping"])
def test_unseen_cells_train_nothing_wherever_the_object_is_named(how, tissue, new, recwarn):
    mask = hole(new)
    other = section(tissue, "s1")
    train_on = {"itself": new, "list": [other, new], "mapping": {"s1": other, "s3": new}}[how]
    stg.tl.gest_generate(new, mask=mask, train_on=train_on, **FAST)
    n_sections = 1 if how == "itself" else 2
    assert new.uns["gest"]["model"]["n_training_spots"] == n_sections * N - mask.sum()
    assert not [one for one in recwarn if "was trained on" in str(one.message)]


def test_a_model_that_knows_unseen_cells_is_flagged(new):
    mask = hole(new)
    with pytest.warns(UserWarning, match="trained on 12 of the 12 cells that are to be generated"):
        stg.tl.gest_generate(new, mask=mask, train_on=new.copy(), **FAST)
    assert new.uns["gest"]["seen_in_training"]["n_spots"] == 12


def test_a_model_of_this_session_that_knows_unseen_cells_is_flagged(new):
    mine = new.copy()
    stg.models.GeST.setup_anndata(mine)
    model = stg.models.GeST(mine, **TINY)
    model.train(**SHORT)
    with pytest.warns(UserWarning, match="trained on 12 of the 12 cells"):
        stg.tl.gest_generate(new, mask=hole(new), model=model)
    moved = new.copy()  # another section that counts its cells in the same way
    moved.obsm[_keys.SPATIAL] = moved.obsm[_keys.SPATIAL] + 1000
    stg.tl.gest_generate(moved, mask=hole(moved), model=model)
    assert moved.uns["gest"]["seen_in_training"] == {}


def test_a_mask_may_be_a_column(model, new):
    new.obs["hole"] = hole(new)
    stg.tl.gest_generate(new, mask="hole", model=model)
    assert new.uns["gest"]["params"]["mask"] == "hole"
    assert np.isfinite(new.layers["gest"]).all(axis=1).sum() == 12


def test_the_other_readout_is_a_profile_of_a_meta_cell(model, new):
    mask = hole(new)
    stg.tl.gest_generate(new, mask=mask, model=model, readout="picked")
    made = model.generate(new, mask=mask)
    np.testing.assert_array_equal(new.layers["gest"][mask], made.layers["picked"])


def test_genes_that_are_not_var_names_go_to_obsm(model, new):
    mask = hole(new)
    names = ["gene_005", "CCL3/L1/L3"]
    stg.tl.gest_generate(new, mask=mask, model=model, genes=names)
    assert new.obsm["gest"].shape == (N, 2)
    assert list(new.uns["gest"]["genes"]) == names
    stg.tl.gest_generate(new, mask=mask, model=model)  # and back
    assert "gest" not in new.obsm
    assert "gest" in new.layers
    permuted = new[:, ::-1].copy()
    stg.tl.gest_generate(permuted, mask=mask, model=model)
    np.testing.assert_allclose(permuted.layers["gest"], new.layers["gest"][:, ::-1], rtol=1e-5)


def test_an_isolated_cell_is_generated_and_flagged(model, new):
    xy = new.obsm[_keys.SPATIAL].copy()
    xy[5] += 5000
    new.obsm[_keys.SPATIAL] = xy
    mask = np.arange(N) == 5
    with pytest.warns(UserWarning, match="1 of the 1 cells to generate have no seen cell within reach"):
        stg.tl.gest_generate(new, mask=mask, model=model)
    assert new.obs["gest_isolated"].iloc[5]
    assert new.obs["gest_round"].iloc[5] == 0
    assert np.isfinite(new.layers["gest"][5]).all()
    assert new.uns["gest"]["n_isolated"] == 1


def test_a_model_that_lacks_some_genes_of_the_data_still_answers(model, new):
    part = new[:, 2:].copy()
    with pytest.warns(UserWarning, match="10 of the model's 12 genes are here"):
        stg.tl.gest_generate(part, mask=hole(part), model=model)
    assert list(part.uns["gest"]["genes"]) == model.genes
    whole = new.copy()
    stg.tl.gest_generate(whole, mask=hole(new), model=model)
    assert part.uns["gest"]["params"]["target_total"] < whole.uns["gest"]["params"]["target_total"]


# bad input ---------------------------------------------------------------------------------------------------


def spatial(change):
    def spoil(adata):
        xy = np.array(adata.obsm[_keys.SPATIAL], dtype=float)
        adata.obsm[_keys.SPATIAL] = change(xy)

    return spoil


def nan_place(xy):
    xy[3, 1] = np.nan
    return xy


def same_place(xy):
    return np.zeros_like(xy)


def pixels(xy):
    return xy / 1000


def undeclared_pixels(adata):
    adata.uns.pop(_keys.SPATIAL_UM, None)
    adata.uns[_keys.UM_PER_UNIT] = 0.2


def scaled(adata):
    X = adata.X.toarray().astype(float)
    adata.X = (X - X.mean(0)) / X.std(0)


def logged(adata):
    adata.X = np.log1p(adata.X.toarray())


def not_a_number(adata):
    adata.X = adata.X.toarray().astype(np.float32)
    adata.X[0, 0] = np.nan


def other_panel(adata):
    adata.var_names = [*adata.var_names[:4], *[f"other_{i}" for i in range(8)]]


def ensembl(adata):
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]


def duplicate_genes(adata):
    adata.var_names = ["A", "A", *adata.var_names[2:]]


def no_place(adata):
    del adata.obsm[_keys.SPATIAL]


def missing_section(adata):
    adata.obs[_keys.LIBRARY] = pd.Categorical([None, *["s3"] * (N - 1)])


EITHER = [
    (
        spatial(nan_place),
        ValueError,
        "1 of (80|79) cells have NaN or infinite coordinates, such as s3_cell00004",
    ),
    (spatial(same_place), ValueError, "most cells lie exactly on another cell"),
    (spatial(pixels), ValueError, "must be in µm; .* these look like pixels"),
    (undeclared_pixels, ValueError, "must be in µm; one unit of section 's3' is 0.2 µm .*um_per_unit"),
    (scaled, ValueError, "X must hold counts; found negative values"),
    (logged, ValueError, "not whole numbers.* If they are log-normalised, say `expression='log'`"),
    (not_a_number, ValueError, "X must hold counts; found 1 values that are NaN"),
    (duplicate_genes, ValueError, "Gene names.* must be unique; 1 repeat: A"),
    (no_place, KeyError, r"obsm\['spatial'\] does not exist"),
    (missing_section, ValueError, "1 are missing"),
]
ids = [getattr(spoil, "__name__", "") for spoil, *_ in EITHER]


@pytest.mark.parametrize("way", ["model", "itself"])
@pytest.mark.parametrize(("spoil", "kind", "message"), EITHER, ids=ids)
def test_cells_that_cannot_be_read_are_refused_before_training(
    way, spoil, kind, message, model, new, monkeypatch
):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    spoil(new)
    before = new.copy()
    how = {"model": model} if way == "model" else FAST
    for call in (
        lambda: stg.tl.gest_niche_embed(new, **how),
        lambda: stg.tl.gest_generate(new, mask=np.arange(N) == 50, **how),
    ):
        with pytest.raises(kind, match=message):
            call()
    assert not unchanged(before, new)


@pytest.mark.parametrize("way", ["model", "train_on"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_panel, "At least 50% of the model's genes are needed; 4 of 12 are here"),
        (ensembl, "0 of 12 are here.* these look like Ensembl identifiers"),
    ],
    ids=["other_panel", "ensembl"],
)
def test_too_small_an_overlap_of_panels_is_refused_before_training(
    way, spoil, message, model, train, new, monkeypatch
):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    spoil(new)
    how = {"model": model} if way == "model" else {"train_on": train, **FAST}
    with pytest.raises(ValueError, match=message):
        stg.tl.gest_niche_embed(new, **how)


def test_negative_logs_are_refused(new):
    scaled(new)
    with pytest.raises(ValueError, match=r"not negative; .* looks scaled or centred"):
        stg.tl.gest_niche_embed(new, expression="log", **FAST)


def test_raw_counts_called_logs_are_refused(new):
    new.X = new.X.toarray() * 10
    with pytest.raises(ValueError, match=r"no logarithm of a count reaches\. Run `sc.pp.log1p`"):
        stg.tl.gest_niche_embed(new, expression="log", **FAST)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_handful_of_cells_is_embedded(n, new):
    few = new[:n].copy()
    few.obsm[_keys.SPATIAL] = np.c_[np.arange(n) * 20.0, np.zeros(n)]
    stg.tl.gest_niche_embed(few, model_kwargs={**TINY, "n_meta_cells": 2}, train_kwargs=SHORT)
    assert np.isfinite(few.obsm["X_gest"]).all()


def test_one_cell_cannot_train(new):
    with pytest.raises(ValueError, match="At least 2 cells are needed; this AnnData has 1"):
        stg.tl.gest_niche_embed(new[:1].copy(), **FAST)


def test_one_section_needs_no_column(new):
    del new.obs[_keys.LIBRARY], new.obs[_keys.PATIENT]
    stg.tl.gest_niche_embed(new, **FAST)
    assert "library_key" not in new.uns["X_gest"]["params"]
    assert "train_sections" not in new.uns["X_gest"]


def test_sections_that_lie_on_each_other_need_a_column(train):
    train.obs["sample"] = train.obs.pop(_keys.LIBRARY)
    with pytest.raises(ValueError, match=r"library_key"):
        stg.tl.gest_niche_embed(train, **FAST)


def test_some_cells_on_the_place_of_another_are_fine(new):
    new.obsm[_keys.SPATIAL] = np.array(new.obsm[_keys.SPATIAL])
    new.obsm[_keys.SPATIAL][:10] = new.obsm[_keys.SPATIAL][10:20]
    stg.tl.gest_niche_embed(new, **FAST)
    assert np.isfinite(new.obsm["X_gest"]).all()


def test_an_isolated_cell_has_a_niche(model, new):
    new.obsm[_keys.SPATIAL] = np.array(new.obsm[_keys.SPATIAL])
    new.obsm[_keys.SPATIAL][0] += 5000
    stg.tl.gest_niche_embed(new, model=model)
    assert np.isfinite(new.obsm["X_gest"]).all()


def test_a_window_that_holds_one_cell_is_refused(new):
    with pytest.raises(
        ValueError, match=r"must hold several cells; the typical one holds 1.*Are coordinates"
    ):
        stg.tl.gest_niche_embed(new, model_kwargs={**TINY, "window_um": 2.0}, train_kwargs=SHORT)


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (np.zeros(N, dtype=bool), ValueError, "must name some cells and leave some to see; it names 0 of 80"),
        (np.ones(N, dtype=bool), ValueError, "it names 80 of 80"),
        (np.ones(5, dtype=bool), ValueError, "True or False for each of the 80 cells; got bool of shape"),
        (np.arange(N), ValueError, "got int64 of shape"),
        ("hole", KeyError, r"obs\['hole'\] does not exist; obs has"),
    ],
    ids=["none", "all", "short", "rows", "column"],
)
def test_a_mask_that_makes_no_sense_is_refused(mask, kind, message, new, monkeypatch):
    monkeypatch.setattr(stg.models.GeST, "train", lambda *_, **__: pytest.fail("it trained first"))
    before = new.copy()
    with pytest.raises(kind, match=message):
        stg.tl.gest_generate(new, mask=mask, **FAST)
    assert not unchanged(before, new)


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({"model": "m", "train_on": "t"}, ValueError, "and not both; without either a GeST is trained on"),
        ({"model": 3}, TypeError, "`model` must be a fitted GeST, the folder of one or its hub id; got int"),
        ({"model": "no such folder"}, FileNotFoundError, "There is no folder 'no such folder'. Give the"),
        ({"model": "m", "save": "s"}, ValueError, "`save` keeps a model that is trained here"),
        ({"key_added": "a/b"}, ValueError, "`key_added` must be a name without '/'"),
        ({"train_on": []}, ValueError, "`train_on` is empty"),
        ({"expression": "raw"}, ValueError, "`expression` must be one of 'counts', 'log'; got 'raw'"),
        ({"layer": "no"}, KeyError, r"layers\['no'\] does not exist"),
        ({"library_key": "no"}, KeyError, r"obs\['no'\] does not exist"),
    ],
    ids=str,
)
def test_a_call_that_makes_no_sense_is_refused(how, kind, message, new):
    before = new.copy()
    for call in (
        lambda: stg.tl.gest_niche_embed(new, **how),
        lambda: stg.tl.gest_generate(new, mask=np.arange(N) < 5, **how),
    ):
        with pytest.raises(kind, match=message):
            call()
    assert not unchanged(before, new)


def test_a_readout_or_gene_that_does_not_exist_is_refused(model, new):
    with pytest.raises(ValueError, match="`readout` must be one of 'weighted', 'picked'; got 'mean'"):
        stg.tl.gest_generate(new, mask=hole(new), model=model, readout="mean")
    with pytest.raises(ValueError, match=r"must be among the 12 of the model, .* 1 of 2 are not: EPCAM"):
        stg.tl.gest_generate(new, mask=hole(new), model=model, genes=["gene_003", "EPCAM"])
    with pytest.raises(ValueError, match="`genes` are for training"):
        stg.tl.gest_niche_embed(new, model=model, genes=["gene_003"])


def test_another_kind_of_expression_than_the_model_knows_is_refused(model, new):
    with pytest.raises(ValueError, match=r"was fitted on `expression='counts'`; got 'log'"):
        stg.tl.gest_niche_embed(new, model=model, expression="log")


def test_a_generation_is_no_niche_embedding(model, new):
    stg.tl.gest_generate(new, mask=hole(new), model=model, key_added="mine")
    with pytest.raises(ValueError, match=r"uns\['mine'\] exists and is not a niche embedding"):
        stg.tl.gest_niche_embed(new, model=model, key_added="mine")


def test_a_taken_folder_is_refused_before_training(folder, new):
    with pytest.raises(FileExistsError, match=r"already holds a model\. Choose another folder for `save`"):
        stg.tl.gest_niche_embed(new, save=folder, **FAST)


def test_a_folder_of_another_model_is_refused(new, tmp_path):
    adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=30, n_genes=8)
    stg.models.GenAR.setup_anndata(adata)
    other = stg.models.GenAR(adata, width=16, n_layers=1, n_heads=2)
    other.save(tmp_path / "genar")
    with pytest.raises(ValueError, match="holds a GenAR, not a GeST"):
        stg.tl.gest_niche_embed(new, model=tmp_path / "genar")


def test_a_failed_training_changes_nothing(train, new, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    before_train, before = train.copy(), new.copy()
    monkeypatch.setattr(stg.models.GeST, "train", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stg.tl.gest_niche_embed(new, train_on=train, **FAST)
    assert not unchanged(before, new)
    assert not unchanged(before_train, train)


# new places --------------------------------------------------------------------------------------------------


def test_new_places_become_an_anndata_and_nothing_else_changes(model, new):
    before = new.copy()
    xy = new.obsm[_keys.SPATIAL][:5] + 3.0
    made = stg.tl.gest_generate(new, places=xy, model=model)
    assert not unchanged(before, new)
    assert made.shape == (5, 12)
    np.testing.assert_array_equal(made.X, model.generate(before, places=xy).X)
    np.testing.assert_array_equal(made.obsm[_keys.SPATIAL], xy)
    assert set(made.obs[_keys.LIBRARY]) == {"s3"}
    assert (made.obs["gest_round"] == 1).all()
    assert made.uns["gest"]["n_generated"] == 5
    assert "gest" not in new.uns


def test_new_places_are_in_the_section_that_is_named(model, tissue, tmp_path):
    adata = section(tissue, "s2", "s3")
    xy = adata.obsm[_keys.SPATIAL][:3] + 3.0
    made = stg.tl.gest_generate(adata, places=xy, sections=["s2", "s3", "s2"], model=model, genes="gene_005")
    assert list(made.obs[_keys.LIBRARY]) == ["s2", "s3", "s2"]
    assert list(made.var_names) == ["gene_005"]
    made.write_h5ad(tmp_path / "made.h5ad")
    with pytest.raises(
        ValueError, match=r"`sections` must name the section of the places; there are 2: s2, s3"
    ):
        stg.tl.gest_generate(adata, places=xy, model=model)
    with pytest.raises(ValueError, match="one of s2, s3; got 3 names, such as s9"):
        stg.tl.gest_generate(adata, places=xy, sections="s9", model=model)


def test_places_far_from_any_cell_are_generated_and_flagged(model, new):
    with pytest.warns(UserWarning, match="1 of the 2 cells to generate have no seen cell within reach"):
        made = stg.tl.gest_generate(new, places=[new.obsm[_keys.SPATIAL][0] + 1, [9e4, 9e4]], model=model)
    assert list(made.obs["gest_isolated"]) == [False, True]
    assert np.isfinite(made.X).all()


@pytest.mark.parametrize(
    "places", [[[0.0, np.nan]], [1.0, 2.0], np.zeros((0, 2))], ids=["nan", "flat", "none"]
)
def test_places_that_are_none_are_refused(places, model, new):
    with pytest.raises(ValueError, match="`places` must be finite coordinates in µm, places × 2"):
        stg.tl.gest_generate(new, places=places, model=model)


def test_a_mask_or_places_are_needed_and_not_both(model, new):
    for which in ({}, {"mask": hole(new), "places": np.zeros((1, 2))}):
        with pytest.raises(ValueError, match="with `mask`, or give new `places`, and not both"):
            stg.tl.gest_generate(new, model=model, **which)


def test_without_interpolation_the_network_speaks_alone(model, new):
    mask = hole(new)
    stg.tl.gest_generate(new, mask=mask, model=model, interpolate=False)
    np.testing.assert_array_equal(
        new.layers["gest"][mask], model.generate(new, mask=mask, interpolate=False).X
    )
    assert new.uns["gest"]["surface_share"] == 0
