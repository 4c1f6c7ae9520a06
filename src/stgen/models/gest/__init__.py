"""GeST: a generative transformer over neighbouring cells."""

from ._config import GeSTConfig
from ._model import GeST

__all__ = ["GeST", "GeSTConfig"]
