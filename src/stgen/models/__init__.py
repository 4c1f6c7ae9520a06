"""Models with the verbs of scvi-tools: ``setup_anndata → Model(adata) → train → predict → save/load``.

Their methods return arrays and never write into an AnnData; :mod:`stgen.tl` writes. Opening this door is
cheap: scvi-tools and torch are imported when a model is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._base import STModel
    from .causalged import CausalGeD, CausalGeDConfig
    from .genar import GenAR, GenARConfig
    from .genst import GenST, GenSTConfig
    from .gest import GeST, GeSTConfig

_WHERE = {
    "CausalGeD": ".causalged",
    "CausalGeDConfig": ".causalged",
    "GenAR": ".genar",
    "GenARConfig": ".genar",
    "GenST": ".genst",
    "GenSTConfig": ".genst",
    "GeST": ".gest",
    "GeSTConfig": ".gest",
    "STModel": "._base",
}

__all__ = [
    "CausalGeD",
    "CausalGeDConfig",
    "GenAR",
    "GenARConfig",
    "GenST",
    "GenSTConfig",
    "GeST",
    "GeSTConfig",
    "STModel",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module 'stgen.models' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
