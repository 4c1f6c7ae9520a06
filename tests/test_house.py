"""The house itself: doors, arrows, keys, light import. No test here knows what a model does."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import stgen as stg

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "stgen"
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
DOORS = sorted(set(stg.__all__) - {"__version__", "settings"})
HEAVY = ("torch", "scvi", "lightning", "scanpy", "squidpy", "spatialdata", "matplotlib")


def load_doors_of_the_docs():
    spec = importlib.util.spec_from_file_location("_doors", ROOT / "docs" / "_doors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trees(folder: Path = SOURCE) -> Iterator[tuple[str, ast.Module]]:
    """Every module under a folder, with its path for messages."""
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def loaded_after(statement: str, suspects: tuple[str, ...]) -> set[str]:
    """Which of the suspects a fresh Python has loaded after a statement."""
    code = f"{statement}; import sys; print(*[m for m in {suspects!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


# doors -----------------------------------------------------------------------------------------------------------


def test_an_editor_sees_every_door():
    assert set(stg.__all__) <= set(dir(stg))
    assert {"pp", "tl", "pl", "get", "models", "metrics", "datasets", "settings"} <= set(stg.__all__)


def test_what_the_type_checker_sees_is_what_opens():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    assert imported_names(tree) & set(stg.__all__) == set(stg.__all__) - {"__version__"}


def test_an_unknown_name_lists_the_doors():
    with pytest.raises(AttributeError, match=r"module 'stgen' has no attribute 'nothing'; it has .*datasets"):
        stg.nothing  # noqa: B018


@pytest.mark.parametrize("package", [*PACKAGES, "testing"])
def test_all_is_complete_and_opens(package):
    module = importlib.import_module(f"stgen.{package}")
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(module, name) is not None
        assert not name.startswith("_")
    assert set(names) <= set(dir(module)), "a lazy door needs a __dir__"


@pytest.mark.parametrize("package", PACKAGES)
def test_all_equals_what_the_package_imports(package):
    """A lazy door imports its names under TYPE_CHECKING: they, the lazy names and `__all__` are one set."""
    module = importlib.import_module(f"stgen.{package}")
    tree = ast.parse((SOURCE / package / "__init__.py").read_text(encoding="utf-8"))
    own = {name for name in imported_from_own_modules(tree) if not name.startswith("_")}
    assert own == set(getattr(module, "__all__", []))


def imported_names(tree: ast.Module) -> set[str]:
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def imported_from_own_modules(tree: ast.Module) -> set[str]:
    """Names that a package's `__init__` takes from modules beside it, at top level or for the type checker."""
    blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]
    return {
        alias.asname or alias.name
        for block in blocks
        for node in block
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


# documentation ---------------------------------------------------------------------------------------------------


def test_every_door_has_an_api_page():
    documented = {door.removeprefix("stgen.") for door in load_doors_of_the_docs().DOORS}
    assert documented >= set(DOORS)
    index = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\.\./generated/(\w+)", index)) == documented | {"settings"}


@pytest.mark.parametrize("door", DOORS)
def test_an_api_page_lists_exactly_all(door):
    page = load_doors_of_the_docs().page(f"stgen.{door}")
    listed = re.findall(r"^(?:   |\.\. data:: )(\w+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(getattr(importlib.import_module(f"stgen.{door}"), "__all__", []))


@pytest.mark.parametrize("door", DOORS)
def test_everything_public_says_what_it_does(door):
    module = importlib.import_module(f"stgen.{door}")
    if not getattr(module, "__all__", []):
        pytest.skip(f"stgen.{door} is empty so far")
    assert module.__doc__, f"stgen.{door} opens with its idea"
    public = {f"{door}.{name}": getattr(module, name) for name in getattr(module, "__all__", [])}
    for name, thing in list(public.items()):
        if inspect.isclass(thing):
            public |= {
                f"{name}.{key}": value for key, value in vars(thing).items() if is_public_method(key, value)
            }
    silent = [name for name, thing in public.items() if callable(thing) and not inspect.getdoc(thing)]
    text = load_doors_of_the_docs().constant_text
    silent += [
        name
        for name in module.__all__
        if not callable(getattr(module, name)) and not text(module.__name__, name)
    ]
    assert not silent


def is_public_method(name: str, value: object) -> bool:
    return not name.startswith("_") and inspect.isfunction(value)


@pytest.mark.parametrize("file", ["README.md", "docs/installation.md", "CONTRIBUTING.md"])
def test_a_linked_file_exists(file):
    text = re.sub(r"<!--.*?-->", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / file).parent.joinpath(link).exists()]
    assert not missing


def test_every_config_field_has_its_text():
    silent = [
        f"{path}:{node.lineno} {cls.name}.{node.target.id}"
        for path, tree in trees(SOURCE / "models")
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef) and is_frozen_dataclass(cls)
        for node, below in zip(cls.body, [*cls.body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign) and not is_text(below)
    ]
    assert not silent, "a field's text is a string right below it"


def is_frozen_dataclass(cls: ast.ClassDef) -> bool:
    return any(
        isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func).endswith("dataclass")
        and any(keyword.arg == "frozen" and keyword.value.value is True for keyword in decorator.keywords)
        for decorator in cls.decorator_list
    )


def is_text(node: ast.stmt | None) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# keys ------------------------------------------------------------------------------------------------------------

SLOTS = {"obs", "var", "obsm", "varm", "obsp", "varp", "uns", "layers"}


def test_slot_names_live_in_keys():
    found = [
        f"{path}:{node.lineno} .{slot}[{name!r}]"
        for path, tree in trees()
        if not path.endswith("_keys.py")
        for node in ast.walk(tree)
        for slot, name in slot_literals(node)
    ]
    assert not found, "names of AnnData slots belong in stgen/_keys.py"


def slot_literals(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Literals in ``x.obs["a"]``, ``x.uns.get("a")`` and ``"a" in x.obsm``."""
    if isinstance(node, ast.Subscript):
        slot, names = node.value, [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr not in {"get", "pop", "setdefault"}:
            return
        slot, names = node.func.value, node.args[:1]
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        slot, names = node.comparators[0], [node.left]
    else:
        return
    if isinstance(slot, ast.Attribute) and slot.attr in SLOTS:
        for name in names:
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield slot.attr, name.value


def test_the_search_for_slot_names_finds_them():
    code = 'a.obs["x"]; a.uns.get("y", 1); "z" in a.obsm; a.uns[KEY]["params"]; a.obs[key]; d["obs"]'
    found = [hit for node in ast.walk(ast.parse(code)) for hit in slot_literals(node)]
    assert sorted(found) == [("obs", "x"), ("obsm", "z"), ("uns", "y")]


# arrows ----------------------------------------------------------------------------------------------------------


def test_importing_stgen_is_light():
    assert loaded_after("import stgen", (*HEAVY, "numpy", "pandas", "anndata")) == set()


@pytest.mark.parametrize("door", ["pp", "metrics", "datasets", "pl", "get"])
def test_a_door_opens_without_deep_learning(door):
    assert loaded_after(f"import stgen.{door}", ("torch", "scvi", "lightning")) == set()


def test_networks_load_neither_tables_nor_trainers():
    unwanted = ("anndata", "spatialdata", "pandas", "scvi", "lightning", "sklearn", "matplotlib")
    assert loaded_after("import stgen.nn", unwanted) == set()


def test_every_model_is_in_the_independence_contract():
    models = {f"stgen.models.{path.parent.name}" for path in (SOURCE / "models").glob("*/__init__.py")}
    contract = next(c for c in contracts() if c["type"] == "independence")
    assert set(contract["modules"]) == models


def test_what_src_imports_is_declared():
    """A fresh machine has what is declared, not what happens to lie in a developer's environment."""
    project = pyproject()["project"]
    lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {distribution(re.match(r"[\w.-]+", line)[0]) for line in lines} | {"stgen"}
    imported = {name.split(".")[0] for _, tree in trees() for name in absolute_imports(tree)}
    missing = [
        name
        for name in sorted(imported - set(sys.stdlib_module_names))
        if distribution(DISTRIBUTIONS.get(name, name)) not in declared
    ]
    assert not missing, "add it to pyproject.toml, as a need or in an extra"


DISTRIBUTIONS = {
    "PIL": "pillow",
    "scvi": "scvi-tools",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skmisc": "scikit-misc",
}


def distribution(name: str) -> str:
    return name.lower().replace("_", "-")


def absolute_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def contracts() -> list[dict]:
    return pyproject()["tool"]["importlinter"]["contracts"]


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_arrows_point_down():
    pytest.importorskip("importlinter", reason="arrows are checked by import-linter")
    code = "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# traces ----------------------------------------------------------------------------------------------------------


def test_no_tracked_file_names_somebodys_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    # spelt in pieces, or this file would name them
    places = re.compile(
        "|".join("/" + place for place in ("work/", "root/", "home/[a-z]", "Users/", "tmp/[a-z]"))
    )
    hits = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".png", ".jpg", ".npz", ".safetensors"} or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if places.search(re.sub(r"https?://\S+", "", line)):
                hits.append(f"{name}:{number} {line.strip()[:80]}")
    assert not hits
