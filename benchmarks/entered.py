"""Through how many files a reader must go to follow one call: files and functions of `stgen` that it enters.

    python benchmarks/entered.py            # half a minute on two cores, toy data

A file counts if one of its functions runs during the call; what runs when a module is imported does not count.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import stgen as stg

PACKAGE = Path(stg.__file__).parent


class Entered(NamedTuple):
    """What one call went through."""

    files: tuple[str, ...]
    """Paths within the package."""
    n_functions: int


def entered(call: Callable[[], Any]) -> Entered:
    """Files and named functions of the package that ``call`` enters, in all of its threads."""
    # what a module does once, when it is imported, is no part of the call
    for module in pkgutil.walk_packages([str(PACKAGE)], "stgen."):
        importlib.import_module(module.name)
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    own = [code for code in seen if PACKAGE in Path(code.co_filename).parents and is_function(code)]
    files = {Path(code.co_filename).relative_to(PACKAGE).as_posix() for code in own}
    return Entered(tuple(sorted(files)), len(own))


def is_function(code: CodeType) -> bool:
    """Whether it has a name of its own: no body of a class, no comprehension, no lambda."""
    return bool(code.co_flags & inspect.CO_NEWLOCALS) and not code.co_name.startswith("<")


def genar_train() -> Callable[[], Any]:
    """Training on a small section."""
    GenAR = stg.models.GenAR
    case = GenAR.example()
    GenAR.setup_anndata(case.adata, **case.setup)
    model = GenAR(case.adata, **case.config)
    return lambda: model.train(**case.train)


def gest_embed_niches() -> Callable[[], Any]:
    """Niches by a trained model."""
    GeST = stg.models.GeST
    case = GeST.example()
    GeST.setup_anndata(case.adata, **case.setup)
    model = GeST(case.adata, **case.config)
    model.train(**case.train)
    return model.embed_niches


def causalged_impute() -> Callable[[], Any]:
    """The task, with a model that it trains."""
    case = stg.models.CausalGeD.example()
    config = dict(case.config)
    reference = config.pop("reference")
    return lambda: stg.tl.causalged_impute(
        case.adata, reference, model_kwargs=config, train_kwargs=case.train, library_key="section"
    )


CALLS: dict[str, Callable[[], Callable[[], Any]]] = {
    "GenAR.train()": genar_train,
    "GeST.embed_niches()": gest_embed_niches,
    "tl.causalged_impute()": causalged_impute,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", action="store_true", help="name the files")
    asked = parser.parse_args(arguments)
    every = {name: entered(prepared()) for name, prepared in CALLS.items()}
    print(f"{'call':<24}{'files':>7}{'functions':>11}")
    for name, found in every.items():
        print(f"{name:<24}{len(found.files):>7}{found.n_functions:>11}")
        if asked.files:
            print(*(f"  {file}" for file in found.files), sep="\n")


if __name__ == "__main__":
    main()
