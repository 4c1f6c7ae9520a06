"""What every test file may rely on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The script of the folder `benchmarks` that a test file names in ``BENCHMARK``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module(request.module.BENCHMARK)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """No progress bars in the log of a test run."""
    from stgen import settings

    settings.progress_bar = False
