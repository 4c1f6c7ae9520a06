"""The door of every function of ``pp``: what comes in, and what is written to.

Results are computed first and written at the end, so that a call that fails leaves the object as it was.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from stgen._labels import full_column
from stgen.data._fields import check_observations

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("stgen")


def check_adata(adata: Any, *, copy: bool, rows_are: str = "spots") -> None:
    """Raise unless this is an AnnData with named rows that can be written to; messages call these ``rows_are``."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        hint = " Pass one of its tables, `sdata.tables[...]`." if hasattr(adata, "tables") else ""
        raise TypeError(f"Expected an AnnData; got {type(adata).__name__}.{hint}")
    check_observations(adata, rows_are=rows_are)
    if adata.isbacked and (copy or adata.is_view):
        what = "copied in memory" if copy else "written to while it is a view"
        raise ValueError(f"A backed AnnData cannot be {what}. Call `adata.to_memory()` first.")


def editable(adata: AnnData, *, copy: bool) -> AnnData:
    """The object to write to: a copy, or the user's own. A view becomes an object of its own first."""
    if copy:
        return adata.copy()
    if adata.is_view:
        logger.info("This AnnData is a view; it is made an object of its own before anything is written.")
        adata._init_as_actual(adata.copy())
    return adata


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """A column of ``obs`` without gaps, as text in one spelling."""
    return full_column(adata.obs, key)
