"""Cross-fitting: who answers whom, and who may learn from whom."""

import torch

from stgen.experts._crossfit import CrossFitted, may_see, moments


class Numbered(CrossFitted):
    """Every member answers with its number, beside the inputs."""

    def member(self, inputs, f):
        return torch.cat([inputs, inputs.new_full((len(inputs), 1), float(f))], dim=1)


def test_each_row_is_answered_by_the_member_without_its_fold_and_new_ones_by_the_last():
    inputs, fold = torch.arange(6.0)[:, None], torch.tensor([2, 0, 2, 1, 0, 2])
    expert = Numbered(3, 2)
    torch.testing.assert_close(expert(inputs, fold), torch.stack([inputs[:, 0], fold.float()], dim=1))
    assert (expert(inputs)[:, 1] == 3).all()
    assert expert(inputs[:0], fold[:0]).shape == (0, 2)


def test_a_member_learns_from_all_folds_but_its_own():
    fold, values = torch.tensor([0, 0, 1, 2]), torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    sees = may_see(4, fold)
    assert not sees[fold, torch.arange(4)].any() and sees.sum() == 4 * 4 - 4 and sees[-1].all()
    mean, variance = moments(sees, values)
    kept = [values[fold != f] for f in range(3)] + [values]
    torch.testing.assert_close(mean[:, 0], torch.stack([one.mean(0) for one in kept]))
    torch.testing.assert_close(variance[:, 0], torch.stack([one.var(0, correction=0) for one in kept]))
