"""Experts on features that keep their spread, and on tissue whose patches share errors."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from stgen.experts._crossfit import without_patches
from stgen.experts._ridge import PENALTIES, CrossFittedRidge
from stgen.experts._stack import Experts
from stgen.nn._network import N_FOLDS

N, F, Y = 300, 5, 3


def batches(*, seed=0, far=False, patch=False):
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
            **({"patch": unit * N + torch.arange(N // 4) // 15} if patch else {}),
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
    path = CrossFittedRidge(F, (Y,), use_place=False, standardise=False)
    path.fit(made)
    x, y, fold = (joined(made, name).double().numpy() for name in ("features", "targets", "fold"))
    penalty = chosen_penalty(x, y, fold)
    new = batches(seed=1)[0]
    expected = Ridge(alpha=penalty).fit(x, y).predict(new["features"].double().numpy())
    answer = path(path.inputs(new["features"], new["xy"]))
    np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())
    for f in range(4):
        expected = Ridge(alpha=penalty).fit(x[fold != f], y[fold != f]).predict(x[fold == f])
        held_out = path(path.inputs(made[f]["features"], made[f]["xy"]), made[f]["fold"])
        np.testing.assert_allclose(held_out, expected, atol=1e-3 * np.abs(expected).max())


def test_standardising_charges_features_alike_and_keeping_spread_does_not(monkeypatch):
    monkeypatch.setattr("stgen.experts._ridge.PENALTIES", [1e3])

    def explained(standardise):
        path = CrossFittedRidge(F, (Y,), use_place=False, standardise=standardise)
        path.fit(batches())
        raw = path.weight[-1] / (
            path.sd[:, None] if standardise else 1.0
        )  # weight of a feature as it is measured
        return raw.norm(dim=1)

    alike, kept = explained(True), explained(False)
    assert kept[4] / kept[0] < 0.1 * alike[4] / alike[0]


@pytest.mark.parametrize("standardise", [True, False])
def test_features_far_outside_are_held_at_ten_standard_deviations(standardise):
    path = CrossFittedRidge(F, (Y,), standardise=standardise)
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
        experts.fit(batches(patch=True))
    again.load_state_dict(experts.state_dict())
    new = batches(seed=2)[0]
    for fold in (None, new["fold"]):
        assert torch.equal(*(one.answers(new["features"], new["xy"], fold) for one in (experts, again)))
    assert ((experts.share >= 0) & (experts.share <= 1)).all()


def test_each_expert_changes_the_answer_of_those_before_it_by_its_share():
    experts = Experts(F, (1, Y - 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        experts.fit(batches(patch=True))
    experts.share.copy_(torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.5, 0.5]]))
    new = batches(seed=2)[0]
    inputs = experts.linear.inputs(new["features"], new["xy"])
    seen = experts._for_others(inputs)
    ridge, perceptron, retrieval = (
        experts.linear(inputs),
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
    monkeypatch.setattr("stgen.experts._ridge.PLACE_EXPLAINS", 0.0)
    generator = torch.Generator().manual_seed(0)
    made = []
    for unit in range(4):
        features = torch.randn(400, F, generator=generator)
        xy = 4000 * torch.rand(400, 2, generator=generator) - 2000
        targets = features[:, :Y] + 0.13 * torch.sin(xy[:, :1] / 1000)
        made.append({"features": features, "xy": xy, "targets": targets + 0.5 * torch.randn(400, Y, generator=generator), "fold": torch.full((400,), unit)})  # fmt: skip

    def place_scale():
        path = CrossFittedRidge(F, (Y,))
        path.fit(made)
        return float(path.place_scale)

    assert place_scale() > 0
    monkeypatch.setattr("stgen.experts._ridge.PLACE_EXPLAINS", 0.05)
    assert place_scale() == 0


# -- errors that a patch shares ------------------------------------------------------------------------------------


def patchy(*, n_units=6, n_patches=30, size=12, shared=2.0, seed=0):
    """Sections in patches: a feature is alike within a patch, and so is what the features do not show."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(F, Y, generator=torch.Generator().manual_seed(7))
    made = []
    for unit in range(n_units):

        def alike(width):
            values = torch.randn(n_patches, 1, width, generator=generator)
            return values.expand(-1, size, -1).flatten(0, 1)

        n = n_patches * size
        features = alike(F) + torch.randn(n, F, generator=generator)
        unseen = shared * alike(Y) + torch.randn(n, Y, generator=generator)
        made.append({
            "features": features,
            "xy": torch.zeros(n, 2),
            "targets": features @ weight + unseen,
            "fold": torch.full((n,), unit % N_FOLDS),
            "patch": unit * n_patches + torch.arange(n) // size,
        })  # fmt: skip
    return made


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("batch_size", [7, 360])
def test_taking_a_share_of_the_patch_out_is_a_ridge_on_rows_less_that_share(share, batch_size, monkeypatch):
    """Moments against rows; batches cut through patches."""
    monkeypatch.setattr("stgen.experts._ridge.PATCH_SHARES", (share,))
    monkeypatch.setattr("stgen.experts._ridge.PENALTIES", [30.0])
    made = patchy()
    path = CrossFittedRidge(F, (Y,), use_place=False, standardise=False)
    whole = {name: joined(made, name) for name in made[0]}
    path.fit([
        {name: values[i : i + batch_size] for name, values in whole.items()}
        for i in range(0, len(whole["fold"]), batch_size)
    ])  # fmt: skip
    x, y = whole["features"].double(), whole["targets"].double()
    less = []
    for values in (x, y):
        means = values.unflatten(0, (-1, 12)).mean(1).repeat_interleave(12, 0)
        less.append((values - share * means).numpy())
    expected = torch.tensor(Ridge(alpha=30.0).fit(*less).coef_.T, dtype=torch.float32)
    torch.testing.assert_close(path.weight[-1], expected, rtol=1e-3, atol=1e-3)
    # level and spread of the answer are those of rows as they are
    answer = path(path.inputs(whole["features"], whole["xy"]))
    torch.testing.assert_close(answer.mean(0), whole["targets"].mean(0), rtol=1e-3, atol=1e-3)


def test_left_out_sections_choose_the_share():
    """Errors that patches share are taken out; errors that sections share because they are one tissue are not."""

    def chosen(made):
        path = CrossFittedRidge(F, (Y,), use_place=False)
        path.fit(made)
        return float(path.patch_share[0])

    assert chosen(patchy(shared=2.0)) > 0
    sisters = patchy(shared=0.0)
    # every section has the same unseen map, and the features tell where in it a spot lies
    unseen = 2 * torch.randn(30, Y, generator=torch.Generator().manual_seed(3)).repeat_interleave(12, 0)
    for batch in sisters:
        batch["targets"] = batch["targets"] + unseen
        batch["features"] = batch["features"].clone()
        batch["features"][:, 0] = unseen[:, 0] + torch.randn(360, generator=torch.Generator().manual_seed(4))
    assert chosen(sisters) == 0


def test_without_patches_every_share_is_nought():
    path = CrossFittedRidge(F, (Y,), use_place=False)
    path.fit([{name: v for name, v in batch.items() if name != "patch"} for batch in patchy()])
    assert not path.patch_share.any()


def test_both_experts_find_more_of_the_truth_where_patches_share_errors(monkeypatch):
    """On sections that nobody saw, against the same experts charged for every spot alike."""
    made, new = patchy(shared=4.0), joined(patchy(n_units=3, seed=1), "features")
    true = new @ torch.randn(F, Y, generator=torch.Generator().manual_seed(7))

    def missed():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            experts = Experts(F, (Y,), use_place=False, retrieval=False)
            experts.fit(made)
        seen = experts.linear.inputs(new, torch.zeros(len(new), 2))
        answers = experts.linear(seen), experts.perceptrons(seen)
        return [
            1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(answer.T, true.T, strict=True)])
            for answer in answers
        ]

    with_shares = missed()
    monkeypatch.setattr("stgen.experts._ridge.PATCH_SHARES", (0.0,))
    monkeypatch.setattr("stgen.experts._stack.LEAST_PATCH_SHARE", 0.0)
    assert all(less < 0.5 * more for less, more in zip(with_shares, missed(), strict=True))


def test_a_share_of_every_patch_is_taken_out():
    values = torch.randn(2, 6, 3)
    expected = values.clone()
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        expected[:, start:stop] -= 0.75 * values[:, start:stop].mean(1, keepdim=True)
    torch.testing.assert_close(without_patches(values, [1, 3, 2], 0.75), expected)
    torch.testing.assert_close(without_patches(values[0], [1, 3, 2], 0.75), expected[0])


def test_too_many_rows_leave_whole_patches_out(monkeypatch):
    monkeypatch.setattr("stgen.experts._stack.MAX_ROWS", 500)
    seen = {}
    monkeypatch.setattr(
        "stgen.experts._mlp.Perceptrons.fit",
        lambda self, inputs, targets, fold, blocks: seen.update(n=len(inputs), sizes=list(blocks.sizes)),
    )
    made = patchy()
    Experts(F, (Y,), use_place=False, retrieval=False).fit(made)
    assert seen["n"] <= 500 and set(seen["sizes"]) == {12} and sum(seen["sizes"]) == seen["n"]
