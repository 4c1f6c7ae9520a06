"""What a perturbation does around it, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._names import some

if TYPE_CHECKING:
    from anndata import AnnData


@shared_doc
def perturbation(
    adata: AnnData, key: str = _keys.GEST_PERTURB, *, genes: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Effects of a perturbation, one row for each gene and ring of distance.

    Parameters
    ----------
    adata
        AnnData that :func:`stgen.tl.gest_perturb` wrote to.
    key
        Key of the results.
    genes
        Genes, in the order wanted. ``None`` means all.

    Returns
    -------
    Table as :meth:`stgen.models.GeST.perturb` gives it: ``gene``, ``ring``, ``from_um``, ``to_um``, ``n_cells``,
    ``generated``, ``effect``, ``z``, ``p``, ``q``, ``call``, …; facts such as ``share_changed`` are in ``attrs``, and so is
    ``comparison``, by columns.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=300, unit="cells")
    >>> adata.obs["middle"] = abs(adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0)).max(axis=1) < 40
    >>> stg.tl.gest_perturb(
    ...     adata, region="middle", mode="inhibit", genes="gene_001", null="sham", train_kwargs={"max_epochs": 1}
    ... )
    >>> strongest = stg.get.perturbation(adata).sort_values("q").head()
    """
    record = adata.uns.get(key, {})
    if not isinstance(record, Mapping) or "table" not in record or "columns" not in record:
        raise KeyError(
            f"uns[{key!r}] holds no perturbation; uns has {list(adata.uns)}. Write one with `stg.tl.gest_perturb`, or name "
            "its key with `key=`."
        )
    # a file keeps columns in the order of the alphabet
    table = pd.DataFrame({str(name): np.asarray(record["table"][str(name)]) for name in record["columns"]})
    if genes is not None:
        names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        missing = [gene for gene in names if gene not in set(table["gene"])]
        if missing:
            raise KeyError(f"{key!r} has no gene {some(missing)}; it has {some(table['gene'].unique())}.")
        place = {gene: i for i, gene in enumerate(names)}
        table = table[table["gene"].isin(names)]
        table = table.sort_values("gene", key=lambda column: column.map(place), kind="stable").reset_index(
            drop=True
        )
    table.attrs |= _facts(record)
    return table


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values: pandas compares ``attrs`` when it prints a table, which arrays do not survive."""
    facts = {name: _listed(value) for name, value in record.get("facts", {}).items()}
    if "comparison" in record:
        columns = record["comparison"]
        order = sorted(columns, key=lambda name: (name != "method", name))
        facts["comparison"] = {name: _listed(columns[name]) for name in order}
    return facts


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
