"""Names of genes, matched in this one place."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stgen._by_name import check_unique as check_unique
from stgen._by_name import some as some

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")


def looks_like_ensembl(names: Sequence[str] | pd.Index) -> bool:
    """Whether most names are Ensembl gene identifiers."""
    sample = [str(name) for name in names[:200]]
    return bool(sample) and sum(bool(_ENSEMBL.match(name)) for name in sample) > len(sample) / 2


def align_genes(
    expected: Sequence[str] | pd.Index, found: Sequence[str] | pd.Index, *, var: pd.DataFrame | None = None
) -> np.ndarray:
    """Where each expected gene is among the found ones, by name. The only place where genes are matched.

    Parameters
    ----------
    expected
        Genes that a model knows, in its order.
    found
        Genes of the data, in any order; there may be more of them.
    var
        ``adata.var`` of the data, searched for a column that would match, to name it in the message.

    Returns
    -------
    Integer positions such that ``found[positions] == expected``.
    """
    expected, found = pd.Index(expected).astype(str), pd.Index(found).astype(str)
    check_unique(found, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    positions = found.get_indexer(expected)
    missing = expected[positions < 0]
    if len(missing):
        raise ValueError(
            f"{len(expected)} genes are expected and {len(missing)} of them are not in this AnnData, "
            f"such as {some(missing)}; it has {len(found)} genes, such as {some(found)}. "
            + _naming_hint(expected, found, var)
        )
    return positions.astype(np.int64)


def case_pairs(one: pd.Index, other: pd.Index) -> list[tuple[str, str]]:
    """Names of two lists that are the same but for upper and lower case."""
    there = {name.upper(): name for name in other}
    pairs = [(name, there.get(name.upper(), name)) for name in one]
    return [(name, its) for name, its in pairs if name != its]


def _naming_hint(expected: pd.Index, found: pd.Index, var: pd.DataFrame | None) -> str:
    """What most likely went wrong when names do not match."""
    n_here = int(expected.isin(found).sum())
    var = pd.DataFrame() if var is None else var
    for column in var.columns:
        n_there = int(expected.isin(pd.Index(var[column]).astype(str)).sum())
        if n_there > max(n_here, len(expected) / 2):
            return f"`var[{column!r}]` has {n_there} of them: use it as `var_names`."
    if looks_like_ensembl(expected) != looks_like_ensembl(found):
        kinds = ("Ensembl identifiers", "symbols")
        learned, given = kinds if looks_like_ensembl(expected) else kinds[::-1]
        return f"The model learned {learned}, these look like {given}: rename `var_names`."
    pairs = case_pairs(expected, found)
    if len(pairs) > n_here:
        shown = some(f"{one} – {other}" for one, other in pairs)
        return (
            f"{len(pairs)} match when upper and lower case are ignored ({shown}): is it the same species, spelt the same "
            "way? Names like Gad1 are mouse, GAD1 human. Use data of one species, or rename to orthologues."
        )
    bare = expected.str.replace(r"\.\d+$", "", regex=True)
    if bare.isin(found.str.replace(r"\.\d+$", "", regex=True)).sum() > n_here:
        return "Some match without the version suffix (`.1`): strip it on both sides."
    return "Use an AnnData that has all of them, or fit a model on the genes both have."
