"""GenAR: H&E → counts, coarse to fine over gene groups."""

from ._config import GenARConfig
from ._model import GenAR

__all__ = ["GenAR", "GenARConfig"]
