"""Randomness by seed: global generators are used inside, as dropout knows no other, and left as found."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(random_state: int, *purpose: str | int) -> int:
    """A seed of its own for each purpose, such as ``seed_from(0, "order", epoch)``; the same everywhere."""
    keys = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in purpose]
    return int(np.random.SeedSequence([random_state, *keys]).generate_state(1, dtype=np.uint32)[0])


def seed_global_generators(seed: int) -> None:
    """Seed Python, NumPy and torch; only ever called inside :func:`global_random_state_kept`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 code that we call may draw from the legacy generator
    # `torch.manual_seed` also queues a call for a CUDA that may never come, each time with a formatted stack
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def global_random_state_kept(device: torch.device | None = None) -> Iterator[None]:
    """Put the global generators and torch's determinism flags back afterwards, also after an error."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    cuda = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
