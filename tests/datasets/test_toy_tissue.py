"""The toy tissue keeps its promises: what is planted can be found, and nothing else moves."""

from __future__ import annotations

import subprocess
import sys

import anndata
import numpy as np
import pytest
from scipy.sparse import issparse
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score

from stgen import _keys as keys
from stgen import datasets
from stgen.datasets._toy_genes import draw_counts, sender_exposure


@pytest.fixture(scope="module")
def tissue() -> anndata.AnnData:
    return datasets.toy_tissue(truth=True, random_state=3)


def log_rate_at_equal_depth(adata: anndata.AnnData) -> np.ndarray:
    """Log-rates without depth and without the means of patients."""
    rate = np.log(adata.layers[keys.RATE]) - np.log(adata.obs[keys.DEPTH].to_numpy())[:, None]
    patient = adata.obs[keys.PATIENT].to_numpy()
    for name in np.unique(patient):
        rate[patient == name] -= rate[patient == name].mean(axis=0)
    return rate


def same(a: anndata.AnnData, b: anndata.AnnData) -> bool:
    return (a.X != b.X).nnz == 0 and all(np.array_equal(a.obsm[key], b.obsm[key]) for key in a.obsm)


def test_one_seed_gives_one_tissue_and_another_seed_another():
    make = lambda seed: datasets.toy_tissue(n_sections=2, spots_per_section=60, random_state=seed)  # noqa: E731
    assert same(make(5), make(5))
    other = make(6)
    assert (make(5).X != other.X).nnz > 0
    assert not np.array_equal(make(5).var["module"], other.var["module"])


def test_images_and_reference_repeat_with_the_seed():
    make = lambda: datasets.toy_tissue(  # noqa: E731
        n_sections=1, n_patients=1, spots_per_section=30, histology="images"
    )
    first, second = make(), make()
    images = [adata.uns["spatial"]["s1"]["images"]["hires"] for adata in (first, second)]
    assert np.array_equal(*images)
    references = [datasets.toy_reference(first, n_cells=40, random_state=seed) for seed in (0, 0, 1)]
    assert (references[0].X != references[1].X).nnz == 0
    assert (references[0].X != references[2].X).nnz > 0


def test_global_random_state_is_left_as_found():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    adata = datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=30, histology="both")
    datasets.toy_reference(adata, n_cells=20)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_judging_set_is_another_tissue_with_other_seeds():
    assert not set(datasets.TOY_TUNE_SEEDS) & set(datasets.TOY_JUDGE_SEEDS)
    params = datasets.toy_tissue(spots_per_section=50).uns[keys.TOY]["params"]
    assert all(params[name] != value for name, value in datasets.TOY_JUDGE.items())
    judged = datasets.toy_tissue(**datasets.TOY_JUDGE, random_state=datasets.TOY_JUDGE_SEEDS[0])
    assert all(judged.uns[keys.TOY]["params"][name] == value for name, value in datasets.TOY_JUDGE.items())


def test_shapes_and_slots(tissue):
    assert tissue.shape == (1600, 100)
    assert issparse(tissue.X) and tissue.X.format == "csr" and tissue.X.dtype == np.int32
    assert tissue.X.min() >= 0
    assert tissue.obs_names.is_unique and tissue.var_names.is_unique
    assert list(tissue.obs[keys.LIBRARY].value_counts()) == [400] * 4
    assert tissue.obs[keys.REGION].nunique() == 4
    assert np.allclose(tissue.obsm[keys.PROPORTIONS].sum(axis=1), 1)
    assert tissue.obsm[keys.HISTOLOGY].dtype == np.float32


def test_patients_do_not_share_sections():
    adata = datasets.toy_tissue(n_sections=5, n_patients=3, spots_per_section=20)
    pairs = adata.obs[[keys.LIBRARY, keys.PATIENT]].drop_duplicates()
    assert len(pairs) == 5 and pairs[keys.PATIENT].nunique() == 3


@pytest.mark.parametrize("grid", ["hexagonal", "square"])
def test_spots_keep_the_stated_pitch_in_um(grid):
    adata = datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=80, grid=grid, pitch_um=70.0)
    distance = cdist(*[adata.obsm[keys.SPATIAL]] * 2)
    np.fill_diagonal(distance, np.inf)
    assert np.allclose(distance.min(axis=1), 70.0)


def test_cells_keep_the_stated_density_and_are_of_one_type_each():
    adata = datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=1500, unit="cells", density_per_mm2=1000.0
    )
    xy = adata.obsm[keys.SPATIAL]
    inner = np.all(np.abs(xy - xy.mean(axis=0)) < 400, axis=1)
    assert inner.sum() / 0.64 == pytest.approx(1000, rel=0.1)
    assert np.isin(adata.obsm[keys.PROPORTIONS], [0, 1]).all()
    assert (
        adata.obs[keys.CELL_TYPE].astype(str)
        == adata.uns[keys.TOY]["cell_types"][adata.obsm[keys.PROPORTIONS].argmax(axis=1)]
    ).all()


def test_every_section_starts_at_the_same_place(tissue):
    starts = [
        tissue[tissue.obs[keys.LIBRARY] == s].obsm[keys.SPATIAL].min(axis=0) for s in ("s1", "s2", "s3", "s4")
    ]
    assert np.allclose(starts, starts[0])


def test_regions_are_layers_that_neighbours_share(tissue):
    section = tissue[tissue.obs[keys.LIBRARY] == "s1"]
    distance = cdist(*[section.obsm[keys.SPATIAL]] * 2)
    near = (distance > 0) & (distance < 110)
    region = section.obs[keys.REGION].to_numpy()
    agree = (region[:, None] == region)[near].mean()
    assert agree > 0.75
    assert adjusted_rand_score(region, section.obs[keys.CELL_TYPE]) > 0.1


def test_planted_share_is_what_morphology_explains():
    """A regression that knows the true morphology ranks the genes of another patient as they were planted."""
    adata = datasets.toy_tissue(truth=True, n_sections=6, n_patients=3, random_state=3)
    adata = adata[:, ~adata.var["neighbour_gene"].to_numpy()]
    log_rate, morphology = log_rate_at_equal_depth(adata), adata.obsm[keys.MORPHOLOGY]
    # by patient: within one, smooth looks tell the place, and the place tells of hidden fields
    train = (adata.obs[keys.PATIENT] != "p3").to_numpy()
    forest = ExtraTreesRegressor(60, min_samples_leaf=3, random_state=0).fit(
        morphology[train], log_rate[train]
    )
    left = ((log_rate - forest.predict(morphology)) ** 2)[~train].mean(axis=0)
    explained = 1 - left / log_rate[~train].var(axis=0)
    share = adata.var["morphology_share"].to_numpy()
    assert spearmanr(explained, share).statistic > 0.8
    assert np.all(explained < share + 0.1)  # nothing hidden can be read from morphology


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_share_at_the_ends_is_exact(share):
    adata = datasets.toy_tissue(morphology_share=share, spots_per_section=50)
    assert np.allclose(adata.var["morphology_share"], share, atol=1e-9)


def test_mean_share_follows_the_argument():
    means = [
        datasets.toy_tissue(morphology_share=s, n_genes=400, spots_per_section=100)
        .var["morphology_share"]
        .mean()
        for s in (0.2, 0.5, 0.8)
    ]
    assert means == pytest.approx([0.2, 0.5, 0.8], abs=0.08)


def test_nonlinearity_is_what_a_linear_model_cannot_have():
    """Linear in true morphology, module activities are explained up to the planted share and no further."""
    for wanted in (0.0, 0.5):
        adata = datasets.toy_tissue(nonlinearity=wanted, truth=True, random_state=1)
        truth = datasets.toy_truth(adata)
        visible = truth.programmes.filter(regex="module_.*_visible").to_numpy()
        model = RidgeCV(np.logspace(-6, 0, 4)).fit(truth.morphology, visible)
        left = (visible - model.predict(truth.morphology)).var(axis=0).mean()
        assert left == pytest.approx(wanted, abs=0.05)


def test_module_genes_go_together_beyond_morphology(tissue):
    truth = datasets.toy_truth(tissue)
    log_rate = log_rate_at_equal_depth(tissue)
    visible = truth.programmes.filter(like="_visible").to_numpy()
    known = np.hstack([truth.morphology, visible])
    left = log_rate - RidgeCV(np.logspace(-3, 1, 5)).fit(known, log_rate).predict(known)
    correlation = np.corrcoef(left.T)
    module = tissue.var["module"].to_numpy()
    pair = ~np.eye(len(module), dtype=bool)
    together = (module[:, None] == module) & (module >= 0)[:, None] & pair
    assert correlation[together].mean() > 0.5
    assert abs(correlation[~together & pair].mean()) < 0.1


def test_hidden_programmes_do_not_correlate_with_morphology(tissue):
    truth = datasets.toy_truth(tissue)
    hidden = truth.programmes.filter(like="_hidden").to_numpy()
    n_seen = truth.morphology.shape[1]
    correlation = np.corrcoef(truth.morphology.T, hidden.T)[:n_seen, n_seen:]
    assert np.abs(correlation).max() < 0.01


@pytest.mark.parametrize("unit", ["spots", "cells"])
def test_switching_the_neighbour_effect_off_changes_planted_genes_near_senders_only(unit):
    on, off = (
        datasets.toy_tissue(
            neighbour_effect=e, unit=unit, truth=True, histology="both", spots_per_section=150
        )
        for e in (1.0, 0.0)
    )
    planted, far = on.var["neighbour_gene"].to_numpy(), on.obs[keys.EXPOSURE].to_numpy() == 0
    assert planted.sum() == 12
    changed = (on.X != off.X).toarray()
    assert changed[:, planted].any() and not changed[:, ~planted].any() and not changed[far].any()
    moved = on.layers[keys.RATE] != off.layers[keys.RATE]
    assert not moved[:, ~planted].any() and not moved[far].any()
    assert (off.var["neighbour_effect"] == 0).all() and (off.var["neighbour_gene"] == planted).all()
    assert all(np.array_equal(on.obsm[key], off.obsm[key]) for key in on.obsm)
    assert np.array_equal(*[a.uns["spatial"]["s1"]["images"]["hires"] for a in (on, off)])


def test_neighbour_effect_is_the_planted_coefficient_times_exposure():
    on, off = (datasets.toy_tissue(neighbour_effect=e, truth=True, spots_per_section=80) for e in (0.7, 0.0))
    sender = on.obsm[keys.PROPORTIONS][:, -1]
    measured = np.log(on.layers[keys.RATE] / off.layers[keys.RATE])
    wanted = np.outer((1 - sender) * on.obs[keys.EXPOSURE], on.var["neighbour_effect"])
    assert np.allclose(measured, wanted)
    assert (on.var["neighbour_effect"] > 0).sum() == (on.var["neighbour_effect"] < 0).sum() == 6
    # rises and falls balance, or normalising by totals would make every gene a responder
    total = [adata.layers[keys.RATE].sum(axis=1) for adata in (on, off)]
    assert abs(np.log(total[0] / total[1]).mean()) < 0.06


def test_exposure_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    xy, sender = rng.uniform(0, 300, (60, 2)), rng.random(60)
    wanted = []
    for i in range(60):
        near = [j for j in range(60) if j != i and np.hypot(*(xy[i] - xy[j])) <= 40]
        wanted.append(1 - np.exp(-np.mean(sender[near]) / 0.25) if near else 0.0)
    assert np.allclose(sender_exposure(xy, sender, 40.0), wanted)


def test_senders_keep_no_company(tissue):
    """Otherwise a neighbour's type would tell of a place even with the effect switched off."""
    section = tissue[tissue.obs[keys.LIBRARY] == "s1"]
    sender = section.obsm[keys.PROPORTIONS][:, -1]
    assert abs(np.corrcoef(sender, section.obs[keys.EXPOSURE])[0, 1]) < 0.15


def test_counts_have_the_planted_mean_and_variance():
    """With the effect raising, lowering or not touching a gene, counts stay negative binomial."""
    rate = np.full((200_000, 3), 6.0)
    log_neighbours = np.tile([0.0, 0.8, -0.8], (200_000, 1))
    dispersion = np.array([0.3, 0.3, 0.0])
    counts = draw_counts(rate, log_neighbours, dispersion, np.random.default_rng(0), np.random.default_rng(1))
    mean = 6.0 * np.exp([0.0, 0.8, -0.8])
    assert counts.mean(axis=0) == pytest.approx(mean, rel=0.02)
    assert counts.var(axis=0) == pytest.approx(mean + dispersion * mean**2, rel=0.03)


def test_counts_are_overdispersed_given_their_rates_and_poisson_on_request(tissue):
    def dispersion_of(adata: anndata.AnnData) -> float:
        rate = adata.layers[keys.RATE]
        return float((((adata.X.toarray() - rate) ** 2 - rate) / rate**2)[rate > 5].mean())

    assert dispersion_of(tissue) == pytest.approx(tissue.var["dispersion"].mean(), rel=0.2)
    poisson = datasets.toy_tissue(dispersion=0.0, truth=True, spots_per_section=200)
    assert abs(dispersion_of(poisson)) < 0.01


def test_totals_and_gene_means_are_realistic(tissue):
    total = np.asarray(tissue.X.sum(axis=1)).ravel()
    assert 1000 < np.median(total) < 3000
    mean = np.asarray(tissue.X.mean(axis=0)).ravel()
    assert mean.min() < 3 and mean.max() > 60


def test_depth_differs_between_sections_and_moves_the_totals(tissue):
    depth = tissue.uns[keys.TOY]["sections"]["depth"]
    assert np.std(np.log(depth)) > 0.1
    log_total = np.log1p(np.asarray(tissue.X.sum(axis=1)).ravel())
    assert np.corrcoef(log_total, np.log(tissue.obs[keys.DEPTH]))[0, 1] > 0.8
    of_section = tissue.obs.assign(total=log_total).groupby(keys.LIBRARY, observed=True)["total"].mean()
    assert np.corrcoef(of_section, np.log(depth))[0, 1] > 0.8


def test_sister_sections_resemble_each_other_more_than_other_patients():
    """Composition at the same place: near the same in a sister section, unrelated in another patient."""
    closer = []
    for seed in range(3):
        adata = datasets.toy_tissue(random_state=seed)
        by_section = [adata[adata.obs[keys.LIBRARY] == s] for s in ("s1", "s2", "s3")]
        first = by_section[0]
        gaps = []
        for other in by_section[1:]:
            nearest = cdist(first.obsm[keys.SPATIAL], other.obsm[keys.SPATIAL]).argmin(axis=1)
            gaps.append(np.abs(first.obsm[keys.PROPORTIONS] - other.obsm[keys.PROPORTIONS][nearest]).mean())
        closer.append(gaps[0] < gaps[1])
    assert all(closer)


def test_a_section_more_leaves_the_places_and_types_of_the_others():
    few, many = (datasets.toy_tissue(n_sections=n, n_patients=1, spots_per_section=40) for n in (2, 3))
    for key in (keys.SPATIAL, keys.PROPORTIONS):
        assert np.array_equal(few.obsm[key], many.obsm[key][:80])


def test_descriptors_carry_morphology_and_nothing_hidden(tissue):
    truth = datasets.toy_truth(tissue)
    seen = tissue.obsm[keys.HISTOLOGY]
    half = np.random.default_rng(0).random(tissue.n_obs) < 0.5

    def held_out(target: np.ndarray) -> float:
        model = RidgeCV(np.logspace(-1, 4, 6)).fit(seen[half], target[half])
        left = ((target[~half] - model.predict(seen[~half])) ** 2).mean(axis=0)
        return float((1 - left / target[~half].var(axis=0)).mean())

    assert held_out(truth.morphology.to_numpy()) > 0.5
    assert held_out(truth.programmes.filter(like="_hidden").to_numpy()) < 0.05


@pytest.mark.parametrize("fmt", ["h5ad", "zarr"])
def test_tissue_and_reference_survive_writing(tmp_path, fmt):
    adata = datasets.toy_tissue(spots_per_section=20, histology="both", truth=True)
    for number, table in enumerate([adata, datasets.toy_reference(adata, n_cells=30)]):
        path = tmp_path / f"{number}.{fmt}"
        table.write_h5ad(path) if fmt == "h5ad" else table.write_zarr(path)
        back = anndata.read_h5ad(path) if fmt == "h5ad" else anndata.read_zarr(path)
        assert (back.X != table.X).nnz == 0
        assert list(back.obs) == list(table.obs) and list(back.var) == list(table.var)
        assert all(np.array_equal(back.obsm[key], table.obsm[key]) for key in table.obsm)
        if number == 0:
            assert back.uns[keys.TOY]["params"] == table.uns[keys.TOY]["params"]
            assert np.array_equal(
                back.uns["spatial"]["s2"]["images"]["hires"], table.uns["spatial"]["s2"]["images"]["hires"]
            )
            assert datasets.toy_truth(back).sender == "immune"
            assert datasets.toy_reference(back, n_cells=10).shape == (10, 100)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unit": "slides"}, ValueError, "`unit` must be one of 'spots', 'cells'; got 'slides'"),
        (
            {"histology": None},
            ValueError,
            "`histology` must be one of 'features', 'images', 'both', 'none'; got None",
        ),
        ({"n_genes": 0}, ValueError, "`n_genes` must be an integer of at least 2; got 0"),
        ({"n_genes": 20.0}, TypeError, "`n_genes` must be an integer of at least 2; got 20.0 of type float"),
        ({"morphology_share": 1.5}, ValueError, "`morphology_share` must be a number from 0 to 1; got 1.5"),
        (
            {"neighbour_effect": float("nan")},
            ValueError,
            "`neighbour_effect` must be a number of at least 0; got nan",
        ),
        ({"n_cell_types": 9}, ValueError, "`n_cell_types` must be an integer from 3 to 7; got 9"),
        ({"pitch_um": 0}, ValueError, "`pitch_um` must be a finite number above 0; got 0"),
        (
            {"neighbour_radius_um": -1.0},
            ValueError,
            "`neighbour_radius_um` must be a finite number above 0; got -1.0",
        ),
        ({"n_patients": 5}, ValueError, "5 patients and 4 sections. Raise `n_sections`"),
        ({"n_genes": 4}, ValueError, "8 modules for 4 genes. Lower `n_modules`"),
        ({"random_state": None}, TypeError, "`random_state` must be an integer of at least 0; got None"),
        ({"random_state": -1}, ValueError, "`random_state` must be an integer of at least 0; got -1"),
    ],
)
def test_bad_arguments_say_what_was_expected_and_found(changes, error, message):
    with pytest.raises(error) as caught:
        datasets.toy_tissue(**changes)
    assert message in str(caught.value)


def test_truth_is_kept_only_on_request():
    adata = datasets.toy_tissue(spots_per_section=20)
    assert keys.RATE not in adata.layers and keys.MORPHOLOGY not in adata.obsm
    with pytest.raises(KeyError, match=r"make the tissue with toy_tissue\(truth=True\)"):
        datasets.toy_truth(adata)


def test_truth_follows_a_selection(tissue):
    part = tissue[::7, 5:20]
    truth = datasets.toy_truth(part)
    assert truth.rate.shape == part.shape and list(truth.profiles.index) == list(part.var_names)
    assert np.array_equal(truth.rate, tissue.layers[keys.RATE][::7, 5:20])


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_tissues_work(n):
    adata = datasets.toy_tissue(
        n_sections=1, n_patients=1, spots_per_section=10, n_genes=2, n_modules=n, n_layers=n, histology="both"
    )
    assert adata.shape == (10, 2) and np.isfinite(adata.obsm[keys.HISTOLOGY]).all()


def test_the_door_opens_without_torch_or_scvi():
    code = "import sys, stgen; stgen.datasets; print([m for m in ('torch', 'scvi', 'scanpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
