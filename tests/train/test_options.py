"""Options are checked where they are made; the learning rate rises, then falls along a cosine."""

from __future__ import annotations

import numpy as np
import pytest

from stgen.nn._random import seed_from
from stgen.train import TrainingOptions
from stgen.train._options import learning_rate


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("batch_size", 0, r"`batch_size` must be an integer ≥ 1; got 0"),
        ("batch_size", 2.5, r"`batch_size` must be an integer ≥ 1; got 2.5"),
        ("max_epochs", 0, r"`max_epochs` must be an integer ≥ 1 or None; got 0"),
        ("lr", 0.0, r"`lr` must be positive; got 0.0"),
        ("weight_decay", -1.0, r"`weight_decay` must be 0 or more; got -1.0"),
        ("warmup", 1.0, r"`warmup` must be in \[0, 1\); got 1.0"),
        ("ema_decay", 1.5, r"`ema_decay` must be in \[0, 1\); got 1.5"),
        ("precision", "16", r"`precision` must be one of '32', 'bf16'; got '16'"),
        ("random_state", -1, r"`random_state` must be 0 or more; got -1"),
    ],
)
def test_a_wrong_option_is_named(option, value, expected):
    with pytest.raises(ValueError, match=expected):
        TrainingOptions(**{option: value})


def test_numpy_integers_are_integers():
    assert TrainingOptions(batch_size=np.int64(8), max_epochs=np.int32(3)).epochs(10) == 3


@pytest.mark.parametrize(("steps", "epochs"), [(1, 400), (9, 400), (40, 100), (4000, 20)])
def test_epochs_follow_the_size_of_the_data(steps, epochs):
    assert TrainingOptions().epochs(steps) == epochs


def test_the_learning_rate_rises_and_falls():
    options = TrainingOptions(lr=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[:10] == pytest.approx(np.linspace(0.2, 2.0, 10))
    assert max(rates) == 2.0
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.01
    assert learning_rate(10 + 45, 100, options) == pytest.approx(1.0)


def test_without_warm_up_the_first_step_is_the_largest():
    assert learning_rate(0, 5, TrainingOptions(lr=1.0, warmup=0.0)) == 1.0
    assert learning_rate(0, 1, TrainingOptions(lr=1.0)) == 1.0


def test_each_purpose_has_its_own_seed():
    seeds = {
        seed_from(state, purpose, epoch)
        for state in (0, 1)
        for purpose in ("order", "noise")
        for epoch in range(5)
    }
    assert len(seeds) == 20
    assert seed_from(0, "order", 3) == seed_from(0, "order", 3)
