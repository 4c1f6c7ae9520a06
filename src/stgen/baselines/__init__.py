"""What a model must beat: nulls, baselines and oracles, fitted on training rows only.

Arrays in, arrays out; nothing here knows AnnData. torch is only imported when a network is fitted.
"""

from ._base import HistologyBaseline
from ._histology import CoordinateKNN, DepthOracle, NeighbourTruth, RidgeOnHistology, SectionMean
from ._imputation import (
    CellTypeMean,
    CosineKNN,
    GeneKernelRidge,
    ImputationBaseline,
    MeanOfThree,
    ReferenceMean,
    RidgeInReference,
    imputation_baselines,
)
from ._mlp import CountClassifier, MLPOnHistology
from ._niches import NeighbourLabels, cell_pcs, cluster_niches, neighbourhood_mean
from ._places import (
    CoordinateMLP,
    GaussianProcess,
    InverseDistance,
    MeanProfile,
    NearestCells,
    PlaceBaseline,
    place_baselines,
    unseen_squares,
)
from ._retrieval import ContrastiveRetrieval
from ._sets import fit_predict, histology_baselines

__all__ = [
    "CellTypeMean",
    "ContrastiveRetrieval",
    "CoordinateKNN",
    "CoordinateMLP",
    "CosineKNN",
    "CountClassifier",
    "DepthOracle",
    "GaussianProcess",
    "GeneKernelRidge",
    "HistologyBaseline",
    "ImputationBaseline",
    "InverseDistance",
    "MLPOnHistology",
    "MeanOfThree",
    "MeanProfile",
    "NearestCells",
    "NeighbourLabels",
    "NeighbourTruth",
    "PlaceBaseline",
    "ReferenceMean",
    "RidgeInReference",
    "RidgeOnHistology",
    "SectionMean",
    "cell_pcs",
    "cluster_niches",
    "fit_predict",
    "histology_baselines",
    "imputation_baselines",
    "neighbourhood_mean",
    "place_baselines",
    "unseen_squares",
]
