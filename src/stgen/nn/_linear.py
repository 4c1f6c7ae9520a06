"""The linear path: ridge from histology and place to whatever a model asks of a spot, cross-fitted over sections.

Few spots, many features: what a ridge can learn in closed form is not left to gradients. A network then learns
what is not linear. While it trains it must meet the errors that the path will make on a *new* section, so a training
spot is answered by weights fitted without its section (patient, where registered); new spots by weights fitted on all.
The same left-out sections choose the penalty and whether place helps at all: across patients it usually does not.

B batch, F histology features, W plane waves, P inputs of the ridge, Y targets, S folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ._network import Batch
from ._positions import periods, plane_waves

N_FOLDS = 5
PENALTIES = [10.0**p for p in torch.arange(0.0, 5.5, 0.5).tolist()]
PLACE_SCALES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
PLACE_EXPLAINS = 0.01
"""Share of the variance of left-out sections that place has to add. With few patients it seems to add a little by chance,
and what it then says of a new patient is wrong."""
N_PERIODS, N_DIRECTIONS = 6, 8
N_COMPONENTS = 256
ROUGHNESS = 1.5
"""A wave's prior amplitude falls with this power of its period: long waves first, as in a smooth random field."""


class LinearPath(nn.Module):
    """Targets of a spot, linear in histology and waves of place.

    ``blocks`` are numbers of targets, in order; each block chooses a penalty of its own, the last one the place. The
    ridge charges all features alike once they are standardised; with ``standardise=False`` features keep their spread,
    which then says how far each is trusted.
    """

    mean: Tensor
    sd: Tensor
    rotation: Tensor
    weight: Tensor
    offset: Tensor
    period: Tensor
    place_scale: Tensor

    def __init__(
        self, n_features: int, blocks: Sequence[int], *, use_place: bool = True, standardise: bool = True
    ) -> None:
        super().__init__()
        self.use_place, self.standardise = use_place, standardise
        self.blocks = [slice(sum(blocks[:i]), sum(blocks[: i + 1])) for i in range(len(blocks))]
        n_targets = sum(blocks)
        self.n_waves = 2 * N_PERIODS * N_DIRECTIONS if use_place else 0
        n_rotated = min(n_features, N_COMPONENTS)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("sd", torch.ones(n_features))
        self.register_buffer("rotation", torch.eye(n_features, n_rotated))
        self.register_buffer("weight", torch.zeros(N_FOLDS + 1, n_rotated + self.n_waves, n_targets))
        self.register_buffer("offset", torch.zeros(N_FOLDS + 1, n_targets))
        self.register_buffer("period", periods(N_PERIODS, 1_000.0, 10_000.0))
        self.register_buffer("place_scale", torch.zeros(()))

    def standardised(self, histology: Tensor) -> Tensor:
        """Histology (B, F) with the training spots' mean and, unless it is to stay, spread taken out."""
        z = ((histology - self.mean) / self.sd).clamp(-10, 10)
        return z if self.standardise else z * self.sd

    def waves(self, xy: Tensor) -> Tensor:
        """Plane waves (B, W) of a place."""
        amplitude = (self.period / self.period.max()) ** ROUGHNESS
        waves = plane_waves(xy, self.period, N_DIRECTIONS).unflatten(-1, (N_PERIODS, -1)) * amplitude[:, None]
        return waves.flatten(-2) * math.sqrt(2.0)

    @property
    def n_inputs(self) -> int:
        """Width P of what the ridge sees."""
        return self.weight.shape[1]

    def inputs(self, histology: Tensor, xy: Tensor) -> Tensor:
        """What the ridge sees (B, P): histology standardised and rotated, and the waves of place."""
        inputs = self.standardised(histology) @ self.rotation
        return torch.cat([inputs, self.waves(xy)], dim=-1) if self.use_place else inputs

    def answers(self, inputs: Tensor, fold: Tensor | None = None) -> Tensor:
        """(B, Y): what is expected of each target.

        ``fold`` (B,) names the weights fitted without the spot's section; without it the full fit answers.
        """
        if fold is None:
            return inputs @ self.weight[-1] + self.offset[-1]
        answer = inputs.new_empty(len(inputs), self.offset.shape[1])
        for f in fold.unique().tolist():
            rows = fold == f
            answer[rows] = inputs[rows] @ self.weight[f] + self.offset[f]
        return answer

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``targets``, ``fold``."""
        self._scale(batches)
        moments = [_Moments() for _ in range(N_FOLDS)]
        for batch in batches:
            inputs = self.standardised(batch["features"])
            if self.use_place:
                inputs = torch.cat([inputs, self.waves(batch["xy"])], dim=-1)
            targets = batch["targets"]
            for f in batch["fold"].unique().tolist():
                rows = batch["fold"] == f
                moments[f].add(inputs[rows].double(), targets[rows].double())
        moments_all = _Moments.total([m for m in moments if m.n])
        n_features = len(self.mean)
        if n_features > self.rotation.shape[1]:
            top = torch.linalg.eigh(moments_all.covariance()[0][:n_features, :n_features])[1].flip(-1)
            self.rotation.copy_(top[:, : self.rotation.shape[1]])
        basis = torch.block_diag(
            self.rotation.double(), torch.eye(self.n_waves, dtype=torch.float64, device=self.mean.device)
        )
        self._solve([m.rotated(basis) if m.n else m for m in moments])

    def _scale(self, batches: Iterable[Batch]) -> None:
        n, extent = 0, 0.0
        first = second = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        for batch in batches:
            x = batch["features"].double()
            n, first, second = n + len(x), first + x.sum(0), second + x.square().sum(0)
            extent = max(extent, float(batch["xy"].abs().max()))
        mean = first / n
        self.mean.copy_(mean)
        variance = (second / n - mean.square()).clamp(min=0)
        self.sd.copy_(torch.where(variance > 1e-10, variance.sqrt(), 1.0))
        longest = max(4 * extent, 1.0)
        self.period.copy_(periods(N_PERIODS, longest / 10, longest))

    def _solve(self, folds: list[_Moments]) -> None:
        used = [f for f, m in enumerate(folds) if m.n]
        everything = _Moments.total([folds[f] for f in used])
        # variance left unexplained in sections left out: of each block, by scale of place and penalty
        left: dict[float, dict[float, list[float]]] = {}
        for scale in PLACE_SCALES if self.use_place else (0.0,):
            error = {penalty: torch.zeros_like(everything.sum_y) for penalty in PENALTIES}
            for f in used:
                rest = everything.minus(folds[f]) if len(used) > 1 else everything
                for penalty, (weight, offset) in rest.ridges(self._column_scale(scale), PENALTIES).items():
                    error[penalty] += folds[f].squared_error(weight, offset)
            share = {penalty: e / everything.spread_y().clamp(min=1e-9) for penalty, e in error.items()}
            left[scale] = {p: [float(e[block].mean()) for block in self.blocks] for p, e in share.items()}
        least = {scale: min(blocks[-1] for blocks in by.values()) for scale, by in left.items()}
        place = min(least, key=lambda scale: least[scale])
        if least[0.0] - least[place] < PLACE_EXPLAINS:
            place = 0.0
        self.place_scale.fill_(place)
        columns = self._column_scale(place)
        penalties = [min(PENALTIES, key=lambda p: left[place][p][b]) for b in range(len(self.blocks))]
        for f in range(N_FOLDS + 1):
            held_out = f < N_FOLDS and f in used and len(used) > 1
            fit = (everything.minus(folds[f]) if held_out else everything).ridges(columns, set(penalties))
            for block, penalty in zip(self.blocks, penalties, strict=True):
                weight, offset = fit[penalty]
                self.weight[f][:, block] = weight[:, block].to(self.weight.dtype)
                self.offset[f][block] = offset[block]

    def _column_scale(self, place_scale: float) -> Tensor:
        columns = torch.ones(self.weight.shape[1], dtype=torch.float64, device=self.mean.device)
        columns[self.rotation.shape[1] :] = place_scale
        return columns


class _Moments:
    """Sums of inputs and targets from which ridges and their errors follow without the rows."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        parts: tuple[Tensor, ...] = (x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))
        if self.n:
            parts = tuple(a + b for a, b in zip(self._parts(), parts, strict=True))
        self.n += len(x)
        self.sum_x, self.sum_y, self.xx, self.xy, self.yy = parts

    def _parts(self) -> tuple[Tensor, ...]:
        return self.sum_x, self.sum_y, self.xx, self.xy, self.yy

    @classmethod
    def _of(cls, n: int, parts: Iterable[Tensor]) -> _Moments:
        made = cls()
        made.n = n
        made.sum_x, made.sum_y, made.xx, made.xy, made.yy = parts
        return made

    @classmethod
    def total(cls, moments: list[_Moments]) -> _Moments:
        parts = (torch.stack(part).sum(0) for part in zip(*(m._parts() for m in moments), strict=True))
        return cls._of(sum(m.n for m in moments), parts)

    def minus(self, other: _Moments) -> _Moments:
        return self._of(self.n - other.n, (a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def rotated(self, basis: Tensor) -> _Moments:
        return self._of(
            self.n, (self.sum_x @ basis, self.sum_y, basis.T @ self.xx @ basis, basis.T @ self.xy, self.yy)
        )

    def covariance(self) -> tuple[Tensor, Tensor]:
        """Centred sums of squares: inputs with inputs, inputs with targets."""
        mean_x = self.sum_x / self.n
        return self.xx - self.n * torch.outer(mean_x, mean_x), self.xy - torch.outer(mean_x, self.sum_y)

    def spread_y(self) -> Tensor:
        return self.yy - self.sum_y.square() / self.n

    def ridges(self, columns: Tensor, penalties: Iterable[float]) -> dict[float, tuple[Tensor, Tensor]]:
        """Weights and offsets for each penalty, which is charged on the inputs times ``columns``."""
        xx, xy = self.covariance()
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
