"""Checkpoints of today are read tomorrow, and say the same."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("genst_golden", HERE / "golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.fixture(scope="module")
def today():
    return golden.facts()


@pytest.mark.parametrize("name", golden.NETWORKS)
def test_checkpoint_keys_and_a_forward_pass_are_frozen(name, today):
    frozen = json.loads((HERE / "golden.json").read_text())[name]
    assert today[name]["keys"] == frozen["keys"]
    for answer in ("expression", "probability"):
        torch.testing.assert_close(
            torch.tensor(today[name][answer]), torch.tensor(frozen[answer]), rtol=1e-3, atol=1e-5
        )
