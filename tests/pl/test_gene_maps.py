"""Gene maps: what is on them, and on one colour scale."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

from stgen import _keys, metrics
from stgen.pl import gene_maps
from stgen.pl._axes import round_length, spot_pitch


def spots(ax):
    (collection,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return collection


def test_truth_and_prediction_show_the_right_values_on_shared_limits(adata):
    axes = gene_maps(adata, ["CCL3/L1/L3", "g3"], section="b")
    assert axes.shape == (2, 2)
    target = metrics.panel_target(adata.X[80:])
    truth = metrics.normalize_panel(adata.X[80:], target=target)
    prediction = metrics.normalize_panel(adata.layers[_keys.GENAR][80:], target=target)
    for i, gene in enumerate([0, 3]):
        np.testing.assert_allclose(spots(axes[i, 0]).get_array(), truth[:, gene], rtol=1e-6)
        np.testing.assert_allclose(spots(axes[i, 1]).get_array(), prediction[:, gene], rtol=1e-6)
        assert spots(axes[i, 0]).get_clim() == spots(axes[i, 1]).get_clim()
        r = metrics.pearson(truth[:, [gene]], prediction[:, [gene]])[0]
        assert axes[i, 1].get_title() == f"genar, r = {r:.2f}"
    assert axes[0, 0].get_title() == "CCL3/L1/L3, measured"
    assert spots(axes[0, 0]).get_clim() != spots(axes[1, 0]).get_clim()


def test_raw_scale_is_log_counts(adata):
    axes = gene_maps(adata, "g1", section="a", scale="raw")
    np.testing.assert_allclose(spots(axes[0, 0]).get_array(), np.log1p(adata.X[:80, 1]), rtol=1e-6)
    assert axes[0, 0].figure.axes[-1].get_ylabel() == "log (count + 1)"


def test_several_predictions_are_columns_joined_by_name(adata):
    axes = gene_maps(adata, "g1", prediction=["part", _keys.GENAR], section="a", scale="raw")
    assert axes.shape == (1, 3)
    for ax in axes[0, 1:]:
        np.testing.assert_allclose(spots(ax).get_array(), np.log1p(adata.layers[_keys.GENAR][:80, 1]))


def test_prediction_that_is_normalized_is_drawn_as_it_is(adata):
    axes = gene_maps(adata, "g1", section="a", prediction_scale="normalized")
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), adata.layers[_keys.GENAR][:80, 1])
    with pytest.raises(
        ValueError, match=r"'genar' is depth-normalised; it cannot be drawn with `scale='raw'`"
    ):
        gene_maps(adata, "g1", section="a", prediction_scale="normalized", scale="raw")


def test_predictions_on_different_scales_are_drawn_on_one(adata):
    """Two predictions that say the same in other units look the same, and so does a part of the genes."""
    counts = adata.layers[_keys.GENAR]
    adata.layers["log"] = np.log1p(counts)
    adata.layers["norm"] = metrics.normalize_panel(counts, target=metrics.panel_target(adata.X[:80]))
    adata.uns["norm"] = {"params": {"scale": "normalized"}}
    keys = [_keys.GENAR, "log", "norm"]
    for extra in ([], ["part"]):  # with it, only three genes are common
        axes = gene_maps(
            adata, "g1", prediction=[*keys, *extra], section="a", prediction_scale={"log": "raw"}
        )
        shown = [spots(ax).get_array() for ax in axes[0]]
        for other in shown[2:]:
            np.testing.assert_allclose(other, shown[1], rtol=1e-6)
        assert len({spots(ax).get_clim() for ax in axes[0]}) == 1
        titles = [ax.get_title().split(",")[0] for ax in axes[0]]
        assert titles == ["g1", *keys, *extra]


def test_several_predictions_have_messages_that_name_them(adata):
    with pytest.raises(KeyError, match=r"g4 are not \(not in part\). There are 3"):
        gene_maps(adata, "g4", prediction=["part", _keys.GENAR], section="a")
    with pytest.raises(ValueError, match=r"one key or several different ones.*got \['part', 'part'\]"):
        gene_maps(adata, "g1", prediction=["part", "part"], section="a")
    with pytest.raises(ValueError, match=r"`prediction_scale` names \['prt'\], which are not among"):
        gene_maps(adata, "g1", prediction=["part"], prediction_scale={"prt": "raw"}, section="a")
    with pytest.raises(KeyError, match=r"layers\['counts'\] does not exist; layers has \['genar'\]"):
        gene_maps(adata, "g1", truth="counts", section="a")


def test_places_are_to_scale_with_y_down_and_a_bar_in_um(adata):
    ax = gene_maps(adata, "g1", section="a")[0, 0]
    assert ax.get_aspect() == 1
    assert ax.yaxis_inverted()
    np.testing.assert_array_equal(spots(ax).get_offsets(), adata.obsm[_keys.SPATIAL][:80])
    assert [text.get_text() for text in ax.texts] == ["200 µm"]
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) == 200


def test_own_axes_are_used(adata):
    figure, mine = plt.subplots(1, 2)
    axes = gene_maps(adata, "g1", section="a", axes=mine)
    assert axes.shape == (1, 2) and axes[0, 0] is mine[0]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match=r"2 × 2 panels need 4 axes; got 2"):
        gene_maps(adata, ["g1", "g2"], section="a", axes=mine)


def test_nothing_is_changed(adata):
    before = adata.copy()
    gene_maps(adata, "g1", section="a")
    np.testing.assert_array_equal(adata.X, before.X)
    assert set(adata.uns) == set(before.uns)


def test_constant_and_missing_values_are_drawn(adata):
    adata.layers[_keys.GENAR][:5, 1] = np.nan
    adata.X[:, 1] = 0
    axes = gene_maps(adata, "g1", section="a", scale="raw")
    assert axes[0, 1].get_title() == "genar, r = nan"
    axes[0, 0].figure.canvas.draw()


def test_errors_say_what_exists(adata):
    with pytest.raises(ValueError, match=r"There are 2 sections; name one with `section=`: a, b"):
        gene_maps(adata, "g1")
    with pytest.raises(KeyError, match=r"has no section 'c'; it has a, b"):
        gene_maps(adata, "g1", section="c")
    with pytest.raises(KeyError, match=r"must be measured and predicted; g4 are not. There are 3"):
        gene_maps(adata, "g4", prediction="part", section="a")
    with pytest.raises(KeyError, match="There is no prediction 'gest'"):
        gene_maps(adata, "g1", prediction="gest", section="a")
    with pytest.raises(ValueError, match="'normalized', 'raw'; got 'log'"):
        gene_maps(adata, "g1", section="a", scale="log")


def test_lengths_are_round_and_pitch_ignores_copies():
    assert [round_length(x) for x in (199, 200, 730, 4.9)] == [100, 200, 500, 2]
    assert spot_pitch(np.array([[0, 0], [0, 0], [3, 0], [6, 0]])) == 3
    assert spot_pitch(np.zeros((1, 2))) == 1
