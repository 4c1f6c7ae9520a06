"""The contract every model keeps, ours and other people's: :func:`check_model`.

Each promise is one small function whose name is the promise and whose error says what was found. A model
brings a small :class:`Example` (data, how to set it up, how short to train, which verb applies it) as
``Model.example()``. A test file of a package that adds a model is three lines:

>>> import pytest
>>> from stgen.testing import CHECKS, check_model
>>> @pytest.mark.parametrize("promise", CHECKS)
... def test_my_model_keeps(promise):
...     check_model(MyModel, only=[promise])
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from stgen import _keys
from stgen.data._fields import CoordinatesField, CountsField, HistologyField, SplitField
from stgen.data._tiles import TilesField
from stgen.models._base import Example, STModel
from stgen.nn._random import global_random_state_kept, seed_global_generators

__all__ = ["CHECKS", "BrokenPromiseError", "Example", "check_model"]


class BrokenPromiseError(AssertionError):
    """A model does not keep its contract."""


class Case:
    """A model class with its example; what several checks need is made once."""

    def __init__(self, Model: type[STModel], example: Example, random_state: int = 0) -> None:
        self.Model = Model
        self.example = example
        self.random_state = random_state

    def data(self) -> ad.AnnData:
        """A copy of the data without marks."""
        return _unmarked(self.example.adata)

    def build(self, adata: ad.AnnData) -> STModel:
        """Set up and construct, not fitted."""
        self.Model.setup_anndata(adata, **self.example.setup)
        return self.Model(adata, random_state=self.random_state, **self.example.config)

    def train(self, model: STModel, **changes: Any) -> STModel:
        """Train as the example says, with changes."""
        keywords: dict[str, Any] = {
            "progress_bar": False,
            "accelerator": "cpu",
            "random_state": self.random_state,
        }
        model.train(**{**keywords, **self.example.train, **changes})
        return model

    def fit(self, adata: ad.AnnData, **changes: Any) -> STModel:
        """Set up, construct and train."""
        return self.train(self.build(adata), **changes)

    def ask(self, model: STModel, adata: ad.AnnData | None = None, **changes: Any) -> np.ndarray:
        """The answer of the verb, one row per observation."""
        return as_array(getattr(model, self.example.verb)(adata, **{**self.example.ask, **changes}))

    @cached_property
    def fitted(self) -> STModel:
        """A fitted model that checks share and must not change."""
        return self.fit(self.data())

    @cached_property
    def answer(self) -> np.ndarray:
        """What the shared model answers on the example's data."""
        return self.ask(self.fitted, self.data())

    def rows(self, name: str) -> np.ndarray:
        """Rows of one side of the example's split."""
        field = next(one for one in self.fitted._fields if isinstance(one, SplitField))
        sides = dict(zip((_keys.TRAIN, _keys.VALIDATION, _keys.TEST), field.rows(self.example.adata)))
        if not len(sides[name]):
            raise ValueError(
                f"`example()` must split its data: it has no {name!r} row, so nothing can be checked."
            )
        return sides[name]


def as_array(answer: Any) -> np.ndarray:
    """An answer (array, DataFrame, sparse matrix, AnnData, or a tuple of these) as one array."""
    if isinstance(answer, ad.AnnData):
        answer = answer.X
    if isinstance(answer, tuple):
        return np.concatenate([as_array(part).reshape(len(part), -1) for part in answer], axis=1)
    if sparse.issparse(answer):
        answer = answer.toarray()
    if isinstance(answer, pd.DataFrame):
        answer = answer.to_numpy()
    return np.asarray(answer)


# --------------------------------------------------------------------------------------------------- promises


def an_untrained_verb_explains_itself(case: Case) -> None:
    """Before `train`, the verb raises an error that says to train."""
    model = case.build(case.data())
    try:
        case.ask(model)
    except Exception as error:
        if "train" not in str(error) or case.Model.__name__ not in str(error):
            _broken(f"its message should name the model and `train()`; it says {str(error)!r}")
        return
    _broken(f"`{case.example.verb}` answered on a model that was never trained")


def one_seed_gives_one_result(case: Case) -> None:
    """Two runs with one seed agree to the last bit, whatever the global generators hold."""
    with global_random_state_kept():
        seed_global_generators(12345)
        again = case.ask(case.fit(case.data()), case.data())
    _equal(case.answer, again, "a second run with the same seed answers differently")


def global_random_state_is_left_alone(case: Case) -> None:
    """Nothing moves the global generators of Python, NumPy or torch, or torch's deterministic flags."""
    adata = case.data()
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("setup_anndata", lambda: case.Model.setup_anndata(adata, **case.example.setup)),
        ("constructor", lambda: model.append(case.Model(adata, **case.example.config))),
        ("train", lambda: case.train(model[0])),
        (case.example.verb, lambda: case.ask(model[0])),
    ]
    model: list[STModel] = []
    for number, (name, step) in enumerate(steps):
        with global_random_state_kept():
            # an odd state, because re-seeding with a common seed could meet itself
            seed_global_generators(98765 + number)
            before = _global_random_state()
            step()
            moved = [part for part, state in _global_random_state().items() if state != before[part]]
        if moved:
            _broken(f"{name} moved the global state of {', '.join(moved)}")


def a_prediction_does_not_depend_on_its_batch(case: Case) -> None:
    """Small and large batches give the same answer, up to rounding."""
    small = case.ask(case.fitted, case.data(), batch_size=7)
    _close(case.answer, small, "answers differ between batches of 7 and the default batch size")


def permuting_observations_permutes_results(case: Case) -> None:
    """The order of rows means nothing to a fitted model."""
    order = np.random.default_rng(1).permutation(case.example.adata.n_obs)
    permuted = _unmarked(case.example.adata[order])
    _close(case.answer[order], case.ask(case.fitted, permuted), "answers change when rows are permuted")


def permuting_genes_changes_nothing(case: Case) -> None:
    """Genes are matched by name."""
    order = np.random.default_rng(2).permutation(case.example.adata.n_vars)
    permuted = _unmarked(case.example.adata[:, order])
    _close(case.answer, case.ask(case.fitted, permuted), "answers change when genes are permuted")


def poisoned_test_rows_change_nothing(case: Case) -> None:
    """Nothing of the test rows reaches a fitted model: no targets, and no inputs if sections are apart."""
    _poison_has_no_effect(case, _keys.TEST)


def poisoned_validation_rows_change_nothing_at_fixed_epochs(case: Case) -> None:
    """Validation rows choose the epoch and do nothing else."""
    _poison_has_no_effect(case, _keys.VALIDATION, early_stopping=False)


def every_parameter_gets_a_gradient(case: Case) -> None:
    """No parameter is dead weight: each has a gradient other than 0 at some step of training."""
    model = case.fit(case.data(), max_epochs=1)
    silent = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    hooks = []
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:

            def seen(gradient: torch.Tensor, name: str = name) -> None:
                if name in silent and bool((gradient != 0).any()):
                    silent.discard(name)

            hooks.append(parameter.register_hook(seen))
    case.train(model)
    for hook in hooks:
        hook.remove()
    if silent:
        _broken(f"{len(silent)} parameters never got a gradient, such as {sorted(silent)[0]}")


def one_batch_can_be_overfitted(case: Case, n_steps: int = 200, n_rows: int = 8) -> None:
    """The network can learn by heart which target belongs to which input."""
    adata = case.data()
    model = case.fit(adata, max_epochs=1)
    rows = np.sort(np.random.default_rng(0).choice(case.rows(_keys.TRAIN), n_rows, replace=False))
    batch = next(iter(model._batches(adata, targets=True, indices=rows)))
    targets = set(batch) - set(next(iter(model._batches(adata, indices=rows))))
    swapped = {name: value.roll(1, 0) if name in targets else value for name, value in batch.items()}
    with global_random_state_kept():
        seed_global_generators(0)
        before = _loss(model, batch)
        _overfit(model, batch, n_steps)
        after, confused = _loss(model, batch), _loss(model, swapped)
    model.module.eval()
    if not (np.isfinite(after) and after < before and confused - after > 0.05 * abs(confused)):
        _broken(
            f"after {n_steps} steps on {n_rows} rows the loss went from {before:.4g} to {after:.4g}, and is "
            f"{confused:.4g} when the targets of the rows are swapped: the network does not learn which is "
            "which"
        )


def saved_and_loaded_it_answers_the_same(case: Case) -> None:
    """`save` and `load`, also without data, give the same answers to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        case.fitted.save(Path(folder) / "model")
        loaded = case.Model.load(Path(folder) / "model", accelerator="cpu")
        _equal(case.answer, case.ask(loaded, case.data()), "the loaded model answers differently")


def a_resumed_training_equals_an_uninterrupted_one(case: Case) -> None:
    """Training that stops and goes on from its checkpoint ends with the same answers, to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        model = case.build(case.data())
        _stop_after_first_checkpoint(model)
        with contextlib.suppress(_StopError):
            case.train(model, checkpoint_dir=folder)
        resumed = case.build(case.data())
        resumed.train(resume_from=folder, progress_bar=False, accelerator="cpu")
    _equal(case.answer, case.ask(resumed, case.data()), "a resumed training ends elsewhere")


def inputs_without_targets_suffice(case: Case) -> None:
    """A slide without the target, and without the columns that only training needs, gets the same answer."""
    full = case.data()
    drop = {one.attr_key for one in case.fitted._fields if one.attr_name == "obs" and one.for_training}
    obs = full.obs.drop(columns=[key for key in drop if key is not None])
    if any(isinstance(one, CountsField) and one.is_target for one in case.fitted._fields):
        bare = ad.AnnData(obs=obs, obsm=dict(full.obsm), uns=dict(full.uns))
    else:
        bare = full
        bare.obs = obs
        for one in case.fitted._fields:
            if one.is_target and one.attr_name == "obsm":
                del bare.obsm[one.attr_key]
    _close(case.answer, case.ask(case.fitted, bare), "answers change when the target is taken away")


def adata_changes_only_under_documented_keys(case: Case) -> None:
    """Set-up leaves scvi-tools' two marks in `uns`; training and asking leave nothing; views stay views."""
    adata, before = case.data(), case.data()
    model = case.fit(adata)
    case.ask(model)
    changed = changed_slots(before, adata, ignore=_keys.SETUP_MARKS)
    if changed:
        _broken(f"it changed {', '.join(changed)} of the data it was set up with")
    other, before = case.data(), case.data()
    view = other[: other.n_obs // 2]
    case.ask(model, view)
    case.ask(model, other)
    changed = changed_slots(before, other)
    if changed:
        _broken(f"`{case.example.verb}` changed {', '.join(changed)} of the data it was given")
    if not view.is_view:
        _broken(f"`{case.example.verb}` turned a view into a copy")


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        an_untrained_verb_explains_itself,
        one_seed_gives_one_result,
        global_random_state_is_left_alone,
        a_prediction_does_not_depend_on_its_batch,
        permuting_observations_permutes_results,
        permuting_genes_changes_nothing,
        poisoned_test_rows_change_nothing,
        poisoned_validation_rows_change_nothing_at_fixed_epochs,
        every_parameter_gets_a_gradient,
        one_batch_can_be_overfitted,
        saved_and_loaded_it_answers_the_same,
        a_resumed_training_equals_an_uninterrupted_one,
        inputs_without_targets_suffice,
        adata_changes_only_under_documented_keys,
    )
}
"""Every promise by name, in the order in which they are checked."""


def check_model(
    Model: type[STModel],
    adata: ad.AnnData | None = None,
    *,
    example: Example | None = None,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    random_state: int = 0,
) -> None:
    """Check that a model keeps its contract.

    Parameters
    ----------
    Model
        A subclass of :class:`stgen.models.STModel`.
    adata
        Data in place of the example's. It must be split, and small.
    example
        Data, keywords and verb. ``None`` takes ``Model.example()``.
    only
        Names of the promises to check. ``None`` checks all of :data:`CHECKS`.
    skip
        Names of promises to leave out.
    random_state
        Seed of the model and of training.

    Raises
    ------
    BrokenPromiseError
        If a promise is broken. The message names each one and what was found.
    """
    example = Model.example() if example is None else example
    if adata is not None:
        example = dataclasses.replace(example, adata=adata)
    wanted = list(CHECKS) if only is None else list(only)
    unknown = [name for name in [*wanted, *skip] if name not in CHECKS]
    if unknown:
        raise ValueError(f"There is no check {unknown[0]!r}; there are {', '.join(CHECKS)}.")
    case = Case(Model, example, random_state)
    broken = []
    for name in wanted:
        if name not in set(skip):
            try:
                CHECKS[name](case)
            except BrokenPromiseError as error:
                broken.append(f"{name}: {error}")
    if broken:
        raise BrokenPromiseError(f"{Model.__name__} breaks its contract.\n" + "\n".join(broken))


# ---------------------------------------------------------------------------------------------------- helpers


def _broken(what: str) -> None:
    raise BrokenPromiseError(what)


def _equal(expected: np.ndarray, found: np.ndarray, what: str) -> None:
    if not np.array_equal(expected, found, equal_nan=True):
        _broken(f"{what} ({_distance(expected, found)})")


def _close(expected: np.ndarray, found: np.ndarray, what: str) -> None:
    scale = float(np.nanmax(np.abs(expected))) if expected.size else 1.0
    same_shape = expected.shape == found.shape
    if not same_shape or not np.allclose(expected, found, rtol=1e-4, atol=1e-5 * scale, equal_nan=True):
        _broken(f"{what} ({_distance(expected, found)})")


def _distance(expected: np.ndarray, found: np.ndarray) -> str:
    if expected.shape != found.shape:
        return f"shape {expected.shape} became {found.shape}"
    gap = np.abs(expected.astype(float) - found.astype(float))
    return f"largest difference {np.nanmax(gap):.3g}, {np.mean(gap > 0):.0%} of values differ"


def _unmarked(adata: ad.AnnData) -> ad.AnnData:
    copy = adata.copy()
    for key in _keys.SETUP_MARKS:
        copy.uns.pop(key, None)
    return copy


def _global_random_state() -> dict[str, Any]:
    legacy: Any = np.random.get_state()  # noqa: NPY002
    return {
        "Python": random.getstate(),
        "NumPy": (legacy[0], legacy[1].tobytes(), *legacy[2:]),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "torch's deterministic flags": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
    }


def _poison_has_no_effect(case: Case, side: str, **changes: Any) -> None:
    """Fit on clean and on poisoned data; both must answer alike on clean data."""
    rows = case.rows(side)
    poisoned = case.data()
    for one in case.fitted._fields:
        if isinstance(one, CountsField):
            _poison_counts(poisoned, one, rows)
        # inputs of test rows may be seen by training rows of the same section, as neighbours
        elif isinstance(one, HistologyField) and _apart(case, rows):
            features = np.array(poisoned.obsm[one.key], dtype=np.float32)
            features[rows] = 100 * np.random.default_rng(3).normal(size=features[rows].shape)
            poisoned.obsm[one.key] = features
        elif isinstance(one, TilesField) and _apart(case, rows):
            tiles = np.array(poisoned.obsm[one.key])
            tiles[rows] = 255 - tiles[rows]
            poisoned.obsm[one.key] = tiles
    clean = case.answer if not changes else case.ask(case.fit(case.data(), **changes), case.data())
    answer = case.ask(case.fit(poisoned, **changes), case.data())
    _equal(clean, answer, f"changing the {side} rows changes what is learned")


def _apart(case: Case, rows: np.ndarray) -> bool:
    """Whether these rows share no section with training rows."""
    place = next((one for one in case.fitted._fields if isinstance(one, CoordinatesField)), None)
    if place is None or place.library_key is None:
        return False
    section = case.example.adata.obs[place.library_key].to_numpy()
    return not set(section[rows]) & set(section[case.rows(_keys.TRAIN)])


def _poison_counts(adata: ad.AnnData, field: CountsField, rows: np.ndarray) -> None:
    matrix = field.matrix(adata)
    counts = matrix.toarray() if sparse.issparse(matrix) else np.array(matrix)
    counts[rows] = 5 * counts[rows][:, ::-1] + 50
    if field.layer is None:
        adata.X = counts
    else:
        adata.layers[field.layer] = counts


def _loss(model: STModel, batch: dict[str, torch.Tensor]) -> float:
    model.module.eval()
    with torch.no_grad():
        return float(model.module.loss(batch, generator=torch.Generator().manual_seed(0)).total)


def _overfit(model: STModel, batch: dict[str, torch.Tensor], n_steps: int) -> None:
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    model.module.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        model.module.loss(batch, generator=generator).total.backward()
        optimizer.step()


class _StopError(Exception):
    """Training is cut off here."""


def _stop_after_first_checkpoint(model: STModel) -> None:
    """Make training fail right after its first checkpoint is written."""
    original = model._checkpointer

    def checkpointer(*args: Any) -> Any:
        keep = original(*args)

        def keep_and_stop(plan: Any) -> None:
            keep(plan)
            raise _StopError

        return keep_and_stop

    model._checkpointer = checkpointer  # type: ignore[method-assign, assignment]


def changed_slots(before: ad.AnnData, after: ad.AnnData, *, ignore: Iterable[str] = ()) -> list[str]:
    """Slots that were added, dropped or changed, as ``attribute['key']``."""
    changed = [] if _same(before.X, after.X) else ["X"]
    for attribute in ("layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns"):
        old, new = getattr(before, attribute), getattr(after, attribute)
        for key in [*old, *(key for key in new if key not in old)]:
            if key in ignore and attribute == "uns":
                continue
            if key not in old or key not in new or not _same(old[key], new[key]):
                changed.append(f"{attribute}[{key!r}]")
    for axis in ("obs_names", "var_names"):
        if not getattr(before, axis).equals(getattr(after, axis)):
            changed.append(axis)
    return changed


def _same(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if sparse.issparse(old):
        return old.dtype == new.dtype and old.shape == new.shape and (old != new).nnz == 0
    if isinstance(old, pd.DataFrame | pd.Series):
        return old.equals(new)
    if isinstance(old, np.ndarray):
        same_kind = old.dtype == new.dtype and old.shape == new.shape
        return same_kind and np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    return bool(old == new)
