"""Every AnnData slot name that stgen reads or writes; tests import them from here."""

from __future__ import annotations

# read by default
SPATIAL = "spatial"
"""``obsm``: coordinates, spots × 2, as a reader wrote them: often pixels. scanpy and squidpy draw them."""
UM_PER_UNIT = "um_per_unit"
"""``uns``: how many µm one unit of the coordinates is, as a file tells it."""
UM_PER_UNIT_REASON = "um_per_unit_reason"
"""``uns``: how a file knows that."""
SPATIAL_UM = "spatial_um"
"""``obsm``: coordinates in µm, written by :func:`stgen.pp.coordinates_in_um`; ``uns``: how they came to be."""
HISTOLOGY = "X_histology"
"""``obsm``: histology embedding, spots × features."""
HISTOLOGY_PARAMS = "histology"
"""``uns``: encoder, tile size in µm and pixels, feature names of the embedding."""
SPATIALDATA_ATTRS = "spatialdata_attrs"
"""``uns``: which element a row of a table of a SpatialData lies in."""
ARRAY_ROW, ARRAY_COL = "array_row", "array_col"
"""``obs``: where a spot lies on its array, as Space Ranger writes it."""
SLIDE_PROPERTIES, TILE_SPEC = "slide_properties", "tile_spec"
"""``uns``: the slide that LazySlide cut into tiles, and how."""
TILES = "tiles"
"""``obsm``: spot-centred H&E tiles, spots × height × width × 3, uint8."""
SPLIT = "split"
"""``obs``: training, validation or test row."""
TRAIN, VALIDATION, TEST = "train", "validation", "test"
BUFFER = "buffer"
"""Value of the split for spots between training and held-out blocks, which nobody reads."""
LIBRARY = "section"
PATIENT = "patient"
REGION = "region"
CELL_TYPE = "cell_type"
PANEL = "gene_panel"
"""``var``: whether a gene is in the panel; ``uns``: how it was chosen."""
UMAP = "X_umap"
"""``obsm``: where scanpy writes an embedding."""
NEIGHBOR_DISTANCES = "distances"
"""``obsp``: where scanpy writes the distances of neighbours."""

# written by datasets
MEAN_RATE = "mean_rate"
"""``var``: expected count of a gene of a toy tissue at unit depth."""
TOY = "toy_tissue"
"""``uns``: parameters, seed, cell types, stain and depth of the sections of a toy tissue."""
PROPORTIONS = "cell_type_proportions"
"""``obsm``: share of every cell type, spots × types."""
MORPHOLOGY = "morphology"
"""``obsm``: all that the H&E of a toy tissue shows, spots × variables."""
PROGRAMMES = "programmes"
"""``obsm``: activity of every planted programme, spots × programmes."""
LOADINGS = "programme_loadings"
"""``varm``: what every planted programme does to a gene, genes × programmes."""
PROFILES = "cell_type_log_profile"
"""``varm``: planted log-rate of every cell type against the tissue's mean, genes × types."""
RATE = "rate"
"""``layers``: expected counts of a toy tissue."""
DEPTH = "depth"
"""``obs``: planted factor on all counts of a spot."""
EXPOSURE = "sender_exposure"
"""``obs``: how much of the sender cell type is near, 0 to 1."""
IMAGES = "spatial"
"""``uns``: images and scale factors per section, as scanpy and squidpy read them."""

# written by `setup_anndata`
SETUP_MARKS = ("_scvi_uuid", "_scvi_manager_uuid")
"""``uns``: by these scvi-tools knows an AnnData again."""

# written by tl
GENAR = "genar"
GENST = "genst"
GENST_REPORT = "genst_report"
"""``uns``: what GenST captures of each gene and what its codes stand for; ``var`` and ``obsm``: see :func:`report_key`."""
X_GEST = "X_gest"
"""``obsm``: niche embedding, cells × D; ``uns``: how it was made, and the meta cells of the model."""
GEST = "gest"
"""``layers`` or ``obsm``: generated expression, NaN for cells that were seen."""
SURFACE_SHARE = "surface_share"
"""``obs`` of what GeST generates: share of the answer that a surface over the whole section has."""
GEST_NICHE = "gest_niche"
"""``obs``: niche of every cell, called by a classifier on GeST."""
GEST_PERTURB = "gest_perturb"
"""``uns``: what a perturbation does around it."""
CAUSALGED = "causalged"
"""``obsm``: imputed expression, spots × genes; ``uns``: their names, how far each can be trusted, how it was made."""
REFERENCE_MARK = "causalged_reference"
"""``uns`` of a reference: what ``CausalGeD.setup_reference`` was told."""
UMAP = "X_umap"
"""``obsm``: as scanpy writes it."""
EVALUATION = "evaluation"
"""``uns``: scores and parameters of :func:`stgen.tl.evaluate`."""


def spread_key(key: str) -> str:
    """Where the spread (standard deviation, counts) of the prediction ``key`` lies."""
    return f"{key}_sd"


def interval_key(key: str, end: str) -> str:
    """``obsm``: an end of the intervals (``"lower_90"``) of what would be measured, beside the imputation ``key``."""
    return f"{key}_{end}"


def normalized_key(key: str) -> str:
    """Where the expected depth-normalised log-expression that belongs to the prediction ``key`` lies."""
    return f"{key}_normalized"


def counts_key(key: str) -> str:
    """Where the expected counts that belong to the normalised prediction ``key`` lie."""
    return f"{key}_counts"


def report_key(key: str, name: str) -> str:
    """Column of ``var`` (``"captured"``) or key in ``obsm`` (``"codes"``) of the report ``key``: ``genst_captured``."""
    return f"{key.removesuffix('_report')}_{name}"


def meta_cell_key(key: str) -> str:
    """Column of ``obs`` with the number of each cell's meta cell, beside the niche embedding ``key``."""
    return f"{key.removeprefix('X_')}_meta_cell"


def round_key(key: str) -> str:
    """Column of ``obs``: the round that generated a cell; 0 if no seen cell was within reach, NaN for seen cells."""
    return f"{key}_round"


def n_windows_key(key: str) -> str:
    """Column of ``obs``: windows whose answers were averaged for a generated cell; NaN for seen cells."""
    return f"{key}_n_windows"


def isolated_key(key: str) -> str:
    """Column of ``obs``: whether a generated cell had no seen cell within reach."""
    return f"{key}_isolated"


def probability_key(key: str) -> str:
    """``obsm``: probability of every class, beside the labels ``key``; classes are in ``uns[key]["classes"]``."""
    return f"{key}_probability"


def learned_key(key: str) -> str:
    """Column of ``obs``: whether a cell's own label taught the model that wrote the labels ``key``."""
    return f"{key}_learned"


def colors_key(key: str) -> str:
    """``uns``: a colour for each category of ``obs[key]``, as scanpy keeps them."""
    return f"{key}_colors"
