"""Expected counts of a spot from its histology and place: depth and composition, as :mod:`stgen.experts._stack` see them.

B batch, F histology features, G genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ...experts._stack import Experts
from ...nn._counts import composition, normalized
from ...nn._network import Batch


class ExpectedCounts(Experts):
    """Log depth (B,) and log composition (B, G) expected of a spot."""

    def __init__(self, n_features: int, n_genes: int, **options: bool) -> None:
        super().__init__(n_features, (1, n_genes), **options)
        # beside the ridge's buffers, where checkpoints have it
        self.linear.register_buffer("target_total", torch.ones(()))

    @property
    def target_total(self) -> Tensor:
        """Median panel total of training spots, to which expression is normalised."""
        return self.linear.get_buffer("target_total")

    def forward(self, features: Tensor, xy: Tensor, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``fold`` (B,) asks the experts fitted without the spot's section; without it those fitted on all answer."""
        answer = self.answers(features, xy, fold)
        return answer[:, 0], composition(answer[:, 1:])

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``counts``, ``fold``
        and ``patch``.
        """
        total = torch.cat([batch["counts"].sum(-1) for batch in batches])
        self.target_total.copy_(total.median().clamp(min=1.0))
        super().fit(_WithTargets(batches, self.target_total))


class _WithTargets:
    """Batches with log depth and depth-normalised expression as targets, iterable again and again."""

    def __init__(self, batches: Iterable[Batch], target_total: Tensor) -> None:
        self.batches, self.target_total = batches, target_total

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            depth = batch["counts"].sum(-1, keepdim=True).clamp(min=1.0).log()
            expression = normalized(batch["counts"], self.target_total)
            yield {**batch, "targets": torch.cat([depth, expression], dim=-1)}
