"""What a model must beat: nulls, baselines and oracles, fitted on training rows only.

Arrays in, arrays out; nothing here knows AnnData. torch is only imported when a network is fitted.
"""

from ._base import HistologyBaseline
from ._histology import CoordinateKNN, DepthOracle, NeighbourTruth, RidgeOnHistology, SectionMean
from ._mlp import CountClassifier, MLPOnHistology
from ._sets import fit_predict, histology_baselines

__all__ = [
    "CoordinateKNN",
    "CountClassifier",
    "DepthOracle",
    "HistologyBaseline",
    "MLPOnHistology",
    "NeighbourTruth",
    "RidgeOnHistology",
    "SectionMean",
    "fit_predict",
    "histology_baselines",
]
