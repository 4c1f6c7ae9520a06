"""Settings of the session."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from stgen._settings import Settings, logger


@pytest.fixture(autouse=True)
def _level_as_found():
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_a_level_sets_the_logger():
    settings = Settings()
    settings.verbosity = "info"
    assert logger.level == logging.INFO
    assert logger.hasHandlers()


def test_an_unknown_level_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"`verbosity` must be one of error, warning, info, debug; got 'loud'"
    ):
        Settings().verbosity = "loud"


def test_a_misspelt_setting_is_refused():
    with pytest.raises(AttributeError, match=r"`stgen.settings` has no 'progres_bar'; it has random_state"):
        Settings().progres_bar = False


@pytest.mark.parametrize("workers", [-1, 1.5, "2"])
def test_workers_are_counted(workers):
    with pytest.raises(ValueError, match="`n_workers` must be a whole number, 0 or more"):
        Settings().n_workers = workers


def test_a_folder_given_as_text_becomes_a_path():
    settings = Settings()
    settings.data_dir = "somewhere"
    assert settings.data_dir == Path("somewhere")
