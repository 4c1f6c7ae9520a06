"""What imputed genes owe to measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData


def gene_influence(
    model: Any,
    adata: AnnData | None = None,
    *,
    genes: str | Sequence[str],
    withheld: str | Sequence[str] | None = None,
    n_null: int = 20,
    random_state: int = 0,
) -> pd.DataFrame:
    """How imputed genes change when a measured gene is withheld: what the imputation rests on, not what causes what.

    Each measured gene is withheld in turn, all else stays – the other genes, their weights, the depth of spots. Measured
    genes that say the same stand in for each other: withholding one of two twins changes little.

    Parameters
    ----------
    model
        A fitted :class:`stgen.models.CausalGeD`.
    adata
        Spatial data. ``None`` takes the model's data.
    genes
        Imputed genes to look at.
    withheld
        Measured genes to withhold, one at a time. ``None`` takes all that the model reads. Takes about a tenth of a
        second for each, many times that where the network has a share.
    n_null
        Measured genes that are made strangers to the reference, for the column ``null``.
    random_state
        Seed of the choice of those.

    Returns
    -------
    Table with one row for each imputed and each withheld gene, the largest change of a gene first. ``gene``; ``withheld``;
    ``change``, the standard deviation over spots of what withholding takes away, in standard deviations of the imputed gene
    (0: nothing, 1: as much as the gene varies); ``null``, the change that 95 % of measured genes stay below if the reference
    knows nothing of them – a change that is not above it says nothing about this gene; ``direction``, the Pearson
    correlation of what is taken away with the withheld gene (positive: it raises the imputed gene where it is expressed).
    At most 3,000 spots are looked at.

    Raises
    ------
    TypeError
        If ``model`` knows no influence.
    ValueError
        If a gene to withhold is not measured, or one to look at is.

    Examples
    --------
    >>> import stgen as stg
    >>> tissue = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=200)
    >>> adata, reference = tissue[:, ::2].copy(), stg.datasets.toy_reference(tissue)
    >>> stg.models.CausalGeD.setup_anndata(adata)
    >>> stg.models.CausalGeD.setup_reference(reference)
    >>> model = stg.models.CausalGeD(adata, reference)
    >>> model.train(max_epochs=2)
    >>> table = stg.get.gene_influence(model, genes="gene_002")
    >>> list(table)
    ['gene', 'withheld', 'change', 'null', 'direction']
    """
    if not hasattr(model, "get_gene_influence"):
        raise TypeError(f"A fitted CausalGeD is expected as `model`; got {type(model).__name__}.")
    return model.get_gene_influence(
        adata, genes=genes, withheld=withheld, n_null=n_null, random_state=random_state
    )
