"""Tensors and facts on disk: a safetensors file and a json file that vouches for it. Nothing is unpickled.

The json holds the checksum of the tensors and of itself, the format number and the version of stgen that
wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import stgen

FORMAT = 1
"""Number of the file format: raised when older versions of stgen could not read what newer ones write."""


def write_bundle(directory: Path, stem: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``stem.json`` and the tensors it names. Interrupted, it leaves what was there readable."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"{stem}.safetensors.part"
    # clones: safetensors refuses tensors that share memory, as tied weights do
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, new)
    digest = _digest(new)
    name = f"{stem}-{digest[:12]}.safetensors"
    os.replace(new, directory / name)
    body = {**facts, "format": FORMAT, "stgen": stgen.__version__, "tensors": name, "sha256": digest}
    body["checksum"] = _checksum(body)
    part = directory / f"{stem}.json.part"
    part.write_text(json.dumps(body, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(part, directory / f"{stem}.json")
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
