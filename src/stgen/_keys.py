"""Every AnnData slot name that stgen reads or writes; tests import them from here."""

from __future__ import annotations

# read by default
SPATIAL = "spatial"
"""``obsm``: coordinates, spots × 2, in µm after :func:`stgen.pp.coordinates_in_um`."""
UM_PER_UNIT = "um_per_unit"
"""``uns``: how many µm one unit of the coordinates is, as a file tells it."""
SPATIAL_UM = "spatial_um"
"""``uns``: that and how coordinates were converted to µm."""
HISTOLOGY = "X_histology"
"""``obsm``: histology embedding, spots × features."""
HISTOLOGY_PARAMS = "histology"
"""``uns``: encoder, tile size in µm and pixels, feature names of the embedding."""
TILES = "tiles"
"""``obsm``: spot-centred H&E tiles, spots × height × width × 3, uint8."""
SPLIT = "split"
"""``obs``: training, validation or test row."""
TRAIN, VALIDATION, TEST = "train", "validation", "test"
LIBRARY = "section"
PATIENT = "patient"
REGION = "region"
CELL_TYPE = "cell_type"
PANEL = "gene_panel"
"""``var``: whether a gene is in the panel; ``uns``: how it was chosen."""

# written by tl
GENAR = "genar"
EVALUATION = "evaluation"
"""``uns``: scores and parameters of :func:`stgen.tl.evaluate`."""


def spread_key(key: str) -> str:
    """Where the spread (standard deviation, counts) of the prediction ``key`` lies."""
    return f"{key}_sd"
