"""Baselines of place: they equal slow references, choose on left-out squares, and see one section at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stgen.baselines import (
    CoordinateMLP,
    GaussianProcess,
    InverseDistance,
    MeanProfile,
    NearestCells,
    PlaceBaseline,
    place_baselines,
    unseen_squares,
)
from stgen.baselines._places import Falloff, Surface
from stgen.experts._gaussian_process import InducingProcess, Kernel, spacing, spread

FAST = {"n_rounds": 2}


def surface(n: int = 500, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two sections with smooth genes of their own, one gene without place."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 1000, (n, 2))
    section = np.array(["a", "b"])[rng.integers(2, size=n)]
    phase = np.where(section == "a", 0.0, 2.0)
    smooth = [np.sin(xy[:, 0] / 150 + phase), np.cos(xy[:, 1] / 200 + phase), xy[:, 0] / 1000]
    values = np.stack([*smooth, np.zeros(n)], axis=1) + noise * rng.normal(size=(n, 4))
    return xy, section, values


def every(**common) -> list[PlaceBaseline]:
    small_gp = GaussianProcess(scales=(4.0, 12.0), noises=(1.0, 10.0), n_best=3, **FAST, **common)
    small_mlp = CoordinateMLP(n_waves=(1,), max_epochs=30, n_hidden=32, **FAST, **common)
    return [MeanProfile(**common), NearestCells(**FAST, **common), InverseDistance(**FAST, **common), small_mlp, small_gp]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- squares


def test_squares_hold_the_share_of_every_section_in_disjoint_squares():
    rng = np.random.default_rng(1)
    xy, section = rng.normal(size=(3000, 2)) * 300, np.repeat(["small", "large"], [1000, 2000])
    square = unseen_squares(xy, section)
    for name, n in (("small", 1000), ("large", 2000)):
        here = square[section == name]
        assert set(np.unique(here)) == set(range(-1, 20))
        assert (here >= 0).sum() == n // 10
        assert np.ptp(np.bincount(here[here >= 0])) <= 1


def test_a_square_holds_all_cells_inside_its_borders_and_none_of_another():
    xy = np.random.default_rng(2).uniform(0, 1000, (800, 2))
    square = unseen_squares(xy)
    boxes = [(xy[square == s].min(axis=0), xy[square == s].max(axis=0)) for s in range(20)]
    for number, (low, high) in enumerate(boxes):
        inside = ((xy >= low) & (xy <= high)).all(axis=1)
        assert (square[inside] == number).all()


def test_squares_of_a_section_depend_on_the_seed_and_not_on_other_sections():
    xy = np.random.default_rng(3).uniform(0, 1000, (900, 2))
    section = np.repeat(["a", "b", "c"], 300)
    together = unseen_squares(xy, section, random_state=5)
    alone = unseen_squares(xy[300:600], None, random_state=5)
    assert np.array_equal(together[300:600], alone)
    assert not np.array_equal(alone, unseen_squares(xy[300:600], None, random_state=6))


def test_piles_of_cells_and_few_cells_never_exceed_the_share_by_more_than_a_square():
    rng = np.random.default_rng(4)
    piled = rng.integers(0, 12, (600, 2)).astype(float)
    square = unseen_squares(piled)
    assert 0 < (square >= 0).mean() < 0.2
    for place in np.unique(piled, axis=0):
        assert len(np.unique(square[(piled == place).all(axis=1)])) == 1
    assert (unseen_squares(rng.uniform(size=(12, 2))) >= 0).sum() == 1


def test_impossible_squares_are_refused():
    xy = np.zeros((5, 2))
    with pytest.raises(ValueError, match="`n_squares` must be at least 1; got 0"):
        unseen_squares(xy, None, 0)
    with pytest.raises(ValueError, match=r"`share` must lie between 0 and 0.9.*got 0.95"):
        unseen_squares(xy, None, 2, 0.95)
    with pytest.raises(ValueError, match="`xy` must be finite"):
        unseen_squares(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="section of each of the 5 cells"):
        unseen_squares(xy, ["a"])


# -------------------------------------------------------------------------------------------------- slow references


def test_mean_profile_is_the_mean_of_the_section():
    xy, section, values = surface()
    answer = MeanProfile().fit(xy, section, values).predict(xy[:5], section[:5])
    for row, name in zip(answer, section[:5], strict=True):
        assert np.allclose(row, values[section == name].mean(axis=0))


def test_knn_and_inverse_distance_equal_a_search_of_all_pairs():
    xy, section, values = surface(300)
    asked, of = np.random.default_rng(9).uniform(0, 1000, (20, 2)), np.repeat(["a", "b"], 10)
    knn = NearestCells(**FAST).fit(xy, section, values)
    weighted = InverseDistance(**FAST).fit(xy, section, values)
    weighted.choice_ = Falloff(1.5, 40)
    found_knn, found_weighted = knn.predict(asked, of), weighted.predict(asked, of)
    for name in ("a", "b"):
        rows, known = of == name, section == name
        distance = cdist(asked[rows], xy[known])
        order = np.argsort(distance, axis=1)
        expected = np.array([values[known][near[: knn.k_]].mean(axis=0) for near in order])
        assert np.allclose(found_knn[rows], expected)
        floor = np.median(distance.min(axis=1)) / 2
        for i, near in enumerate(order[:, :40]):
            weight = np.maximum(distance[i, near], floor) ** -1.5
            assert np.allclose(found_weighted[rows][i], weight @ values[known][near] / weight.sum())


@pytest.mark.parametrize("shape", ["rbf", "matern"])
def test_gp_with_all_cells_inducing_is_the_exact_gp(shape):
    xy, _, values = surface(120)
    kernel, noise = Kernel(shape, 3.0, 4.0), 0.5
    process = InducingProcess(xy, values, kernel, 128)
    asked = np.random.default_rng(1).uniform(0, 1000, (10, 2))
    unit = spacing(xy) * 3.0 * np.array([0.5, 2.0])

    def k(a, b):
        r = cdist(a / unit, b / unit)
        return np.exp(-(r**2) / 2) if shape == "rbf" else (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r)

    mean = values.mean(axis=0)
    expected = mean + k(asked, xy) @ np.linalg.solve(k(xy, xy) + noise * np.eye(120), values - mean)
    assert np.allclose(process.mean + process.features(asked) @ process.weights(noise), expected, atol=1e-4)


def test_gp_answers_with_the_mean_over_each_genes_best_choices():
    xy, section, values = surface(240)
    process = GaussianProcess(scales=(4.0, 12.0), noises=(1.0, 10.0), n_best=3, **FAST).fit(
        xy, section, values
    )
    asked = np.random.default_rng(1).uniform(0, 1000, (6, 2))
    known = Surface(xy[section == "a"], values[section == "a"])
    options = list(process._by_option(known, asked))
    assert len(options) == len(process.kernels) * 2
    expected = np.empty((6, 4))
    for gene in range(4):
        expected[:, gene] = np.mean([options[o][:, gene] for o in process.best_[:, gene]], axis=0)
    assert np.allclose(process.predict(asked, ["a"] * 6), expected)


def test_spacing_is_the_side_of_the_square_a_cell_has_to_itself():
    xy = np.random.default_rng(0).uniform(0, 1000, (4000, 2))
    assert spacing(xy) == pytest.approx(1000 / np.sqrt(4000), rel=0.1)


def test_inducing_cells_are_cells_and_spread():
    xy = np.random.default_rng(0).uniform(0, 1000, (2000, 2))
    chosen = spread(xy, 64)
    assert 50 < len(chosen) <= 64
    assert (cdist(chosen, xy).min(axis=1) == 0).all()
    gap = cdist(chosen, chosen) + np.eye(len(chosen)) * 1e9
    assert gap.min() > 20
    assert len(spread(xy[:30], 64)) == 30


# ------------------------------------------------------------------------------------------------------------ choices


def test_more_cells_are_averaged_where_noise_is_larger():
    quiet, loud = (
        NearestCells(n_rounds=3).fit(*(a := surface(800, noise=noise))[:2], a[2]).k_ for noise in (0.05, 3.0)
    )
    assert quiet < loud


def test_noise_alone_is_answered_by_the_mean():
    rng = np.random.default_rng(0)
    xy, values = rng.uniform(0, 1000, (400, 2)), rng.normal(size=(400, 3))
    asked = rng.uniform(0, 1000, (50, 2))
    for baseline in every():
        answer = baseline.fit(xy, None, values).predict(asked, None)
        assert np.abs(answer - values.mean(axis=0)).mean() < 0.25, baseline.name


def test_all_beat_the_mean_profile_on_smooth_genes_and_none_is_far_behind():
    xy, section, values = surface(900)
    hidden = unseen_squares(xy, section, random_state=3) >= 0
    error = {}
    for baseline in every():
        baseline.fit(xy[~hidden], section[~hidden], values[~hidden])
        error[baseline.name] = ((baseline.predict(xy[hidden], section[hidden]) - values[hidden]) ** 2).mean()
    null = error.pop("mean profile")
    assert all(e < 0.6 * null for e in error.values()), error


def test_gp_uses_layers():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (600, 2))
    values = np.sin(xy[:, 1] / 40)[:, None] + rng.normal(size=(600, 1))
    process = GaussianProcess(scales=(6.0,), noises=(3.0, 30.0), n_best=1, **FAST).fit(xy, None, values)
    assert process.kernels[process.best_[0, 0] // 2].stretch < 1


# ------------------------------------------------------------------------------------------------------------ honesty


@pytest.mark.parametrize("number", range(5))
def test_sections_never_mix(number):
    xy, section, values = surface(240)
    asked = np.random.default_rng(1).uniform(0, 1000, (10, 2))
    poisoned = np.where(section[:, None] == "b", 1e6 - values, values)
    # one option each: what is chosen may depend on all sections, what is answered may not
    kinds = [
        MeanProfile(),
        NearestCells(options=(5,), **FAST),
        InverseDistance(powers=(2.0,), n_cells=(30,), **FAST),
        CoordinateMLP(n_waves=(1,), max_epochs=5, n_hidden=16, **FAST),
        GaussianProcess(scales=(4.0,), stretches=(1.0,), noises=(1.0,), n_best=2, **FAST),
    ]
    clean, other = (kinds[number].fit(xy, section, v).predict(asked, ["a"] * 10) for v in (values, poisoned))
    assert np.array_equal(clean, other)


@pytest.mark.parametrize("number", range(5))
def test_same_seed_same_answer_whatever_the_order_of_asking_and_the_global_state_is_kept(number):
    xy, section, values = surface(240)
    asked, of = np.random.default_rng(1).uniform(0, 1000, (10, 2)), np.repeat(["a", "b"], 5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = every(random_state=4)[number].fit(xy, section, values).predict(asked, of)
    again = every(random_state=4)[number].fit(xy, section, values).predict(asked[::-1], of[::-1])[::-1]
    assert np.allclose(first, again, atol=1e-5)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("n", [2, 3, 12])
def test_sections_of_few_cells_are_answered(n):
    rng = np.random.default_rng(0)
    xy, values = rng.uniform(0, 100, (n, 2)), rng.normal(size=(n, 3))
    for baseline in every():
        answer = baseline.fit(xy, None, values).predict(rng.uniform(0, 100, (4, 2)), None)
        assert answer.shape == (4, 3) and np.isfinite(answer).all(), baseline.name


def test_a_section_of_one_cell_and_cells_at_one_place_are_answered():
    xy = np.array([[0.0, 0.0], *[[5.0, 5.0]] * 30])
    section, values = ["single", *["pile"] * 30], np.arange(62, dtype=float).reshape(31, 2)
    for baseline in every():
        answer = baseline.fit(xy, section, values).predict([[1.0, 1.0], [5.0, 5.0]], ["single", "pile"])
        assert np.allclose(answer[0], values[0]) and np.isfinite(answer).all(), baseline.name


def test_wrong_input_is_refused_with_what_to_do():
    xy, section, values = surface(60)
    baseline = NearestCells(**FAST)
    with pytest.raises(RuntimeError, match="not fitted; call `fit`"):
        baseline.predict(xy, section)
    with pytest.raises(
        ValueError, match=r"`values` must be cells × genes with 60 cells; got shape \(59, 4\)"
    ):
        baseline.fit(xy, section, values[:59])
    with pytest.raises(ValueError, match="1 of 60 cells have NaN"):
        baseline.fit(xy, section, np.where(np.arange(60)[:, None] == 3, np.nan, values))
    with pytest.raises(ValueError, match=r"section\(s\) 'c' have no training cell"):
        baseline.fit(xy, section, values).predict(xy[:1], ["c"])
    with pytest.raises(ValueError, match="at least 2 training cells; got 1"):
        baseline.fit(xy[:1], None, values[:1])
    with pytest.raises(ValueError, match="`n_rounds` must be at least 1"):
        NearestCells(n_rounds=0)


def test_the_set_holds_every_kind_nulls_first():
    names = [one.name for one in place_baselines()]
    assert names == ["mean profile", "kNN", "inverse distance", "coordinate MLP", "GP on coordinates"]
    assert [one.kind for one in place_baselines()] == ["null", *["baseline"] * 4]
    assert all(
        one.random_state == 7 and one.n_rounds == 3 for one in place_baselines(random_state=7, n_rounds=3)
    )
