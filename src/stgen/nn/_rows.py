"""All rows of something that comes in parts: gathered without a second copy, and the axes along which they vary most.

n rows, B rows of a part, F numbers of a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

NEGLIGIBLE = 1e-10
"""Share of the largest variance from which on an axis is none: rows in single precision vary by no less."""


def gathered(parts: Iterable[Tensor], n: int) -> Tensor:
    """Parts (B, …) one below the other (n, …), each written where it stays.

    A list of small parts would lie scattered among the large ones they are made from, whose memory could then not be
    used again: gigabytes for megabytes.
    """
    whole, start = torch.empty(0), 0
    for part in parts:
        if start == 0:
            whole = part.new_empty(n, *part.shape[1:])
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def leading_axes(rows: Iterable[Tensor], n: int, n_axes: int, *, centred: bool = True) -> Tensor:
    """Orthonormal axes (F, n_axes) along which n rows vary most, the first most of all; 0 beyond their rank.

    Sums of products of features tell, or, where rows are fewer, products of rows: cost follows the smaller of n and F.

    Parameters
    ----------
    rows
        In parts (B, F) that can be iterated again.
    n
        Their number.
    n_axes
        Number of axes.
    centred
        Measure rows from their mean, not from 0.
    """
    n_features = next(iter(rows)).shape[1]
    found = _of_few(rows, n, centred) if n < n_features else _of_many(rows, n, centred)
    axes = torch.zeros(n_features, n_axes, dtype=found.dtype, device=found.device)
    kept = found.flip(1)[:, :n_axes]
    axes[:, : kept.shape[1]] = kept
    return axes


def _of_many(rows: Iterable[Tensor], n: int, centred: bool) -> Tensor:
    """Axes by rising variance, from F × F sums."""
    total, square = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in rows:
        x = part.double()
        if square.ndim == 0:
            total, square = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        total += x.sum(0)
        square.addmm_(x.T, x)
    if centred:
        square.addr_(total, total, alpha=-1 / n)
    values, vectors = torch.linalg.eigh(square)
    return vectors * (values > NEGLIGIBLE * values[-1])


def _of_few(rows: Iterable[Tensor], n: int, centred: bool) -> Tensor:
    """The same from n × n products: with X = U S V', the axes V are X' U / S."""
    x = gathered((part.double() for part in rows), n)
    if centred:
        x -= x.mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    is_axis = values > NEGLIGIBLE * values[-1]
    return x.T @ (vectors[:, is_axis] / values[is_axis].sqrt())
