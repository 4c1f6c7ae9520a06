"""From a section's H&E to expression in one call, with GenST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stgen import _keys
from stgen._docs import shared_doc

from ._fitted import check_one_image
from ._from_histology import Asked, check_call, predict_into

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GenST

DECODED = ("soft", "code")


@shared_doc
def genst_predict(
    adata: AnnData,
    *,
    model: GenST | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
    save: str | Path | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 200,
    layer: str | None = None,
    histology_key: str | None = None,
    tiles_key: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    decode: str = "soft",
    n_paths: int = 8,
    random_state: int = 0,
    batch_size: int | None = None,
    key_added: str = _keys.GENST,
    copy: bool = False,
) -> AnnData | None:
    """Predict depth-normalised expression of a section from its H&E with :class:`stgen.models.GenST`.

    ``adata`` needs a histology embedding (or tiles) and coordinates, and no genes; counts that it holds are not read.
    The model is given, or trained here on sections with counts. See :cite:p:`genst`, and the model's page for what is our own.

    Parameters
    ----------
    adata
        Spots to predict.
    model
        A fitted :class:`stgen.models.GenST`, the folder of one, or its id on the Hugging Face Hub (``owner/name``).
    train_on
        %(he_train_on)s
    save
        %(he_save)s
    genes
        %(he_genes)s
    n_genes
        %(he_n_genes)s
    layer
        %(he_layer)s
    histology_key
        %(he_histology_key)s
    tiles_key
        %(he_tiles_key)s When training, this makes a model that reads pixels (``preset="pixels"``).
    spatial_key
        %(he_spatial_key)s
    library_key
        %(he_library_key)s
    patient_key
        %(he_patient_key)s
    split_key
        %(he_split_key)s
    model_kwargs
        For training: ``preset`` and fields of :class:`stgen.models.GenSTConfig`, such as ``n_codes``.
    train_kwargs
        For training: keywords of :meth:`stgen.models.GenST.train`.
    decode
        What normalised expression is decoded from: ``"soft"``, the expected code, or ``"code"``, the most probable one.
        Counts and their spread are the same for both.
    n_paths
        Draws of codes that the spread mixes.
    random_state
        %(random_state)s
    batch_size
        Spots that are predicted at once.
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``layers[key_added]`` if the genes are exactly ``var_names`` (in their order), else
    ``obsm[key_added]``, spots × genes, float32, with the names of the genes in ``uns[key_added]["genes"]``: expected
    log1p of the count, divided by the spot's total over all genes of the model and times ``uns[key_added]["target_total"]``,
    the median total of training spots. Beside it ``"{key_added}_counts"``, expected counts, and ``"{key_added}_sd"``, the
    standard deviation of predicted counts. ``uns[key_added]`` holds ``scale`` (``"normalized"``), ``params``, ``model``
    (the facts of the model card, and its ``path``), ``versions``, and ``seen_in_training``: sections, patients and number
    of spots of ``adata`` that the model was trained on, test rows only where there is a split.
    :func:`stgen.get.prediction` gives a table.

    Raises
    ------
    ValueError
        If inputs are not like those the model was fitted on (tiles of another size, an embedding in place of tiles,
        or the other way round), ``model_kwargs`` ask for what ``tiles_key`` does not give, or the result would replace something that is not a
        prediction of GenST; for training, if counts are not counts, sections share no genes, or there are fewer
        training spots than codes.

    Warns
    -----
    UserWarning
        If a patient or a section of ``adata`` is one of those the model was trained on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> train, new = adata[adata.obs["patient"] == "p1"].copy(), adata[adata.obs["patient"] == "p2"].copy()
    >>> stg.tl.genst_predict(new, train_on=train, train_kwargs={"max_epochs": 3})
    >>> new.layers["genst"].shape
    (200, 20)

    From tiles, that is from pixels:

    >>> adata = stg.datasets.toy_tissue(spots_per_section=49, n_genes=20, histology="images")
    >>> stg.pp.histology_tiles(adata, "hires", library_key="section", tile_px=32)
    >>> train, new = adata[adata.obs["patient"] == "p1"].copy(), adata[adata.obs["patient"] == "p2"].copy()
    >>> stg.tl.genst_predict(new, train_on=train, tiles_key="tiles", train_kwargs={"max_epochs": 3})
    """
    counts, spread = _keys.counts_key(key_added), _keys.spread_key(key_added)
    check_call(
        "GenST",
        adata,
        [key_added, counts, spread],
        model=model,
        train_on=train_on,
        save=save,
        copy=copy,
        n_paths=n_paths,
        batch_size=batch_size,
    )
    if decode not in DECODED:
        raise ValueError(f"`decode` must be one of {', '.join(map(repr, DECODED))}; got {decode!r}.")
    check_one_image(histology_key, tiles_key)
    if train_on is not None:
        model_kwargs = _kwargs_for_image(tiles_key, model_kwargs)
    from stgen.models import GenST

    return predict_into(
        GenST,
        adata,
        [
            Asked(key_added, "normalized", {"statistic": "normalized", "decode": decode}),
            Asked(counts, "counts", {"statistic": "mean"}),
            Asked(spread, "counts", {"statistic": "sd", "n_paths": n_paths}),
        ],
        model=model,
        train_on=train_on,
        save=save,
        genes=genes,
        n_genes=n_genes,
        layer=layer,
        histology_key=histology_key,
        tiles_key=tiles_key,
        spatial_key=spatial_key,
        library_key=library_key,
        patient_key=patient_key,
        split_key=split_key,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        random_state=random_state,
        batch_size=batch_size,
        copy=copy,
        params={"decode": decode, "n_paths": int(n_paths)},
        more=_target_total,
    )


def _target_total(model: GenST) -> dict[str, Any]:
    return {"target_total": float(model.module.target_total)}


def _kwargs_for_image(tiles_key: str | None, model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """How to build a model that reads what is named; a contradiction is said before any data is read."""
    kwargs = dict(model_kwargs or {})
    back_end = _back_end(kwargs)
    if tiles_key is None and back_end == "pixels":
        raise ValueError(
            "`model_kwargs` ask for back_end='pixels', which reads tiles. Name them: `tiles_key=\"tiles\"`, as "
            "`stg.pp.histology_tiles` cuts them; or leave that out of `model_kwargs` to read an embedding."
        )
    if tiles_key is not None and back_end == "features":
        raise ValueError(
            f"`tiles_key={tiles_key!r}` names tiles; `model_kwargs` ask for back_end='features', which reads a histology "
            "embedding. Leave `tiles_key` out, or ask for back_end='pixels'."
        )
    if tiles_key is not None and kwargs.get("config") is None and kwargs.get("preset") is None:
        kwargs["preset"] = "pixels"
    return kwargs


def _back_end(model_kwargs: Mapping[str, Any]) -> str | None:
    """The one that they ask for, by whatever road; ``None`` if by none."""
    if "back_end" in model_kwargs:
        return model_kwargs["back_end"]
    if model_kwargs.get("config") is not None:
        return getattr(model_kwargs["config"], "back_end", None)
    return "pixels" if model_kwargs.get("preset") == "pixels" else None
