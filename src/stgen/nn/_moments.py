"""Sums over training rows from which ridges and their errors follow without the rows.

Sums add up and come apart: those of all sections but one are the total less that section's.

P inputs of the ridge, Y targets.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 4_096
"""Patches that are made float64 at once."""


class Moments:
    """Sums of inputs and targets from which ridges and their errors follow without the rows."""

    sum_x: Tensor
    sum_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    between_xx: Tensor
    """Σ over patches of spots × mean mean', inputs with inputs; with targets: ``between_xy``."""
    between_xy: Tensor

    def __init__(self) -> None:
        self.n = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        parts: tuple[Tensor, ...] = (x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))
        if self.n:
            so_far = self.sum_x, self.sum_y, self.xx, self.xy, self.yy
            parts = tuple(a + b for a, b in zip(so_far, parts, strict=True))
        self.n += len(x)
        self.sum_x, self.sum_y, self.xx, self.xy, self.yy = parts

    def _parts(self) -> tuple[Tensor, ...]:
        return self.sum_x, self.sum_y, self.xx, self.xy, self.yy, self.between_xx, self.between_xy

    @classmethod
    def _of(cls, n: int, parts: Iterable[Tensor]) -> Moments:
        made = cls()
        made.n = n
        made.sum_x, made.sum_y, made.xx, made.xy, made.yy, made.between_xx, made.between_xy = parts
        return made

    @classmethod
    def total(cls, moments: list[Moments]) -> Moments:
        parts = (torch.stack(part).sum(0) for part in zip(*(m._parts() for m in moments), strict=True))
        return cls._of(sum(m.n for m in moments), parts)

    def minus(self, other: Moments) -> Moments:
        return self._of(self.n - other.n, (a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def covariance(self, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Centred sums of squares, inputs with inputs and inputs with targets, of rows less ``share`` of their patch's
        mean.
        """
        # of Σ (x − s m)(y − s m')' over a patch, 2s − s² of its between part are gone
        taken = share * (2 - share)
        kept = (1 - share) ** 2 * self.sum_x / self.n
        return (
            self.xx - taken * self.between_xx - torch.outer(kept, self.sum_x),
            self.xy - taken * self.between_xy - torch.outer(kept, self.sum_y),
        )

    def spread_y(self) -> Tensor:
        return self.yy - self.sum_y.square() / self.n

    def ridges(
        self, columns: Tensor, penalties: Iterable[float], share: float
    ) -> dict[float, tuple[Tensor, Tensor]]:
        """Weights and offsets for each penalty, which is charged on the inputs times ``columns``."""
        xx, xy = self.covariance(share)
        values, vectors = torch.linalg.eigh(xx * columns[:, None] * columns)
        projected = vectors.T @ (xy * columns[:, None])
        result = {}
        for penalty in penalties:
            scaled = vectors @ (projected / (values.clamp(min=0) + penalty)[:, None])
            weight = scaled * columns[:, None]
            result[penalty] = weight, (self.sum_y - self.sum_x @ weight) / self.n
        return result

    def squared_error(self, weight: Tensor, offset: Tensor) -> Tensor:
        """Σ (y − x w − b)² of each target."""
        fitted = (
            (weight * (self.xx @ weight)).sum(0)
            + 2 * (self.sum_x @ weight) * offset
            + self.n * offset.square()
        )
        return self.yy - 2 * ((weight * self.xy).sum(0) + offset * self.sum_y) + fitted


class PatchSums:
    """Sums of inputs and targets over every patch."""

    def __init__(self, n_patches: int, n_inputs: int, n_targets: int, like: Tensor) -> None:
        self.n_inputs = n_inputs
        self.sums = like.new_zeros(n_patches, n_inputs + n_targets)
        self.n_spots, self.fold = like.new_zeros(n_patches), like.new_zeros(n_patches, dtype=torch.long)

    def add(self, patch: Tensor, fold: Tensor, x: Tensor, y: Tensor) -> None:
        self.sums.index_add_(0, patch, torch.cat([x, y], dim=1).to(self.sums))
        self.n_spots.index_add_(0, patch, torch.ones_like(patch, dtype=self.n_spots.dtype))
        self.fold[patch] = fold

    def between(self, fold: int) -> tuple[Tensor, Tensor]:
        """Σ over the patches of a fold of spots × mean mean': inputs with inputs, inputs with targets."""
        rows = ((self.fold == fold) & (self.n_spots > 0)).nonzero()[:, 0]
        both = self.sums.new_zeros(self.n_inputs, self.sums.shape[1], dtype=torch.float64)
        for part in rows.split(CHUNK):
            sums = self.sums[part].double() / self.n_spots[part, None].sqrt()
            both += sums[:, : self.n_inputs].T @ sums
        xx, xy = both.tensor_split([self.n_inputs], dim=1)
        return xx, xy
