"""The grouped decoder against loops: whom tokens see, and three ways to the same answers.

B batch, C context tokens, Q query tokens, D width.
"""

import pytest
import torch

from stgen.nn import _grouped
from stgen.nn._attention import AdaptiveBlock
from stgen.nn._grouped import (
    PADDING,
    GroupedDecoder,
    context_sees_context,
    query_sees_context,
    query_sees_query,
)

B, D, CONDITION = 3, 8, 5


def slow_mask(context_group, query_group):
    """The rule of the house, one pair of tokens at a time; context tokens first."""
    tokens = [("context", g) for g in context_group] + [("query", g) for g in query_group]
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, (kind, group) in enumerate(tokens):
        for j, (key_kind, key_group) in enumerate(tokens):
            if key_kind == "query":
                mask[i, j] = kind == "query" and key_group == group
            elif key_group != PADDING:
                mask[i, j] = key_group <= group if kind == "context" else key_group < group
    return mask


def mask_of(context_group, query_group):
    """The same square from the three functions of the module."""
    n, m = context_group.shape[-1], query_group.shape[-1]
    square = torch.zeros(*context_group.shape[:-1], n + m, n + m, dtype=torch.bool)
    square[..., :n, :n] = context_sees_context(context_group)
    square[..., n:, :n] = query_sees_context(query_group, context_group)
    square[..., n:, n:] = query_sees_query(query_group)
    return square


def slow_attention(mask):
    """Every score, then minus infinity where the mask says so; a token that may see nothing gets zeros."""
    mask = mask if mask.dim() == 2 else mask[:, None]

    def attend(q, k, v):
        score = (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
        weight = torch.where(mask.any(-1, keepdim=True), score, 0.0).softmax(-1) * mask
        return weight @ v

    return attend


def slow_decoder(decoder, context, context_group, query, query_group, condition):
    """One dense pass through the decoder's blocks, its mask made by loops."""
    if context_group.dim() == 1:
        mask = slow_mask(context_group.tolist(), query_group.tolist())
    else:
        rows = zip(context_group.tolist(), query_group.tolist())
        mask = torch.stack([slow_mask(c, q) for c, q in rows])
    x = torch.cat([context, query], dim=1)
    for block in decoder.blocks:
        x = block(x, slow_attention(mask), condition)
    return x[:, context.shape[1] :]


def random_groups(n, generator, *, low=-1, high=5, padded=False):
    group = torch.randint(low, high, (n,), generator=generator)
    if padded:
        group[torch.rand(n, generator=generator) < 0.3] = PADDING
    return group


def tokens(n, generator):
    return torch.randn(B, n, D, generator=generator, dtype=torch.float64)


@pytest.fixture
def decoder():
    """Two blocks in float64 whose norms listen to the condition."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GroupedDecoder(AdaptiveBlock(D, 2, CONDITION, dropout=0.1, drop_path=0.1) for _ in range(2))
        for block in made.blocks:
            for norm in (block.attention_norm, block.ffn_norm):
                torch.nn.init.normal_(norm.steer.weight, std=0.3)
    return made.double().eval()


@pytest.fixture
def condition():
    return torch.randn(B, CONDITION, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# -- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_masks_equal_loops_over_pairs_of_tokens(batched):
    generator = torch.Generator().manual_seed(int(batched))
    for _ in range(300):
        n, m = torch.randint(0, 9, (2,), generator=generator).tolist()
        groups = [
            (random_groups(n, generator, padded=True), random_groups(m, generator))
            for _ in range(B if batched else 1)
        ]
        expected = torch.stack([slow_mask(c.tolist(), q.tolist()) for c, q in groups])
        context, query = (torch.stack(part) for part in zip(*groups))
        if not batched:
            expected, context, query = expected[0], context[0], query[0]
        assert torch.equal(mask_of(context, query), expected)


def test_the_mask_is_the_published_one_for_two_conditions_and_steps_of_2_2_3():
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
    # the last step's own tokens are never context: nothing comes after them
    mask = mask_of(torch.tensor([-1, -1, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    assert mask.shape == (13, 13)
    assert torch.equal(mask, torch.tensor(rows))


# -- one pass = group by group = cached ------------------------------------------------------------------------


def group_by_group(decoder, context, context_group, query, query_group, condition):
    """Each group in a pass of its own: only earlier context exists, and only its own queries."""
    answer = torch.full_like(query, torch.nan)
    for g in query_group.unique().tolist():
        past, own = context_group < g, query_group == g
        answer[:, own] = decoder(
            context[:, past], context_group[past], query[:, own], query_group[own], condition
        )
    return answer


def cached(decoder, context, context_group, query, query_group, condition):
    """Finished groups go into the cache in order; queries are read as soon as all earlier groups are in."""
    answer, cache = torch.full_like(query, torch.nan), decoder.start()
    for g in sorted({*context_group.tolist(), *query_group.tolist()}):
        own, finished = query_group == g, context_group == g
        if own.any():
            answer[:, own] = decoder.read(cache, query[:, own], query_group[own], condition)
        if finished.any():
            cache = decoder.extend(cache, context[:, finished], context_group[finished], condition)
    return answer


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_one_pass_equals_group_by_group_equals_cached(decoder, condition, seed, in_order):
    generator = torch.Generator().manual_seed(seed)
    context_group, query_group = random_groups(9, generator, low=0), random_groups(11, generator, low=0)
    if in_order:
        context_group, query_group = context_group.sort().values, query_group.sort().values
    context_group = torch.cat([torch.tensor([-1, -1]), context_group])
    inputs = (tokens(11, generator), context_group, tokens(11, generator), query_group, condition)
    one_pass = decoder(*inputs)
    close(one_pass, slow_decoder(decoder, *inputs))
    close(group_by_group(decoder, *inputs), one_pass)
    close(cached(decoder, *inputs), one_pass)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_with_groups_of_its_own_equals_one_observation_at_a_time(decoder, condition, seed):
    generator = torch.Generator().manual_seed(seed)
    context_group = torch.stack([random_groups(8, generator, padded=True) for _ in range(B)])
    query_group = torch.stack([random_groups(6, generator, low=0) for _ in range(B)])
    context, query = tokens(8, generator), tokens(6, generator)
    together = decoder(context, context_group, query, query_group, condition)
    close(together, slow_decoder(decoder, context, context_group, query, query_group, condition))
    for b in range(B):
        real = context_group[b] != PADDING
        alone = decoder(
            context[b : b + 1, real],
            context_group[b, real],
            query[b : b + 1],
            query_group[b],
            condition[b : b + 1],
        )
        close(together[b], alone[0])


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_cache_with_groups_per_observation_equals_one_pass(decoder, condition, cut):
    generator = torch.Generator().manual_seed(cut)
    context_group = torch.stack([random_groups(8, generator, padded=True) for _ in range(B)]).sort(-1).values
    query_group = torch.stack([random_groups(6, generator, low=0) for _ in range(B)])
    context, query = tokens(8, generator), tokens(6, generator)
    cache = decoder.extend(decoder.start(), context[:, :cut], context_group[:, :cut], condition)
    if cut < 8:
        cache = decoder.extend(cache, context[:, cut:], context_group[:, cut:], condition)
    one_pass = decoder(context, context_group, query, query_group, condition)
    close(decoder.read(cache, query, query_group, condition), one_pass)


def test_context_and_queries_need_not_have_the_same_groups(decoder, condition):
    """No query of group 1, no context of groups 0 and 4."""
    generator = torch.Generator().manual_seed(3)
    context_group, query_group = torch.tensor([-1, 1, 1, 3]), torch.tensor([0, 2, 2, 3, 4])
    inputs = (tokens(4, generator), context_group, tokens(5, generator), query_group, condition)
    one_pass = decoder(*inputs)
    close(one_pass, slow_decoder(decoder, *inputs))
    close(group_by_group(decoder, *inputs), one_pass)
    close(cached(decoder, *inputs), one_pass)


def test_places_decoded_at_once_equal_places_decoded_alone(decoder, condition):
    """Distinct groups above all context: every query sees all context and no other query."""
    generator = torch.Generator().manual_seed(4)
    context, query = tokens(7, generator), tokens(5, generator)
    cache = decoder.extend(decoder.start(), context, torch.arange(7), condition)
    at_once = decoder.read(cache, query, 7 + torch.arange(5), condition)
    for i in range(5):
        close(at_once[:, i : i + 1], decoder.read(cache, query[:, i : i + 1], torch.tensor([7]), condition))


@pytest.mark.parametrize("form", ["forward", "_masked", "_banded"])
def test_the_last_block_answers_for_queries_alone(decoder, condition, form):
    """All else would be thrown away."""
    generator, seen = torch.Generator().manual_seed(13), []
    for block in decoder.blocks:
        block.ffn.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    step = torch.arange(5)
    getattr(decoder, form)(tokens(5, generator), step, tokens(5, generator), step + 1, condition)
    assert seen == [10, 5]


def test_reading_leaves_the_cache_as_it_is(decoder, condition):
    generator = torch.Generator().manual_seed(5)
    cache = decoder.extend(decoder.start(), tokens(4, generator), torch.tensor([-1, 0, 0, 1]), condition)
    before = [part.clone() for part in [*cache.keys, *cache.values, cache.group]]
    query, group = tokens(3, generator), torch.tensor([1, 1, 2])
    first = decoder.read(cache, query, group, condition)
    assert all(torch.equal(a, b) for a, b in zip(before, [*cache.keys, *cache.values, cache.group]))
    assert torch.equal(decoder.read(cache, query, group, condition), first)


def test_extending_makes_a_new_cache_so_that_paths_can_branch(decoder, condition):
    generator = torch.Generator().manual_seed(6)
    start = decoder.extend(decoder.start(), tokens(2, generator), torch.tensor([-1, -1]), condition)
    before = [part.clone() for part in [*start.keys, *start.values, start.group]]
    decoder.extend(start, tokens(3, generator), torch.tensor([0, 0, 1]), condition)
    assert all(torch.equal(a, b) for a, b in zip(before, [*start.keys, *start.values, start.group]))


# -- slices = mask = dense, values and gradients -----------------------------------------------------------------


def equal_in_value_and_gradient(decoder, condition, context_group, query_group, generator, *, forms):
    """Every form says what dense attention behind a mask made by loops says."""
    n, m = len(context_group), len(query_group)
    context, query, weight = tokens(n, generator), tokens(m, generator), tokens(m, generator)

    def value_and_gradients(form):
        leaves = [x.clone().requires_grad_() for x in (context, query, condition)]
        decoder.zero_grad()
        answer = form(leaves[0], context_group, leaves[1], query_group, leaves[2])
        (answer * weight).sum().backward()
        return [answer.detach(), *(x.grad for x in leaves), *(p.grad.clone() for p in decoder.parameters())]

    dense = value_and_gradients(lambda *inputs: slow_decoder(decoder, *inputs))
    for form in forms:
        for a, b in zip(value_and_gradients(form), dense, strict=True):
            close(a, b)


@pytest.mark.parametrize("seed", range(4))
def test_slices_equal_the_mask_equal_dense_attention_in_value_and_gradient(decoder, condition, seed):
    generator = torch.Generator().manual_seed(seed)
    n, m = torch.randint(1, 12, (2,), generator=generator).tolist()
    context_group = random_groups(n, generator).sort().values
    query_group = random_groups(m, generator, low=0).sort().values
    forms = (decoder, decoder._masked)
    equal_in_value_and_gradient(decoder, condition, context_group, query_group, generator, forms=forms)


@pytest.mark.parametrize("seed", range(8))
def test_bands_equal_dense_attention_in_value_and_gradient(decoder, condition, seed, monkeypatch):
    """Groups of any size, in one stream or both, and bands larger and smaller than they."""
    generator = torch.Generator().manual_seed(seed)
    n, m = torch.randint(0, 16, (2,), generator=generator).tolist()
    context_group = random_groups(n, generator, high=12).sort().values
    query_group = random_groups(m + 1, generator, low=0, high=12).sort().values
    monkeypatch.setattr(_grouped, "BAND", 1 + seed)
    forms = (decoder._banded,)
    equal_in_value_and_gradient(decoder, condition, context_group, query_group, generator, forms=forms)


def test_groups_of_one_equal_dense_attention_in_value_and_gradient(decoder, condition):
    """A sequence that is asked for token by token, in several bands of the usual size."""
    generator, step = torch.Generator().manual_seed(0), torch.arange(130)
    equal_in_value_and_gradient(decoder, condition, step, step + 1, generator, forms=(decoder,))


def test_no_group_lies_in_two_bands_and_bands_are_about_as_large_as_said():
    step = torch.arange(1000)
    of_context, of_query = _grouped._bands(step, step + 1)
    assert sum(of_context) == sum(of_query) == 1000 and len(of_context) == len(of_query) > 10
    assert max(a + b for a, b in zip(of_context, of_query)) <= _grouped.BAND + 1
    alike = torch.full((1000,), 7)
    of_context, of_query = _grouped._bands(alike, alike)
    assert max(of_context) == max(of_query) == 1000


def test_tiny_groups_in_order_are_attended_to_band_by_band(decoder, condition, monkeypatch):
    monkeypatch.setattr(GroupedDecoder, "_masked", None)
    step, generator = torch.arange(60), torch.Generator().manual_seed(0)
    decoder(tokens(60, generator), step, tokens(60, generator), step + 1, condition)


def test_groups_in_order_are_attended_to_without_a_mask(decoder, condition, monkeypatch):
    monkeypatch.setattr(GroupedDecoder, "_masked", None)
    generator = torch.Generator().manual_seed(0)
    decoder(
        tokens(3, generator), torch.tensor([-1, 0, 0]), tokens(2, generator), torch.tensor([0, 1]), condition
    )


# -- who reaches whom, by gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["forward", "_masked", "_banded", "cached"])
def test_only_earlier_groups_and_its_own_queries_reach_a_query(decoder, condition, form):
    generator = torch.Generator().manual_seed(7)
    context_group, query_group = torch.tensor([-1, -1, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 3])
    context, query = tokens(7, generator).requires_grad_(), tokens(6, generator).requires_grad_()
    inputs = (context, context_group, query, query_group, condition)
    answer = cached(decoder, *inputs) if form == "cached" else getattr(decoder, form)(*inputs)
    for i, g in enumerate(query_group.tolist()):
        from_context, from_query = torch.autograd.grad(
            answer[:, i].sum(), (context, query), retain_graph=True
        )
        reached = from_context.abs().sum((0, 2)) > 0, from_query.abs().sum((0, 2)) > 0
        assert torch.equal(reached[0], context_group < g)
        assert torch.equal(reached[1], query_group == g)


def test_padding_reaches_nobody(decoder, condition):
    generator = torch.Generator().manual_seed(8)
    context_group = torch.tensor([-1, PADDING, 0, PADDING, 1])
    query_group = torch.tensor([0, 1, 5, 5])
    context, query = tokens(5, generator).requires_grad_(), tokens(4, generator)
    answer = decoder(context, context_group, query, query_group, condition)
    (gradient,) = torch.autograd.grad(answer.sum(), context)
    assert torch.equal(gradient.abs().sum((0, 2)) > 0, context_group != PADDING)
    real = context_group != PADDING
    close(answer, decoder(context[:, real], context_group[real], query, query_group, condition))
    cache = decoder.extend(decoder.start(), context, context_group, condition)
    close(decoder.read(cache, query, query_group, condition), answer)


# -- edges -------------------------------------------------------------------------------------------------------


def test_a_query_that_sees_nothing_but_itself_attends_to_itself(decoder, condition):
    generator = torch.Generator().manual_seed(10)
    query = tokens(4, generator)
    nobody, group = query.new_zeros(B, 0, D), torch.arange(4)
    answer = decoder(nobody, group[:0], query, group, condition)
    x = query
    for block in decoder.blocks:
        x = block(x, lambda q, k, v: v, condition)
    close(answer, x)
    close(decoder._masked(nobody, group[:0], query, group, condition), x)
    close(decoder._banded(nobody, group[:0], query, group, condition), x)
    close(decoder.read(decoder.start(), query, group, condition), x)


def test_one_group_sees_its_prefix_and_itself(decoder, condition):
    generator = torch.Generator().manual_seed(11)
    prefix, query = tokens(2, generator), tokens(5, generator)
    prefix_group, group = torch.tensor([-1, -1]), torch.zeros(5, dtype=torch.long)
    answer = decoder(prefix, prefix_group, query, group, condition)
    close(answer, slow_decoder(decoder, prefix, prefix_group, query, group, condition))
    cache = decoder.extend(decoder.start(), prefix, prefix_group, condition)
    close(decoder.read(cache, query, group, condition), answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_context_of_padding_alone_gives_finite_answers_and_gradients(decoder, condition, dtype):
    generator = torch.Generator().manual_seed(12)
    context, query = (tokens(n, generator).to(dtype).requires_grad_() for n in (3, 2))
    decoder.to(dtype)
    inputs = (torch.full((3,), PADDING), query, torch.tensor([0, 1]), condition.to(dtype))
    answer = decoder(context, *inputs)
    answer.square().sum().backward()
    assert answer.isfinite().all() and query.grad.isfinite().all()
    assert torch.equal(context.grad, torch.zeros_like(context))
    assert all(p.grad.isfinite().all() for p in decoder.parameters())
