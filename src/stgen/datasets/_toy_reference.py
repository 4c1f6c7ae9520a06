"""What belongs to a toy tissue: the paired single-cell reference, and the planted truth in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _keys as keys
from ._toy_genes import draw_counts
from ._toy_parameters import _check_number, _check_positive, stream_rng

if TYPE_CHECKING:
    from anndata import AnnData


def toy_reference(
    adata: AnnData,
    *,
    n_cells: int = 1000,
    panel_total: float = 1500.0,
    technology_sd: float = 0.5,
    depth_sd: float = 0.4,
    dispersion: float = 0.3,
    random_state: int = 0,
) -> AnnData:
    """Simulate the single-cell reference that belongs to a toy tissue.

    Dissociated cells of the tissue's types, counted by another technology: each has one type's profile and
    activities of the same gene programmes, but no place, no neighbours and another factor on every gene.

    Parameters
    ----------
    adata
        A tissue made by :func:`toy_tissue`, or any selection of its genes and spots.
    n_cells
        Cells of the reference.
    panel_total
        Expected counts per cell over all genes of ``adata``.
    technology_sd
        Standard deviation of the log factor of a gene between the two technologies.
    depth_sd
        Standard deviation of the log depth of cells.
    dispersion
        Overdispersion φ of every gene: variance = mean + φ · mean².
    random_state
        Seed. Independent of the tissue's own draws: the same seed may serve both.

    Returns
    -------
    AnnData
        ``X``: counts, CSR, int32, cells × genes. ``obs["cell_type"]``, ``obs["depth"]``;
        ``var["technology_factor"]``.

    Raises
    ------
    KeyError
        If ``adata`` was not made by :func:`toy_tissue`.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1)
    >>> stg.datasets.toy_reference(adata, n_cells=50).shape
    (50, 100)
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    _check_is_toy(adata)
    _check_arguments(n_cells, random_state, technology_sd, depth_sd, dispersion, panel_total)
    rng = stream_rng(random_state, "reference", 0)
    # zarr gives strings back in a type of its own
    names = np.array([str(name) for name in adata.uns[keys.TOY]["cell_types"]])
    kind = _draw_kinds(np.asarray(adata.obsm[keys.PROPORTIONS]), n_cells, rng)
    profile, loadings = np.asarray(adata.varm[keys.PROFILES]), np.asarray(adata.varm[keys.LOADINGS])
    log_rate = np.log(adata.var[keys.MEAN_RATE].to_numpy()) + profile.T[kind]
    log_rate = log_rate + rng.standard_normal((n_cells, loadings.shape[1])) @ loadings.T
    technology = np.exp(rng.normal(0, technology_sd, adata.n_vars))
    rate = np.exp(log_rate) * technology
    depth = np.exp(rng.normal(-0.5 * depth_sd**2, depth_sd, n_cells))
    rate *= (panel_total / rate.sum(axis=1).mean()) * depth[:, None]
    counts = draw_counts(rate, np.zeros_like(rate), np.full(adata.n_vars, float(dispersion)), rng, rng)
    return AnnData(
        csr_matrix(counts),
        obs=pd.DataFrame(
            {keys.CELL_TYPE: pd.Categorical(names[kind], categories=list(names)), keys.DEPTH: depth},
            index=[f"cell{i + 1:05d}" for i in range(n_cells)],
        ),
        var=pd.DataFrame({"technology_factor": technology}, index=adata.var_names.copy()),
    )


def _draw_kinds(proportions: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Types of the cells: as frequent as in the tissue, up to what dissociation favours; none is missing."""
    frequency = proportions.mean(axis=0) * rng.lognormal(0, 0.4, proportions.shape[1])
    frequency = frequency / frequency.sum()
    n_types = len(frequency)
    # two of each, where there are cells enough, so that every type can be averaged
    sure = np.repeat(np.arange(n_types), 2)[: n_cells if n_cells < 2 * n_types else None]
    return np.concatenate([sure, rng.choice(n_types, n_cells - len(sure), p=frequency)])


def _check_arguments(
    n_cells: int,
    random_state: int,
    technology_sd: float,
    depth_sd: float,
    dispersion: float,
    panel_total: float,
) -> None:
    from numbers import Integral, Real

    _check_number("n_cells", n_cells, 2, None, Integral)
    _check_number("random_state", random_state, 0, None, Integral)
    for name, value in (("technology_sd", technology_sd), ("depth_sd", depth_sd), ("dispersion", dispersion)):
        _check_number(name, value, 0, None, Real)
    _check_positive("panel_total", panel_total)


def _check_is_toy(adata: AnnData) -> None:
    if keys.TOY not in adata.uns:
        raise KeyError(
            f"uns[{keys.TOY!r}] does not exist, so this is no toy tissue; uns has {sorted(adata.uns)}. "
            f"Make one with stgen.datasets.toy_tissue()."
        )


@dataclass(frozen=True)
class ToyTruth:
    """Everything that was planted in a toy tissue; see :func:`toy_truth`."""

    genes: pd.DataFrame
    """Per gene: module, morphology_share, neighbour_gene, neighbour_effect, dispersion, mean_rate."""
    profiles: pd.DataFrame
    """Genes × cell types: rate of a type against the tissue's mean."""
    rate: np.ndarray
    """Spots × genes: expected counts. Counts are negative binomial around it with the gene's dispersion."""
    morphology: pd.DataFrame
    """Spots × what the H&E shows: shares of cell types, then how they look."""
    programmes: pd.DataFrame
    """Spots × programmes: activities that the H&E shows (``_visible``) and does not show (``_hidden``)."""
    depth: np.ndarray
    """Factor on all counts of a spot."""
    exposure: np.ndarray
    """How much of the sender is near a spot, 0 to 1."""
    sender: str
    """The cell type that changes its neighbours; all other types receive."""


def toy_truth(adata: AnnData) -> ToyTruth:
    """What was planted in a toy tissue.

    Parameters
    ----------
    adata
        A tissue made with ``toy_tissue(truth=True)``, or any selection of its genes and spots.

    Returns
    -------
    ToyTruth
        Arrays and tables in the order of the spots and genes of ``adata``.

    Raises
    ------
    KeyError
        If ``adata`` is no toy tissue or was made without ``truth=True``.

    Examples
    --------
    >>> import stgen as stg
    >>> truth = stg.datasets.toy_truth(stg.datasets.toy_tissue(truth=True))
    >>> truth.sender
    'immune'
    """
    _check_is_toy(adata)
    if keys.RATE not in adata.layers:
        raise KeyError(
            f"layers[{keys.RATE!r}] does not exist; layers has {sorted(k for k in adata.layers if k)}. "
            f"The truth is only kept on request: make the tissue with toy_tissue(truth=True)."
        )
    toy = adata.uns[keys.TOY]

    def table(values: np.ndarray, columns: str) -> pd.DataFrame:
        return pd.DataFrame(np.asarray(values), index=adata.obs_names, columns=list(map(str, toy[columns])))

    return ToyTruth(
        genes=adata.var.copy(),
        profiles=pd.DataFrame(
            np.exp(adata.varm[keys.PROFILES]),
            index=adata.var_names,
            columns=list(map(str, toy["cell_types"])),
        ),
        rate=np.asarray(adata.layers[keys.RATE]),
        morphology=table(adata.obsm[keys.MORPHOLOGY], "morphology"),
        programmes=table(adata.obsm[keys.PROGRAMMES], "programmes"),
        depth=adata.obs[keys.DEPTH].to_numpy(),
        exposure=adata.obs[keys.EXPOSURE].to_numpy(),
        sender=str(toy["sender"]),
    )
