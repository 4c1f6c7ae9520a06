"""A tissue whose answer is known: layers, cell types, H&E-like looks, gene modules and a neighbour effect.

A tissue is made in the order of the causes: place → layer → cell types and looks → programmes → rates → counts,
and looks → image. The image never sees the counts and the counts never see the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _keys as keys
from .._scale_record import ScaleRecord
from ._toy_genes import (
    N_HIDDEN_FIELDS,
    Genes,
    Programmes,
    draw_counts,
    morphology_of,
    plant_genes,
    run_programmes,
    sender_exposure,
)
from ._toy_image import Stain, describe_morphology, draw_section, nuclear_density, stain_section
from ._toy_layout import Layout, lay_out_section
from ._toy_parameters import SENDER, STATES, ToyParameters

if TYPE_CHECKING:
    from anndata import AnnData

_SPOT_DIAMETER = 0.55


def toy_tissue(
    *,
    n_sections: int = 4,
    n_patients: int = 2,
    spots_per_section: int = 400,
    n_genes: int = 100,
    unit: str = "spots",
    grid: str = "hexagonal",
    pitch_um: float = 100.0,
    density_per_mm2: float = 2000.0,
    n_layers: int = 4,
    n_cell_types: int = 6,
    n_modules: int = 8,
    module_share: float = 0.7,
    morphology_share: float = 0.5,
    nonlinearity: float = 0.5,
    neighbour_effect: float = 1.0,
    neighbour_share: float = 0.12,
    neighbour_radius_um: float | None = None,
    smoothness_um: float | None = None,
    section_similarity: float = 0.7,
    panel_total: float | None = None,
    dispersion: float = 0.15,
    depth_sd: float = 0.3,
    batch_sd: float = 0.15,
    stain_sd: float = 0.15,
    histology: str = "features",
    n_histology_features: int = 48,
    histology_noise: float = 0.3,
    um_per_px: float = 2.0,
    truth: bool = False,
    random_state: int = 0,
) -> AnnData:
    """Simulate several sections of a layered tissue with a known answer.

    Every gene's log-rate is a sum of a part that is a function of morphology (cell types and how they look, which
    the H&E shows) and a hidden part (which it does not), in a share planted per gene. Genes of one module share a
    visible and a hidden activity. A scattered cell type, the sender, changes some genes in the points around it.
    Counts are gamma-Poisson with a depth per point and section and a factor per gene and patient.

    Parameters
    ----------
    n_sections
        Sections in the object, told apart by ``obs["section"]``.
    n_patients
        Patients; consecutive sections belong to one patient and resemble each other.
    spots_per_section
        Spots (or cells, by ``unit``) of every section.
    n_genes
        Genes, named ``gene_001``, ``gene_002``, …
    unit
        ``"spots"``: points of a regular grid, each a mixture of cells. ``"cells"``: irregular points of one cell
        type each.
    grid
        ``"hexagonal"`` or ``"square"``; cells lie scattered around such a grid.
    pitch_um
        Distance between spots, µm.
    density_per_mm2
        Cells per mm² where ``unit="cells"``.
    n_layers
        Layers, the labels in ``obs["region"]``.
    n_cell_types
        3 to 7, the sender included.
    n_modules
        Modules of co-expressed genes.
    module_share
        Share of the genes that belong to a module; the others have module −1.
    morphology_share
        Mean over genes of the share of a gene's log-rate variance that morphology carries. Genes differ widely
        around it, except at 0 and 1.
    nonlinearity
        Share of a module's visible activity that no linear function of morphology explains (a gate: one variable
        matters only where another is high).
    neighbour_effect
        Strength of the sender's effect; a factor on the planted coefficients. 0 switches it off and leaves
        everything else as it is: same tissue, same image, same other counts.
    neighbour_share
        Share of the genes that answer to senders. Half of them rise and half fall, so that depth-normalised values
        of the other genes stay as they are.
    neighbour_radius_um
        How far a sender reaches, µm. By default 1.5 pitches for spots and 2.5 cell spacings for cells.
    smoothness_um
        Length scale of the smooth fields, µm. By default 4 pitches for spots and 7 cell spacings for cells.
    section_similarity
        0 to 1: how much two sections of a patient share.
    panel_total
        Expected counts of a point of depth 1 over all genes. By default 2000 for spots and 600 for cells.
    dispersion
        Mean overdispersion φ of the genes: variance = mean + φ · mean². 0 gives Poisson counts.
    depth_sd
        Standard deviation of the log depth between sections; within sections depth follows the nuclear density,
        with noise of the same size.
    batch_sd
        Standard deviation of the log factor of a gene in a patient.
    stain_sd
        How much stain strength and colour differ between patients and sections.
    histology
        ``"features"``: simulated descriptors in ``obsm["X_histology"]`` (no image; quick). ``"images"``: one
        H&E-like image per section in ``uns["spatial"]``. ``"both"`` or ``"none"``.
    n_histology_features
        Width of the simulated descriptors.
    histology_noise
        Noise of the simulated descriptors, in standard deviations of the morphology they describe.
    um_per_px
        Pixel size of the images, µm.
    truth
        Also keep what no experiment sees, for :func:`toy_truth`: expected counts, morphology, programmes.
    random_state
        Seed. The same seed gives the same tissue; the global random state is left as found.

    Returns
    -------
    AnnData
        ``X``: counts, CSR, int32. ``obs``: ``section``, ``patient``, ``region``, ``cell_type`` (the largest
        share), ``depth``, ``sender_exposure``. ``obsm``: ``spatial`` (µm), ``cell_type_proportions``,
        ``X_histology``. ``var``: ``module``, ``morphology_share``, ``neighbour_gene``, ``neighbour_effect``
        (log-rate at full exposure; 0 when switched off), ``dispersion``, ``mean_rate``. ``varm``:
        ``cell_type_log_profile``, ``programme_loadings``. ``uns["toy_tissue"]``: parameters, seed, names, stain
        and depth of every section.

    Raises
    ------
    ValueError, TypeError
        If a parameter is outside its range or of another kind.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=2, spots_per_section=100)
    >>> adata.shape
    (200, 100)
    """
    parameters = ToyParameters(
        n_sections=n_sections,
        n_patients=n_patients,
        spots_per_section=spots_per_section,
        n_genes=n_genes,
        unit=unit,
        grid=grid,
        pitch_um=pitch_um,
        density_per_mm2=density_per_mm2,
        n_layers=n_layers,
        n_cell_types=n_cell_types,
        n_modules=n_modules,
        module_share=module_share,
        morphology_share=morphology_share,
        nonlinearity=nonlinearity,
        neighbour_effect=neighbour_effect,
        neighbour_share=neighbour_share,
        neighbour_radius_um=neighbour_radius_um,
        smoothness_um=smoothness_um,
        section_similarity=section_similarity,
        panel_total=panel_total,
        dispersion=dispersion,
        depth_sd=depth_sd,
        batch_sd=batch_sd,
        stain_sd=stain_sd,
        histology=histology,
        n_histology_features=n_histology_features,
        histology_noise=histology_noise,
        um_per_px=um_per_px,
        random_state=random_state,
    )
    return _make(parameters, truth)


def _make(parameters: ToyParameters, truth: bool) -> AnnData:
    """The causes in their order; then the table."""
    n_hidden = parameters.n_modules + N_HIDDEN_FIELDS
    layouts = [lay_out_section(parameters, i, n_hidden) for i in range(parameters.n_sections)]
    composition = np.vstack([layout.composition for layout in layouts])
    states = np.vstack([layout.states for layout in layouts])
    fields = np.vstack([layout.fields for layout in layouts])
    section_of = np.repeat(np.arange(parameters.n_sections), parameters.spots_per_section)

    programmes = run_programmes(parameters, composition, states, fields)
    genes, log_rate = plant_genes(parameters, composition, programmes)
    exposure = np.concatenate(
        [sender_exposure(layout.xy, layout.composition[:, -1], parameters.reach_um) for layout in layouts]
    )
    log_depth, log_section_depth = _log_depth(parameters, composition, states, section_of)
    log_rate += log_depth[:, None] + _log_batch(parameters)[section_of]
    receiver = 1 - composition[:, -1]
    log_neighbours = np.outer(receiver * exposure, genes.table["neighbour_effect"])
    counts = _draw_sections(parameters, np.exp(log_rate), log_neighbours, genes, section_of)

    adata = _table(parameters, counts, layouts, section_of, genes)
    adata.obs[keys.DEPTH] = np.exp(log_depth)
    adata.obs[keys.EXPOSURE] = exposure
    stains = [stain_section(parameters, i) for i in range(parameters.n_sections)]
    _add_histology(adata, parameters, layouts, section_of, stains)
    adata.uns[keys.TOY] = _provenance(parameters, stains, log_section_depth)
    if truth:
        _add_truth(adata, composition, states, programmes, np.exp(log_rate + log_neighbours))
    return adata


def _log_depth(
    parameters: ToyParameters, composition: np.ndarray, states: np.ndarray, section_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log depth of every point and of every section: more nuclei (or a larger one) give more counts."""
    if parameters.unit == "spots":
        size = np.log(nuclear_density(parameters, composition, states))
    else:
        size = 2 * np.log(composition @ parameters.looks("radius_um"))
    spread = parameters.depth_sd
    section = np.array(
        [parameters.rng("depth", 0, i).normal(0, spread) for i in range(parameters.n_sections)]
    )
    noise = np.concatenate(
        [
            parameters.rng("depth", 1, i).normal(0, spread, parameters.spots_per_section)
            for i in range(parameters.n_sections)
        ]
    )
    own = 0.5 * (size - size.mean()) + noise
    # a depth of 1 stays the mean of the tissue
    return section[section_of] + own - 0.5 * own.var(), section


def _log_batch(parameters: ToyParameters) -> np.ndarray:
    """Sections × genes: factors that a patient (donor, laboratory) puts on genes."""
    of_patient = np.stack(
        [
            parameters.rng("batch", patient).normal(0, parameters.batch_sd, parameters.n_genes)
            for patient in range(parameters.n_patients)
        ]
    )
    return of_patient[parameters.patient_of_section]


def _draw_sections(
    parameters: ToyParameters,
    rate: np.ndarray,
    log_neighbours: np.ndarray,
    genes: Genes,
    section_of: np.ndarray,
) -> np.ndarray:
    """Counts, with streams of their own for every section."""
    dispersion = genes.table["dispersion"].to_numpy()
    counts = np.empty(rate.shape, dtype=np.int32)
    for section in range(parameters.n_sections):
        rows = section_of == section
        streams = parameters.rng("counts", section), parameters.rng("neighbour_counts", section)
        counts[rows] = draw_counts(rate[rows], log_neighbours[rows], dispersion, *streams)
    return counts


def _table(
    parameters: ToyParameters,
    counts: np.ndarray,
    layouts: list[Layout],
    section_of: np.ndarray,
    genes: Genes,
) -> AnnData:
    """Counts, labels and places as scanpy and squidpy expect them."""
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    section = np.array(parameters.section_names)[section_of]
    patient = np.array([f"p{i + 1}" for i in parameters.patient_of_section])[section_of]
    layer = np.concatenate([layout.layer for layout in layouts])
    composition = np.vstack([layout.composition for layout in layouts])
    within = np.tile(np.arange(parameters.spots_per_section), parameters.n_sections)
    point = "spot" if parameters.unit == "spots" else "cell"
    obs = pd.DataFrame(
        {
            keys.LIBRARY: pd.Categorical(section, categories=parameters.section_names),
            keys.PATIENT: pd.Categorical(patient),
            keys.REGION: pd.Categorical([f"layer_{i + 1}" for i in layer]),
            keys.CELL_TYPE: pd.Categorical(np.array(parameters.cell_type_names)[composition.argmax(axis=1)]),
        },
        index=[f"{s}_{point}{i + 1:05d}" for s, i in zip(section, within)],
    )
    adata = AnnData(csr_matrix(counts), obs=obs, var=genes.table.copy())
    adata.obsm[keys.SPATIAL] = np.vstack([layout.xy for layout in layouts])
    adata.obsm[keys.PROPORTIONS] = composition
    adata.varm[keys.PROFILES] = genes.log_profile
    adata.varm[keys.LOADINGS] = genes.loadings
    scales = dict.fromkeys(parameters.section_names, (1.0, "simulated in µm"))
    adata.uns[keys.SPATIAL_UM] = ScaleRecord.make(
        adata,
        adata.obsm[keys.SPATIAL],
        np.asarray(section).astype(str),
        key=keys.SPATIAL,
        from_key=keys.SPATIAL,
        library_key=keys.LIBRARY,
        scales=scales,
    ).stored()
    return adata


def _add_histology(
    adata: AnnData,
    parameters: ToyParameters,
    layouts: list[Layout],
    section_of: np.ndarray,
    stains: list[Stain],
) -> None:
    """Descriptors, images, both or neither."""
    if parameters.histology in ("features", "both"):
        morphology = np.vstack([morphology_of(layout.composition, layout.states) for layout in layouts])
        adata.obsm[keys.HISTOLOGY] = describe_morphology(parameters, morphology, section_of, stains)
        adata.uns[keys.HISTOLOGY_PARAMS] = {
            "encoder": "simulated descriptors",
            "tile_um": parameters.spacing_um,
            "n_features": int(parameters.n_histology_features),
            "params": {"histology_noise": float(parameters.histology_noise)},
        }
    if parameters.histology in ("images", "both"):
        adata.uns[keys.IMAGES] = {
            name: {
                "images": {
                    "hires": draw_section(parameters, i, layout.xy, layout.composition, layout.states, stain)
                },
                "scalefactors": {
                    "tissue_hires_scalef": 1.0 / parameters.um_per_px,
                    "spot_diameter_fullres": _SPOT_DIAMETER * parameters.spacing_um,
                },
            }
            for i, (name, layout, stain) in enumerate(zip(parameters.section_names, layouts, stains))
        }


def _provenance(
    parameters: ToyParameters, stains: list[Stain], log_section_depth: np.ndarray
) -> dict[str, Any]:
    """What was planted, in plain values that h5ad and zarr keep."""
    n_modules = parameters.n_modules
    modules = [f"module_{i}" for i in range(n_modules)]
    return {
        "params": parameters.to_uns(),
        "random_state": int(parameters.random_state),
        "um_per_px": float(parameters.um_per_px),
        "sender": SENDER,
        "cell_types": np.array(parameters.cell_type_names),
        "morphology": np.array([*parameters.cell_type_names, *STATES]),
        "programmes": np.array(
            [f"{name}_visible" for name in (*modules, *STATES)]
            + [f"{name}_hidden" for name in modules]
            + [f"field_{i}_hidden" for i in range(N_HIDDEN_FIELDS)]
        ),
        "sections": {
            "section": np.array(parameters.section_names),
            "depth": np.exp(log_section_depth),
            "haematoxylin": np.array([stain.strength[0] for stain in stains]),
            "eosin": np.array([stain.strength[1] for stain in stains]),
        },
    }


def _add_truth(
    adata: AnnData, composition: np.ndarray, states: np.ndarray, programmes: Programmes, rate: np.ndarray
) -> None:
    """What no experiment sees."""
    adata.layers[keys.RATE] = rate
    adata.obsm[keys.MORPHOLOGY] = morphology_of(composition, states)
    adata.obsm[keys.PROGRAMMES] = programmes.all
