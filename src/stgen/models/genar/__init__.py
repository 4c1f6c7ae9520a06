"""GenAR: H&E → counts, coarse to fine over gene groups."""

from ._model import GenAR
from ._network import GenARConfig

__all__ = ["GenAR", "GenARConfig"]
