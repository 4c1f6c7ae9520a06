"""What GenST reports, as tables: how much of each gene morphology shows, and marker genes of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = ("captured", "captured_low", "captured_high", "r_cross", "ceiling", "reliability", "n_spots")


@shared_doc
def gene_capture(adata: AnnData, key: str = _keys.GENST_REPORT) -> pd.DataFrame:
    """How much of each gene the image shows, one row for each gene, most captured first.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.genst_report` wrote to.
    key
        Key of the report.

    Returns
    -------
    Table, genes × ``captured``, ``captured_low``, ``captured_high``, ``r_cross``, ``ceiling``, ``reliability``,
    ``n_spots``. Genes without a captured share (NaN: counts too noisy) come last; genes that the model does not know,
    or that do not vary in these spots, are left out.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> stg.models.GenST.setup_anndata(adata, library_key="section", split_key="split")
    >>> model = stg.models.GenST(adata)
    >>> model.train(max_epochs=4)
    >>> stg.tl.genst_report(adata, model=model)
    >>> stg.get.gene_capture(adata).shape
    (20, 7)
    """
    read_report(adata, key)
    slots = {name: _keys.report_key(key, name) for name in COLUMNS}
    missing = [slot for slot in slots.values() if slot not in adata.var]
    if missing:
        raise KeyError(
            f"var has no {missing[0]!r}, which belongs to uns[{key!r}]; it has {list(adata.var)}. Run "
            "`stg.tl.genst_report` again."
        )
    table = pd.DataFrame({name: adata.var[slot] for name, slot in slots.items()})
    table = table[table["reliability"].notna() | (table["n_spots"] > 0)]
    return table.sort_values("captured", ascending=False, kind="stable", na_position="last")


@shared_doc
def code_markers(
    adata: AnnData, key: str = _keys.GENST_REPORT, *, token: int | None = None, n: int | None = None
) -> pd.DataFrame:
    """Marker genes of the expression codes of GenST, one row for each code and gene.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.genst_report` wrote to.
    key
        Key of the report.
    token
        Only codes of this token, counted from 1.
    n
        Only so many genes of each code.

    Returns
    -------
    Table with ``token``, ``code``, ``usage`` (share of spots with this code), ``usage_translated`` (share of spots to
    which the image alone gives it), ``rank``, ``gene`` and ``difference`` (mean standardised expression in these spots
    minus that in the others), most used codes of a token first. Codes of fewer than 5 spots have no markers.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> stg.pp.split(adata, by="patient", validation=0, test=0.5)
    >>> stg.models.GenST.setup_anndata(adata, library_key="section", split_key="split")
    >>> model = stg.models.GenST(adata)
    >>> model.train(max_epochs=4)
    >>> stg.tl.genst_report(adata, model=model)
    >>> list(stg.get.code_markers(adata, token=1, n=3))
    ['token', 'code', 'usage', 'usage_translated', 'rank', 'gene', 'difference']
    """
    record = read_report(adata, key)
    codes, markers = _table(record["codes"]), _table(record["markers"])
    known = np.unique(codes["token"])
    if token is not None and token not in known:
        raise ValueError(f"`token` must be from 1 to {known.max()}; got {token!r}.")
    if n is not None and n < 1:
        raise ValueError(f"`n` must be at least 1; got {n!r}.")
    usage = codes[["token", "code", "usage", "usage_translated"]]
    table = markers.merge(usage, on=["token", "code"], how="left")
    table = table.sort_values(
        ["token", "usage", "code", "rank"], ascending=[True, False, True, True], kind="stable"
    )
    if token is not None:
        table = table[table["token"] == token]
    if n is not None:
        table = table[table["rank"] <= n]
    columns = ["token", "code", "usage", "usage_translated", "rank", "gene", "difference"]
    return table[columns].reset_index(drop=True)


def read_report(adata: AnnData, key: str) -> Mapping[str, Any]:
    """The record of a report by its key."""
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "codes" not in record or "markers" not in record:
        raise KeyError(
            f"uns[{key!r}] holds no report of GenST; uns has {list(adata.uns)}. Write one with `stg.tl.genst_report`, or "
            "name its key with `key=`."
        )
    return record


def _table(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({str(name): np.asarray(column) for name, column in columns.items()})
