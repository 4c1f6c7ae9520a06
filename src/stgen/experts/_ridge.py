"""The linear path: ridge from histology and place to whatever a model asks of a spot, cross-fitted over sections.

Few spots, many features: what a ridge can learn in closed form is not left to gradients. A network then learns
what is not linear. While it trains it must meet the errors that the path will make on a *new* section, so a training
spot is answered by weights fitted without its section (patient, where registered); new spots by weights fitted on all.
The same left-out sections choose the penalty and whether place helps at all: across patients it usually does not.

What histology does not show changes slowly across a section, so errors of nearby spots are alike, and a section of
thousands of spots is a few dozen observations. A share of each patch's mean is therefore taken out of inputs and
targets before the ridge is solved (generalised least squares with errors shared by a patch). The left-out sections
choose that share, too: between new patients it is large; sister sections also share what is not seen, and it is 0.

B batch, F histology features, W plane waves, P inputs of the ridge, Y targets, S folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..nn._moments import Moments, PatchSums
from ..nn._network import N_FOLDS, Batch, Each
from ..nn._positions import periods, plane_waves
from ..nn._rows import leading_axes
from ._crossfit import CrossFitted

PENALTIES = [10.0**p for p in torch.arange(0.0, 5.5, 0.5).tolist()]
PLACE_SCALES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
PLACE_EXPLAINS = 0.01
"""Share of the variance of left-out sections that place has to add. With few patients it seems to add a little by chance,
and what it then says of a new patient is wrong."""
PATCH_SHARES = (0.0, 0.5, 0.75)
"""Shares of a patch's mean that are tried."""
N_PERIODS, N_DIRECTIONS = 6, 8
N_COMPONENTS = 256
ROUGHNESS = 1.5
"""A wave's prior amplitude falls with this power of its period: long waves first, as in a smooth random field."""


class CrossFittedRidge(CrossFitted):
    """Targets of a spot, linear in histology and waves of place.

    ``blocks`` are numbers of targets, in order; each block chooses a penalty and a patch share of its own, the last one
    the place. The ridge charges all features alike once they are standardised; with ``standardise=False`` features
    keep their spread, which then says how far each is trusted.
    """

    mean: Tensor
    sd: Tensor
    rotation: Tensor
    weight: Tensor
    offset: Tensor
    period: Tensor
    place_scale: Tensor
    patch_share: Tensor

    def __init__(
        self, n_features: int, blocks: Sequence[int], *, use_place: bool = True, standardise: bool = True
    ) -> None:
        super().__init__(N_FOLDS, sum(blocks))
        self.use_place, self.standardise = use_place, standardise
        self.blocks = [slice(sum(blocks[:i]), sum(blocks[: i + 1])) for i in range(len(blocks))]
        self.n_waves = 2 * N_PERIODS * N_DIRECTIONS if use_place else 0
        n_rotated = min(n_features, N_COMPONENTS)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("sd", torch.ones(n_features))
        self.register_buffer("rotation", torch.eye(n_features, n_rotated))
        self.register_buffer("weight", torch.zeros(N_FOLDS + 1, n_rotated + self.n_waves, self.n_targets))
        self.register_buffer("offset", torch.zeros(N_FOLDS + 1, self.n_targets))
        self.register_buffer("period", periods(N_PERIODS, 1_000.0, 10_000.0))
        self.register_buffer("place_scale", torch.zeros(()))
        self.register_buffer("patch_share", torch.zeros(len(self.blocks)))

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

    def member(self, inputs: Tensor, f: int) -> Tensor:
        """(B, Y): what is expected of each target."""
        return inputs @ self.weight[f] + self.offset[f]

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit on training rows; a batch has ``features`` (histology with neighbours), ``xy``, ``targets``, ``fold``.

        With ``patch`` (B,), numbers of patches that lie in one fold each, errors may be shared by patches.
        """
        n, n_patches = self._scale(batches)
        if len(self.mean) > self.rotation.shape[1]:
            features = Each(lambda batch: self.standardised(batch["features"]), batches)
            self.rotation.copy_(leading_axes(features, n, self.rotation.shape[1]))
        moments = [Moments() for _ in range(N_FOLDS)]
        patches = PatchSums(n_patches, self.n_inputs, self.n_targets, self.mean)
        for batch in batches:
            inputs, targets = self.inputs(batch["features"], batch["xy"]), batch["targets"]
            for f in batch["fold"].unique().tolist():
                rows = batch["fold"] == f
                moments[f].add(inputs[rows].double(), targets[rows].double())
            if n_patches:
                patches.add(batch["patch"], batch["fold"], inputs, targets)
        for f, moment in enumerate(moments):
            if moment.n:
                moment.between_xx, moment.between_xy = patches.between(f)
        self._solve(moments, PATCH_SHARES if n_patches else (0.0,))

    def _scale(self, batches: Iterable[Batch]) -> tuple[int, int]:
        """Mean, spread and extent of training spots; answers their number and that of patches, 0 if there are none."""
        n, extent, n_patches = 0, 0.0, 0
        first = second = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        for batch in batches:
            x = batch["features"].double()
            n, first, second = n + len(x), first + x.sum(0), second + x.square().sum(0)
            extent = max(extent, float(batch["xy"].abs().max()))
            if "patch" in batch:
                n_patches = max(n_patches, int(batch["patch"].max()) + 1)
        mean = first / n
        self.mean.copy_(mean)
        variance = (second / n - mean.square()).clamp(min=0)
        self.sd.copy_(torch.where(variance > 1e-10, variance.sqrt(), 1.0))
        longest = max(4 * extent, 1.0)
        self.period.copy_(periods(N_PERIODS, longest / 10, longest))
        return n, n_patches

    def _solve(self, folds: list[Moments], shares: Sequence[float]) -> None:
        used = [f for f, m in enumerate(folds) if m.n]
        everything = Moments.total([folds[f] for f in used])
        # variance left unexplained in sections left out, by scale of place: of each block, by patch share and penalty
        left: dict[float, dict[tuple[float, float], list[float]]] = {}
        for scale in PLACE_SCALES if self.use_place else (0.0,):
            columns = self._column_scale(scale)
            error = {(s, p): torch.zeros_like(everything.sum_y) for s in shares for p in PENALTIES}
            for f in used:
                rest = everything.minus(folds[f]) if len(used) > 1 else everything
                for share in shares:
                    for penalty, (weight, offset) in rest.ridges(columns, PENALTIES, share).items():
                        error[share, penalty] += folds[f].squared_error(weight, offset)
            relative = {how: e / everything.spread_y().clamp(min=1e-9) for how, e in error.items()}
            left[scale] = {
                how: [float(e[block].mean()) for block in self.blocks] for how, e in relative.items()
            }
        least = {scale: min(blocks[-1] for blocks in by.values()) for scale, by in left.items()}
        place = min(least, key=lambda scale: least[scale])
        if least[0.0] - least[place] < PLACE_EXPLAINS:
            place = 0.0
        self.place_scale.fill_(place)
        best = [min(left[place], key=lambda how: left[place][how][b]) for b in range(len(self.blocks))]
        self.patch_share.copy_(torch.tensor([share for share, _ in best]))
        columns = self._column_scale(place)
        for f in range(N_FOLDS + 1):
            held_out = f < N_FOLDS and f in used and len(used) > 1
            rows = everything.minus(folds[f]) if held_out else everything
            fits = {
                share: rows.ridges(columns, {p for s, p in best if s == share}, share) for share, _ in best
            }
            for block, (share, penalty) in zip(self.blocks, best, strict=True):
                weight, offset = fits[share][penalty]
                self.weight[f][:, block] = weight[:, block].to(self.weight.dtype)
                self.offset[f][block] = offset[block]

    def _column_scale(self, place_scale: float) -> Tensor:
        columns = torch.ones(self.weight.shape[1], dtype=torch.float64, device=self.mean.device)
        columns[self.rotation.shape[1] :] = place_scale
        return columns
