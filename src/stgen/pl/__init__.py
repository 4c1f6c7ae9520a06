"""Plots of data, predictions, scores and training.

Every function draws with matplotlib and returns its axes; give it ``ax=`` (or ``axes=``) to draw on your own.
"""

from ._calibration import calibration
from ._code_tiles import code_tiles
from ._confusion import confusion
from ._coverage import coverage
from ._gene_capture import gene_capture
from ._gene_distances import gene_distances
from ._gene_groups import gene_groups
from ._gene_maps import gene_maps
from ._generated import generated
from ._history import history
from ._imputed import imputed
from ._imputed_umap import imputed_umap
from ._meta_cells import meta_cells
from ._niches import niches
from ._perturbation import perturbation
from ._predictability import predictability
from ._scores import scores

__all__ = [
    "calibration",
    "code_tiles",
    "confusion",
    "coverage",
    "gene_capture",
    "gene_distances",
    "gene_groups",
    "gene_maps",
    "generated",
    "history",
    "imputed",
    "imputed_umap",
    "meta_cells",
    "niches",
    "perturbation",
    "predictability",
    "scores",
]
