"""The images show the planted morphology through each section's stain."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

from stgen import _keys as keys
from stgen import datasets
from stgen.datasets._toy_image import nuclear_density
from stgen.datasets._toy_parameters import ToyParameters

N_TYPES = 6


@pytest.fixture(scope="module")
def tissue() -> anndata.AnnData:
    return datasets.toy_tissue(histology="images", truth=True, spots_per_section=200, random_state=2)


def image_of(adata: anndata.AnnData, section: str) -> np.ndarray:
    return adata.uns["spatial"][section]["images"]["hires"]


def around_spots(
    adata: anndata.AnnData, section: str, values: np.ndarray, sigma_um: float = 25.0
) -> np.ndarray:
    """A map, smoothed, at the spots: found through the scale factors as squidpy would."""
    scale = adata.uns["spatial"][section]["scalefactors"]["tissue_hires_scalef"]
    xy = adata[adata.obs[keys.LIBRARY] == section].obsm[keys.SPATIAL]
    column, row = np.round(xy * scale).astype(int).T
    return gaussian_filter(values.astype(float), sigma_um * scale)[row, column]


def test_images_hold_every_spot_inside_the_tissue(tissue):
    for section in ("s1", "s4"):
        image = image_of(tissue, section)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        brightness = around_spots(tissue, section, image.mean(axis=2))
        assert brightness.max() < 235 < image[:20, :20].mean()


def test_haematoxylin_follows_the_planted_nuclear_density(tissue):
    params = {**tissue.uns[keys.TOY]["params"]}
    parameters = ToyParameters(**params)
    for section in ("s1", "s3"):
        here = (tissue.obs[keys.LIBRARY] == section).to_numpy()
        morphology = tissue.obsm[keys.MORPHOLOGY][here]
        planted = nuclear_density(parameters, morphology[:, :N_TYPES], morphology[:, N_TYPES:])
        image = image_of(tissue, section)
        hed = rgb2hed(image)[..., 0]
        nuclear = hed > threshold_otsu(hed)
        assert np.corrcoef(around_spots(tissue, section, nuclear), planted)[0, 1] > 0.5
        n_found = label(nuclear)[1]
        area_mm2 = here.sum() * 0.01 * np.sqrt(3) / 2
        assert 0.2 < n_found / (planted.mean() * area_mm2) < 2


def test_plain_colour_statistics_recover_every_cell_type_and_look(tissue):
    """Held-out spots of the same sections, from blurred channels and their squares alone."""
    from sklearn.linear_model import RidgeCV

    features, targets = [], []
    for section in tissue.obs[keys.LIBRARY].cat.categories:
        hed = rgb2hed(image_of(tissue, section))
        columns = []
        for channel in np.moveaxis(hed, 2, 0):
            for sharp in (0.0, 2.0, 5.0):
                detail = channel - gaussian_filter(channel, 2.0 + sharp)
                columns += [around_spots(tissue, section, channel), around_spots(tissue, section, detail**2)]
                columns += [around_spots(tissue, section, np.maximum(detail, 0) ** 3)]
        block = np.stack(columns, axis=1)
        features.append((block - block.mean(axis=0)) / block.std(axis=0))
        targets.append(tissue.obsm[keys.MORPHOLOGY][tissue.obs[keys.LIBRARY] == section])
    features, targets = np.vstack(features), np.vstack(targets)
    half = np.random.default_rng(0).random(len(features)) < 0.5
    predicted = RidgeCV(np.logspace(-1, 3, 5)).fit(features[half], targets[half]).predict(features[~half])
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, targets[~half].T)]
    names = list(tissue.uns[keys.TOY]["morphology"])
    assert min(found) > 0.2, dict(zip(names, np.round(found, 2)))
    assert np.mean(found) > 0.45


def test_stain_differs_between_sections_and_not_at_spread_zero(tissue):
    def colour(adata: anndata.AnnData, section: str) -> np.ndarray:
        image = image_of(adata, section).reshape(-1, 3)
        return image[image.mean(axis=1) < 225].mean(axis=0)

    spread = np.ptp([colour(tissue, s) for s in ("s1", "s2", "s3", "s4")], axis=0)
    assert spread.max() > 8
    strength = tissue.uns[keys.TOY]["sections"]
    assert np.ptp(strength["haematoxylin"]) > 0.03 and np.ptp(strength["eosin"]) > 0.03
    plain = datasets.toy_tissue(histology="none", stain_sd=0.0, spots_per_section=20)
    assert np.all(plain.uns[keys.TOY]["sections"]["haematoxylin"] == 1)


def test_images_never_see_genes():
    few, many = (
        datasets.toy_tissue(
            histology="images", n_genes=g, dispersion=d, n_sections=1, n_patients=1, spots_per_section=20
        )
        for g, d in ((20, 0.1), (60, 0.9))
    )
    assert np.array_equal(image_of(few, "s1"), image_of(many, "s1"))


@pytest.mark.parametrize("um_per_px", [0.5, 4.0])
def test_pixel_size_sets_the_size_of_the_image(um_per_px):
    adata = datasets.toy_tissue(
        histology="images", um_per_px=um_per_px, n_sections=1, n_patients=1, spots_per_section=20
    )
    xy, image = adata.obsm[keys.SPATIAL], image_of(adata, "s1")
    wanted = (xy.max(axis=0) + xy.min(axis=0)) / um_per_px
    assert image.shape[:2][::-1] == pytest.approx(wanted, abs=2)
    assert adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] == 1 / um_per_px


def test_cells_are_drawn_where_they_are():
    adata = datasets.toy_tissue(
        unit="cells", histology="images", um_per_px=1.0, n_sections=1, n_patients=1, spots_per_section=300
    )
    hed = rgb2hed(image_of(adata, "s1"))[..., 0]
    at_cells = around_spots(adata, "s1", hed, sigma_um=1.0)
    shifted = adata.copy()
    shifted.obsm[keys.SPATIAL] = adata.obsm[keys.SPATIAL] + 12.0
    assert at_cells.mean() > 2 * around_spots(shifted, "s1", hed, sigma_um=1.0).mean()


@pytest.mark.parametrize(
    ("histology", "features", "images"), [("none", 0, 0), ("features", 1, 0), ("both", 1, 1)]
)
def test_histology_comes_as_asked(histology, features, images):
    adata = datasets.toy_tissue(histology=histology, n_sections=1, n_patients=1, spots_per_section=20)
    assert (keys.HISTOLOGY in adata.obsm) == bool(features)
    assert ("spatial" in adata.uns) == bool(images)
