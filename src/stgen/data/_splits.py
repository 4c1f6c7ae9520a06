"""Who trains, who chooses the stopping epoch, who is left alone: by patient, section, block or at random.

Everything is one rule. Spots come in groups that must stay together (a patient, a section, a block, or each
spot by itself); groups are shuffled, and test, then validation take as many as come closest to their share of
the spots. Groups are put in order by name first, so the answer does not depend on the order of rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from stgen import _keys
from stgen._labels import cast_hint, read_labels

Share = float | str | Sequence[str]
"""A share of the spots, or the names of groups."""


# ------------------------------------------------------------------------------------------------------------- reading


class Roles(NamedTuple):
    """Masks over spots, one for each word of a split; every spot is in one of them."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]
    buffer: NDArray[np.bool_]

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """Spots that training or stopping looks at."""
        return self.train | self.validation

    def counted(self) -> str:
        """How many spots have which role, for a message."""
        return ", ".join(f"{word} ({mask.sum()})" for word, mask in self._asdict().items() if mask.any())


ROLES = (_keys.TRAIN, _keys.VALIDATION, _keys.TEST, _keys.BUFFER)


def read_split(obs: pd.DataFrame, key: str) -> Roles:
    """The roles that a column of ``obs`` gives to spots. The only place where such a column is read.

    A word that is not known would silently take its spots out of training and out of every guard against spots that
    training has seen, so it is refused, as is a spot without one.
    """
    if key not in obs:
        raise KeyError(
            f"obs[{key!r}] does not exist; obs has {list(obs.columns)}. Write it with `stg.pp.split`."
        )
    words = read_labels(obs[key])
    strange = {str(word): n for word, n in words.value_counts().items() if word not in ROLES}
    found = [f"{word!r} ({n} spots)" for word, n in strange.items()]
    if n_missing := int(words.isna().sum()):
        found.append(f"{n_missing} missing{cast_hint(obs[key])}")
    if found:
        raise ValueError(
            f"obs[{key!r}] must hold {', '.join(map(repr, ROLES[:3]))}; found {_some(found)}{_meant(strange)} Write it with "
            f"`stg.pp.split`, or rename what it holds; spots that nobody may read are called {_keys.BUFFER!r}."
        )
    column = words.to_numpy()
    return Roles(*(column == word for word in ROLES))


def _meant(words: Iterable[str]) -> str:
    """The roles that were meant, most likely: the end of a sentence."""
    near = dict.fromkeys(role for role in map(_nearest, words) if role is not None)
    return f": did you mean {' and '.join(map(repr, near))}?" if near else "."


def _nearest(word: str) -> str | None:
    plain = word.strip().casefold()
    begun = [role for role in ROLES if plain and (role.startswith(plain) or plain.startswith(role))]
    near = begun if len(begun) == 1 else difflib.get_close_matches(plain, ROLES, 1)
    return near[0] if near else None


# ------------------------------------------------------------------------------------------------------------- writing


DEFAULT_FINER = "split finer, for example `by='block'`"
FINER = {"block": "make blocks smaller (`block_um=`)", "spot": "give more spots"}
"""What leaves more groups to divide, by what a group is."""


def split_groups(
    groups: ArrayLike,
    *,
    validation: Share = 0.0,
    test: Share = 0.0,
    random_state: int = 0,
    what: str = "group",
) -> NDArray[np.object_]:
    """Training, validation or test for every spot, so that no group is divided.

    Parameters
    ----------
    groups
        Group of every spot, any values.
    validation, test
        Share of the spots, 0 for none, or the groups by name. A share above 0 takes at least one group.
    random_state
        Seed of the shuffle.
    what
        How messages call a group.
    """
    names, codes, sizes = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    role = np.full(len(names), _keys.TRAIN, dtype=object)
    shuffled = np.random.default_rng(random_state).permutation(len(names))
    validation, test = _plain(validation), _plain(test)
    wanted = ((_keys.TEST, test), (_keys.VALIDATION, validation))
    # named groups first: a share must not draw a group that the user wanted elsewhere
    for label, share in wanted:
        if not isinstance(share, (int, float)):
            _assign_named(role, names, label, share, what)
    for label, share in wanted:
        if isinstance(share, (int, float)):
            free = shuffled[role[shuffled] == _keys.TRAIN]
            # one group stays for training, and one for validation while that is still to be drawn
            n_kept = 2 if label == _keys.TEST and _is_drawn(validation) else 1
            role[_draw(free, sizes, share, label, n_kept)] = label
    if not (role == _keys.TRAIN).any():
        raise ValueError(
            f"No {what} is left for training: there {'is' if len(names) == 1 else 'are'} {len(names)} "
            f"({_some(names)}), and `validation={validation!r}` and `test={test!r}` each take at least one. "
            f"Lower one of them to 0, name fewer, or {FINER.get(what, DEFAULT_FINER)}."
        )
    return role[codes.reshape(-1)]


def _assign_named(
    role: NDArray[np.object_], names: NDArray[np.str_], label: str, share: str | Sequence[str], what: str
) -> None:
    wanted = [share] if isinstance(share, str) else [str(name) for name in share]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"`{label}` names {what} {_some(missing)}, which does not exist; there are {_some(names)}."
        )
    chosen = np.isin(names, wanted)
    taken = names[chosen & (role != _keys.TRAIN)]
    if len(taken):
        raise ValueError(
            f"{what.capitalize()} {_some(taken)} is named for both validation and test. Name it once."
        )
    role[chosen] = label


def _plain(share: Any) -> Share:
    """Numbers of numpy as numbers of Python; names as they are."""
    return share.item() if isinstance(share, np.generic) else share


def _is_drawn(share: Share) -> bool:
    return isinstance(share, (int, float)) and share > 0


def _draw(
    free: NDArray[np.int64], sizes: NDArray[np.int64], share: float, label: str, n_kept: int
) -> NDArray[np.int64]:
    """The first groups in shuffled order whose spots come closest to the wanted share of all spots."""
    if not 0 <= share < 1:
        raise ValueError(
            f"`{label}` must be a share of the spots, at least 0 and below 1, or names; got {share!r}."
        )
    if share == 0 or len(free) == 0:
        return free[:0]
    reached = np.cumsum(sizes[free[: max(1, len(free) - n_kept)]]) / sizes.sum()
    return free[: int(np.abs(reached - share).argmin()) + 1]


def block_labels(xy: NDArray[np.float64], section: ArrayLike | None, *, block_um: float) -> NDArray[np.str_]:
    """Square blocks of each section, counted from its lower left corner."""
    if not block_um > 0:
        raise ValueError(f"`block_um` must be a length in µm above 0; got {block_um!r}.")
    name = np.zeros(len(xy), dtype="U1") if section is None else np.asarray(section).astype(str)
    labels = np.empty(len(xy), dtype=object)
    for one in np.unique(name):
        here = name == one
        column, row = np.floor((xy[here] - xy[here].min(axis=0)) / block_um).astype(int).T
        labels[here] = [f"{one} {x:06d} {y:06d}" for x, y in zip(column, row)]
    return labels.astype(str)


def check_training_left(roles: Roles, *, buffer_um: float, block_um: float) -> None:
    """Raise if a buffer has eaten all that was for training."""
    if not roles.train.any():
        raise ValueError(
            f"No spot is left for training: {roles.counted()}. All training spots lie closer than "
            f"`buffer_um={buffer_um:g}` to a held-out block of `block_um={block_um:g}`. Lower `buffer_um`, make blocks "
            "larger, or hold out less (`validation=`, `test=`)."
        )


def too_close(
    xy: NDArray[np.float64], section: ArrayLike | None, split: NDArray[np.object_], *, buffer_um: float
) -> NDArray[np.bool_]:
    """Training spots closer than ``buffer_um`` to a validation or test spot of their section."""
    name = np.zeros(len(xy), dtype="U1") if section is None else np.asarray(section).astype(str)
    close = np.zeros(len(xy), dtype=bool)
    for one in np.unique(name):
        train = np.flatnonzero((name == one) & (split == _keys.TRAIN))
        held_out = np.flatnonzero((name == one) & np.isin(split, [_keys.VALIDATION, _keys.TEST]))
        if len(train) and len(held_out):
            close[train] = cKDTree(xy[held_out]).query(xy[train])[0] < buffer_um
    return close


def _some(names: Sequence[str] | NDArray, n: int = 8) -> str:
    """The first few names, for a message."""
    return ", ".join(str(name) for name in names[:n]) + (", …" if len(names) > n else "")
