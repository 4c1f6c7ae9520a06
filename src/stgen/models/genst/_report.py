"""What of every gene morphology shows, and what every code stands for, on spots that the model has not learned from.

The share of a gene that its image captures is r²/reliability. r is the correlation of what is predicted from the image
alone with what is measured; no prediction can correlate better than √reliability, since the rest of the measured
variance is the luck of which molecules were caught. Reliability comes from halving: every molecule goes to one of two
halves by a coin, which makes two measurements of the same spot; their correlation, stepped up to the full depth
(Spearman-Brown, 2r / (1 + r)), is the share of measured variance that a second measurement would show again. The ratio
to what the gene's own codes reach (the ceiling) would not do: codes also keep noise, and a noisy gene has little of
either.

Correlations are per section, on the normalised scale, and averaged over sections before anything is squared: the square
of a noisy number is too large.

n spots, G genes, M tokens, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from stgen import _keys
from stgen._warn import warn
from stgen.data._fields import CoordinatesField, CountsField, PatientField, check_counts
from stgen.data._loaders import Batches
from stgen.data._names import some
from stgen.metrics import normalize_panel, pearson
from stgen.metrics._bootstrap import draw_weights, pearson_draws, percentile_interval, spatial_blocks
from stgen.models._facts import positions
from stgen.nn._quantize import perplexity

if TYPE_CHECKING:
    from anndata import AnnData

    from ._model import GenST

MIN_RELIABILITY = 0.1
"""Below this a captured share is not told: it would be one small number divided by another."""
MIN_SPOTS = 10
"""Sections with fewer spots take no part: correlations over so few say nothing."""
MIN_SPOTS_OF_CODE = 5
"""Codes of fewer spots have no marker genes."""
LEVEL = 0.95
SIDES = ("expression", "translated", "histology")


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
    """What the intervals draw with replacement: ``"sections"`` or ``"blocks"``."""
    n_spots: int
    """Spots that the report is of."""


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
    target = float(model.module.target_total)
    n_codes = {side: _books(model, side).n_codes for side in SIDES}
    n_tokens = {side: len(_books(model, side).codes) for side in SIDES}
    used = {side: np.zeros((n_tokens[side], n_codes[side])) for side in SIDES}
    shared, chance = None, None
    z_of_code = np.zeros((n_tokens["expression"] * n_codes["expression"], len(model.genes)))
    scored: list[dict[str, np.ndarray]] = []
    sections = _section_rows(model, adata, rows)
    block_draws = None
    for section in _sections(model, adata, sections, batch_size):
        resample = _Blocks.of(section, n_boot, rng) if len(sections) == 1 else None
        half, half_drawn = [], []
        for _ in range(n_halvings):
            pair = halved(section.counts, target, rng)
            half.append(pearson(*pair))
            half_drawn += [resample.correlation(*pair)] if resample else []
        scored.append(
            {
                "r_cross": pearson(section.measured, section.cross),
                "ceiling": pearson(section.measured, section.own),
                "reliability": stepped_up(_mean(half)),
                "n_spots": np.where(np.ptp(section.measured, axis=0) > 0, len(section.counts), 0),
            }
        )
        if resample:
            r_drawn = resample.correlation(section.measured, section.cross)
            block_draws = r_drawn, stepped_up(_mean(half_drawn))
        one_hot = {side: _one_hot(section.codes[side], n_codes[side]) for side in SIDES}
        for side in SIDES:
            used[side] += np.asarray(one_hot[side].sum(axis=0)).reshape(used[side].shape)
        z_of_code += one_hot["expression"].T @ _standardised(section.measured)
        pairs, by_chance = _pairs(section, one_hot["histology"], n_codes["expression"], n_permutations, rng)
        shared = pairs if shared is None else shared + pairs
        chance = by_chance if chance is None else [a + b for a, b in zip(chance, by_chance, strict=True)]
    assert shared is not None and chance is not None
    genes = _gene_table(model.genes, scored, block_draws, n_boot, rng)
    n_spots = sum(map(len, sections))
    tokens = _token_table(used)
    for side in ("expression", "histology"):
        warn_of_collapse(side, used[side], f"these {n_spots} spots")
    codes = _code_table(used)
    return Report(
        genes=genes,
        codes=codes,
        markers=_marker_table(codes, z_of_code, n_spots, model.genes, n_markers),
        tokens=tokens,
        information=_information_table(shared, chance, n_tokens, n_codes),
        drawn="blocks" if block_draws is not None else "sections",
        n_spots=n_spots,
    )


# ---------------------------------------------------------------------------------------------------------- which spots


def rows_to_report(
    adata: AnnData, split_key: str | None, indices: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    """Rows asked for; else the test rows, else the validation rows, else all."""
    if indices is not None:
        rows = positions(indices, adata.n_obs)
        if len(rows) == 0:
            raise ValueError(
                "`indices` names no spot. Leave it out to take those the model has not learned from."
            )
        return np.unique(rows)
    if split_key is not None and split_key in adata.obs:
        role = adata.obs[split_key].astype(str).to_numpy()
        for name in (_keys.TEST, _keys.VALIDATION):
            if (role == name).any():
                return np.flatnonzero(role == name)
    return np.arange(adata.n_obs)


def warn_of_learned(model: GenST, adata: AnnData, rows: np.ndarray) -> None:
    """Spots the model has learned from, or spots of their sections and patients, flatter it."""
    said = []
    if adata is model._adata and getattr(model, "train_indices_", None) is not None:
        n_learned = int(np.isin(rows, model.train_indices_).sum())
        said += [f"{n_learned} of these {len(rows)} spots"] if n_learned else []
    fields = (("section", model._field(CoordinatesField).library_key, "training_sections"),
              ("patient", model._field(PatientField).key, "training_patients"))  # fmt: skip
    for what, key, known in fields:
        if key is not None and key in adata.obs:
            both = sorted(set(adata.obs[key].iloc[rows].astype(str)) & set(model.card[known]))
            said += [f"{what} {some(both)}"] if both else []
    if said:
        warn(
            f"The model was trained on {' and '.join(said)}: what it captures there says little about new patients. "
            "Report on patients that it has not seen: call them 'test' with `stg.pp.split` before training, or give "
            "another AnnData."
        )


def _section_rows(model: GenST, adata: AnnData, rows: np.ndarray) -> list[np.ndarray]:
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


# ------------------------------------------------------------------------------------------------- what the model says


@torch.no_grad()
def _sections(
    model: GenST, adata: AnnData, sections: list[np.ndarray], batch_size: int | None
) -> Iterator[Section]:
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


def _books(model: GenST, side: str) -> Any:
    return (model.module.image if side == "histology" else model.module.expression).books


# ----------------------------------------------------------------------------------------------------------------- genes


def halved(counts: np.ndarray, target: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two measurements out of one: every molecule goes to one of two halves by a coin. Both on the normalised scale."""
    whole = np.rint(counts).astype(np.int64)
    half = rng.binomial(whole, 0.5)
    first, second = (normalize_panel(one, target=target) for one in (half, whole - half))
    return first, second


def stepped_up(r: np.ndarray) -> np.ndarray:
    """Reliability of the whole from the correlation of halves (Spearman-Brown)."""
    # a correlation below -1/3 is chance, and its pole at -1 would rule the mean over sections
    r = np.maximum(r, -1 / 3)
    return 2 * r / (1 + r)


def captured_share(r: np.ndarray, reliability: np.ndarray) -> np.ndarray:
    """r²/reliability: 0 where r < 0, NaN where reliability is near 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.maximum(r, 0) ** 2 / reliability
    return np.where(reliability >= MIN_RELIABILITY, share, np.nan)


class _Blocks(NamedTuple):
    """Draws of spatial blocks, for the intervals of a single section."""

    block: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, section: Section, n_boot: int, rng: np.random.Generator) -> _Blocks:
        block = spatial_blocks(section.xy)
        return cls(block, draw_weights(int(block.max()) + 1, n_boot, rng))

    def correlation(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Pearson correlations (draws, G)."""
        return pearson_draws(truth, prediction, self.block, self.weights)


def _gene_table(
    genes: Sequence[str],
    scored: list[dict[str, np.ndarray]],
    block_draws: tuple[np.ndarray, np.ndarray] | None,
    n_boot: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    of = {name: np.stack([one[name] for one in scored]) for name in scored[0]}
    # a constant prediction shows nothing of a gene that varies, which is 0
    of["r_cross"] = np.where(np.isnan(of["r_cross"]) & (of["n_spots"] > 0), 0.0, of["r_cross"])
    r, reliability = _mean(of["r_cross"]), _mean(of["reliability"])
    captured = captured_share(r, reliability)
    if block_draws is None:
        weights = draw_weights(len(scored), n_boot, rng)
        r_drawn, reliability_drawn = _drawn(of["r_cross"], weights), _drawn(of["reliability"], weights)
    else:
        r_drawn, reliability_drawn = block_draws
    # a draw of unreliable sections must not blow up the interval
    draws = captured_share(r_drawn, np.maximum(reliability_drawn, MIN_RELIABILITY))
    low, high = percentile_interval(draws, LEVEL)
    known = ~np.isnan(captured)
    return pd.DataFrame(
        {
            "captured": captured,
            "captured_low": np.where(known, low, np.nan),
            "captured_high": np.where(known, high, np.nan),
            "r_cross": r,
            "ceiling": _mean(of["ceiling"]),
            "reliability": reliability,
            "n_spots": of["n_spots"].sum(axis=0),
        },
        index=pd.Index(list(genes), name="gene"),
    )


def _mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    values = np.asarray(values)
    n = (~np.isnan(values)).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)


def _drawn(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (draws, G) over sections (S, G) drawn by weights (draws, S)."""
    known = ~np.isnan(values)
    n = weights @ known
    return np.where(n > 0, weights @ np.where(known, values, 0.0) / np.maximum(n, 1), np.nan)


# ----------------------------------------------------------------------------------------------------------------- codes


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


def _code_table(used: dict[str, np.ndarray]) -> pd.DataFrame:
    own, said = used["expression"], used["translated"]
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


def _token_table(used: dict[str, np.ndarray]) -> pd.DataFrame:
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
        for side, n in used.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _marker_table(
    codes: pd.DataFrame, total: np.ndarray, n_spots: int, genes: Sequence[str], n_markers: int
) -> pd.DataFrame:
    """Genes that are highest in a code's spots: mean standardised expression there minus that of all other spots."""
    n_in = codes["n_spots"].to_numpy()
    is_known = (n_in >= MIN_SPOTS_OF_CODE) & (n_spots - n_in >= MIN_SPOTS_OF_CODE)
    rows = np.flatnonzero(is_known)
    inside, outside = n_in[rows, None], (n_spots - n_in)[rows, None]
    # standardised within sections, so the spots without the code have the opposite sum
    difference = total[rows] / inside + total[rows] / outside
    best = np.argsort(-difference, axis=1, kind="stable")[:, :n_markers]
    k = best.shape[1]
    return pd.DataFrame(
        {
            "token": np.repeat(codes["token"].to_numpy()[rows], k),
            "code": np.repeat(codes["code"].to_numpy()[rows], k),
            "rank": np.tile(np.arange(1, k + 1), len(rows)),
            "gene": np.array(list(genes), dtype=object)[best].ravel(),
            "difference": np.take_along_axis(difference, best, axis=1).ravel(),
        }
    )


# ----------------------------------------------------------------------------------------------------------- information


def _pairs(
    section: Section, seen: sparse.csr_matrix, n_codes: int, n_permutations: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """How often each image code meets each expression code, as measured and after shuffling the section's spots."""
    codes = section.codes["expression"]

    def meet(codes: np.ndarray) -> np.ndarray:
        return (seen.T @ _one_hot(codes, n_codes)).toarray()

    return meet(codes), [meet(codes[rng.permutation(len(codes))]) for _ in range(n_permutations)]


def mutual_information(met: np.ndarray) -> np.ndarray:
    """Bits that two codes say about each other: (…, K_i, K_e) spots → (…)."""
    p = met / met.sum(axis=(-2, -1), keepdims=True)
    apart = p.sum(axis=-1, keepdims=True) * p.sum(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log2(p / apart), 0.0).sum(axis=(-2, -1))


def _information_table(
    shared: np.ndarray, chance: list[np.ndarray], n_tokens: dict[str, int], n_codes: dict[str, int]
) -> pd.DataFrame:
    def by_pair(met: np.ndarray) -> np.ndarray:
        shape = n_tokens["histology"], n_codes["histology"], n_tokens["expression"], n_codes["expression"]
        return mutual_information(met.reshape(shape).swapaxes(1, 2))

    bits = by_pair(shared)
    image, expression = np.indices(bits.shape) + 1
    null = np.mean([by_pair(one) for one in chance], axis=0)
    return pd.DataFrame(
        {
            "image_token": image.ravel(),
            "expression_token": expression.ravel(),
            "bits": bits.ravel(),
            "bits_corrected": (bits - null).ravel(),
        }
    )
