"""What is written comes back; what was damaged is refused with the reason."""

from __future__ import annotations

import json

import pytest
import torch

from stgen.train import _files
from stgen.train._files import read_bundle, read_facts, write_bundle

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "step": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "m", "model", TENSORS, {"genes": ["CCL3/L1", "µ"], "n": 3, "none": None})
    return tmp_path / "m"


def tensors_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_tensors_and_facts_come_back(folder):
    tensors, facts = read_bundle(folder, "model")
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert facts["genes"] == ["CCL3/L1", "µ"]
    assert facts["none"] is None


def test_tied_and_strided_tensors_can_be_written(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    write_bundle(tmp_path, "model", {"a": weight, "b": weight, "t": weight.T}, {})
    tensors, _ = read_bundle(tmp_path, "model")
    assert torch.equal(tensors["t"], weight.T)


def test_a_second_write_replaces_the_first(folder):
    write_bundle(folder, "model", {"a": torch.zeros(1)}, {})
    assert set(read_bundle(folder, "model")[0]) == {"a"}
    assert len(list(folder.iterdir())) == 2


def test_an_interrupted_write_leaves_the_old_bundle(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_files.json, "dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, "model", {"a": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert set(read_bundle(folder, "model")[0]) == set(TENSORS)


def test_a_missing_folder_and_a_strange_folder_are_told_apart(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere is not a folder; expected one that holds model\.json"
    ):
        read_bundle(tmp_path / "nowhere", "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"holds no model\.json, so stgen did not write it; it holds \['model\.pt'\]"
    ):
        read_bundle(tmp_path / "other", "model")


def test_missing_tensors_are_named(folder):
    name = tensors_file(folder).name
    tensors_file(folder).unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds model\.json but not {name}; copy the whole folder"):
        read_bundle(folder, "model")


def test_truncated_tensors_are_refused(folder):
    path = tensors_file(folder)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"its checksum differs\): it is truncated or was changed"):
        read_bundle(folder, "model")


def test_changed_tensors_are_refused(folder):
    path = tensors_file(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="its checksum differs"):
        read_bundle(folder, "model")


def test_changed_facts_are_refused(folder):
    path = folder / "model.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"n": 3', '"n": 4'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.json is not what was saved \(its checksum differs\)"):
        read_facts(folder, "model")


@pytest.mark.parametrize("content", ["", '{"genes": [', "[]", '{"format": 1}'])
def test_truncated_facts_are_refused(folder, content):
    (folder / "model.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read as a file of stgen: it is truncated or was changed"):
        read_facts(folder, "model")


def test_another_layout_of_the_same_facts_is_fine(folder):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=4))
    assert read_facts(folder, "model")["n"] == 3


def test_a_newer_format_says_to_update(folder, monkeypatch):
    monkeypatch.setattr(_files, "FORMAT", 2)
    write_bundle(folder, "model", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"has format 2, written by stgen .*reads formats up to 1\. Update with"
    ):
        read_bundle(folder, "model")


def test_a_tensor_file_outside_the_folder_is_not_followed(folder):
    """Facts are checked, but a forger can write a checksum too: paths never leave the folder."""
    body = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    body["tensors"] = "../elsewhere.safetensors"
    body["checksum"] = _files._checksum(body)
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="names a file outside its folder"):
        read_bundle(folder, "model")
