"""Experts on features that keep their spread: the ridge is then that of the features as they are."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from stgen.nn._experts import Experts
from stgen.nn._linear import N_FOLDS, PENALTIES, LinearPath

N, F, Y = 300, 5, 3


def batches(*, seed=0, far=False):
    """Four sections; features of very different spread, all of them with something to say."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1])
    weight = torch.randn(F, Y, generator=torch.Generator().manual_seed(7))
    made = []
    for unit in range(4):
        features = torch.randn(N // 4, F, generator=generator) * scale + 2
        targets = features @ weight + torch.randn(N // 4, Y, generator=generator)
        made.append({
            "features": features,
            "xy": 4000 * torch.rand(N // 4, 2, generator=generator) - 2000,
            "targets": targets,
            "fold": torch.full((N // 4,), unit % N_FOLDS),
        })  # fmt: skip
    if far:
        made[0]["features"][0] = 1e6
    return made


def joined(parts, name):
    return torch.cat([part[name] for part in parts])


def chosen_penalty(x, y, fold):
    """By leaving one section out, row by row."""
    spread = ((y - y.mean(0)) ** 2).sum(0)

    def unexplained(penalty):
        squared = np.zeros(Y)
        for f in np.unique(fold):
            fit = Ridge(alpha=penalty).fit(x[fold != f], y[fold != f])
            squared += ((y[fold == f] - fit.predict(x[fold == f])) ** 2).sum(0)
        return (squared / spread).mean()

    return min(PENALTIES, key=unexplained)


def test_without_standardising_the_fit_is_a_ridge_on_the_features_themselves():
    made = batches()
    path = LinearPath(F, (Y,), use_place=False, standardise=False)
    path.fit(made)
    x, y, fold = (joined(made, name).double().numpy() for name in ("features", "targets", "fold"))
    penalty = chosen_penalty(x, y, fold)
    new = batches(seed=1)[0]
    expected = Ridge(alpha=penalty).fit(x, y).predict(new["features"].double().numpy())
    answer = path.answers(path.inputs(new["features"], new["xy"]))
    np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())
    for f in range(4):
        expected = Ridge(alpha=penalty).fit(x[fold != f], y[fold != f]).predict(x[fold == f])
        held_out = path.answers(path.inputs(made[f]["features"], made[f]["xy"]), made[f]["fold"])
        np.testing.assert_allclose(held_out, expected, atol=1e-3 * np.abs(expected).max())


def test_standardising_charges_features_alike_and_keeping_spread_does_not(monkeypatch):
    monkeypatch.setattr("stgen.nn._linear.PENALTIES", [1e3])

    def explained(standardise):
        path = LinearPath(F, (Y,), use_place=False, standardise=standardise)
        path.fit(batches())
        raw = path.weight[-1] / (
            path.sd[:, None] if standardise else 1.0
        )  # weight of a feature as it is measured
        return raw.norm(dim=1)

    alike, kept = explained(True), explained(False)
    assert kept[4] / kept[0] < 0.1 * alike[4] / alike[0]


@pytest.mark.parametrize("standardise", [True, False])
def test_features_far_outside_are_held_at_ten_standard_deviations(standardise):
    path = LinearPath(F, (Y,), standardise=standardise)
    path.fit(batches())
    far, farther = (path.standardised(torch.full((1, F), value)) for value in (1e4, 1e8))
    torch.testing.assert_close(far, farther)
    torch.testing.assert_close(far[0], 10 * (torch.ones(F) if standardise else path.sd))


@pytest.mark.parametrize("standardise", [True, False])
def test_saved_experts_answer_the_same(standardise):
    def make():
        return Experts(F, (1, Y - 1), standardise=standardise)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        experts, again = make(), make()
        experts.fit(batches())
    again.load_state_dict(experts.state_dict())
    new = batches(seed=2)[0]
    for fold in (None, new["fold"]):
        assert torch.equal(*(one.answers(new["features"], new["xy"], fold) for one in (experts, again)))
    assert ((experts.share >= 0) & (experts.share <= 1)).all()


def test_each_expert_changes_the_answer_of_those_before_it_by_its_share():
    experts = Experts(F, (1, Y - 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        experts.fit(batches())
    experts.share.copy_(torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.5, 0.5]]))
    new = batches(seed=2)[0]
    inputs = experts.linear.inputs(new["features"], new["xy"])
    seen = experts._for_others(inputs)
    ridge, perceptron, retrieval = (
        experts.linear.answers(inputs),
        experts.perceptrons(seen),
        experts.retrieval(seen),
    )
    expected = torch.stack(
        [
            (ridge[:, 0] + perceptron[:, 0]) / 2,
            (ridge[:, 1] + retrieval[:, 1]) / 2,
            (perceptron[:, 2] + retrieval[:, 2]) / 2,
        ],
        dim=1,
    )
    torch.testing.assert_close(experts.answers(new["features"], new["xy"]), expected)


@pytest.mark.parametrize(
    ("options", "n_others"), [({}, 2), ({"retrieval": False}, 1), ({"nonlinear": False}, 0)]
)
def test_experts_that_were_not_asked_for_leave_nothing_behind(options, n_others):
    experts = Experts(F, (1, Y - 1), **options)
    assert experts.share.shape == (n_others, Y)
    assert (experts.retrieval is None) == (n_others < 2)
    assert (experts.perceptrons is None) == (n_others < 1)


def test_place_that_explains_little_is_not_used(monkeypatch):
    """A wave of place explains a small share of left-out sections: used only where as little is asked for."""
    monkeypatch.setattr("stgen.nn._linear.PLACE_EXPLAINS", 0.0)
    generator = torch.Generator().manual_seed(0)
    made = []
    for unit in range(4):
        features = torch.randn(400, F, generator=generator)
        xy = 4000 * torch.rand(400, 2, generator=generator) - 2000
        targets = features[:, :Y] + 0.13 * torch.sin(xy[:, :1] / 1000)
        made.append({"features": features, "xy": xy, "targets": targets + 0.5 * torch.randn(400, Y, generator=generator), "fold": torch.full((400,), unit)})  # fmt: skip

    def place_scale():
        path = LinearPath(F, (Y,))
        path.fit(made)
        return float(path.place_scale)

    assert place_scale() > 0
    monkeypatch.setattr("stgen.nn._linear.PLACE_EXPLAINS", 0.05)
    assert place_scale() == 0
