"""Calibration, training curves and gene groups."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PatchCollection

from stgen.pl import calibration, gene_groups, history


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_calibration_draws_the_density_and_its_deviation():
    values = np.r_[np.full(60, 0.05), np.full(40, 0.95)]
    ax = calibration(values, n_bins=10)
    stairs = [p for p in ax.patches if type(p).__name__ == "StepPatch"]
    heights = stairs[0].get_data().values
    np.testing.assert_allclose(heights, [6, *[0] * 8, 4])
    assert legend(ax) == ["max deviation 0.500", "calibrated"]
    assert ax.get_xlim() == (0, 1)


def test_calibration_compares_models_and_counts_undefined_values():
    uniform = np.append((np.arange(1000) + 0.5) / 1000, np.nan)
    ax = calibration({"genar": uniform, "poisson": np.zeros(10)})
    assert legend(ax) == [
        "genar: max deviation 0.000, 1 undefined",
        "poisson: max deviation 0.950",
        "calibrated",
    ]
    with pytest.raises(ValueError, match="`pit` of 'x' has no value that is finite"):
        calibration({"x": [np.nan]})
    with pytest.raises(ValueError, match="`pit` is empty"):
        calibration({})


@pytest.fixture
def table() -> pd.DataFrame:
    index = pd.Index(range(4), name="epoch")
    return pd.DataFrame(
        {"loss_train": [3.0, 2, 1, 0.5], "loss_validation": [3.0, 1.5, 1.2, 2], "lr": [1.0, 1, 1, 0]},
        index=index,
    )


@pytest.mark.parametrize("form", ["table", "dict", "model", "slash"])
def test_history_draws_both_splits_and_the_best_epoch(table, form):
    data = table
    if form == "dict":
        data = {name: table[[name]] for name in table}
    elif form == "model":
        data = SimpleNamespace(history_={name: table[[name]] for name in table})
    elif form == "slash":
        data = table.rename(columns={"loss_train": "train_loss", "loss_validation": "validation_loss"})
    (ax,) = history(data)
    train, validation, ring = ax.lines
    np.testing.assert_array_equal(train.get_ydata(), table["loss_train"])
    np.testing.assert_array_equal(validation.get_ydata(), table["loss_validation"])
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, 1.2)
    assert [text.get_text() for text in ax.texts] == ["best, epoch 2"]
    assert legend(ax) == ["train", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_history_draws_one_panel_per_quantity_on_own_axes(table):
    _, mine = plt.subplots(1, 2)
    axes = history(table, quantities=["loss", "lr"], axes=mine)
    assert list(axes) == list(mine)
    assert axes[1].get_ylabel() == "lr" and len(axes[1].lines) == 1


def test_history_without_validation_has_one_curve(table):
    (ax,) = history(table[["loss_train"]])
    assert len(ax.lines) == 1 and ax.get_legend() is None


def test_history_errors_say_what_exists(table):
    with pytest.raises(KeyError, match="no 'kl' in the history; it has loss_train, loss_validation, lr"):
        history(table, quantities="kl")
    with pytest.raises(ValueError, match="call `train` first"):
        history(SimpleNamespace(history_=None))
    with pytest.raises(TypeError, match=r"Expected a fitted model.*got int"):
        history(3)


@pytest.fixture
def groups() -> pd.DataFrame:
    return pd.DataFrame(
        {"scale_1": 0, "scale_2": [1, 0, 1, 0, 0], "scale_5": [4, 1, 3, 0, 2]},
        index=pd.Index(["e", "b", "d", "a", "c"], name="gene"),
    )


def blocks(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, PatchCollection))
    return collection


@pytest.mark.parametrize("is_index", [True, False])
def test_gene_groups_are_blocks_under_their_parents(groups, is_index):
    ax = gene_groups(groups if is_index else groups.reset_index())
    assert len(blocks(ax).get_paths()) == 1 + 2 + 5
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcde")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1 group", "2 groups", "5 genes"]
    lefts = [path.vertices[:, 0].min() for path in blocks(ax).get_paths()]
    assert lefts == [0, 0, 3, 0, 1, 2, 3, 4]
    assert [text.get_text() for text in ax.texts] == ["5", "3"]


def test_neighbours_in_the_hierarchy_have_similar_colours(groups):
    colour = blocks(gene_groups(groups)).get_array()
    np.testing.assert_allclose(colour[:3], [0.5, 0.3, 0.8])
    assert (np.diff(colour[3:]) > 0).all()


def test_many_genes_are_not_named():
    many = pd.DataFrame({"coarse": np.arange(300) // 100, "fine": np.arange(300)})
    ax = gene_groups(many)
    assert len(ax.get_xticks()) == 0
    assert ax.get_xlabel() == "300 genes, in the order of the hierarchy"
    with pytest.raises(ValueError, match="genes × scales; it is empty"):
        gene_groups(pd.DataFrame())


def test_a_phase_with_another_loss_starts_a_curve_of_its_own():
    table = pd.DataFrame({
        "train_loss": [0.2, 0.1, 5.0, 4.0],
        "validation_loss": [0.3, 0.2, 6.0, 5.0],
        "phase": [1, 1, 2, 2],
    })  # fmt: skip
    (ax,) = history(table)
    curves = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in curves] == [[0, 1], [2, 3]] * 2
    # the ring is where training ends well, not where another loss was small
    (ring,) = (line for line in ax.lines if line.get_marker() == "o")
    assert list(ring.get_xdata()) == [3]
    assert legend(ax) == ["train", "validation"]
