"""The API pages: one for each door, listing exactly its ``__all__``.

``conf.py`` writes them at the start of a build; ``tests/test_house.py`` reads them back.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

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


def page(door: str) -> str:
    """The page of one door as reStructuredText."""
    title = f"{DOORS[door]}: ``{door}``"
    if find_spec(door) is None:
        return f"{title}\n{'=' * len(title)}\n\nNot built yet.\n"
    lines = [title, "=" * len(title), "", f".. automodule:: {door}", "   :no-members:", ""]
    names = public_names(door)
    if names:
        lines += [f".. currentmodule:: {door}", "", ".. autosummary::", "   :toctree: api", ""]
        lines += [f"   {name}" for name in names]
    return "\n".join(lines) + "\n"


def write_pages(folder: Path) -> None:
    """Write every page; a page that did not change keeps its time, so that Sphinx need not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {door.removeprefix("stgen."): page(door) for door in DOORS} | {"settings": SETTINGS}
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
