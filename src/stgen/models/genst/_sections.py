"""The spots that a report is of, section by section: what was measured and what the model says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from stgen._labels import read_labels
from stgen._warn import warn
from stgen.data._fields import CoordinatesField, PatientField
from stgen.data._loaders import Batches
from stgen.data._names import some
from stgen.data._rows import row_numbers
from stgen.data._splits import read_split

if TYPE_CHECKING:
    from anndata import AnnData

    from ._model import GenST

MIN_SPOTS = 10
"""Sections with fewer spots take no part: correlations over so few say nothing."""
SIDES = ("expression", "translated", "histology")


class Section(NamedTuple):
    """What is known of the spots of one section."""

    counts: np.ndarray
    measured: np.ndarray
    """(n, G), normalised scale."""
    own: np.ndarray
    """(n, G) made again from the gene's own codes."""
    cross: np.ndarray
    """(n, G) predicted from the image."""
    codes: dict[str, np.ndarray]
    """Side → (n, M)."""
    xy: np.ndarray


def rows_to_report(
    adata: AnnData, split_key: str | None, indices: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    """Rows asked for; else the test rows, else the validation rows, else all."""
    if indices is not None:
        rows = row_numbers(adata, indices)
        if len(rows) == 0:
            raise ValueError(
                "`indices` names no spot. Leave it out to take those the model has not learned from."
            )
        return np.unique(rows)
    if split_key is not None and split_key in adata.obs:
        roles = read_split(adata.obs, split_key)
        for mask in (roles.test, roles.validation):
            if mask.any():
                return np.flatnonzero(mask)
    return np.arange(adata.n_obs)


def warn_of_learned(model: GenST, adata: AnnData, rows: np.ndarray) -> None:
    """Spots the model has learned from, or spots of their sections and patients, flatter it."""
    said = []
    n_learned = int(model._learned(adata)[rows].sum())
    said += [f"{n_learned} of these {len(rows)} spots"] if n_learned else []
    fields = (("section", model._field(CoordinatesField).library_key, "training_sections"),
              ("patient", model._field(PatientField).key, "training_patients"))  # fmt: skip
    for what, key, known in fields:
        if key is not None and key in adata.obs:
            both = sorted(set(read_labels(adata.obs[key].iloc[rows]).dropna()) & set(model.card[known]))
            said += [f"{what} {some(both)}"] if both else []
    if said:
        warn(
            f"The model was trained on {' and '.join(said)}: what it captures there says little about new patients. "
            "Report on patients that it has not seen: call them 'test' with `stg.pp.split` before training, or give "
            "another AnnData."
        )


def section_rows(model: GenST, adata: AnnData, rows: np.ndarray) -> list[np.ndarray]:
    """Rows of each section that is large enough."""
    key = model._field(CoordinatesField).library_key
    if key is None or key not in adata.obs:
        parts = [rows]
    else:
        label = pd.factorize(adata.obs[key].iloc[rows], sort=True)[0]
        parts = [rows[label == one] for one in np.unique(label)]
    enough = [part for part in parts if len(part) >= MIN_SPOTS]
    if not enough:
        raise ValueError(
            f"A report needs a section with at least {MIN_SPOTS} spots that the model has not learned from; the largest "
            f"of {len(parts)} has {max(map(len, parts))}. Hold out more spots, or say which with `indices=`."
        )
    if len(enough) < len(parts):
        n_left = sum(map(len, parts)) - sum(map(len, enough))
        warn(
            f"{n_left} spots lie in sections with fewer than {MIN_SPOTS} of them and take no part in the report."
        )
    return enough


@torch.no_grad()
def sections_of(
    model: GenST, adata: AnnData, sections: list[np.ndarray], batch_size: int | None
) -> Iterator[Section]:
    """What is known of each, one at a time."""
    model._check_inputs(adata)
    module, table, device = model.module, model._table(adata, targets=True), model.device
    for rows in sections:
        made: list[list[np.ndarray]] = []
        for batch in Batches(table, rows, batch_size or 256):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            measured = module._expression(batch)
            code = module.expression.books.nearest(module.expression.encode(measured))
            said = module.translate(batch)
            seen = module.image.books.nearest(module.image.encode(module._features(batch)))
            parts = (
                batch["counts"],
                measured,
                module.decode(module.expression.books.look_up(code)),
                module.decode(module.expected_code(said)),
                code,
                said.log_probability.argmax(-1),
                seen,
                batch["xy"],
            )
            made.append([part.cpu().numpy() for part in parts])
        whole = [np.concatenate(part) for part in zip(*made, strict=True)]
        counts, expression, own, cross = whole[:4]
        yield Section(counts, expression, own, cross, dict(zip(SIDES, whole[4:7], strict=True)), whole[7])


def books_of(model: GenST, side: str) -> Any:
    return (model.module.image if side == "histology" else model.module.expression).books
