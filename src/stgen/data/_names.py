"""Names of genes, matched in this one place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stgen._by_name import check_unique as check_unique
from stgen._by_name import some as some

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")
_VERSION = re.compile(r"\.\d+$")
_GENOME = re.compile(
    r"(GRC[a-z]{1,2}\d{1,2}|hg\d{2}|mm\d{1,2}|rn\d{1,2}|mRatBN\d+)(-\d{4}-[a-z])?[_-]+", re.IGNORECASE
)
"""What 10x puts before genes where a reference holds several genomes: GRCh38_, mm10___, hg19-."""


def looks_like_ensembl(names: Sequence[str] | pd.Index) -> bool:
    """Whether most names are Ensembl gene identifiers."""
    sample = [_GENOME.sub("", str(name), count=1) for name in names[:200]]
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


class Twin(NamedTuple):
    """A name, and its other spelling in another list."""

    name: str
    other: str
    reasons: frozenset[str]
    """Which of the keys of ``_HOW`` they differ by."""


_HOW = {
    "case": "when upper and lower case are ignored",
    "prefix": "without the genome prefix",
    "version": "without the version suffix",
}


def twins(names: Iterable[str], known: Iterable[str]) -> list[Twin]:
    """Names that are not in ``known`` but are there in another spelling: case, genome prefix or version suffix."""
    known = [str(name) for name in known]
    spelt = {_parts(name).gene: name for name in reversed(known)}
    bare = {_parts(name).bare: name for name in reversed(known)}
    found, there = [], set(known)
    for name in map(str, names):
        parts = _parts(name)
        # names of clones (RP11-34P13.7) end in a number too, and another number is another gene
        other = spelt.get(parts.gene) or spelt.get(parts.bare) or bare.get(parts.gene)
        if other is None and _ENSEMBL.match(parts.bare):
            other = bare.get(parts.bare)
        if name not in there and other is not None:
            found.append(Twin(name, other, _difference(parts, _parts(other))))
    return found


class _Parts(NamedTuple):
    prefix: str
    as_written: str
    """Without prefix and version."""
    gene: str
    """In upper case, without prefix."""
    bare: str
    """In upper case, without prefix and version."""


def _parts(name: str) -> _Parts:
    prefix = _GENOME.match(name)
    gene = name[prefix.end() :] if prefix else name
    bare = _VERSION.sub("", gene)
    return _Parts(prefix.group().upper() if prefix else "", bare, gene.upper(), bare.upper())


def _difference(one: _Parts, other: _Parts) -> frozenset[str]:
    differs = {
        "case": one.as_written != other.as_written,
        "prefix": one.prefix != other.prefix,
        "version": one.gene != other.gene,
    }
    return frozenset(what for what, is_so in differs.items() if is_so)


def spelling(found: Sequence[Twin]) -> tuple[str, str]:
    """How twins are found, and examples."""
    reasons = frozenset[str]().union(*(twin.reasons for twin in found))
    how = " and ".join(text for what, text in _HOW.items() if what in reasons)
    return how, some(f"{twin.name} – {twin.other}" for twin in found)


def spelling_hint(names: Iterable[str], known: Iterable[str]) -> str:
    """A sentence to end a message about missing names with: some are there, spelt otherwise. Else nothing."""
    found = twins(names, known)
    if not found:
        return ""
    how, shown = spelling(found)
    return f" {len(found)} of them {'is' if len(found) == 1 else 'are'} there {how} ({shown}): rename them if they are the same genes."


def _naming_hint(expected: pd.Index, found: pd.Index, var: pd.DataFrame | None) -> str:
    """What most likely went wrong when names do not match."""
    n_here = int(expected.isin(found).sum())
    var = pd.DataFrame() if var is None else var
    for column in var.columns:
        n_there = int(expected.isin(pd.Index(var[column]).astype(str)).sum())
        if n_there > n_here:
            return f"`var[{column!r}]` has {n_there} of them: use it as `var_names`."
    if looks_like_ensembl(expected) != looks_like_ensembl(found):
        kinds = ("Ensembl identifiers", "symbols")
        learned, given = kinds if looks_like_ensembl(expected) else kinds[::-1]
        return f"The model learned {learned}, these look like {given}: rename `var_names`."
    pairs = twins(expected, found)
    if not pairs:
        return "Use an AnnData that has all of them, or fit a model on the genes both have."
    how, shown = spelling(pairs)
    remedy = "strip it on both sides."
    if any("case" in twin.reasons for twin in pairs):
        remedy = (
            "is it the same species, spelt the same way? Names like Gad1 are mouse, GAD1 human. Use data of one species, "
            "or rename to orthologues."
        )
    return f"{len(pairs)} match {how} ({shown}): {remedy}"
