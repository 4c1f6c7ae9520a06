"""Settings of the session: ``stg.settings``."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger("stgen")


def _default_data_dir() -> Path:
    return Path(os.environ.get("STGEN_CACHE", Path.home() / ".cache" / "stgen"))


@dataclass
class Settings:
    """What a session can set once instead of in every call."""

    random_state: int = 0
    """Seed used where a function is called without ``random_state``."""
    progress_bar: bool = True
    """Show one progress bar for long work."""
    data_dir: Path = field(default_factory=_default_data_dir)
    """Folder for downloaded data and weights."""
    n_workers: int = 0
    """Worker processes of data loaders; 0 loads in the main process."""
    _verbosity: str = "warning"

    @property
    def verbosity(self) -> str:
        """Level of the logger ``stgen``: error, warning, info or debug."""
        return self._verbosity

    @verbosity.setter
    def verbosity(self, level: str) -> None:
        levels = ("error", "warning", "info", "debug")
        if level not in levels:
            raise ValueError(f"`verbosity` must be one of {', '.join(levels)}; got {level!r}.")
        self._verbosity = level
        logger.setLevel(level.upper())


settings = Settings()
