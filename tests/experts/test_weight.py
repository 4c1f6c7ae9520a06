"""How much of a change is believed: least squares, shrunk, and never more than all of it."""

import numpy as np
import pytest
import torch

from stgen.experts._weight import agreement, cautious, non_negative, stacking


def test_a_weight_is_believed_less_a_standard_error():
    size, rng = np.ones(400), np.random.default_rng(0)
    rule = {"n_errors": 1, "times": 3.0, "most": 0.5}
    assert cautious(0.1 * size, size, **rule) == pytest.approx(0.3)
    assert cautious(0.4 * size, size, **rule) == 0.5
    assert cautious(-0.1 * size, size, **rule) == 0
    noisy = 0.1 + rng.normal(0, 1, 400)
    expected = 3 * (noisy.mean() - noisy.std() / 20)
    assert cautious(noisy, size, **rule) == pytest.approx(expected, rel=1e-6)
    assert cautious(noisy[:20] - noisy[:20].mean() + 0.1, size[:20], **rule) == 0


def test_more_standard_errors_believe_less():
    gain, size = 0.8 + np.random.default_rng(1).normal(0, 1, 200), np.ones(200)
    believed = [cautious(gain, size, n_errors=n) for n in (0, 1, 2, 50)]
    assert believed[0] == pytest.approx(gain.mean()) and believed == sorted(believed, reverse=True)
    assert believed[-1] == 0 and len(set(believed)) == 4


def test_arrays_and_tensors_are_weighed_alike():
    gain, size = np.random.default_rng(2).random((2, 50))
    of_tensors = cautious(torch.from_numpy(gain), torch.from_numpy(size), n_errors=2)
    assert of_tensors == pytest.approx(cautious(gain, size, n_errors=2), rel=1e-12)
    assert 0 < of_tensors < 1


def test_a_change_of_nothing_gets_no_weight():
    nothing = np.zeros(5)
    assert cautious(nothing, nothing, n_errors=1) == 0
    assert not stacking(torch.zeros(3), torch.zeros(3), slice(None)).any()


def test_all_forms_of_the_rule_agree_where_there_is_nothing_to_doubt():
    change = np.random.default_rng(3).normal(size=(500, 3))
    error = 0.4 * change
    together = stacking(*agreement(torch.from_numpy(error), torch.from_numpy(change)), slice(None))
    np.testing.assert_allclose(together, 0.4)
    assert cautious((error * change).sum(1), (change**2).sum(1), n_errors=2) == pytest.approx(0.4)
    assert non_negative(change[None], error)[0] == pytest.approx(0.4, rel=1e-4)
