"""k-means in slices of rows: greedy k-means++ seeds, Lloyd's steps, no empty cluster, never rows × centres at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LLOYD_STEPS, _LLOYD_TOLERANCE = 100, 1e-5
_SEEDED_FROM = 32  # points per centre that seeding looks at; more are slower and no better
_RESTARTS, _CHEAP = 5, 4_000_000  # restarts where points × centres are no more than this
_SLICE = 1 << 22  # numbers that a step over rows may hold in float64: 32 MB
_TWINS = 1e-12  # squared distance, relative to squared lengths, below which two points are one


def rows_at_once(width: int) -> int:
    return max(64, _SLICE // max(width, 1))


def spread_rows(n: int, n_picked: int, generator: torch.Generator) -> Tensor:
    """Row numbers, ascending: one at random from each of ``n_picked`` equal stretches, so that no section is missed."""
    edge = torch.arange(n_picked + 1) * n // n_picked
    length = edge.diff()
    within = (torch.rand(n_picked, generator=generator, dtype=torch.float64) * length).long()
    return edge[:-1] + torch.minimum(within, length - 1)


class Nearest(NamedTuple):
    label: Tensor
    """(n,) int64"""
    distance: Tensor
    """(n,) squared"""


class Clusters(NamedTuple):
    centres: Tensor
    label: Tensor
    inertia: Tensor


class Members:
    """How many rows each cluster has, and their sum."""

    def __init__(self, size: Tensor, total: Tensor) -> None:
        self.size, self.total = size, total

    @classmethod
    def none(cls, k: int, like: Tensor) -> Members:
        size = torch.zeros(k, dtype=torch.int64, device=like.device)
        return cls(size, like.new_zeros(k, like.shape[1]))

    def add(self, label: Tensor, values: Tensor) -> None:
        self.size += label.bincount(minlength=len(self.size))
        self.total.index_add_(0, label, values)

    def means(self, *, otherwise: Tensor) -> Tensor:
        """Means of the members; what to put where there are none."""
        mean = self.total / self.size.clamp_min(1)[:, None]
        return torch.where(self.size[:, None] > 0, mean, otherwise.to(mean))


def nearest_centre(points: Tensor, centres: Tensor) -> Nearest:
    """The nearest centre of each point, in slices: never n × K at once."""
    half = centres.square().sum(1) / 2
    found = [
        torch.addmm(half, part, centres.T, alpha=-1).min(1)
        for part in points.split(rows_at_once(max(centres.shape)))
    ]
    value, label = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Nearest(label, (points.square().sum(1) + 2 * value).clamp_min(0))


def kmeans(points: Tensor, k: int, generator: torch.Generator) -> Clusters:
    """Lloyd's steps from greedy k-means++ seeds; the best of several where that is cheap.

    Every cluster has members; there are fewer than ``k`` where there are fewer distinct points.
    """
    n_runs = _RESTARTS if len(points) * k <= _CHEAP else 1
    few = points[spread_rows(len(points), min(len(points), _SEEDED_FROM * k), generator).to(points.device)]
    starts = [_seeds(few, k, generator) for _ in range(n_runs)]
    if len(starts[0]) < k and len(few) < len(points):  # twins among the few are not twins of all
        starts = [_seeds(points, k, generator)]
    runs = [_lloyd(points, start) for start in starts]
    return min(runs, key=lambda run: run.inertia.item())


def _seeds(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Points far from each other: of several drawn by squared distance, the one that helps most (k-means++)."""
    n_drawn = 2 + int(torch.tensor(float(k)).log())
    length = points.square().sum(1)
    chosen = torch.randint(len(points), (1,), generator=generator).to(points.device)
    nearest = _squared(points, length, chosen)[0]
    while len(chosen) < k:
        mass = nearest.cumsum(0)
        if mass[-1] <= 0:  # every point is the twin of a seed
            break
        at = torch.rand(n_drawn, generator=generator, dtype=mass.dtype).to(mass.device) * mass[-1]
        drawn = torch.searchsorted(mass, at, right=True).clamp_max(len(points) - 1)
        nearer = torch.minimum(nearest, _squared(points, length, drawn))
        best = nearer.sum(1).argmin()
        chosen, nearest = torch.cat([chosen, drawn[best, None]]), nearer[best]
    return points[chosen]


def _squared(points: Tensor, length: Tensor, rows: Tensor) -> Tensor:
    """(rows, points) squared distances, exactly zero between twins."""
    scale = length + length[rows, None]
    distance = torch.addmm(scale, points[rows], points.T, alpha=-2)
    return distance.where(distance > _TWINS * scale, 0.0)


def _lloyd(points: Tensor, centres: Tensor) -> Clusters:
    """Means of members, again and again, until the gain is negligible."""
    centres, found = _filled(points, centres)
    for _ in range(_LLOYD_STEPS):
        before = found.distance.sum()
        members = Members.none(len(centres), points)
        members.add(found.label, points)
        centres, found = _filled(points, members.means(otherwise=centres))
        if before - found.distance.sum() <= _LLOYD_TOLERANCE * before:
            break
    return Clusters(centres, found.label, found.distance.sum())


def _filled(points: Tensor, centres: Tensor) -> tuple[Tensor, Nearest]:
    """Centres that all have members: one without moves to the point that is farthest from its own."""
    found = nearest_centre(points, centres)
    for _ in range(len(centres)):  # a moved centre can take another's last points: look again
        size = found.label.bincount(minlength=len(centres))
        empty = (size == 0).nonzero()[:, 0]
        if not len(empty):
            break
        movable = found.distance.where(size[found.label] > 1, -1.0)
        centres = centres.index_copy(0, empty, points[movable.topk(len(empty)).indices])
        found = nearest_centre(points, centres)
    return centres, found
