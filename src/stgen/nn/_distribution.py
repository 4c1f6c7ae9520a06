"""What is read from predicted count distributions: one number a gene, or arrays collected batch by batch.

B batch, n genes of a bucket (they share a vocabulary size), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._counts import distribution_moments, distribution_quantile

Buckets = list[tuple[list[int], Tensor]]
"""Genes (columns) that share a vocabulary size, and their probabilities (B, n, V)."""


@dataclass
class Prediction:
    """Count distributions of one path's genes: one (B, n, V_b) a bucket of genes."""

    probability: list[Tensor]
    buckets: list[tuple[list[int], int]]
    """Which genes (columns) a bucket holds, and its vocabulary size."""

    def by_bucket(self) -> Buckets:
        """Genes and probabilities of every bucket."""
        return [(columns, p) for (columns, _), p in zip(self.buckets, self.probability, strict=True)]


def chosen(buckets: Iterable[tuple[Sequence[int], Tensor]], place: Mapping[int, int]) -> Buckets:
    """The part of the genes that is asked for, with where each goes in the answer."""
    result = []
    for columns, p in buckets:
        kept = [i for i, c in enumerate(columns) if c in place]
        if kept:
            result.append(([place[columns[i]] for i in kept], p if len(kept) == len(columns) else p[:, kept]))
    return result


Read = Callable[[Tensor, list[int]], Tensor]
"""Probabilities (B, n, V) and the answer's columns they belong to → a number each (B, n)."""


def read_out(buckets: Buckets, n_columns: int, read: Read) -> Tensor:
    """One number a gene from its distribution: (B, n_columns)."""
    answer = buckets[0][1].new_empty(len(buckets[0][1]), n_columns)
    for where, p in buckets:
        answer[:, where] = read(p, where).to(answer.dtype)
    return answer


def quantile(level: float) -> Read:
    return lambda p, _: distribution_quantile(p, level)


def at_level(level: Tensor) -> Read:
    return lambda p, where: (p.cumsum(-1) < level[:, where, None]).sum(-1).clamp(max=p.shape[-1] - 1)


def cumulative(count: Tensor) -> Read:
    def read(p: Tensor, where: list[int]) -> Tensor:
        wanted = count[:, where].long()
        cumulative = p.cumsum(-1).gather(-1, wanted.clamp(0, p.shape[-1] - 1)[..., None])[..., 0]
        return torch.where(wanted < 0, 0.0, cumulative.clamp(max=1.0))

    return read


READ: dict[str, Read] = {
    "mean": lambda p, _: distribution_moments(p)[0],
    "sd": lambda p, _: distribution_moments(p)[1].sqrt(),
    "median": quantile(0.5),
    "mode": lambda p, _: p.argmax(-1),
}


def expected_normalized(buckets: Buckets, n_genes: int, target: float) -> Tensor:
    """E[log1p(count / panel total × target)] with the predicted panel total."""
    total = read_out(buckets, n_genes, READ["mean"]).sum(-1).clamp(min=1.0)

    def read(p: Tensor, _: list[int]) -> Tensor:
        count = torch.arange(p.shape[-1], device=p.device, dtype=p.dtype)
        return torch.einsum("bgv,bv->bg", p, torch.log1p(count * (target / total)[:, None]))

    return read_out(buckets, n_genes, read)


class AsFirst:
    """An array seen as the only entry of one more axis in front."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = array, (1, *array.shape)

    def __setitem__(self, where: tuple[slice, slice], value: np.ndarray) -> None:
        self.array[where[1]] = value[0]


def collect(chunks: Iterator[Tensor], shape: tuple[int, int, int], out: Any) -> Any:
    """Chunks (…, B, n) of rows one after another into an array, batch by batch."""
    if out is not None and tuple(out.shape) != shape:
        n_front = int(isinstance(out, AsFirst))
        raise ValueError(f"`out` must have shape {shape[n_front:]}; got {tuple(out.shape)[n_front:]}.")
    answer = np.empty(shape, dtype=np.float32) if out is None else out
    start = 0
    for chunk in chunks:
        stop = start + chunk.shape[1]
        answer[:, start:stop] = chunk.cpu().numpy()
        start = stop
    return answer
