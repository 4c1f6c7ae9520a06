"""How the documentation is built: `sphinx-build -W -b html docs docs/_build/html`."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import _doors  # noqa: E402

project = "stgen"
author = "The stgen developers"
copyright = f"2026, {author}"
release = version = installed("stgen")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
suppress_warnings = ["config.cache"]

# API pages are written from each door's `__all__` on every build, so they cannot drift from the code.
_doors.write_pages(HERE / "generated")
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
numpydoc_show_class_members = False

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "stgen"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False}

# Links into other projects need the network, which a build elsewhere may lack.
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }


def keep_ours(app, what, name, obj, skip, options):
    """Leave out what a class inherits from other projects; their documentation is theirs."""
    inner = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    home = getattr(inner, "__module__", None)
    if what == "class" and callable(inner) and isinstance(home, str) and not home.startswith("stgen"):
        return True
    return skip


def setup(app):
    app.connect("autodoc-skip-member", keep_ours)
