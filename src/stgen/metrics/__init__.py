"""Metrics: arrays in, numbers out.

Per gene over the spots of one section (truth, prediction: spots × genes); NaN where a value is undefined. Arrays are taken
by position; where arguments are a Series or a DataFrame, the first with names sets the order, and the others are joined.
"""

from ._bootstrap import bootstrap_interval, pearson_draws, spatial_blocks
from ._calibration import interval_coverage, interval_mass, interval_width, pit_deviation, randomized_pit
from ._correlation import pearson, spearman
from ._errors import mae, rmse, zscore_rmse
from ._labels import ami, ari, balanced_accuracy, f1_per_class, macro_f1, nmi
from ._scales import log_counts, normalize_panel, panel_target
from ._similarity import js, ssim
from ._spatial import morans_i

__all__ = [
    "ami",
    "ari",
    "balanced_accuracy",
    "bootstrap_interval",
    "f1_per_class",
    "interval_coverage",
    "interval_mass",
    "interval_width",
    "js",
    "log_counts",
    "macro_f1",
    "mae",
    "morans_i",
    "nmi",
    "normalize_panel",
    "panel_target",
    "pearson",
    "pearson_draws",
    "pit_deviation",
    "randomized_pit",
    "rmse",
    "spatial_blocks",
    "spearman",
    "ssim",
    "zscore_rmse",
]
