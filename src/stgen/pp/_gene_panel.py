"""Which genes a model is trained and judged on, chosen without looking at test rows.

A panel chosen with the test section has already seen the answer to "which genes vary here". So the rule reads
training rows only, and says in ``uns`` which rows those were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import rankdata

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._fields import CountsField, _row_blocks, check_counts, check_unique
from stgen.data._rows import read_mask
from stgen.data._splits import read_split

from ._editing import check_adata, editable, obs_column

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

RULES = ("mean_and_sd_ranks", "seurat_v3")


@shared_doc
def gene_panel(
    adata: AnnData,
    *,
    n_genes: int = 200,
    rule: str = "mean_and_sd_ranks",
    layer: str | None = None,
    split_key: str | None = None,
    train: ArrayLike | None = None,
    library_key: str | None = None,
    key_added: str = _keys.PANEL,
    subset: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Choose the genes of a panel from training rows.

    Parameters
    ----------
    adata
        %(adata)s
    n_genes
        Size of the panel.
    rule
        ``"mean_and_sd_ranks"``: the genes with the smallest sum of two ranks, by mean and by standard
        deviation of the counts: genes that are seen often and that vary. ``"seurat_v3"``: the most variable
        genes of :func:`scanpy.pp.highly_variable_genes` (needs ``pip install scikit-misc``).
    layer
        %(layer)s
    split_key
        Column of ``obs`` written by :func:`stgen.pp.split`; only its ``"train"`` rows are read. ``None``
        takes ``"split"`` if that exists, else all rows are training rows, and the log says so.
    train
        Training rows, instead of ``split_key``: a mask over spots (a Series is joined by name), their names, or a column of ``obs``
        that says True or False.
    library_key
        For ``"seurat_v3"``: column of ``obs`` whose sections are ranked apart and then combined.
    key_added
        Key of the results.
    subset
        Also drop all other genes from ``adata``.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``var[key_added]`` (whether a gene is in the panel) and ``uns[key_added]``:
    ``genes`` in the order of the rule, best first, ``n_train`` rows that were read, ``params``.

    Raises
    ------
    ValueError
        If the matrix does not hold counts, gene names repeat, or fewer than ``n_genes`` genes have counts in
        training rows.

    Notes
    -----
    Genes that tie are ordered by name, so neither the order of genes nor that of rows changes the panel.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    >>> stg.pp.gene_panel(adata, n_genes=20)
    >>> int(adata.var["gene_panel"].sum())
    20
    """
    check_adata(adata, copy=copy)
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(map(repr, RULES))}; got {rule!r}.")
    if subset and adata.isbacked and not copy:
        raise ValueError("Genes of a backed AnnData cannot be dropped. Call `adata.to_memory()` first.")
    check_unique(adata.var_names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    if not 1 <= n_genes <= adata.n_vars:
        raise ValueError(
            f"`n_genes` must be from 1 to the {adata.n_vars} genes of this AnnData; got {n_genes}."
        )
    field = CountsField(layer)
    X = field.matrix(adata)
    check_counts(X, field.name)
    rows, source = _training_rows(adata, split_key, train)

    if rule == "mean_and_sd_ranks":
        order = rank_by_mean_and_sd(X, adata.var_names, rows=rows)
    else:
        order = _rank_by_seurat_v3(adata, X, rows, n_genes, library_key)
    if len(order) < n_genes:
        raise ValueError(
            f"Only {len(order)} genes have counts in the {int(rows.sum())} training rows ({source}), so that "
            f"a panel of {n_genes} would hold silent genes. Lower `n_genes`."
        )
    chosen = order[:n_genes]

    adata = editable(adata, copy=copy)
    mask = np.zeros(adata.n_vars, dtype=bool)
    mask[chosen] = True
    adata.uns[key_added] = {
        "genes": np.array(adata.var_names[chosen], dtype=object).astype(str),
        "n_train": int(rows.sum()),
        "params": {"rule": rule, "n_genes": int(n_genes), "layer": layer or "X", "rows": source},
    }
    adata.var[key_added] = mask
    if subset:
        adata._inplace_subset_var(mask)
    return adata if copy else None


def rank_by_mean_and_sd(
    X: Any, names: Sequence[str], *, rows: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Genes by the sum of their ranks by mean and by standard deviation, best first, without silent ones.

    Parameters
    ----------
    X
        Counts, spots × genes; dense, sparse, or of a backed AnnData.
    names
        Gene names, which order ties.
    rows
        Mask of the rows to read. ``None`` reads all.
    """
    n = X.shape[0] if rows is None else int(np.sum(rows))
    total, squares = _sums(X, rows)
    mean = total / n
    # sums of whole numbers are exact here, so that rows in another order give the same ranks
    sd = np.sqrt(np.maximum(squares / n - mean**2, 0))
    ranks = rankdata(-mean) + rankdata(-sd)
    order = np.lexsort((np.asarray(names).astype(str), ranks))
    return order[total[order] > 0].astype(np.int64)


def _sums(X: Any, rows: NDArray[np.bool_] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and sum of squares of every gene over the chosen rows, block by block."""
    total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    start = 0
    for block in _row_blocks(X):
        stop = start + block.shape[0]
        if rows is not None:
            block = block[np.flatnonzero(rows[start:stop])]
        start = stop
        if sparse.issparse(block):
            # `**` of a sparse matrix would be a matrix power
            block = sparse.csr_matrix(block, dtype=np.float64)
            total += np.asarray(block.sum(axis=0)).ravel()
            squares += np.asarray(block.multiply(block).sum(axis=0)).ravel()
        else:
            block = np.asarray(block, dtype=np.float64)
            total += block.sum(axis=0)
            squares += (block * block).sum(axis=0)
    return total, squares


def _training_rows(
    adata: AnnData, split_key: str | None, train: ArrayLike | None
) -> tuple[NDArray[np.bool_], str]:
    """Which rows are read, and how to say so."""
    if train is not None:
        if split_key is not None:
            raise ValueError("Give `train` or `split_key`, not both.")
        rows, source = read_mask(adata, train, "`train`", of="spots"), "mask"
    elif split_key is None and _keys.SPLIT not in adata.obs:
        logger.info("No split: the gene panel is chosen from all %d rows.", adata.n_obs)
        return np.ones(adata.n_obs, dtype=bool), "all"
    else:
        key = _keys.SPLIT if split_key is None else split_key
        rows = read_split(adata.obs, key).train
        source = f"{key} == {_keys.TRAIN}"
    if not rows.any():
        raise ValueError(f"There is no training row ({source}), so a panel cannot be chosen.")
    return rows, source


def _rank_by_seurat_v3(
    adata: AnnData, X: Any, rows: NDArray[np.bool_], n_genes: int, library_key: str | None
) -> NDArray[np.int64]:
    """Most variable genes by scanpy, on the training rows."""
    try:
        import skmisc  # noqa: F401
    except ImportError as error:
        raise ImportError("`rule='seurat_v3'` needs scikit-misc: pip install scikit-misc") from error
    import scanpy as sc
    from anndata import AnnData

    counts = sparse.csr_matrix(sparse.vstack([sparse.csr_matrix(block) for block in _row_blocks(X)])[rows])
    seen = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel() > 0)
    by_name = seen[np.argsort(adata.var_names[seen].astype(str), kind="stable")]
    if len(by_name) < n_genes:
        return by_name
    table = AnnData(counts[:, by_name].astype(np.float64))
    if library_key is not None:
        table.obs[library_key] = obs_column(adata, library_key).to_numpy()[rows]
    found = sc.pp.highly_variable_genes(
        table, flavor="seurat_v3", n_top_genes=n_genes, batch_key=library_key, inplace=False
    )
    rank = found["highly_variable_rank"].to_numpy()
    return by_name[np.argsort(np.where(np.isnan(rank), np.inf, rank), kind="stable")]
