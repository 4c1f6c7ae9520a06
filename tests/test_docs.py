"""Shared sentences of docstrings."""

from __future__ import annotations

import pytest

from stgen._docs import SHARED, shared_doc


def test_placeholders_are_filled_and_other_percent_signs_kept():
    @shared_doc
    def function() -> None:
        """Keep 10 % of %(adata)s"""

    assert function.__doc__ == f"Keep 10 % of {SHARED['adata']}"


def test_a_function_without_docstring_is_left_alone():
    @shared_doc
    def function() -> None:
        pass

    assert function.__doc__ is None


def test_an_unknown_sentence_is_an_error_at_import():
    def function() -> None:
        """%(nothing_of_the_kind)s"""

    with pytest.raises(KeyError, match="nothing_of_the_kind"):
        shared_doc(function)
