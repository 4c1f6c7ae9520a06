"""The conversation between AnnData, networks and files, on the smallest model that has all its parts."""

from __future__ import annotations

import json
import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stgen import _keys, settings

from .conftest import N_GENES, linear_model, make_tissue


@pytest.fixture(scope="module")
def keep():
    """A fitted model and its data, which tests must not change."""
    linear, tissue = linear_model(), make_tissue()
    linear.Model.setup_anndata(tissue, **linear.keys)
    model = linear.Model(tissue)
    model.train(5, lr=0.05, progress_bar=False)
    return model, tissue, model.predict()


def set_up(linear, tissue, **changes):
    linear.Model.setup_anndata(tissue, **{**linear.keys, **changes})
    return linear.Model(tissue)


def inputs_only(adata):
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm=dict(adata.obsm), uns={})


# setting up -------------------------------------------------------------------------------------------------


def test_only_two_marks_are_left(linear, tissue):
    before = tissue.copy()
    set_up(linear, tissue)
    assert set(tissue.uns) - set(before.uns) == set(_keys.SETUP_MARKS)
    assert list(tissue.obs) == list(before.obs)


def test_marks_can_be_taken_back(linear, tissue):
    from stgen.models._base import remove_setup_marks, setup_marks

    before = setup_marks(tissue)
    model = set_up(linear, tissue)
    uuid = tissue.uns[_keys.SETUP_MARKS[0]]
    remove_setup_marks(tissue, before)
    assert not set(_keys.SETUP_MARKS) & set(tissue.uns)
    assert uuid not in linear.Model._setup_adata_manager_store, "the object is not kept alive"
    model.train(1, progress_bar=False)  # the model goes on with its data


def test_marks_of_others_are_put_back(linear, tissue):
    from stgen.models._base import remove_setup_marks, setup_marks

    linear.Model.setup_anndata(tissue, **linear.keys)
    before = setup_marks(tissue)
    linear.Model.setup_anndata(tissue)
    remove_setup_marks(tissue, before)
    assert setup_marks(tissue) == before


def test_without_data_a_model_says_what_to_do(linear):
    with pytest.raises(
        ValueError, match=r"LinearCounts needs data .*`LinearCounts.setup_anndata\(adata\)`, then"
    ):
        linear.Model()


def test_data_that_was_not_set_up_is_refused(linear, tissue):
    with pytest.raises(ValueError, match=r"set up your AnnData with LinearCounts\.setup_anndata first"):
        linear.Model(tissue)


def test_a_copy_after_set_up_is_refused(linear, tissue):
    linear.Model.setup_anndata(tissue)
    with pytest.raises(ValueError, match="Did you make a copy"):
        linear.Model(tissue.copy())


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_every_layout_of_counts_learns_the_same(linear, keep, layout):
    tissue = make_tissue(layout=layout)
    model = set_up(linear, tissue)
    model.train(5, lr=0.05, progress_bar=False)
    np.testing.assert_array_equal(model.predict(), keep[2])


def test_a_layer_can_hold_the_counts(linear, keep):
    tissue = make_tissue()
    tissue.layers["raw"], tissue.X = tissue.X, sparse.csr_matrix(np.log1p(tissue.X.toarray()))
    with pytest.raises(ValueError, match="X must hold counts"):
        linear.Model.setup_anndata(tissue, **linear.keys)
    model = set_up(linear, tissue, layer="raw")
    model.train(5, lr=0.05, progress_bar=False)
    np.testing.assert_array_equal(model.predict(), keep[2])


def test_a_view_becomes_data_of_its_own(linear, tissue):
    view = tissue[:100]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = set_up(linear, view, split_key=None)
    assert not view.is_view
    assert not set(_keys.SETUP_MARKS) & set(tissue.uns)
    model.train(1, progress_bar=False)
    assert len(model.predict()) == 100


def test_a_backed_file_works(linear, keep, tmp_path):
    tissue = make_tissue()
    tissue.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    model = set_up(linear, backed)
    model.train(5, lr=0.05, progress_bar=False)
    np.testing.assert_array_equal(model.predict(), keep[2])
    assert backed.isbacked
    with pytest.raises(ValueError, match=r"view of a backed AnnData.*adata.to_memory\(\)"):
        linear.Model.setup_anndata(backed[:50], **linear.keys)
    backed.file.close()


def test_bad_data_is_refused_at_set_up(linear, tissue):
    with pytest.raises(ValueError, match="At least 2 spots are needed; this AnnData has 1"):
        linear.Model.setup_anndata(tissue[:1].copy())
    with pytest.raises(ValueError, match="At least 2 genes are needed; this AnnData has 1"):
        linear.Model.setup_anndata(tissue[:, :1].copy(), **linear.keys)
    tissue.obs_names = ["x"] * tissue.n_obs
    with pytest.raises(ValueError, match="Spot names must be unique"):
        linear.Model.setup_anndata(tissue)


def test_a_patient_on_both_sides_of_the_split_is_named(linear):
    tissue = make_tissue()
    tissue.obs[_keys.PATIENT] = "p7"
    with pytest.warns(UserWarning, match="Patient p7 is in both 'train' and 'test'"):
        linear.Model.setup_anndata(tissue, **linear.keys)


def test_validation_rows_may_be_of_training_patients(linear, recwarn):
    """They only choose when to stop; blocks within the training sections are the recommended way."""
    tissue = make_tissue()
    split = tissue.obs[_keys.SPLIT].astype(str)
    tissue.obs[_keys.PATIENT] = np.where(split == _keys.TEST, "new", "known")
    linear.Model.setup_anndata(tissue, **linear.keys)
    assert not [w for w in recwarn if "Patient" in str(w.message)]


# building ---------------------------------------------------------------------------------------------------


def test_config_preset_and_changes_meet_in_one_config(linear, tissue):
    linear.Model.setup_anndata(tissue)
    assert linear.Model(tissue).config == linear.Config()
    assert linear.Model(tissue, dropout=0.5).config == linear.Config(dropout=0.5)
    assert linear.Model(tissue, linear.Config(dropout=0.1), n_neighbors=0).config.n_neighbors == 0
    assert linear.Model(tissue, preset="flat", dropout=0.2).config == linear.Config(
        n_neighbors=0, dropout=0.2
    )


def test_mistakes_in_the_config_are_named(linear, tissue):
    linear.Model.setup_anndata(tissue)
    with pytest.raises(
        TypeError, match="LinearCounts has no option 'widht'; it has n_neighbors, dropout, scales"
    ):
        linear.Model(tissue, widht=3)
    with pytest.raises(ValueError, match="`preset` must be one of 'flat'; got 'huge'"):
        linear.Model(tissue, preset="huge")
    with pytest.raises(ValueError, match="Give `config` or `preset`, not both"):
        linear.Model(tissue, linear.Config(), preset="flat")
    with pytest.raises(TypeError, match="`config` must be a LinearConfig; got dict"):
        linear.Model(tissue, {"dropout": 0.1})
    with pytest.raises(ValueError, match="`dropout` must be in"):
        linear.Model(tissue, dropout=2.0)


def test_initial_weights_follow_the_seed(linear, tissue, monkeypatch):
    linear.Model.setup_anndata(tissue)

    def weight(**keywords):
        return linear.Model(tissue, **keywords).module.linear.weight

    assert torch.equal(weight(random_state=3), weight(random_state=3))
    assert not torch.equal(weight(random_state=3), weight(random_state=4))
    monkeypatch.setattr(settings, "random_state", 3)
    assert torch.equal(weight(), weight(random_state=3))


def test_a_model_introduces_itself(linear, tissue, keep):
    model = set_up(linear, tissue)
    assert repr(model) == f"LinearCounts: 5 features, {N_GENES} genes, 77 parameters, not fitted"
    assert repr(keep[0]).endswith("77 parameters, fitted on 128 spots in 5 epochs (epoch 5 kept)")
    assert model.summary_string == repr(model)


# training ---------------------------------------------------------------------------------------------------


def test_history_is_what_scvi_users_expect(keep):
    history = keep[0].history
    assert {"train_loss", "validation_loss", "train_poisson", "validation_poisson", "lr"} == set(history)
    frame = history["validation_loss"]
    assert list(frame.columns) == ["validation_loss"]
    assert frame.index.name == "epoch"
    assert frame.index.tolist() == [0, 1, 2, 3, 4]


def test_the_model_card_names_what_it_was_fitted_on(keep):
    card = keep[0].card
    assert card["training_sections"] == ["s0", "s1"]
    assert card["training_patients"] == ["p0"]
    assert card["n_training_spots"] == 128
    assert card["options"]["max_epochs"] == 5


def test_rows_of_the_split_are_known_afterwards(keep):
    model, tissue, _ = keep
    assert (tissue.obs[_keys.SPLIT].iloc[model.train_indices] == _keys.TRAIN).all()
    assert (tissue.obs[_keys.SPLIT].iloc[model.validation_indices] == _keys.VALIDATION).all()
    assert len(model.test_indices) == 64


def test_preparation_reads_training_rows_only(keep):
    model, tissue, _ = keep
    mean = tissue[tissue.obs[_keys.SPLIT] == _keys.TRAIN].X.toarray().mean(0)
    np.testing.assert_allclose(model.module.offset.numpy(), np.log(mean + 0.1), rtol=1e-5)


def test_without_a_split_one_line_says_what_happens(linear, tissue, caplog):
    model = set_up(linear, tissue, split_key=None)
    with caplog.at_level(logging.INFO, logger="stgen"):
        model.train(3, progress_bar=False)
    (record,) = caplog.records
    assert record.getMessage() == (
        "No `split_key` was given, so training runs a fixed number of epochs without early stopping."
    )
    assert len(model.history["train_loss"]) == 3
    assert "validation_loss" not in model.history


def test_a_training_that_fails_leaves_the_model_unfitted(linear, tissue, monkeypatch):
    model = set_up(linear, tissue)
    model.train(1, progress_bar=False)
    monkeypatch.setattr(model.module, "loss", lambda batch, generator=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.train(1, progress_bar=False)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.predict()


class Impatience:
    """Ctrl-C at the ``n``-th time that a function is called."""

    def __init__(self, n, function):
        self.n, self.function = n, function

    def __call__(self, *args, **kwargs):
        self.n -= 1
        if not self.n:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


def test_an_interrupted_training_leaves_a_model_that_can_be_used(linear, tissue, tmp_path):
    model = set_up(linear, tissue)
    model.module.loss = Impatience(14, model.module.loss)
    with (
        pytest.warns(
            UserWarning, match=r"interrupted in epoch 3; the model keeps the weights of epoch 2 and can"
        ),
        pytest.raises(KeyboardInterrupt),
    ):
        model.train(
            9, batch_size=32, early_stopping=False, progress_bar=False, checkpoint_dir=tmp_path / "state"
        )
    assert model.is_trained_
    assert len(model.history_["train_loss"]) == 2
    assert model.card["n_epochs"] == 2
    answer = model.predict()
    assert np.isfinite(answer).all()
    model.save(tmp_path / "model")
    np.testing.assert_allclose(linear.Model.load(tmp_path / "model").predict(tissue), answer)


def test_the_checkpoint_of_an_interrupted_training_goes_on(linear, tmp_path):
    whole, stopped, resumed = (set_up(linear, make_tissue()) for _ in range(3))
    whole.train(4, batch_size=32, progress_bar=False)
    stopped.module.loss = Impatience(14, stopped.module.loss)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        stopped.train(4, batch_size=32, progress_bar=False, checkpoint_dir=tmp_path)
    resumed.train(resume_from=tmp_path, progress_bar=False)
    np.testing.assert_array_equal(resumed.predict(), whole.predict())


def test_interrupted_before_an_epoch_is_finished_the_model_says_it_is_not_fitted(linear, tissue):
    model = set_up(linear, tissue)
    model.module.loss = Impatience(2, model.module.loss)
    with pytest.raises(KeyboardInterrupt, match="the model is not fitted"):
        model.train(3, batch_size=32, progress_bar=False)
    with pytest.raises(RuntimeError, match="not fitted, so it cannot predict"):
        model.predict()


def test_interrupted_in_its_last_step_the_model_is_not_fitted(linear, tissue, monkeypatch):
    """What is read off a trained network is not there yet."""
    model = set_up(linear, tissue)
    monkeypatch.setattr(linear.Model, "_finish", Impatience(1, None).__call__)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, progress_bar=False)
    assert not model.is_trained_


def test_a_model_without_an_example_says_so():
    from stgen.models import STModel

    with pytest.raises(
        NotImplementedError, match=r"STModel brings no example; see `stgen\.testing\.Example`"
    ):
        STModel.example()


def test_early_stopping_without_validation_rows_is_refused(linear, tissue):
    tissue.obs[_keys.SPLIT] = _keys.TRAIN
    model = set_up(linear, tissue, patient_key=None)
    with pytest.raises(
        ValueError, match=r"Early stopping needs validation rows, and obs\['split'\] has no 'validation' row"
    ):
        model.train(3, early_stopping=True)


def test_training_again_goes_on(linear, tissue):
    model = set_up(linear, tissue)
    model.train(3, lr=0.05, progress_bar=False)
    offset, weight = model.module.offset.clone(), model.module.linear.weight.detach().clone()
    model.train(2, lr=0.05, progress_bar=False)
    assert torch.equal(offset, model.module.offset), "preparation happens once"
    assert not torch.equal(weight, model.module.linear.weight)
    assert model.history["train_loss"].index.tolist() == [0, 1, 2, 3, 4]


def test_several_devices_are_refused(linear, tissue):
    with pytest.raises(ValueError, match="several devices is not built yet"):
        set_up(linear, tissue).train(1, accelerator="cpu", devices=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_device_that_is_not_there_is_named_by_training_and_by_loading(linear, keep, tmp_path):
    model, _, _ = keep
    with pytest.raises(ValueError, match=r"`accelerator='gpu'` is not there. Here is the CPU only"):
        model.train(1, accelerator="gpu")
    assert model.is_trained_
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="no GPU with number 7"):
        linear.Model.load(tmp_path / "m", device=7)


def test_the_seed_of_training_defaults_to_the_settings(linear, tissue, monkeypatch):
    monkeypatch.setattr(settings, "random_state", 11)
    assert set_up(linear, tissue).training_defaults.random_state == 11


# resuming ---------------------------------------------------------------------------------------------------


def test_resuming_asks_for_the_same_model_data_and_options(linear, tissue, tmp_path):
    model = set_up(linear, tissue)
    model.train(2, lr=0.05, progress_bar=False, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"with another config \(`dropout` was 0.0, is 0.3\)"):
        linear.Model(tissue, dropout=0.3).train(resume_from=tmp_path, progress_bar=False)
    with pytest.raises(ValueError, match=r"A resumed training keeps its options: `lr` was 0.05; got 0.1"):
        linear.Model(tissue).train(lr=0.1, resume_from=tmp_path, progress_bar=False)
    smaller = tissue[:, :5].copy()
    with pytest.raises(ValueError, match=r"with another widths \(`n_genes` was 7, is 5\)"):
        set_up(linear, smaller).train(resume_from=tmp_path, progress_bar=False)
    renamed = tissue.copy()
    renamed.var_names = [f"H{g}" for g in range(N_GENES)]
    with pytest.raises(ValueError, match=r"with another genes \(7 there, 7 here, 'H0' is new\)"):
        set_up(linear, renamed).train(resume_from=tmp_path, progress_bar=False)
    with pytest.raises(ValueError, match="holds a training on other rows"):
        set_up(linear, tissue, split_key=None).train(resume_from=tmp_path, progress_bar=False)
    with pytest.raises(FileNotFoundError, match=r"holds no training\.json"):
        (tmp_path / "empty").mkdir()
        linear.Model(tissue).train(resume_from=tmp_path / "empty", progress_bar=False)


def test_more_epochs_can_be_asked_for_when_resuming(linear, tissue, tmp_path):
    set_up(linear, tissue).train(2, progress_bar=False, checkpoint_dir=tmp_path)
    model = linear.Model(tissue)
    model.train(5, progress_bar=False, resume_from=tmp_path)
    assert len(model.history["train_loss"]) == 5


def test_checkpoints_are_as_rare_as_asked(linear, tissue, tmp_path):
    set_up(linear, tissue).train(5, progress_bar=False, checkpoint_dir=tmp_path, checkpoint_every=2)
    assert json.loads((tmp_path / "training.json").read_text())["training"]["epoch"] == 5
    assert len(list(tmp_path.iterdir())) == 2


# applying ---------------------------------------------------------------------------------------------------


def test_an_unfitted_model_explains_itself(linear, tissue):
    with pytest.raises(
        RuntimeError, match=r"This LinearCounts is not fitted, so it cannot predict\. Call `train\(\)`"
    ):
        set_up(linear, tissue).predict()


def test_a_slide_without_genes_is_predicted_and_left_unmarked(keep):
    model, tissue, expected = keep
    bare = inputs_only(tissue)
    bare.obs[_keys.LIBRARY] = tissue.obs[_keys.LIBRARY]
    np.testing.assert_array_equal(model.predict(bare), expected)
    assert dict(bare.uns) == {}
    assert bare.X is None


def test_one_new_section_needs_no_section_column(keep):
    model, tissue, expected = keep
    rows = np.flatnonzero(tissue.obs[_keys.LIBRARY] == "s3")
    np.testing.assert_allclose(model.predict(inputs_only(tissue[rows])), expected[rows], rtol=1e-5)


def test_a_single_spot_is_predicted(keep):
    model, tissue, _ = keep
    assert model.predict(inputs_only(tissue[:1])).shape == (1, N_GENES)


def test_batches_come_in_order_and_can_be_chosen(keep):
    model, tissue, _ = keep
    whole = [batch["index"] for batch in model._batches(batch_size=100)]
    assert torch.equal(torch.cat(whole), torch.arange(256))
    assert [len(part) for part in whole] == [100, 100, 56]
    chosen = next(iter(model._batches(tissue, indices=[5, 3], targets=True)))
    assert chosen["index"].tolist() == [5, 3]
    np.testing.assert_array_equal(chosen["counts"], tissue.X[[5, 3]].toarray())
    mask = np.zeros(256, dtype=bool)
    mask[[7, 9]] = True
    assert next(iter(model._batches(indices=mask)))["index"].tolist() == [7, 9]
    with pytest.raises(ValueError, match="for each of the 256 spots; got bool of shape"):
        next(iter(model._batches(indices=[True, False, True])))
    with pytest.raises(IndexError, match=r"`indices` must be in 0…255; got 0 to 256"):
        next(iter(model._batches(indices=[0, 256])))


def test_targets_are_aligned_by_name(keep):
    model, tissue, _ = keep
    batch = next(iter(model._batches(tissue[:, ::-1], targets=True, batch_size=9)))
    np.testing.assert_array_equal(batch["counts"], tissue.X[:9].toarray())
    with pytest.raises(
        ValueError, match="7 genes are expected and 2 of them are not in this AnnData, such as G5, G6"
    ):
        next(iter(model._batches(tissue[:, :5], targets=True)))


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (
            lambda a: a.obsm.pop(_keys.HISTOLOGY),
            KeyError,
            r"obsm\['X_histology'\] does not exist; obsm has \['spatial'\]",
        ),
        (
            lambda a: a.obsm.update({_keys.HISTOLOGY: np.ones((256, 3))}),
            ValueError,
            "must have the 5 features .* it has 3",
        ),
        (
            lambda a: a.uns.update({_keys.HISTOLOGY_PARAMS: {"encoder": "other"}}),
            ValueError,
            "encoder 'random/v1'",
        ),
        (lambda a: a.obsm.update({_keys.SPATIAL: a.obsm[_keys.SPATIAL] * 1e3}), ValueError, "must be in µm"),
        (lambda a: a.obsm.update({_keys.SPATIAL: np.ones((256, 4))}), ValueError, "must be spots × 2"),
    ],
)
def test_unfit_inputs_are_refused_at_prediction(keep, break_it, error, message):
    model, tissue, _ = keep
    other = tissue.copy()
    break_it(other)
    with pytest.raises(error, match=message):
        model.predict(other)


def test_new_data_can_take_the_place_of_the_old(keep, linear, tissue):
    model = set_up(linear, make_tissue())
    model.train(1, progress_bar=False)
    model.adata = tissue[:100]
    assert len(model.predict()) == 100
    assert not set(_keys.SETUP_MARKS) & set(tissue.uns)


# saving -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(keep, tmp_path):
    keep[0].save(tmp_path / "m")
    return tmp_path / "m"


def test_a_saved_model_comes_back_whole(keep, saved, linear):
    model, tissue, expected = keep
    loaded = linear.Model.load(saved)
    assert repr(loaded) == repr(model)
    assert loaded.config == model.config
    assert loaded.card == model.card
    assert loaded.genes == model.genes
    assert loaded.module.order == model.module.order
    assert loaded.preset == model.preset
    for name, frame in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], frame)
    np.testing.assert_array_equal(loaded.predict(tissue), expected)
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".safetensors"]


def test_loaded_without_data_it_asks_for_some(saved, linear):
    with pytest.raises(
        ValueError, match="This LinearCounts was loaded without data; say which with `adata=`"
    ):
        linear.Model.load(saved).predict()


def test_loaded_with_data_it_predicts_and_trains_on_them(keep, saved, linear):
    tissue = make_tissue()
    loaded = linear.Model.load(saved, tissue)
    np.testing.assert_array_equal(loaded.predict(), keep[2])
    loaded.train(1, progress_bar=False)
    assert not set(_keys.SETUP_MARKS) & set(tissue.uns)


def test_loading_checks_the_data_it_is_given(saved, linear, tissue):
    tissue.obsm[_keys.HISTOLOGY] = np.ones((256, 2))
    with pytest.raises(ValueError, match="must have the 5 features"):
        linear.Model.load(saved, tissue)


def test_an_untrained_model_can_be_saved(linear, tissue, tmp_path):
    set_up(linear, tissue).save(tmp_path / "m")
    loaded = linear.Model.load(tmp_path / "m", tissue)
    with pytest.raises(RuntimeError, match="not fitted"):
        loaded.predict()
    loaded.train(1, progress_bar=False)


def test_nothing_is_overwritten_unasked(keep, saved):
    with pytest.raises(
        FileExistsError, match=r"already holds a model\. Choose another folder, or say `overwrite=True`"
    ):
        keep[0].save(saved)
    (saved / "notes.txt").write_text("mine")
    keep[0].save(saved, overwrite=True)
    assert (saved / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file; a folder is expected"):
        keep[0].save(saved / "notes.txt")


def test_a_checkpoint_of_another_model_is_named(saved, linear):
    class Other(linear.Model):
        pass

    with pytest.raises(
        ValueError, match=r"holds a LinearCounts, not a Other\. Load it with `LinearCounts.load`"
    ):
        Other.load(saved)


def test_a_damaged_model_is_refused(saved, linear):
    (tensors,) = saved.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or was changed"):
        linear.Model.load(saved)


def test_loading_unpickles_nothing(saved, linear, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    linear.Model.load(saved)


def test_a_written_tissue_with_marks_can_be_read_back(linear, tissue, tmp_path):
    set_up(linear, tissue)
    tissue.write_h5ad(tmp_path / "a.h5ad")
    set_up(linear, ad.read_h5ad(tmp_path / "a.h5ad"))


def test_the_registry_can_be_looked_at_without_the_model(saved, linear):
    registry = linear.Model.load_registry(saved)
    assert registry["model_name"] == "LinearCounts"
    assert registry["field_registries"]["counts"]["state_registry"]["n_genes"] == N_GENES


def test_sharing_goes_through_the_same_files(keep, linear, monkeypatch, tmp_path):
    """The hub is played by a folder: what is uploaded is what comes down."""
    import shutil
    from types import SimpleNamespace

    from stgen.models import _base

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")

    hub = SimpleNamespace(HfApi=Api, snapshot_download=lambda repo_id, **keywords: str(tmp_path / "hub"))
    monkeypatch.setattr(_base, "_hub", lambda: hub)
    keep[0].push_to_hub("someone/model", token="t")
    assert calls == [("token", "t"), ("someone/model", False, True)]
    loaded = linear.Model.from_pretrained("someone/model")
    np.testing.assert_array_equal(loaded.predict(keep[1]), keep[2])


def test_sharing_an_unfitted_model_is_refused(linear, tissue):
    with pytest.raises(RuntimeError, match="not fitted, so it cannot be shared"):
        set_up(linear, tissue).push_to_hub("someone/model")


def test_a_missing_hub_package_names_the_extra(monkeypatch):
    import sys

    from stgen.models import _base

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "stgen\[hub\]"'):
        _base._hub()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_learns_the_same(linear, keep):
    tissue = make_tissue()
    model = set_up(linear, tissue)
    model.train(5, lr=0.05, progress_bar=False, accelerator="gpu")
    assert model.device.type == "cuda"
    np.testing.assert_allclose(model.predict(), keep[2], rtol=1e-3)
