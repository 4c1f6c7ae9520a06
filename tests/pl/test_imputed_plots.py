"""Plots of imputed genes: maps, predictability, distances between genes."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, LineCollection, PathCollection

import stgen as stg
from stgen import _keys, pl
from stgen.pl._gene_distances import clustered, correlation_distance

N, G = 60, 6
GENES = ["A/B", "i1", "i2", "i3", "i4", "i5"]
VERDICT = ["use", "weak", "do not use", "use", "weak", "use"]


def imputation(adata, values, verdict):
    """What `tl.causalged_impute` writes."""
    n = len(verdict)
    center = np.linspace(0.5, -0.1, n)
    columns = ("predictability", "low", "high", "gain", "gain_low", "gain_high")
    shift = (0, -0.2, 0.2, -0.1, -0.3, 0.1)
    adata.obsm["causalged"] = values.astype(np.float32)
    adata.obsm["causalged_sd"] = np.sqrt(values + 0.1).astype(np.float32)
    adata.uns["causalged"] = {
        "genes": np.array(GENES if n == G else [f"i{i}" for i in range(n)], dtype=object),
        "panel": np.array(adata.var_names, dtype=object),
        "scale": "normalized",
        "table": {
            **{name: center + by for name, by in zip(columns, shift)},
            "verdict": np.array(verdict, dtype=object),
        },
        "params": {"expression": "counts", "target_total": 12.0},
    }
    return adata


@pytest.fixture
def adata():
    """Two sections; six imputed genes of two programmes."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(6) * 100.0, np.arange(5) * 100.0)
    xy = np.c_[x.ravel(), y.ravel()]
    adata = ad.AnnData(
        rng.poisson(4.0, (N, 4)).astype(np.float32),
        obs=pd.DataFrame({_keys.LIBRARY: ["a"] * 30 + ["b"] * 30}, index=[f"s{i}" for i in range(N)]),
        var=pd.DataFrame(index=["g1", "g2", "g3", "g4"]),
        obsm={_keys.SPATIAL: np.r_[xy, xy]},
    )
    programme = rng.gamma(2, size=(N, 2))
    return imputation(adata, programme[:, [0, 1, 0, 1, 0, 1]] + 0.1 * rng.random((N, G)), VERDICT)


@pytest.fixture
def truth(adata):
    rng = np.random.default_rng(1)
    return ad.AnnData(
        rng.poisson(2 * adata.obsm["causalged"][:, ::-1] + 0.1).astype(np.float32),
        obs=pd.DataFrame(index=adata.obs_names),
        var=pd.DataFrame(index=GENES[::-1]),
    )


def spots(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return collection


def dots(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)]


# maps --------------------------------------------------------------------------------------------------------


def test_imputed_stands_beside_measured_on_shared_limits(adata, truth):
    axes = pl.imputed(adata, ["A/B", "i2"], truth=truth, section="b")
    assert axes.shape == (2, 2)
    left, right = spots(axes[0, 0]), spots(axes[0, 1])
    total = adata.X[30:].sum(axis=1)
    expected = np.log1p(truth[adata.obs_names[30:], "A/B"].X.ravel() * 12 / total)
    np.testing.assert_allclose(left.get_array(), expected, rtol=1e-5)
    np.testing.assert_allclose(right.get_array(), adata.obsm["causalged"][30:, 0], rtol=1e-6)
    assert left.get_clim() == right.get_clim()
    r = np.corrcoef(expected, adata.obsm["causalged"][30:, 0])[0, 1]
    assert axes[0, 0].get_title() == "A/B, measured"
    assert axes[0, 1].get_title() == f"imputed, r = {r:.2f} (use)"
    assert "(do not use)" in axes[1, 1].get_title()
    axes[0, 0].figure.canvas.draw()


def test_without_truth_imputed_stands_beside_its_spread(adata):
    axes = pl.imputed(adata, "i1", section="a")
    assert axes[0, 0].get_title() == "i1, imputed (weak)"
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), adata.obsm["causalged_sd"][:30, 1], rtol=1e-6)
    axes[0, 0].figure.canvas.draw()


def test_maps_are_drawn_on_axes_that_are_given(adata):
    _, mine = plt.subplots(1, 2)
    axes = pl.imputed(adata, "i1", section="a", axes=mine)
    assert axes[0, 0] is mine[0]
    with pytest.raises(ValueError, match="2 × 2 panels need 4 axes; got 2"):
        pl.imputed(adata, ["i1", "i2"], section="a", axes=mine)


def test_maps_that_cannot_be_drawn_are_explained(adata, truth):
    with pytest.raises(
        KeyError, match=r"`genes` must be imputed genes; g1 are not\. 'causalged' has 6, such as A/B"
    ):
        pl.imputed(adata, ["i1", "g1"], section="a")
    with pytest.raises(KeyError, match="none given are not"):
        pl.imputed(adata, [], section="a")
    with pytest.raises(ValueError, match="There are 2 sections; name one with `section=`: a, b"):
        pl.imputed(adata, "i1")
    with pytest.raises(KeyError, match="holds no imputation"):
        pl.imputed(adata, "i1", key="mine")
    with pytest.raises(KeyError, match=r"`truth` has no gene i1"):
        pl.imputed(adata, "i1", truth=truth[:, ["i2"]], section="a")
    with pytest.raises(KeyError, match=r"obsm\['um'\] does not exist"):
        pl.imputed(adata, "i1", section="a", spatial_key="um")


# predictability ----------------------------------------------------------------------------------------------


def test_a_gene_is_a_dot_of_its_verdict_with_its_intervals(adata):
    ax = pl.predictability(adata, genes=["A/B"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["use (3)", "weak (2)", "do not use (1)"]
    table = stg.get.imputed(adata).var
    use = next(one for one in dots(ax) if one.get_label() == "use (3)")
    expected = table.loc[table["verdict"] == "use", ["gain", "predictability"]]
    np.testing.assert_allclose(use.get_offsets(), expected)
    bars = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert sum(len(one.get_segments()) for one in bars) == 2 * G
    assert "A/B" in [text.get_text() for text in ax.texts]
    ax.figure.canvas.draw()


def test_many_genes_share_one_interval(adata):
    rng = np.random.default_rng(0)
    adata = imputation(adata, rng.gamma(2, size=(N, 400)), ["weak"] * 400)
    ax = pl.predictability(adata)
    assert not [c for c in ax.collections if isinstance(c, LineCollection)]
    assert "80 % interval" in [text.get_text() for text in ax.texts]
    low, high = ax.get_ylim()
    assert low < stg.get.imputed(adata).var["predictability"].min()
    assert high > stg.get.imputed(adata).var["predictability"].max()
    ax.figure.canvas.draw()


def test_predictability_is_drawn_on_axes_that_are_given(adata):
    mine = plt.subplots()[1]
    assert pl.predictability(adata, ax=mine) is mine
    with pytest.raises(KeyError, match="`genes` must be imputed genes; g1 are not"):
        pl.predictability(adata, genes="g1")


# distances ---------------------------------------------------------------------------------------------------


def test_distances_are_those_of_correlations():
    values = np.random.default_rng(0).normal(size=(30, 4))
    values[:, 3] = -values[:, 0]
    distance = correlation_distance(values)
    np.testing.assert_allclose(distance, 1 - np.corrcoef(values.T), atol=1e-12)
    assert distance[0, 3] == pytest.approx(2)


def test_both_maps_are_in_the_order_of_the_truth(adata, truth):
    axes = pl.gene_distances(adata, truth=truth)
    assert axes.shape == (1, 2)
    names = [text.get_text() for text in axes[0, 0].get_yticklabels()]
    assert sorted(names) == sorted(GENES)
    # programmes stay together
    assert {frozenset(names[:3]), frozenset(names[3:])} == {frozenset(GENES[::2]), frozenset(GENES[1::2])}
    order = [GENES.index(name) for name in names]
    expected = correlation_distance(adata.obsm["causalged"].astype(float)[:, order])
    np.testing.assert_allclose(axes[0, 1].images[0].get_array(), expected, atol=1e-6)
    assert "distances agree r = " in axes[0, 1].get_title()
    axes[0, 0].figure.canvas.draw()


def test_without_truth_only_imputed_genes_are_drawn(adata):
    axes = pl.gene_distances(adata, genes=["i1", "i2", "i3"])
    assert axes.shape == (1, 1)
    assert axes[0, 0].get_title() == "imputed"
    assert axes[0, 0].images[0].get_array().shape == (3, 3)
    axes[0, 0].figure.canvas.draw()


def test_genes_without_truth_are_left_out_and_constant_ones_are_grey(adata, truth):
    truth = truth[:, ["i1", "i2", "i3"]].copy()
    truth.X[:, 0] = 0
    axes = pl.gene_distances(adata, truth=truth)
    shown = np.ma.getmaskarray(axes[0, 0].images[0].get_array())
    assert shown.shape == (3, 3)
    assert shown.any(axis=0).all()  # one row and one column are
    assert shown.sum() == 5


def test_a_number_of_genes_that_cannot_be_drawn_is_refused(adata, truth):
    with pytest.raises(ValueError, match=r"between 2 and 1000 genes; there are 1\. Name some with `genes=`"):
        pl.gene_distances(adata, genes=["i1"])
    with pytest.raises(ValueError, match=r"there are 0\. Name some with `genes=` that `truth` has"):
        truth.var_names = [f"x{i}" for i in range(G)]
        pl.gene_distances(adata, truth=truth)


def test_the_order_does_not_depend_on_the_order_of_genes():
    values = np.random.default_rng(0).normal(size=(40, 3))[:, [0, 1, 2, 0, 1, 2]]
    values = values + 0.1 * np.random.default_rng(1).normal(size=(40, 6))
    order = clustered(correlation_distance(values)) % 3
    assert all(a == b for a, b in order.reshape(3, 2))


# coverage ----------------------------------------------------------------------------------------------------


def with_intervals(adata, truth):
    """Of gene 0 the 90 % interval holds half of the spots and says 80 %; all others hold everything and say so."""
    total = adata.X.sum(axis=1, keepdims=True)
    logged = np.log1p(truth[adata.obs_names, GENES].X * 12 / total)
    for mass in (50, 90):
        ends = {"lower": logged - 0.1, "upper": logged + 0.1, "mass": np.ones_like(logged)}
        if mass == 90:
            ends["lower"][: N // 2, 0] += 0.2
            ends["upper"][: N // 2, 0] += 0.2
            ends["mass"][:, 0] = 0.8
        for name, values in ends.items():
            adata.obsm[f"causalged_{name}_{mass}"] = values.astype(np.float32)
    return adata


def test_a_gene_is_a_dot_of_what_its_interval_says_and_holds(adata, truth):
    ax = pl.coverage(with_intervals(adata, truth), truth=truth)
    few, many = dots(ax)
    np.testing.assert_allclose(few.get_offsets(), np.ones((G, 2)))
    expected = np.ones((G, 2))
    expected[0] = 0.8, 0.5
    np.testing.assert_allclose(many.get_offsets(), expected, atol=1e-6)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[1:] == ["50 % interval: +0.000 on average", "90 % interval: -0.050 on average"]
    ax.figure.canvas.draw()


def test_coverage_without_intervals_or_truth_is_refused(adata, truth):
    with pytest.raises(KeyError, match=r"obsm\['causalged_lower_50'\] does not exist: .*`intervals=True`"):
        pl.coverage(adata, truth=truth)
    truth.var_names = [f"x{i}" for i in range(G)]
    with pytest.raises(ValueError, match="`truth` has none of the imputed genes"):
        pl.coverage(adata, truth=truth)


def test_coverage_is_drawn_on_axes_that_are_given(adata, truth):
    mine = plt.subplots()[1]
    assert pl.coverage(with_intervals(adata, truth), truth=truth, genes=["i1"], ax=mine) is mine
    assert len(dots(mine)[0].get_offsets()) == 1


# umap --------------------------------------------------------------------------------------------------------


def share(ax):
    return float(ax.get_title().split("%")[0])


def test_spots_stand_twice_in_one_embedding(adata, truth):
    axes = pl.imputed_umap(adata, truth=truth, color=_keys.LIBRARY)
    assert axes.shape == (1, 2)
    for ax in axes[0]:
        offsets = max((one.get_offsets() for one in dots(ax)), key=len)
        assert len(offsets) == 2 * N and np.isfinite(offsets).all()
    labels = [text.get_text() for text in axes[0, 0].get_legend().get_texts()]
    assert labels == ["measured", "imputed"]
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == ["a", "b"]
    axes[0, 0].figure.canvas.draw()


def test_what_cannot_be_told_apart_is_mixed_and_what_can_is_not(adata, truth):
    total = adata.X.sum(axis=1, keepdims=True)
    logged = np.log1p(truth[adata.obs_names, GENES].X * 12 / total)
    adata.obsm["causalged"] = (logged + 0.01 * np.random.default_rng(0).normal(size=(N, G))).astype(
        np.float32
    )
    alike = share(pl.imputed_umap(adata, truth=truth)[0, 0])
    adata.obsm["causalged"] = (logged + 9).astype(np.float32)
    apart = share(pl.imputed_umap(adata, truth=truth)[0, 0])
    assert 40 < alike < 60
    assert apart == 0


def test_the_embedding_belongs_to_a_seed_and_leaves_the_object_alone(adata, truth):
    before = adata.copy()
    one, other = (pl.imputed_umap(adata, truth=truth, max_spots=40, random_state=3) for _ in range(2))
    first, second = (max((d.get_offsets() for d in dots(axes[0, 0])), key=len) for axes in (one, other))
    assert len(first) == 80
    np.testing.assert_array_equal(first, second)
    assert not stg.testing.changed_slots(before, adata)


def test_an_embedding_that_cannot_be_made_is_explained(adata, truth):
    with pytest.raises(ValueError, match="At least 3 imputed genes that `truth` has are needed; there are 2"):
        pl.imputed_umap(adata, truth=truth, genes=["i1", "i2"])
    with pytest.raises(KeyError, match=r"obs\['zone'\] does not exist; obs has"):
        pl.imputed_umap(adata, truth=truth, color="zone")
    with pytest.raises(ValueError, match="More than 15 spots are needed; there are 9"):
        pl.imputed_umap(adata[:9].copy(), truth=truth)
