"""The benchmark of GenAR's step: it builds a network on its own spots, and its two forms are one network."""

from __future__ import annotations

from types import ModuleType

from stgen.models.genar._config import GenARConfig

BENCHMARK = "speed"


def test_both_forms_of_a_step_give_one_loss_and_one_gradient(benchmark: ModuleType) -> None:
    net = benchmark.make_network(GenARConfig(width=16, n_layers=2, n_heads=2), "cpu")
    apart = benchmark.check_equal(net, benchmark.make_batch(4, "cpu"), "cpu", "fp32")
    assert apart["loss"] < 1e-5 and apart["gradient"] < 1e-4
