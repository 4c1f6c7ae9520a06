"""What scripts do around a run: threads, the command as a reader would type it, messages said once."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def limit_threads(n: int | None) -> None:
    """Threads of torch and of the linear algebra behind numpy."""
    if n is None:
        return
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(n)
    threadpool_limits(n)
    torch.set_num_threads(n)


def command_of(script: str, arguments: Sequence[str]) -> str:
    """The command with the reader's own folders left to the reader."""
    shown, hidden = list(arguments), {"--data": "DIR", "--out": "FILE", "--figure": "DIR"}
    for i, argument in enumerate(shown):
        name = argument.split("=")[0]
        if name in hidden and "=" in argument:
            shown[i] = f"{name}={hidden[name]}"
        elif name in hidden and i + 1 < len(shown):
            shown[i + 1] = hidden[name]
    return " ".join([f"python benchmarks/{script}.py", *shown])


def names_of(
    parser: argparse.ArgumentParser, option: str, given: str, known: Iterable[str]
) -> tuple[str, ...]:
    """Names of a list with commas, all of which somebody has; a run of hours must not end in one that nobody has."""
    names, known = tuple(name for name in given.split(",") if name), list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            parser.error(f"{option} must be among {', '.join(known)}; got {name!r}.{hint}")
    return names


def folders_of(data: Path | None, usual: Iterable[str]) -> list[str]:
    """Names of datasets: the usual ones, and the folders that are there."""
    there = sorted(one.name for one in data.iterdir() if one.is_dir()) if data and data.is_dir() else []
    return list(dict.fromkeys([*usual, *there]))


def forget(adata: Any) -> None:
    """Let scvi-tools forget a training set: it would be held for as long as the process lives."""
    from stgen.models._base import remove_setup_marks

    remove_setup_marks(adata, {})


_SAID: set[str] = set()


def say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        print(text, file=sys.stderr, flush=True)
