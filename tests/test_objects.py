"""The same data in another object: the same result by name, one of our errors, or a warning – never another number.

A *move* makes another object that holds the same spots (some of them, or others beside); moves are drawn in chains of one
to four. A *task* turns an object into a table. Spots are followed by ``obs["origin"]``, sections by ``obs["of"]``, so that
both may be renamed. What a task may depend on – the names of spots or sections, all spots together – it says itself.
"""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import stgen as stg
from stgen import _keys
from stgen.data._places import raw_xy

N_SECTIONS, N_SPOTS, N_GENES = 3, 36, 24
UM_PER_PX = 0.5
SECTIONS = {"library_key": _keys.LIBRARY}
SHORT = {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False}
NEWCOMER = "newcomer"
OUTCOMES: Counter[tuple[str, str]] = Counter()


# ------------------------------------------------------------------------------------------------------------- the data


def tissue(seed=0, **changes):
    adata = stg.datasets.toy_tissue(
        **{
            "n_sections": N_SECTIONS,
            "n_patients": N_SECTIONS,
            "spots_per_section": N_SPOTS,
            "n_genes": N_GENES,
            "panel_total": 300.0,
            "random_state": seed,
        }
        | changes
    )
    adata.obs["origin"], adata.obs["of"] = adata.obs_names, adata.obs[_keys.LIBRARY].astype(str)
    return adata


@cache
def whole():
    return tissue()


@cache
def another():
    """A section of another study."""
    adata = tissue(5, n_sections=1, n_patients=1)
    adata.obs_names = [f"{NEWCOMER}{i}" for i in range(adata.n_obs)]
    adata.obs["origin"], adata.obs[_keys.LIBRARY], adata.obs["of"] = adata.obs_names, "s9", "s9"
    adata.obs[_keys.PATIENT] = "p9"
    adata.uns["note"] = "of another study"
    stg.models.GeST.setup_anndata(adata)
    return adata


@cache
def fitted(name):
    """Tiny models that have learned a little from the first two sections."""
    import torch

    torch.set_num_threads(1)
    adata = whole()[whole().obs["of"] != "s3"].copy()
    kind = getattr(stg.models, name)
    small = {
        "GenAR": {"width": 8, "n_layers": 1, "n_heads": 2, "scales": None},
        "GenST": {"n_tokens": 2, "n_codes": 4, "n_image_tokens": 2, "n_image_codes": 4, "hidden": 8},
        "GeST": {"width": 8, "n_layers": 1, "n_heads": 2, "n_meta_cells": 6},
        "CausalGeD": {"width": 8, "n_layers": 1, "n_heads": 2, "n_axes": 4},
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "CausalGeD":
            reference = stg.datasets.toy_reference(adata, n_cells=80)
            kind.setup_reference(reference)
            adata, small = adata[:, ::2].copy(), {**small, "reference": reference}
        kind.setup_anndata(adata, **SECTIONS)
        model = kind(adata, random_state=0, **small)
        model.train(**SHORT)
        if name == "GeST":
            model.learn_labels("region", adata)
    return model


# --------------------------------------------------------------------------------------------------------------- moves

MOVES: dict[str, Callable] = {}
SPOILS: dict[str, Callable] = {}


def move(function):
    MOVES[function.__name__] = function
    return function


def spoil(function):
    """What no task could read as if nothing had happened: only an error or a warning will do, or no effect at all."""
    SPOILS[function.__name__] = function
    return function


@move
def rows_permuted(adata, rng):
    return adata[rng.permutation(adata.n_obs)].copy()


@move
def genes_permuted(adata, rng):
    return adata[:, rng.permutation(adata.n_vars)].copy()


@move
def a_section_left_out(adata, rng):
    names = sorted(adata.obs["of"].unique())
    return adata[adata.obs["of"] != rng.choice(names)].copy() if len(names) > 1 else adata


@move
def taken_apart_and_joined(adata, rng):
    names = rng.permutation(sorted(adata.obs["of"].unique()))
    return ad.concat([adata[adata.obs["of"] == name] for name in names], merge="same")


@move
def joined_with_another_section(adata, rng):
    is_table = any(
        isinstance(one, pd.DataFrame) for one in adata.obsm.values()
    )  # anndata does not join these with arrays
    if is_table or adata.obs["origin"].str.startswith(NEWCOMER).any():
        return adata
    parts = [adata, another()] if rng.random() < 0.5 else [another(), adata]
    return ad.concat(parts, merge="same", uns_merge=rng.choice(["unique", "first", "same"]))


@move
def spots_renamed(adata, rng):
    adata = adata.copy()
    adata.obs_names = [f"spot-{i}" for i in rng.permutation(10 * adata.n_obs)[: adata.n_obs]]
    return adata


@move
def the_same_barcodes_joined_with_an_ending(adata, rng):
    parts = {}
    for name in sorted(adata.obs["of"].unique()):
        parts[name] = adata[adata.obs["of"] == name].copy()
        parts[name].obs_names = [f"AAAC{i:04d}-1" for i in range(parts[name].n_obs)]
    return ad.concat(parts, index_unique="-", merge="same")


@move
def sections_renamed(adata, rng):
    adata = adata.copy()
    if _keys.LIBRARY in adata.obs:
        names = sorted(adata.obs["of"].unique())
        called = dict(zip(names, rng.permutation([f"slide {i}" for i in range(len(names))])))
        adata.obs[_keys.LIBRARY] = adata.obs["of"].astype(str).map(called)
    return adata


@move
def uns_dropped(adata, rng):
    adata = adata.copy()
    adata.uns.clear()
    return adata


@move
def uns_of_another_object(adata, rng):
    adata = adata.copy()
    adata.uns.clear()
    adata.uns.update(another().copy().uns)
    return adata


@move
def counts_of_another_type(adata, rng):
    adata = adata.copy()
    dense = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    shape = [np.asarray, sparse.csr_matrix, sparse.csc_matrix, np.asfortranarray][rng.integers(4)]
    kinds = (
        ["float32", "float64"]
        if (dense != np.floor(dense)).any()
        else ["int32", "int64", "float32", "float64"]
    )
    adata.X = shape(dense.astype(rng.choice(kinds)))
    return adata


@move
def written_and_read(adata, rng):
    with tempfile.TemporaryDirectory() as folder:
        adata.copy().write_h5ad(Path(folder) / "a.h5ad")
        return ad.read_h5ad(Path(folder) / "a.h5ad")


@move
def a_view(adata, rng):
    return adata[rng.permutation(adata.n_obs)]


@move
def columns_of_another_type(adata, rng):
    adata = adata.copy()
    for name in [one for one in (_keys.LIBRARY, _keys.PATIENT, "region") if one in adata.obs]:
        text = adata.obs[name].astype(str)
        adata.obs[name] = (
            text if rng.random() < 0.5 else pd.Categorical(text, rng.permutation([*text.unique(), "none"]))
        )
    return adata


@move
def inputs_of_another_type(adata, rng):
    adata = adata.copy()
    for key in (_keys.SPATIAL, _keys.HISTOLOGY):
        values = raw_xy(adata, key) if key == _keys.SPATIAL else np.asarray(adata.obsm[key])
        as_table = pd.DataFrame(
            values, index=adata.obs_names, columns=[f"c{i}" for i in range(values.shape[1])]
        )
        adata.obsm[key] = as_table if rng.random() < 0.5 else values.astype(np.float64)
    return adata


@move
def in_pixels_and_converted(adata, rng):
    """What a reader wrote are pixels; µm lie beside them."""
    if _keys.SPATIAL_UM in adata.obsm:
        return adata
    adata = adata.copy()
    adata.uns.pop(_keys.SPATIAL_UM, None)
    adata.obsm[_keys.SPATIAL] = raw_xy(adata, _keys.SPATIAL) / UM_PER_PX
    stg.pp.coordinates_in_um(adata, um_per_unit=UM_PER_PX, **SECTIONS)
    return adata


@move
def centroids_written_over_what_the_reader_wrote(adata, rng):
    adata = adata.copy()
    if _keys.SPATIAL_UM in adata.obsm:
        adata.obsm[_keys.SPATIAL] = raw_xy(adata, _keys.SPATIAL) * 1.45
    return adata


@move
def places_with_names_or_a_third_column(adata, rng):
    adata = adata.copy()
    xy = raw_xy(adata, _keys.SPATIAL)
    table = pd.DataFrame(xy[:, ::-1], index=adata.obs_names, columns=["y", "x"])
    adata.obsm[_keys.SPATIAL] = table if rng.random() < 0.5 else np.c_[xy, np.zeros(len(xy))]
    return adata


@spoil
def pixels_put_where_um_were(adata, rng):
    adata = adata.copy()
    slot = _keys.SPATIAL_UM if _keys.SPATIAL_UM in adata.obsm else _keys.SPATIAL
    adata.obsm[slot] = raw_xy(adata, slot) / UM_PER_PX
    return adata


@spoil
def a_scale_that_nobody_applied(adata, rng):
    adata = adata.copy()
    adata.uns[_keys.UM_PER_UNIT] = UM_PER_PX
    return adata


@spoil
def the_slot_of_um_lost(adata, rng):
    if _keys.SPATIAL_UM not in adata.obsm:
        return adata
    adata = adata.copy()
    del adata.obsm[_keys.SPATIAL_UM]
    return adata


@spoil
def counts_logged(adata, rng):
    adata = adata.copy()
    adata.X = np.log1p(
        adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X, dtype=np.float64)
    )
    return adata


@spoil
def a_place_lost(adata, rng):
    adata = adata.copy()
    slot = _keys.SPATIAL_UM if _keys.SPATIAL_UM in adata.obsm else _keys.SPATIAL
    xy = raw_xy(adata, slot)
    xy[rng.integers(len(xy))] = np.nan
    adata.obsm[slot] = xy
    return adata


@spoil
def the_column_of_sections_lost(adata, rng):
    if 1 < adata.obs["of"].nunique() < N_SECTIONS:
        return adata  # two lattices that share few places are not told from one
    return ad.AnnData(
        adata.X, adata.obs.drop(columns=_keys.LIBRARY), adata.var, obsm=dict(adata.obsm), uns=dict(adata.uns)
    )


@spoil
def genes_lost(adata, rng):
    return adata[:, np.sort(rng.permutation(adata.n_vars)[: adata.n_vars - 3])].copy()


@spoil
def names_repeated(adata, rng):
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.obs_names = [adata.obs_names[0], *adata.obs_names[:-1]]
    return adata


# --------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """What is asked of an object; a table by origin, gene or row of a report comes back."""

    run: Callable
    of_all: bool = False
    """All spots together make the result."""
    of_names: bool = False
    """Names of spots are its seeds."""
    of_sections: bool = False
    """Names of sections are its seeds."""
    of_genes: bool = False
    """All genes together make the result."""

    def may_differ(self, adata):
        is_part = set(adata.obs["origin"]) != set(whole().obs["origin"])
        is_renamed = (adata.obs_names != adata.obs["origin"]).any()
        is_called = (
            _keys.LIBRARY in adata.obs
            and (adata.obs[_keys.LIBRARY].astype(str) != adata.obs["of"].astype(str)).any()
        )
        is_panel = adata.n_vars < N_GENES
        return (
            (self.of_genes and is_panel)
            or (self.of_all and is_part)
            or (self.of_names and is_renamed)
            or (self.of_sections and is_called)
        )


def by_origin(adata, values, columns=None):
    return pd.DataFrame(np.asarray(values), index=adata.obs["origin"].astype(str).to_numpy(), columns=columns)


def predicted(name, **options):
    def run(adata):
        genes = fitted(name).genes
        return by_origin(adata, fitted(name).predict(adata, genes=genes, **options), genes)

    return run


def imputed(adata):
    made = fitted("CausalGeD").impute(
        adata[:, adata.var_names.isin(fitted("CausalGeD").measured_genes)],
        n_samples=2,
        n_steps=2,
        intervals=False,
    )
    genes = sorted(made.var_names)
    return by_origin(adata, made[:, genes].X, genes)


def split(by):
    def run(adata):
        done = stg.pp.split(adata, by=by, test=0.3, validation=0.2, block_um=200, copy=True)
        return by_origin(adata, done.obs[_keys.SPLIT].astype(str))

    return run


def panel(adata):
    done = stg.pp.gene_panel(adata, n_genes=10, copy=True)
    return done.var[[_keys.PANEL]].astype(str).set_axis(done.var_names.astype(str))


@cache
def guess():
    """Something that is as good as a prediction: counts of a spot's nearest row in the table."""
    counts = whole().X.toarray().astype(np.float64)
    return pd.DataFrame(
        np.roll(counts, 1, axis=0) + counts, index=whole().obs_names, columns=whole().var_names
    )


def evaluated(adata):
    adata = adata.copy()
    adata.layers["mine"] = guess().reindex(index=adata.obs["origin"], columns=adata.var_names).to_numpy()
    adata.obs[_keys.SPLIT] = np.where(adata.obs["of"] == "s3", _keys.TEST, _keys.TRAIN)
    table = stg.tl.evaluate(
        adata,
        "mine",
        scale="counts",
        baselines="nulls",
        min_counts=1,
        n_boot=5,
        metrics=["pearson", "rmse", "morans_i_gap"],
    )
    called = dict(zip(adata.obs[_keys.LIBRARY].astype(str), adata.obs["of"].astype(str)))
    table["section"] = [called.get(name, name) for name in table["section"]]
    table = table[table["kind"].isin(["model", "null"])]
    keys = table[["method", "metric", "scale", "section"]].agg("/".join, axis=1)
    return table.set_index(pd.Index(keys))[["value", "gain", "n_spots", "n_genes"]]


def scored(adata):
    truth = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    made = guess().reindex(index=adata.obs["origin"], columns=adata.var_names).to_numpy()
    xy = adata.obsm[_keys.SPATIAL]
    found = {"pearson": stg.metrics.pearson(truth, made), "rmse": stg.metrics.rmse(truth, made)}
    here = (adata.obs["of"] == "s1").to_numpy()
    if here.any():
        found["morans_i"] = stg.metrics.morans_i(truth[here].astype(float), xy[here])
    return pd.DataFrame(found, index=adata.var_names.astype(str))


def in_um(adata):
    """Twice as far apart: as if what models read was in units of a file."""
    adata = adata.copy()
    if _keys.SPATIAL_UM in adata.obsm:
        adata.obsm[_keys.SPATIAL] = adata.obsm[_keys.SPATIAL_UM]
    for mark in (_keys.SPATIAL_UM, _keys.UM_PER_UNIT):
        adata.uns.pop(mark, None)
    stg.pp.coordinates_in_um(adata, um_per_unit=2.0, **SECTIONS)
    return by_origin(adata, adata.obsm[_keys.SPATIAL_UM])


TASKS = {
    "GenAR.predict": Task(predicted("GenAR")),
    "GenAR.predict sd": Task(predicted("GenAR", statistic="sd"), of_names=True),
    "GenST.predict": Task(predicted("GenST")),
    "GenST.predict sd": Task(predicted("GenST", statistic="sd"), of_names=True),
    "GenST.embed": Task(lambda adata: by_origin(adata, fitted("GenST").embed(adata))),
    "GeST.embed_niches": Task(lambda adata: by_origin(adata, fitted("GeST").embed_niches(adata))),
    "GeST.annotate": Task(lambda adata: by_origin(adata, fitted("GeST").annotate(adata))),
    "CausalGeD.impute": Task(imputed, of_all=True, of_names=True),
    "pp.split by section": Task(split("section"), of_all=True, of_sections=True),
    "pp.split by block": Task(split("block"), of_all=True, of_sections=True),
    "pp.split by random": Task(split("random"), of_all=True, of_names=True),
    "pp.gene_panel": Task(panel, of_all=True, of_genes=True),
    "tl.evaluate": Task(evaluated, of_all=True, of_genes=True),
    "metrics": Task(scored, of_all=True),
    "pp.coordinates_in_um": Task(in_um),
}


@cache
def expected(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TASKS[name].run(whole().copy())


# ----------------------------------------------------------------------------------------------------------- the promise


def answer(name, adata):
    """A table, or ``None`` after an error of ours; and what stgen warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            table = TASKS[name].run(adata)
        except (ValueError, KeyError, TypeError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "/stgen/" in last.replace("\\", "/"), f"not an error of ours: {error!r} in {last}"
            assert str(error.args[0]).strip(), "an error without a message"
            return None, []
    return table, [str(one.message) for one in said if "stgen" in one.filename or one.filename == __file__]


def check(name, moves, seed):
    rng, adata = np.random.default_rng(seed), whole().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in moves:
            adata = (MOVES | SPOILS)[one](adata, rng)
    table, said = answer(name, adata)
    if table is None:
        OUTCOMES[name, "error"] += 1
        return
    if TASKS[name].may_differ(adata):
        OUTCOMES[name, "may differ"] += 1
        return
    rows = [row for row in table.index if not str(row).startswith(NEWCOMER)]
    want, found = expected(name).loc[rows], table.loc[rows, expected(name).columns]
    if want.dtypes.iloc[0].kind == "O":
        is_equal = (want.to_numpy() == found.to_numpy()).all()
    else:
        scale = np.nanmax(np.abs(want.to_numpy()))
        is_equal = np.allclose(want, found, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)
    OUTCOMES[name, "equal" if is_equal else "warned"] += 1
    assert is_equal or said, f"{name} after {moves} gave another number and said nothing"


CHAINS = st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**16)


@pytest.mark.parametrize("name", TASKS)
@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(moves=CHAINS, seed=SEEDS)
def test_the_same_spots_in_another_object_give_the_same_result(name, moves, seed):
    check(name, moves, seed)


# metrics are of the arrays that they are given, whatever these hold
@pytest.mark.parametrize("name", [name for name in TASKS if name != "metrics"])
@settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(
    before=st.lists(st.sampled_from(sorted(MOVES)), max_size=2),
    what=st.sampled_from(sorted(SPOILS)),
    seed=SEEDS,
)
def test_a_spoilt_object_is_refused_or_warned_of_or_does_not_matter(name, before, what, seed):
    check(name, [*before, what], seed)


def test_most_examples_were_compared():
    """Refusing everything would keep the promise, too."""
    n_examples = sum(OUTCOMES.values())
    if not n_examples:
        pytest.skip("the examples above were not run")
    assert n_examples >= 500
    for name in TASKS:
        assert OUTCOMES[name, "equal"] >= 5, (name, OUTCOMES)
    n_compared = sum(n for (_, how), n in OUTCOMES.items() if how == "equal")
    assert n_compared > n_examples / 2, OUTCOMES
