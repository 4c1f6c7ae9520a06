"""Norms steered by a condition, stochastic depth, and attention whose logits stay bounded."""

import math

import pytest
import torch
import torch.nn.functional as F

from stgen.nn._attention import AdaptiveBlock, AdaptiveNorm, DropPath

B, N, D, C = 4, 6, 8, 3


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def dense(q, k, v):
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_an_adaptive_norm_starts_as_a_plain_norm_whatever_the_condition(gate):
    norm, x = AdaptiveNorm(D, C, gate=gate), torch.randn(B, N, D)
    normed, opened = norm(x, 100 * torch.randn(B, C))
    torch.testing.assert_close(normed, F.layer_norm(x, (D,)))
    assert torch.equal(opened, torch.full((B, 1, D), gate))


def test_scale_shift_and_gate_come_from_the_observations_own_condition():
    norm, x, condition = AdaptiveNorm(D, C), torch.randn(B, N, D), torch.randn(B, C)
    torch.nn.init.normal_(norm.steer.weight)
    torch.nn.init.normal_(norm.steer.bias)
    normed, opened = norm(x, condition)
    for b in range(B):
        steer = norm.steer.weight @ condition[b] + norm.steer.bias
        scale, shift, gate = steer[:D], steer[D : 2 * D], steer[2 * D :]
        expected = (x[b] - x[b].mean(-1, keepdim=True)) / (
            x[b].var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(normed[b], expected * (1 + scale) + shift, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(opened[b, 0], 1 + gate)


def test_a_block_starts_as_a_plain_transformer_block_whatever_the_condition():
    block, x = AdaptiveBlock(D, 2, C).eval(), torch.randn(B, N, D)
    plain = F.layer_norm(x, (D,))
    q, k, v = (part.reshape(B, N, 2, D // 2) for part in block.qkv(plain).split(D, dim=-1))
    seen = torch.empty(B, N, 2, D // 2)
    for b in range(B):
        for h in range(2):
            cosine = F.normalize(q[b, :, h], dim=-1) @ F.normalize(k[b, :, h], dim=-1).T
            seen[b, :, h] = (math.sqrt(D / 2) * cosine).softmax(-1) @ v[b, :, h]
    expected = x + block.project(seen.reshape(B, N, D))
    expected = expected + block.ffn(F.layer_norm(expected, (D,)))
    for strength in (0.0, 50.0):
        torch.testing.assert_close(
            block(x, dense, strength * torch.randn(B, C)), expected, rtol=1e-4, atol=1e-5
        )


def test_a_closed_gate_makes_a_block_the_identity():
    block, x = AdaptiveBlock(D, 2, C), torch.randn(B, N, D)
    for norm in (block.attention_norm, block.ffn_norm):
        norm.steer.bias.data[2 * D :] = -1.0  # the gate is 1 + this
    assert torch.equal(block(x, dense, torch.randn(B, C)), x)


@pytest.mark.parametrize(("learned", "limit"), [(0.0, 1.0), (math.log(7.0), 7.0), (1e3, 100.0)])
def test_queries_and_keys_have_unit_length_and_a_temperature_of_at_most_100(learned, limit):
    block = AdaptiveBlock(D, 2, C)
    torch.nn.init.constant_(block.log_temperature, learned)
    asked = []

    def attend(q, k, v):
        asked.extend([q.norm(dim=-1), k.norm(dim=-1), (q @ k.transpose(-1, -2)).abs().max()])
        return dense(q, k, v)

    block(1e3 * torch.randn(B, N, D), attend, torch.randn(B, C))
    lengths_q, lengths_k, largest = asked
    torch.testing.assert_close(lengths_q, torch.full_like(lengths_q, limit), rtol=1e-4, atol=0)
    torch.testing.assert_close(lengths_k, torch.ones_like(lengths_k), rtol=1e-4, atol=0)
    assert largest <= limit * 1.001


def test_a_block_is_blind_to_the_order_of_tokens():
    block, x, condition = AdaptiveBlock(D, 2, C).eval(), torch.randn(B, N, D), torch.randn(B, C)
    order = torch.randperm(N)
    torch.testing.assert_close(block(x[:, order], dense, condition), block(x, dense, condition)[:, order])


@pytest.mark.parametrize("m", [0, 2, N])
def test_where_only_the_last_tokens_are_attended_for_a_block_answers_for_these(m):
    block, x, condition = AdaptiveBlock(D, 2, C).eval(), torch.randn(B, N, D), torch.randn(B, C)
    last = block(x, lambda q, k, v: dense(q[:, :, N - m :], k, v), condition)
    torch.testing.assert_close(last, block(x, dense, condition)[:, N - m :])


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="Width 10 must be a multiple of the 4 heads"):
        AdaptiveBlock(10, 4, C)


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    drop = DropPath(0.3).train()
    x = torch.rand(20_000, 2, 3) + 1
    y = drop(x)
    kept = y[:, 0, 0] > 0
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    assert (y[~kept] == 0).all()
    # 20,000 coins with probability .7: six standard errors are .02
    assert abs(kept.float().mean() - 0.7) < 0.02
    assert abs(y.mean() / x.mean() - 1) < 0.03


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)])
def test_drop_path_is_off_in_prediction_and_at_rate_0(rate, training):
    x = torch.randn(50, 3)
    assert torch.equal(DropPath(rate).train(training)(x), x)
