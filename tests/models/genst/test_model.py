"""GenST on AnnData: phases in its history, what it answers, and that no answer knows its neighbours in the batch."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys

TINY = {"n_tokens": 3, "token_width": 2, "n_codes": 6, "n_image_tokens": 3, "n_image_codes": 6, "hidden": 12}
SHORT = {"max_epochs": 6, "batch_size": 16, "accelerator": "cpu"}
KEYS = {"library_key": _keys.LIBRARY, "patient_key": _keys.PATIENT, "split_key": _keys.SPLIT}
N_ALONE = 2  # of six epochs, by the default share


def make_tissue(**changes):
    """Four sections of four patients, two of them for training."""
    small = {"n_sections": 4, "n_patients": 4, "spots_per_section": 49, "n_genes": 12, "panel_total": 150.0}
    adata = stg.datasets.toy_tissue(**{**small, **changes})
    roles = {"s1": _keys.TRAIN, "s2": _keys.TRAIN, "s3": _keys.VALIDATION, "s4": _keys.TEST}
    adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
    return adata


def build(adata, *, setup=KEYS, **changes):
    stg.models.GenST.setup_anndata(adata, **setup)
    return stg.models.GenST(adata, random_state=0, **{**TINY, **changes})


def fit(adata, *, setup=KEYS, train=SHORT, **changes):
    model = build(adata, setup=setup, **changes)
    model.train(**train)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def fitted(tissue):
    return fit(tissue.copy())


@pytest.fixture(scope="module")
def section(tissue):
    """The test section."""
    return tissue[tissue.obs[_keys.SPLIT] == _keys.TEST].copy()


def bare(adata):
    """What a section without measured genes has."""
    inputs = {key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.HISTOLOGY)}
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm=inputs)


def state(model):
    return {name: value.numpy().copy() for name, value in model.module.state_dict().items()}


def assert_same_state(a, b):
    for name, value in state(a).items():
        np.testing.assert_array_equal(value, state(b)[name], err_msg=name)


# phases ------------------------------------------------------------------------------------------------------


def test_the_history_tells_the_phases(fitted):
    phase = fitted.history["phase"]["phase"]
    assert phase.tolist() == [1] * N_ALONE + [2] * 4
    assert list(fitted.history["train_tokens"].index) == list(range(N_ALONE, 6))
    assert list(fitted.history["train_expression"].index) == list(range(6))
    assert list(fitted.history["validation_tokens"].index) == list(range(6))


def scored_by_epoch(model, monkeypatch, scores):
    """Validation answers these losses, epoch by epoch, whatever the network says."""
    from stgen.train._plan import LossSum

    means = LossSum.means

    def told(self):
        found = means(self)
        if found and not model.module.training:
            found["loss"] = scores.pop(0)
        return found

    monkeypatch.setattr(LossSum, "means", told)


def test_the_epoch_to_keep_is_chosen_among_those_of_the_last_phase(tissue, monkeypatch):
    model = build(tissue.copy())
    scored_by_epoch(model, monkeypatch, [0.0, 0.1, 5.0, 3.0, 4.0, 6.0])
    model.train(**SHORT)
    assert model.history["validation_loss"]["validation_loss"].tolist() == [0.0, 0.1, 5.0, 3.0, 4.0, 6.0]
    assert model.card["best_epoch"] == 3


def test_training_never_stops_early_while_autoencoders_are_alone(tissue, monkeypatch):
    model = build(tissue.copy(), alone=0.5)
    scored_by_epoch(model, monkeypatch, [0.0, 1.0, 2.0, 3.0, 4.0, 3.5, 6.0, 7.0, 8.0, 9.0])
    model.train(**{**SHORT, "max_epochs": 10}, patience=1)
    assert model.history["phase"]["phase"].tolist() == [1] * 5 + [2] * 2
    assert model.card["best_epoch"] == 5


def test_resumed_in_any_phase_training_ends_as_if_it_had_never_stopped(tissue, tmp_path, monkeypatch):
    whole = fit(tissue.copy())

    class StopError(Exception):
        pass

    for n_epochs in (1, N_ALONE, N_ALONE + 1):  # inside the first phase, at its end, after it
        model = build(tissue.copy())
        checkpointer = model._checkpointer

        def stops_there(*args, checkpointer=checkpointer, n_epochs=n_epochs):
            keep = checkpointer(*args)

            def keep_and_stop(plan):
                keep(plan)
                if plan.state.epoch == n_epochs:
                    raise StopError

            return keep_and_stop

        monkeypatch.setattr(model, "_checkpointer", stops_there)
        folder = tmp_path / str(n_epochs)
        with pytest.raises(StopError):
            model.train(**SHORT, checkpoint_dir=folder)
        resumed = build(tissue.copy())
        resumed.train(resume_from=folder, accelerator="cpu")
        assert_same_state(resumed, whole)
        assert resumed.history["phase"].equals(whole.history["phase"])


# nothing leaks -----------------------------------------------------------------------------------------------


def poisoned(adata, side, *, histology=True):
    other = adata.copy()
    rows = np.flatnonzero(other.obs[_keys.SPLIT] == side)
    counts = other.X.toarray() if hasattr(other.X, "toarray") else np.array(other.X)
    counts[rows] = 7 * counts[rows][:, ::-1] + 300
    other.X = counts.astype(np.float32)
    if histology:
        features = np.array(other.obsm[_keys.HISTOLOGY])
        features[rows] = 50 * np.random.default_rng(0).normal(size=features[rows].shape)
        other.obsm[_keys.HISTOLOGY] = features.astype(np.float32)
    return other


@pytest.mark.parametrize("n_epochs", [1, 2, 6])
def test_test_rows_leave_no_trace_in_any_phase_or_in_the_calibration(tissue, n_epochs):
    """Weights, codes, experts, bias, dispersion and the largest count: all of it, to the last bit."""
    train = {**SHORT, "max_epochs": n_epochs}
    changes = {"alone": 0.9} if n_epochs == 2 else {}
    clean = fit(tissue.copy(), train=train, **changes)
    assert_same_state(clean, fit(poisoned(tissue, _keys.TEST), train=train, **changes))


def test_test_rows_leave_no_trace_in_what_prepare_finds(tissue, monkeypatch):
    import stgen.models._base as base

    class DoneError(Exception):
        pass

    def stop(*args, **kwargs):
        raise DoneError

    monkeypatch.setattr(base, "fit", stop)
    found = []
    for adata in (tissue.copy(), poisoned(tissue, _keys.TEST), poisoned(tissue, _keys.VALIDATION)):
        model = build(adata)
        with pytest.raises(DoneError):
            model.train(**SHORT)
        found.append(model)
    assert found[0].module.expression.books.codes.any()
    assert_same_state(found[0], found[1])
    assert_same_state(found[0], found[2])


def test_validation_rows_leave_no_trace_at_a_fixed_number_of_epochs(tissue):
    train = {**SHORT, "early_stopping": False}
    clean = fit(tissue.copy(), train=train)
    assert_same_state(clean, fit(poisoned(tissue, _keys.VALIDATION), train=train))


# inputs ------------------------------------------------------------------------------------------------------


def test_histology_and_places_suffice(fitted, section):
    alone = bare(section)
    prediction = fitted.predict(alone)
    assert list(prediction.columns) == fitted.genes
    assert list(prediction.index) == list(section.obs_names)
    pd.testing.assert_frame_equal(prediction, fitted.predict(section))
    for ask in (
        lambda data: fitted.predict(data, decode="code"),
        lambda data: fitted.predict(data, statistic="sd"),
        lambda data: fitted.embed(data),
        lambda data: fitted.codes(data, modality="translated"),
        lambda data: fitted.codes(data, modality="histology"),
    ):
        np.testing.assert_array_equal(np.asarray(ask(alone)), np.asarray(ask(section)))


ASKED = {
    "soft": {},
    "code": {"decode": "code"},
    "mean": {"statistic": "mean"},
    "median": {"statistic": "median"},
    "mode": {"statistic": "mode"},
    "sd": {"statistic": "sd"},
    "quantiles": {"quantiles": [0.1, 0.9]},
    "samples": {"n_samples": 3},
}


def as_rows(answer):
    """Spots first."""
    values = np.asarray(answer)
    return values if values.ndim == 2 else values.transpose(1, 0, 2)


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_depends_on_neither_batch_nor_order(fitted, section, name):
    """Of counts a few may change: a quantile of a distribution that sits on the level."""
    whole = as_rows(fitted.predict(section, **ASKED[name]))
    order = np.random.default_rng(0).permutation(section.n_obs)
    small = as_rows(fitted.predict(section, batch_size=7, **ASKED[name]))
    permuted = as_rows(fitted.predict(section[order], **ASKED[name]))
    for one, other in ((whole, small), (whole[order], permuted)):
        assert np.mean(~np.isclose(one, other, rtol=1e-3, atol=1e-3)) < 0.002


@pytest.mark.parametrize("name", ["sd", "quantiles", "samples"])
def test_draws_are_seeded(fitted, section, name):
    first, again, other = (
        np.asarray(fitted.predict(section, random_state=seed, **ASKED[name])) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_permuted_genes_of_other_data_mean_the_same(fitted, section):
    order = np.random.default_rng(0).permutation(section.n_vars)
    for modality in ("expression", "translated"):
        pd.testing.assert_frame_equal(
            fitted.codes(section, modality=modality), fitted.codes(section[:, order], modality=modality)
        )


# what it answers ---------------------------------------------------------------------------------------------


def test_the_default_decodes_the_expected_code_and_the_other_the_most_probable(fitted, section):
    import torch

    soft, code = fitted.predict(section), fitted.predict(section, decode="code")
    net, batch = fitted.module, next(fitted._batches(section))
    with torch.no_grad():
        said = net.translate(batch)
        np.testing.assert_allclose(soft, net.decode(net.expected_code(said)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(code, net.decode(net.nearest_code(said)), rtol=1e-4, atol=1e-4)
    assert not np.allclose(soft, code)
    best = fitted.codes(section, modality="translated").to_numpy()
    with torch.no_grad():
        made = net.decode(net.expression.books.look_up(torch.from_numpy(best)))
    np.testing.assert_allclose(code, made, rtol=1e-4, atol=1e-4)


def test_samples_have_the_mean_and_the_spread_that_are_told(fitted, section):
    """The expected code is decoded for the mean, codes are drawn for samples: both are brought right on training spots."""
    samples = fitted.predict(section, n_samples=200, random_state=3)
    assert (samples == np.round(samples)).all() and (samples >= 0).all()
    told = {"n_paths": 200, "random_state": 3}  # of the same codes and depths
    mean = fitted.predict(section, statistic="mean", **told).to_numpy()
    spread = fitted.predict(section, statistic="sd", **told).to_numpy()
    error = (samples.mean(0) - mean) / (spread / np.sqrt(200))
    assert np.abs(error).mean() < 1.0 and abs(error.mean()) < 0.3
    assert abs(np.median(samples.std(0) / spread) - 1) < 0.1
    expected = fitted.predict(section, statistic="mean").to_numpy()
    assert np.corrcoef(expected.ravel(), samples.mean(0).ravel())[0, 1] > 0.97


def test_distributions_sum_to_one_and_say_what_statistics_say(fitted, section):
    genes = fitted.genes[2:6]
    p = fitted.predict_distribution(section, genes=genes, n_paths=4, random_state=1)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-4)
    mean = fitted.predict(section, statistic="mean", n_paths=4, genes=genes, random_state=1)
    np.testing.assert_allclose(p @ np.arange(p.shape[-1]), mean, rtol=1e-3)


def test_cumulative_probabilities_bracket_the_observed_count(fitted, section):
    below, at_most = fitted.predict_cdf(section, n_paths=2)
    assert below.shape == at_most.shape == section.shape
    assert (below >= 0).all() and (at_most <= 1).all() and (below <= at_most).all()
    assert (below[section.X.toarray() == 0] == 0).all()


def test_answers_are_written_into_the_array_that_is_given(fitted, section):
    out = np.zeros(section.shape, dtype=np.float32)
    assert fitted.predict(section, out=out, batch_size=10) is out
    np.testing.assert_allclose(out, fitted.predict(section), rtol=1e-4, atol=1e-4)


def test_both_sides_are_embedded_in_one_space(fitted, section):
    image, expression = (fitted.embed(section, modality=m) for m in ("histology", "expression"))
    assert image.shape == expression.shape == (section.n_obs, 3 * 2)
    assert image.dtype == np.float32
    assert np.isfinite(image).all() and np.isfinite(expression).all()
    np.testing.assert_allclose(fitted.embed(section, batch_size=7), image, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("modality", ["expression", "translated", "histology"])
def test_codes_are_numbers_of_the_codebook(fitted, section, modality):
    codes = fitted.codes(section, modality=modality)
    assert list(codes.index) == list(section.obs_names)
    assert list(codes.columns) == ["token_1", "token_2", "token_3"]
    assert codes.to_numpy().min() >= 0 and codes.to_numpy().max() < 6
    pd.testing.assert_frame_equal(codes, fitted.codes(section, modality=modality, batch_size=7))


def test_saved_and_loaded_it_says_the_same_and_codes_go_on(fitted, section, tmp_path):
    fitted.save(tmp_path)
    loaded = stg.models.GenST.load(tmp_path, accelerator="cpu")
    assert_same_state(fitted, loaded)
    pd.testing.assert_frame_equal(fitted.predict(section), loaded.predict(section))
    pd.testing.assert_frame_equal(fitted.codes(section), loaded.codes(section))
    assert loaded.history["phase"].equals(fitted.history["phase"])


def test_both_sides_of_a_section_without_split_and_names_can_be_looked_at(fitted, section):
    """Counts are read, roles of spots are not."""
    plain = section.copy()
    del plain.obs
    plain.obs_names = section.obs_names
    for verb in ("embed", "codes"):
        found, expected = (
            np.asarray(getattr(fitted, verb)(data, modality="expression")) for data in (plain, section)
        )
        np.testing.assert_array_equal(found, expected)


# how it says no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"decode": "sample"}, r"`decode` must be one of 'soft', 'code'; got 'sample'"),
        ({"decode": "code", "statistic": "mean"}, r'decode="code" is about statistic="normalized"'),
        ({"decode": "code", "n_samples": 2}, r"Leave `decode` out"),
        ({"statistic": "max"}, r"`statistic` must be one of .*'normalized'.*; got 'max'"),
        ({"quantiles": [1.5]}, r"`quantiles` must lie between 0 and 1; got 1.5"),
        ({"n_samples": 0}, r"`n_samples` must be at least 1; got 0"),
        ({"genes": ["nope"]}, r"`genes` must be among the 12 that the model predicts.*: nope"),
    ],
)
def test_what_cannot_be_asked_is_explained(fitted, section, ask, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict(section, **ask)


def test_an_unknown_modality_names_those_that_exist(fitted):
    with pytest.raises(ValueError, match=r"`modality` must be one of 'histology', 'expression'; got 'image'"):
        fitted.embed(modality="image")
    with pytest.raises(
        ValueError, match=r"`modality` must be one of 'expression', 'translated', 'histology'"
    ):
        fitted.codes(modality="image")


@pytest.mark.parametrize("verb", ["predict", "embed", "codes"])
def test_an_untrained_model_says_to_train(tissue, verb):
    with pytest.raises(
        RuntimeError, match=r"This GenST is not fitted, so it cannot .* Call `train\(\)` first"
    ):
        getattr(build(tissue.copy()), verb)()


def test_fewer_training_spots_than_codes_are_a_message(tissue):
    with pytest.raises(ValueError, match=r"at least as many training spots.*found 98.*[Ll]ower `n_codes`"):
        fit(tissue.copy(), n_codes=99)


def test_features_of_another_encoder_are_refused(fitted, section):
    other = section.copy()
    other.obsm[_keys.HISTOLOGY] = other.obsm[_keys.HISTOLOGY][:, :-1]
    with pytest.raises(ValueError, match=r"obsm\['X_histology'\] must have the 48 features"):
        fitted.predict(other)
