"""What models from H&E to counts share: registration, and what is read from count distributions mixed over paths.

A network of such a model has ``generate(batch, n_paths=…, seed=…)``, which yields a
:class:`stgen.nn._distribution.Prediction` a path: one path is the expected one, several are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from stgen import _keys
from stgen._settings import settings
from stgen.data._fields import CountsField
from stgen.data._names import check_unique, looks_like_ensembl, some, spelling_hint
from stgen.nn._distribution import (
    READ,
    AsFirst,
    Buckets,
    at_level,
    chosen,
    collect,
    cumulative,
    quantile,
    read_out,
)
from stgen.nn._noise import keyed_uniform

from ._base import STModel, spot_fields

if TYPE_CHECKING:
    from anndata import AnnData

PATHS = 8
STATISTICS = ("mean", "normalized", "median", "mode", "sd")


class CountModel(STModel):
    """A model that predicts a count distribution for every gene of a spot from its H&E."""

    module: Any

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
            Key in ``obsm`` of the coordinates in µm. For ``"spatial"``, ``obsm["spatial_um"]`` is read where it is.
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

    def _predict(
        self,
        adata: AnnData | None,
        *,
        statistic: str,
        quantiles: Sequence[float] | None,
        n_samples: int | None,
        n_paths: int | None,
        genes: Sequence[str] | None,
        batch_size: int | None,
        random_state: int | None,
        out: Any,
        normalized: Callable[[AnnData, np.ndarray, int | None, int | None, int], Iterator[Tensor]],
    ) -> Any:
        """What `predict` of a model does. ``normalized`` (data, columns, paths, batch size, seed) gives expected log1p of
        depth-normalised counts, batch after batch.
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
            chunks = normalized(adata, columns, n_paths, batch_size, seed)
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
        size = max(self.module.gene_vocabulary[c] for c in columns) if len(columns) else 0
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
                f"{len(missing)} of {len(asked)} are not: {some(missing)}.{hint}{spelling_hint(missing, self.genes)}"
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
