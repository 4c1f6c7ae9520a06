"""What a change of some cells does to the cells around them: find or fit a GeST, ask it, write tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stgen import _keys
from stgen._docs import shared_doc
from stgen.pp._editing import check_adata, editable

from ._gest_source import METHOD, Source, gest_record, quantization, ready_model, seen
from ._records import check_key, check_replaceable, columns_of

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GeST

PERTURBATION = "a perturbation"
COMPARISON = "comparison"


@shared_doc
def gest_perturb(
    adata: AnnData,
    *,
    region: Sequence[bool] | np.ndarray | str,
    mode: str = "replace",
    genes: Sequence[str] | str | None = None,
    profile: Sequence[float] | np.ndarray | pd.Series | None = None,
    cell_type: str | None = None,
    labels_key: str | None = None,
    sigma_um: float | None = None,
    rings_um: Sequence[float] | None = None,
    null: str = "tissue",
    quantized: bool = False,
    n_shams: int = 20,
    max_pairs: int = 1000,
    alpha: float = 0.05,
    degs: Mapping[str, str] | pd.Series | None = None,
    model: GeST | str | Path | None = None,
    train_on: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | None = None,
    save: str | Path | None = None,
    layer: str | None = None,
    expression: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    random_state: int = 0,
    key_added: str = _keys.GEST_PERTURB,
    copy: bool = False,
) -> AnnData | None:
    """Change the expression of a region's cells and say what that does around it, with :class:`stgen.models.GeST`.

    Without ``model`` and ``train_on`` a model is trained on ``adata`` itself. See
    :meth:`stgen.models.GeST.perturb` for the two nulls and what they can and cannot say.

    Parameters
    ----------
    adata
        Cells, those of the region included.
    region
        Which cells to change: a mask over the cells (a Series is joined by name), their names, or a column of ``obs`` that says
        True or False.
    mode
        ``"activate"`` or ``"inhibit"`` ``genes``, or ``"replace"`` cells by ``profile`` or by the mean of ``cell_type``.
    genes
        Genes to activate or inhibit.
    profile
        Log-normalised expression of the model's genes, in their order; or by name: a Series, a dict, or a table of one row.
    cell_type
        A label of ``obs[labels_key]``.
    labels_key
        Column of ``obs`` with kinds of cells, within which cells are compared.
    sigma_um
        How fast the change fades from the middle of the region, µm. Without it the change is the same in all of it.
    rings_um
        Edges of the distance rings around the region, µm. By default four up to half of the model's window.
    null
        ``"tissue"``: is the answer true of these cells? ``"sham"``: does the model answer to these genes more than to
        others?
    quantized
        Show changed cells as their nearest meta cell, which can swallow a small change whole.
    n_shams
        Sham changes.
    max_pairs
        Pairs of cells at most by which the tissue is asked.
    alpha
        False discovery rate of the calls, over all genes and rings.
    degs
        Genes that are known to be ``"High"``, ``"Low"`` or ``"n.s."``, to compare with.
    model
        %(gest_model)s
    train_on
        %(gest_train_on)s
    save
        %(gest_save)s
    layer
        %(gest_layer)s
    expression
        %(gest_expression)s
    spatial_key
        %(gest_spatial_key)s
    library_key
        %(gest_library_key)s
    patient_key
        %(gest_patient_key)s
    split_key
        %(gest_split_key)s
    model_kwargs
        %(gest_model_kwargs)s
    train_kwargs
        %(gest_train_kwargs)s
    random_state
        %(random_state)s
    key_added
        Key of the results.
    copy
        %(copy)s

    Returns
    -------
    ``None``, or the copy. Writes ``uns[key_added]``: ``table`` (one row for each gene and ring, by columns),
    ``facts`` (``share_changed``, the share of the region's cells whose meta cell changed, and how many pairs or draws the
    null has), ``comparison`` with ``degs``, ``params``, ``model``, ``quantization``, ``seen_in_training`` and
    ``versions``. :func:`stgen.get.perturbation` gives the table.

    Raises
    ------
    ValueError
        If the region holds no cell, a gene is not in the panel, choices do not go together, or the result would replace
        something that is not a perturbation.

    See Also
    --------
    stgen.pl.perturbation : Draw effects by distance.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(n_sections=1, n_patients=1, spots_per_section=300, unit="cells")
    >>> middle = abs(adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0)).max(axis=1) < 40
    >>> stg.tl.gest_perturb(
    ...     adata, region=middle, mode="activate", genes="gene_001", null="sham", train_kwargs={"max_epochs": 1}
    ... )
    >>> table = stg.get.perturbation(adata)
    """
    check_adata(adata, copy=copy, rows_are="cells")
    check_key(key_added)
    check_replaceable(adata, key_added, METHOD, task=PERTURBATION, slots=("uns",))
    source = Source(
        model=model,
        train_on=train_on,
        save=save,
        genes=None,
        layer=layer,
        expression=expression,
        spatial_key=spatial_key,
        library_key=library_key,
        patient_key=patient_key,
        split_key=split_key,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
        random_state=random_state,
    )
    source.check()
    question: dict[str, Any] = {
        "mode": mode,
        "genes": genes,
        "profile": profile,
        "cell_type": cell_type,
        "labels_key": labels_key,
        "sigma_um": sigma_um,
        "rings_um": rings_um,
        "null": null,
        "quantized": quantized,
        "n_shams": n_shams,
        "max_pairs": max_pairs,
        "alpha": alpha,
    }
    changed = _check_question(adata, region, question)
    if train_on is None and model is None and genes is not None:
        _check_measured(adata, genes)
    ready = ready_model(adata, source, "perturb")
    table = ready.reader.perturb(adata, region=changed, degs=degs, random_state=random_state, **question)

    facts = dict(table.attrs)
    comparison = facts.pop(COMPARISON, None)
    record = gest_record(
        ready,
        PERTURBATION,
        seen(adata, ready, np.ones(adata.n_obs, dtype=bool)),
        {
            **{name: _plain(value) for name, value in question.items() if name != "profile"},
            "region": region if isinstance(region, str) else None,
            "n_region": int(changed.sum()),
            "random_state": int(random_state),
        },
        columns=list(table.columns),
        table=columns_of(table),
        facts=facts,
        comparison=None if comparison is None else columns_of(pd.DataFrame(comparison)),
        quantization=quantization(adata, ready.reader),
    )
    adata = editable(adata, copy=copy)
    adata.uns[key_added] = record
    return adata if copy else None


def _check_question(adata: AnnData, region: Any, question: Mapping[str, Any]) -> np.ndarray:
    """The region as a mask; all that can be refused before a model is trained."""
    from stgen.models.gest._question import check_choices, checked_region, column

    names = ("genes", "profile", "cell_type", "sigma_um", "alpha")
    check_choices(question["mode"], question["null"], **{name: question[name] for name in names})
    if question["labels_key"] is not None:
        column(adata.obs, question["labels_key"])
    return checked_region(adata, region)


def _check_measured(adata: AnnData, genes: Sequence[str] | str) -> None:
    from stgen.models.gest._question import check_genes

    check_genes(genes, list(adata.var_names))


def _plain(value: Any) -> Any:
    """Lists for anything that is a sequence of names or numbers."""
    return value if value is None or isinstance(value, str | int | float | bool) else list(value)
