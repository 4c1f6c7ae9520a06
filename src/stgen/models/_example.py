"""What a model shows of itself to those who check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class Example:
    """A small case on which the contract of a model is checked; see :func:`stgen.testing.check_model`."""

    adata: AnnData
    """Data with a split whose test section shares no spot with training."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ``setup_anndata``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the constructor, chosen small."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ``train``, chosen short."""
    verb: str = "predict"
    """The method that applies the model; it takes an AnnData and gives one row per observation."""
    ask: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the verb."""
