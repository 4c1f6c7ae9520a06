"""What GenAR expects of a spot: experts that never see what they are asked about, stacked gene by gene."""

import pytest
import torch

from stgen.experts._crossfit import SpatialBlocks
from stgen.experts._mlp import Perceptrons
from stgen.experts._weight import agreement, stacking
from stgen.models.genar._expected import ExpectedCounts, composition
from stgen.nn._network import N_FOLDS

F, G, N = 6, 8, 240


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tissue(n_units=4, *, seed=0):
    """Sections whose first half of genes is linear in a feature, the second half bent in another."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for unit in range(n_units):
        x = torch.randn(N, F, generator=generator)
        bent = 2.0 * x[:, 1:2].abs()
        signal = torch.cat([x[:, :1].expand(-1, G // 2), bent.expand(-1, G // 2)], dim=1)
        rate = 20 * torch.exp(0.8 * (signal - signal.mean(0)))
        counts = torch.poisson(rate, generator=generator)
        xy = 1000 * torch.rand(N, 2, generator=generator)
        fold = torch.full((N,), unit % N_FOLDS)
        patch = unit * N + torch.arange(N) // 10
        batches.append({"features": x, "xy": xy, "counts": counts, "fold": fold, "patch": patch})
    return batches


def fitted(batches, **options):
    expected = ExpectedCounts(F, G, **options)
    torch.manual_seed(1)
    expected.fit(batches)
    return expected


def test_genes_that_bend_get_the_perceptron():
    assert fitted(tissue(), use_place=False).share[0, 1 + G // 2 :].min() > 0.5


def test_each_gene_gets_as_much_of_the_change_as_explains_its_error():
    """Columns: depth, a gene that should take all of the change, one that should take none of it."""
    change = torch.randn(1000, 3)
    error = change * torch.tensor([0.3, 1.0, 0.0])
    share = stacking(*agreement(error, change), slice(1, None))
    # shrunk halfway towards what is best for all genes together, .5
    torch.testing.assert_close(share[1:], torch.tensor([0.75, 0.25]), atol=0.05, rtol=0)
    assert (stacking(*agreement(-error, change), slice(1, None)) == 0).all() and (
        stacking(*agreement(9 * error + change, change), slice(1, None))[:2] == 1
    ).all()


def test_the_perceptron_helps_on_a_section_nobody_saw():
    batches = tissue(5)
    new = batches.pop()
    truth = torch.log1p(new["counts"])[:, G // 2 :]

    def correlation(**options):
        expected = fitted(batches, use_place=False, **options).answers(new["features"], new["xy"])[
            :, 1 + G // 2 :
        ]
        return torch.stack(
            [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(truth.T, expected.T, strict=True)]
        ).mean()

    assert correlation() > correlation(nonlinear=False) + 0.2


def test_held_out_answers_never_depend_on_the_counts_of_their_section():
    """Poison: counts of one section are replaced, the answers given to it by experts without it stay."""
    batches = tissue()
    inputs, targets, fold = (torch.cat([b[k] for b in batches]) for k in ("features", "counts", "fold"))
    poisoned = torch.where((fold == 2)[:, None], 1e4 * torch.rand(targets.shape), targets)
    answers = []
    for y in (targets, poisoned):
        perceptrons = Perceptrons(F, G, N_FOLDS)
        torch.manual_seed(3)
        perceptrons.fit(inputs, y, fold, SpatialBlocks([10] * (len(y) // 10), 0.5))
        answers.append(perceptrons(inputs[fold == 2], fold[fold == 2]))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    assert (
        answers[0] - perceptrons(inputs[fold == 2])
    ).abs().max() > 1.0  # the one fitted on all was poisoned


def test_with_one_section_nothing_speaks_for_the_others():
    batches = tissue(1)
    expected = fitted(batches, use_place=False)
    assert not expected.share.any()
    assert expected.answers(*(batches[0][k] for k in ("features", "xy", "fold"))).isfinite().all()


def test_place_that_does_not_carry_over_reaches_no_expert():
    expected = fitted(tissue())
    assert expected.linear.place_scale == 0
    batch = tissue()[0]
    here, there = (expected(batch["features"], xy)[1] for xy in (batch["xy"], batch["xy"].flip(0)))
    torch.testing.assert_close(here, there)


def test_a_composition_sums_to_one_and_keeps_the_order_of_expression():
    expression = 3 * torch.rand(5, G) - 0.5
    share = composition(expression).exp()
    torch.testing.assert_close(share.sum(1), torch.ones(5))
    above = expression > 0.02
    assert all(
        (row[keep].argsort() == e[keep].argsort()).all()
        for row, e, keep in zip(share, expression, above, strict=True)
    )


def test_fitting_leaves_buffers_without_gradients():
    expected = fitted(tissue(2))
    assert not list(expected.parameters())
    assert not any(b.requires_grad for b in expected.buffers())
