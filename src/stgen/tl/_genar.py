"""From a section's H&E to counts in one call, with GenAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stgen import _keys
from stgen._docs import shared_doc

from ._from_histology import Asked, check_call, predict_into

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GenAR

STATISTICS = ("mean", "median", "mode")


@shared_doc
def genar_predict(
    adata: AnnData,
    *,
    model: GenAR | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
    save: str | Path | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 200,
    layer: str | None = None,
    histology_key: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    statistic: str = "mean",
    n_paths: int = 8,
    random_state: int = 0,
    batch_size: int | None = None,
    key_added: str = _keys.GENAR,
    copy: bool = False,
) -> AnnData | None:
    """Predict spot-level counts of a section from its H&E with :class:`stgen.models.GenAR`.

    ``adata`` needs a histology embedding and coordinates, and no genes; counts that it holds are not read. The model
    is given, or trained here on sections with counts.

    Parameters
    ----------
    adata
        Spots to predict.
    model
        A fitted :class:`stgen.models.GenAR`, the folder of one, or its id on the Hugging Face Hub (``owner/name``).
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
    spatial_key
        %(he_spatial_key)s
    library_key
        %(he_library_key)s
    patient_key
        %(he_patient_key)s
    split_key
        %(he_split_key)s
    model_kwargs
        For training: ``preset``, ``gene_groups`` and fields of :class:`stgen.models.GenARConfig`.
    train_kwargs
        For training: keywords of :meth:`stgen.models.GenAR.train`.
    statistic
        ``"mean"`` (expected counts), ``"median"`` or ``"mode"``.
    n_paths
        Sampled coarse paths that the spread mixes (and median and mode; the mean follows the expected path).
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
    ``obsm[key_added]``, spots × genes, float32, with the names of the genes in ``uns[key_added]["genes"]``; beside it
    ``"{key_added}_sd"``, the standard deviation of the predicted distribution, in counts, and
    ``"{key_added}_normalized"``, expected log1p of depth-normalised counts. ``uns[key_added]`` holds ``params``,
    ``model`` (the facts of the model card, and its ``path``), ``gene_groups``, ``versions``, and
    ``seen_in_training``: sections, patients and number of spots of ``adata`` that the model was trained on, test rows
    only where there is a split. :func:`stgen.get.prediction` gives a table.

    Raises
    ------
    ValueError
        If inputs are not like those the model was fitted on, or the result would replace something that is not a
        prediction; for training, if counts are not counts or sections share no genes.

    Warns
    -----
    UserWarning
        If a patient or a section of ``adata`` is one of those the model was trained on.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(spots_per_section=100, n_genes=20)
    >>> train, new = adata[adata.obs["patient"] == "p1"].copy(), adata[adata.obs["patient"] == "p2"].copy()
    >>> stg.tl.genar_predict(new, train_on=train, train_kwargs={"max_epochs": 3})
    >>> new.layers["genar"].shape
    (200, 20)
    """
    normalized, spread = _keys.normalized_key(key_added), _keys.spread_key(key_added)
    check_call(
        "GenAR",
        adata,
        [key_added, spread, normalized],
        model=model,
        train_on=train_on,
        save=save,
        copy=copy,
        n_paths=n_paths,
        batch_size=batch_size,
    )
    if statistic not in STATISTICS:
        raise ValueError(
            f"`statistic` must be one of {', '.join(map(repr, STATISTICS))}; got {statistic!r}. The spread and normalised "
            "expression are written beside it anyway."
        )
    from stgen.models import GenAR

    return predict_into(
        GenAR,
        adata,
        [
            Asked(
                key_added,
                "counts",
                {"statistic": statistic, "n_paths": None if statistic == "mean" else n_paths},
            ),
            Asked(spread, "counts", {"statistic": "sd", "n_paths": n_paths}),
            Asked(normalized, "normalized", {"statistic": "normalized"}),
        ],
        model=model,
        train_on=train_on,
        save=save,
        genes=genes,
        n_genes=n_genes,
        layer=layer,
        histology_key=histology_key,
        spatial_key=spatial_key,
        library_key=library_key,
        patient_key=patient_key,
        split_key=split_key,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        random_state=random_state,
        batch_size=batch_size,
        copy=copy,
        params={"statistic": statistic, "n_paths": int(n_paths)},
        more=_gene_groups,
    )


def _gene_groups(model: GenAR) -> dict[str, Any]:
    groups = model.get_gene_groups()
    return {
        "gene_groups": {
            "gene": list(groups.index),
            **{scale: groups[scale].to_numpy() for scale in groups},
        }
    }
