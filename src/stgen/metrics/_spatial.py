"""Moran's I: how far neighbouring spots agree. A smoothed prediction shows a value far above the truth's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.spatial import cKDTree

from stgen._by_name import join_rows, x_and_y

from ._arrays import Floats, centred, check_matrix, dense, gene_blocks


def morans_i(
    values: Any, xy_or_graph: Any, *, section: ArrayLike | None = None, n_neighbors: int = 6
) -> Floats:
    """Moran's I of every gene.

    Parameters
    ----------
    values
        Spots × genes; dense or sparse.
    xy_or_graph
        Coordinates, spots × 2, of which the nearest neighbours are taken, or a sparse spots × spots matrix of
        weights (such as ``obsp["spatial_connectivities"]``). Of a DataFrame the columns x and y, if it has them.
    section
        Section of every spot: neighbours are only looked for inside it, and values are taken relative to its
        mean. Not used with a graph.
    n_neighbors
        Neighbours per spot. Not used with a graph.

    Returns
    -------
    One number per gene, near 0 without spatial structure; NaN where the gene is constant.
    """
    values, xy_or_graph, section = join_rows(values=values, xy_or_graph=x_and_y(xy_or_graph), section=section)
    values = check_matrix(values, "values")
    n_spots = values.shape[0]
    if sparse.issparse(xy_or_graph):
        graph, section = sparse.csr_array(xy_or_graph).astype(np.float64), None
        if graph.shape != (n_spots, n_spots):
            raise ValueError(f"The graph must be spots × spots, {(n_spots, n_spots)}; got {graph.shape}.")
    else:
        graph = _nearest(_check_xy(xy_or_graph, n_spots), _section_codes(section, n_spots), n_neighbors)
    members = _members(_section_codes(section, n_spots))
    weight = graph.sum()
    scores = np.empty(values.shape[1])
    for genes in gene_blocks(values.shape):
        block = dense(values[:, genes])
        for rows in members:
            block[rows] = centred(block[rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            scores[genes] = (block * (graph @ block)).sum(axis=0) / (block**2).sum(axis=0) * n_spots / weight
    return scores


def _nearest(xy: Floats, section: np.ndarray, n_neighbors: int) -> sparse.csr_array:
    """Directed graph of the nearest spots within the section, the spot itself excluded."""
    if n_neighbors < 1:
        raise ValueError(f"`n_neighbors` must be at least 1; got {n_neighbors}.")
    sources, targets = [], []
    for rows in _members(section):
        # on a lattice neighbours tie: which of them count follows from places, not from the order of rows
        rows = rows[np.lexsort((xy[rows, 1], xy[rows, 0]))]
        k = min(n_neighbors, len(rows) - 1)
        if k == 0:
            continue
        near = cKDTree(xy[rows]).query(xy[rows], k=k + 1)[1]
        # duplicated places: the spot itself need not come first, and may not come at all
        is_self = near == np.arange(len(rows))[:, None]
        is_self[~is_self.any(axis=1), -1] = True
        sources.append(np.repeat(rows, k))
        targets.append(rows[near[~is_self]])
    if not sources:
        raise ValueError("Moran's I needs at least 2 spots in a section; got 1 spot in each.")
    source, target = np.concatenate(sources), np.concatenate(targets)
    return sparse.csr_array((np.ones(len(source)), (source, target)), shape=(len(xy), len(xy)))


def _members(section: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(section == code) for code in np.unique(section)]


def _section_codes(section: ArrayLike | None, n_spots: int) -> np.ndarray:
    if section is None:
        return np.zeros(n_spots, dtype=int)
    section = np.asarray(section)
    if section.shape != (n_spots,):
        raise ValueError(
            f"`section` must name the section of each of the {n_spots} spots; got shape {section.shape}."
        )
    return np.unique(section.astype(str), return_inverse=True)[1]


def _check_xy(xy: Any, n_spots: int) -> Floats:
    xy = np.asarray(xy, dtype=np.float64)
    if xy.shape != (n_spots, 2):
        raise ValueError(f"Coordinates must be spots × 2, {(n_spots, 2)}; got {xy.shape}.")
    if not np.isfinite(xy).all():
        raise ValueError("Coordinates must be finite; drop the spots without a place first.")
    return xy
