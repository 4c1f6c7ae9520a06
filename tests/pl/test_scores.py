"""Scores are drawn beside their nulls."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stgen import _keys
from stgen.pl import scores


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for method, kind, values in [
        ("genar", "model", [0.4, 0.5]),
        ("section mean", "null", [np.nan, np.nan]),
        ("coordinate kNN", "null", [0.2, 0.3]),
        ("ridge", "baseline", [0.3, 0.5]),
        ("depth oracle", "oracle", [0.1, 0.3]),
    ]:
        mean = np.mean(values)
        for section, value in [("mean", mean), ("b1", values[0]), ("b2", values[1])]:
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "metric": "pearson",
                    "scale": "normalized",
                    "section": section,
                    "value": value,
                    "best_null": "coordinate kNN",
                    "gain": value - 0.25,
                }
            )
    return pd.DataFrame(rows)


def test_models_stand_above_baselines_above_nulls(table):
    ax = scores(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "depth oracle",
        "section mean",
        "coordinate kNN",
        "ridge",
        "genar",
    ]
    assert ax.get_xlabel() == "Pearson correlation per gene, normalized expression"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "model",
        "baseline",
        "null",
        "oracle",
    ]


def test_every_section_is_a_dot_and_numbers_are_written(table):
    ax = scores(table)
    dots = np.concatenate([c.get_offsets() for c in ax.collections])
    assert len(dots) == 8  # the section mean has no value
    np.testing.assert_allclose(np.sort(dots[dots[:, 1] == 4][:, 0]), [0.4, 0.5])
    texts = [text.get_text().strip() for text in ax.texts]
    assert "0.450  (+0.200)" in texts and "0.250" in texts and "constant or undefined" in texts


def test_best_null_is_marked(table):
    ax = scores(table)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.25]


def test_distribution_over_genes_is_drawn_from_an_adata(adata, table):
    rng = np.random.default_rng(0)
    methods = table["method"].unique()
    by_gene = rng.normal(0.3, 0.1, (5, 20))
    by_gene[1] = np.nan
    adata.uns[_keys.EVALUATION] = {
        "table": {column: table[column].to_numpy() for column in table},
        "methods": methods,
        "pearson_normalized": by_gene,
    }
    ax = scores(adata)
    shades = [c for c in ax.collections if type(c).__name__ == "FillBetweenPolyCollection"]
    assert len(shades) == 4
    assert np.isclose(shades[-1].get_paths()[0].vertices[:, 0].min(), by_gene[0].min())


def test_methods_can_be_chosen_and_own_axes_are_used(table):
    _, ax = plt.subplots()
    assert scores(table, methods=["genar", "ridge"], ax=ax) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ridge", "genar"]


def test_results_of_evaluate_can_be_drawn(adata):
    from stgen.tl import evaluate

    adata.obs[_keys.SPLIT] = [_keys.TRAIN] * 80 + [_keys.TEST] * 80
    table = evaluate(adata, _keys.GENAR, baselines="nulls", min_counts=0, n_boot=20)
    for data in (adata, table):
        assert scores(data).get_yticklabels()[-1].get_text() == _keys.GENAR
        ax = scores(data, metric="rmse", scale="raw")
        assert ax.get_xlabel() == "RMSE per gene, raw expression"
        ax.figure.canvas.draw()


@pytest.fixture
def several(adata):
    """An exact prediction, a noisy one and a noisier one on another scale, of which some genes are missing."""
    from stgen.metrics import normalize_panel
    from stgen.tl import evaluate

    rng = np.random.default_rng(1)
    adata.layers["noisy"] = adata.layers[_keys.GENAR] * rng.gamma(3, 1 / 3, adata.shape)
    noisier = adata.layers[_keys.GENAR] * rng.gamma(1, 1, adata.shape)
    adata.obsm["noisier"] = normalize_panel(noisier, target=80)[:, :4]
    adata.uns["noisier"] = {"genes": np.array(adata.var_names[:4]), "scale": "normalized"}
    adata.obs[_keys.SPLIT] = [_keys.TRAIN] * 80 + [_keys.TEST] * 80
    table = evaluate(adata, ["noisy", _keys.GENAR, "noisier"], baselines="nulls", min_counts=0, n_boot=50)
    return adata, table


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def lines_below(ax):
    return [text.get_text() for text in ax.texts if " is ahead of " in text.get_text()]


def test_several_predictions_stand_in_the_order_given_and_the_best_is_compared(several):
    adata, table = several
    ax = scores(adata)
    assert names(ax)[-3:] == ["noisier", "genar", "noisy"]  # from the bottom up
    (text,) = lines_below(ax)
    first, second = text.split("\n")
    assert first.startswith("genar is ahead of noisier by 0.") or first.startswith(
        "genar is ahead of noisy by 0."
    )
    assert second.startswith("genar is ahead of ") and "[" in second
    ax.figure.canvas.draw()
    assert lines_below(scores(table)) == []  # the table alone does not know


def test_lines_follow_metric_scale_and_methods(several):
    adata, _ = several
    (text,) = lines_below(scores(adata, scale="raw"))
    assert text.count("\n") == 0 and "noisy" in text  # the third is normalized
    (text,) = lines_below(scores(adata, metric="rmse", scale="raw"))
    assert "genar is ahead of noisy by" in text and "[" not in text  # one section: no interval
    assert lines_below(scores(adata, methods=["genar", "coordinate kNN"])) == []


def test_lines_below_do_not_break_the_layout(several):
    adata, _ = several
    ax = scores(adata)
    ax.figure.canvas.draw()
    box = ax.texts[-1].get_window_extent()
    assert box.y0 >= 0 and box.y1 <= ax.xaxis.label.get_window_extent().y0


def test_method_without_a_value_leaves_the_layout_in_place(table):
    table["value"] = table["value"] / 100 + 50  # 0 lies far away
    ax = scores(table.assign(metric="rmse"), metric="rmse")
    ax.figure.canvas.draw()
    assert ax.get_position().width > 0.3


def test_errors_say_what_exists(adata, table):
    with pytest.raises(KeyError, match=r"uns\['evaluation'\] does not exist; run `stg.tl.evaluate` first"):
        scores(adata)
    with pytest.raises(ValueError, match=r"no scores of metric 'ssim'.*the table has \['pearson'\]"):
        scores(table, metric="ssim")
