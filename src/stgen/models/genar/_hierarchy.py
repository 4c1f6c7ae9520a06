"""Groups of genes, coarse to fine: a tree whose leaves are the genes.

Genes that rise and fall together across training spots, depth taken out, share a group. The tree is a Ward
linkage of the genes' profiles; a scale of d groups is the tree cut into d subtrees by splitting the largest one
until there are d. Groups are therefore subtrees of unequal size, every group lies inside one group of the coarser
scale, and any number of genes works. ``"kmeans"`` gives the published construction instead: genes ordered by
k-means cluster, each scale equal consecutive blocks of that order, the parent of block j being ⌊j·d'/d⌋.

G genes, K scales, d_k groups of scale k.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage, to_tree
from scipy.cluster.vq import kmeans2

METHODS = ("ward", "kmeans")


SCALE_SHARES = {
    1: (),
    2: (0.0,),
    3: (0.0, 0.1),
    6: (0.0, 0.02, 0.04, 0.2, 0.5),
}
"""Groups per gene at each scale before the genes, by number of scales; 0 stands for one group, the panel.

Three scales are (1, 20, 200) and six (1, 4, 8, 40, 100, 200) for the published 200 genes.
"""


def default_scales(n_genes: int, n_scales: int = 3) -> tuple[int, ...]:
    """The panel, then groups in fixed proportion to the number of genes, then the genes; equal scales are merged."""
    wanted = {max(1, round(share * n_genes)) for share in SCALE_SHARES[n_scales]}
    return (*sorted(d for d in wanted if d < n_genes), n_genes)


def check_scales(scales: Sequence[int], n_genes: int) -> tuple[int, ...]:
    """Scales that increase and end with the genes."""
    scales = tuple(int(d) for d in scales)
    if not scales or scales[-1] != n_genes:
        raise ValueError(f"`scales` must end with the number of genes, {n_genes}; got {scales}.")
    if any(b <= a for a, b in pairwise(scales)) or scales[0] < 1:
        raise ValueError(f"`scales` must increase from at least 1 group; got {scales}.")
    return scales


def gene_hierarchy(
    profiles: np.ndarray, scales: Sequence[int], *, method: str = "ward", seed: int = 0
) -> np.ndarray:
    """Group of every gene at every scale: (K, G) integers.

    ``profiles`` are depth-normalised expression over training spots, spots × genes (raw counts for ``"kmeans"``).
    """
    scales = check_scales(scales, profiles.shape[1])
    if method == "ward":
        return _subtrees(_standardised(profiles), scales)
    if method == "kmeans":
        return _blocks(profiles, scales, seed)
    raise ValueError(
        f"`hierarchy` must be one of {', '.join(METHODS)} or (scales × genes) groups; got {method!r}."
    )


def _standardised(profiles: np.ndarray) -> np.ndarray:
    centred = profiles - profiles.mean(0)
    centred /= np.maximum(centred.std(0), 1e-12)
    return np.ascontiguousarray(centred.T)


def _subtrees(genes: np.ndarray, scales: tuple[int, ...]) -> np.ndarray:
    n = len(genes)
    groups = np.zeros((len(scales), n), dtype=np.int64)
    if n == 1:
        return groups
    # Splitting the largest subtree keeps groups balanced; of equals the one with the most unlike halves goes first.
    heap = [_entry(to_tree(linkage(genes, method="ward")))]
    for k, d in enumerate(scales):
        while len(heap) < d:
            node = heapq.heappop(heap)[-1]
            heapq.heappush(heap, _entry(node.get_left()))
            heapq.heappush(heap, _entry(node.get_right()))
        for j, leaves in enumerate(sorted((entry[3] for entry in heap), key=min)):
            groups[k, leaves] = j
    return groups


def _entry(node: Any) -> tuple[int, float, int, list[int], Any]:
    """A subtree with what decides when it is split: size, then how unlike its halves are."""
    leaves = node.pre_order()
    return -len(leaves), -node.dist, min(leaves), leaves, node


def _blocks(profiles: np.ndarray, scales: tuple[int, ...], seed: int) -> np.ndarray:
    n = profiles.shape[1]
    n_clusters = min(40, max(1, n // 5))
    _, label = kmeans2(profiles.T.astype(float), n_clusters, minit="++", seed=seed, missing="warn")
    position = np.empty(n, dtype=np.int64)
    position[np.lexsort((np.arange(n), label))] = np.arange(n)
    groups = [position]
    for coarse, fine in zip(scales[-2::-1], scales[:0:-1], strict=True):
        groups.append(groups[-1] * coarse // fine)
    return np.stack(groups[::-1])


def check_groups(groups: np.ndarray, n_genes: int) -> np.ndarray:
    """Groups given by the user: (K, G), nested, numbered 0..d−1, the last scale one gene a group."""
    groups = np.atleast_2d(np.asarray(groups))
    if groups.shape[1] != n_genes:
        raise ValueError(f"Gene groups must have one column per gene, {n_genes}; got shape {groups.shape}.")
    numbered = np.stack([np.unique(row, return_inverse=True)[1] for row in groups])
    if len(np.unique(numbered[-1])) != n_genes:
        numbered = np.vstack([numbered, np.arange(n_genes)])
    for k, (coarse, fine) in enumerate(pairwise(numbered)):
        if len(np.unique(np.stack([coarse, fine]), axis=1).T) != fine.max() + 1:
            raise ValueError(
                f"Every group of scale {k + 1} must lie inside one group of scale {k}; some lie in several."
            )
    return numbered


def parents(groups: np.ndarray) -> list[np.ndarray]:
    """For each scale after the first: the coarser group in which each of its groups lies."""
    result = []
    for coarse, fine in pairwise(groups):
        parent = np.zeros(fine.max() + 1, dtype=np.int64)
        parent[fine] = coarse
        result.append(parent)
    return result
