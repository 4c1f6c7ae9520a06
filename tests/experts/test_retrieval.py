"""Retrieval among training spots: what is searched, by whom, and how it is weighed."""

import math

import pytest
import torch

from stgen.experts import _retrieval
from stgen.experts._retrieval import Retrieval

P, Y, S = 6, 5, 3


def spots(n=240, *, seed=0):
    """Four kinds of spots in three sections; inputs and profiles of a kind go together."""
    generator = torch.Generator().manual_seed(seed)
    of_inputs, of_targets = (torch.randn(4, d, generator=torch.Generator().manual_seed(9)) for d in (P, Y))
    kind = torch.randint(4, (n,), generator=generator)
    inputs = 2 * of_inputs[kind] + 0.5 * torch.randn(n, P, generator=generator)
    targets = 2 * of_targets[kind] + 0.5 * torch.randn(n, Y, generator=generator)
    return inputs, targets, torch.arange(n) % S, 2 * of_targets[kind]


def fitted(inputs, targets, fold, seed=0):
    retrieval = Retrieval(P, Y, Y, S)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        retrieval.fit(inputs, targets, fold)
    return retrieval


@pytest.fixture(scope="module")
def trained():
    return fitted(*spots()[:3])


def test_a_new_spot_gets_the_profile_of_its_kind(trained):
    inputs, _, _, profile = spots(60, seed=1)
    error = (trained(inputs) - profile).square().mean()
    assert error < 0.2 * profile.var(0).mean()


def test_an_answer_is_a_mean_of_measured_profiles_weighted_by_likeness(trained):
    inputs, targets, fold, _ = spots()
    for asked, f in ((None, S), (torch.full((4,), 1), 1)):
        answer = trained(inputs[:4], asked)
        for b in range(4):
            image = trained.image(inputs[b : b + 1])[f, 0]
            weight = [
                0.0 if fold[i] == f else math.exp(float(image @ trained.keys[f, i] / trained.temperature))
                for i in range(len(targets))
            ]
            expected = sum(w * y for w, y in zip(weight, targets, strict=True)) / sum(weight)
            torch.testing.assert_close(answer[b], expected, rtol=1e-4, atol=1e-5)


def test_no_spot_is_answered_with_its_own_section(monkeypatch):
    """Poison: the profiles of one section are replaced; what the search without it answers stays."""
    monkeypatch.setattr(_retrieval, "SHARPNESS", (0.2,))
    inputs, targets, fold, _ = spots()
    poisoned = torch.where((fold == 2)[:, None], 1e4 * torch.rand(targets.shape), targets)
    here = inputs[fold == 2], fold[fold == 2]
    clean, after = (fitted(inputs, y, fold) for y in (targets, poisoned))
    torch.testing.assert_close(clean(*here), after(*here), rtol=1e-4, atol=1e-4)
    assert after(here[0]).max() > 100  # the search among all spots did find them


def test_few_spots_at_a_time_give_the_same_answers(trained, monkeypatch):
    inputs, _, fold, _ = spots(50, seed=2)
    whole = trained(inputs), trained(inputs, fold)
    monkeypatch.setattr(_retrieval, "MAX_NUMBERS", 700)
    torch.testing.assert_close((trained(inputs), trained(inputs, fold)), whole)


def test_the_library_is_bounded_and_spread_over_the_spots(monkeypatch):
    monkeypatch.setattr(_retrieval, "MAX_LIBRARY", 50)
    inputs, targets, fold, _ = spots()
    retrieval = fitted(inputs, targets, fold)
    assert retrieval.values.shape == (48, Y)
    assert retrieval.keys.shape[:2] == (S + 1, 48)
    torch.testing.assert_close(retrieval.values, targets[::5])
    assert retrieval.origin.tolist() == fold[::5].tolist()


def test_a_saved_library_is_read_whatever_its_size(trained):
    again = Retrieval(P, Y, Y, S)
    again.load_state_dict(trained.state_dict())
    inputs, _, fold, _ = spots(20, seed=3)
    assert torch.equal(trained(inputs), again(inputs))
    assert torch.equal(trained(inputs, fold), again(inputs, fold))


def test_a_truncated_state_is_refused(trained):
    state = {name: value for name, value in trained.state_dict().items() if name != "values"}
    with pytest.raises(RuntimeError, match="values"):
        Retrieval(P, Y, Y, S).load_state_dict(state)


def test_the_seed_decides(trained):
    inputs, targets, fold, _ = spots()
    assert torch.equal(fitted(inputs, targets, fold).keys, trained.keys)
    assert not torch.equal(fitted(inputs, targets, fold, seed=1).keys, trained.keys)


def test_constant_inputs_and_targets_are_survived():
    inputs, targets, fold, _ = spots()
    inputs[:, 0], targets[:, 1] = 3.0, 0.0
    answer = fitted(inputs, targets, fold)(inputs, fold)
    assert answer.isfinite().all()
    assert (answer[:, 1] == 0).all()
