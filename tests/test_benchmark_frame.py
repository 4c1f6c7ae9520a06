"""What all benchmarks do around a run: what was measured is kept when a row fails, and names are checked first."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

BENCHMARK = "histology"
SMALL = ["--quick", "--seeds", "0", "--datasets", "toy", "--baselines", "section mean,coordinate kNN"]


def rows_of(document):
    return {row["method"] for row in document["rows"]}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_rows_before_one_that_fails_are_written_with_its_error(benchmark, tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setitem(benchmark.QUICK, "toy", benchmark.ToySize(2, 1, 40, 12))
    monkeypatch.setattr(benchmark, "run_genst", fail)
    out = tmp_path / "new" / "out.json"
    with pytest.raises(type(error)):  # the script ends with an error as well
        benchmark.main([*SMALL, "--out", str(out)])
    written = json.loads(out.read_text())
    assert rows_of(written) == {"section mean", "coordinate kNN"}
    (failed,) = written["failed"]
    assert failed["error"] == f"{type(error).__name__}: {error}"
    assert failed["after"] == written["rows"][-1]
    assert written["meta"]["unfinished"]
    assert written["meta"]["command"].startswith("python benchmarks/histology.py --quick")
    assert [one.name for one in out.parent.iterdir()] == ["out.json"]


def test_a_closed_form_row_that_fails_keeps_those_before_it(benchmark, tmp_path, monkeypatch):
    run = benchmark.run_baseline

    def fail(fold, make, **how):
        if getattr(make, "name", "") == "coordinate kNN":
            raise MemoryError
        return run(fold, make, **how)

    monkeypatch.setitem(benchmark.QUICK, "toy", benchmark.ToySize(2, 1, 40, 12))
    monkeypatch.setattr(benchmark, "run_baseline", fail)
    with pytest.raises(MemoryError):
        benchmark.main([*SMALL, "--out", str(tmp_path / "out.json")])
    assert rows_of(json.loads((tmp_path / "out.json").read_text())) == {"section mean"}


def test_a_failure_before_any_row_leaves_an_earlier_file(benchmark, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text("{}")
    with pytest.raises(SystemExit, match="must say where the folder 'her2st_he' lies"):
        benchmark.main(["--quick", "--datasets", "her2st_he", "--out", str(out)])
    assert out.read_text() == "{}"


def test_what_there_is_is_written_while_rows_come(benchmark, tmp_path, monkeypatch):
    """A process that is killed has no last word."""
    report = sys.modules["_report"]
    monkeypatch.setattr(report, "KEEP_EVERY", 0.0)
    results, out, seen = report.Results(), tmp_path / "out.json", []
    with report.kept(out, "command"):
        for seed in (0, 1):
            place = report.Place("toy", "s1", "p1", seed)
            for method in ("a", "b"):
                for metric in ("pearson", "rmse"):
                    results.add(place, method, "null", metric, "raw", 0.5)
                    seen.append(len(json.loads(out.read_text())["rows"]) if out.exists() else 0)
    assert seen == [0, 0, 2, 2, 4, 4, 6, 6]
    results.add(report.Place("toy", "s2", "p1", 0), "a", "null", "rmse", "raw", 0.5)
    assert len(json.loads(out.read_text())["rows"]) == 6  # nobody keeps any more


def test_rows_of_other_forms_are_kept_as_well(benchmark, tmp_path, monkeypatch):
    report = sys.modules["_report"]
    monkeypatch.setattr(report, "KEEP_EVERY", 0.0)
    rows, out = [], tmp_path / "out.json"
    with pytest.raises(ZeroDivisionError), report.kept(out, "command", lambda: {"rows": rows}) as keep:
        rows.append({"seconds": 1.5})
        keep()
        assert json.loads(out.read_text())["rows"] == [{"seconds": 1.5}]
        rows.append({"seconds": 2.5})
        raise ZeroDivisionError
    written = json.loads(out.read_text())
    assert written["rows"] == [{"seconds": 1.5}, {"seconds": 2.5}]
    assert written["failed"] == [{"after": {"seconds": 2.5}, "error": "ZeroDivisionError: "}]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "histology",
            ["--baselines", "section mean,coordinate KNN"],
            "got 'coordinate KNN'. Did you mean 'coordinate kNN'?",
        ),
        ("histology", ["--baselines", "MLP with places"], "Did you mean 'MLP with place'?"),
        (
            "histology",
            ["--models", "GenAr"],
            "--models must be among GenAR, GenST; got 'GenAr'. Did you mean 'GenAR'?",
        ),
        ("histology", ["--datasets", "toi"], "got 'toi'. Did you mean 'toy'?"),
        ("imputation", ["--datasets", "pair_pdac"], "Did you mean 'pair_pdac_a'?"),
        ("imputation", ["--peers", "tangrm"], "Did you mean 'Tangram'?"),
        ("niches", ["--data", "{}", "--datasets", "dlpfc"], "Did you mean 'dlpfc_visium'?"),
        (
            "niches",
            ["--data", "{}", "--peers", "nova"],
            "--peers must be among BANKSY, Novae, scVIVA; got 'nova'. Did you mean 'Novae'?",
        ),
        ("annotation", ["--data", "{}", "--datasets", "starmap"], "Did you mean 'starmap_mpfc'?"),
        ("annotation", ["--data", "{}", "--datasets", "min"], "Did you mean 'mine'?"),
        ("unseen_region", ["--data", "{}", "--datasets", "osmfish"], "Did you mean 'osmfish_ssp'?"),
        ("pretraining", ["--datasets", "toyy"], "Did you mean 'toy'?"),
        ("speed", ["--presets", "smal"], "Did you mean 'small'?"),
    ],
)
def test_a_name_that_nobody_has_is_refused_with_the_nearest(
    benchmark, script, arguments, message, tmp_path, capsys, monkeypatch
):
    (tmp_path / "mine").mkdir()
    module = importlib.import_module(script)
    arguments = [one.format(tmp_path) for one in arguments]
    out = ["--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", [script, *arguments, *out])
    with pytest.raises(SystemExit) as end:
        module.main() if script == "speed" else module.main([*arguments, *out])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_every_name_that_is_offered_is_run(benchmark):
    names = benchmark.baseline_names()
    assert len(names) == len(set(names)) and {
        "section mean",
        "ridge without neighbours",
        "MLP with place",
    } <= set(names)
    options, _ = benchmark.parse(["--out", "out.json", "--baselines", ",".join(names)])
    assert options.baselines == tuple(names)
