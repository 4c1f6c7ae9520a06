"""Every model keeps the contract; and the contract notices models that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stgen as stg
from stgen import _keys

PROMISES = [
    "an_untrained_verb_explains_itself",
    "one_seed_gives_one_result",
    "global_random_state_is_left_alone",
    "a_prediction_does_not_depend_on_its_batch",
    "permuting_observations_permutes_results",
    "permuting_genes_changes_nothing",
    "poisoned_test_rows_change_nothing",
    "poisoned_validation_rows_change_nothing_at_fixed_epochs",
    "every_parameter_gets_a_gradient",
    "one_batch_can_be_overfitted",
    "saved_and_loaded_it_answers_the_same",
    "a_resumed_training_equals_an_uninterrupted_one",
    "inputs_without_targets_suffice",
    "adata_changes_only_under_documented_keys",
]
MODELS = [name for name in stg.models.__all__ if name != "STModel" and not name.endswith("Config")]


@pytest.fixture(scope="module")
def cases():
    """One case per model, so that its promises share a fitted model."""
    return {}


def case_of(cases, Model):
    from stgen.testing import Case

    return cases.setdefault(Model, Case(Model, Model.example()))


def test_the_promises_are_those_of_the_contract():
    from stgen.testing import CHECKS

    assert list(CHECKS) == PROMISES


@pytest.mark.parametrize("promise", PROMISES)
def test_the_linear_model_keeps_its_promise(promise, cases, linear):
    from stgen.testing import CHECKS

    CHECKS[promise](case_of(cases, linear.Model))


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_keeps_its_promise(name, promise, cases):
    from stgen.testing import CHECKS

    CHECKS[promise](case_of(cases, getattr(stg.models, name)))


# models that break one promise each -------------------------------------------------------------------------


def broken_promises(Model):
    """Names of the promises that the check says are broken."""
    from stgen.testing import BrokenPromiseError, check_model

    with pytest.raises(BrokenPromiseError, match=f"{Model.__name__} breaks its contract") as caught:
        check_model(Model)
    return {line.split(":")[0] for line in str(caught.value).splitlines()[1:]}


def test_an_answer_that_depends_on_its_batch_is_noticed(linear):
    class Centred(linear.Model):
        @torch.no_grad()
        def predict(self, adata=None, *, batch_size=None):
            self._check_fitted("predict")
            parts = [self.module(batch) for batch in self._batches(adata, batch_size=batch_size)]
            return np.concatenate([(part - part.mean(0)).numpy() for part in parts])

    assert broken_promises(Centred) == {"a_prediction_does_not_depend_on_its_batch"}


def test_scaling_by_all_rows_is_noticed_as_leakage(linear):
    class Leaky(linear.Model):
        def _table(self, adata, *, targets):
            import dataclasses

            table = super()._table(adata, targets=targets)
            if not targets:
                return table
            scale = table.histology_nF.std(0)
            return dataclasses.replace(table, histology_nF=table.histology_nF / scale)

    assert "poisoned_test_rows_change_nothing" in broken_promises(Leaky)


def test_counts_of_test_rows_in_prepare_are_noticed(linear):
    class Peeking(linear.Model):
        def _build(self, sizes):
            network = super()._build(sizes)
            if self._adata is not None:
                with torch.no_grad():
                    network.linear.bias += 0.01 * float(self._adata.X.mean())
            return network

    assert broken_promises(Peeking) == {
        "poisoned_test_rows_change_nothing",
        "poisoned_validation_rows_change_nothing_at_fixed_epochs",
    }


def test_use_of_global_generators_is_noticed(linear):
    class Careless(linear.Model):
        def predict(self, adata=None, *, batch_size=None):
            torch.manual_seed(0)
            return super().predict(adata, batch_size=batch_size)

    class Worse(linear.Model):
        def predict(self, adata=None, *, batch_size=None):
            answer = super().predict(adata, batch_size=batch_size)
            return answer + np.random.normal(size=answer.shape)  # noqa: NPY002

    assert broken_promises(Careless) == {"global_random_state_is_left_alone"}
    assert {"global_random_state_is_left_alone", "one_seed_gives_one_result"} <= broken_promises(Worse)


def test_a_dead_parameter_is_noticed(linear):
    class DeadNetwork(linear.Network):
        def __init__(self, config, **widths):
            super().__init__(config, **widths)
            self.unused = torch.nn.Parameter(torch.zeros(3))

    class Dead(linear.Model):
        _network_class = DeadNetwork

    from stgen.testing import BrokenPromiseError, check_model

    with pytest.raises(
        BrokenPromiseError, match=r"every_parameter_gets_a_gradient: 1 parameters .*such as unused"
    ):
        check_model(Dead, only=["every_parameter_gets_a_gradient"])


def test_noise_by_row_number_is_noticed(linear):
    class ByRow(linear.Model):
        @torch.no_grad()
        def predict(self, adata=None, *, batch_size=None):
            self._check_fitted("predict")
            parts = [
                self.module(batch) + batch["index"][:, None]
                for batch in self._batches(adata, batch_size=batch_size)
            ]
            return np.concatenate([part.numpy() for part in parts])

    assert broken_promises(ByRow) == {"permuting_observations_permutes_results"}


def test_writing_into_the_users_data_is_noticed(linear):
    class Scribbling(linear.Model):
        def predict(self, adata=None, *, batch_size=None):
            answer = super().predict(adata, batch_size=batch_size)
            if adata is not None and not adata.is_view:
                adata.obsm["answer"] = answer
            return answer

    from stgen.testing import BrokenPromiseError, check_model

    with pytest.raises(BrokenPromiseError, match=r"`predict` changed obsm\['answer'\]"):
        check_model(Scribbling, only=["adata_changes_only_under_documented_keys"])


def test_a_network_that_ignores_its_input_cannot_overfit(linear):
    class BlindNetwork(linear.Network):
        def forward(self, batch):
            return super().forward({name: torch.zeros_like(value) for name, value in batch.items()})

    class Blind(linear.Model):
        _network_class = BlindNetwork

    from stgen.testing import BrokenPromiseError, check_model

    with pytest.raises(BrokenPromiseError, match="does not learn which is which"):
        check_model(Blind, only=["one_batch_can_be_overfitted"])


def test_an_unknown_check_names_those_that_exist(linear):
    from stgen.testing import check_model

    with pytest.raises(ValueError, match="There is no check 'speed'; there are an_untrained_verb"):
        check_model(linear.Model, only=["speed"])


def test_the_example_must_be_split(linear):
    import dataclasses

    from stgen.testing import check_model

    example = linear.Model.example()
    unsplit = example.adata[example.adata.obs[_keys.SPLIT] == _keys.TRAIN].copy()
    with pytest.raises(ValueError, match=r"`example\(\)` must split its data: it has no 'test' row"):
        check_model(
            linear.Model,
            example=dataclasses.replace(example, adata=unsplit),
            only=["poisoned_test_rows_change_nothing"],
        )
