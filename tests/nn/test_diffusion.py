"""Diffusion: noise goes on and comes off, in one step or many, as slow written-out references say."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from stgen.nn._diffusion import CLEAN, Schedule

SCHEDULE = Schedule()
PREDICTIONS = ("noise", "velocity")
SPACINGS = ("even", "dense_end")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kept_variance(n_times, offset=0.008):
    """ᾱ of each time, as the paper writes it: betas from ratios of squared cosines, clipped, multiplied up."""
    kept, product = [], 1.0
    for i in range(n_times):
        now, after = (math.cos((u / n_times + offset) / (1 + offset) * math.pi / 2) ** 2 for u in (i, i + 1))
        product *= 1 - min(1 - after / now, 0.999)
        kept.append(product)
    return kept


def slow_walk(denoise, x, times, n_times, *, eta=0.0, draws=()):
    """Song et al. 2021, eqs. 12 and 16, one number at a time; nothing is drawn on the last step."""
    kept = kept_variance(n_times)
    x, draws = list(x), iter(draws)
    for t, s in zip(times, [*times[1:], CLEAN], strict=True):
        now, after = kept[t], 1.0 if s == CLEAN else kept[s]
        spread = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
        draw = next(draws) if spread > 0 else [0.0] * len(x)
        for i in range(len(x)):
            x0 = denoise(x[i], t, now)
            noise = (x[i] - math.sqrt(now) * x0) / math.sqrt(1 - now)
            x[i] = math.sqrt(after) * x0 + math.sqrt(1 - after - spread**2) * noise + spread * float(draw[i])
    return x


class Gaussian:
    """x0 ~ N(mean, sd²) and the best denoiser there is for it, E[x0 | x_t]."""

    def __init__(self, schedule, mean, sd):
        self.schedule, self.mean, self.sd = schedule, mean, sd

    def scalar(self, x, _, kept):
        gain = math.sqrt(kept) * self.sd**2 / (kept * self.sd**2 + 1 - kept)
        return self.mean + gain * (x - math.sqrt(kept) * self.mean)

    def __call__(self, x, t):
        t = t[:, None]
        alpha, sigma = self.schedule.alpha(t, dtype=x.dtype), self.schedule.sigma(t, dtype=x.dtype)
        gain = alpha * self.sd**2 / (alpha**2 * self.sd**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


# levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_times", [1, 2, 10, 2000])
def test_shares_of_signal_and_noise_lie_on_the_unit_circle(n_times, dtype):
    schedule, t = Schedule(n_times), torch.arange(-1, n_times)
    alpha, sigma = schedule.alpha(t, dtype=dtype), schedule.sigma(t, dtype=dtype)
    assert alpha.dtype == sigma.dtype == dtype and alpha.shape == t.shape
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("n_times", [1, 2, 10, 2000])
@pytest.mark.parametrize("offset", [0.0, 0.008, 0.2])
def test_levels_equal_the_product_of_clipped_betas(n_times, offset):
    schedule, t, kept = (
        Schedule(n_times, offset),
        torch.arange(n_times),
        np.array(kept_variance(n_times, offset)),
    )
    np.testing.assert_allclose(schedule.alpha(t, dtype=torch.float64), np.sqrt(kept), rtol=1e-9)
    np.testing.assert_allclose(schedule.sigma(t, dtype=torch.float64), np.sqrt(1 - kept), rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha(t), np.sqrt(kept), rtol=1e-5)
    np.testing.assert_allclose(schedule.sigma(t), np.sqrt(1 - kept), rtol=1e-4)


def test_signal_to_noise_falls_with_every_step():
    t = torch.arange(SCHEDULE.n_times)
    assert (torch.diff(SCHEDULE.alpha(t) / SCHEDULE.sigma(t)) < 0).all()
    assert 0 < SCHEDULE.alpha(SCHEDULE.n_times - 1) < 1e-4
    assert SCHEDULE.alpha(CLEAN) == 1 and SCHEDULE.sigma(CLEAN) == 0


# noise goes on and comes off -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_goes_on_and_the_true_prediction_takes_it_off_at_every_time(prediction):
    t = torch.arange(-1, SCHEDULE.n_times)
    x0, noise = normal(len(t), 3), normal(len(t), 3, seed=1)
    x_t = SCHEDULE.noised(x0, t, noise)
    parts = SCHEDULE.parts(x_t, SCHEDULE.target(x0, noise, t, prediction), t, prediction)
    np.testing.assert_allclose(parts.x0, x0, atol=1e-10)
    np.testing.assert_allclose(parts.noise, noise, atol=1e-10)


def test_float32_velocity_loses_nothing_at_any_time_and_noise_does_at_the_last():
    t = torch.arange(SCHEDULE.n_times)
    x0, noise = normal(len(t), 3, dtype=torch.float32), normal(len(t), 3, seed=1, dtype=torch.float32)
    x_t = SCHEDULE.noised(x0, t, noise)
    off = {}
    for prediction in PREDICTIONS:
        found = SCHEDULE.parts(x_t, SCHEDULE.target(x0, noise, t, prediction), t, prediction).x0
        off[prediction] = (found - x0).abs().amax(1)
    assert off["velocity"].max() < 1e-5
    assert off["noise"][: SCHEDULE.n_times // 2].max() < 1e-5 < off["noise"][-1]


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (4, 1), (4, 5, 2)])
def test_times_of_rows_and_tokens_equal_a_loop(shape):
    t = torch.randint(SCHEDULE.n_times, shape, generator=torch.Generator().manual_seed(2))
    x0, noise = normal(4, 5, 2), normal(4, 5, 2, seed=1)
    x_t, v = SCHEDULE.noised(x0, t, noise), SCHEDULE.target(x0, noise, t, "velocity")
    kept = kept_variance(SCHEDULE.n_times)
    each = t.reshape(*t.shape, *[1] * (3 - t.dim())).expand(4, 5, 2)
    for at in np.ndindex(4, 5, 2):
        alpha, sigma = math.sqrt(kept[each[at]]), math.sqrt(1 - kept[each[at]])
        assert math.isclose(x_t[at], alpha * x0[at] + sigma * noise[at], rel_tol=1e-8, abs_tol=1e-10)
        assert math.isclose(v[at], alpha * noise[at] - sigma * x0[at], rel_tol=1e-8, abs_tol=1e-10)


def test_half_precision_is_noised_in_float32():
    x0, noise = normal(4, 5, dtype=torch.bfloat16), normal(4, 5, seed=1, dtype=torch.bfloat16)
    x_t = SCHEDULE.noised(x0, torch.full((4,), 700), noise)
    assert x_t.dtype == torch.float32
    np.testing.assert_allclose(x_t, SCHEDULE.noised(x0.float(), 700, noise.float()))


# times of a walk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n_times", [1, 2, 7, 40, 101])
def test_any_number_of_steps_starts_at_full_noise_and_falls(n_times, spacing):
    schedule = Schedule(n_times)
    for n in range(1, n_times + 1):
        times = schedule.steps(n, spacing=spacing)
        assert len(times) == n and times[0] == n_times - 1 and times[-1] >= 0
        assert (torch.diff(times) < 0).all()
    assert times.tolist() == list(range(n_times))[::-1]


def test_even_steps_leave_equal_gaps_and_dense_ends_shrinking_ones():
    assert Schedule(1000).steps(5).tolist() == [999, 799, 599, 399, 199]
    assert Schedule(1000).steps(5, spacing="dense_end").tolist() == [999, 639, 359, 159, 39]
    gaps = torch.diff(Schedule(2000).steps(50, spacing="dense_end"))
    assert (torch.diff(gaps) >= -1).all() and gaps[0] < 10 * gaps[-1]


# the walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n_steps", [1, 2, 7, 50, 100])
def test_with_an_oracle_every_step_stays_on_the_line_to_x0(n_steps, spacing, prediction):
    schedule = Schedule(100)
    x0, noise = normal(2, 3, 4), normal(2, 3, 4, seed=1)

    def oracle(x_t, t):
        np.testing.assert_allclose(x_t, schedule.noised(x0, t, noise), atol=1e-9)
        assert t.shape == (2,) and t.dtype == torch.int64
        return schedule.parts(x_t, schedule.target(x0, noise, t, prediction), t, prediction).x0

    start = schedule.noised(x0, 99, noise)
    np.testing.assert_allclose(schedule.walk(oracle, start, n_steps, spacing=spacing), x0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_oracle_of_x0_itself_is_returned_to_the_bit(eta):
    x0 = normal(2, 3, 4, dtype=torch.float32)
    found = SCHEDULE.walk(
        lambda x, t: x0, torch.ones(2, 3, 4), 9, eta=eta, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(found, x0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n_steps", [1, 8, 60])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_walk_equals_a_slow_reference(n_steps, spacing, eta):
    """60 steps of 60 are the full walk."""
    schedule = Schedule(60)
    gaussian, start = Gaussian(schedule, 2.0, 0.7), normal(3, 2)
    found = schedule.walk(
        gaussian, start, n_steps, spacing=spacing, eta=eta, generator=torch.Generator().manual_seed(5)
    )
    stream = torch.Generator().manual_seed(5)
    draws = [torch.randn(3, 2, generator=stream, dtype=torch.float64).flatten() for _ in range(n_steps - 1)]
    times = schedule.steps(n_steps, spacing=spacing).tolist()
    expected = slow_walk(gaussian.scalar, start.flatten().tolist(), times, 60, eta=eta, draws=draws)
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_bring_the_best_denoiser_to_the_mean_and_spread_of_a_gaussian(spacing):
    """The walk of a Gaussian is affine in its start, so two starts say where all of them go."""
    mean, sd, off = 2.0, 0.7, []
    gaussian = Gaussian(SCHEDULE, mean, sd)
    for n_steps in (1, 5, 20, 100, 2000):
        zero, one = SCHEDULE.walk(gaussian, torch.tensor([[0.0], [1.0]]).double(), n_steps, spacing=spacing)
        np.testing.assert_allclose(zero, mean, rtol=1e-3)  # the mean is right at any number
        off.append(abs(float(one - zero) - sd))
    assert off[0] > 0.99 * sd  # one step answers with the mean alone
    assert all(later < earlier for earlier, later in pairwise(off))
    assert off[-1] < 0.005


def test_a_stochastic_walk_reaches_the_same_gaussian():
    """5000 draws: four standard errors of the mean are .04, those of the spread .028."""
    found = SCHEDULE.walk(
        Gaussian(SCHEDULE, 2.0, 0.7),
        normal(5000, 1),
        200,
        eta=1.0,
        generator=torch.Generator().manual_seed(1),
    )
    assert abs(float(found.mean()) - 2.0) < 0.04
    assert abs(float(found.std()) - 0.7) < 0.04


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_equal_generators_walk_equally_and_the_global_stream_is_left_alone(eta):
    gaussian, start, state = Gaussian(SCHEDULE, 0.0, 1.0), normal(6, 2), torch.random.get_rng_state()
    one, two, other = (
        SCHEDULE.walk(gaussian, start, 10, eta=eta, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (eta == 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_deterministic_walk_does_not_depend_on_the_batch():
    gaussian, start = Gaussian(SCHEDULE, 1.0, 2.0), normal(6, 2)
    whole = SCHEDULE.walk(gaussian, start, 10)
    assert torch.equal(whole[2:3], SCHEDULE.walk(gaussian, start[2:3], 10))


def test_clip_bounds_what_the_walk_believes_at_every_step():
    """Predicted noise of 0 would send x0 off by 1/α."""
    seen = []

    def silent(x_t, t):
        seen.append(x_t.abs().max())
        return SCHEDULE.parts(x_t, torch.zeros_like(x_t), t, "noise").x0

    start = normal(3, 4)
    assert SCHEDULE.walk(silent, start, 20).abs().max() > 100
    seen.clear()
    assert SCHEDULE.walk(silent, start, 20, clip=3.0).abs().max() <= 3
    assert max(seen) < 3 + start.abs().max()


def test_gradients_run_through_a_walk():
    start = normal(2, 3).requires_grad_()
    SCHEDULE.walk(Gaussian(SCHEDULE, 0.0, 1.0), start, 5).sum().backward()
    assert start.grad.abs().min() > 0


# errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(0), r"`n_times` must be at least 1; got 0"),
        (lambda: Schedule(offset=-0.1), r"`offset` must not be negative; got -0.1"),
        (lambda: SCHEDULE.alpha(torch.tensor([0.5])), r"must be integers; found torch.float32.*t.long\(\)"),
        (lambda: SCHEDULE.alpha(2000), r"between -1 \(clean\) and 1999; found 2000 to 2000.*raise `n_times`"),
        (lambda: SCHEDULE.sigma(torch.tensor([-2, 5])), r"found -2 to 5"),
        (
            lambda: SCHEDULE.noised(torch.ones(4, 5), torch.zeros(5).long(), torch.ones(4, 5)),
            r"first dimensions of the tensor, \(4, 5\); found \(5,\).*one time per row",
        ),
        (lambda: SCHEDULE.noised(torch.ones(4), torch.zeros(4, 1).long(), torch.ones(4)), r"found \(4, 1\)"),
        (
            lambda: SCHEDULE.noised(torch.ones(4, 5), 3, torch.ones(1, 5)),
            r"`noise` must have the shape \(4, 5\).*found \(1, 5\).*Expand it",
        ),
        (
            lambda: SCHEDULE.target(torch.ones(4), torch.ones(3), 3, "noise"),
            r"`noise` must have the shape \(4,\)",
        ),
        (
            lambda: SCHEDULE.parts(torch.ones(4), torch.ones(3), 3, "noise"),
            r"`predicted` must have the shape \(4,\)",
        ),
        (
            lambda: SCHEDULE.target(torch.ones(4), torch.ones(4), 3, "x0"),
            r"`prediction` must be one of \['noise', 'velocity'\]; got 'x0'",
        ),
        (lambda: SCHEDULE.parts(torch.ones(4), torch.ones(4), 3, "eps"), r"`prediction` must be one of"),
        (lambda: SCHEDULE.steps(0), r"between 1 and 2000 steps; got 0"),
        (lambda: SCHEDULE.steps(2001), r"between 1 and 2000 steps; got 2001. Take fewer, or raise `n_times`"),
        (
            lambda: SCHEDULE.steps(5, spacing="odd"),
            r"`spacing` must be one of \['even', 'dense_end'\]; got 'odd'",
        ),
        (
            lambda: SCHEDULE.walk(lambda x, t: x, torch.ones(2), 3, eta=1.5),
            r"`eta` must lie between 0.*got 1.5",
        ),
        (
            lambda: SCHEDULE.walk(lambda x, t: x, torch.ones(2), 3, eta=0.5),
            r"`eta=0.5` draws noise and needs a `generator`; got None. Pass `torch.Generator",
        ),
        (
            lambda: SCHEDULE.walk(lambda x, t: x, torch.ones(2), 3, clip=0.0),
            r"`clip` must be positive.*got 0.0",
        ),
        (
            lambda: SCHEDULE.walk(lambda x, t: x[:1], torch.ones(2), 3),
            r"`denoise\(x_t, t\)` must have the shape \(2,\).*found \(1,\)",
        ),
    ],
)
def test_errors_say_what_was_expected_what_was_found_and_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# another library's --------------------------------------------------------------------------------------------


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed; it only checks this schedule")


def scheduler(diffusers, n_times, prediction):
    return diffusers.DDIMScheduler(
        num_train_timesteps=n_times,
        beta_schedule="squaredcos_cap_v2",
        prediction_type={"noise": "epsilon", "velocity": "v_prediction"}[prediction],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@pytest.mark.parametrize("n_times", [100, 2000])
def test_levels_equal_those_of_diffusers(diffusers, n_times):
    """Theirs are products of float32 numbers; the last β leaves them three digits."""
    theirs = scheduler(diffusers, n_times, "noise").alphas_cumprod
    np.testing.assert_allclose(Schedule(n_times).alpha(torch.arange(n_times)) ** 2, theirs, rtol=2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("n_steps", [4, 20, 100])
def test_the_walk_equals_that_of_diffusers(diffusers, n_steps, prediction, eta):
    """One network, whatever it is, asked along both walks; one that predicts noise calls for some digits."""
    schedule, theirs = Schedule(100), scheduler(diffusers, 100, prediction)

    def network(x, t):
        return torch.tanh(x + t.double()[:, None] / 100)

    def denoise(x, t):
        return schedule.parts(x, network(x, t), t, prediction).x0

    start = normal(3, 2)
    theirs.set_timesteps(n_steps)
    assert theirs.timesteps.tolist() == schedule.steps(n_steps).tolist()
    stream, x = torch.Generator().manual_seed(5), start
    for t in theirs.timesteps:
        draw = torch.randn(3, 2, generator=stream, dtype=torch.float64)
        step = theirs.step(network(x, t.expand(3)), t, x, eta=eta, variance_noise=draw if eta else None)
        x = step.prev_sample
    found = schedule.walk(denoise, start, n_steps, eta=eta, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(found, x, rtol=5e-3)
