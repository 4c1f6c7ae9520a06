"""Names in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def some(names: Iterable[Any], n: int = 3) -> str:
    """The first few names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:n]) + (", …" if len(listed) > n else "")
