"""The GenST network: two phases, codes with probabilities, and predictions that belong to their spot.

B batch, F histology features, G genes, M tokens, d width, K codes.
"""

import copy

import numpy as np
import pytest
import torch

from stgen.metrics import pit_deviation, randomized_pit
from stgen.models.genst._config import GenSTConfig
from stgen.models.genst._network import GenSTNetwork
from stgen.models.genst._parts import CodeProbabilities, TokenAutoencoder, contrast
from stgen.nn._distribution import cumulative, read_out
from stgen.nn._noise import keyed_uniform

B, F, K_NEIGHBOURS, G = 24, 6, 3, 20
M, d, K = 4, 2, 6
SMALL = {"n_tokens": M, "token_width": d, "n_codes": K, "n_image_tokens": 3, "n_image_codes": 5,
         "hidden": 12}  # fmt: skip
TRANSLATOR = ("learned.", "probabilities.", "log_temperature")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def make_batch(n=B, *, seed=0):
    """Spots of three sections whose gene modules follow their histology."""
    generator = torch.Generator().manual_seed(seed)
    histology = torch.randn(n, F, generator=generator)
    effect = torch.randn(F, 4, generator=torch.Generator().manual_seed(99))
    factor = (histology @ effect / 3)[:, torch.arange(G) % 4] + 0.3 * torch.randn(n, G, generator=generator)
    return {
        "histology": histology,
        "neighbours": histology[:, None] + 0.5 * torch.randn(n, K_NEIGHBOURS, F, generator=generator),
        "xy": 4000 * torch.rand(n, 2, generator=generator) - 2000,
        "counts": torch.poisson((1.5 + factor).exp(), generator=generator),
        "unit": torch.arange(n) % 3,
        "patch": torch.arange(n) % 3 + 3 * (torch.arange(n) // 30),
        "key": torch.arange(n) * 7919 + 1000 * seed,
    }


BATCHES = [make_batch(90, seed=1), make_batch(90, seed=2)]


def rows(batch, index):
    return {name: value[index] for name, value in batch.items()}


def make_network(*, awake=True, seed=0, **changes):
    """A small prepared network in eval mode; ``awake`` fills what starts at 0, so that every path carries something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GenSTNetwork(GenSTConfig(**{**SMALL, **changes}), n_features=F, n_genes=G)
        net.prepare(BATCHES)
        if awake:
            for p in net.parameters():
                if p.dim() == 2 and not p.any():
                    torch.nn.init.normal_(p, std=0.1)
        net.eval().calibrate(BATCHES)
    return net


@pytest.fixture(scope="module")
def prepared():
    return make_network()


@pytest.fixture
def net(prepared):
    return copy.deepcopy(prepared)


@pytest.fixture
def batch():
    return make_batch()


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


# -- phases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alone", "n_epochs", "expected"),
    [
        (0.3, 10, [0] * 3 + [1] * 7),
        (0.0, 3, [1, 1, 1]),
        (0.3, 1, [1]),
        (0.9, 2, [0, 1]),  # rounding never leaves the autoencoders alone to the end
        (0.5, 4, [0, 0, 1, 1]),
    ],
)
def test_autoencoders_are_alone_for_their_share_of_the_epochs(alone, n_epochs, expected):
    net = make_network(alone=alone)
    assert [net.begin_epoch(e, n_epochs, BATCHES) for e in range(n_epochs)] == expected
    assert max(expected) == net.n_phases - 1


def test_gradients_do_not_touch_the_translator_while_autoencoders_are_alone(net, batch):
    net.begin_epoch(0, 10, BATCHES)
    before = copy.deepcopy(net.state_dict())
    train(net, batch, 3)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("image.") for name in moved)
    assert any(name.startswith("expression.") for name in moved)
    assert all(name.split(".")[0] in ("image", "expression") for name in moved)
    assert all(p.grad is None for name, p in net.named_parameters() if name.startswith(TRANSLATOR))


def test_alone_the_loss_has_no_alignment_and_validation_always_has(net, batch):
    net.begin_epoch(0, 10, BATCHES)
    assert list(net.eval().loss(batch).parts) == ["image", "expression", "tokens", "shift", "codes", "spots"]
    assert list(net.train().loss(batch).parts) == ["image", "expression"]
    net.begin_epoch(5, 10, BATCHES)
    assert list(net.train().loss(batch).parts) == ["image", "expression", "tokens", "shift", "codes", "spots"]


def test_the_translator_starts_anew_once_when_phases_change(net, batch, monkeypatch):
    starts = []
    monkeypatch.setattr(net, "_start_translator", lambda batches: starts.append(net.aligning))
    for epoch in range(10):
        net.begin_epoch(epoch, 10, BATCHES)
    assert starts == [True]


def test_the_translator_starts_from_tokens_as_they_are_by_then(net, batch):
    """After the first phase the experts answer as if they were fitted on the tokens of the moment."""
    net.begin_epoch(0, 4, BATCHES)
    train(net, batch, 30, lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net.begin_epoch(1, 4, BATCHES)
    fresh = copy.deepcopy(net).eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fresh._start_translator(BATCHES)
    for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert net.training


def test_alignment_does_not_bend_the_image_autoencoder(net, batch):
    """The translator asks its tokens; it learns the same with and without that."""
    changed = copy.deepcopy(net)
    for one, aligning in ((net, True), (changed, False)):
        one.train()
        one.aligning = aligning
        with torch.random.fork_rng():
            torch.manual_seed(0)
            one.loss(batch, generator=torch.Generator().manual_seed(0)).total.backward()
    for (name, p), q in zip(net.named_parameters(), changed.parameters(), strict=True):
        if name.startswith("image."):
            torch.testing.assert_close(p.grad, q.grad)


def test_training_asks_experts_that_have_not_seen_the_spots_section(net, batch, monkeypatch):
    asked = []
    answers = net.experts.answers
    monkeypatch.setattr(
        net.experts, "answers", lambda x, xy, fold: asked.append(fold) or answers(x, xy, fold)
    )
    net.train().loss(batch)
    net.eval().loss(batch)
    net.translate(batch)
    assert torch.equal(asked[0], batch["unit"])
    assert asked[1:] == [None, None]


# -- what is found before gradients ----------------------------------------------------------------------------------


def test_autoencoders_start_from_principal_components(net):
    net = make_network(awake=False)
    image = net.image
    x = torch.cat([net._features(b) for b in BATCHES])
    standard = image.standardised(x)
    made = image.decode(image.encode(x))
    components = torch.linalg.svd(standard.double(), full_matrices=False)[2][: 3 * 4]
    expected = standard.double() @ components.T @ components
    torch.testing.assert_close(made.double(), expected, rtol=1e-3, atol=1e-3)


def test_an_axis_of_opposite_inputs_keeps_its_component():
    auto = TokenAutoencoder(2, 1, 2, 3, GenSTConfig())
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, -1.0])
    auto.eval().start([x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))],
                      torch.Generator().manual_seed(0))  # fmt: skip
    torch.testing.assert_close(auto.project.weight.norm(dim=1), torch.ones(2))


def test_tokens_carry_similar_variance():
    auto = TokenAutoencoder(8, 4, 2, 3, GenSTConfig())
    scale = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(8, 0, -1) @ scale
    auto.eval().start([x], torch.Generator().manual_seed(0))
    spread = auto.encode(x).var(0).sum(-1)
    assert spread.max() < 2 * spread.min()


def test_preparing_twice_finds_the_same():
    first, second = make_network(awake=False), make_network(awake=False)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_panel_is_normalised_to_the_median_total_of_training_spots(net):
    totals = torch.cat([b["counts"].sum(-1) for b in BATCHES])
    assert float(net.target_total) == float(totals.median())


# -- codes and their probabilities -----------------------------------------------------------------------------------


def test_probabilities_of_codes_follow_bayes_rule(net, batch):
    with torch.no_grad():
        said = net.translate(batch)
    torch.testing.assert_close(said.log_probability.exp().sum(-1), torch.ones(B, M))
    precision, bias = net.probabilities.log_precision.exp(), net.probabilities.bias
    far = (said.z[:, :, None] - net.expression.books.codes).square() * precision[:, None]
    slow = (-0.5 * far.sum(-1) + bias).log_softmax(-1)
    torch.testing.assert_close(said.log_probability, slow, rtol=1e-3, atol=1e-3)


def test_probabilities_start_from_errors_and_shares():
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(500, M, d, generator=generator) * torch.tensor([0.5, 2.0])
    share = torch.softmax(torch.randn(M, K, generator=generator), -1)
    probabilities = CodeProbabilities(M, K, d)
    probabilities.start(error, share)
    torch.testing.assert_close(
        probabilities.log_precision.exp(), torch.tensor([4.0, 0.25]).expand(M, d), rtol=0.25, atol=0
    )
    codes = torch.zeros(M, K, d)  # codes at one place: only how often they are used tells them apart
    found = probabilities(torch.zeros(1, M, d), codes)[0].exp()
    torch.testing.assert_close(found, share, rtol=0.2, atol=0.02)


def test_the_expected_code_is_the_mean_of_codes_by_probability(net, batch):
    with torch.no_grad():
        said = net.translate(batch)
        found, codes = net.expected_code(said), net.expression.books.codes
    for b in range(4):
        for m in range(M):
            slow = sum(said.log_probability[b, m, k].exp() * codes[m, k] for k in range(K))
            torch.testing.assert_close(found[b, m], slow)


def test_the_nearest_code_is_the_most_probable(net, batch):
    with torch.no_grad():
        said = net.translate(batch)
    best = said.log_probability.argmax(-1)
    for b in range(4):
        for m in range(M):
            assert torch.equal(net.nearest_code(said)[b, m], net.expression.books.codes[m, best[b, m]])


def test_drawn_codes_follow_their_probabilities(net, batch):
    n = 20_000
    with torch.no_grad():
        said = net.translate(rows(batch, slice(0, 1)))
    many = type(said)(*(part.expand(n, *part.shape[1:]) for part in said))
    drawn = net.drawn_code(many, keyed_uniform(torch.arange(n), M, seed=1))
    index = torch.cdist(drawn.transpose(0, 1), net.expression.books.codes).argmin(-1)
    usage = torch.nn.functional.one_hot(index, K).float().mean(1)
    torch.testing.assert_close(usage, said.log_probability[0].exp(), rtol=0, atol=0.015)


@pytest.mark.parametrize("level", [1e-8, 1 - 1e-8, 1.0])
def test_extreme_levels_draw_a_code(net, batch, level):
    with torch.no_grad():
        said = net.translate(batch)
    assert net.drawn_code(said, torch.full((B, M), level)).isfinite().all()


def test_contrast_is_small_where_each_spot_is_nearest_to_its_own():
    a = torch.eye(6)
    own, other = (contrast(a, b, torch.tensor(0.1).log()) for b in (a, a.roll(1, 0)))
    slow = -torch.log(np.exp(10) / (np.exp(10) + 5) * torch.ones(()))
    torch.testing.assert_close(own, slow)
    assert other > own + 5


# -- distributions ---------------------------------------------------------------------------------------------------


def test_probabilities_sum_to_one_and_cover_every_gene_once(net, batch):
    for path in net.generate(batch, n_paths=2):
        assert sorted(g for columns, _ in path.buckets for g in columns) == list(range(G))
        for p, (columns, size) in zip(path.probability, path.buckets, strict=True):
            assert p.shape == (B, len(columns), size)
            torch.testing.assert_close(p.sum(-1), torch.ones(B, len(columns)))


@pytest.mark.parametrize("n_paths", [1, 4])
def test_a_prediction_does_not_depend_on_its_batch_or_its_place_in_it(net, batch, n_paths):
    together = list(net.generate(batch, n_paths=n_paths, seed=3))
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    shuffled = list(net.generate(rows(batch, order), n_paths=n_paths, seed=3))
    alone = list(net.generate(rows(batch, slice(7, 8)), n_paths=n_paths, seed=3))
    for a, b, c in zip(together, shuffled, alone, strict=True):
        for p, q, r in zip(a.probability, b.probability, c.probability, strict=True):
            torch.testing.assert_close(p[order], q, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(p[7:8], r, rtol=1e-3, atol=1e-5)


def test_a_prediction_reads_no_counts(net, batch):
    blind = {name: value for name, value in batch.items() if name not in ("counts", "unit", "patch")}
    here, there = (next(iter(net.generate(b))) for b in (batch, blind))
    for p, q in zip(here.probability, there.probability, strict=True):
        assert torch.equal(p, q)


def test_paths_differ_one_seed_gives_one_answer_and_the_global_stream_stays(net, batch):
    state = torch.random.get_rng_state()
    first, again, other = (list(net.generate(batch, n_paths=3, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.probability, b.probability, strict=True))
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(first[0].probability, first[1].probability))
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(first[0].probability, other[0].probability))


def test_mean_counts_of_training_spots_come_out_right(net):
    """Of spots answered as if they were new."""
    for bias, n_paths in ((0, 1), (1, 8)):
        expected, counted = torch.zeros(G), torch.zeros(G)
        for batch in BATCHES:
            with torch.no_grad():
                said = net._translate(net._image_tokens(batch), batch, held_out=True)
                means = [m.exp() for m in net._log_means(said, batch["key"], n_paths, 0)]
            expected += torch.stack(means).mean(0).sum(0)
            counted += batch["counts"].sum(0)
        assert net.log_bias[bias].abs().max() < 2
        torch.testing.assert_close(expected, counted, rtol=0.02, atol=1)


def simulated(net, theta, *, n=1500):
    """Spots whose counts are drawn from the network itself: codes, depth, gamma-Poisson with dispersion ``theta``."""
    batch = make_batch(n, seed=11)
    batch["unit"] = torch.zeros(n, dtype=torch.int64)
    net.log_bias.zero_()
    with torch.no_grad():
        said = net._translate(net._image_tokens(batch), batch, held_out=True)
        mean = next(net._log_means(said, batch["key"], 2, 987)).exp()  # the first of several drawn paths
    rng = np.random.default_rng(0)
    rate = rng.gamma(theta, mean.numpy() / theta)
    return {**batch, "counts": torch.tensor(rng.poisson(rate), dtype=torch.float32)}


@pytest.mark.parametrize("theta", [2.0, 20.0])
def test_on_counts_drawn_from_the_network_itself_it_is_calibrated(theta):
    net = make_network()
    batch = simulated(net, theta)
    net.calibrate([batch])
    assert net.log_bias[1].abs().max() < 0.2
    assert abs(float(net.log_dispersion.median()) - np.log(theta)) < (0.1 if theta < 10 else 0.3)
    test = {**batch, "unit": torch.zeros_like(batch["unit"])}
    paths = list(net.generate(test, n_paths=32, seed=5))
    mixed = [
        (columns, torch.stack([path.by_bucket()[b][1] for path in paths]).mean(0))
        for b, (columns, _) in enumerate(paths[0].by_bucket())
    ]
    below, at = (
        read_out(mixed, G, cumulative(counts)).numpy() for counts in (batch["counts"] - 1, batch["counts"])
    )
    pit = randomized_pit(batch["counts"].numpy(), below, at)
    assert pit_deviation(pit.ravel()) < 0.02


# -- edges -----------------------------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient_once_both_are_aligned(batch):
    net = make_network(awake=False)
    train(net, batch, 3)
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_learning_lowers_the_loss(batch):
    losses = train(make_network(awake=False, dropout=0.0), batch, 60, lr=1e-2)
    assert losses[-1] < 0.85 * losses[0]


ABLATIONS = {
    "no neighbours": {"n_neighbors": 0},
    "no place": {"use_place": False},
    "ridge alone": {"nonlinear": False},
    "closed form": {"translator": False},
    "one token": {"n_tokens": 1, "n_image_tokens": 1},
    "more tokens than genes": {"n_tokens": 30},
    "two codes": {"n_codes": 2, "n_image_codes": 2},
    "nothing aligned": {"align_tokens": 0.0, "align_codes": 0.0, "align_spots": 0.0},
    "codes at their last batch": {"decay": 0.0},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_and_predicts(name, batch):
    net = make_network(awake=False, **ABLATIONS[name])
    if not net.config.n_neighbors:
        del batch["neighbours"]
    assert np.isfinite(train(net, batch, 8)).all()
    net.eval()
    for path in net.generate(batch, n_paths=2):
        for p in path.probability:
            torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))


def test_empty_spots_silent_genes_and_constant_features_train_without_nan():
    spots = make_batch(90, seed=1)
    spots["counts"][:5] = 0
    spots["counts"][:, 0] = 0
    spots["histology"][:, 0] = 3.0
    spots["neighbours"][..., 0] = 3.0
    net = GenSTNetwork(GenSTConfig(**SMALL), n_features=F, n_genes=G)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.prepare([spots])
    assert np.isfinite(train(net, spots, 3)).all()
    net.eval().calibrate([spots])
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert all(p.isfinite().all() for path in net.generate(spots, n_paths=2) for p in path.probability)


def test_counts_above_the_vocabulary_are_kept_at_its_end(net, batch):
    batch["counts"][0, :] = 10_000.0
    assert net.loss(batch).total.isfinite()
    net.calibrate([batch])
    assert max(net.gene_vocabulary) == 2001


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tokens": 0}, r"`n_tokens` must be a whole number, at least 1; got 0"),
        ({"token_width": 1.5}, r"`token_width` must be a whole number, at least 1; got 1.5"),
        ({"n_codes": 1}, r"`n_codes` must be a whole number, at least 2; got 1"),
        ({"n_image_codes": True}, r"`n_image_codes` must be a whole number, at least 2; got True"),
        ({"n_neighbors": -1}, r"`n_neighbors` must be a whole number, at least 0; got -1"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\); got 1.0"),
        ({"decay": -0.1}, r"`decay` must be in \[0, 1\); got -0.1"),
        ({"alone": 1}, r"`alone` must be in \[0, 1\); got 1"),
        ({"commitment": -1.0}, r"`commitment` must be 0 or more; got -1.0"),
        ({"align_spots": -1.0}, r"`align_spots` must be 0 or more; got -1.0"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GenSTConfig(**changes)
