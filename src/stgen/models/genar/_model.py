"""GenAR on AnnData: registration, presets, and what is read from the predicted count distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from stgen import _keys
from stgen._settings import settings
from stgen.data._fields import CountsField
from stgen.data._names import check_unique, looks_like_ensembl, some
from stgen.models._base import Example, STModel, spot_fields
from stgen.nn._distribution import (
    READ,
    AsFirst,
    Buckets,
    at_level,
    chosen,
    collect,
    cumulative,
    expected_normalized,
    quantile,
    read_out,
)
from stgen.nn._noise import keyed_uniform
from stgen.train._options import TrainingOptions

from ._config import GenARConfig
from ._hierarchy import check_groups
from ._network import GenARNetwork

if TYPE_CHECKING:
    from anndata import AnnData

PATHS = 8
STATISTICS = ("mean", "normalized", "median", "mode", "sd")


@final
class GenAR(STModel):
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
    >>> stg.pp.split(adata, by="section", test=1, library_key="section")
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

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        histology_key: str = _keys.HISTOLOGY,
        spatial_key: str = _keys.SPATIAL,
        library_key: str | None = None,
        patient_key: str | None = None,
        split_key: str | None = None,
    ) -> None:
        """Say where counts, histology and places are. Every gene of ``adata`` is predicted: subset to a panel first.

        Parameters
        ----------
        adata
            Spots × genes. Marked by scvi-tools in ``uns``; nothing else is changed.
        layer
            Layer of the counts. ``None`` means ``X``.
        histology_key
            Key in ``obsm`` of the histology embedding, spots × features.
        spatial_key
            Key in ``obsm`` of the coordinates in µm.
        library_key
            Column of ``obs`` that tells sections apart.
        patient_key
            Column of ``obs`` with the patient; kept in the model card and checked against the split.
        split_key
            Column of ``obs`` with ``"train"``, ``"validation"`` and ``"test"``, as :func:`stgen.pp.split` writes it.
        """
        cls._register(
            adata,
            spot_fields(
                layer=layer,
                histology_key=histology_key,
                spatial_key=spatial_key,
                library_key=library_key,
                patient_key=patient_key,
                split_key=split_key,
            ),
        )

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
        self._check_fitted("predict")
        adata, columns = self._data(adata), self._columns(genes)
        names = [self.genes[c] for c in columns]
        seed = settings.random_state if random_state is None else random_state
        _at_least_one(n_samples=n_samples, n_paths=n_paths, batch_size=batch_size)
        if n_samples is not None:
            chunks = self._samples(adata, columns, n_samples, batch_size, seed)
            return collect(chunks, (n_samples, adata.n_obs, len(columns)), out)
        if quantiles is not None:
            levels = [_level(q) for q in quantiles]
            _at_least_one(quantiles=len(levels))
            mixed = self._mixtures(adata, columns, n_paths or PATHS, batch_size, seed)
            chunks = (torch.stack([read_out(p, len(columns), quantile(q)) for q in levels]) for p in mixed)
            return collect(chunks, (len(levels), adata.n_obs, len(columns)), out)
        if statistic not in STATISTICS:
            raise ValueError(
                f"`statistic` must be one of {', '.join(map(repr, STATISTICS))}; got {statistic!r}."
            )
        if statistic == "normalized":
            whole = self._mixtures(adata, np.arange(len(self.genes)), n_paths or 1, batch_size, seed)
            target = float(self.module.expected.target_total)
            chunks = (expected_normalized(p, len(self.genes), target)[:, columns] for p in whole)
        else:
            default = 1 if statistic == "mean" else PATHS
            mixed = self._mixtures(adata, columns, n_paths or default, batch_size, seed)
            chunks = (read_out(p, len(columns), READ[statistic]) for p in mixed)
        values = collect(
            (c[None] for c in chunks), (1, adata.n_obs, len(columns)), None if out is None else AsFirst(out)
        )
        return pd.DataFrame(values[0], index=adata.obs_names, columns=names) if out is None else out

    def predict_distribution(
        self,
        adata: AnnData | None = None,
        *,
        genes: Sequence[str],
        n_paths: int = PATHS,
        batch_size: int | None = None,
        random_state: int | None = None,
    ) -> np.ndarray:
        """Probability of every count for a few genes.

        Parameters
        ----------
        adata
            Spots to predict.
        genes
            Genes, in the order of the answer.
        n_paths
            Sampled paths through the coarse scales that are mixed.
        batch_size
            Spots at once.
        random_state
            Seed of sampled paths.

        Returns
        -------
        Array, spots × genes × counts (0 up to the largest that the model knows). Each row sums to 1.
        """
        self._check_fitted("predict")
        columns = self._columns(genes)
        size = max(self.module.vocabulary[self.module.starts[-2] + c] for c in columns) if len(columns) else 0
        seed = settings.random_state if random_state is None else random_state
        rows = []
        for buckets in self._mixtures(self._data(adata), columns, n_paths, batch_size, seed):
            dense = torch.zeros(
                len(buckets[0][1]), len(columns), max(size, *(p.shape[-1] for _, p in buckets))
            )
            for where, p in buckets:
                dense[:, where, : p.shape[-1]] = p.cpu()
            rows.append(dense.numpy())
        return np.concatenate(rows)

    def predict_cdf(
        self,
        adata: AnnData | None = None,
        *,
        n_paths: int = PATHS,
        batch_size: int | None = None,
        random_state: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probability of less than, and of at most, each observed count: what a randomised PIT is made of.

        Parameters
        ----------
        adata
            Spots with counts. The counts are only looked up in the finished distributions.
        n_paths
            Sampled paths through the coarse scales that are mixed.
        batch_size
            Spots at once.
        random_state
            Seed of sampled paths.

        Returns
        -------
        Two arrays, spots × genes, for :func:`stgen.metrics.randomized_pit`.
        """
        self._check_fitted("predict")
        adata = self._data(adata)
        seed = settings.random_state if random_state is None else random_state
        columns = np.arange(len(self.genes))
        mixed = self._mixtures(adata, columns, n_paths, batch_size, seed)
        observed = self._field(CountsField).read(adata, self.genes)
        below, at_most, start = [], [], 0
        for buckets in mixed:
            rows = observed[start : start + len(buckets[0][1])]
            start += len(buckets[0][1])
            counts = torch.from_numpy(rows.toarray() if sparse.issparse(rows) else rows).to(self.device)
            below.append(read_out(buckets, len(columns), cumulative(counts - 1)).cpu().numpy())
            at_most.append(read_out(buckets, len(columns), cumulative(counts)).cpu().numpy())
        return np.concatenate(below), np.concatenate(at_most)

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

    # -- from batches to distributions --------------------------------------------------------------------------

    def _columns(self, genes: Sequence[str] | None) -> np.ndarray:
        if genes is None:
            return np.arange(len(self.genes))
        asked = pd.Index([genes] if isinstance(genes, str) else list(genes)).astype(str)
        if len(asked) == 0:
            raise ValueError("`genes` names no gene. Leave it out to predict all of the model's.")
        check_unique(asked, "`genes`", "Name every gene once.")
        columns = pd.Index(self.genes).get_indexer(asked)
        missing = asked[columns < 0]
        if len(missing):
            known = "Ensembl identifiers" if looks_like_ensembl(self.genes) else "symbols"
            hint = (
                ""
                if looks_like_ensembl(self.genes) == looks_like_ensembl(missing)
                else f" It learned {known}."
            )
            raise ValueError(
                f"`genes` must be among the {len(self.genes)} that the model predicts, such as {some(self.genes)}; "
                f"{len(missing)} of {len(asked)} are not: {some(missing)}.{hint}"
            )
        return columns

    @torch.no_grad()
    def _mixtures(
        self, adata: AnnData, columns: np.ndarray, n_paths: int, batch_size: int | None, seed: int
    ) -> Iterator[Buckets]:
        """Count distributions of the genes asked for, averaged over paths, batch after batch."""
        _at_least_one(n_paths=n_paths, batch_size=batch_size)
        place = {int(c): i for i, c in enumerate(columns)}
        for batch in self._batches(adata, batch_size=batch_size):
            mixed: Buckets | None = None
            for path in self.module.generate(batch, n_paths=n_paths, seed=seed):
                one = chosen(path.by_bucket(), place)
                if mixed is None:
                    mixed = one
                else:
                    mixed = [(where, p + q) for (where, p), (_, q) in zip(mixed, one, strict=True)]
            assert mixed is not None
            yield [(where, p / n_paths) for where, p in mixed]

    @torch.no_grad()
    def _samples(
        self, adata: AnnData, columns: np.ndarray, n_samples: int, batch_size: int | None, seed: int
    ) -> Iterator[Tensor]:
        place = {int(c): i for i, c in enumerate(columns)}
        for batch in self._batches(adata, batch_size=batch_size):
            drawn = []
            # a single sample still has to sample its path
            paths = self.module.generate(batch, n_paths=max(n_samples, 2), seed=seed)
            for s, path in zip(range(n_samples), paths, strict=False):
                level = keyed_uniform(batch["key"], len(self.genes), seed=seed + 7919 * (s + 1))[:, columns]
                drawn.append(read_out(chosen(path.by_bucket(), place), len(columns), at_level(level)))
            yield torch.stack(drawn)


def _at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1; got {number!r}.")


def _level(q: float) -> float:
    if not 0 < q < 1:
        raise ValueError(f"`quantiles` must lie between 0 and 1; got {q}.")
    return float(q)


def _groups_of(given: Mapping[str, Any] | pd.DataFrame, genes: list[str]) -> list[list[int]]:
    """Groups by the user, (scales, genes), headed by the panel and ended by the genes."""
    table = given if isinstance(given, pd.DataFrame) else pd.DataFrame({"group": pd.Series(dict(given))})
    missing = [gene for gene in genes if gene not in table.index]
    if missing:
        raise ValueError(
            f"`gene_groups` must name a group for each of the {len(genes)} genes; {len(missing)} have none, "
            f"such as {', '.join(missing[:3])}."
        )
    rows = [pd.factorize(table.loc[genes, column], sort=True)[0] for column in table.columns]
    if rows[0].max() > 0:
        rows.insert(0, np.zeros(len(genes), dtype=np.int64))
    return check_groups(np.stack(rows), len(genes)).tolist()
