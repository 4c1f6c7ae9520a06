"""The split, written where everybody can see it: a column of ``obs``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.data._names import some
from stgen.data._places import library_column, read_places
from stgen.data._splits import (
    ROLES,
    Roles,
    block_labels,
    check_training_left,
    read_split,
    split_groups,
    too_close,
)

from ._editing import check_adata, editable, obs_column

if TYPE_CHECKING:
    from anndata import AnnData

WAYS = ("section", "patient", "block", "random")


@shared_doc
def split(
    adata: AnnData,
    *,
    by: str = "section",
    validation: float | str | Sequence[str] = 0.1,
    test: float | str | Sequence[str] = 0.2,
    library_key: str | None = None,
    patient_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    block_um: float = 1000.0,
    buffer_um: float = 0.0,
    within: str | None = None,
    key_added: str = _keys.SPLIT,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Divide spots into training, validation and test, and write it down.

    Training rows fit a model, validation rows choose when to stop, test rows choose nothing. Neighbouring
    spots resemble each other, and so do sections of one patient: what stays together decides what a score
    means.

    Parameters
    ----------
    adata
        %(adata)s
    by
        What stays together: ``"patient"`` (scores hold for new patients), ``"section"`` (for new sections of
        these patients), ``"block"`` (squares of tissue, for unseen places of these sections), or ``"random"``
        (single spots, which leaks from neighbour to neighbour and is for tests of code).
    validation, test
        Share of the spots, 0 for none; or names of the patients or sections. A share above 0 takes at least
        one patient, section or block, and as many as come closest to it.
    library_key
        Column of ``obs`` that tells sections apart; ``"section"`` if that exists, else the regions of a table of a
        SpatialData. Blocks are cut within sections.
    patient_key
        Column of ``obs`` that tells patients apart; ``"patient"`` if that exists.
    spatial_key
        %(spatial_key)s Read only for blocks.
    block_um
        Side of a block, µm.
    buffer_um
        With blocks: training spots closer than this to a validation or test spot are left out of all three
        and called ``"buffer"``.
    within
        Split only the rows that ``obs[key_added]`` calls this word, for example ``within="train"`` with ``test=0``
        to take validation blocks out of the training sections of an earlier split. Other rows keep what they
        are.
    key_added
        Column of ``obs`` that is written.
    random_state
        %(random_state)s
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``obs[key_added]``, categorical with the values ``"train"``,
    ``"validation"``, ``"test"`` (and ``"buffer"``), and ``uns[key_added]["params"]``.

    Raises
    ------
    ValueError
        If nothing is left for training (groups or names that take all, a buffer as wide as the blocks), a named
        section or patient does not exist, coordinates are not finite, or with ``within`` the earlier split holds
        other words or gaps.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    >>> stg.pp.split(adata, by="block", validation=0.15, test=0, block_um=400, within="train")
    """
    check_adata(adata, copy=copy)
    if by not in WAYS:
        raise ValueError(f"`by` must be one of {', '.join(map(repr, WAYS))}; got {by!r}.")
    if buffer_um < 0 or (buffer_um > 0 and by != "block"):
        raise ValueError(f"`buffer_um` is a distance in µm between blocks (`by='block'`); got {buffer_um!r}.")
    library_key = library_column(adata, library_key, usual=_keys.LIBRARY)
    before = None if within is None else _split_before(adata, within, key_added)
    section = _optional_column(adata, library_key, _keys.LIBRARY)
    patient = _optional_column(adata, patient_key, _keys.PATIENT)
    xy = read_places(adata, spatial_key, library_key).xy if by == "block" else None

    groups = _groups(adata, by, section, patient, xy, block_um)
    column = np.full(adata.n_obs, _keys.TRAIN, dtype=object)
    for word, mask in {} if before is None else before._asdict().items():
        column[mask] = word
    rows = np.ones(adata.n_obs, dtype=bool) if before is None else getattr(before, str(within))
    column[rows] = split_groups(
        groups[rows],
        validation=validation,
        test=test,
        random_state=random_state,
        what="spot" if by == "random" else by,
    )
    if xy is not None and buffer_um > 0:
        column[too_close(xy, section, column, buffer_um=buffer_um)] = _keys.BUFFER
    roles = read_split(pd.DataFrame({key_added: column}), key_added)
    check_training_left(roles, buffer_um=buffer_um, block_um=block_um)
    if patient is not None and by == "section":
        _warn_about_shared_patients(patient, roles)

    params: dict[str, Any] = {"by": by, "random_state": int(random_state)}
    params |= {"validation": _storable(validation), "test": _storable(test)}
    if by == "block":
        params |= {"block_um": float(block_um), "buffer_um": float(buffer_um)}
    if within is not None:
        params["within"] = within
    adata = editable(adata, copy=copy)
    adata.obs[key_added] = pd.Categorical(column, categories=ROLES if roles.buffer.any() else ROLES[:-1])
    adata.uns[key_added] = {"params": params}
    return adata if copy else None


def _split_before(adata: AnnData, within: str, key: str) -> Roles:
    """The earlier split, of which ``within`` is divided."""
    if within not in ROLES:
        raise ValueError(f"`within` must be one of {', '.join(map(repr, ROLES))}; got {within!r}.")
    roles = read_split(adata.obs, key)
    if not getattr(roles, within).any():
        raise ValueError(f"obs[{key!r}] calls no row {within!r}; it has {roles.counted()}.")
    return roles


def _optional_column(adata: AnnData, key: str | None, usual: str) -> np.ndarray | None:
    """The named column, else the usual one if it exists."""
    if key is None and usual not in adata.obs:
        return None
    return obs_column(adata, usual if key is None else key).to_numpy().astype(str)


def _groups(
    adata: AnnData,
    by: str,
    section: np.ndarray | None,
    patient: np.ndarray | None,
    xy: np.ndarray | None,
    block_um: float,
) -> np.ndarray:
    """What stays together."""
    if xy is not None:
        return block_labels(xy, section, block_um=block_um)
    if by == "random":
        return adata.obs_names.to_numpy().astype(str)
    column = section if by == "section" else patient
    if column is None:
        argument, usual = (
            ("library_key", _keys.LIBRARY) if by == "section" else ("patient_key", _keys.PATIENT)
        )
        raise KeyError(
            f"To split by {by}, name the column of `obs` with `{argument}=`; obs[{usual!r}] does not exist, "
            f"obs has {list(adata.obs.columns)}."
        )
    return column


def _warn_about_shared_patients(patient: np.ndarray, roles: Roles) -> None:
    """Sections of one patient resemble each other far more than sections of two."""
    shared = sorted(set(patient[roles.is_seen]) & set(patient[roles.test]))
    if shared:
        warnings.warn(
            f"Patient {some(shared)} has sections in training and in test: scores will be of known patients. "
            "Split `by='patient'` to score new ones.",
            UserWarning,
            stacklevel=3,
        )


def _storable(share: float | str | Sequence[str]) -> Any:
    """What h5ad and zarr can keep."""
    return share if isinstance(share, (int, float, str)) else np.array([str(name) for name in share])
