"""Codebooks: which code a token becomes, how codes follow their tokens, and that none stays dead.

B batch, M token positions, K codes, d width.
"""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from stgen.nn._quantize import DEAD, Codebooks, perplexity

B, M, K, d = 50, 3, 5, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(n=B, *, seed=0):
    return torch.randn(n, M, d, generator=generator(seed))


def started(z=None, *, decay=0.99, n_codes=K):
    books = Codebooks(M, n_codes, d, decay=decay)
    books.start(tokens(200) if z is None else z, generator())
    return books


# -- from tokens to codes ---------------------------------------------------------------------------------------------


def test_a_code_vector_quantises_to_itself():
    books = started()
    code, index = books(books.codes.transpose(0, 1))
    assert torch.equal(index, torch.arange(K)[:, None].expand(K, M))
    torch.testing.assert_close(code, books.codes.transpose(0, 1))


def test_the_nearest_code_is_that_of_a_slow_search():
    books, z = started(), tokens(seed=1)
    slow = [
        [
            min(range(K), key=lambda k: float((z[b, m].double() - books.codes[m, k]).square().sum()))
            for m in range(M)
        ]
        for b in range(B)
    ]
    assert books.nearest(z).tolist() == slow


def test_of_equal_codes_the_first_is_chosen():
    books = started()
    books.codes[:, 1:] = books.codes[:, :1]
    assert not books.nearest(tokens()).any()


def test_codes_are_looked_up_by_position_and_number():
    books = started()
    index = torch.randint(K, (B, M), generator=generator())
    found = books.look_up(index)
    for b in range(3):
        for m in range(M):
            assert torch.equal(found[b, m], books.codes[m, index[b, m]])


def test_gradients_pass_straight_through():
    books, z = started(), tokens().requires_grad_()
    code, index = books(z)
    torch.testing.assert_close(code, books.look_up(index))
    weight = torch.randn(code.shape, generator=generator(3))
    (gradient,) = torch.autograd.grad((weight * code).sum(), z)
    assert torch.equal(gradient, weight)


def test_codebooks_have_no_parameters_and_ask_leaves_them_alone():
    books = started()
    before = copy.deepcopy(books.state_dict())
    books(tokens())
    assert list(books.parameters()) == []
    assert all(torch.equal(before[name], value) for name, value in books.state_dict().items())


# -- where codes start ------------------------------------------------------------------------------------------------


def test_codes_start_at_the_centres_of_clusters_with_their_shares():
    centre = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [5.0, 5.0]])
    size = [10, 20, 30, 40, 100]
    label = torch.arange(K).repeat_interleave(torch.tensor(size))
    z = (centre[label] + 0.01 * torch.randn(200, d, generator=generator()))[:, None].expand(-1, M, -1)
    books = started(z.contiguous())
    for m in range(M):
        which = torch.cdist(centre, books.codes[m]).argmin(1)
        assert sorted(which.tolist()) == list(range(K))
        torch.testing.assert_close(books.codes[m, which], centre, atol=0.02, rtol=0)
        torch.testing.assert_close(books.share[m, which], torch.tensor(size) / 200)


def test_the_start_is_seeded_and_leaves_the_global_stream_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(started().codes, started().codes)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fewer_distinct_tokens_than_codes_leave_twins_that_nobody_chooses():
    z = tokens()
    z[:, 0] = torch.arange(B)[:, None] % 2  # two distinct tokens at the first position
    books = started(z)
    assert (books.share[0] > 0).sum() == 2
    torch.testing.assert_close(books.share.sum(-1), torch.ones(M))
    torch.testing.assert_close(books(z)[0][:, 0], z[:, 0])
    books.follow(z, books.nearest(z), generator())
    assert books.codes.isfinite().all()


def test_fewer_spots_than_codes_are_a_message():
    with pytest.raises(
        ValueError, match=r"5 codes need at least as many training spots; found 4\. Lower `n_codes`"
    ):
        started(tokens(4))


# -- how codes follow -------------------------------------------------------------------------------------------------


def test_one_step_is_the_moving_average_of_its_definition():
    books, z = started(decay=0.9), tokens(seed=2)
    index, before = books.nearest(z), copy.deepcopy(books)
    books.follow(z, index, generator())
    for m in range(M):
        for k in range(K):
            mine = z[index[:, m] == k, m]
            share = 0.9 * before.share[m, k] + 0.1 * len(mine) / B
            total = 0.9 * before.share[m, k] * before.codes[m, k] + 0.1 * mine.sum(0) / B
            torch.testing.assert_close(books.share[m, k], share)
            torch.testing.assert_close(books.codes[m, k], total / share)


def test_codes_come_to_the_mean_of_the_tokens_they_stand_for():
    books, z = started(decay=0.5), tokens(seed=3)
    index = torch.arange(B)[:, None].expand(-1, M) % K
    for _ in range(60):
        books.follow(z, index, generator())
    for k in range(K):
        torch.testing.assert_close(books.codes[:, k], z[k::K].mean(0), atol=1e-5, rtol=0)


def test_a_dead_code_comes_back_at_a_token_of_its_position():
    books, z = started(), tokens(seed=4)
    books.share[1, 2] = 0.5 * DEAD / K
    books.total[1, 2] = 1e3 * books.share[1, 2]
    books.codes[1, 2] = 1e3
    books.follow(z, books.nearest(z), generator())
    torch.testing.assert_close(books.share[1, 2], torch.tensor(1.0 / K))
    assert torch.cdist(books.codes[1, 2][None], z[:, 1]).min() < 1e-6
    assert (books.nearest(z)[:, 1] == 2).any()


def test_every_code_is_soon_used_where_all_started_dead():
    books = Codebooks(M, K, d, decay=0.9)  # all at the origin: the first takes everything
    for step in range(100):
        z = tokens(seed=step)
        books.follow(z, books.nearest(z), generator(step))
    usage = torch.nn.functional.one_hot(books.nearest(tokens(1000, seed=999)), K).float().mean(0)
    assert (usage > 0.02).all()
    assert (perplexity(usage) > 0.6 * K).all()


def test_revival_is_seeded():
    def revived(seed):
        books, z = Codebooks(M, K, d, decay=0.0), tokens(seed=4)
        books.follow(z, books.nearest(z), generator(seed))
        return books.codes

    assert torch.equal(revived(1), revived(1))
    assert not torch.equal(revived(1), revived(2))


def test_saved_and_loaded_they_go_on_alike():
    books = started(decay=0.9)
    for step in range(3):
        books.follow(tokens(seed=step), books.nearest(tokens(seed=step)), generator(step))
    again = Codebooks(M, K, d, decay=0.9)
    again.load_state_dict(books.state_dict())
    for one in (books, again):
        one.follow(tokens(seed=9), one.nearest(tokens(seed=9)), generator(9))
    for a, b in zip(books.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# -- how many are used ------------------------------------------------------------------------------------------------


def test_perplexity_is_the_exponential_of_the_entropy():
    share = np.random.default_rng(0).dirichlet(np.ones(K), size=(4, M))
    share[0, 0] = [0, 0, 1, 0, 0]
    expected = np.exp(entropy(share, axis=-1))
    np.testing.assert_allclose(perplexity(torch.tensor(share)), expected)
    np.testing.assert_allclose(perplexity(torch.full((K,), 1 / K)), K, rtol=1e-6)
