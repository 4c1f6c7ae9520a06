"""A question about a perturbation, checked; and its way from cells to a table.

n cells, R rings, P pairs, T genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen._by_name import in_order
from stgen._labels import read_labels, spelling

from ...data._names import some, spelling_hint
from ...data._rows import read_mask
from ._counterfactual import Counterfactual, Tissue, nearest_other
from ._perturbation import (
    MIN_PAIRS,
    MODES,
    NULLS,
    Change,
    compare_calls,
    distance_to,
    dose,
    inflation,
    less_common,
    looks_changed,
    pair_up,
    paired_differences,
    region_change,
    ring_of,
    sham_test,
    shams_of,
    sign_flip_z,
    table_of,
    tail,
    typical_size,
    unusual,
)

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Question:
    """What is changed, and how it is judged; see :meth:`stgen.models.GeST.perturb`."""

    region: np.ndarray
    """Rows of the region."""
    mode: str
    """How expression changes."""
    genes: np.ndarray | None
    """Numbers of the changed genes."""
    profile: np.ndarray | None
    """(T,) what replaces expression."""
    sigma_um: float | None
    """Width of the change, µm; ``None`` changes the whole region alike."""
    edges: np.ndarray
    """Edges of the rings, µm."""
    null: str
    """What the effect is judged against."""
    n_shams: int
    """Sham changes."""
    max_pairs: int
    """Pairs of instance and control at most."""
    alpha: float
    """False discovery rate."""
    instance: np.ndarray | None
    """(n,) cells of the type the user names; without it, cells that look changed."""
    kind: np.ndarray
    """(n,) codes of kinds of cells, each compared with its own."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left of a changed cell's expression."""
        return self.mode == "replace"


def check_choices(
    mode: str, null: str, *, genes: Any, profile: Any, cell_type: Any, sigma_um: float | None, alpha: float
) -> None:
    """Refuse words that are not known and words that do not go together."""
    for name, value, choices in (("mode", mode, MODES), ("null", null, NULLS)):
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    if mode == "replace":
        if (profile is None) == (cell_type is None) or genes is not None:
            raise ValueError(
                "`mode='replace'` needs a `profile` or a `cell_type`, one of them, and no `genes`."
            )
        if sigma_um is not None:
            raise ValueError(
                "`sigma_um` belongs to `mode='activate'` and `'inhibit'`; a replaced cell is replaced."
            )
    elif genes is None or profile is not None or cell_type is not None:
        raise ValueError(f"`mode={mode!r}` needs `genes`, and neither `profile` nor `cell_type`.")
    if sigma_um is not None and not sigma_um > 0:
        raise ValueError(f"`sigma_um` must be a length in µm above 0; got {sigma_um!r}.")
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be between 0 and 1; got {alpha!r}.")


def check_numbers(**numbers: int) -> None:
    """Refuse numbers below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1; got {number!r}.")


def column(obs: pd.DataFrame, name: str) -> pd.Series:
    """A column of ``obs`` that must be there."""
    if name not in obs:
        raise KeyError(f"obs[{name!r}] does not exist; obs has {list(obs.columns)}.")
    return obs[name]


def check_labels(
    obs: pd.DataFrame, labels_key: str | None, cell_type: str | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Codes of kinds of cells, and which cells are of the named type, as far as the user says."""
    if labels_key is None:
        if cell_type is not None:
            raise ValueError("`cell_type` needs `labels_key`, the column of `obs` with cell types.")
        return None, None
    labels = read_labels(column(obs, labels_key), f"obs[{labels_key!r}]")
    kind = pd.factorize(labels)[0]
    if cell_type is None:
        return kind, None
    if spelling(cell_type) not in set(labels.dropna()):
        raise ValueError(
            f"`cell_type` must be one of obs[{labels_key!r}], {some(sorted(set(labels.dropna())))}; got {cell_type!r}."
        )
    return kind, (labels == spelling(cell_type)).to_numpy()


def checked_region(adata: AnnData, region: Any) -> np.ndarray:
    """The region as a mask over cells (n,), if it is some of them and leaves some."""
    inside = read_mask(adata, region, "`region`")
    if not inside.any():
        raise ValueError("`region` holds no cell. Coordinates and region must be in the same unit, µm.")
    if inside.all():
        raise ValueError(
            f"`region` holds all {len(inside)} cells, so none is left around it to be generated."
        )
    return inside


def check_genes(genes: Sequence[str] | str, panel: Sequence[str]) -> np.ndarray:
    """Numbers of genes in the model's panel."""
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if not wanted:
        raise ValueError("`genes` names no gene.")
    number = {gene: i for i, gene in enumerate(panel)}
    missing = [gene for gene in wanted if gene not in number]
    if missing:
        raise ValueError(
            f"`genes` must be in the model's panel of {len(panel)} genes; {some(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not. The panel has {some(list(panel))}.{spelling_hint(missing, panel)}"
        )
    return np.array([number[gene] for gene in dict.fromkeys(wanted)])


def check_profile(profile: Any, panel: Sequence[str]) -> np.ndarray:
    """(T,) log-normalised profile: values in the order of the panel, or anything by gene."""
    if isinstance(profile, Mapping):
        profile = pd.Series(profile)
    if isinstance(profile, pd.DataFrame) and 1 in profile.shape:
        profile = profile.iloc[0] if len(profile) == 1 else profile.iloc[:, 0]
    named = profile.index.astype(str) if isinstance(profile, pd.Series) else pd.Index([])
    missing = [gene for gene in panel if gene not in named]
    profile = in_order(
        profile,
        pd.Index(panel),
        "`profile`",
        of="genes of the model's panel",
        remedy="A gene that is not expressed is 0." + spelling_hint(missing, map(str, named)),
    )
    values = np.asarray(profile, dtype=np.float32)
    if values.shape != (len(panel),) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"`profile` must be log-normalised expression of the model's {len(panel)} genes, finite and not negative; "
            f"got shape {values.shape}."
        )
    return values


def answer(
    question: Question,
    model: Counterfactual,
    genes: Sequence[str],
    degs: Mapping[str, str] | pd.Series | None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The table of effects; facts about it in ``attrs``."""
    tissue, edges = model.tissue, question.edges
    distance = distance_to(tissue.xy, tissue.section, question.region)
    ring = ring_of(distance, edges)
    ring[question.region] = -1
    cells = np.flatnonzero(ring >= 0)
    if len(cells) == 0:
        raise ValueError(
            f"No cell lies within {edges[-1]:g} µm of the region, so there is nothing to generate. "
            "Widen `rings_um` or choose another region."
        )
    rho = _from_centre(tissue, question.region)
    change = region_change(
        tissue.x,
        question.region,
        rho,
        mode=question.mode,
        genes=question.genes,
        profile=question.profile,
        sigma_um=question.sigma_um,
    )
    shift = model.around_region(change, cells, whole=question.whole)
    generated = _by_ring(shift, ring[cells], len(edges) - 1)
    n_cells = np.bincount(ring[cells], minlength=len(edges) - 1)
    columns: dict[str, np.ndarray] = {"n_cells": n_cells[:, None], "generated": generated}
    facts: dict[str, Any] = {
        "null": question.null,
        "quantized": model.quantized,
        "share_changed": float((model.changed_labels(change) != tissue.label[change.rows]).mean()),
    }
    if question.null == "sham":
        shams = shams_of(change, tissue.x.mean(axis=0), n_shams=question.n_shams, rng=rng, mode=question.mode)
        responses = np.stack(
            [
                _by_ring(model.around_region(sham, cells, whole=question.whole), ring[cells], len(edges) - 1)
                for sham in shams
            ]
        )
        z, p = sham_test(generated, responses)
        columns |= {"effect": generated, "z": z, "p": p}
        facts["n_draws"] = int(responses[:, 0].size)
        shifted = None
    else:
        found, shifted = _in_tissue(question, model, shift, ring[cells], rng)
        columns |= {name: found.pop(name) for name in ("effect", "observed", "dose", "z", "p")}
        facts |= found
    table = table_of(genes, edges, columns, question.alpha)
    # a ring without cells has no effect to speak of
    empty = (table["n_cells"] == 0).to_numpy()
    table.loc[empty, "call"] = "n.s."
    table.attrs |= facts
    if degs is not None:
        table.attrs["comparison"] = compare_calls(table, degs, _baselines(change, generated, shifted))
    return table


def _in_tissue(
    question: Question, model: Counterfactual, shift: np.ndarray, ring: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray]:
    """Effects borne out by cells around instances and controls; and the plain mean shift of cells next to instances."""
    tissue, edges, n_rings = model.tissue, question.edges, len(question.edges) - 1
    instance = question.instance
    if instance is None:
        instance = looks_changed(tissue.x, mode=question.mode, genes=question.genes, profile=question.profile)
    found, control = pair_up(
        tissue.xy,
        tissue.section,
        instance,
        within_um=model.grid.window_um,
        max_pairs=question.max_pairs,
        rng=rng,
    )
    n_pairs = len(found)
    if n_pairs < MIN_PAIRS:
        raise ValueError(
            f"At least {MIN_PAIRS} cells that look as if changed already, each with another cell nearby, are needed to "
            f"judge the effect by the tissue; found {n_pairs}. Use `null='sham'`, which judges the model alone."
        )
    rows = np.concatenate([found, control])
    other = ~instance
    other[control] = False
    like = nearest_other(tissue, rows, other)
    base = tissue.label.copy()
    base[rows] = tissue.label[like]
    start = tissue.x[like]
    after = region_change(
        np.concatenate([start, tissue.x]),
        np.arange(len(rows)),
        np.zeros(len(rows)),
        mode=question.mode,
        genes=question.genes,
        profile=question.profile,
    ).after
    answers = model.around_each(
        Change(rows, start, after), other, edges, base=base, whole=question.whole, rng=rng
    )
    typical = typical_size(answers, n_rings)
    weight = dose(answers.shift, answers.ring, typical)
    odd = unusual(tissue.x, _codes(tissue.section, question.kind), other)
    difference, square = paired_differences(answers, weight, odd, n_pairs, n_rings)
    z, spread = sign_flip_z(difference)
    z = less_common(z)
    observed = z * spread / np.maximum(square, 1e-12)[:, None]
    wider = inflation(z)
    components = model.network.words.components.cpu().numpy()
    region_dose = _by_ring(dose(shift @ components.T, ring, typical)[:, None], ring, n_rings)
    result = {
        "effect": observed * region_dose,
        "observed": observed,
        "dose": region_dose,
        "z": z / wider,
        "p": tail(z / wider, n_pairs - 1),
        "n_pairs": n_pairs,
        "inflation": wider,
    }
    return result, _plain_shift(tissue, instance, edges[-1])


def _plain_shift(tissue: Tissue, instance: np.ndarray, reach: float) -> np.ndarray:
    """(T,) cells within reach of an instance less all others: what one sees without controls."""
    near = distance_to(tissue.xy, tissue.section, np.flatnonzero(instance)) < reach / 2
    near, far = near & ~instance, ~near & ~instance
    if not near.any() or not far.any():
        return np.zeros(tissue.x.shape[1])
    return tissue.x[near].mean(axis=0) - tissue.x[far].mean(axis=0)


def _baselines(change: Change, generated: np.ndarray, shifted: np.ndarray | None) -> dict[str, np.ndarray]:
    """Changes (T,) that simpler answers would give."""
    baselines = {
        "generated change, untested": generated[0],
        "copy of the region's own change": (change.after - change.before).mean(axis=0),
    }
    return baselines if shifted is None else baselines | {"mean shift of neighbours": shifted}


def _from_centre(tissue: Tissue, rows: np.ndarray) -> np.ndarray:
    """Distance of the region's cells to the middle of the region's part in their section."""
    rho = np.empty(len(rows))
    for code in np.unique(tissue.section[rows]):
        here = tissue.section[rows] == code
        place = tissue.xy[rows[here]]
        rho[here] = np.linalg.norm(place - place.mean(axis=0), axis=1)
    return rho


def _by_ring(values: np.ndarray, ring: np.ndarray, n_rings: int) -> np.ndarray:
    """(R, …) means over the cells of each ring; 0 where there is none."""
    total = np.zeros((n_rings, values.shape[1]))
    np.add.at(total, ring, values)
    return total / np.maximum(np.bincount(ring, minlength=n_rings), 1)[:, None]


def _codes(*columns: np.ndarray) -> np.ndarray:
    """One code for every combination."""
    return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].ravel()
