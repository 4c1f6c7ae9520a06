"""Plots of niches, generated cells, meta cells and confusion: what is on them, and what is refused."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PathCollection
from matplotlib.colors import to_rgba

import stgen as stg
from stgen import _keys, pl
from stgen.pl._axes import cell_size

N = 80


@pytest.fixture
def adata():
    """Two sections; a hole in the first that was generated; niches; meta cells."""
    rng = np.random.default_rng(0)
    xy = np.r_[rng.uniform(0, 300, (N, 2)), rng.uniform(500, 700, (N, 2))]
    adata = ad.AnnData(
        rng.poisson(3.0, (2 * N, 4)).astype(np.float32),
        obs=pd.DataFrame(
            {
                _keys.LIBRARY: ["a"] * N + ["b"] * N,
                "gest_niche": pd.Categorical(np.array(["x", "y", "z"])[np.arange(2 * N) % 3]),
                "score": rng.normal(size=2 * N),
                "flag": np.arange(2 * N) % 2 == 0,
                "gest_meta_cell": np.arange(2 * N) % 5,
            },
            index=[f"c{i}" for i in range(2 * N)],
        ),
        var=pd.DataFrame(index=["A/B", "g1", "g2", "g3"]),
        obsm={_keys.SPATIAL: xy, "X_umap": rng.normal(size=(2 * N, 2))},
    )
    hidden = (np.abs(xy - 150) < 60).all(axis=1)
    adata.layers["gest"] = np.where(hidden[:, None], rng.gamma(2, size=adata.shape), np.nan)
    adata.obs["gest_round"] = np.where(hidden, 1.0, np.nan)
    genes = np.array(adata.var_names, dtype=object)
    adata.uns["gest"] = {
        "genes": genes,
        "panel": genes,
        "scale": "normalized",
        "params": {"expression": "counts", "target_total": 12.0},
    }
    adata.uns["X_gest"] = {
        "genes": genes,
        "meta_cells": {"profile": rng.gamma(2, size=(6, 4)), "n_cells": np.full(6, 9)},
    }
    return adata


def spots(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return collection


# niches ------------------------------------------------------------------------------------------------------


def test_every_section_has_its_panel_and_its_cells(adata):
    axes = pl.niches(adata)
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    np.testing.assert_array_equal(spots(axes[1]).get_offsets(), adata.obsm[_keys.SPATIAL][N:])
    np.testing.assert_array_equal(spots(axes[0]).get_array(), adata.obs["gest_niche"].cat.codes[:N])
    axes[0].figure.canvas.draw()


def test_panels_are_of_one_scale(adata):
    axes = pl.niches(adata)
    widths = [np.ptp(ax.get_xlim()) for ax in axes]
    heights = [np.ptp(ax.get_ylim()) for ax in axes]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert heights[0] == pytest.approx(heights[1])
    for ax, rows in zip(axes, (slice(0, N), slice(N, None))):
        xy = adata.obsm[_keys.SPATIAL][rows]
        assert (xy > [min(ax.get_xlim()), min(ax.get_ylim())]).all()
        assert (xy < [max(ax.get_xlim()), max(ax.get_ylim())]).all()


def test_colours_are_those_that_scanpy_keeps(adata):
    adata.uns["gest_niche_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"])
    axes = pl.niches(adata, sections="a")
    drawn = spots(axes[0])
    drawn.update_scalarmappable()
    np.testing.assert_allclose(
        drawn.get_facecolor()[:3], [to_rgba(c) for c in adata.uns["gest_niche_colors"]]
    )
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["x", "y", "z"]


def test_nothing_is_written(adata):
    from stgen.testing import changed_slots

    before = adata.copy()
    pl.niches(adata)
    pl.generated(adata, "g1")
    pl.meta_cells(adata, "gest_niche")
    pl.confusion(adata, "flag")
    assert not changed_slots(before, adata)


def test_cells_without_a_niche_are_grey_and_said(adata):
    adata.obs.loc["c0", "gest_niche"] = np.nan
    axes = pl.niches(adata)
    assert np.ma.getmaskarray(spots(axes[0]).get_array())[0]
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()][-1] == "none"


@pytest.mark.parametrize("color", ["score", "g2", "gest_round"])
def test_numbers_share_their_limits_and_have_a_bar(color, adata):
    axes = pl.niches(adata, color)
    assert spots(axes[0]).get_clim() == spots(axes[1]).get_clim()
    assert len(axes[0].figure.axes) == 3
    assert axes[0].get_legend() is None
    axes[0].figure.canvas.draw()


def test_true_and_false_are_categories(adata):
    axes = pl.niches(adata, "flag")
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["False", "True"]


def test_sections_are_drawn_in_the_order_asked_for(adata):
    assert [ax.get_title() for ax in pl.niches(adata, sections=["b", "a"], n_columns=1)] == ["b", "a"]
    given = plt.subplots(2)[1]
    assert pl.niches(adata, axes=given)[0] is given[0]


def test_one_section_needs_no_column(adata):
    del adata.obs[_keys.LIBRARY]
    assert len(pl.niches(adata)) == 1


def test_many_categories_have_many_colours(adata):
    adata.obs["many"] = pd.Categorical([str(i % 40) for i in range(2 * N)])
    axes = pl.niches(adata, "many")
    drawn = spots(axes[0])
    drawn.update_scalarmappable()
    assert len(np.unique(drawn.get_facecolor(), axis=0)) == 40


def test_what_cannot_be_drawn_is_said(adata):
    with pytest.raises(KeyError, match=r"'leiden' is neither a column of `obs` nor a gene; .*sc\.tl\.leiden"):
        pl.niches(adata, "leiden")
    with pytest.raises(KeyError, match="There is no section c; there are a, b"):
        pl.niches(adata, sections="c")
    with pytest.raises(KeyError, match="`sections` needs `groups`"):
        del adata.obs[_keys.LIBRARY]
        pl.niches(adata, sections="a")


# generated ---------------------------------------------------------------------------------------------------


def test_generated_cells_stand_beside_measured_ones_on_shared_limits(adata):
    axes = pl.generated(adata, ["g1", "A/B"])
    assert axes.shape == (2, 3)
    hidden = adata.obs["gest_round"].notna().to_numpy()
    left, right = spots(axes[0, 0]), spots(axes[0, 1])
    made = np.asarray(right.get_alpha()) == 1
    assert made.sum() == hidden.sum()
    np.testing.assert_allclose(np.asarray(right.get_array())[made], adata.layers["gest"][hidden, 1])
    np.testing.assert_allclose(np.asarray(left.get_array())[~made], np.asarray(right.get_array())[~made])
    table = stg.get.generated(adata, genes="g1")
    np.testing.assert_allclose(np.asarray(left.get_array())[made], table["measured"])
    assert left.get_clim() == right.get_clim()
    r = np.corrcoef(table["measured"], table["generated"])[0, 1]
    assert axes[0, 2].get_title() == f"r = {r:.2f}, {hidden.sum()} cells"
    axes[0, 0].figure.canvas.draw()


def test_only_cells_around_the_region_are_drawn(adata):
    near = pl.generated(adata, "g1", margin_um=20)
    xy = np.asarray(spots(near[0, 0]).get_offsets())
    made = adata.obsm[_keys.SPATIAL][adata.obs["gest_round"].notna().to_numpy()]
    assert (xy >= made.min(axis=0) - 20).all()
    assert (xy <= made.max(axis=0) + 20).all()
    whole = pl.generated(adata, "g1", margin_um=10_000)
    assert len(spots(whole[0, 0]).get_offsets()) == N  # of this section


def test_a_single_cell_has_no_correlation(adata):
    first = int(np.flatnonzero(adata.obs["gest_round"].notna())[0])
    adata.obs["gest_round"] = np.where(np.arange(2 * N) == first, 1.0, np.nan)
    axes = pl.generated(adata, "g1")
    assert axes[0, 2].get_title() == "r = nan, 1 cells"
    axes[0, 0].figure.canvas.draw()


def test_a_gene_that_was_not_generated_is_named(adata):
    with pytest.raises(
        KeyError, match=r"must be measured and generated; EPCAM are not\. There are 4, such as"
    ):
        pl.generated(adata, ["g1", "EPCAM"])
    with pytest.raises(KeyError, match="none given are not"):
        pl.generated(adata, [])
    with pytest.raises(KeyError, match="No cell of section 'b' was generated; those are in a"):
        pl.generated(adata, "g1", section="b")
    adata.obs.loc["c100", "gest_round"] = 1.0
    with pytest.raises(
        ValueError, match=r"Cells of 2 sections were generated; name one with `section=`: a, b"
    ):
        pl.generated(adata, "g1")


# meta cells --------------------------------------------------------------------------------------------------


def circles(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)][-1]


def test_a_circle_lies_at_the_median_of_its_cells(adata):
    ax = pl.meta_cells(adata)
    label = adata.obs["gest_meta_cell"].to_numpy()
    expected = [np.median(adata.obsm["X_umap"][label == k], axis=0) for k in range(5)]
    np.testing.assert_allclose(circles(ax).get_offsets(), expected)
    assert ax.get_title() == "5 meta cells of 160 cells"  # the sixth stands for none of them


def test_circles_have_the_colour_of_the_commonest_label_or_of_a_gene(adata):
    adata.obs["type"] = pd.Categorical(np.array(["u", "v"])[(adata.obs["gest_meta_cell"] < 2).astype(int)])
    adata.uns["type_colors"] = np.array(["#ff0000", "#0000ff"])
    ax = pl.meta_cells(adata, "type")
    expected = [to_rgba("#0000ff")] * 2 + [to_rgba("#ff0000")] * 3
    np.testing.assert_allclose(circles(ax).get_facecolor(), expected)
    ax = pl.meta_cells(adata, "g2")
    np.testing.assert_allclose(circles(ax).get_array(), adata.uns["X_gest"]["meta_cells"]["profile"][:5, 2])


def test_meta_cells_need_a_map_and_a_known_colour(adata):
    with pytest.raises(KeyError, match=r"obsm\['X_tsne'\] does not exist; .*`sc.tl.umap` first"):
        pl.meta_cells(adata, basis="X_tsne")
    with pytest.raises(KeyError, match="'EPCAM' is neither a column of `obs` nor a gene of the model"):
        pl.meta_cells(adata, "EPCAM")
    with pytest.raises(KeyError, match=r"uns\['X_no'\] holds no meta cells"):
        pl.meta_cells(adata, key="X_no")


# confusion ---------------------------------------------------------------------------------------------------


def test_confusion_shows_shares_of_true_labels(adata):
    adata.obs["truth"] = pd.Categorical(["x"] * N + ["y"] * N)
    ax = pl.confusion(adata, "truth")
    shares = stg.get.confusion(adata, "truth", normalize="truth")
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x (n = 80)", "y (n = 80)"]
    agree = (adata.obs["truth"].astype(str) == adata.obs["gest_niche"].astype(str)).mean()
    assert ax.get_title() == f"{agree:.0%} of cells agree"
    ax.figure.canvas.draw()


def test_labels_of_other_names_have_no_agreement(adata):
    assert pl.confusion(adata, "flag").get_title() == ""


# discs -------------------------------------------------------------------------------------------------------


def test_discs_of_a_grid_are_as_wide_as_its_pitch():
    x, y = np.meshgrid(np.arange(30) * 100.0, np.arange(30) * 100.0)
    assert cell_size(np.c_[x.ravel(), y.ravel()]) == pytest.approx(100)
    assert cell_size(np.array([[0.0, 0], [0, 7]])) == 7


# perturbation ------------------------------------------------------------------------------------------------


@pytest.fixture
def perturbed(adata):
    table = {
        "gene": np.array(["g1", "g2", "g3"] * 2, dtype=object),
        "ring": np.repeat([0, 1], 3),
        "from_um": np.repeat([0.0, 40.0], 3),
        "to_um": np.repeat([40.0, 80.0], 3),
        "n_cells": np.repeat([5, 9], 3),
        "effect": np.array([1.0, -0.5, 0.0, 0.4, -0.2, 0.1]),
        "z": np.array([5.0, -1, 0, 2, -1, 1]),
        "p": np.array([1e-5, 0.3, 1, 0.05, 0.3, 0.3]),
        "call": np.array(["High", *["n.s."] * 5], dtype=object),
    }
    columns = np.array(list(table), dtype=object)
    adata.uns["gest_perturb"] = {"columns": columns, "table": table, "facts": {"null": "sham"}}
    return adata


def test_effects_are_drawn_by_distance_and_calls_are_filled(perturbed):
    ax = pl.perturbation(perturbed, n_genes=2)
    first, second = (c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(first.get_offsets()[:, 1], [1.0, 0.4])  # the smallest p first
    np.testing.assert_allclose(second.get_offsets()[:, 1], [-0.5, -0.2])
    white = to_rgba("white")
    assert [tuple(color) == white for color in first.get_facecolor()] == [False, True]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["g1", "g2"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "40", "80"]
    assert ax.get_title() == "1 of 3 genes called, null: sham"
    ax.figure.canvas.draw()


def test_bars_are_one_standard_error(perturbed):
    ax = pl.perturbation(perturbed, "g1")
    (bars,) = (c for c in ax.collections if not isinstance(c, PathCollection))
    np.testing.assert_allclose([np.ptp(path[:, 1]) for path in bars.get_segments()], [0.4, 0.4])


def test_rings_without_cells_are_not_drawn(perturbed):
    perturbed.uns["gest_perturb"]["table"]["n_cells"] = np.repeat([5, 0], 3)
    ax = pl.perturbation(perturbed, ["g1"])
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert len(dots.get_offsets()) == 1


def test_a_perturbation_that_does_not_exist_is_said(adata):
    with pytest.raises(KeyError, match=r"uns\['gest_perturb'\] holds no perturbation"):
        pl.perturbation(adata)
