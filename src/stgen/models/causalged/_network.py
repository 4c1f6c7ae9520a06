"""The CausalGeD network: gene tokens, diffusion inside an autoregressive order over sets of genes.

A sequence is a set of genes of one spatial dataset, a token is one gene. What is generated is the *residual* of a gene: the
latent of its spatial pattern less that of its hint (see :mod:`._views`). Measured genes are clean context, then sets of
genes are generated one after another, each by diffusion, seeing all that came before. The order is that of
:mod:`stgen.nn._grouped`: condition tokens have group −1, measured genes 0, the sets 1 to S.

B sets of genes, m genes of a set, C context tokens, Q queries, L length of a latent, R identity, D width.

A batch holds, all (B, m, …):

- ``identity``   (…, R) the reference's profile of each gene, and facts
- ``hint``       (…, L) latents of hints
- ``residual``   (…, L) residuals of measured genes that may be context, 0 for targets
- ``is_target``  (…) which genes are targets
- ``target``     (…, L) residuals of targets; only where targets are loaded
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...nn._diffusion import Schedule
from ...nn._grouped import Cache, GroupedDecoder
from ...nn._network import Batch, Loss, Network
from ...nn._positions import periods, sinusoid
from ._config import CausalGeDConfig
from ._parts import PlainBlock, Pool, drawn_steps, step_weights

MAX_TARGETS = 64
"""Genes of a set that are generated in training at most."""


CLIP = 4.0
"""Residuals have unit variance; none is believed to be larger."""


class CausalGeDNetwork(Network):
    """See the module's text.

    Parameters
    ----------
    config
        Architecture.
    n_identity
        R.
    genes, measured
        Names of the reference's genes, and of those that are measured, found before training.
    shapes
        Shapes of the statistics that :meth:`keep` was given.
    """

    share: Tensor
    """() how much of the generated residual is added, 0 to 1: what validation genes say."""

    def __init__(
        self,
        config: CausalGeDConfig,
        *,
        n_identity: int,
        genes: Sequence[str] = (),
        measured: Sequence[str] = (),
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.keep(
            {name: torch.zeros(tuple(shape)) for name, shape in (shapes or {}).items()}, genes, measured
        )
        width, length = config.width, config.n_axes
        self.schedule = Schedule(config.n_times)
        self.register_buffer("share", torch.tensor(1.0))
        self.identity = nn.Linear(n_identity, width)
        self.latent = nn.Linear(length, width, bias=False)
        self.hint = nn.Linear(length, width)
        self.clean = nn.Parameter(0.02 * torch.randn(width))
        self.register_buffer("periods", periods(16, 4.0, 4.0 * config.n_times), persistent=False)
        self.time = nn.Linear(32, width)
        self.pool = Pool(width, config.n_condition)
        self.decoder = GroupedDecoder(
            PlainBlock(width, config.n_heads, ffn_ratio=config.ffn_ratio, dropout=config.dropout)
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, length)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    # ---------------------------------------------------------------------------------------------------- the tokens

    def context_tokens(self, residual: Tensor, identity: Tensor) -> Tensor:
        """Clean genes: residual and identity."""
        return self.latent(residual) + self.identity(identity) + self.clean

    def query_tokens(self, noisy: Tensor, t: Tensor, hint: Tensor, identity: Tensor) -> Tensor:
        """Noisy genes: the same projection, identity, hint and diffusion time."""
        time = self.time(sinusoid(t.float(), cast(Tensor, self.periods)))
        return self.latent(noisy) + self.identity(identity) + self.hint(hint) + time[:, None]

    # --------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Loss:
        """Weighted squared error of the predicted noise or velocity of targets."""
        is_target, device = batch["is_target"], batch["is_target"].device
        random = torch.rand(is_target.shape, device=device, generator=generator)
        n_targets = min(int(is_target.sum(1).min()), MAX_TARGETS)
        n_context = min(int((~is_target).sum(1).min()), self.config.max_context)
        # of targets and of context genes those with the smallest random numbers, in their order
        target = random.masked_fill(~is_target, 2.0).argsort(1)[:, :n_targets]
        measured = random.masked_fill(is_target, 2.0).argsort(1)[:, :n_context]
        step = drawn_steps(n_targets, self.config.set_decay, generator, device)
        x0 = _take(batch["target"], target)
        b = len(x0)
        t = torch.randint(self.schedule.n_times, (b,), device=device, generator=generator)
        noise = torch.randn(x0.shape, device=device, generator=generator)
        context, group = self._context(batch, measured)
        h = self.decoder(
            torch.cat([context, self.context_tokens(x0, _take(batch["identity"], target))], dim=1),
            torch.cat([group, step]),
            self.query_tokens(
                self.schedule.noised(x0, t, noise),
                t,
                _take(batch["hint"], target),
                _take(batch["identity"], target),
            ),
            step,
            context,
        )
        goal = self.schedule.target(x0, noise, t, self._kind)
        error = (self.answer(self.norm(h)) - goal).square().mean(-1)
        weight = step_weights(step)
        return Loss((error * weight).sum() / (weight.sum() * b), {})

    @property
    def _kind(self) -> Literal["noise", "velocity"]:
        return cast(Literal["noise", "velocity"], self.config.prediction)

    def _context(self, batch: Batch, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Condition tokens and measured genes (B, C, D), and their groups (C,)."""
        device = measured.device
        condition = self.pool(self.identity(batch["identity"]))
        tokens, group = [condition], [torch.full((condition.shape[1],), -1, device=device)]
        if self.config.use_context:
            tokens.append(
                self.context_tokens(_take(batch["residual"], measured), _take(batch["identity"], measured))
            )
            group.append(torch.zeros(measured.shape[1], dtype=torch.int64, device=device))
        return torch.cat(tokens, dim=1), torch.cat(group)

    # --------------------------------------------------------------------------------------------------- generating

    @torch.no_grad()
    def impute(
        self, batch: Batch, *, step: Tensor, noise: Tensor, n_steps: int, at_once: int = 256
    ) -> Tensor:
        """Residuals (B, w, L) of targets, set after set; B draws differ in their noise.

        Parameters
        ----------
        batch
            Of one set of genes (1, m, …): measured genes and targets.
        step
            (w,) autoregressive step of each target, from 1.
        noise
            (B, w, L) standard normal.
        n_steps
            Reverse steps of the diffusion.
        at_once
            Genes of a set at most that see each other; a larger set is generated in parts.
        """
        b = len(noise)
        is_target = batch["is_target"][0]
        target, measured = is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0]
        identity, hint = batch["identity"][:, target], batch["hint"][:, target]
        context, group = self._context(batch, measured[None, : self.config.max_context])
        cache = self.decoder.extend(self.decoder.start(), context.expand(b, -1, -1), group, context)
        out = torch.zeros_like(noise)
        # at large t a small error in the noise is a large one in what it hides
        clip = CLIP if self._kind == "noise" else None
        for number in step.unique().tolist():
            everyone = (step == number).nonzero()[:, 0]
            for here in everyone.split(at_once):
                own, own_hint = identity[:, here].expand(b, -1, -1), hint[:, here].expand(b, -1, -1)
                group = torch.full((len(here),), number, device=noise.device)
                denoise = partial(self._denoised, cache, own, own_hint, group, context)
                out[:, here] = self.schedule.walk(denoise, noise[:, here], n_steps, clip=clip)
            if number < int(step.max()):
                tokens = self.context_tokens(out[:, everyone], identity[:, everyone].expand(b, -1, -1))
                group = torch.full((len(everyone),), number, device=noise.device)
                cache = self.decoder.extend(cache, tokens, group, context)
        return out

    def _denoised(
        self,
        cache: Cache,
        identity: Tensor,
        hint: Tensor,
        group: Tensor,
        condition: Tensor,
        x: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Clean residuals that the network sees in noisy ones."""
        h = self.decoder.read(cache, self.query_tokens(x, t, hint, identity), group, condition)
        return self.schedule.parts(x, self.answer(self.norm(h)), t, self._kind).x0

    # ----------------------------------------------------------------------------------------------- before training

    def keep(self, statistics: Mapping[str, Tensor], genes: Sequence[str], measured: Sequence[str]) -> None:
        """Keep what was found in the reference and in measured genes with the weights."""
        self.genes, self.measured = list(genes), list(measured)
        self.statistics = list(statistics)
        for name, tensor in statistics.items():
            self.register_buffer(f"statistic_{name}", tensor.float())

    def statistic(self, name: str) -> Tensor:
        """What :meth:`keep` was given."""
        return cast(Tensor, getattr(self, f"statistic_{name}"))

    def sizes(self) -> dict[str, Any]:
        """Genes, and shapes of the statistics."""
        shapes = {name: list(self.statistic(name).shape) for name in self.statistics}
        return {"genes": self.genes, "measured": self.measured, "shapes": shapes}


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, k, …) of x (B, m, …)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
