"""Settings of the session: ``stg.settings``."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("stgen")

_LEVELS = ("error", "warning", "info", "debug")


@dataclass
class Settings:
    """What a session can set once instead of in every call.

    Attributes are checked when they are set, so that a mistake shows where it was made.

    Examples
    --------
    >>> import stgen as stg
    >>> stg.settings.progress_bar = False
    >>> stg.settings.verbosity = "info"
    """

    random_state: int = 0
    """Seed used where a function is called without ``random_state``."""
    progress_bar: bool = True
    """Show one progress bar for long work."""
    data_dir: Path = Path(os.environ.get("STGEN_CACHE", Path.home() / ".cache" / "stgen"))
    """Folder for downloaded data and weights; the environment variable ``STGEN_CACHE`` sets it too."""
    n_workers: int = 0
    """Worker processes of data loaders; 0 loads in the main process."""
    verbosity: str = "warning"
    """Level of the logger ``stgen``: error, warning, info or debug."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__dataclass_fields__:
            known = ", ".join(type(self).__dataclass_fields__)
            raise AttributeError(f"`stgen.settings` has no {name!r}; it has {known}.")
        if name == "data_dir":
            value = Path(value)
        if name == "n_workers" and (not isinstance(value, int) or value < 0):
            raise ValueError(f"`n_workers` must be a whole number, 0 or more; got {value!r}.")
        if name == "verbosity":
            if value not in _LEVELS:
                raise ValueError(f"`verbosity` must be one of {', '.join(_LEVELS)}; got {value!r}.")
            _set_level(value)
        super().__setattr__(name, value)


def _set_level(level: str) -> None:
    # without a handler Python shows warnings only, and "info" would change nothing that a user sees
    if level in ("info", "debug") and not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(level.upper())


settings = Settings()
