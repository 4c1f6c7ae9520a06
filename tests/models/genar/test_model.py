"""GenAR on AnnData: what it answers, how it says no, and that an answer is a distribution over counts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stgen as stg
from stgen import _keys

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "scales": (1, 4, 12)}
SHORT = {"max_epochs": 2, "batch_size": 16, "accelerator": "cpu"}
KEYS = {"library_key": _keys.LIBRARY, "patient_key": _keys.PATIENT, "split_key": _keys.SPLIT}


def make_tissue(**changes):
    """Four sections of four patients, two of them for training; two genes with a slash in their name."""
    small = {"n_sections": 4, "n_patients": 4, "spots_per_section": 49, "n_genes": 12, "panel_total": 150.0}
    adata = stg.datasets.toy_tissue(**{**small, **changes})
    adata.var_names = ["CCL3/L1/L3", "HLA-A/B", *adata.var_names[2:]]
    roles = {"s1": _keys.TRAIN, "s2": _keys.TRAIN, "s3": _keys.VALIDATION, "s4": _keys.TEST}
    adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
    return adata


def fit(adata, *, setup=KEYS, train=SHORT, **changes):
    stg.models.GenAR.setup_anndata(adata, **setup)
    model = stg.models.GenAR(adata, **{**TINY, **changes})
    model.train(**train)
    return model


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def fitted(tissue):
    import torch

    torch.set_num_threads(1)
    return fit(tissue.copy())


@pytest.fixture(scope="module")
def section(tissue):
    """The test section."""
    return tissue[tissue.obs[_keys.SPLIT] == _keys.TEST].copy()


def bare(adata):
    """What a section without measured genes has."""
    inputs = {key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.HISTOLOGY)}
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm=inputs)


# inputs ------------------------------------------------------------------------------------------------------


def test_histology_and_places_suffice(fitted, section):
    prediction = fitted.predict(bare(section))
    assert list(prediction.columns) == fitted.genes
    assert list(prediction.index) == list(section.obs_names)
    pd.testing.assert_frame_equal(prediction, fitted.predict(section))


def test_a_section_is_predicted_alone_as_among_others(fitted, tissue, section):
    together = fitted.predict(tissue).loc[section.obs_names]
    np.testing.assert_allclose(fitted.predict(section), together, rtol=1e-4, atol=1e-4)


def test_one_spot_can_be_predicted(fitted, section):
    assert np.isfinite(fitted.predict(section[:1])).all(axis=None)


def test_poisoned_counts_of_a_section_reach_no_answer(fitted, section):
    poisoned = section.copy()
    poisoned.X = sparse.csr_matrix(np.full(section.shape, 99.0))
    for question in ({"statistic": "sd"}, {"quantiles": [0.1, 0.9]}, {"n_samples": 3}):
        clean, dirty = (np.asarray(fitted.predict(adata, **question)) for adata in (section, poisoned))
        assert np.array_equal(clean, dirty)


@pytest.fixture(scope="module")
def reference(tissue):
    """A model and its answer, to compare with models fitted on the same counts in other layouts."""
    return np.asarray(fit(tissue.copy()).predict(tissue))


@pytest.mark.parametrize("layout", ["dense", "int32", "csc", "csr_array", "layer", "view", "permuted"])
def test_how_counts_lie_changes_nothing(layout, tissue, reference):
    adata, setup, genes = tissue.copy(), dict(KEYS), list(tissue.var_names)
    counts = tissue.X.toarray()
    if layout == "layer":
        adata.layers["counts"], adata.X = adata.X.copy(), np.full(adata.shape, 0.5)
        setup["layer"] = "counts"
    elif layout == "view":
        wider = ad.concat([adata, adata[:3].copy()], index_unique="-", merge="same", uns_merge="same")
        wider.obs_names = [*adata.obs_names, "a", "b", "c"]
        adata = wider[: tissue.n_obs]
    elif layout == "permuted":
        adata = adata[:, ::-1].copy()
    else:
        make = {"int32": np.int32, "csc": sparse.csc_matrix, "csr_array": sparse.csr_array}
        adata.X = make.get(layout, np.asarray)(counts)
    answer = fit(adata, setup=setup).predict(tissue, genes=genes)
    # another order of genes is another starting point for their identities
    exact = layout != "permuted"
    np.testing.assert_allclose(answer, reference, rtol=1e-5 if exact else 2.0, atol=1e-5 if exact else 5.0)


def test_a_backed_file_is_fitted_like_memory(tissue, reference, tmp_path):
    tissue.write_h5ad(tmp_path / "tissue.h5ad")
    backed = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
    model = fit(backed)
    assert np.array_equal(model.predict(tissue), reference)
    assert np.array_equal(model.predict(backed), reference)


# answers -----------------------------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_the_batch(fitted, section):
    for question in ({"statistic": "median"}, {"statistic": "normalized"}, {"n_samples": 2}):
        small = np.asarray(fitted.predict(section, batch_size=5, **question))
        np.testing.assert_allclose(small, np.asarray(fitted.predict(section, **question)), rtol=1e-4)


def test_quantiles_rise_with_their_level(fitted, section):
    quantiles = fitted.predict(section, quantiles=[0.05, 0.25, 0.5, 0.75, 0.95])
    assert quantiles.shape == (5, *section.shape)
    assert (np.diff(quantiles, axis=0) >= 0).all()
    assert (quantiles[0] < quantiles[-1]).any()
    np.testing.assert_array_equal(quantiles[2], fitted.predict(section, statistic="median"))


def test_statistics_are_those_of_the_distribution(fitted, section):
    gene = fitted.genes[3]
    p = fitted.predict_distribution(section, genes=[gene])[:, 0]
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    count = np.arange(p.shape[1])
    mean = p @ count
    sd = np.sqrt(p @ count**2 - mean**2)
    ask = {"genes": [gene], "n_paths": 8}
    np.testing.assert_allclose(fitted.predict(section, **ask)[gene], mean, rtol=1e-3)
    np.testing.assert_allclose(fitted.predict(section, statistic="sd", **ask)[gene], sd, rtol=1e-2)
    mode = fitted.predict(section, statistic="mode", **ask)[gene]
    np.testing.assert_array_equal(mode, p.argmax(-1))


def test_the_cdf_of_observed_counts_is_the_sum_of_the_distribution(fitted, section):
    below, at_most = fitted.predict_cdf(section)
    gene = 5
    p = fitted.predict_distribution(section, genes=[fitted.genes[gene]])[:, 0]
    observed = section.X.toarray()[:, gene].astype(int)
    inside = observed < p.shape[1]
    cumulative = np.concatenate([np.zeros((len(p), 1)), p.cumsum(-1)], axis=1)
    rows = np.flatnonzero(inside)
    np.testing.assert_allclose(below[rows, gene], cumulative[rows, observed[rows]], atol=1e-5)
    np.testing.assert_allclose(at_most[rows, gene], cumulative[rows, observed[rows] + 1], atol=1e-5)
    assert (below <= at_most).all()


def test_samples_are_counts(fitted, section):
    samples = fitted.predict(section, n_samples=3)
    assert samples.shape == (3, *section.shape)
    assert np.array_equal(samples, np.floor(samples))
    assert (samples >= 0).all()


def test_many_samples_of_a_spot_have_the_mean_of_its_mixture(fitted, section):
    few = section[:4].copy()
    samples = fitted.predict(few, n_samples=200)
    mean = fitted.predict(few, n_paths=128, random_state=1)
    error = samples.std(0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - mean) < 5 * error + 0.1 * mean).all(axis=None)


def test_samples_are_joint(fitted, section):
    """Genes of one sample share their coarse scales, so that totals vary more than independent genes would."""
    samples = fitted.predict(section[:10].copy(), n_samples=200)
    assert samples.sum(-1).var(0).mean() > 1.2 * samples.var(0).sum(-1).mean()


def test_a_seed_is_a_sample(fitted, section):
    once, again = (fitted.predict(section, n_samples=2, random_state=3) for _ in range(2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, fitted.predict(section, n_samples=2, random_state=4))
    assert not np.array_equal(once[0], once[1])


def test_one_sample_is_a_sample(fitted, section):
    one = fitted.predict(section, n_samples=1)
    assert one.shape == (1, *section.shape)
    assert not np.array_equal(one[0], np.round(fitted.predict(section)))


@pytest.mark.parametrize("statistic", ["mean", "normalized", "median", "mode", "sd"])
def test_a_subset_of_genes_is_a_subset_of_the_answer(statistic, fitted, section):
    genes = [fitted.genes[i] for i in (7, 0, 3)]
    some = fitted.predict(section, statistic=statistic, genes=genes)
    np.testing.assert_allclose(some, fitted.predict(section, statistic=statistic)[genes], rtol=1e-5)


def test_normalised_expression_stands_without_depth(fitted, section):
    normalized = fitted.predict(section, statistic="normalized")
    mean = fitted.predict(section)
    by_hand = np.log1p(mean.div(mean.sum(axis=1), axis=0) * float(fitted.module.expected.target_total))
    assert (normalized <= by_hand + 1e-4).all(axis=None)  # the log of a mean is above the mean of a log
    assert np.corrcoef(normalized.to_numpy().ravel(), by_hand.to_numpy().ravel())[0, 1] > 0.9


def test_answers_go_into_a_memory_map(fitted, section, tmp_path):
    out = np.memmap(tmp_path / "counts.dat", dtype=np.float16, mode="w+", shape=section.shape)
    assert fitted.predict(section, out=out) is out
    np.testing.assert_allclose(out, fitted.predict(section), rtol=1e-2)
    levels = np.memmap(tmp_path / "levels.dat", dtype=np.float32, mode="w+", shape=(2, *section.shape))
    fitted.predict(section, quantiles=[0.1, 0.9], out=levels)
    assert np.array_equal(levels, fitted.predict(section, quantiles=[0.1, 0.9]))


def test_answers_go_into_zarr(fitted, section, tmp_path):
    zarr = pytest.importorskip("zarr")
    out = zarr.open(str(tmp_path / "out.zarr"), mode="w", shape=section.shape, chunks=(16, 12), dtype="f4")
    fitted.predict(section, out=out, batch_size=16)
    assert np.array_equal(out[:], fitted.predict(section, batch_size=16))


def test_a_saved_model_answers_every_question_the_same(fitted, section, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = stg.models.GenAR.load(tmp_path / "model", accelerator="cpu")
    assert loaded.card == fitted.card
    pd.testing.assert_frame_equal(loaded.get_gene_groups(), fitted.get_gene_groups())
    for question in ({"statistic": "sd"}, {"quantiles": [0.5]}, {"n_samples": 2}):
        answers = [np.asarray(model.predict(section, **question)) for model in (fitted, loaded)]
        assert np.array_equal(*answers)


# gene groups and presets -------------------------------------------------------------------------------------


def test_gene_groups_are_nested(fitted):
    groups = fitted.get_gene_groups()
    assert list(groups.index) == fitted.genes
    assert list(groups.columns) == ["scale_1", "scale_4", "scale_12"]
    assert groups.nunique().tolist() == [1, 4, 12]
    assert (groups.groupby("scale_12")["scale_4"].nunique() == 1).all()


def test_groups_of_your_own_are_kept(tissue, tmp_path):
    pathway = {gene: "abc"[i % 3] for i, gene in enumerate(tissue.var_names)}
    adata = tissue.copy()
    stg.models.GenAR.setup_anndata(adata, **KEYS)
    model = stg.models.GenAR(adata, gene_groups=pathway, **{**TINY, "scales": None})
    model.train(**SHORT)
    groups = model.get_gene_groups()
    assert list(groups.columns) == ["scale_1", "scale_3", "scale_12"]
    assert groups["scale_3"].map(dict(enumerate("abc"))).to_dict() == pathway
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(
        stg.models.GenAR.load(tmp_path / "model", accelerator="cpu").get_gene_groups(), groups
    )


def test_groups_must_name_every_gene(tissue):
    adata = tissue.copy()
    stg.models.GenAR.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match="a group for each of the 12 genes; 11 have none, such as HLA-A/B"):
        stg.models.GenAR(adata, gene_groups={"CCL3/L1/L3": "a"})


def test_groups_are_not_known_before_training(tissue):
    adata = tissue.copy()
    stg.models.GenAR.setup_anndata(adata, **KEYS)
    with pytest.raises(RuntimeError, match=r"This GenAR is not fitted, .* Call `train\(\)` first"):
        stg.models.GenAR(adata, **TINY).get_gene_groups()


def test_presets_are_architectures(tissue):
    adata = tissue.copy()
    stg.models.GenAR.setup_anndata(adata, **KEYS)
    paper = stg.models.GenAR(adata, preset="paper", width=16, n_layers=1)
    assert (paper.config.n_heads, paper.config.head, paper.config.n_tokens) == (8, "categorical", 2001)
    assert paper.training_defaults.lr == 1e-4
    assert stg.models.GenAR(adata, preset="small").config == stg.models.GenAR(adata).config
    with pytest.raises(ValueError, match="`preset` must be one of 'small', 'paper'; got 'large'"):
        stg.models.GenAR(adata, preset="large")
    with pytest.raises(TypeError, match="GenAR has no option 'widht'; it has width"):
        stg.models.GenAR(adata, widht=3)


@pytest.mark.parametrize(
    "ablation",
    [
        {"scales": (12,)},
        {"scales": (1, 12)},
        {"gene_modulation": False},
        {"final_label": "onehot"},
        {"head": "categorical", "n_tokens": 64},
        {"n_neighbors": 0},
        {"use_place": False},
        {"hierarchy": "kmeans"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_an_ablation_trains_and_predicts(ablation, tissue, section):
    model = fit(tissue.copy(), train={**SHORT, "max_epochs": 1}, **ablation)
    assert np.isfinite(model.predict(section)).all(axis=None)


# bad input ---------------------------------------------------------------------------------------------------


def spoiled_counts(value):
    def spoil(adata):
        X = adata.X.toarray().astype(float)
        X[3, 2] = value
        adata.X = X

    return spoil


def put(slot, key, value):
    def spoil(adata):
        getattr(adata, slot)[key] = value(getattr(adata, slot)[key])

    return spoil


def drop(slot, key):
    def spoil(adata):
        del getattr(adata, slot)[key]

    return spoil


def with_nan(array):
    array = array.copy()
    array[5, 0] = np.nan
    return array


def repeat_gene(adata):
    adata.var_names = ["A", "A", *adata.var_names[2:]]


def repeat_spot(adata):
    adata.obs_names = ["x", "x", *adata.obs_names[2:]]


def forget_scale(adata):
    """As a file comes: coordinates in pixels, and the scale that nobody applied."""
    del adata.uns[_keys.SPATIAL_UM]
    adata.uns[_keys.UM_PER_UNIT] = 0.5


BAD = {
    "fraction": (
        spoiled_counts(0.5),
        ValueError,
        "X must hold counts; found .* not whole numbers, such as 0.5",
    ),
    "negative": (spoiled_counts(-2), ValueError, "X must hold counts; found negative values, the lowest -2"),
    "nan": (
        spoiled_counts(np.nan),
        ValueError,
        "X must hold counts; found 1 values that are NaN or infinite",
    ),
    "inf": (
        spoiled_counts(np.inf),
        ValueError,
        "X must hold counts; found 1 values that are NaN or infinite",
    ),
    "no histology": (
        drop("obsm", _keys.HISTOLOGY),
        KeyError,
        r"obsm\['X_histology'\] does not exist; obsm has .*'spatial'.* `stg.pp.embed_histology`",
    ),
    "flat histology": (
        put("obsm", _keys.HISTOLOGY, lambda a: np.zeros((len(a), 4, 4, 3))),
        ValueError,
        "must be spots × features; its shape is .* Embed the tiles first",
    ),
    "histology with nan": (
        put("obsm", _keys.HISTOLOGY, with_nan),
        ValueError,
        r"obsm\['X_histology'\] must be finite; 1 of 196 spots have NaN .* such as s1_spot00006",
    ),
    "no places": (drop("obsm", _keys.SPATIAL), KeyError, r"obsm\['spatial'\] does not exist; obsm has"),
    "places in 3-D": (
        put("obsm", _keys.SPATIAL, lambda a: np.c_[a, a[:, 0]]),
        ValueError,
        r"must be spots × 2 \(x, y\); its shape is \(196, 3\)",
    ),
    "places with nan": (
        put("obsm", _keys.SPATIAL, with_nan),
        ValueError,
        "1 of 196 spots have NaN or infinite",
    ),
    "places in another unit": (
        put("obsm", _keys.SPATIAL, lambda a: a / 1000),
        ValueError,
        "must be in µm; the median distance between neighbouring spots is .* `stg.pp.coordinates_in_um`",
    ),
    "a scale not applied": (
        forget_scale,
        ValueError,
        r"one unit of section 's1' is 0.5 µm .*, and no conversion is recorded",
    ),
    "repeated genes": (repeat_gene, ValueError, "Gene names must be unique; 1 repeat: A"),
    "repeated spots": (repeat_spot, ValueError, "Spot names must be unique; 1 repeat: x"),
    "no split column": (drop("obs", _keys.SPLIT), KeyError, r"obs\['split'\] does not exist; obs has"),
    "a strange split": (
        put("obs", _keys.SPLIT, lambda a: a.astype(str).replace(_keys.TRAIN, "training")),
        ValueError,
        "must hold 'train', 'validation', 'test'; found 'training'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_left_alone(name, tissue):
    from stgen.testing import changed_slots

    spoil, kind, message = BAD[name]
    adata = tissue.copy()
    spoil(adata)
    before = adata.copy()
    with pytest.raises(kind, match=message):
        stg.models.GenAR.setup_anndata(adata, **KEYS)
    assert not changed_slots(before, adata, ignore=_keys.SETUP_MARKS)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (slice(0), slice(None), "At least 2 spots are needed; this AnnData has 0"),
        (slice(1), slice(None), "At least 2 spots are needed; this AnnData has 1"),
        (slice(None), slice(1), "At least 2 genes are needed; this AnnData has 1"),
    ],
)
def test_too_little_is_refused(rows, columns, message, tissue):
    with pytest.raises(ValueError, match=message):
        stg.models.GenAR.setup_anndata(tissue[rows, columns].copy(), **KEYS)


def test_overlapping_sections_need_a_library_key(tissue):
    with pytest.raises(ValueError, match="Say `library_key='section'`"):
        stg.models.GenAR.setup_anndata(tissue.copy())


def test_silent_spots_and_genes_are_fitted_with_a_warning(tissue, section):
    adata = tissue.copy()
    X = adata.X.toarray()
    X[2], X[:, 4] = 0, 0
    adata.X = X
    with (
        pytest.warns(UserWarning, match="1 of 196 spots have no counts in X"),
        pytest.warns(UserWarning, match="1 of 12 genes have the same count in every spot, such as gene_005"),
    ):
        model = fit(adata)
    prediction = model.predict(section)
    assert np.isfinite(prediction).all(axis=None)
    assert (prediction["gene_005"] < 0.5).all()


def test_a_patient_on_both_sides_is_named(tissue):
    adata = tissue.copy()
    adata.obs[_keys.PATIENT] = "C"
    with pytest.warns(UserWarning, match=r"Patient C is in both 'train' and .*'test' of obs\['split'\]"):
        stg.models.GenAR.setup_anndata(adata, **KEYS)


def other_encoder(adata):
    adata.uns[_keys.HISTOLOGY_PARAMS] = {**adata.uns[_keys.HISTOLOGY_PARAMS], "encoder": "resnet50"}


UNLIKE = {
    "width": (
        put("obsm", _keys.HISTOLOGY, lambda a: a[:, :5]),
        ValueError,
        r"must have the 48 features the model was fitted with; it has 5\. Embed with the same encoder",
    ),
    "encoder": (other_encoder, ValueError, "encoder 'simulated descriptors'; .* comes from 'resnet50'"),
    "nan": (put("obsm", _keys.HISTOLOGY, with_nan), ValueError, "1 of 49 spots have NaN"),
    "unit": (put("obsm", _keys.SPATIAL, lambda a: a / 1000), ValueError, "must be in µm"),
    "no places": (drop("obsm", _keys.SPATIAL), KeyError, r"obsm\['spatial'\] does not exist"),
    "spot names": (repeat_spot, ValueError, "Spot names must be unique"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_inputs_unlike_those_of_training_are_refused(name, fitted, section):
    spoil, kind, message = UNLIKE[name]
    adata = section.copy()
    spoil(adata)
    with pytest.raises(kind, match=message):
        fitted.predict(adata)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"statistic": "average"}, "`statistic` must be one of 'mean', .*; got 'average'"),
        ({"quantiles": [0.5, 1.0]}, r"`quantiles` must lie between 0 and 1; got 1\.0"),
        ({"quantiles": []}, "`quantiles` must be at least 1; got 0"),
        ({"n_samples": 0}, "`n_samples` must be at least 1; got 0"),
        ({"n_paths": 0}, "`n_paths` must be at least 1; got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"genes": []}, "`genes` names no gene"),
        ({"genes": ["gene_003", "gene_003"]}, "`genes` must be unique; 1 repeat: gene_003"),
        ({"genes": ["gene_003", "EPCAM"]}, "among the 12 that the model predicts, .*; 1 of 2 are not: EPCAM"),
        ({"genes": ["ENSG00000119888"]}, r"are not: ENSG00000119888\. It learned symbols"),
        ({"out": np.empty((3, 12))}, r"`out` must have shape \(49, 12\); got \(3, 12\)"),
    ],
    ids=str,
)
def test_a_question_without_an_answer_is_refused(question, message, fitted, section):
    with pytest.raises(ValueError, match=message):
        fitted.predict(section, **question)


def test_ensembl_where_symbols_were_learned_is_told_when_counts_are_looked_up(fitted, section):
    adata = section.copy()
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    assert fitted.predict(adata).shape == section.shape  # genes of the data are not read
    with pytest.raises(ValueError, match="The model learned symbols, these look like Ensembl identifiers"):
        fitted.predict_cdf(adata)
    with pytest.raises(ValueError, match="12 genes are expected and 2 of them are not in this AnnData"):
        fitted.predict_cdf(section[:, 2:].copy())


def test_permuted_genes_are_found_by_name(fitted, section):
    for one, other in zip(fitted.predict_cdf(section), fitted.predict_cdf(section[:, ::-1].copy())):
        assert np.array_equal(one, other)


def test_a_file_that_was_changed_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is not what was saved .* truncated or was changed"):
        stg.models.GenAR.load(tmp_path / "model")
    facts = tmp_path / "model" / "model.json"
    facts.write_text(facts.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match=r"has format 99, .* Update with `pip install -U stgen`"):
        stg.models.GenAR.load(tmp_path / "model")


# counts above the vocabulary ---------------------------------------------------------------------------------


def test_counts_above_the_vocabulary_are_kept_and_reported(tissue, caplog):
    adata = tissue.copy()
    before = adata.X.toarray()
    assert before.max() > 40
    with caplog.at_level(logging.WARNING, logger="stgen"):
        model = fit(adata, max_tokens=20)
    assert "training counts (in " in caplog.text
    assert "lie above the vocabulary of 20 tokens; they are kept in your data" in caplog.text
    assert np.array_equal(adata.X.toarray(), before)
    below, at_most = model.predict_cdf(adata)
    above = before >= 20
    np.testing.assert_allclose(at_most[above], 1, atol=1e-5)
    assert np.isfinite(below).all()


# memory ------------------------------------------------------------------------------------------------------

STREAM = """
import sys
from pathlib import Path
import anndata as ad, numpy as np, pandas as pd, torch
torch.set_num_threads(1)
import stgen as stg
n_genes = 200
rng = np.random.default_rng(0)

def section(n, genes):
    side = int(np.ceil(np.sqrt(n)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n] * 100.0
    inputs = {"spatial": xy, "X_histology": rng.normal(size=(n, 108)).astype(np.float32)}
    names = pd.DataFrame(index=[f"spot{i}" for i in range(n)])
    X = rng.poisson(3, size=(n, n_genes)).astype(np.float32) if genes else None
    return ad.AnnData(X, obs=names, obsm=inputs)

class Elsewhere:
    # takes the answer and keeps nothing but how much memory was in use

    def __init__(self, n):
        self.shape, self.used = (n, n_genes), []

    def __setitem__(self, rows, values):
        self.used.append(resident())

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

train = section(400, True)
stg.settings.progress_bar = False
stg.models.GenAR.setup_anndata(train)
model = stg.models.GenAR(train)
model.train(max_epochs=1, accelerator="cpu")
model.predict(section(600, False))
for n in map(int, sys.argv[1:]):
    new, out = section(n, False), Elsewhere(n)
    before = resident()
    model.predict(new, out=out)
    print(max(out.used) - before, max(out.used[5:]) - max(out.used[:5]), new.obsm["X_histology"].nbytes / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc for the memory in use")
def test_memory_of_a_prediction_is_flat():
    """Preset small, 200 genes: batch after batch needs no more memory, and reading a copy of the inputs at most."""
    code = textwrap.dedent(STREAM)
    # the allocator gives memory back at once, so that what is in use is what is needed
    giving = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", code, "5000", "20000"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **giving},
    )
    assert run.returncode == 0, run.stderr
    for line in run.stdout.strip().splitlines()[-2:]:
        grown, while_streaming, inputs = map(float, line.split())
        assert while_streaming < 4, line
        assert grown < 2 * inputs + 20, line
