"""The GeST network: what a place may be told, one pass against many, and answers that are distributions.

B windows, N cells of the longest, Q queries, D width, T genes, K meta cells.
"""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from stgen.models.gest._config import GeSTConfig
from stgen.models.gest._network import GeSTNetwork
from stgen.models.gest._parts import SpatialBlock, place_sinusoid, quantized_place
from stgen.nn._grouped import attention

T, K, WINDOW = 12, 40, 100.0
SMALL = {
    "width": 16,
    "n_layers": 2,
    "n_heads": 2,
    "dropout": 0.0,
    "n_meta_cells": K,
    "n_components": 8,
    "levels": (6, 3),
    "window_um": WINDOW,
}
SHARP = 1e5
"""An exponent of the order so large that chance decides nothing."""


def make_cells(n=200, *, seed=0, n_genes=T):
    """Log-normalised expression of several kinds of cells."""
    generator = torch.Generator().manual_seed(seed)
    kind = 2 * torch.rand(5, n_genes, generator=torch.Generator().manual_seed(99))
    noise = 0.3 * torch.randn(n, n_genes, generator=generator)
    return (kind[torch.arange(n) % 5] + noise).clamp(min=0)


def make_network(*, seed=0, **changes):
    """A small prepared network in eval mode whose biases are not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GeSTNetwork(GeSTConfig(**{**SMALL, **changes}), n_genes=T)
        net.prepare([{"expression": make_cells(seed=1)}, {"expression": make_cells(seed=2)}])
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def make_windows(sizes=(9,), *, seed=0, padded=0):
    """Windows as tables of cells give them; no meta cell appears twice in a window, the padding is rubbish."""
    generator = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes) + padded
    cell = torch.stack([torch.randperm(K, generator=generator)[:n] for _ in range(b)])
    offset = WINDOW * (torch.rand(b, n, 2, generator=generator) - 0.5)
    size = torch.tensor(sizes)
    beyond = torch.arange(n) >= size[:, None]
    cell = cell.masked_fill(beyond, -1)
    offset = offset.masked_fill(beyond[..., None], 0.0)
    return {"size": size, "cell": cell, "offset": offset, "label": cell.clone()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden(net, batch, query, corner=0, tokens=None):
    tokens = net.table()[batch["cell"].clamp(min=0)] if tokens is None else tokens
    return net.ask(tokens, net.places(batch["offset"]), batch["size"], query, corner=corner)


def only(batch, position):
    """The same windows when one cell of each is all that is asked for."""
    label = torch.full_like(batch["label"], -1)
    label[:, position] = batch["label"][:, position]
    return {**batch, "label": label}


@pytest.fixture(scope="module", params=["dot", "euclid"])
def prepared(request):
    return make_network(logits=request.param)


@pytest.fixture
def net(prepared):
    return copy.deepcopy(prepared)


@pytest.fixture
def plain():
    return make_network()


# -- what a place may be told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 30], ids=["attention in slices", "masked attention"])
def test_a_place_is_told_of_earlier_cells_and_itself_by_gradient(plain, monkeypatch, n):
    """Cells form a chain: each is predicted from all before it, and from no other's meta cell or place."""
    batch = make_windows((n,))
    table = plain.table().detach().requires_grad_()
    batch["offset"].requires_grad_()
    monkeypatch.setattr(plain, "table", lambda: table)
    told = {}
    for i in range(n):
        loss = plain.loss(only(batch, i), generator=seeded()).total
        by_cell, by_place = torch.autograd.grad(loss, [table, batch["offset"]], allow_unused=True)
        cells = set() if by_cell is None else set(by_cell.abs().sum(1).nonzero()[:, 0].tolist())
        told[i] = {j for j in range(n) if int(batch["cell"][0, j]) in cells}
        assert len(cells) == len(told[i])
        places = set() if by_place is None else set(by_place[0].abs().sum(1).nonzero()[:, 0].tolist())
        assert places == (told[i] | {i} if told[i] else set())

    chain = sorted(told, key=lambda i: len(told[i]))
    assert [told[i] for i in chain] == [set(chain[:before]) for before in range(n)]


@pytest.mark.parametrize("n", [9, 30])
def test_a_cells_own_meta_cell_does_not_reach_its_prediction(net, n):
    batch = make_windows((n, n, n))
    for position in range(n):
        changed = {**batch, "cell": batch["cell"].clone()}
        changed["cell"][:, position] = (batch["cell"][:, position] + 7) % K
        same, asked = (net.loss(only(b, position), generator=seeded()).total for b in (batch, changed))
        assert torch.equal(same, asked)
    moved = net.loss(changed, generator=seeded()).total
    assert moved != net.loss(batch, generator=seeded()).total  # though it reaches the others'


def test_places_are_asked_each_for_itself(net):
    """No query changes another's answer."""
    batch = make_windows((9, 14, 5))
    query = torch.rand(3, 6, 2) - 0.5
    together = hidden(net, batch, query)
    alone = [hidden(net, batch, query[:, i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


# -- one pass against many -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 30])
@pytest.mark.parametrize("use_place", [True, False])
def test_the_shortcut_equals_the_last_row_of_the_whole_sequence(n, use_place):
    """N cells and one query, against all 2N tokens under one dense mask."""
    net = make_network(use_place=use_place)
    batch = make_windows((n,))
    place = net.places(batch["offset"])
    query = net.places(torch.zeros(1, 1, 2))
    order = net.order(place, batch["size"], corner=torch.tensor([[-0.5, -0.5]]))[0]
    cell, place = batch["cell"][:, order], place[:, order]

    context = net.table()[cell] + net.where(place)
    asked = torch.cat([place[:, 1:], query], dim=1)
    x = torch.cat([context, net.start + net.where(asked)], dim=1)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    mask = torch.cat(
        [
            torch.cat([causal, torch.zeros(n, n, dtype=torch.bool)], dim=1),
            torch.cat([causal, torch.eye(n, dtype=torch.bool)], dim=1),
        ]
    )
    for block in net.decoder.blocks:
        x = block(x, lambda q, k, v: attention(q, k, v, mask), torch.cat([place, asked], dim=1))
    torch.testing.assert_close(hidden(net, batch, query)[:, 0], x[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [9, 30])
def test_a_training_pass_equals_asking_cell_after_cell(n):
    net = make_network(order=SHARP)
    batch = make_windows((n,))
    place = net.places(batch["offset"])
    expected = []
    for number, corner in enumerate(torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])):
        order = net.order(place, batch["size"], corner=corner[None])[0]
        logs = []
        for i in range(1, n):
            before = {
                name: batch[name][:, order[:i]] if batch[name].dim() > 1 else torch.tensor([i])
                for name in batch
            }
            h = hidden(net, before, place[:, order[i : i + 1]], corner=number)[0]
            logs.append(loss_of(net, h, batch["label"][:, order[i]]))
        expected.append(torch.stack(logs).mean())
    found = net.loss(batch, generator=seeded()).total
    assert min(abs(one - found) for one in expected) < 1e-4 * found


def loss_of(net, h, label):
    """The hierarchical loss with loops, from the distribution."""
    p, words = net.probabilities(h), net.words
    terms = []
    for row, own in zip(p, label, strict=True):
        levels = [row[own]]
        for coarse in words.coarse:
            levels.append(sum(row[k] for k in range(len(row)) if coarse[k] == coarse[own]))
        terms.append(sum(-level.log() for level in levels) / len(levels))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("n", [9, 30])
def test_padding_changes_nothing(n):
    net = make_network(order=SHARP)
    sizes = (n, n - 4, n - 1)
    cut, padded = make_windows(sizes), make_windows(sizes, padded=3)
    real = torch.arange(n) < cut["size"][:, None]
    for name in ("cell", "offset", "label"):
        rubbish = padded[name].clone()
        rubbish[:, :n] = torch.where(real.reshape(3, n, *[1] * (cut[name].dim() - 2)), cut[name], -1)
        padded[name] = rubbish
    losses = [net.loss(batch, generator=seeded()).total for batch in (cut, padded)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)

    query = torch.rand(3, 2, 2) - 0.5
    padded["offset"] = torch.where(padded["cell"][..., None] < 0, 1e3, padded["offset"])
    answers = [hidden(net, batch, query) for batch in (cut, padded)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


def test_a_window_is_answered_alone_as_among_others(net):
    batch = make_windows((9, 14, 5))
    query = torch.rand(3, 2, 2) - 0.5
    together = hidden(net, batch, query)
    for i, size in enumerate((9, 14, 5)):
        one = {
            name: value[i : i + 1, :size] if value.dim() > 1 else value[i : i + 1]
            for name, value in batch.items()
        }
        torch.testing.assert_close(hidden(net, one, query[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_order_of_rows_changes_nothing(net):
    batch = make_windows((14, 14))
    query = torch.rand(2, 3, 2) - 0.5
    shuffle = torch.randperm(14, generator=seeded(3))
    permuted = {name: value[:, shuffle] if value.dim() > 1 else value for name, value in batch.items()}
    torch.testing.assert_close(hidden(net, batch, query), hidden(net, permuted, query), rtol=1e-4, atol=1e-5)


# -- answers ---------------------------------------------------------------------------------------------------------


def test_folded_logits_equal_those_through_all_genes(net):
    h = torch.randn(7, 3, 16)
    guess, profiles, mean = net.answer(h), net.words.profiles, net.words.mean
    if net.config.logits == "dot":
        unfolded = (guess - mean) @ (profiles - mean).T
        torch.testing.assert_close(net.logits(h), unfolded, rtol=1e-4, atol=1e-5)
    else:
        with torch.no_grad():
            net.log_temperature.fill_(0.7)
        distance = (guess[..., None, :] - profiles).square().sum(-1)
        unfolded = -0.5 * distance * math.exp(0.7)
        torch.testing.assert_close(
            net.logits(h).log_softmax(-1), unfolded.log_softmax(-1), rtol=1e-3, atol=1e-4
        )


def test_distributions_sum_to_one_on_every_level(net):
    p = net.probabilities(torch.randn(50, 16))
    torch.testing.assert_close(p.sum(-1), torch.ones(50))
    for coarse, n in zip(net.words.coarse, net.words.level_sizes, strict=True):
        mass = torch.stack([p[:, coarse == group].sum(-1) for group in range(n)], dim=-1)
        assert (mass > 0).all()
        torch.testing.assert_close(mass.sum(-1), torch.ones(50))


def test_the_loss_is_the_mean_over_levels_of_the_mass_of_members(net):
    """Coarse mass is the sum of its members', by a loop."""
    batch = make_windows((2, 2, 2, 2), seed=5)  # one question a window: the second cell
    query = net.places(batch["offset"])
    losses = []
    for i, j in ((0, 1), (1, 0)):
        before = {**batch, "size": torch.ones(4, dtype=torch.long)}
        before = {name: value[:, [i]] if value.dim() > 1 else value for name, value in before.items()}
        losses.append(
            [
                float(loss_of(net, h, label).detach())
                for h, label in zip(hidden(net, before, query[:, [j]]), batch["label"][:, [j]], strict=True)
            ]
        )
    either = torch.tensor(losses)
    found = [
        float(net.loss({name: value[[b]] for name, value in batch.items()}, generator=seeded()).total)
        for b in range(4)
    ]
    for b in range(4):
        assert min(abs(either[:, b] - found[b])) < 1e-4 * found[b]


def test_without_levels_the_loss_is_that_of_meta_cells():
    net = make_network(levels=())
    loss = net.loss(make_windows((9, 7)), generator=seeded())
    torch.testing.assert_close(loss.total.detach(), loss.parts["nll"])


def test_a_meta_cell_looks_like_its_profile(net):
    torch.testing.assert_close(net.look(net.words.profiles), net.table())


def test_an_answer_is_in_the_units_of_the_input(net):
    """Before it has learned anything, the network answers close to the mean profile."""
    with torch.no_grad():
        net.profile.bias.zero_()
    gap = net.answer(torch.randn(20, 16)) - net.words.mean
    assert gap.square().mean() < 0.5 * (net.words.profiles - net.words.mean).square().mean()


# -- missing genes ---------------------------------------------------------------------------------------------------


def test_all_genes_stay_as_they_are(net):
    x = make_cells(20, seed=8)
    assert torch.equal(net.filled(x, torch.arange(T)), x)


def test_missing_genes_follow_those_that_are_there(net):
    """Better than the mean gene by gene, and measured genes are kept."""
    x = make_cells(50, seed=8)
    here = torch.tensor([0, 1, 2, 4, 5, 7, 8, 10])
    out = net.filled(x[:, here], here)
    assert torch.equal(out[:, here], x[:, here])
    gone = [g for g in range(T) if g not in here]
    error = (out - x)[:, gone].square().mean(0)
    assert error.mean() < 0.5 * (net.words.mean - x)[:, gone].square().mean()
    few = torch.tensor([3])  # one gene says little, and no more is made of it
    guess = net.filled(x[:, few], few)
    assert (guess - x).square().mean() < (net.words.mean - x).square().mean()


# -- places ----------------------------------------------------------------------------------------------------------


def test_places_are_whole_steps_of_the_window():
    place = torch.tensor([[-0.5, 0.5], [0.0, 0.0026], [-0.7, 3.0]])
    assert quantized_place(place).tolist() == [[0, 200], [100, 101], [0, 200]]


def test_sinusoids_are_those_of_the_paper():
    step = torch.tensor([[3, 180], [0, 77]])
    found = place_sinusoid(step, 16)
    for row, (x, y) in zip(found, step.tolist(), strict=True):
        expected = []
        for u in (x, y):
            for i in range(4):
                angle = u / 10_000 ** (2 * i / 16)
                expected += [math.sin(angle), math.cos(angle)]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_the_distance_bias_equals_an_explicit_one(masked):
    """A head's logits lose |a − b|² / 2ℓ²."""
    torch.manual_seed(0)
    block = SpatialBlock(16, 2, ffn_ratio=2, dropout=0.0, distance_bias=True)
    flat = copy.deepcopy(block)
    flat.log_scale = None
    x, place = torch.randn(3, 9, 16), torch.rand(3, 9, 2) - 0.5
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    length = block.log_scale.detach().exp()[None, :, None, None]
    distance = (place[:, :, None] - place[:, None]).square().sum(-1)[:, None]
    bias = -distance / (2 * length**2)

    def biased(q, k, v):
        score = q @ k.transpose(-1, -2) + bias
        return (score if mask is None else score.masked_fill(~mask, -torch.inf)).softmax(-1) @ v

    expected = flat(x, biased, place)
    found = block(x, lambda q, k, v: attention(q, k, v, mask), place)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    far = flat(x, lambda q, k, v: attention(q, k, v, mask), place)
    assert (found - far).abs().max() > 1e-3


@pytest.mark.parametrize("m", [0, 2, 5])
def test_where_only_the_last_tokens_are_attended_for_a_block_answers_for_these(m):
    block = SpatialBlock(8, 2, ffn_ratio=2, dropout=0.1, distance_bias=True).eval()
    x, place = torch.randn(3, 5, 8, generator=seeded()), torch.rand(3, 5, 2, generator=seeded())

    def dense(q, k, v):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    last = block(x, lambda q, k, v: dense(q[:, :, 5 - m :], k, v), place)
    torch.testing.assert_close(last, block(x, dense, place)[:, 5 - m :])


def test_without_place_a_window_is_a_bag_of_places():
    """Moving cells and queries changes nothing if the network is not told where they are."""
    net = make_network(use_place=False)
    batch = make_windows((9,))
    moved = {**batch, "offset": batch["offset"].flip(1)}
    query = net.places(torch.rand(1, 2, 2))
    assert torch.equal(hidden(net, batch, query), hidden(net, moved, query))


def test_a_window_of_another_width_scales_with_it(net):
    """Places are shares of the side."""
    batch = make_windows((9,))
    query = torch.zeros(1, 1, 2)
    before = hidden(net, batch, query)
    net.window_um.fill_(2 * WINDOW)
    torch.testing.assert_close(hidden(net, {**batch, "offset": 2 * batch["offset"]}, query), before)


# -- the order of a window's cells -----------------------------------------------------------------------------------


def test_an_order_lists_every_cell_once_and_padding_last(plain):
    batch = make_windows((9, 4))
    gumbel = -torch.empty(2, 9).exponential_(generator=seeded()).log()
    corner = torch.full((2, 2), -0.5)
    order = plain.order(plain.places(batch["offset"]), batch["size"], corner=corner, noise=gumbel)
    assert sorted(order[0].tolist()) == list(range(9))
    assert sorted(order[1, :4].tolist()) == list(range(4))


def test_large_exponents_go_from_the_far_side_to_the_corner():
    net, batch = make_network(order=SHARP), make_windows((20,))
    place, corner = net.places(batch["offset"]), torch.tensor([[0.5, -0.5]])
    order = net.order(place, batch["size"], corner=corner, noise=torch.randn(1, 20, generator=seeded()))
    distance = (place - corner[:, None]).norm(dim=-1)[0, order[0]]
    assert (distance.diff() <= 0).all()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
def test_cells_are_drawn_by_their_distance_from_the_corner(exponent):
    """The first of a window, and the second among what is left."""
    net, n_drawn = make_network(order=exponent), 40_000
    place = torch.tensor([[-0.4, -0.4], [0.1, 0.0], [0.5, 0.4]]).expand(n_drawn, 3, 2)
    corner, size = torch.full((n_drawn, 2), -0.5), torch.full((n_drawn,), 3)
    gumbel = -torch.empty(n_drawn, 3).exponential_(generator=seeded()).log()
    order = net.order(place, size, corner=corner, noise=gumbel)
    weight = (place[0] + 0.5).norm(dim=1) ** exponent
    p = weight / weight.sum()
    torch.testing.assert_close(order[:, 0].bincount(minlength=3) / n_drawn, p, rtol=0, atol=0.01)
    second = torch.stack([sum(p[i] * p[j] / (1 - p[i]) for i in range(3) if i != j) for j in range(3)])
    torch.testing.assert_close(order[:, 1].bincount(minlength=3) / n_drawn, second, rtol=0, atol=0.01)


def test_training_turns_and_mirrors_windows_in_eight_ways(plain, monkeypatch):
    batch = make_windows((6,) * 200)
    batch["offset"] = batch["offset"][:1].expand(200, -1, -1)
    seen = []
    monkeypatch.setattr(
        plain, "where", lambda place: seen.append(place) or torch.zeros(*place.shape[:-1], 16)
    )
    plain.config = GeSTConfig(**{**SMALL, "order": SHARP})
    plain.train()
    plain.loss(batch, generator=seeded())
    # the two calls hold all but the last and all but the first cell of a window, in order
    place = torch.cat([seen[0], seen[1][:, -1:]], dim=1)
    centre = place.norm(dim=-1).sort(dim=1).values
    torch.testing.assert_close(centre, centre[:1].expand_as(centre))
    ways = {tuple(torch.round(1e4 * window).long().sum(0).tolist()) for window in place}
    assert len(ways) == 8
    plain.eval()
    seen.clear()
    plain.loss(batch, generator=seeded())
    place = torch.cat([seen[0], seen[1][:, -1:]], dim=1)
    assert len({tuple(torch.round(1e4 * window).long().sum(0).tolist()) for window in place}) == 1


# -- training --------------------------------------------------------------------------------------------------------


def train(net, batch, n_steps, *, lr=1e-2):
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    generator, losses = seeded(), []
    net.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = net.loss(batch, generator=generator).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("logits", ["dot", "euclid"])
def test_one_batch_can_be_overfitted(logits):
    net = make_network(logits=logits, order=SHARP, augment=False)
    losses = train(net, make_windows((5, 6, 4, 6)), 250)
    assert losses[0] > 1.5
    assert sum(losses[-20:]) / 20 < 0.2


def test_a_generator_is_all_the_chance_there_is(plain):
    batch = make_windows((9, 7, 12))
    plain.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = plain.loss(batch, generator=seeded(4)).total
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(plain.loss(batch, generator=seeded(4)).total, first)
    assert plain.loss(batch, generator=seeded(5)).total != first


def test_asking_knows_no_chance(plain):
    batch, query = make_windows((9, 7)), torch.zeros(2, 1, 2)
    assert torch.equal(hidden(plain, batch, query), hidden(plain, batch, query))


def test_a_batch_without_neighbours_teaches_nothing_and_breaks_nothing(plain):
    loss = plain.loss(make_windows((1, 1, 1)), generator=seeded()).total
    loss.backward()
    assert float(loss) == 0
    mixed = plain.loss(make_windows((1, 5)), generator=seeded()).total
    assert mixed.isfinite() and mixed > 0


def test_a_place_with_nothing_around_it_is_answered(net):
    batch = make_windows((3, 4))
    batch["size"] = torch.tensor([0, 4])
    assert net.probabilities(hidden(net, batch, torch.zeros(2, 1, 2))).isfinite().all()


def test_cells_at_one_place_train_without_nan(plain):
    batch = make_windows((9, 7))
    batch["offset"] = torch.zeros_like(batch["offset"])
    loss = plain.loss(batch, generator=seeded()).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in plain.parameters())


ABLATIONS = {
    "squared distance": {"logits": "euclid"},
    "regression": {"quantized": False},
    "one level": {"levels": ()},
    "no place": {"use_place": False},
    "sinusoids alone": {"distance_bias": False},
    "random order": {"order": 0.0},
    "no turning": {"augment": False},
    "most of them": {"logits": "euclid", "levels": (), "use_place": False, "distance_bias": False},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_and_answers(name):
    net, batch = make_network(**ABLATIONS[name]), make_windows((6, 9, 8, 7))
    losses = train(net, batch, 40)
    assert sum(losses[-5:]) < sum(losses[:5])
    net.eval()
    h = hidden(net, batch, net.places(torch.zeros(4, 1, 2)))
    torch.testing.assert_close(net.probabilities(h).sum(-1), torch.ones(4, 1))
    assert net.answer(h).shape == (4, 1, T)


# -- the vocabulary --------------------------------------------------------------------------------------------------


def test_a_network_is_rebuilt_from_its_sizes_and_weights(net):
    again = GeSTNetwork(net.config, n_genes=T, **net.sizes())
    again.load_state_dict(net.state_dict())
    batch, query = make_windows((9,)), torch.zeros(1, 1, 2)
    assert torch.equal(hidden(again.eval(), batch, query), hidden(net, batch, query))


def test_one_seed_makes_one_network():
    first, second = make_network(), make_network()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(first.words.profiles, second.words.profiles)


def test_tokens_are_of_unit_size_whatever_the_panel(net):
    """Before training no panel drowns in the places, nor drowns them."""
    size = net.table().sub(net.expression.bias).square().mean().sqrt()
    assert 0.3 < float(size) < 3


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 20, "n_heads": 4}, r"`width` must be a multiple of 4 × `n_heads`; got 20 and 4"),
        ({"logits": "cosine"}, r"`logits` must be one of 'dot', 'euclid'; got 'cosine'"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\); got 1.0"),
        ({"n_layers": 0}, r"`n_layers` must be at least 1; got 0"),
        ({"max_cells": 1}, r"`max_cells` must be at least 2; got 1"),
        ({"n_components": 0}, r"`n_components` must be at least 1; got 0"),
        ({"n_meta_cells": 1}, r"`n_meta_cells` must be at least 2; got 1"),
        ({"window_um": 0.0}, r"`window_um` must be a length in µm above 0; got 0.0"),
        ({"window_um": float("nan")}, r"`window_um` must be a length in µm above 0; got nan"),
        ({"order": -1.0}, r"`order` must be 0 or more; got -1.0"),
        ({"levels": (0,)}, r"`levels` must be at least 1; got 0"),
        ({"n_heads": 0}, r"`n_heads` must be at least 1; got 0"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GeSTConfig(**changes)


def test_cross_entropy_of_meta_cells_is_logged(plain):
    batch = make_windows((2,), seed=3)
    loss = plain.loss(batch, generator=seeded())
    place = plain.places(batch["offset"])
    either = []
    for i, j in ((0, 1), (1, 0)):
        before = {
            name: value[:, [i]] if value.dim() > 1 else torch.ones(1, dtype=torch.long)
            for name, value in batch.items()
        }
        h = hidden(plain, before, place[:, [j]])[0]
        either.append(float(F.cross_entropy(plain.logits(h), batch["label"][0, [j]])))
    assert min(abs(one - float(loss.parts["nll"])) for one in either) < 1e-4
