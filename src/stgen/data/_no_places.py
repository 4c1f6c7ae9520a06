"""Spots without places, for tasks that can do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._fields import CoordinatesField, Facts

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class NoPlacesField(CoordinatesField):
    """Where coordinates would be named: nothing is read, whatever the AnnData has."""

    key: str = ""

    @property
    def is_empty(self) -> bool:
        return True

    def read(self, adata: AnnData) -> tuple[None, None]:  # type: ignore[override]
        """No coordinates and no sections."""
        return None, None

    def facts(self, adata: AnnData) -> Facts:
        return {}

    def compare(self, facts: Facts, adata: AnnData) -> None:
        """Nothing is expected."""
