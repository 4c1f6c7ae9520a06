"""What is written comes back; what was damaged is refused with the reason."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from stgen.train import _files
from stgen.train._files import read_bundle, read_facts, write_bundle, written_whole

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


def full_disk(where, *, after):
    """Writers that find the disk full: the first once ``after`` bytes are there, or the second."""

    def fail(*args, **kwargs):
        if where == "tensors":
            Path(args[1]).write_bytes(b"x" * after)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        Path(args[0]).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    return fail


def fill_the_disk(monkeypatch, where):
    if where == "tensors":
        monkeypatch.setattr(_files, "save_file", full_disk(where, after=7))
    else:
        monkeypatch.setattr(Path, "write_text", full_disk(where, after=0))


@pytest.mark.parametrize("where", ["tensors", "facts"])
def test_a_full_disk_leaves_no_folder_of_that_name(tmp_path, monkeypatch, where):
    fill_the_disk(monkeypatch, where)
    with pytest.raises(OSError, match="No space left on device"):
        write_bundle(tmp_path / "new", "model", TENSORS, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["tensors", "facts"])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(folder, monkeypatch, where):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fill_the_disk(monkeypatch, where)
    with pytest.raises(OSError, match="No space left on device"):
        write_bundle(folder, "model", {"a": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert set(read_bundle(folder, "model")[0]) == set(TENSORS)


@pytest.mark.parametrize("fails_at", ["writing", "renaming"])
def test_a_folder_that_cannot_be_replaced_is_there_again(tmp_path, monkeypatch, fails_at):
    path = tmp_path / "store"
    path.mkdir()
    (path / "first").touch()
    if fails_at == "renaming":
        monkeypatch.setattr(Path, "replace", full_disk("facts", after=0))
    with pytest.raises(OSError, match="No space left"), written_whole(path) as partial:
        partial.mkdir()
        (partial / "second").touch()
        if fails_at == "writing":
            raise OSError(errno.ENOSPC, "No space left on device")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    assert [one.name for one in path.iterdir()] == ["first"]


def test_a_folder_that_a_killed_run_had_moved_away_comes_back(tmp_path):
    """It was killed between two renames; the next run must not take its remains for rubbish."""
    (tmp_path / ".store.old").mkdir()
    with pytest.raises(RuntimeError), written_whole(tmp_path / "store"):
        raise RuntimeError
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


def test_what_is_whole_takes_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "store"
    for name in ("first", "second"):
        with written_whole(path) as partial:
            partial.mkdir()
            (partial / name).touch()
            assert not (path / name).exists()
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    assert [one.name for one in path.iterdir()] == ["second"]


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
