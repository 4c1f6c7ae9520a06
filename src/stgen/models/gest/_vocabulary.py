"""GeST's cell vocabulary: every cell is replaced by one of K meta cells, clusters of k-means on principal components.

The transformer reads words, not expression, and picks words as answers: what a word loses of its cell stays lost.
:meth:`Vocabulary.quantization` measures that and belongs beside every result. Cells come as batches that can be
iterated several times and are never held together; what is held is a sample of their components.

n cells, T genes, p components, K meta cells. Expression is log-normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from stgen._warn import warn
from stgen.nn._kmeans import Members, kmeans, nearest_centre, rows_at_once, spread_rows
from stgen.nn._rows import gathered

Rows = Callable[[], Iterable[Tensor]]
"""Cells × genes in batches; each call begins again with the first cell, in the same order."""

LEVELS = (15, 10, 5)
"""Numbers of coarser clusters of the paper."""

_MOST_META_CELLS, _FEWEST_META_CELLS, _CELLS_PER_META_CELL = 512, 16, 50
_WIDEST_COVARIANCE = 1000  # genes; beyond it T × T numbers of all cells cost more than passes over a sample
_POWER_PASSES, _OVERSAMPLING = 4, 20  # of the randomised components of wider tables
_REFINING_PASSES = 1  # over all cells, where centres come from a sample of them; a second adds .0003 to R²


class Vocabulary(nn.Module):
    """K meta cells and how a cell finds its own: buffers only, rebuilt from four sizes.

    Parameters
    ----------
    n_genes
        Number of genes T; 0 before :meth:`fit` if not known yet.
    n_meta_cells
        Number of meta cells K; :meth:`fit` sets it.
    n_components
        Number of principal components p; :meth:`fit` sets it.
    n_levels
        Number of coarser clusterings of the meta cells; :meth:`fit` sets it.

    Attributes
    ----------
    mean, components
        Centre (T,) and orthonormal directions (p, T) of the principal components.
    centres
        (K, p), what a cell's components are compared with: ``C_pca`` of the paper.
    profiles
        (K, T), mean expression of the cells that a meta cell stands for: ``C_expr`` of the paper.
    size
        (K,), how many cells it stands for; none stands for nothing.
    coarse
        (levels, K), which coarser cluster a meta cell belongs to, on each level.
    """

    mean: Tensor
    components: Tensor
    centres: Tensor
    profiles: Tensor
    size: Tensor
    coarse: Tensor

    def __init__(self, n_genes: int, n_meta_cells: int, n_components: int, n_levels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("components", torch.zeros(n_components, n_genes))
        self.register_buffer("centres", torch.zeros(n_meta_cells, n_components))
        self.register_buffer("profiles", torch.zeros(n_meta_cells, n_genes))
        self.register_buffer("size", torch.zeros(n_meta_cells, dtype=torch.int64))
        self.register_buffer("coarse", torch.zeros(n_levels, n_meta_cells, dtype=torch.int64))

    def sizes(self) -> dict[str, int]:
        """What rebuilds an empty vocabulary of the same shape: ``Vocabulary(**vocabulary.sizes())``."""
        n_meta_cells, n_components = self.centres.shape
        return {
            "n_genes": len(self.mean),
            "n_meta_cells": n_meta_cells,
            "n_components": n_components,
            "n_levels": len(self.coarse),
        }

    @property
    def level_sizes(self) -> list[int]:
        """How many clusters each coarser level has."""
        return [int(labels.max()) + 1 if len(labels) else 0 for labels in self.coarse]

    def pcs(self, x: Tensor) -> Tensor:
        """Principal components of cells: (B, T) → (B, p)."""
        return self._precise_pcs(x).to(self.centres.dtype)

    @torch.no_grad()
    def assign(self, x: Tensor) -> Tensor:
        """The nearest meta cell of each cell: (B, T) → (B,) int64.

        Exact to the last digits of float64, so that a cell's word does not depend on its batch.
        """
        if not len(self.size) or not int(self.size.sum()):
            raise RuntimeError("The vocabulary has no meta cells yet; call `fit` or load weights first.")
        self._check_genes(x)
        labels = [
            nearest_centre(self._precise_pcs(rows), self.centres.to(_precise(rows))).label
            for rows in x.split(rows_at_once(x.shape[1]))
        ]
        return torch.cat(labels) if labels else x.new_zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def quantization(self, batches: Rows) -> dict[str, Any]:
        """What is lost when every cell is replaced by its meta cell's profile.

        Parameters
        ----------
        batches
            Cells × genes, in batches; called once.

        Returns
        -------
        ``r2``, share of the variance of all genes around their means in these cells that profiles keep;
        ``rmse``, over cells × genes; ``r2_per_gene`` (T,), NaN where a gene is constant;
        ``used`` (K,), how many of these cells each meta cell stands for.
        """
        moments = _Moments()
        lost = torch.zeros(len(self.mean), dtype=torch.float64)
        used = torch.zeros_like(self.size, device="cpu")
        for rows in _slices(batches, n_genes=len(self.mean)):
            label = self.assign(rows.to(self.mean)).to(rows.device)
            moments.add(rows)
            lost += (rows - self.profiles.to(rows)[label]).square().sum(0).cpu()
            used += label.cpu().bincount(minlength=len(used))
        total = moments.squares.cpu()
        return {
            "r2": _share_kept(lost.sum(), total.sum()).item(),
            "rmse": (lost.mean() / moments.n).sqrt().item(),
            "r2_per_gene": _share_kept(lost, total),
            "used": used,
        }

    @torch.no_grad()
    def fit(
        self,
        batches: Rows,
        *,
        n_meta_cells: int | None = None,
        n_components: int = 50,
        levels: Sequence[int] = LEVELS,
        max_rows: int = 100_000,
        seed: int,
    ) -> Self:
        """Find the meta cells of these cells, in place; buffers take the shapes that were found.

        Parameters as in :func:`fit_vocabulary`.
        """
        _check_sizes(n_meta_cells, n_components, levels, max_rows)
        generator = torch.Generator().manual_seed(seed)
        device = self.mean.device
        space, n = _principal_components(batches, n_components, max_rows, generator, len(self.mean))
        self._keep(mean=space.mean, components=space.components)

        rows = spread_rows(n, min(n, max_rows), generator)
        sample = gathered((self._precise_pcs(chunk) for chunk in _picked(batches, rows)), len(rows))
        n_wanted = n_meta_cells or default_n_meta_cells(n)
        self._keep(centres=kmeans(sample, n_wanted, generator).centres)
        if n_meta_cells is not None and len(self.centres) < n_meta_cells:
            _warn_about_twins(n_meta_cells, len(self.centres))

        for _ in range(_REFINING_PASSES if n > max_rows else 0):
            self._keep(centres=self._members(batches, self._precise_pcs).means(otherwise=self.centres))
        members = self._members(batches, lambda rows: rows)
        kept = members.size > 0  # a cluster of the sample can lose its cells to centres that moved
        self._keep(centres=self.centres[kept], size=members.size[kept])
        self._keep(profiles=members.means(otherwise=members.total)[kept])

        centres = self.centres.double()
        coarse = [kmeans(centres, min(level, len(centres)), generator).label for level in levels]
        self._keep(coarse=torch.stack(coarse) if coarse else self.coarse.new_zeros(0, len(centres)))
        return self.to(device)

    def _keep(self, **values: Tensor) -> None:
        """New values for buffers, of whatever shape."""
        for name, value in values.items():
            self.register_buffer(name, value.to(getattr(self, name).dtype))

    def _precise_pcs(self, x: Tensor) -> Tensor:
        dtype = _precise(x)
        return (x.to(dtype) - self.mean.to(dtype)) @ self.components.to(dtype).T

    def _members(self, batches: Rows, of: Callable[[Tensor], Tensor]) -> Members:
        """How many cells each centre has, and the sum of something over them."""
        members = None
        for rows in _slices(batches, n_genes=len(self.mean)):
            label = nearest_centre(self._precise_pcs(rows), self.centres.double()).label
            values = of(rows)
            if members is None:
                members = Members.none(len(self.centres), values)
            members.add(label, values)
        assert members is not None
        return members

    def _check_genes(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"Expected cells × {len(self.mean)} genes, those of the vocabulary; got shape {tuple(x.shape)}. "
                "Align the genes by name first."
            )


def fit_vocabulary(
    batches: Rows,
    *,
    n_meta_cells: int | None = None,
    n_components: int = 50,
    levels: Sequence[int] = LEVELS,
    max_rows: int = 100_000,
    seed: int,
) -> Vocabulary:
    """Find meta cells: principal components, then k-means; profiles are means over all cells.

    Components and centres start from a seeded sample that is spread evenly over the rows; centres are then
    refined, and profiles taken, over all cells. Memory holds one batch, the sample's components and K × T numbers.

    Parameters
    ----------
    batches
        A function that returns cells × genes in batches, log-normalised, the same ones at each call. Training
        rows only. The work is done on the device they are on (CPU or CUDA).
    n_meta_cells
        Number of meta cells K. By default one for fifty cells, at least 16 and at most 512. Never more than
        there are distinct cells.
    n_components
        Number of principal components, at most as many as genes and cells.
    levels
        Numbers of coarser clusters of the meta cells, from fine to coarse.
    max_rows
        Most cells that k-means sees at once.
    seed
        Of the sample and of k-means; the global random state is left alone.

    Returns
    -------
    The vocabulary, on the CPU.
    """
    vocabulary = Vocabulary(0, 0, 0, len(levels))
    return vocabulary.fit(
        batches,
        n_meta_cells=n_meta_cells,
        n_components=n_components,
        levels=levels,
        max_rows=max_rows,
        seed=seed,
    )


def default_n_meta_cells(n_cells: int) -> int:
    """One meta cell for fifty cells, at least 16 and at most 512."""
    return max(_FEWEST_META_CELLS, min(_MOST_META_CELLS, n_cells // _CELLS_PER_META_CELL))


# rows ------------------------------------------------------------------------------------------------------------


def _slices(batches: Rows, *, n_genes: int = 0) -> Iterator[Tensor]:
    """Checked float64 rows, few enough at once that no step over them needs more memory than a slice."""
    n_seen = 0
    for batch in batches():
        n_genes = n_genes or batch.shape[-1]
        if batch.ndim != 2 or batch.shape[1] != n_genes:
            raise ValueError(f"Expected batches of cells × {n_genes} genes; got shape {tuple(batch.shape)}.")
        for rows in batch.detach().split(rows_at_once(n_genes)):
            if not rows.isfinite().all():
                raise ValueError(
                    "Expected finite log-normalised expression; found NaN or infinity. Clean it first."
                )
            n_seen += len(rows)
            if len(rows):
                yield rows.double()
    if not n_seen:
        raise ValueError(
            "Expected batches with cells each time they are asked for; found none. "
            "Pass a function that returns a fresh iterable, not an iterator that is used up."
        )


def _picked(batches: Rows, rows: Tensor) -> Iterator[Tensor]:
    """The rows with these ascending numbers."""
    start = 0
    for chunk in _slices(batches):
        low, high = torch.searchsorted(rows, torch.tensor([start, start + len(chunk)])).tolist()
        if high > low:
            yield chunk[(rows[low:high] - start).to(chunk.device)]
        start += len(chunk)


class _Moments:
    """Number of rows, sums and squares around the first row: a constant gene has exactly no variance."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, rows: Tensor) -> Tensor:
        """Take rows in; returns them around the first row."""
        if not self.n:
            self.first = rows[0]
            self._sum = torch.zeros_like(self.first)
            self._squares = torch.zeros_like(self.first)
        self.n += len(rows)
        centred = rows - self.first
        self._sum += centred.sum(0)
        self._squares += centred.square().sum(0)
        return centred

    @property
    def shift(self) -> Tensor:
        """Mean around the first row."""
        return self._sum / self.n

    @property
    def mean(self) -> Tensor:
        return self.first + self.shift

    @property
    def squares(self) -> Tensor:
        """Sum of squares around the mean."""
        return (self._squares - self.n * self.shift.square()).clamp_min(0)


# principal components --------------------------------------------------------------------------------------------


class _Space(NamedTuple):
    mean: Tensor
    """(T,)"""
    components: Tensor
    """(p, T), orthonormal, by falling variance."""


def _principal_components(
    batches: Rows, n_components: int, max_rows: int, generator: torch.Generator, n_genes: int
) -> tuple[_Space, int]:
    """Components, and how many cells there are."""
    moments, second = _Moments(), None
    for rows in _slices(batches, n_genes=n_genes):
        centred = moments.add(rows)
        if centred.shape[1] <= _WIDEST_COVARIANCE:
            product = centred.T @ centred
            second = product if second is None else second.add_(product)
    p = min(n_components, len(moments.first), moments.n)
    if second is not None:
        axes = _leading(second - moments.n * torch.outer(moments.shift, moments.shift), p)
    else:
        rows = spread_rows(moments.n, min(moments.n, max_rows), generator)
        axes = _randomised(lambda: _picked(batches, rows), moments.mean, p, generator)
    return _Space(moments.mean, _one_sign(axes.T)), moments.n


def _leading(symmetric: Tensor, p: int) -> Tensor:
    """Eigenvectors of the p largest eigenvalues, as columns."""
    return torch.linalg.eigh(symmetric).eigenvectors.flip(1)[:, :p]


def _randomised(
    chunks: Callable[[], Iterable[Tensor]], mean: Tensor, p: int, generator: torch.Generator
) -> Tensor:
    """The same without T × T numbers: power passes over the rows find a space, which is then rotated."""
    width = min(p + _OVERSAMPLING, len(mean))
    basis = torch.randn(len(mean), width, generator=generator, dtype=mean.dtype).to(mean.device)
    for _ in range(_POWER_PASSES):
        basis = torch.linalg.qr(basis).Q
        basis = sum(((rows - mean).T @ ((rows - mean) @ basis) for rows in chunks()), torch.zeros_like(basis))
    basis = torch.linalg.qr(basis).Q
    small = torch.zeros(width, width, dtype=mean.dtype, device=mean.device)
    for rows in chunks():
        scores = (rows - mean) @ basis
        small += scores.T @ scores
    return basis @ _leading(small, p)


def _one_sign(components: Tensor) -> Tensor:
    """Eigenvectors have no sign: the largest entry is positive here."""
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0).to(components)


# checks ----------------------------------------------------------------------------------------------------------


def _precise(x: Tensor) -> torch.dtype:
    """float64, where a device has it: then no cell is so near two centres that its batch decides."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _share_kept(lost: Tensor, total: Tensor) -> Tensor:
    """1 − lost / total; NaN where there was nothing to lose."""
    return torch.where(total > 0, 1 - lost / total, torch.nan)


def _check_sizes(n_meta_cells: int | None, n_components: int, levels: Sequence[int], max_rows: int) -> None:
    given = {"n_meta_cells": n_meta_cells, "n_components": n_components, "max_rows": max_rows}
    given.update({f"levels[{i}]": level for i, level in enumerate(levels)})
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    if n_meta_cells is not None and n_meta_cells > max_rows:
        raise ValueError(
            f"`n_meta_cells` ({n_meta_cells}) must not exceed `max_rows` ({max_rows}), the cells that k-means sees; "
            "raise `max_rows` or ask for fewer meta cells."
        )


def _warn_about_twins(n_wanted: int, n_found: int) -> None:
    warn(
        f"Asked for {n_wanted} meta cells, but only {n_found} cells of the sample differ in their principal "
        f"components; the vocabulary has {n_found}. Ask for fewer, or raise `n_components` or `max_rows`."
    )
