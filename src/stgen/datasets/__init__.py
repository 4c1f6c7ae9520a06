"""A toy tissue with a known answer (no download) for tests, documentation and benchmarks."""

from ._toy import toy_tissue
from ._toy_parameters import TOY_JUDGE, TOY_JUDGE_SEEDS, TOY_TUNE_SEEDS
from ._toy_reference import ToyTruth, toy_reference, toy_truth

__all__ = [
    "TOY_JUDGE",
    "TOY_JUDGE_SEEDS",
    "TOY_TUNE_SEEDS",
    "ToyTruth",
    "toy_reference",
    "toy_tissue",
    "toy_truth",
]
