"""The GenAR network: what a scale may see, one pass against many, and predictions that belong to their spot.

B batch, F histology features, k neighbours, G genes, K scales, d_k groups of scale k, T = Σ d_k.
"""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from stgen.models.genar._config import GenARConfig
from stgen.models.genar._network import GenARNetwork, _spread_levels
from stgen.models.genar._parts import CountHead
from stgen.nn._grouped import GroupedDecoder

B, F, K_NEIGHBOURS, G = 24, 6, 3, 24
SMALL = {"width": 16, "n_layers": 2, "n_heads": 2, "scales": (1, 4, 12, G), "dropout": 0.0, "drop_path": 0.0}


def make_batch(n=B, *, seed=0, n_genes=G):
    """Spots of three sections whose gene modules follow their histology."""
    generator = torch.Generator().manual_seed(seed)
    histology = torch.randn(n, F, generator=generator)
    effect = torch.randn(F, 4, generator=torch.Generator().manual_seed(99))
    factor = (histology @ effect / 3)[:, torch.arange(n_genes) % 4]
    factor = factor + 0.3 * torch.randn(n, n_genes, generator=generator)
    return {
        "histology": histology,
        "neighbours": histology[:, None] + 0.5 * torch.randn(n, K_NEIGHBOURS, F, generator=generator),
        "xy": 4000 * torch.rand(n, 2, generator=generator) - 2000,
        "counts": torch.poisson((1.0 + factor).exp(), generator=generator),
        "unit": torch.arange(n) % 3,
        "patch": torch.arange(n) % 3 + 3 * (torch.arange(n) // 30),
        "key": torch.arange(n) * 7919 + 1000 * seed,
    }


def rows(batch, index):
    return {name: value[index] for name, value in batch.items()}


def make_network(*, awake=True, batches=None, seed=0, **changes):
    """A small prepared network in eval mode; ``awake`` fills what starts at 0, so that every path carries something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GenARNetwork(GenARConfig(**{**SMALL, **changes}), n_features=F, n_genes=G)
        net.prepare(batches or [make_batch(60, seed=1), make_batch(60, seed=2)])
        if awake:
            for p in net.parameters():
                if p.dim() == 2 and not p.any():
                    torch.nn.init.normal_(p, std=0.2)
    return net.eval()


@pytest.fixture(scope="module", params=[False, True], ids=["constant", "steered"])
def prepared(request):
    return make_network(steer=request.param)


@pytest.fixture
def net(prepared):
    return copy.deepcopy(prepared)


@pytest.fixture
def batch():
    return make_batch()


def all_logits(net, batch):
    """(K,) lists of (B, n, V_b), one a bucket."""
    with torch.no_grad():
        return net.training_logits(batch)[0]


def close(a, b, **tolerance):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-3, "atol": 1e-4}))


class Uncached(GroupedDecoder):
    """The same blocks without a cache: every reading runs the whole context again."""

    def __init__(self, decoder):
        super().__init__(decoder.blocks)

    def start(self):
        return None

    def extend(self, cache, context, group, condition):
        if cache is None:
            return context, group
        return torch.cat([cache[0], context], dim=1), torch.cat([cache[1], group])

    def read(self, cache, query, group, condition):
        return self._masked(*cache, query, group, condition)


# -- what a scale may see ------------------------------------------------------------------------------------------


def test_no_scale_sees_itself_or_a_later_one_by_gradient(net, batch, monkeypatch):
    """And every scale sees all coarser ones."""
    token = net._tokens(batch).round().requires_grad_()
    monkeypatch.setattr(net, "_tokens", lambda batch: SimpleNamespace(round=lambda: token))
    for k, buckets in enumerate(net.training_logits(batch)[0]):
        total = sum(values.log_softmax(-1)[..., 0].sum() for values in buckets)
        (gradient,) = torch.autograd.grad(total, token, retain_graph=True, allow_unused=True)
        reached = torch.zeros(len(net.token_scale)) if gradient is None else gradient.abs().sum(0)
        assert torch.equal(reached > 0, net.token_scale < k)


@pytest.mark.parametrize("k", range(4))
def test_counts_that_only_change_inside_groups_change_only_finer_scales(net, batch, k):
    """Genes swap counts inside the groups of scale k − 1 (anywhere for k = 0): tokens before scale k stay."""
    group = torch.tensor(net.groups[k - 1]) if k else torch.zeros(G, dtype=torch.long)
    changed = {**batch, "counts": batch["counts"].clone()}
    for g in group.unique():
        inside = torch.nonzero(group == g).flatten()
        changed["counts"][:, inside] = batch["counts"][:, inside.roll(1)]
    if k == 0:
        changed["counts"] += 3
    here, there = all_logits(net, batch), all_logits(net, changed)
    for earlier in range(k + 1):
        for a, b in zip(here[earlier], there[earlier], strict=True):
            assert torch.equal(a, b)
    if k < 3:
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(here[k + 1], there[k + 1]))


def test_a_prediction_reads_no_counts(net, batch):
    blind = {name: value for name, value in batch.items() if name not in ("counts", "unit", "patch")}
    here, there = (next(iter(net.generate(b))) for b in (batch, blind))
    close(here.probability, there.probability, rtol=0, atol=0)


# -- one pass against many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("head", ["negative_binomial", "categorical"])
def test_one_training_pass_equals_scale_by_scale_with_the_true_tokens(batch, monkeypatch, cached, head):
    """Prediction's own code, each scale's answer replaced by the truth before the next one is asked."""
    net = make_network(head=head, **({"n_tokens": 40} if head == "categorical" else {}))
    truth, steps = net._tokens(batch).round(), []
    logits_of = net._logits

    def keep(answer, log_mean, k):
        steps.append(logits_of(answer, log_mean, k))
        return steps[-1]

    one_pass = all_logits(net, batch)
    monkeypatch.setattr(net, "_logits", keep)
    monkeypatch.setattr(net, "_chosen", lambda p, k, level: truth[:, net.starts[k] : net.starts[k + 1]])
    if not cached:
        net.decoder = Uncached(net.decoder)
    last = next(
        iter(net.generate(batch, n_paths=2))
    )  # sampled tokens count as known, expected ones would not
    assert len(steps) == len(one_pass) == 4
    for a, b in zip(one_pass, steps, strict=True):
        close(a, b)
    close(last.probability, [values.softmax(-1) for values in one_pass[-1]])


@pytest.mark.parametrize("n_paths", [1, 3])
def test_cached_prediction_equals_prediction_without_a_cache(net, batch, n_paths):
    cached = [path.probability for path in net.generate(batch, n_paths=n_paths, seed=5)]
    net.decoder = Uncached(net.decoder)
    for a, b in zip(cached, net.generate(batch, n_paths=n_paths, seed=5), strict=True):
        close(a, b.probability)


# -- whose prediction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_paths", [1, 4])
def test_a_prediction_does_not_depend_on_its_batch_or_its_place_in_it(net, batch, n_paths):
    together = list(net.generate(batch, n_paths=n_paths, seed=3))
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    shuffled = list(net.generate(rows(batch, order), n_paths=n_paths, seed=3))
    alone = list(net.generate(rows(batch, slice(7, 8)), n_paths=n_paths, seed=3))
    for a, b, c in zip(together, shuffled, alone, strict=True):
        close([p[order] for p in a.probability], b.probability)
        close([p[7:8] for p in a.probability], c.probability)


def test_paths_differ_and_one_seed_gives_one_answer(net, batch):
    first, again, other = (list(net.generate(batch, n_paths=3, seed=seed)) for seed in (1, 1, 2))
    for a, b in zip(first, again):
        close(a.probability, b.probability, rtol=0, atol=0)
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(first[0].probability, first[1].probability))
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(first[0].probability, other[0].probability))


def test_probabilities_sum_to_one_and_cover_every_gene_once(net, batch):
    path = next(iter(net.generate(batch)))
    genes = sorted(g for columns, _ in path.buckets for g in columns)
    assert genes == list(range(G))
    for p, (columns, size) in zip(path.probability, path.buckets, strict=True):
        assert p.shape == (B, len(columns), size)
        torch.testing.assert_close(p.sum(-1), torch.ones(B, len(columns)))


def test_generating_leaves_the_global_stream_alone(net, batch):
    state = torch.random.get_rng_state()
    list(net.generate(batch, n_paths=2, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def by_gene(path):
    """Mean count (B, G) of a path."""
    mean = torch.empty(len(path.probability[0]), G)
    for p, (columns, size) in zip(path.probability, path.buckets):
        mean[:, columns] = p @ torch.arange(size, dtype=p.dtype)
    return mean


@pytest.mark.parametrize("scales", [(1, G), (1, 4, 12, G)])
def test_permuting_genes_permutes_predictions(scales):
    """The tree, the tokens and the experts follow the genes; only a gene's identity has to be moved.

    Encoders of the retrieval start at random gene by gene, so it stays out.
    """
    order = torch.randperm(G, generator=torch.Generator().manual_seed(4))

    def permuted(batch):
        return {**batch, "counts": batch["counts"][:, order]}

    batches = [make_batch(60, seed=1), make_batch(60, seed=2)]
    here = make_network(batches=batches, scales=scales, retrieval=False)
    there = make_network(batches=[permuted(b) for b in batches], scales=scales, retrieval=False)
    parameters = dict(here.named_parameters())
    with torch.no_grad():
        for name, p in there.named_parameters():
            if name not in (
                "log_dispersion",
                "log_surprise",
                "log_bias",
            ):  # found from data, in its own order
                p.copy_(parameters[name])
        there.identity.copy_(here.identity[order])
    batch = make_batch(seed=3)
    with torch.no_grad():
        for name, part in here.loss(batch).parts.items():
            torch.testing.assert_close(there.loss(permuted(batch)).parts[name], part, rtol=1e-3, atol=1e-3)
    mean = [by_gene(next(iter(net.generate(batch)))) for net in (here, there)]
    torch.testing.assert_close(mean[1], mean[0][:, order], rtol=1e-3, atol=1e-3)


# -- what prepare finds ----------------------------------------------------------------------------------------------


def test_an_untrained_network_predicts_what_the_linear_path_expects(batch):
    net = make_network(awake=False, scales=(G,))
    expected = (net._expected(batch, held_out=False) + net.log_bias).exp().detach()
    mean = by_gene(next(iter(net.generate(batch))))
    inside = expected < 10  # beyond, the vocabulary's end cuts the tail
    torch.testing.assert_close(mean[inside], expected[inside], rtol=0.05, atol=0.02)


def test_preparing_twice_finds_the_same():
    first, second = make_network(awake=False), make_network(awake=False)
    assert first.sizes() == second.sizes()
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_coarse_token_is_its_groups_summed_count_where_the_vocabulary_allows(net, batch):
    token = net._tokens(batch)
    for k, row in enumerate(torch.tensor(net.groups)):
        part = slice(net.starts[k], net.starts[k + 1])
        for j in range(net.scales[k]):
            summed = batch["counts"][:, row == j].sum(1)
            share = net.resolution[part][j] / (row == j).sum()
            assert share <= 1
            torch.testing.assert_close(token[:, part][:, j], summed * share)
    assert (net.resolution[net.starts[-2] :] == 1).all()


@pytest.mark.parametrize("head", ["negative_binomial", "categorical"])
def test_sizes_rebuild_the_network_before_its_weights_are_read(batch, head):
    net = make_network(head=head, **({"n_tokens": 40} if head == "categorical" else {}))
    sizes = json.loads(json.dumps(net.sizes()))
    again = GenARNetwork(net.config, n_features=F, n_genes=G, **sizes)
    again.load_state_dict(net.state_dict())
    again.eval()
    for a, b in zip(all_logits(net, batch), all_logits(again, batch), strict=True):
        close(a, b, rtol=0, atol=0)
    for a, b in zip(net.generate(batch, n_paths=2), again.generate(batch, n_paths=2), strict=True):
        close(a.probability, b.probability, rtol=0, atol=0)


def test_given_groups_are_kept(batch):
    groups = [[g % 2 for g in range(G)], list(range(G))]
    net = GenARNetwork(GenARConfig(**{**SMALL, "scales": (2, G)}), n_features=F, n_genes=G, groups=groups)
    net.prepare([make_batch(60, seed=1)])
    assert net.sizes()["groups"] == groups
    assert net.loss(batch).total.isfinite()


# -- starts and training --------------------------------------------------------------------------------------------


def test_modulation_by_gene_is_the_identity_map_at_the_start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = CountHead(GenARConfig(**SMALL, head="categorical"), 30)
        hidden, condition, identity = torch.randn(B, G, 16), torch.randn(B, 16), 10 * torch.randn(G, 16)
    plain = head.linear(torch.nn.functional.layer_norm(hidden, (16,)))
    torch.testing.assert_close(head(hidden, condition, identity), plain)
    torch.nn.init.normal_(head.modulate.weight)
    assert (head(hidden, condition, identity) - plain).abs().max() > 0.1


def train(net, batch, steps, lr=3e-3):
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.train()
        for _ in range(steps):
            optimiser.zero_grad()
            loss = net.loss(batch, generator=generator).total
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("steer", [False, True])
def test_every_parameter_gets_a_gradient_once_training_has_begun(batch, steer):
    """What starts at 0 holds back what lies before it for a step or two, no longer."""
    net = make_network(awake=False, steer=steer)
    net.expected.linear.place_scale.fill_(1.0)
    train(net, batch, 3)
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_loss_has_a_part_for_each_scale_and_is_their_mean(batch):
    net = make_network(shift_penalty=0.0)
    loss = net.loss(batch)
    assert list(loss.parts) == ["scale_1", "scale_4", "scale_12", f"scale_{G}"]
    torch.testing.assert_close(loss.total, torch.stack(list(loss.parts.values())).mean())


def test_a_shift_of_the_expected_counts_costs_its_square(batch):
    free, held = make_network(shift_penalty=0.0), make_network(shift_penalty=3.0)
    (_, shift), loss = free.training_logits(batch), free.loss(batch)
    price = 3.0 * 0.5 * shift.square().sum(-1).mean() / 4
    assert price > 0
    torch.testing.assert_close(held.loss(batch).total, loss.total + price)


def test_one_batch_can_be_learnt_by_heart():
    """Counts have nothing to do with the inputs here: what is learnt is these eight spots."""
    batch = rows(make_batch(), slice(0, 8))
    batch["counts"] = batch["counts"][torch.randperm(8, generator=torch.Generator().manual_seed(5))]
    free = {"feature_dropout": 0.0, "blind_share": 0.0, "shift_penalty": 0.0, "steer": True}
    net = make_network(awake=False, **free, head="categorical", n_tokens=64, scales=(1, 4, G))
    losses = train(net, batch, 200, lr=1e-2)
    assert losses[-1] < 0.15 * losses[0]


def test_learning_lowers_the_loss_from_where_the_linear_path_starts():
    batch = make_batch()
    net = make_network(awake=False, feature_dropout=0.0, blind_share=0.0, shift_penalty=0.0, steer=True)
    losses = train(net, batch, 50, lr=1e-2)
    assert losses[-1] < 0.8 * losses[0]


ABLATIONS = {
    "published head": {"head": "categorical", "n_tokens": 50},
    "single scale": {"scales": (G,)},
    "no gene identity": {"gene_modulation": False},
    "one-hot labels": {"final_label": "onehot"},
    "no neighbours": {"n_neighbors": 0},
    "no place": {"use_place": False},
    "ridge alone": {"nonlinear": False},
    "steered norms": {"steer": True},
    "published groups": {"hierarchy": "kmeans"},
    "default scales": {"scales": None},
    "six scales": {"scales": None, "n_scales": 6},
    "all of them": {
        "head": "categorical",
        "n_tokens": 50,
        "scales": (G,),
        "gene_modulation": False,
        "final_label": "onehot",
        "n_neighbors": 0,
        "use_place": False,
    },
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_and_predicts(name, batch):
    net = make_network(awake=False, **ABLATIONS[name])
    if not net.config.n_neighbors:
        del batch["neighbours"]
    before = net.loss(batch).total.item()
    train(net, batch, 8)
    net.eval()
    assert net.loss(batch).total.item() < before
    for path in net.generate(batch, n_paths=2):
        for p in path.probability:
            torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))


@pytest.mark.parametrize("head", ["negative_binomial", "categorical"])
def test_counts_above_the_vocabulary_are_kept_at_its_end(head, batch):
    net = make_network(awake=False, head=head, n_tokens=5)
    batch["counts"][0, :] = 10_000.0
    loss = net.loss(batch).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert all(p.isfinite().all() for p in next(iter(net.generate(batch))).probability)


def test_empty_spots_and_silent_genes_train_without_nan():
    batches = [make_batch(60, seed=1)]
    batches[0]["counts"][:5] = 0
    batches[0]["counts"][:, 0] = 0
    net = make_network(awake=False, batches=batches)
    assert all(x < float("inf") for x in train(net, batches[0], 3))


def test_mixed_precision_leaves_count_tokens_exact(net, batch):
    batch["counts"] += 257
    exact = net._tokens(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net._tokens(batch).float(), exact)


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hierarchy": "leiden"}, r"`hierarchy` must be one of 'ward', 'kmeans'; got 'leiden'"),
        ({"final_label": "soft"}, r"`final_label` must be one of 'gaussian', 'onehot'; got 'soft'"),
        ({"head": "poisson"}, r"`head` must be one of .*'categorical'; got 'poisson'"),
        ({"n_scales": 4}, r"`n_scales` must be one of .*; got 4"),
        ({"width": 10, "n_heads": 4}, r"`width` must be a multiple of `n_heads`; got 10 and 4"),
        ({"n_tokens": 2}, r"at least 3 tokens; got 2"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\); got 1.0"),
        ({"blind_share": -0.1}, r"`blind_share` must be in \[0, 1\); got -0.1"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GenARConfig(**changes)


def test_scales_that_do_not_fit_the_panel_are_refused():
    with pytest.raises(ValueError, match=rf"end with the number of genes, {G}; got \(1, 200\)"):
        GenARNetwork(GenARConfig(scales=(1, 200)), n_features=F, n_genes=G)


def test_paths_spread_each_token_evenly_and_tokens_independently():
    levels = _spread_levels(torch.arange(3000), 3, 8, seed=2)
    strata = (levels * 8).floor().sort(-1).values
    assert torch.equal(strata, torch.arange(8.0).expand_as(strata))
    # one path of many spots, and all paths of one spot: tokens do not move together
    for first, second in (
        (levels[:, 0, 0], levels[:, 1, 0]),
        (levels[:, 0].flatten(), levels[:, 1].flatten()),
    ):
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.05
    by_spot = levels - levels.mean(-1, keepdim=True)
    assert (by_spot[:, 0] * by_spot[:, 1]).mean(
        -1
    ).std() > 0.02  # no fixed offset between two tokens of a spot
