"""Answers larger than memory: an AnnData on disk (zarr), written block by block.

It is written under a name of its own beside the one asked for and takes that name when it is whole, so that a run that was
stopped leaves nothing that looks like an answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stgen.train._files import written_whole

from ._imputation import Imputation, blocks, layer_names

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK = (1024, 256)
"""Spots × genes of a chunk at most: 1 MB."""


def check_path(out: str | Path, *, overwrite: bool) -> Path:
    """Where the store goes, if it may go there."""
    path = Path(out).expanduser()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another `out`, or say `overwrite=True` to replace it.")
    if path.exists() and not (
        path.is_dir() and ((path / ".zgroup").exists() or (path / "zarr.json").exists())
    ):
        raise FileExistsError(f"{path} is no zarr store, so it is not replaced. Choose another `out`.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `out` does not exist: {path.absolute().parent}. Make it first."
        )
    return path


def write_store(
    imputation: Imputation,
    frame: AnnData,
    path: Path,
    *,
    intervals: bool,
    batch_size: int | None,
) -> AnnData:
    """Fill ``frame``, which has names and no values, on disk; replaces what is there, once all is written.

    Returns
    -------
    :func:`opened`
    """
    import zarr
    from anndata.io import write_elem

    with written_whole(path) as partial:
        # format 2 is what every AnnData that we work with reads
        root: Any = zarr.open_group(str(partial), mode="w", zarr_format=2)
        write_elem(root, "/", frame)
        arrays = {"X": _array(root, "X", frame.shape)}
        arrays |= {
            name: _array(root["layers"], name, frame.shape) for name in layer_names(intervals=intervals)
        }
        for rows in blocks(frame.n_obs, frame.n_vars, batch_size, CHUNK[0]):
            for name, values in imputation.rows(rows, intervals=intervals):
                arrays[name][rows[0] : rows[-1] + 1] = values
        zarr.consolidate_metadata(str(partial))
    return opened(path)


def _array(group: Any, name: str, shape: tuple[int, int]) -> Any:
    chunks = tuple(min(most, n) for most, n in zip(CHUNK, shape, strict=True))
    array = group.create_array(name, shape=shape, chunks=chunks, dtype="float32")
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def opened(path: Path) -> AnnData:
    """A store whose matrices stay on disk until a part of them is asked for."""
    import zarr
    from anndata import AnnData
    from anndata.io import read_elem

    root: Any = zarr.open_group(str(path), mode="r")
    return AnnData(
        X=root["X"],
        layers={name: root["layers"][name] for name in root["layers"]},
        **{part: read_elem(root[part]) for part in ("obs", "var", "obsm", "uns")},
    )
