"""A device that is not there is named before anything is built, and one that is there is the one that is meant."""

from __future__ import annotations

import pytest
import torch

from stgen.nn import _devices
from stgen.nn._devices import kind_of, one_device


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA GPUs, with or without an Apple GPU."""

    def having(n_cuda=0, mps=False, built_with="12.4"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", built_with)

    return having


@pytest.mark.parametrize(
    ("has", "accelerator", "devices", "expected"),
    [
        ({}, "auto", "auto", ("cpu", 1, "cpu")),
        ({"mps": True}, "auto", "auto", ("cpu", 1, "cpu")),
        ({"mps": True}, "gpu", 1, ("mps", 1, "mps")),
        ({"mps": True}, "mps", [0], ("mps", 1, "mps")),
        ({"n_cuda": 1}, "auto", "auto", ("cuda", [0], "cuda:0")),
        ({"n_cuda": 1}, "gpu", -1, ("cuda", [0], "cuda:0")),
        ({"n_cuda": 2}, "cpu", "1", ("cpu", 1, "cpu")),
        ({"n_cuda": 2}, "gpu", 1, ("cuda", [0], "cuda:0")),  # one GPU, not that with number 1
        ({"n_cuda": 2}, "cuda", [1], ("cuda", [1], "cuda:1")),
    ],
)
def test_what_is_there_is_used(machine, has, accelerator, devices, expected):
    machine(**has)
    kind, for_lightning, device = one_device(accelerator, devices)
    assert (kind, for_lightning, str(device)) == expected


@pytest.mark.parametrize(
    ("has", "accelerator", "devices", "message"),
    [
        (
            {},
            "gpu",
            "auto",
            r"`accelerator='gpu'` is not there\. Here is the CPU only: torch sees no CUDA GPU .* Say",
        ),
        (
            {"built_with": None},
            "cuda",
            1,
            "'cuda'` is not there.*CPU only: this torch was built without CUDA",
        ),
        ({"n_cuda": 1}, "mps", "auto", "`accelerator='mps'` is not there. Here is one GPU, number 0"),
        ({"mps": True}, "cuda", "auto", r"'cuda'` is not there\. Here is an Apple GPU \('mps'\)"),
        (
            {},
            "tpu",
            "auto",
            "must be one of 'auto', 'cpu', 'gpu', 'cuda', 'mps'; got 'tpu'. Here is the CPU only",
        ),
        ({}, None, "auto", "must be one of .*; got None"),
        (
            {"n_cuda": 2},
            "cuda:7",
            "auto",
            r"goes into `devices`.*Got 'cuda:7'\. Here are 2 GPUs, numbers 0 to 1",
        ),
        ({}, "auto", [5], r"no GPU with number 5; got .*devices=\[5\]\. Here is the CPU only"),
        ({"n_cuda": 2}, "gpu", [5], r"no GPU with number 5; .*Here are 2 GPUs, numbers 0 to 1"),
        ({"n_cuda": 2}, "gpu", (2,), "no GPU with number 2"),
        ({"n_cuda": 2}, "cpu", [0], "no GPU with number 0; got accelerator='cpu'"),
        ({"mps": True}, "gpu", [1], "no GPU with number 1"),
        (
            {"n_cuda": 2},
            "gpu",
            3,
            r"several devices is not built yet; got devices=3\. Say `devices=1`\. Here are 2",
        ),
        ({"n_cuda": 2}, "gpu", -1, "several devices is not built yet"),
        ({"n_cuda": 2}, "gpu", [0, 1], "several devices is not built yet"),
        ({}, "auto", 3, "several devices is not built yet; got devices=3.*Here is the CPU only"),
        ({}, "auto", 0, "`devices` must be 'auto', 1, or a list .*; got 0"),
        ({}, "auto", "cuda:0", "`devices` must be .*; got 'cuda:0'"),
        ({}, "auto", [], r"`devices` must be .*; got \[\]"),
        ({}, "auto", [-1], r"`devices` must be .*; got \[-1\]"),
        ({}, "auto", True, "`devices` must be .*; got True"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(machine, has, accelerator, devices, message):
    machine(**has)
    with pytest.raises(ValueError, match=message):
        one_device(accelerator, devices)


@pytest.mark.parametrize("accelerator", _devices.KINDS)
def test_no_accelerator_is_taken_for_another(machine, accelerator):
    machine(n_cuda=1, mps=True)
    expected = {"auto": "cuda", "gpu": "cuda"}.get(accelerator, accelerator)
    assert kind_of(accelerator) == expected
