"""Our nulls and oracles reproduce the figures measured independently on real sections (patient C of HER2ST)."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import rankdata

from stgen import metrics
from stgen.baselines import CoordinateKNN, DepthOracle, NeighbourTruth, RidgeOnHistology, fit_predict

SECTIONS = ("C2", "C3", "C4", "C5")
MEASURED = {  # leave one section out, mean Pearson over 200 genes: normalized scale, raw scale
    "depth oracle": ([0.233, 0.213, 0.228, 0.238], [0.785, 0.779, 0.784, 0.779]),
    # places as they are on the array, sections not registered to each other
    "coordinate kNN": ([0.129, 0.207, 0.206, 0.228], [0.084, 0.428, 0.308, 0.539]),
}
RIDGE = {  # on other descriptors than ours: a bound from below
    "alone": ([0.265, 0.322, 0.332, 0.306], [0.594, 0.667, 0.658, 0.648]),
    "with neighbours": ([0.285, 0.348, 0.357, 0.299], [0.604, 0.685, 0.665, 0.659]),
}

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def sections() -> SimpleNamespace:
    """Sections with at least 500 counts per spot, genes that all of them have."""
    anndata = pytest.importorskip("anndata")
    if "STGEN_DATA" not in os.environ:
        pytest.skip("STGEN_DATA does not name the folder of real sections")
    folder = Path(os.environ["STGEN_DATA"]) / "her2st_he"
    found = {name: anndata.read_h5ad(folder / f"{name}.h5ad") for name in SECTIONS}
    genes = sorted(set.intersection(*(set(adata.var_names) for adata in found.values())))
    rows = {name: np.asarray(adata.X.sum(axis=1)).ravel() >= 500 for name, adata in found.items()}
    assert [int((~rows[name]).sum()) for name in SECTIONS] == [2, 1, 0, 2]
    kept = {name: adata[rows[name]] for name, adata in found.items()}

    def stacked(read):
        return np.concatenate([np.asarray(read(adata), dtype=float) for adata in kept.values()])

    return SimpleNamespace(
        folder=folder,
        rows=rows,
        counts=stacked(lambda a: a[:, genes].X.toarray()),
        xy=stacked(lambda a: a.obsm["spatial"] * a.uns["um_per_unit"]),
        array=stacked(lambda a: a.obs[["array_x", "array_y"]]),
        section=np.repeat(SECTIONS, [a.n_obs for a in kept.values()]),
    )


def leave_one_out(s, make, scale, xy, histology=None):
    scores = []
    for name in SECTIONS:
        train, test = s.section != name, s.section == name
        ranks = [rankdata(-f(s.counts[train], axis=0)) for f in (np.mean, np.std)]
        panel = s.counts[:, np.argsort(sum(ranks), kind="stable")[:200]]
        baseline = make(scale=scale)
        prediction = fit_predict([baseline], histology, panel, xy, s.section, train=train, test=test)
        truth = baseline.on_scale(panel[test])
        scores.append(np.nanmean(metrics.pearson(truth, prediction[baseline.name])))
    return scores


@pytest.fixture(scope="module")
def features(sections):
    """Descriptors of the stored tiles, alone and beside their mean over the 6 nearest spots."""
    from stgen import pp
    from stgen.data._windows import neighbour_index, neighbour_mean

    anndata = pytest.importorskip("anndata")
    parts = []
    for name in SECTIONS:
        adata = anndata.read_h5ad(sections.folder / f"{name}.h5ad")
        pp.embed_histology(adata, tiles=sections.folder / f"{name}_patches.h5")
        parts.append(adata.obsm["X_histology"][sections.rows[name]])
    own = np.concatenate(parts)
    index = neighbour_index(sections.xy, sections.section, n_neighbors=6)
    return own, np.concatenate([own, neighbour_mean(own, index)], axis=1)


@pytest.mark.parametrize("place", [0, 1], ids=["normalized", "raw"])
def test_oracle_and_unregistered_places_reproduce_measured_figures(sections, place):
    scale = ("normalized", "raw")[place]
    oracle = leave_one_out(sections, DepthOracle, scale, sections.xy)
    np.testing.assert_allclose(oracle, MEASURED["depth oracle"][place], atol=0.01)
    places = leave_one_out(
        sections, lambda scale: CoordinateKNN(center=False, scale=scale), scale, sections.array
    )
    np.testing.assert_allclose(places, MEASURED["coordinate kNN"][place], atol=0.01)


def test_places_in_each_sections_own_frame_are_a_much_stronger_null(sections):
    """Sister sections of one patient need only be centred: then places alone nearly reach the truth next door."""
    places = leave_one_out(sections, CoordinateKNN, "normalized", sections.xy)
    np.testing.assert_allclose(places, [0.301, 0.311, 0.383, 0.313], atol=0.01)
    next_door = leave_one_out(sections, NeighbourTruth, "normalized", sections.xy)
    np.testing.assert_allclose(np.mean(places), np.mean(next_door), atol=0.03)


@pytest.mark.parametrize("place", [0, 1], ids=["normalized", "raw"])
@pytest.mark.parametrize("which", [0, 1], ids=list(RIDGE))
def test_ridge_is_not_weaker_than_measured(sections, features, which, place):
    scale = ("normalized", "raw")[place]
    scores = leave_one_out(sections, RidgeOnHistology, scale, sections.xy, features[which])
    measured = RIDGE[list(RIDGE)[which]][place]
    assert (np.array(scores) > np.array(measured) - 0.01).all(), (scores, measured)
