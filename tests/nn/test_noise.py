"""Uniform numbers that follow an observation, not its place in a batch."""

import pytest
import torch
from scipy.stats import kstest

from stgen.nn._noise import keyed_uniform

KEYS = torch.arange(4000) * 7919 - 10_000_000


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**40, -3])
@pytest.mark.parametrize("keys", ["consecutive", "hashes"])
def test_numbers_are_uniform_for_any_seed(seed, keys):
    key = torch.arange(2000)
    if keys == "hashes":
        key = torch.randint(-(2**62), 2**62, (2000,), generator=torch.Generator().manual_seed(1))
    u = keyed_uniform(key, 20, seed=seed)
    assert u.shape == (2000, 20) and u.dtype == torch.float32
    assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    assert abs(float(u.double().var()) - 1 / 12) < 2e-3


def test_numbers_belong_to_the_key_whatever_the_batch():
    u = keyed_uniform(KEYS, 5, seed=3)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_uniform(KEYS[order], 5, seed=3), u[order])
    assert torch.equal(keyed_uniform(KEYS[17:18], 5, seed=3), u[17:18])


def test_asking_for_more_numbers_keeps_the_first():
    assert torch.equal(keyed_uniform(KEYS, 9)[:, :4], keyed_uniform(KEYS, 4))


def test_equal_questions_get_equal_answers_and_leave_the_global_stream_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(keyed_uniform(KEYS, 3, seed=1), keyed_uniform(KEYS, 3, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seeds_keys_and_positions_are_unrelated():
    """20,000 pairs: six standard errors of a correlation of 0 are .042."""
    u = keyed_uniform(KEYS, 5)
    for seed in (1, 2, 7919, 2**31):
        assert abs(correlation(u, keyed_uniform(KEYS, 5, seed=seed))) < 0.042
    assert abs(correlation(u[1:], u[:-1])) < 0.042
    assert abs(correlation(u[:, 1:], u[:, :-1])) < 0.047


def test_no_two_observations_share_their_numbers():
    assert len(keyed_uniform(KEYS, 3).unique(dim=0)) == len(KEYS)


def test_numbers_stay_inside_0_and_1():
    """This key's second number has its 24 highest bits set: one bit too many would round it up to 1."""
    u = keyed_uniform(torch.tensor([3607154]), 2)[0, 1]
    assert 1 - 2.0**-22 < u < 1
    assert keyed_uniform(KEYS, 50).min() > 0
