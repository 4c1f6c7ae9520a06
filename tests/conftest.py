"""What every test file may rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

_NO_DATA = "real sections: set STGEN_DATA to their folder"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `real_data` where nobody said where the data lies."""
    if not os.environ.get("STGEN_DATA"):
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(pytest.mark.skip(reason=_NO_DATA))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real sections; the test skips without it."""
    if not os.environ.get("STGEN_DATA"):
        pytest.skip(_NO_DATA)
    return Path(os.environ["STGEN_DATA"])


@pytest.fixture(autouse=True)
def quiet() -> None:
    """No progress bars in the log of a test run."""
    from stgen import settings

    settings.progress_bar = False
