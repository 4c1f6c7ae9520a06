"""The CausalGeD network: the order over sets of genes, no clean gene in its own answer, one pass against many.

B sets of genes, m genes, L length of a latent, R identity.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from stgen.models.causalged import _network
from stgen.models.causalged._config import CausalGeDConfig
from stgen.models.causalged._network import CLIP, CausalGeDNetwork
from stgen.models.causalged._parts import PlainBlock, Pool, drawn_steps, even_steps, step_weights
from stgen.nn._grouped import context_sees_context, query_sees_context, query_sees_query

L, R = 4, 6
SMALL = {
    "width": 16,
    "n_layers": 3,
    "n_heads": 2,
    "n_axes": L,
    "n_condition": 2,
    "dropout": 0.0,
    "n_times": 50,
}


def make_network(*, seed=0, loud=True, **changes):
    """A small network in eval mode, whose answer is not 0 if it is loud."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = CausalGeDNetwork(CausalGeDConfig(**{**SMALL, **changes}), n_identity=R)
        if loud:
            torch.nn.init.normal_(net.answer.weight, std=0.3)
            torch.nn.init.normal_(net.answer.bias, std=0.3)
    return net.eval()


def make_batch(n_measured=6, n_targets=7, b=2, *, seed=0):
    """Sets of genes as tables give them, measured genes first."""
    generator = torch.Generator().manual_seed(seed)
    m = n_measured + n_targets
    is_target = (torch.arange(m) >= n_measured).expand(b, -1)
    residual, target = (torch.randn(b, m, L, generator=generator) for _ in range(2))
    return {
        "index": torch.arange(b),
        "identity": torch.randn(1, m, R, generator=generator).expand(b, -1, -1),
        "hint": torch.randn(b, m, L, generator=generator),
        "residual": residual * ~is_target[..., None],
        "is_target": is_target,
        "target": target * is_target[..., None],
    }


def one(batch):
    """The first set of a batch."""
    return {name: part[:1] for name, part in batch.items()}


def reordered(batch, order):
    """The same genes in another order."""
    return {name: part if name == "index" else part[:, order] for name, part in batch.items()}


@pytest.fixture
def net():
    return make_network()


@pytest.fixture
def batch():
    return make_batch()


STEPS = torch.tensor([1, 1, 2, 2, 3, 3, 3])


# the order over sets ------------------------------------------------------------------------------------------------


def test_the_mask_of_steps_of_2_2_3_behind_two_condition_tokens_is_the_published_one():
    """Clean genes of the last step are left out as published: nothing comes after them."""
    step = STEPS
    clean = step[step < step.max()]
    context = torch.cat([torch.tensor([-1, -1]), clean])
    mask = torch.zeros(13, 13, dtype=torch.bool)
    mask[:6, :6] = context_sees_context(context)
    mask[6:, :6] = query_sees_context(step, context)
    mask[6:, 6:] = query_sees_query(step)
    published = """
        11 0000 0000000
        11 0000 0000000
        11 1100 0000000
        11 1100 0000000
        11 1111 0000000
        11 1111 0000000
        11 0000 1100000
        11 0000 1100000
        11 1100 0011000
        11 1100 0011000
        11 1111 0000111
        11 1111 0000111
        11 1111 0000111
    """
    rows = [[c == "1" for c in line if c in "01"] for line in published.split("\n") if line.strip()]
    assert torch.equal(mask, torch.tensor(rows))


def test_the_decoder_is_given_these_groups(net, batch, monkeypatch):
    """Condition tokens −1, measured genes 0, then the steps, clean and noisy."""
    seen = {}
    run = net.decoder.forward

    def spy(context, context_group, query, query_group, condition):
        seen.update(context=context_group, query=query_group, n=(context.shape[1], query.shape[1]))
        return run(context, context_group, query, query_group, condition)

    monkeypatch.setattr(net.decoder, "forward", spy)
    monkeypatch.setattr(_network, "drawn_steps", lambda *_: STEPS)
    net.loss(batch)
    assert seen["context"].tolist() == [-1, -1, *[0] * 6, *STEPS.tolist()]
    assert seen["query"].tolist() == STEPS.tolist()
    assert seen["n"] == (2 + 6 + 7, 7)


def slow_step_odds(n, decay):
    return np.array([decay**i for i in range(n)]) / sum(decay**i for i in range(n))


@pytest.mark.parametrize("decay", [0.5, 0.8, 1.0])
def test_the_number_of_steps_falls_by_decay(decay):
    """Within four standard errors of P(S = i) ∝ α^(i − 1), each of them."""
    n, draws, generator = 6, 6000, torch.Generator().manual_seed(1)
    drawn = [int(drawn_steps(n, decay, generator, torch.device("cpu"))[-1]) for _ in range(draws)]
    odds = slow_step_odds(n, decay)
    share = np.bincount(drawn, minlength=n + 1)[1:] / draws
    assert (np.abs(share - odds) < 4 * np.sqrt(odds * (1 - odds) / draws)).all()


def test_cuts_are_uniform_given_how_many_there_are():
    """Of 5 genes in 3 steps, all 6 pairs of cuts come as often; steps count from 1 without gaps."""
    generator, seen = torch.Generator().manual_seed(2), Counter()
    for _ in range(9000):
        step = drawn_steps(5, 1.0, generator, torch.device("cpu"))
        assert step[0] == 1 and set(step.diff().tolist()) <= {0, 1}
        if step[-1] == 3:
            seen[tuple((step.diff().nonzero()[:, 0] + 1).tolist())] += 1
    assert set(seen) == set(itertools.combinations(range(1, 5), 2))
    expected = sum(seen.values()) / 6
    statistic = sum((count - expected) ** 2 / expected for count in seen.values())
    assert statistic < 20.5  # 99.9 % of χ² with 5 degrees of freedom


def test_steps_are_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    one, other = (
        drawn_steps(30, 0.9, torch.Generator().manual_seed(3), torch.device("cpu")) for _ in range(2)
    )
    assert torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_single_gene_takes_a_single_step():
    assert drawn_steps(1, 0.8, None, torch.device("cpu")).tolist() == [1]
    assert step_weights(torch.tensor([1])).tolist() == [2.0]


@pytest.mark.parametrize(("n", "n_steps"), [(7, 1), (7, 3), (7, 7), (7, 20), (300, 4)])
def test_even_steps_differ_by_one_gene_at_most(n, n_steps):
    step = even_steps(n, n_steps)
    sizes = torch.bincount(step)[1:]
    assert step.tolist() == sorted(step.tolist()) and len(sizes) == min(n, n_steps)
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1


def test_weights_fall_from_2_to_1_with_the_rank_of_a_steps_first_gene():
    assert step_weights(STEPS).tolist() == pytest.approx([2, 2, 2 - 2 / 6, 2 - 2 / 6, *[2 - 4 / 6] * 3])
    alone = step_weights(torch.arange(1, 6)).tolist()
    assert alone == pytest.approx([2, 1.75, 1.5, 1.25, 1])
    assert step_weights(torch.ones(5, dtype=torch.int64)).tolist() == [2.0] * 5


# what a gene may see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_clean_gene_of_the_same_or_a_later_step_does_not_reach_the_loss_of_a_step(
    step, net, batch, monkeypatch
):
    """By the gradient of that step's part of the loss in clean tokens; those of earlier steps do reach it."""
    clean = []
    make = net.context_tokens

    def spy(residual, identity):
        tokens = make(residual, identity).detach().requires_grad_()
        clean.append(tokens)
        return tokens

    monkeypatch.setattr(net, "context_tokens", spy)
    monkeypatch.setattr(_network, "drawn_steps", lambda *_: STEPS)
    monkeypatch.setattr(_network, "step_weights", lambda s: (s == step).float())
    net.loss(batch, generator=torch.Generator().manual_seed(0)).total.backward()
    measured, targets = clean
    assert (measured.grad.abs().sum((0, 2)) > 0).all()
    reached = targets.grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == (step > STEPS).tolist()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_noisy_gene_reaches_its_own_step_alone(step, net, batch):
    measured, target = torch.arange(6).expand(2, -1), torch.arange(6, 13)
    context, group = net._context(batch, measured)
    clean = net.context_tokens(batch["target"][:, target], batch["identity"][:, target])
    noisy = torch.randn(2, 7, L, generator=torch.Generator().manual_seed(1)).requires_grad_()
    t = torch.tensor([3, 40])
    query = net.query_tokens(noisy, t, batch["hint"][:, target], batch["identity"][:, target])
    h = net.decoder(torch.cat([context, clean], 1), torch.cat([group, STEPS]), query, STEPS, context)
    h[:, step == STEPS].square().sum().backward()
    assert ((noisy.grad.abs().sum((0, 2)) > 0) == (step == STEPS)).all()


def test_a_target_reaches_no_context(net):
    """Neither its residual nor its hint are read where it is a target; its identity is, by condition tokens."""
    batch = make_batch()
    for name in ("residual", "hint"):
        batch[name] = batch[name].clone().requires_grad_()
    context, _ = net._context(batch, torch.arange(6).expand(2, -1))
    context.square().sum().backward()
    assert (batch["residual"].grad[:, :6] != 0).any() and not batch["residual"].grad[:, 6:].any()
    assert batch["hint"].grad is None


def test_without_context_measured_genes_are_not_seen():
    """But for their identity."""
    net, batch = make_network(use_context=False), make_batch()
    other = {**batch, "residual": batch["residual"] + 5 * ~batch["is_target"][..., None]}
    noise = torch.randn(3, 7, L, generator=torch.Generator().manual_seed(0))
    made, same = (net.impute(one(a), step=STEPS, noise=noise, n_steps=4) for a in (batch, other))
    assert torch.equal(made, same)
    seeing = make_network()
    made, changed = (seeing.impute(one(a), step=STEPS, noise=noise, n_steps=4) for a in (batch, other))
    assert not torch.allclose(made, changed, atol=1e-3)


def test_at_most_so_many_measured_genes_are_context(batch):
    net = make_network(max_context=3)
    beyond = {**batch, "residual": batch["residual"].clone()}
    beyond["residual"][:, 3:6] += 10
    noise = torch.randn(1, 7, L, generator=torch.Generator().manual_seed(0))
    made, same = (net.impute(one(a), step=STEPS, noise=noise, n_steps=4) for a in (batch, beyond))
    assert torch.equal(made, same)
    losses = [net.loss(a, generator=torch.Generator().manual_seed(0)).total for a in (batch, batch)]
    assert torch.equal(*losses) and torch.isfinite(losses[0])


# one pass against many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize(
    "steps", [STEPS, torch.ones(7, dtype=torch.int64), torch.arange(1, 8)], ids=["sets", "one", "all"]
)
def test_set_after_set_with_a_cache_equals_one_pass_given_the_same_clean_genes(steps, prediction, batch):
    """In one reverse step the walk ends at what the network sees in pure noise; so its answer has to be a fixed point."""
    net, batch = make_network(prediction=prediction), one(batch)
    noise = torch.randn(3, 7, L, generator=torch.Generator().manual_seed(5))
    made = net.impute(batch, step=steps, noise=noise, n_steps=1)

    whole = {name: part.expand(3, *part.shape[1:]) for name, part in batch.items()}
    measured, target = torch.arange(6).expand(3, -1), torch.arange(6, 13)
    identity, hint = whole["identity"][:, target], whole["hint"][:, target]
    context, group = net._context(whole, measured)
    t = torch.full((3,), net.schedule.n_times - 1)
    with torch.no_grad():
        h = net.decoder(
            torch.cat([context, net.context_tokens(made, identity)], 1),
            torch.cat([group, steps]),
            net.query_tokens(noise, t, hint, identity),
            steps,
            context,
        )
        x0 = net.schedule.parts(noise, net.answer(net.norm(h)), t, prediction).x0
    if prediction == "noise":
        x0 = x0.clamp(-CLIP, CLIP)
    torch.testing.assert_close(made, x0, rtol=1e-3, atol=1e-4 * float(x0.abs().max()))


def test_draws_are_made_apart_from_each_other(net, batch):
    """A draw is the same, alone or among others."""
    noise = torch.randn(5, 7, L, generator=torch.Generator().manual_seed(0))
    made = net.impute(one(batch), step=STEPS, noise=noise, n_steps=6)
    alone = net.impute(one(batch), step=STEPS, noise=noise[2:3], n_steps=6)
    torch.testing.assert_close(made[2:3], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made[0], made[1], atol=1e-2)


def test_permuting_genes_permutes_residuals(net, batch):
    """Measured ones and targets, with their noise and their step."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2, 7, L, generator=generator)
    made = net.impute(one(batch), step=STEPS, noise=noise, n_steps=6)
    measured, target = torch.randperm(6, generator=generator), torch.randperm(7, generator=generator)
    other = reordered(one(batch), torch.cat([measured, 6 + target]))
    same = net.impute(other, step=STEPS[target], noise=noise[:, target], n_steps=6)
    torch.testing.assert_close(same, made[:, target], rtol=1e-3, atol=1e-4)


def test_a_later_set_sees_what_was_generated_before_it(net, batch):
    """And a first one does not see what comes after."""
    noise = torch.randn(2, 7, L, generator=torch.Generator().manual_seed(0))
    other = noise.clone()
    other[:, :2] += 1
    made, changed = (net.impute(one(batch), step=STEPS, noise=part, n_steps=6) for part in (noise, other))
    assert not torch.allclose(made[:, 2:], changed[:, 2:], atol=1e-4)
    other = noise.clone()
    other[:, 4:] += 1
    changed = net.impute(one(batch), step=STEPS, noise=other, n_steps=6)
    assert torch.equal(made[:, :4], changed[:, :4])


# the answer ---------------------------------------------------------------------------------------------------------


def test_an_untrained_network_answers_0_and_its_loss_is_the_size_of_the_goal():
    """Velocity 0 means that of pure noise nothing is signal: a draw is noise, of no direction."""
    net, batch = make_network(loud=False, n_times=2000), make_batch()
    assert not net.answer.weight.any() and not net.answer.bias.any()
    noise = torch.randn(2000, 7, L, generator=torch.Generator().manual_seed(0))
    made = net.impute(one(batch), step=torch.ones(7, dtype=torch.int64), noise=noise, n_steps=4)
    assert made.mean(0).abs().max() < 0.1
    with torch.no_grad():
        losses = [float(net.loss(batch, generator=torch.Generator().manual_seed(s)).total) for s in range(80)]
    assert np.mean(losses) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
def test_the_loss_is_a_weighted_mean_of_squared_errors(prediction, batch):
    """Against loops over sets and genes, with the answers of the decoder."""
    net, generator = make_network(prediction=prediction), torch.Generator().manual_seed(4)
    total = net.loss(batch, generator=generator).total

    generator = torch.Generator().manual_seed(4)
    random = torch.rand(2, 13, generator=generator)
    target = 6 + random[:, 6:].argsort(1)
    measured = random[:, :6].argsort(1)
    step = drawn_steps(7, net.config.set_decay, generator, torch.device("cpu"))
    t = torch.randint(net.schedule.n_times, (2,), generator=generator)
    noise = torch.randn(2, 7, L, generator=generator)
    error, weight = 0.0, step_weights(step)
    for b in range(2):
        own = {name: part[b : b + 1] for name, part in batch.items()}
        x0 = own["target"][0, target[b]]
        identity, hint = own["identity"][:, target[b]], own["hint"][:, target[b]]
        alpha, sigma = net.schedule.alpha(t[b]), net.schedule.sigma(t[b])
        context, group = net._context(own, measured[b : b + 1])
        h = net.decoder(
            torch.cat([context, net.context_tokens(x0[None], identity)], 1),
            torch.cat([group, step]),
            net.query_tokens((alpha * x0 + sigma * noise[b])[None], t[b : b + 1], hint, identity),
            step,
            context,
        )
        goal = noise[b] if prediction == "noise" else alpha * noise[b] - sigma * x0
        answer = net.answer(net.norm(h))[0]
        for i in range(7):
            error += (weight[i] * (answer[i] - goal[i]).square().mean()).item()
    assert total.item() == pytest.approx(error / (2 * float(weight.sum())), rel=1e-4)


def test_a_diffusion_that_knows_the_answer_walks_to_it():
    """Round trip: from noise with an oracle's x0, by either prediction."""
    net = make_network()
    x0, noise = torch.randn(2, 5, 7, L, generator=torch.Generator().manual_seed(0))
    walked = net.schedule.walk(lambda x, t: x0, noise, 20)
    torch.testing.assert_close(walked, x0, rtol=1e-4, atol=1e-4)
    for kind in ("noise", "velocity"):
        t = torch.tensor([0, 5, 20, 30, 45])
        there = net.schedule.noised(x0, t, noise)
        back = net.schedule.parts(there, net.schedule.target(x0, noise, t, kind), t, kind)
        torch.testing.assert_close(back.x0, x0, rtol=1e-3, atol=1e-3)


def test_the_loss_draws_from_its_generator_alone(net, batch):
    state = torch.get_rng_state()
    one, other = (net.loss(batch, generator=torch.Generator().manual_seed(9)).total for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_sets_of_unequal_numbers_of_targets_are_cut_to_the_smallest(net):
    batch = make_batch()
    is_target = batch["is_target"].clone()
    is_target[1, 6] = False
    batch = {**batch, "is_target": is_target}
    assert torch.isfinite(net.loss(batch, generator=torch.Generator().manual_seed(0)).total)


def test_at_most_so_many_targets_are_generated_in_training(net, monkeypatch):
    monkeypatch.setattr(_network, "MAX_TARGETS", 3)
    seen = []
    monkeypatch.setattr(_network, "drawn_steps", lambda n, *_: seen.append(n) or torch.ones(n).long())
    net.loss(make_batch())
    assert seen == [3]


# parts --------------------------------------------------------------------------------------------------------------


def test_a_block_equals_written_out_attention():
    torch.manual_seed(0)
    block, x = PlainBlock(8, 2, ffn_ratio=2, dropout=0.0).eval(), torch.randn(2, 5, 8)

    def attend(q, k, v):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    h = block.attention_norm(x)
    q, k, v = block.qkv(h).chunk(3, -1)
    seen = []
    for head in range(2):
        own = slice(4 * head, 4 * head + 4)
        score = q[..., own] @ k[..., own].transpose(1, 2) / 2.0
        seen.append(score.softmax(-1) @ v[..., own])
    y = x + block.project(torch.cat(seen, -1))
    y = y + block.ffn(block.ffn_norm(y))
    torch.testing.assert_close(block(x, attend, x), y)


def test_condition_tokens_are_weighted_means_that_know_no_order():
    torch.manual_seed(0)
    pool, tokens = Pool(8, 3), torch.randn(2, 5, 8)
    made = pool(tokens)
    torch.testing.assert_close(made, pool(tokens[:, torch.tensor([3, 1, 4, 0, 2])]))
    same = tokens[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(pool(same), pool.value(tokens[:, :1]).expand(-1, 3, -1))


def test_statistics_and_names_go_with_the_weights(net):
    net.keep({"a": torch.ones(2, 3), "b": torch.tensor(4.0)}, ["x", "y"], ["y"])
    other = CausalGeDNetwork(net.config, n_identity=R, **net.sizes())
    other.load_state_dict(net.state_dict())
    assert other.genes == ["x", "y"] and other.measured == ["y"]
    assert torch.equal(other.statistic("a"), torch.ones(2, 3)) and float(other.statistic("b")) == 4


CONFIGS = {
    "heads": ({"width": 10, "n_heads": 4}, "`width` must be a multiple of `n_heads`; got 10 and 4"),
    "odd axes": ({"n_axes": 5}, "`n_axes` must be even; got 5"),
    "no layer": ({"n_layers": 0}, "`n_layers` must be a whole number, at least 1; got 0"),
    "yes": ({"n_condition": True}, "`n_condition` must be a whole number, at least 1; got True"),
    "prediction": ({"prediction": "x0"}, "`prediction` must be one of 'velocity', 'noise'; got 'x0'"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\); got 1.0"),
    "decay": ({"set_decay": 0.0}, "`set_decay` must be above 0 and at most 1; got 0.0"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_nothing_can_be_built_from_is_refused(name):
    changes, message = CONFIGS[name]
    with pytest.raises(ValueError, match=message):
        CausalGeDConfig(**changes)
