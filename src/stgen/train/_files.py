"""Tensors and facts on disk: a safetensors file and a json file that vouches for it. Nothing is unpickled.

The json holds the checksum of the tensors and of itself, the format number and the version of stgen that
wrote it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import stgen

FORMAT = 1
"""Number of the file format: raised when older versions of stgen could not read what newer ones write."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a file or folder to be written, which takes the name of ``path`` at the end.

    If writing fails (a full disk, Ctrl-C) it is removed, and what was at ``path`` before is there again.
    """
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    _put_back(old, path)
    _remove(partial)
    try:
        yield partial
        if path.is_dir():  # folders are not replaced in one step
            path.rename(old)
        partial.replace(path)
    finally:
        _put_back(old, path)
        _remove(partial)


def _put_back(old: Path, path: Path) -> None:
    """The earlier folder, unless a newer one has taken its place."""
    if old.exists() and not path.exists():
        old.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bundle(directory: Path, stem: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``stem.json`` and the tensors it names. If that fails, what was there stays as it was."""
    if directory.exists():
        return _write(directory, stem, tensors, facts)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(directory) as partial:
        partial.mkdir()
        _write(partial, stem, tensors, facts)


def _write(directory: Path, stem: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    new, part = directory / f".{stem}.safetensors.partial", directory / f".{stem}.json.partial"
    try:
        # clones: safetensors refuses tensors that share memory, as tied weights do
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, new)
        digest = _digest(new)
        name = f"{stem}-{digest[:12]}.safetensors"
        body = {**facts, "format": FORMAT, "stgen": stgen.__version__, "tensors": name, "sha256": digest}
        body["checksum"] = _checksum(body)
        part.write_text(json.dumps(body, indent=1, ensure_ascii=False), encoding="utf-8")
        # only now, when the disk has had room for both
        new.replace(directory / name)
        part.replace(directory / f"{stem}.json")
    except SafetensorError as error:
        raise OSError(f"{directory} could not be written, so nothing in it was changed: {error}.") from error
    finally:
        for rest in (new, part):
            rest.unlink(missing_ok=True)
    for old in directory.glob(f"{stem}-*.safetensors"):
        if old.name != name:
            old.unlink()


def read_facts(directory: Path, stem: str) -> dict[str, Any]:
    """The json of a bundle, checked."""
    path = directory / f"{stem}.json"
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; expected one that holds {path.name}.")
    if not path.is_file():
        found = sorted(entry.name for entry in directory.iterdir())
        raise FileNotFoundError(
            f"{directory} holds no {path.name}, so stgen did not write it; it holds {found}."
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version, written_by = body["format"], body["stgen"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of stgen: it is truncated or was changed."
        ) from error
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, written by stgen {written_by}; stgen {stgen.__version__} reads "
            f"formats up to {FORMAT}. Update with `pip install -U stgen`."
        )
    if body.get("checksum") != _checksum(body):
        raise ValueError(f"{path} is not what was saved (its checksum differs): it was changed after saving.")
    return body


def read_bundle(directory: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a bundle, checked."""
    facts = read_facts(directory, stem)
    path = directory / facts["tensors"]
    if path.parent != directory:
        raise ValueError(f"{directory / stem}.json names a file outside its folder, {facts['tensors']!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds {stem}.json but not {path.name}; copy the whole folder.")
    if _digest(path) != facts["sha256"]:
        raise ValueError(
            f"{path} is not what was saved (its checksum differs): it is truncated or was changed."
        )
    try:
        return load_file(path), facts
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(body: Mapping[str, Any]) -> str:
    """Of everything but itself, however it is laid out."""
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
