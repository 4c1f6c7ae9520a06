"""One function per task: AnnData in, results written into it.

Functions run models from :mod:`stgen.models` or score what they wrote; parameters are recorded in ``uns``.
"""

from ._causalged import causalged_impute
from ._evaluate import evaluate
from ._genar import genar_predict
from ._genst import genst_predict
from ._genst_report import genst_report
from ._gest import gest_generate, gest_niche_embed
from ._gest_annotate import gest_annotate
from ._gest_perturb import gest_perturb

__all__ = [
    "causalged_impute",
    "evaluate",
    "genar_predict",
    "genst_predict",
    "genst_report",
    "gest_annotate",
    "gest_generate",
    "gest_niche_embed",
    "gest_perturb",
]
