"""Which device a network goes to: what is asked for is compared with what there is, before Lightning or CUDA do.

An accelerator is a kind of device. Of several GPUs, ``devices`` chooses: a number counts them, a list numbers them.
"""

from __future__ import annotations

from typing import Any

import torch

KINDS = {
    "auto": ("cuda", "cpu"),
    "cpu": ("cpu",),
    "gpu": ("cuda", "mps"),
    "cuda": ("cuda",),
    "mps": ("mps",),
}
"""What an accelerator may mean, in torch's words; the first that is there is taken."""


def kind_of(accelerator: str) -> str:
    """``"cpu"``, ``"cuda"`` or ``"mps"``; raises where that is not there."""
    if accelerator not in tuple(KINDS):
        raise ValueError(
            f"`accelerator` must be one of {', '.join(map(repr, KINDS))}; got {accelerator!r}. {_what_there_is()}"
        )
    is_here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for kind in KINDS[accelerator]:
        if is_here[kind]:
            return kind
    raise ValueError(
        f"`accelerator={accelerator!r}` is not there. {_what_there_is()} Say `accelerator='auto'`, which takes what "
        "there is."
    )


def one_device(accelerator: str, devices: Any) -> tuple[str, Any, torch.device]:
    """Accelerator and devices for Lightning, and the device for torch.

    Parameters
    ----------
    accelerator
        One of :data:`KINDS`.
    devices
        ``"auto"`` or 1 for the first, or a list with the number of a GPU, from 0.
    """
    if str(accelerator).startswith(("cuda:", "gpu:")):
        raise ValueError(
            "`accelerator` is a kind of device; the number of a GPU goes into `devices`, as in "
            f"`accelerator='gpu', devices=[0]`. Got {accelerator!r}. {_what_there_is()}"
        )
    kind = kind_of(accelerator)
    n = torch.cuda.device_count() if kind == "cuda" else 1
    numbers = _numbers(devices, n)
    if len(numbers) > 1:
        raise ValueError(
            f"Training on several devices is not built yet; got devices={devices!r}. Say `devices=1`. {_what_there_is()}"
        )
    if numbers[0] >= n or (kind == "cpu" and isinstance(devices, list | tuple)):
        raise ValueError(
            f"There is no GPU with number {numbers[0]}; got accelerator={accelerator!r}, devices={devices!r}. "
            f"{_what_there_is()} 'auto' takes the first device there is."
        )
    return (
        (kind, numbers, torch.device(kind, numbers[0])) if kind == "cuda" else (kind, 1, torch.device(kind))
    )


def _numbers(devices: Any, n: int) -> list[int]:
    """Which of ``n`` devices are meant, from 0."""
    asked = int(devices) if isinstance(devices, str) and devices.lstrip("-").isdigit() else devices
    if asked in ("auto", -1):
        return [0] if asked == "auto" else list(range(n))
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return list(range(asked))
    if isinstance(asked, list | tuple) and asked and all(isinstance(one, int) and one >= 0 for one in asked):
        return list(asked)
    raise ValueError(
        f"`devices` must be 'auto', 1, or a list with the number of a GPU, such as [0]; got {devices!r}. "
        f"{_what_there_is()}"
    )


def _what_there_is() -> str:
    """One sentence on the GPUs of this machine."""
    if torch.cuda.is_available():
        n = torch.cuda.device_count()
        return "Here is one GPU, number 0." if n == 1 else f"Here are {n} GPUs, numbers 0 to {n - 1}."
    if torch.backends.mps.is_available():
        return "Here is an Apple GPU ('mps')."
    if torch.version.cuda is None:
        return "Here is the CPU only: this torch was built without CUDA (see pytorch.org for one with it)."
    return "Here is the CPU only: torch sees no CUDA GPU (does `nvidia-smi` list one, and what is CUDA_VISIBLE_DEVICES?)."
