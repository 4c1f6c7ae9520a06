"""GenST on AnnData: registration, prediction, latents and codes of both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from stgen import _keys
from stgen._settings import settings
from stgen.data._fields import HistologyField, SplitField
from stgen.data._loaders import Batches, Table, TileTable
from stgen.data._tiles import TilesField
from stgen.models._base import Example, spot_fields
from stgen.models._count_model import CountModel
from stgen.nn._network import Batch, Each, on_device
from stgen.train._options import TrainingOptions

from ._code_use import warn_of_collapse
from ._config import GenSTConfig
from ._network import GenSTNetwork, Translated
from ._report import Report, report_of
from ._sections import rows_to_report, warn_of_learned

if TYPE_CHECKING:
    from anndata import AnnData

DECODED = ("soft", "code")
MODALITIES = ("histology", "expression")


@final
class GenST(CountModel):
    """H&E → expression through two VQ-VAEs whose latent spaces are aligned, and which genes morphology can show.

    Registered fields: histology embedding (or tiles, for ``back_end="pixels"``) and coordinates (inputs), counts
    (target). One VQ-VAE turns histology into codes, one turns depth-normalised log expression into codes; a translator
    says how probable every expression code is, given the image. A fitted model predicts an AnnData that has no genes at all. See :cite:p:`genst`, of which
    only the abstract is public, and the model's page for what is our own design.

    Parameters
    ----------
    adata
        AnnData after :meth:`setup_anndata`.
    config
        Architecture; see :class:`GenSTConfig`.
    preset
        ``"pixels"``: reads tiles, and trains for longer.
    random_state
        Seed of the initial weights.
    **changes
        Fields of the config to change, such as ``n_codes=64``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue()
    >>> stg.pp.split(adata, by="patient", test=["p2"], validation=0)
    >>> stg.models.GenST.setup_anndata(adata, library_key="section", split_key="split")
    >>> model = stg.models.GenST(adata)
    >>> model.train(max_epochs=4)
    >>> model.predict().shape
    (1600, 100)
    """

    module: GenSTNetwork
    _network_class = GenSTNetwork
    _config_class = GenSTConfig
    _training: ClassVar[TrainingOptions] = TrainingOptions(
        n_steps=300, min_epochs=20, batch_size=64, weight_decay=0.01, patience=10
    )
    _presets: ClassVar[Mapping[str, GenSTConfig]] = {"pixels": GenSTConfig(back_end="pixels")}
    _training_of_presets: ClassVar[Mapping[str, TrainingOptions]] = {
        # convolutions start from nothing, a code of features from principal components
        "pixels": dataclasses.replace(_training, n_steps=600, min_epochs=40)
    }

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        histology_key: str = _keys.HISTOLOGY,
        tiles_key: str | None = None,
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
        tiles_key
            Instead of an embedding, for ``back_end="pixels"``: key in ``obsm`` of tiles as
            :func:`stgen.pp.histology_tiles` writes them, spots × pixels × pixels × 3, uint8, pixels a multiple of 32.
        spatial_key
            Key in ``obsm`` of the coordinates in µm. For ``"spatial"``, ``obsm["spatial_um"]`` is read where it is.
        library_key
            Column of ``obs`` that tells sections apart.
        patient_key
            Column of ``obs`` with the patient; kept in the model card and checked against the split.
        split_key
            Column of ``obs`` with ``"train"``, ``"validation"`` and ``"test"``, as :func:`stgen.pp.split` writes it.
        """
        fields = spot_fields(
            layer=layer,
            histology_key=histology_key,
            spatial_key=spatial_key,
            library_key=library_key,
            patient_key=patient_key,
            split_key=split_key,
        )
        if tiles_key is not None:
            fields = [TilesField(tiles_key), *(one for one in fields if not isinstance(one, HistologyField))]
        cls._register(adata, fields)

    def _widths(self) -> dict[str, int]:
        """Numbers of features (pixels a side of a tile) and genes."""
        has_tiles, wants_tiles = "tiles" in self._facts, self.config.back_end == "pixels"
        if has_tiles != wants_tiles:
            registered, back_end = ("tiles", "pixels") if has_tiles else ("a histology embedding", "features")
            raise ValueError(
                f"back_end={self.config.back_end!r} reads {'tiles' if wants_tiles else 'a histology embedding'}; "
                f"`setup_anndata` registered {registered}. Build it with back_end={back_end!r}, or "
                + ("name tiles with `tiles_key=`." if wants_tiles else "leave `tiles_key` out.")
            )
        n_genes = self._facts["counts"]["n_genes"]
        if wants_tiles:
            return {"tile_px": self._facts["tiles"]["tile_px"], "n_genes": n_genes}
        return {"n_features": self._facts["histology"]["n_features"], "n_genes": n_genes}

    def _table(self, adata: AnnData, *, targets: bool) -> Table:
        """Tiles are gathered batch by batch."""
        if self.config.back_end == "features":
            return super()._table(adata, targets=targets)
        return TileTable.read(adata, self._fields, targets=targets, genes=self.genes if targets else None)

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        statistic: str = "normalized",
        decode: str = "soft",
        quantiles: Sequence[float] | None = None,
        n_samples: int | None = None,
        n_paths: int | None = None,
        genes: Sequence[str] | None = None,
        batch_size: int | None = None,
        random_state: int | None = None,
        out: Any = None,
    ) -> Any:
        """Expression of spots from their histology and place; whatever counts ``adata`` holds are not read.

        Parameters
        ----------
        adata
            Spots to predict. ``None`` takes the model's data. It needs no genes.
        statistic
            ``"normalized"`` (expected log1p of the count divided by the panel's total, times the training spots' median
            total: what to compare with log-normalised expression), ``"mean"`` (expected counts), ``"median"``,
            ``"mode"`` or ``"sd"`` (standard deviation, counts).
        decode
            For ``"normalized"``: decode the expected code (``"soft"``) or the most probable one (``"code"``).
        quantiles
            Levels between 0 and 1, of counts; the answer is then one array a level.
        n_samples
            Number of joint samples of counts: codes and depth are drawn, then counts; the answer is then one array a
            sample.
        n_paths
            Draws of codes that a distribution mixes. By default 1 for the mean, which decodes the expected code, and 8
            for everything that is about spread.
        genes
            Genes to predict. ``None`` means all of the model's.
        batch_size
            Spots at once; memory beyond input and output grows with it alone.
        random_state
            Seed of draws. A spot's noise follows its name, so neither order nor batch matters.
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
        _among("decode", decode, DECODED)
        if decode == "code" and (statistic != "normalized" or quantiles is not None or n_samples is not None):
            raise ValueError(
                'decode="code" is about statistic="normalized"; counts are expected or drawn around codes. Leave '
                "`decode` out."
            )
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
            normalized=partial(
                self._normalized, self.module.expected_code if decode == "soft" else self.module.nearest_code
            ),
        )

    @torch.no_grad()
    def _normalized(
        self,
        read: Callable[[Translated], Tensor],
        adata: AnnData,
        columns: np.ndarray,
        n_paths: int | None,
        batch_size: int | None,
        seed: int,
    ) -> Iterator[Tensor]:
        for batch in self._batches(adata, batch_size=batch_size):
            yield self.module.decode(read(self.module.translate(batch)))[:, columns]

    @torch.no_grad()
    def embed(
        self,
        adata: AnnData | None = None,
        *,
        modality: str = "histology",
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Where spots lie in the space that both sides share: that of expression tokens.

        Parameters
        ----------
        adata
            Spots. ``None`` takes the model's data.
        modality
            ``"histology"`` (tokens translated from the image; no genes needed) or ``"expression"`` (tokens of the
            measured counts).
        batch_size
            Spots at once.

        Returns
        -------
        Array, spots × (tokens · width), float32.
        """
        _among("modality", modality, MODALITIES)
        self._check_fitted("embed")
        answer = []
        for batch in self._batches(adata, targets=modality == "expression", batch_size=batch_size):
            z = (
                self.module.translate(batch).z
                if modality == "histology"
                else self.module.expression.encode(self.module._expression(batch))
            )
            answer.append(z.flatten(1).cpu().numpy())
        return np.concatenate(answer)

    @torch.no_grad()
    def codes(
        self,
        adata: AnnData | None = None,
        *,
        modality: str = "expression",
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Number of the code that each token of a spot becomes.

        Parameters
        ----------
        adata
            Spots. ``None`` takes the model's data.
        modality
            ``"expression"`` (codes of the measured counts), ``"translated"`` (the most probable expression codes, from
            the image alone) or ``"histology"`` (codes of the image's own VQ-VAE).
        batch_size
            Spots at once.

        Returns
        -------
        Table, spots × tokens, of code numbers from 0.
        """
        _among("modality", modality, ("expression", "translated", "histology"))
        self._check_fitted("tell codes")
        adata, answer = self._data(adata), []
        for batch in self._batches(adata, targets=modality == "expression", batch_size=batch_size):
            if modality == "expression":
                books = self.module.expression
                index = books.books.nearest(books.encode(self.module._expression(batch)))
            elif modality == "histology":
                image = self.module.image
                index = image.books.nearest(image.encode(self.module._features(batch)))
            else:
                index = self.module.translate(batch).log_probability.argmax(-1)
            answer.append(index.cpu().numpy())
        found = np.concatenate(answer)
        return pd.DataFrame(
            found, index=adata.obs_names, columns=[f"token_{m + 1}" for m in range(found.shape[1])]
        )

    def report(
        self,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        n_boot: int = 1000,
        n_halvings: int = 5,
        n_permutations: int = 20,
        n_markers: int = 10,
        batch_size: int | None = None,
        random_state: int | None = None,
    ) -> Report:
        """How much of each gene the image shows, what each code stands for, and what both sides' codes have in common.

        All correlations are per section, on the normalised scale, then averaged over sections.

        Parameters
        ----------
        adata
            Spots with histology and counts. ``None`` takes the model's data.
        indices
            Rows to report on: numbers, a mask (a Series is joined by name) or names. By default the test rows of the split, else its validation rows, else all.
        n_boot
            Draws of the intervals: over sections, and over spatial blocks within each of them.
        n_halvings
            Times that counts are divided into two halves by coin tosses, for the reliability.
        n_permutations
            Shuffles of spots within sections, for how much two codes seem to say about each other by chance.
        n_markers
            Marker genes of each code.
        batch_size
            Spots at once.
        random_state
            Seed of halvings, draws and shuffles.

        Returns
        -------
        A named tuple of tables.

        ``genes``: ``captured`` (share of the gene's reproducible variance that the image shows: the square of
        ``r_cross`` divided by ``reliability``; 0 where ``r_cross`` < 0, NaN where ``reliability`` < 0.1; chance can bring it above 1),
        ``captured_low`` and ``captured_high`` (95 %), ``r_cross`` (measured with predicted from the image),
        ``ceiling`` (measured with made again from its own codes), ``reliability`` (share of measured
        variance that a second measurement would show again, from halves of the counts) and ``n_spots``.

        ``codes``: spots, usage and usage among codes translated from the image. ``markers``: genes that are highest
        in a code's spots, by the mean difference of standardised expression (codes of at least 5 spots). ``tokens``:
        codes that are used and their perplexity, on each side. ``information``: bits that an image code and an
        expression code tell about each other, and what is left without those by chance and between sections.

        Tokens are numbered from 1, codes from 0.

        Raises
        ------
        RuntimeError
            If the model is not fitted.
        ValueError
            If no section has 10 spots.

        Warns
        -----
        UserWarning
            If the model was trained on these spots, sections or patients, or codebooks have collapsed.
        """
        self._check_fitted("report")
        adata = self._data(adata)
        rows = rows_to_report(adata, self._field(SplitField).key, indices)
        warn_of_learned(self, adata, rows)
        return report_of(
            self,
            adata,
            rows,
            n_boot=n_boot,
            n_halvings=n_halvings,
            n_permutations=n_permutations,
            n_markers=n_markers,
            batch_size=batch_size,
            random_state=settings.random_state if random_state is None else random_state,
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
            config={"n_tokens": 3, "token_width": 2, "n_codes": 6, "n_image_codes": 6, "hidden": 16},
            train={"max_epochs": 3, "batch_size": 16},
        )

    # -- around training -----------------------------------------------------------------------------------------

    def _preparation_table(self, adata: AnnData, train_rows: np.ndarray) -> None:
        """Preparation reads the table that trains; rows too few for codes are refused before that is read."""
        self._check_enough_spots(len(train_rows))

    def _check_enough_spots(self, n_spots: int) -> None:
        """Codes start from k-means of training spots."""
        for name in ("n_codes", "n_image_codes"):
            n_codes = getattr(self.config, name)
            if n_codes > n_spots:
                raise ValueError(
                    f"{name}={n_codes} needs at least as many training spots, since codes start from them; found "
                    f"{n_spots}. Train on more spots, or lower `{name}`."
                )

    def _finish(self, table: Table) -> None:
        """Bias and dispersion of counts, from training rows only."""
        rows = self._field(SplitField).rows(self._data(None))[0]
        batches = Each(lambda batch: on_device(batch, self.device), Batches(table, rows, 256))
        self.module.calibrate(batches)
        self._warn_of_collapse(batches)

    @torch.no_grad()
    def _warn_of_collapse(self, batches: Iterable[Batch]) -> None:
        """Codes that training spots use. The running shares do not tell: a revived code looks alive."""
        network, used = self.module, {"expression": np.zeros(1), "histology": np.zeros(1)}
        for batch in batches:
            inputs = {"expression": network._expression(batch), "histology": network._features(batch)}
            for side, values in inputs.items():
                autoencoder = network.expression if side == "expression" else network.image
                index = autoencoder.books.nearest(autoencoder.encode(values))
                used[side] = used[side] + F.one_hot(index, autoencoder.books.n_codes).sum(0).cpu().numpy()
        for side, n in used.items():
            warn_of_collapse(side, n, "the training spots")


def _among(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}; got {value!r}.")
