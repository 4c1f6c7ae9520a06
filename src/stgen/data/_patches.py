"""Patches: small groups of nearby spots of one section.

What histology does not show – who the patient is, a gradient of the tissue – changes slowly from spot to spot, so the
errors of neighbours are alike. Whoever fits expression on histology takes the mean of a patch out of both, or the smooth
part of a section counts once per spot where it is one observation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SPOTS = 24
"""Spots of a patch. On tuning tissue 12 to 96 do about as well."""


def patches(
    xy: NDArray[np.floating], section: NDArray[np.integer] | None, unit: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """Number of the patch of every spot: (n,), from 0.

    The spots of a section (and of a ``unit``, where sections hold several) are halved along the longer side of their
    bounding box until no part has more than ``MAX_SPOTS``. It depends on where spots lie and not on the order of rows.
    """
    group = np.zeros(len(xy), dtype=np.int64)
    for codes in (section, unit):
        if codes is not None:
            group = np.unique(np.stack([group, codes]), axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    waiting = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)[::-1] if len(xy) else []
    patch, n = np.empty(len(xy), dtype=np.int64), 0
    while waiting:
        rows = waiting.pop()
        if len(rows) <= MAX_SPOTS:
            patch[rows], n = n, n + 1
            continue
        here = xy[rows]
        longer = int(np.ptp(here, axis=0).argmax())
        along = np.lexsort((here[:, 1 - longer], here[:, longer]))
        half = len(rows) // 2
        waiting += [rows[along[half:]], rows[along[:half]]]
    return patch
