"""Gaussian diffusion: noise goes on by a cosine schedule, comes off along a deterministic walk.

With x0 what is generated and ε standard normal noise,

    x_t = α(t) x0 + σ(t) ε        α² + σ² = 1        v = α ε − σ x0

and a network predicts ε ("noise") or v ("velocity"; Salimans & Ho 2022); either one and x_t give both x0 and ε. Times
are the integers 0, …, T − 1, and −1 is clean: α = 1, σ = 0. The schedule is that of Nichol & Dhariwal 2021,
the walk that of Song et al. 2021 (DDIM).

α never reaches 0, but x0 from ε divides by it: at time T − 1 of 2000 an error of the network is multiplied
by 40,000. Predict the velocity, or ``clip`` the walk.

B batch, Q tokens, L latent width; any other shape (B, …) does too. Times are an integer, (B,) or (B, Q).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Prediction = Literal["noise", "velocity"]
Spacing = Literal["even", "dense_end"]
CLEAN = -1
"""The time before any noise."""
LEAST_KEPT = 0.001
"""Share of its variance that a signal keeps in one step, at least: β is clipped at .999."""


class Parts(NamedTuple):
    """What a noised tensor is made of."""

    x0: Tensor
    """The clean tensor, of the noised one's shape."""
    noise: Tensor
    """ε, of the same shape."""


@dataclass(frozen=True)
class Schedule:
    """Cosine schedule over integer times; holds no tensors, makes them where they are asked for."""

    n_times: int = 2000
    """Number T of noise levels."""
    offset: float = 0.008
    """Share of the walk cut off at its clean end: without it the first levels are too small to tell from none."""

    def __post_init__(self) -> None:
        if self.n_times < 1:
            raise ValueError(f"`n_times` must be at least 1; got {self.n_times}.")
        if self.offset < 0:
            raise ValueError(f"`offset` must not be negative; got {self.offset}.")

    # levels ------------------------------------------------------------------------------------------------------

    def alpha(self, t: Tensor | int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Share of the clean tensor at times ``t`` (…): (…)."""
        t = self._checked(t)
        # ∏ (1 − β) telescopes to a ratio of two cosines, seen from the far end of two sines; only the last β is clipped
        left = (self.n_times - 1 - t).to(dtype) / self.n_times
        return torch.where(t == self.n_times - 1, self._last, (self._angle * left).sin() / self._unit)

    def sigma(self, t: Tensor | int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Share of the noise at times ``t`` (…): (…)."""
        t = self._checked(t)
        # sin² a − sin² b = sin(a + b) sin(a − b): 1 − α² would lose half the digits at early times
        gone = (t + 1).to(dtype) / self.n_times
        angle = self._angle * gone
        variance = (2 * self._angle - angle).sin() * angle.sin() / self._unit**2
        return torch.where(t == self.n_times - 1, math.sqrt(1 - self._last**2), variance.sqrt())

    @property
    def _angle(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _unit(self) -> float:
        return math.sin(self._angle)

    @property
    def _last(self) -> float:
        before = math.sin(self._angle / self.n_times) / self._unit
        return math.sqrt(LEAST_KEPT) * before

    def _checked(self, t: Tensor | int) -> Tensor:
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.dtype == torch.bool:
            raise ValueError(f"Times must be integers; found {t.dtype}. Convert them with `t.long()`.")
        # times on an accelerator are not read: that would wait for it
        if t.device.type == "cpu" and t.numel() and (t.min() < CLEAN or t.max() >= self.n_times):
            raise ValueError(
                f"Times must lie between {CLEAN} (clean) and {self.n_times - 1}; found {int(t.min())} to "
                f"{int(t.max())}. Draw them with `torch.randint({self.n_times}, …)` or raise `n_times`."
            )
        return t

    def _scales(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of each entry, ready to multiply ``like``; in float32 at least."""
        t = self._checked(t).to(like.device)
        if t.dim() > like.dim() or any(n not in (1, m) for n, m in zip(t.shape, like.shape, strict=False)):
            raise ValueError(
                f"Times must be one integer or have the first dimensions of the tensor, {tuple(like.shape)}; found "
                f"{tuple(t.shape)}. Give one time per row, (B,), or per token, (B, Q)."
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (*t.shape, *[1] * (like.dim() - t.dim()))
        return self.alpha(t, dtype=dtype).view(shape), self.sigma(t, dtype=dtype).view(shape)

    # noise goes on -----------------------------------------------------------------------------------------------

    def noised(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_t (B, Q, L) from a clean tensor and standard normal noise of its shape."""
        _check_shape("noise", noise, x0)
        alpha, sigma = self._scales(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | int, prediction: Prediction) -> Tensor:
        """What the network should have predicted from x_t: (B, Q, L)."""
        _check_choice("prediction", prediction, get_args(Prediction))
        _check_shape("noise", noise, x0)
        if prediction == "noise":
            return noise
        alpha, sigma = self._scales(t, x0)
        return alpha * noise - sigma * x0

    # and comes off -----------------------------------------------------------------------------------------------

    def parts(self, x_t: Tensor, predicted: Tensor, t: Tensor | int, prediction: Prediction) -> Parts:
        """Clean tensor and noise that a prediction (B, Q, L) says x_t is made of."""
        _check_choice("prediction", prediction, get_args(Prediction))
        _check_shape("predicted", predicted, x_t)
        alpha, sigma = self._scales(t, x_t)
        if prediction == "noise":
            return Parts((x_t - sigma * predicted) / alpha, predicted)
        return Parts(alpha * x_t - sigma * predicted, sigma * x_t + alpha * predicted)

    def steps(self, n: int, *, spacing: Spacing = "even") -> Tensor:
        """``n`` different times (n,), falling from T − 1; the step from the last one ends at clean.

        ``"even"`` leaves equal gaps, ``"dense_end"`` gaps that shrink linearly towards clean.
        """
        _check_choice("spacing", spacing, get_args(Spacing))
        if not 1 <= n <= self.n_times:
            raise ValueError(
                f"A walk needs between 1 and {self.n_times} steps; got {n}. Take fewer, or raise `n_times`."
            )
        rank = torch.arange(n, 0, -1)
        share = rank.double() / n
        times = (self.n_times * (share if spacing == "even" else share**2)).round().long() - 1
        return torch.maximum(times, rank - 1)  # near clean, squares lie closer than integers

    def walk(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        n_steps: int,
        *,
        spacing: Spacing = "even",
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        clip: float | None = None,
    ) -> Tensor:
        """From standard normal noise (B, Q, L) to a clean tensor of its shape.

        Gradients are kept where the caller keeps them; sampling belongs under :func:`torch.no_grad`.

        Parameters
        ----------
        denoise
            ``denoise(x_t, t) -> x0`` for times (B,); :meth:`parts` makes x0 of a network's prediction.
        noise
            Where the walk starts. With ``eta=0`` nothing else is random: noise that is keyed by observation
            makes results that do not depend on the batch.
        n_steps, spacing
            Which times are visited, see :meth:`steps`.
        eta
            0 walks deterministically, 1 draws at each step all the noise that the reversed diffusion has.
        generator
            Where that noise comes from; needed for ``eta`` above 0.
        clip
            Largest magnitude of a predicted x0; larger ones are moved there, and the noise follows.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie between 0 (deterministic) and 1; got {eta}.")
        if eta > 0 and generator is None:
            raise ValueError(
                f"`eta={eta}` draws noise and needs a `generator`; got None. "
                "Pass `torch.Generator().manual_seed(seed)`, or walk with `eta=0`."
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"`clip` must be positive, or None for no bound; got {clip}.")
        times = self.steps(n_steps, spacing=spacing)
        levels = [*self._levels(times), Level(1.0, 0.0)]
        x = noise
        for t, (here, there) in zip(times.tolist(), pairwise(levels), strict=True):
            x0 = denoise(x, torch.full(noise.shape[:1], t, device=noise.device))
            _check_shape("denoise(x_t, t)", x0, x)
            x = _step(x, x0 if clip is None else x0.clamp(-clip, clip), here, there, eta, generator)
        return x

    def _levels(self, times: Tensor) -> list[Level]:
        # plain numbers: a walk never asks an accelerator for them, and they leave the dtype of x alone
        alpha, sigma = (scale(times, dtype=torch.float64).tolist() for scale in (self.alpha, self.sigma))
        return [Level(*both) for both in zip(alpha, sigma, strict=True)]


class Level(NamedTuple):
    """α and σ of one time."""

    alpha: float
    sigma: float


def _step(
    x: Tensor, x0: Tensor, here: Level, there: Level, eta: float, generator: torch.Generator | None
) -> Tensor:
    """From one noise level to a lower one: part of the old noise is kept, part is drawn anew."""
    noise = (x - here.alpha * x0) / here.sigma
    fresh = eta * there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2)
    kept = math.sqrt(max(there.sigma**2 - fresh**2, 0.0))
    x = there.alpha * x0 + kept * noise
    if fresh > 0 and generator is not None:
        x = x + fresh * torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(
            x.device
        )
    return x


def _check_shape(name: str, found: Tensor, like: Tensor) -> None:
    if found.shape != like.shape:
        raise ValueError(
            f"`{name}` must have the shape {tuple(like.shape)} of the tensor it belongs to; found "
            f"{tuple(found.shape)}. Expand it first: broadcasting would share its values."
        )


def _check_choice(name: str, found: str, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}; got {found!r}.")
