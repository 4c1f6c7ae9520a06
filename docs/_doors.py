"""The API pages: one for each door, listing exactly its ``__all__``.

``conf.py`` writes them at the start of a build; ``tests/test_house.py`` reads them back.
"""

from __future__ import annotations

import ast
from importlib import import_module
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from textwrap import indent

DOORS = {
    "stgen.pp": "Prepare",
    "stgen.tl": "Tools",
    "stgen.pl": "Plots",
    "stgen.get": "Results as tables",
    "stgen.models": "Models",
    "stgen.metrics": "Metrics",
    "stgen.baselines": "Baselines",
    "stgen.datasets": "Datasets",
    "stgen.testing": "Testing a model of your own",
}

SETTINGS = """\
Settings: ``stgen.settings``
============================

.. currentmodule:: stgen

.. data:: settings
   :type: stgen._settings.Settings

   The settings of this session.

.. autoclass:: stgen._settings.Settings
   :members:
"""


def public_names(door: str) -> list[str]:
    """Names in ``__all__`` of a door."""
    return list(getattr(import_module(door), "__all__", ()))


def is_constant(door: str, name: str) -> bool:
    """Whether a public name is a value rather than a function or class."""
    return not callable(getattr(import_module(door), name))


def constant_text(door: str, name: str) -> str:
    """The text under a constant, in whichever module of the door defines it."""
    for path in Path(import_module(door).__file__).parent.glob("*.py"):
        for node, below in pairwise(ast.parse(path.read_text(encoding="utf-8")).body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                return cleandoc(below.value.value)
    return ""


def page(door: str) -> str:
    """The page of one door as reStructuredText: its idea, functions and classes, then constants."""
    title = f"{DOORS[door]}: ``{door}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {door}", "   :no-members:", ""]
    lines += [f".. currentmodule:: {door}", ""]
    constants = [name for name in public_names(door) if is_constant(door, name)]
    described = [name for name in public_names(door) if name not in constants]
    if described:
        lines += [".. autosummary::", "   :toctree: api", "", *(f"   {name}" for name in described), ""]
    for name in constants:
        lines += [f".. data:: {name}", "", indent(constant_text(door, name), "   "), ""]
    return "\n".join(lines) + "\n"


def write_pages(folder: Path) -> None:
    """Write every page; a page that did not change keeps its time, so that Sphinx need not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {door.removeprefix("stgen."): page(door) for door in DOORS} | {"settings": SETTINGS}
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
