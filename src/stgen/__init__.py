"""Generative models for spatial transcriptomics, for people who use scanpy and squidpy."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("stgen")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

if TYPE_CHECKING:  # editors and mypy see the doors; Python opens them on first use
    from . import baselines, datasets, get, metrics, models, pl, pp, testing, tl
    from ._settings import settings

__all__ = [
    "__version__",
    "baselines",
    "datasets",
    "get",
    "metrics",
    "models",
    "pl",
    "pp",
    "settings",
    "testing",
    "tl",
]

_DOORS = frozenset(__all__) - {"__version__", "settings"}


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return import_module(f"{__name__}.{name}")
    if name == "settings":
        return import_module(f"{__name__}._settings").settings
    raise AttributeError(f"module 'stgen' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
