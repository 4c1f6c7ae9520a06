"""What every code stands for: how often it is used, its marker genes, and what image and expression codes say about
each other.

n spots, G genes, M tokens, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from stgen._warn import warn
from stgen.nn._quantize import perplexity

from ._sections import Section

MIN_SPOTS_OF_CODE = 5
"""Codes of fewer spots have no marker genes."""


class Books(NamedTuple):
    """Size of a side's codebooks."""

    n_tokens: int
    n_codes: int


class CodeUse:
    """Counts of codes, of their genes, and of pairs of codes, summed over sections."""

    def __init__(
        self, books: dict[str, Books], n_genes: int, n_permutations: int, rng: np.random.Generator
    ) -> None:
        self.books, self.n_permutations, self.rng = books, n_permutations, rng
        self.used = {side: np.zeros(book) for side, book in books.items()}
        self.z = np.zeros((books["expression"].n_tokens * books["expression"].n_codes, n_genes))
        """(M · K, G): sum of standardised expression over the spots of a code."""
        n_image, n_own = (book.n_tokens * book.n_codes for book in (books["histology"], books["expression"]))
        self.met = np.zeros((n_image, n_own))
        """Spots with both an image code and an expression code."""
        self.met_by_chance = np.zeros((n_permutations, n_image, n_own), dtype=np.float32)
        """The same after shuffling the section's spots."""

    def add(self, section: Section) -> None:
        """Count the codes of the next section."""
        n_own = self.books["expression"].n_codes
        one_hot = {side: _one_hot(section.codes[side], book.n_codes) for side, book in self.books.items()}
        for side, used in self.used.items():
            used += np.asarray(one_hot[side].sum(axis=0)).reshape(used.shape)
        self.z += one_hot["expression"].T @ _standardised(section.measured)
        seen, own = one_hot["histology"], section.codes["expression"]
        self.met += (seen.T @ one_hot["expression"]).toarray()
        for by_chance in self.met_by_chance:
            by_chance += (seen.T @ _one_hot(own[self.rng.permutation(len(own))], n_own)).toarray()

    def codes(self) -> pd.DataFrame:
        """One row per code of expression."""
        own, said = self.used["expression"], self.used["translated"]
        token, code = np.indices(own.shape)
        n = own[0].sum()
        return pd.DataFrame(
            {
                "token": token.ravel() + 1,
                "code": code.ravel(),
                "n_spots": own.ravel().astype(np.int64),
                "usage": own.ravel() / n,
                "usage_translated": said.ravel() / n,
            }
        )

    def tokens(self) -> pd.DataFrame:
        """One row per token of each side."""
        parts = [
            pd.DataFrame(
                {
                    "side": side,
                    "token": np.arange(1, len(n) + 1),
                    "n_codes": n.shape[1],
                    "n_used": (n > 0).sum(axis=1),
                    "perplexity": perplexity_of(n),
                }
            )
            for side, n in self.used.items()
        ]
        return pd.concat(parts, ignore_index=True)

    def markers(self, genes: Sequence[str], n_markers: int) -> pd.DataFrame:
        """Genes that are highest in a code's spots: mean standardised expression there minus that of all other spots."""
        n_in, n_spots = self.used["expression"].ravel(), self.used["expression"][0].sum()
        rows = np.flatnonzero((n_in >= MIN_SPOTS_OF_CODE) & (n_spots - n_in >= MIN_SPOTS_OF_CODE))
        inside, outside = n_in[rows, None], (n_spots - n_in)[rows, None]
        # standardised within sections, so the spots without the code have the opposite sum
        difference = self.z[rows] / inside + self.z[rows] / outside
        best = np.argsort(-difference, axis=1, kind="stable")[:, :n_markers]
        k = best.shape[1]
        token, code = np.divmod(rows, self.books["expression"].n_codes)
        return pd.DataFrame(
            {
                "token": np.repeat(token + 1, k),
                "code": np.repeat(code, k),
                "rank": np.tile(np.arange(1, k + 1), len(rows)),
                "gene": np.array(list(genes), dtype=object)[best].ravel(),
                "difference": np.take_along_axis(difference, best, axis=1).ravel(),
            }
        )

    def information(self) -> pd.DataFrame:
        """One row per pair of tokens: bits, raw and without those that shuffled spots have."""
        image, own = self.books["histology"], self.books["expression"]

        def by_pair(met: np.ndarray) -> np.ndarray:
            return mutual_information(met.reshape(*image, *own).swapaxes(1, 2))

        bits = by_pair(self.met)
        image_token, own_token = np.indices(bits.shape) + 1
        null = np.mean([by_pair(one) for one in self.met_by_chance], axis=0)
        return pd.DataFrame(
            {
                "image_token": image_token.ravel(),
                "expression_token": own_token.ravel(),
                "bits": bits.ravel(),
                "bits_corrected": (bits - null).ravel(),
            }
        )


def perplexity_of(used: np.ndarray) -> np.ndarray:
    """How many codes, equally used, would be as varied: (M, K) spots → (M,)."""
    return perplexity(torch.from_numpy(used / np.maximum(used.sum(axis=1, keepdims=True), 1))).numpy()


def warn_of_collapse(side: str, used: np.ndarray, where: str) -> None:
    """Say so when tokens have hardly any codes left: fewer than a tenth of them, or a perplexity below 2."""
    n_codes = used.shape[1]
    n_used, varied = (used > 0).sum(axis=1), perplexity_of(used)
    # of few codes even a healthy perplexity is small
    least = min(2.0, 1 + 0.1 * (n_codes - 1))
    collapsed = np.flatnonzero((n_used < 0.1 * n_codes) | (varied < least))
    if len(collapsed) == 0:
        return
    worst = collapsed[varied[collapsed].argmin()]
    option = "n_image_codes" if side == "histology" else "n_codes"
    tokens = "n_image_tokens" if side == "histology" else "n_tokens"
    warn(
        f"{len(collapsed)} of {len(used)} codebooks of {side} have collapsed: on {where}, token {worst + 1} uses "
        f"{n_used[worst]} of {n_codes} codes (perplexity {varied[worst]:.1f}). Look whether the {side} varies at all; "
        f"then lower `{tokens}` (tokens with nothing to say collapse first) or `{option}`, lower `commitment`, or train "
        "for more epochs."
    )


def _one_hot(codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    """(n, M) code numbers → (n, M · K)."""
    n, n_tokens = codes.shape
    column = codes + n_codes * np.arange(n_tokens)
    shape = (n, n_tokens * n_codes)
    return sparse.csr_matrix(
        (np.ones(n * n_tokens), column.ravel(), np.arange(n + 1) * n_tokens), shape=shape
    )


def _standardised(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)


def mutual_information(met: np.ndarray) -> np.ndarray:
    """Bits that two codes say about each other: (…, K_i, K_e) spots → (…)."""
    p = met / met.sum(axis=(-2, -1), keepdims=True)
    apart = p.sum(axis=-1, keepdims=True) * p.sum(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log2(p / apart), 0.0).sum(axis=(-2, -1))
