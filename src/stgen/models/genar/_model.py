"""GenAR on AnnData: registration, presets, and what is read from the predicted count distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pandas as pd
from torch import Tensor

from stgen import _keys
from stgen._by_name import in_order
from stgen.data._names import spelling_hint
from stgen.models._base import Example
from stgen.models._count_model import CountModel
from stgen.nn._distribution import (
    expected_normalized,
)
from stgen.train._options import TrainingOptions

from ._config import GenARConfig
from ._hierarchy import check_groups
from ._network import GenARNetwork

if TYPE_CHECKING:
    from anndata import AnnData


@final
class GenAR(CountModel):
    """H&E → spot-level gene counts, generated coarse to fine over gene groups.

    Registered fields: histology embedding and coordinates (inputs), counts (target). A fitted model predicts an
    AnnData that has no genes at all. See :cite:p:`genar` for the method and the model's page for what
    differs here.

    Parameters
    ----------
    adata
        AnnData after :meth:`setup_anndata`.
    config
        Architecture; see :class:`GenARConfig`.
    preset
        ``"small"`` (the default; trains on any hardware) or ``"paper"`` (width 512, 8 layers, 8 heads, six scales).
    gene_groups
        Your own groups, such as pathways: a mapping from gene to group, or a table with the genes in its index and one
        column a scale, coarse to fine. Without it genes are grouped by co-expression in training spots.
    random_state
        Seed of the initial weights.
    **changes
        Fields of the config to change, such as ``width=64``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    >>> stg.models.GenAR.setup_anndata(adata, library_key="section", split_key="split")
    >>> model = stg.models.GenAR(adata)
    >>> model.train(max_epochs=5)
    >>> counts = model.predict(adata)
    """

    module: GenARNetwork

    _network_class = GenARNetwork
    _config_class = GenARConfig
    _presets: ClassVar[Mapping[str, GenARConfig]] = {
        "small": GenARConfig(),
        "paper": GenARConfig(
            width=512,
            n_layers=8,
            n_heads=8,
            dropout=0.1,
            drop_path=0.1,
            shift_penalty=0.0,
            hierarchy="kmeans",
            n_scales=6,
            head="categorical",
            n_tokens=2001,
            label_width=1.0,
            blind_share=0.0,
            steer=True,
            nonlinear=False,
            feature_dropout=0.0,
            n_neighbors=0,
        ),
    }
    _training = TrainingOptions(
        n_steps=80, min_epochs=4, batch_size=64, lr=2e-3, weight_decay=0.05, ema_decay=0.95, patience=10
    )
    _training_of_presets: ClassVar[Mapping[str, TrainingOptions]] = {
        "paper": TrainingOptions(max_epochs=200, batch_size=64, lr=1e-4, weight_decay=0.0, patience=20)
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        config: GenARConfig | None = None,
        *,
        preset: str | None = None,
        gene_groups: Mapping[str, Any] | pd.DataFrame | None = None,
        random_state: int | None = None,
        registry: Mapping[str, Any] | None = None,
        sizes: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(
            adata, config, preset=preset, random_state=random_state, registry=registry, sizes=sizes, **changes
        )
        if gene_groups is not None:
            self.module = self._build({"groups": _groups_of(gene_groups, self.genes)})  # type: ignore[assignment]

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        statistic: str = "mean",
        quantiles: Sequence[float] | None = None,
        n_samples: int | None = None,
        n_paths: int | None = None,
        genes: Sequence[str] | None = None,
        batch_size: int | None = None,
        random_state: int | None = None,
        out: Any = None,
    ) -> Any:
        """Counts of spots from their histology and place; whatever counts ``adata`` holds are not read.

        Parameters
        ----------
        adata
            Spots to predict. ``None`` takes the model's data. It needs no genes.
        statistic
            ``"mean"`` (expected counts), ``"normalized"`` (expected log1p of the count divided by the panel's total,
            times the training spots' median total: what to compare with log-normalised expression), ``"median"``,
            ``"mode"`` or ``"sd"`` (standard deviation, counts).
        quantiles
            Levels between 0 and 1; the answer is then one array a level.
        n_samples
            Number of joint samples of counts; the answer is then one array a sample.
        n_paths
            Paths through the coarse scales that a distribution mixes. By default 1 for the mean, which hands on
            expected tokens and is not blurred by sampling, and 8 for everything that is about spread.
        genes
            Genes to predict. ``None`` means all of the model's.
        batch_size
            Spots at once; memory beyond input and output grows with it alone.
        random_state
            Seed of sampled paths. A spot's noise follows its name, so neither order nor batch matters.
        out
            Array-like (NumPy, memory map, zarr) of the answer's shape to write into, for results larger than memory.

        Returns
        -------
        Table, spots × genes; with ``quantiles`` or ``n_samples`` an array, levels (samples) × spots × genes. With
        ``out``, that.

        Raises
        ------
        RuntimeError
            If the model is not fitted.
        ValueError
            If an option is not known, or the inputs are not like those the model was fitted on.
        """
        return self._predict(
            adata,
            statistic=statistic,
            quantiles=quantiles,
            n_samples=n_samples,
            n_paths=n_paths,
            genes=genes,
            batch_size=batch_size,
            random_state=random_state,
            out=out,
            normalized=self._normalized,
        )

    def _normalized(
        self, adata: AnnData, columns: np.ndarray, n_paths: int | None, batch_size: int | None, seed: int
    ) -> Iterator[Tensor]:
        whole = self._mixtures(adata, np.arange(len(self.genes)), n_paths or 1, batch_size, seed)
        target = float(self.module.expected.target_total)
        return (expected_normalized(p, len(self.genes), target)[:, columns] for p in whole)

    def get_gene_groups(self) -> pd.DataFrame:
        """Which group each gene is in: genes × scales, coarse to fine, groups numbered from 0."""
        if not self.module.sized:
            self._check_fitted("tell its gene groups")
        columns = [f"scale_{d}" for d in self.module.scales]
        return pd.DataFrame(
            np.array(self.module.groups).T, index=pd.Index(self.genes, name="gene"), columns=columns
        )

    @classmethod
    def example(cls) -> Example:
        """A small case for :func:`stgen.testing.check_model`."""
        from stgen.datasets import toy_tissue

        adata = toy_tissue(n_sections=3, n_patients=3, spots_per_section=49, n_genes=12, random_state=0)
        roles = dict(
            zip(adata.obs[_keys.LIBRARY].unique(), (_keys.TRAIN, _keys.VALIDATION, _keys.TEST), strict=True)
        )
        adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
        return Example(
            adata=adata,
            setup={"library_key": _keys.LIBRARY, "split_key": _keys.SPLIT},
            config={"width": 16, "n_layers": 1, "n_heads": 2},
            train={"max_epochs": 2, "batch_size": 16},
        )


def _groups_of(given: Mapping[str, Any] | pd.DataFrame, genes: list[str]) -> list[list[int]]:
    """Groups by the user, (scales, genes), headed by the panel and ended by the genes."""
    table = given if isinstance(given, pd.DataFrame) else pd.DataFrame({"group": pd.Series(dict(given))})
    missing = [gene for gene in genes if gene not in table.index]
    if missing:
        raise ValueError(
            f"`gene_groups` must name a group for each of the {len(genes)} genes; {len(missing)} have none, "
            f"such as {', '.join(missing[:3])}.{spelling_hint(missing, table.index)}"
        )
    table = in_order(table, pd.Index(genes), "`gene_groups`", of="genes")
    rows = [pd.factorize(table[column], sort=True)[0] for column in table.columns]
    if rows[0].max() > 0:
        rows.insert(0, np.zeros(len(genes), dtype=np.int64))
    return check_groups(np.stack(rows), len(genes)).tolist()
