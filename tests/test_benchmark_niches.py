"""Benchmarks of niches and annotation: same rows and clusterer for all, no label reaches a method, pairs are pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen import _keys

FOLDER = Path(__file__).parents[1] / "benchmarks"
ROW = ["dataset", "section", "fold", "method", "kind", "metric", "scale", "seed", "value"]
COST = ["dataset", "method", "train_seconds", "predict_seconds", "peak_mb"]
TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 8, "n_components": 8, "max_cells": 30}
N = 240


def stripes(seed: int, *, n_genes: int = 12) -> anndata.AnnData:
    """Cells in two stripes and a corner nobody labelled, some set aside, in units of half a µm."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 300, size=(N, 2))
    which = (xy[:, 0] > 150).astype(int)
    profile = np.random.default_rng(9).uniform(1.0, 2.5, size=(2, n_genes))
    label = np.array(["left", "right"], dtype=object)[which]
    label[(xy < 60).all(axis=1)] = "unassigned"
    label[:5] = "undetermined"
    adata = anndata.AnnData(
        X=sparse.csr_matrix(rng.poisson(profile[which] + 0.2).astype(np.int32)),
        obs=pd.DataFrame({"region": label}, index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
        obsm={"spatial": xy * 2},
    )
    adata.uns["um_per_unit"], adata.uns["x_type"] = 0.5, "raw_counts"
    return adata


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one data set of two sections."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pair").mkdir()
    for seed, name in enumerate(("one", "two")):
        stripes(seed).write_h5ad(folder / "pair" / f"{name}.h5ad")
    return folder


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import annotation
        import niches

        yield SimpleNamespace(niches=niches, annotation=annotation)


def run(script: ModuleType, data: Path, folder: Path, *options: str) -> SimpleNamespace:
    """What a run through the command line has written."""
    out = folder / "new" / f"{script.__name__}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(script.QUICK, "changes", TINY)
        patch.setitem(script.QUICK, "datasets", ("pair",))
        script.main(
            [
                "--quick",
                "--data",
                str(data),
                "--out",
                str(out),
                "--seeds",
                "0,1",
                "--max-epochs",
                "1",
                *options,
            ]
        )
    written = json.loads(out.read_text())
    return SimpleNamespace(
        json=written, rows=pd.DataFrame(written["rows"]), paired=pd.DataFrame(written["paired"])
    )


@pytest.fixture(scope="module")
def niched(scripts, data, tmp_path_factory) -> SimpleNamespace:
    return run(scripts.niches, data, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def named(scripts, data, tmp_path_factory) -> SimpleNamespace:
    return run(scripts.annotation, data, tmp_path_factory.mktemp("out"))


@pytest.fixture(params=["niched", "named"])
def ran(request: pytest.FixtureRequest) -> SimpleNamespace:
    return request.getfixturevalue(request.param)


def test_json_is_one_object_of_the_stated_form(ran):
    assert list(ran.json) == ["meta", "rows", "costs", "paired"]
    assert {"versions", "command", "seeds", "datasets", "meaning"} <= set(ran.json["meta"])
    assert ran.json["meta"]["seeds"] == [0, 1]
    assert all(list(row) == ROW for row in ran.json["rows"])
    assert all(list(cost) == COST for cost in ran.json["costs"])
    assert {"model", "baseline", "null"} <= set(ran.rows["kind"])
    assert not ran.rows.duplicated(ROW[:-1]).any()
    assert ran.json["meta"]["command"].endswith("--max-epochs 1")
    assert "--data DIR --out FILE" in ran.json["meta"]["command"]


def test_every_method_has_every_section_seed_and_metric(ran):
    headline = ran.rows[ran.rows["metric"].isin(["ami", "macro_f1"])]
    assert (headline.groupby("method").size() == 4).all()
    assert headline["value"].between(-1, 1).all()


def test_niches_say_what_each_model_was_trained_on(niched, scripts):
    folds = niched.rows.groupby("method")["fold"].unique().map(list).to_dict()
    names = scripts.niches
    assert folds[names.ZERO_SHOT] == ["other sections"]
    assert folds[names.CONTINUED] == ["other sections, then the section"]
    assert folds[names.ON_SECTION] == folds[names.ALONE] == ["section"]
    assert niched.json["meta"]["datasets"]["pair"]["headline"] == names.ON_SECTION


def test_surroundings_beat_the_cell_alone_in_both_benchmarks(niched, named, scripts):
    for ran, script, metric in (
        (niched, scripts.niches, "ami_assigned"),
        (named, scripts.annotation, "balanced_accuracy"),
    ):
        means = ran.rows[ran.rows["metric"] == metric].groupby("method")["value"].mean()
        assert means[script.AROUND] > means[script.ALONE]
        assert means[script.AROUND] > 0.4


def test_paired_differences_are_those_of_the_rows(ran):
    wide = ran.rows.pivot_table("value", ["section", "seed"], ["metric", "method"])
    for entry in ran.paired.itertuples():
        expected = (wide[entry.metric][entry.method] - wide[entry.metric][entry.against]).mean()
        assert entry.difference == pytest.approx(expected, abs=1e-5)
        assert entry.low <= entry.difference <= entry.high


def test_cells_set_aside_are_dropped_and_counted_unassigned_ones_are_a_label(niched):
    note = niched.json["meta"]["datasets"]["pair"]["sections"]["one"]
    assert note["n_dropped_set_aside"] == 5
    assert note["n_cells"] == N - 5
    assert note["n_labels"] == 3
    assert note["n_unassigned"] > 0
    values = niched.rows.pivot_table("value", ["method", "section", "seed"], "metric")
    assert (values["ami"] != values["ami_assigned"]).any()


def test_score_niches_scores_as_the_benchmark_does(niched, scripts, data):
    from stgen.baselines import cell_pcs

    sections = scripts.niches.read_sections(data, "pair")
    vectors = {section.name: cell_pcs(section.expression) for section in sections}
    table = scripts.niches.score_niches("pair", vectors, seeds=(0, 1), data=data)
    rows = niched.rows[(niched.rows["method"] == scripts.niches.ALONE) & (niched.rows["metric"] == "ami")]
    expected = rows.set_index(["section", "seed"])["value"]
    np.testing.assert_allclose(
        table.set_index(["section", "seed"])["ami"].loc[expected.index], expected, atol=1e-6
    )


def test_truth_itself_is_perfect_and_noise_is_nothing(scripts):
    section = scripts.niches.make_section("pair", "one", stripes(0))
    codes = np.unique(section.labels, return_inverse=True)[1]
    noise = np.random.default_rng(0).normal(size=(2, len(codes), 3))
    table = scripts.niches.score_niches([section], {"one": np.eye(3)[codes] * 20 + noise[0]}, (0,))
    assert table.loc[0, ["ami", "ari", "ami_assigned"]].to_numpy() == pytest.approx(1)
    assert abs(scripts.niches.score_niches([section], {"one": noise[1]}, (0,)).loc[0, "ami"]) < 0.1


def test_score_niches_names_what_does_not_fit(scripts):
    section = scripts.niches.make_section("pair", "one", stripes(0))
    with pytest.raises(KeyError, match=r"No labelled section \['three'\]; there are \['one'\]"):
        scripts.niches.score_niches([section], {"three": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"a row for each of the 235 cells of one; got \(3, 2\)"):
        scripts.niches.score_niches([section], {"one": np.zeros((3, 2))})


def test_models_and_baselines_never_see_a_label_of_what_is_scored(scripts, data):
    sections = scripts.niches.read_sections(data, "pair")
    models = scripts.niches.Models(sections, scripts.niches.Options(data=data))
    assert list(models.adata(["one"], models.genes).obs) == [_keys.LIBRARY]
    tasks = list(scripts.annotation.tasks_of(scripts.annotation.read_all(data, "pair"), ("left", "right")))
    assert [task.test.name for task in tasks] == ["one", "two"]
    first = [answer.labels for answer in scripts.annotation.baselines_of(tasks[0])]
    tasks[0].test.labels[:] = "right"
    for before, answer in zip(first, scripts.annotation.baselines_of(tasks[0]), strict=True):
        np.testing.assert_array_equal(before, answer.labels)
    assert list(tasks[0].adata([tasks[0].test], labelled=False).obs) == [_keys.LIBRARY]


def test_only_wanted_classes_are_learned_and_scored_but_all_cells_are_neighbours(scripts, data):
    task = next(
        iter(scripts.annotation.tasks_of(scripts.annotation.read_all(data, "pair"), ("left", "right")))
    )
    known = task.known(task.test)
    assert len(known) == N
    assert set(known) == {"left", "right", None}
    truth = np.where(known == None, "left", known)  # noqa: E711 elementwise
    assert scripts.annotation.score(task, truth) == {
        "macro_f1": 1.0,
        "balanced_accuracy": 1.0,
        "f1: left": 1.0,
        "f1: right": 1.0,
    }


def test_logs_of_a_file_are_undone_before_sections_meet(scripts):
    counts = stripes(0)
    logged = counts.copy()
    logged.X = counts.X.astype(np.float64).log1p()
    logged.uns["x_type"] = "log-normalised"
    plain = scripts.niches.make_section("pair", "one", counts)
    undone = scripts.niches.make_section("pair", "one", logged)
    np.testing.assert_allclose(undone.unlogged, plain.expression)
    assert np.abs(undone.expression - plain.expression).max() > 0.01


def test_overall_counts_every_dataset_the_same(scripts):
    names = scripts.niches
    rows = [
        {"metric": "ami", "dataset": dataset, "section": section, "method": method, "value": value}
        for dataset, section, values in (
            ("starmap_mpfc", "a", (0.9, 0.1, 0.5)),
            ("starmap_mpfc", "b", (0.7, 0.1, 0.5)),
            ("osmfish_ssp", "c", (0.0, 0.6, 0.5)),
        )
        for method, value in zip((names.ZERO_SHOT, names.ON_SECTION, names.AROUND), values, strict=True)
    ]
    about = {"starmap_mpfc": {"headline": names.ZERO_SHOT}, "osmfish_ssp": {"headline": names.ON_SECTION}}
    kinds = {names.ZERO_SHOT: "model", names.ON_SECTION: "model", names.AROUND: "baseline"}
    (entry,) = names.overall_of(pd.DataFrame(rows), about, kinds)
    assert entry["by_dataset"] == pytest.approx({"osmfish_ssp": 0.1, "starmap_mpfc": 0.3})
    assert entry["difference"] == pytest.approx(0.2)


def test_folder_without_sections_is_refused(scripts, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty must hold at least one section \(NAME.h5ad\)"):
        scripts.niches.read_sections(tmp_path, "empty")
    with pytest.raises(SystemExit, match=r"at least two sections with obs\['region'\]"):
        scripts.annotation.read_all(tmp_path, "empty")
