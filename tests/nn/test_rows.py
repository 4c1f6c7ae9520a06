"""Rows in parts are gathered once, and their axes are those of a slow decomposition, however many features there are."""

import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from stgen.experts import _ridge
from stgen.experts._ridge import PENALTIES, CrossFittedRidge
from stgen.models.genst._config import GenSTConfig
from stgen.models.genst._parts import TokenAutoencoder
from stgen.nn._network import N_FOLDS
from stgen.nn._rows import gathered, leading_axes


def rows(n, n_features, *, seed=0):
    """Rows whose axes are well apart, far from 0."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.9 ** torch.arange(n_features)
    mixed = torch.linalg.qr(torch.randn(n_features, n_features, generator=generator))[0]
    return 3 + torch.randn(n, n_features, generator=generator) * spread @ mixed


def test_parts_are_gathered_in_order():
    x = rows(10, 4)
    assert torch.equal(gathered(iter(x.split(3)), 10), x)
    y = torch.arange(10)
    assert torch.equal(gathered(iter(y.split(4)), 10), y)
    assert len(gathered(iter(()), 0)) == 0


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(20, 50), (50, 50), (80, 50)], ids=str)
def test_axes_are_those_of_a_singular_value_decomposition(shape, centred):
    x = rows(*shape)
    found = leading_axes(x.split(7), len(x), 5, centred=centred)
    centre = x.double() - centred * x.double().mean(0)
    slow = torch.linalg.svd(centre, full_matrices=False).Vh[:5].T
    torch.testing.assert_close(found.T @ found, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close((found * slow).sum(0).abs(), torch.ones(5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 30), (40, 30)], ids=["few rows", "features that depend on five"])
def test_axes_beyond_the_rank_are_nought(shape):
    x = rows(*shape)
    if shape[0] > shape[1]:
        x = x[:, :5] @ torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    axes = leading_axes(x.split(7), len(x), 20)
    assert (axes.norm(dim=0) > 0.5).tolist() == [True] * 5 + [False] * 15
    assert not axes[:, 5:].any()
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(centred @ axes @ axes.T, centred, rtol=0, atol=1e-5)


# -- a ridge on more features than spots -----------------------------------------------------------------------------


def batches(n, n_features, *, n_units=4, n_targets=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, n_features, generator=generator) + 1
    weight = torch.randn(n_features, n_targets, generator=torch.Generator().manual_seed(7))
    whole = {
        "features": features,
        "xy": torch.zeros(n, 2),
        "targets": features @ weight + torch.randn(n, n_targets, generator=generator),
        "fold": torch.arange(n) % n_units % N_FOLDS,
    }
    return [{name: values[i : i + 17] for name, values in whole.items()} for i in range(0, n, 17)], whole


@pytest.mark.parametrize(("n", "n_features"), [(60, 300), (90, 1000)])
def test_wide_features_give_the_ridge_on_the_features_themselves(n, n_features, monkeypatch):
    """Against the primal: features × features, penalty by penalty."""
    made, whole = batches(n, n_features)
    new = batches(20, n_features, seed=1)[1]
    for penalty in (PENALTIES[0], PENALTIES[-1]):
        monkeypatch.setattr(_ridge, "PENALTIES", [penalty])
        path = CrossFittedRidge(n_features, (3,), use_place=False)
        path.fit(made)
        scaled = path.standardised(whole["features"]).double().numpy()
        slow = Ridge(alpha=penalty, solver="cholesky").fit(scaled, whole["targets"].double().numpy())
        expected = slow.predict(path.standardised(new["features"]).double().numpy())
        answer = path(path.inputs(new["features"], new["xy"]))
        np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


def test_more_spots_and_features_than_axes_give_the_ridge_on_the_leading_axes(monkeypatch):
    monkeypatch.setattr(_ridge, "N_COMPONENTS", 20)
    monkeypatch.setattr(_ridge, "PENALTIES", [1.0])
    for n in (50, 200):  # fewer spots than features, and more
        made, whole = batches(n, 100)
        path = CrossFittedRidge(100, (3,), use_place=False)
        path.fit(made)
        x = path.standardised(whole["features"]).double()
        axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:20].T
        slow = Ridge(alpha=1.0).fit((x @ axes).numpy(), whole["targets"].double().numpy())
        answer = path(path.inputs(whole["features"], whole["xy"]))
        expected = slow.predict((x @ axes).numpy())
        np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


def test_of_few_spots_no_square_of_the_features_is_made(monkeypatch):
    """The largest decomposition is as wide as spots, axes and waves of place, not as the features."""
    widths, eigh = [], torch.linalg.eigh

    def watched(square):
        widths.append(len(square))
        return eigh(square)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    CrossFittedRidge(2000, (3,)).fit(batches(40, 2000)[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = TokenAutoencoder(2000, 4, 8, 8, GenSTConfig())
        autoencoder.start(batches(40, 2000)[1]["features"].split(17), torch.Generator().manual_seed(0))
    assert max(widths) < 400


def test_an_autoencoder_of_few_wide_rows_starts_with_codes_that_bring_them_back():
    """Latents that hold all the rank of the inputs lose nothing of them."""
    x = batches(30, 500)[1]["features"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = TokenAutoencoder(500, 8, 8, 8, GenSTConfig()).eval()
        autoencoder.start(x.split(17), torch.Generator().manual_seed(0))
    again = autoencoder.decode(autoencoder.encode(x))
    torch.testing.assert_close(again, autoencoder.standardised(x), rtol=0, atol=1e-4)


def test_gathering_holds_one_part_at_a_time():
    made, most = [], []

    def parts():
        for _ in range(5):
            made.append(weakref.ref(part := torch.zeros(3, 2)))
            most.append(sum(one() is not None for one in made))
            yield part
            del part

    gathered(parts(), 15)
    assert max(most) <= 2  # the one that comes, and the last, still held by the loop
