"""The report of GenST on spots that it has not learned from: what of every gene morphology shows, what codes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from stgen.data._fields import CountsField, check_counts

from ._capture import Capture
from ._code_use import Books, CodeUse, warn_of_collapse
from ._sections import SIDES, books_of, section_rows, sections_of

if TYPE_CHECKING:
    from anndata import AnnData

    from ._model import GenST


class Report(NamedTuple):
    """Tables of :meth:`GenST.report`."""

    genes: pd.DataFrame
    """One row per gene: ``captured`` with ``captured_low`` and ``captured_high``, ``r_cross``, ``ceiling``,
    ``reliability``, ``n_spots``."""
    codes: pd.DataFrame
    """One row per code of expression: ``token``, ``code``, ``n_spots``, ``usage``, ``usage_translated``."""
    markers: pd.DataFrame
    """Marker genes of codes: ``token``, ``code``, ``rank``, ``gene``, ``difference``."""
    tokens: pd.DataFrame
    """One row per token of each side: ``side``, ``token``, ``n_codes``, ``n_used``, ``perplexity``."""
    information: pd.DataFrame
    """One row per pair of tokens: ``image_token``, ``expression_token``, ``bits``, ``bits_corrected``."""
    drawn: str
    """What the intervals draw with replacement: ``"sections and blocks"``, or ``"blocks"`` of a single section."""
    n_spots: int
    """Spots that the report is of."""


def report_of(
    model: GenST,
    adata: AnnData,
    rows: np.ndarray,
    *,
    n_boot: int = 1000,
    n_halvings: int = 5,
    n_permutations: int = 20,
    n_markers: int = 10,
    batch_size: int | None = None,
    random_state: int = 0,
) -> Report:
    """The report on these rows; see :meth:`GenST.report`."""
    for name, number in (("n_boot", n_boot), ("n_halvings", n_halvings), ("n_permutations", n_permutations),
                         ("n_markers", n_markers)):  # fmt: skip
        if int(number) != number or number < 1:
            raise ValueError(f"`{name}` must be a whole number, at least 1; got {number!r}.")
    counts = model._field(CountsField)
    check_counts(counts.matrix(adata), counts.name)  # what is not a count cannot be halved
    rng = np.random.default_rng(random_state)
    sections = section_rows(model, adata, rows)
    capture = Capture(
        len(sections), float(model.module.target_total), n_boot=n_boot, n_halvings=n_halvings, rng=rng
    )
    books = {side: books_of(model, side) for side in SIDES}
    sizes = {side: Books(len(book.codes), book.n_codes) for side, book in books.items()}
    use = CodeUse(sizes, len(model.genes), n_permutations, rng)
    for section in sections_of(model, adata, sections, batch_size):
        capture.add(section)
        use.add(section)
    n_spots = sum(map(len, sections))
    for side in ("expression", "histology"):
        warn_of_collapse(side, use.used[side], f"these {n_spots} spots")
    return Report(
        genes=capture.table(model.genes),
        codes=use.codes(),
        markers=use.markers(model.genes, n_markers),
        tokens=use.tokens(),
        information=use.information(),
        drawn="blocks" if len(sections) == 1 else "sections and blocks",
        n_spots=n_spots,
    )
