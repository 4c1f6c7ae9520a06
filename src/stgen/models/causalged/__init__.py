"""CausalGeD: imputing unmeasured genes by diffusion inside an autoregressive order over genes."""

from ._config import CausalGeDConfig
from ._model import CausalGeD

__all__ = ["CausalGeD", "CausalGeDConfig"]
