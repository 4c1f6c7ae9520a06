"""The model behind a task: given, found in a folder or on the hub, or trained here on a table of our own.

Models see our tables, never the user's objects, so that none of those is marked as set up, and a call that fails
leaves everything as it was.
"""

from __future__ import annotations

import copy as copies
import dataclasses
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stgen._warn import warn
from stgen.data._names import align_genes, check_unique, looks_like_ensembl, spelling_hint
from stgen.data._tiles import TilesField

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.data._fields import Field
    from stgen.models._base import STModel

    M = TypeVar("M", bound=STModel)

logger = logging.getLogger("stgen")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


# --------------------------------------------------------------------------------------------------------------- given


def found_model(kind: type[M], model: Any, verb: str) -> tuple[M, str]:
    """A fitted model, and where it lies ("" if only in memory)."""
    if isinstance(model, kind):
        model._check_fitted(verb)
        return model, ""
    if not isinstance(model, str | Path):
        raise TypeError(
            f"`model` must be a fitted {kind.__name__}, the folder of one or its hub id; got {type(model).__name__}."
        )
    fitted = kind.load(model) if Path(model).exists() else _from_hub(kind, str(model))
    fitted._check_fitted(verb)
    return fitted, str(model)


def _from_hub(kind: type[M], name: str) -> M:
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"There is no folder {name!r}. Give the folder that `model.save` wrote, or a hub id, `owner/name`."
        )
    try:
        return kind.from_pretrained(name)
    except ImportError as error:
        raise ImportError(f"There is no folder {name!r}, and to look on the hub: {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"There is no folder {name!r}, and the Hugging Face Hub gave no model of that name: {error}"
        ) from error


def reading(fitted: M, changes: Mapping[type, Mapping[str, Any]]) -> M:
    """The model reading other keys; the user's object stays as it is, the network is shared.

    ``changes`` has, for a kind of field, what differs; ``None`` leaves what the model was fitted with.
    """
    reader = copies.copy(fitted)
    reader._fields = [
        dataclasses.replace(
            one, **{name: key for name, key in changes.get(type(one), {}).items() if key is not None}
        )
        for one in fitted._fields
    ]
    return reader


def image_field(model: STModel) -> Field:
    """What the image is read from: an embedding, or tiles."""
    return next(one for one in model._fields if one.registry_key in ("histology", "tiles"))


def image_param(image: Field) -> str:
    """The parameter that names it."""
    return "tiles_key" if isinstance(image, TilesField) else "histology_key"


def check_one_image(histology_key: str | None, tiles_key: str | None) -> None:
    """An image is read once: as an embedding, or as tiles."""
    if histology_key is not None and tiles_key is not None:
        raise ValueError(
            f"Give `histology_key` (an embedding) or `tiles_key` (tiles), and not both; got {histology_key!r} and "
            f"{tiles_key!r}."
        )


def check_image_key(fitted: STModel, histology_key: str | None, tiles_key: str | None) -> None:
    """The key that the user names must be of the kind that the model reads."""
    if image_param(image_field(fitted)) == "tiles_key" and histology_key is not None:
        raise ValueError(
            f"The model was fitted on tiles; `histology_key={histology_key!r}` names an embedding. Name tiles: "
            '`tiles_key="tiles"`, as `stg.pp.histology_tiles` cuts them; or give a model that was fitted on an embedding.'
        )
    if image_param(image_field(fitted)) == "histology_key" and tiles_key is not None:
        raise ValueError(
            f"The model was fitted on a histology embedding; `tiles_key={tiles_key!r}` names tiles. Embed them with "
            "`stg.pp.embed_histology` and name the result with `histology_key=`, or give a model that was fitted on tiles."
        )


def check_column(adata: AnnData, key: str | None) -> None:
    """A column that the user names must be there."""
    if key is not None and key not in adata.obs:
        raise KeyError(f"obs[{key!r}] does not exist; obs has {list(adata.obs.columns)}.")


def check_names(adata: AnnData, genes: list[str]) -> None:
    """The spots may have no genes or other genes, but not the same genes in another spelling."""
    if adata.n_vars == 0:
        return
    check_unique(adata.var_names, "Gene names", "Run `adata.var_names_make_unique()` or drop the copies.")
    n_known = int(adata.var_names.isin(genes).sum())
    hint = spelling_hint(genes, adata.var_names)
    if n_known == 0 and looks_like_ensembl(genes) != looks_like_ensembl(adata.var_names):
        align_genes(genes, adata.var_names, var=adata.var)
    if hint:
        warn(f"{len(genes) - n_known} of the {len(genes)} predicted genes are not in `var_names`.{hint}")
    if 0 < n_known < max(adata.n_vars, len(genes)):
        logger.info("%d of the %d predicted genes are in `var_names`.", n_known, len(genes))


# -------------------------------------------------------------------------------------------------------- trained here


def check_free(model: Any, save: str | Path | None) -> None:
    """Whether a model can be kept there; said now and not after an hour of training."""
    if save is None:
        return
    folder = Path(save)
    if model is not None:
        raise ValueError("`save` keeps a model that is trained here; with `model=` there is nothing to keep.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"`save={str(folder)!r}` is a file; a folder is expected.")
    if (folder / "model.json").exists():
        raise FileExistsError(
            f"{folder} already holds a model. Choose another folder for `save`, or use that model: `model={str(folder)!r}`."
        )


def trained_model(
    kind: type[M],
    table: AnnData,
    setup: Mapping[str, Any],
    model_kwargs: Mapping[str, Any] | None,
    train_kwargs: Mapping[str, Any] | None,
    random_state: int,
) -> M:
    """A model fitted on a table of our own, which scvi-tools forgets afterwards."""
    from stgen.models._base import INTERRUPTED, remove_setup_marks

    kind.setup_anndata(table, **setup)  # type: ignore[attr-defined]
    try:
        model = kind(table, **{"random_state": random_state, **(model_kwargs or {})})
        with warnings.catch_warnings():
            # a model that nobody gets to see cannot be used
            warnings.filterwarnings("ignore", message=INTERRUPTED)
            model.train(**{"random_state": random_state, **(train_kwargs or {})})
        # scvi-tools would keep the table for as long as the session lives
        model.deregister_manager(table)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{INTERRUPTED}: no model is kept and nothing is written. To keep what it had learned, train the model "
            f"itself (`{kind.__name__}(adata).train()`) and give it as `model=`."
        ) from None
    finally:
        remove_setup_marks(table, {})
    return model


def kept(model: STModel, folder: str | Path | None) -> str:
    """Save the model that was trained here, and say where ("" if nowhere)."""
    if folder is None:
        logger.info("The model that was trained is not kept; name a folder with `save=` to keep it.")
        return ""
    model.save(folder)
    return str(folder)
