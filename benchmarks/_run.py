"""What scripts do around a run: threads, the command as a reader would type it, messages said once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
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


def forget(adata: Any) -> None:
    """Let scvi-tools forget a training set: it would be held for as long as the process lives."""
    from stgen.models._base import remove_setup_marks

    remove_setup_marks(adata, {})


_SAID: set[str] = set()


def say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        print(text, file=sys.stderr, flush=True)
