"""The linear path against ridge regressions refitted row by row.

F histology features, W plane waves, P inputs of the ridge, G genes.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from stgen.experts import _ridge
from stgen.experts._ridge import PENALTIES, PLACE_SCALES
from stgen.models.genar._expected import ExpectedCounts, composition
from stgen.nn._counts import normalized
from stgen.nn._network import N_FOLDS

N, F, G = 240, 6, 9


def section(unit, *, n=60, n_features=F, place=None, seed=0):
    """Spots of one section: log rates linear in features, plus ``place(xy)`` (n, G)."""
    rng = np.random.default_rng([seed, unit])
    shared = np.random.default_rng(seed)
    features = rng.normal(size=(n, n_features)) * 3 + 5
    xy = rng.uniform(-3000, 3000, size=(n, 2))
    log_rate = 1.5 + (features - 5) @ shared.normal(0, 0.3 / np.sqrt(n_features), size=(n_features, G))
    if place is not None:
        log_rate = log_rate + place(xy)
    counts = rng.poisson(np.exp(log_rate + rng.normal(0, 0.3, size=(n, 1))))
    return {
        "features": torch.tensor(features, dtype=torch.float32),
        "xy": torch.tensor(xy, dtype=torch.float32),
        "counts": torch.tensor(counts, dtype=torch.float32),
        "fold": torch.full((n,), unit % N_FOLDS),
    }


def joined(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def fitted(batches, *, use_place=False):
    n_features = batches[0]["features"].shape[1]
    n_genes = batches[0]["counts"].shape[1]
    expected = ExpectedCounts(n_features, n_genes, use_place=use_place, nonlinear=False)
    expected.fit(batches)
    return expected.linear


def ask(path, batch, fold=None):
    """Log depth and log composition of a batch's spots."""
    answer = path(path.inputs(batch["features"], batch["xy"]), fold)
    return answer[:, 0], composition(answer[:, 1:])


def inputs_and_targets(path, batches):
    rows = joined(batches)
    x = path.inputs(rows["features"], rows["xy"])
    depth = rows["counts"].sum(-1, keepdim=True).clamp(min=1).log()
    y = torch.cat([depth, normalized(rows["counts"], path.target_total)], dim=-1)
    return x.double().numpy(), y.double().numpy(), rows["fold"].numpy()


def slow_ridge(x, y, penalty, columns):
    """Ridge on ``x * columns``, told as weights of ``x``."""
    ridge = Ridge(alpha=penalty).fit(x * columns, y)
    return ridge.coef_.reshape(y.shape[1], -1).T * columns[:, None], ridge.intercept_


def slow_choice(path, x, y, fold):
    """Penalties of depth and composition and the place scale, by leaving one fold out, row by row."""
    spread = ((y - y.mean(0)) ** 2).sum(0)
    scores = {"depth": {}, "composition": {}}
    for scale in PLACE_SCALES if path.use_place else (0.0,):
        columns = np.ones(x.shape[1])
        columns[path.rotation.shape[1] :] = scale
        for penalty in PENALTIES:
            squared = np.zeros(y.shape[1])
            for f in np.unique(fold):
                weight, offset = slow_ridge(x[fold != f], y[fold != f], penalty, columns)
                squared += ((y[fold == f] - x[fold == f] @ weight - offset) ** 2).sum(0)
            scores["depth"][scale, penalty] = (squared / spread)[0]
            scores["composition"][scale, penalty] = (squared / spread)[1:].mean()
    return {name: min(score, key=score.get) for name, score in scores.items()}


def waves_of_place(xy, seed):
    """A smooth pattern over a section, different for each gene."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, np.pi, G)
    along = xy @ np.stack([np.cos(angle), np.sin(angle)])
    return np.sin(2 * np.pi * along / 6000 + rng.uniform(0, 2 * np.pi, G))


# -- the fit equals plain ridge regressions ---------------------------------------------------------------------------


@pytest.mark.parametrize("use_place", [False, True])
def test_weights_equal_ridge_on_the_same_rows_with_the_penalty_that_left_out_sections_choose(use_place):
    place = (lambda xy: waves_of_place(xy, 0)) if use_place else None
    batches = [section(u, place=place) for u in range(4)]
    path = fitted(batches, use_place=use_place)
    x, y, fold = inputs_and_targets(path, batches)
    best = slow_choice(path, x, y, fold)
    assert float(path.place_scale) == best["composition"][0]
    columns = np.ones(x.shape[1])
    columns[path.rotation.shape[1] :] = float(path.place_scale)
    for f in (*range(4), N_FOLDS):
        rows = fold != f  # fold 5 does not exist: its weights see every row
        for part, name in ((slice(0, 1), "depth"), (slice(1, None), "composition")):
            weight, offset = slow_ridge(x[rows], y[rows, part], best[name][1], columns)
            scale = np.abs(weight).max()
            np.testing.assert_allclose(path.weight[f][:, part].numpy(), weight, atol=2e-3 * scale)
            np.testing.assert_allclose(path.offset[f][part].numpy(), offset, atol=2e-3)


def test_a_spot_of_a_fold_is_answered_without_its_fold(monkeypatch):
    monkeypatch.setattr(_ridge, "PENALTIES", [10.0])  # the choice of the penalty reads every fold
    batches = [section(u) for u in range(4)]
    path, poisoned = fitted(batches), [dict(batch) for batch in batches]
    answered = ask(path, batches[2], batches[2]["fold"])
    weight = path.weight.clone()
    poisoned[2]["counts"] = batches[2]["counts"].flip(0)
    again = fitted(poisoned)
    assert torch.equal(again.mean, path.mean)
    torch.testing.assert_close(again.weight[2], weight[2])
    assert (again.weight[1] - weight[1]).abs().max() > 1e-3
    torch.testing.assert_close(ask(again, batches[2], batches[2]["fold"]), answered)


def test_the_way_rows_are_batched_does_not_matter():
    batches = [section(u) for u in range(3)]
    rows = joined(batches)
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    shuffled = [{k: v[part] for k, v in rows.items()} for part in order.split(47)]
    for a, b in zip(fitted(batches).state_dict().values(), fitted(shuffled).state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_answer_is_log_depth_and_a_composition_near_the_truth():
    batches = [section(u) for u in range(4)]
    path, new = fitted(batches), section(9)
    depth, share = ask(path, new)
    torch.testing.assert_close(share.exp().sum(-1), torch.ones(60))
    truth = new["counts"] / new["counts"].sum(-1, keepdim=True)
    assert abs(float(depth.mean() - new["counts"].sum(-1).log().mean())) < 0.2
    assert np.corrcoef(share.exp().flatten(), truth.flatten())[0, 1] > 0.6


def correlation(a, b):
    """Of each gene, over spots."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))


# -- place ------------------------------------------------------------------------------------------------------------


def test_place_is_used_where_it_carries_over_to_other_sections():
    path = fitted([section(u, place=lambda xy: waves_of_place(xy, 0)) for u in range(4)], use_place=True)
    assert float(path.place_scale) > 0
    new = section(9, place=lambda xy: waves_of_place(xy, 0))
    blind = fitted([section(u, place=lambda xy: waves_of_place(xy, 0)) for u in range(4)])
    truth = normalized(new["counts"], path.target_total)
    score = [float(correlation(ask(p, new)[1], truth).mean()) for p in (path, blind)]
    assert score[0] > score[1] + 0.2


def test_place_is_left_alone_where_every_section_has_its_own_pattern():
    batches = [section(u, place=lambda xy, u=u: waves_of_place(xy, 10 + u)) for u in range(4)]
    path = fitted(batches, use_place=True)
    assert float(path.place_scale) == 0
    assert path.weight[-1][F:, 1:].abs().max() == 0
    here, there = ask(path, batches[0]), ask(path, {**batches[0], "xy": torch.zeros(60, 2)})
    torch.testing.assert_close(here[1], there[1])


# -- edges ------------------------------------------------------------------------------------------------------------


def test_more_features_than_components_go_through_their_principal_components():
    batches = [section(u, n=120, n_features=300) for u in range(3)]
    path = fitted(batches)
    assert path.rotation.shape == (300, 256)
    torch.testing.assert_close(path.rotation.T @ path.rotation, torch.eye(256), rtol=0, atol=1e-4)
    x = path.standardised(joined(batches)["features"]).double()
    x = x - x.mean(0)
    kept = (x @ path.rotation.double()).square().sum()
    best = torch.linalg.svdvals(x)[:256].square().sum()
    torch.testing.assert_close(kept, best, rtol=1e-5, atol=0)
    depth, share = ask(path, batches[0])
    assert depth.isfinite().all() and share.isfinite().all()


def test_one_fold_is_answered_by_the_fit_on_all_of_it():
    path = fitted([section(0), section(N_FOLDS)], use_place=True)  # both are fold 0
    for f in range(N_FOLDS):
        torch.testing.assert_close(path.weight[f], path.weight[-1])
    batch = section(0)
    answer = ask(path, batch, batch["fold"])
    torch.testing.assert_close(answer, ask(path, batch))
    assert all(part.isfinite().all() for part in answer)


@pytest.mark.parametrize("use_place", [False, True])
def test_constant_features_silent_genes_empty_spots_and_one_place_give_no_nan(use_place):
    batches = [section(u) for u in range(3)]
    for batch in batches:
        batch["features"][:, 0] = 1000.0
        batch["features"][:, 1] = 0.0
        batch["counts"][:, 0] = 0.0
        batch["counts"][:5] = 0.0
        batch["xy"].zero_()
    path = fitted(batches, use_place=use_place)
    assert all(value.isfinite().all() for value in path.state_dict().values())
    for fold in (None, batches[0]["fold"]):
        depth, share = ask(path, {**batches[0], "features": batches[0]["features"] + 1.0}, fold)
        assert depth.isfinite().all() and share.isfinite().all()


def test_one_gene_has_all_of_the_composition():
    batches = [section(u) for u in range(3)]
    for batch in batches:
        batch["counts"] = batch["counts"][:, :1]
    depth, share = ask(fitted(batches), batches[0])
    torch.testing.assert_close(share, torch.zeros(60, 1))
    assert depth.isfinite().all()


def test_features_far_outside_training_are_held_at_ten_standard_deviations():
    batches = [section(u) for u in range(3)]
    path = fitted(batches)
    far, farther = (path.standardised(torch.full((1, F), value)) for value in (1e4, 1e8))
    torch.testing.assert_close(far, farther)
    torch.testing.assert_close(far, torch.full((1, F), 10.0))
