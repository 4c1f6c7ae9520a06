"""Results back out: tidy tables, and AnnData that scanpy can go on with. Nothing is written.

Predictions lie in an AnnData as arrays, which files can hold whatever genes are called; here they get their names back.
"""

from ._comparison import comparison
from ._gene_capture import code_markers, gene_capture
from ._gene_groups import gene_groups
from ._gene_influence import gene_influence
from ._generated import generated
from ._imputed import imputed
from ._niches import confusion, meta_cells, niches
from ._perturbation import perturbation
from ._prediction import as_anndata, prediction

__all__ = [
    "as_anndata",
    "code_markers",
    "comparison",
    "confusion",
    "gene_capture",
    "gene_groups",
    "gene_influence",
    "generated",
    "imputed",
    "meta_cells",
    "niches",
    "perturbation",
    "prediction",
]
