"""Prepare an AnnData: places in µm, histology, gene panels, splits.

Functions write into the object they are given and return ``None``, or return a changed copy with
``copy=True``. A call that fails leaves the object as it was.
"""

from ._coordinates import coordinates_in_um
from ._gene_panel import gene_panel
from ._histology_embedding import embed_histology
from ._histology_tiles import histology_tiles, read_tiles
from ._split import split

__all__ = ["coordinates_in_um", "embed_histology", "gene_panel", "histology_tiles", "read_tiles", "split"]
