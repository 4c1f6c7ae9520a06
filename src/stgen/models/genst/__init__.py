"""GenST: H&E → expression through two VQ-VAEs whose latent spaces meet."""

from ._config import GenSTConfig
from ._model import GenST

__all__ = ["GenST", "GenSTConfig"]
