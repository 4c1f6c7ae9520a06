"""Sentences that several public docstrings share, so that a parameter means the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

SHARED = {
    "adata": "Annotated data matrix, spots (or cells) × genes.",
    "spatial_key": "Key in ``obsm`` of the coordinates, spots × 2, in µm.",
    "library_key": "Column of ``obs`` that tells sections apart. Without it all spots are one section.",
    "histology_key": "Key in ``obsm`` of the histology embedding, spots × features.",
    "layer": "Layer that holds the counts. ``None`` means ``X``.",
    "random_state": "Seed. The same seed gives the same result; the global random state is left as found.",
    "copy": "Return a changed copy instead of changing ``adata``.",
}

# not the % operator: a docstring may speak of "10 % of the spots"
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


def shared_doc(function: F) -> F:
    """Fill ``%(name)s`` in a docstring with the shared sentence of that name."""
    if function.__doc__:  # python -OO strips docstrings
        function.__doc__ = _PLACEHOLDER.sub(lambda found: SHARED[found[1]], function.__doc__)
    return function
