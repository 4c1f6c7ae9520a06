"""Plots of data, predictions, scores and training.

Every function draws with matplotlib and returns its axes; give it ``ax=`` (or ``axes=``) to draw on your own.
"""

from ._calibration import calibration
from ._gene_groups import gene_groups
from ._gene_maps import gene_maps
from ._history import history
from ._scores import scores

__all__ = ["calibration", "gene_groups", "gene_maps", "history", "scores"]
