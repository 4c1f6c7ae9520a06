"""GeST on AnnData: registration, presets, niches, unseen cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stgen import _keys
from stgen.data._cells import CellTable
from stgen.data._expression import ExpressionField, ExpressionTable
from stgen.data._fields import CoordinatesField, PatientField, SplitField
from stgen.data._grid import CellGrid, check_window, default_window_um
from stgen.data._loaders import Table, name_keys
from stgen.models._base import Example, STModel
from stgen.train._options import TrainingOptions

from ._config import GeSTConfig
from ._generation import Filled, nearest_seen, windows_of_round
from ._network import GeSTNetwork

if TYPE_CHECKING:
    from anndata import AnnData

ROWS_AT_ONCE = 4096
"""Cells whose expression is dense at once."""
TOKENS_AT_ONCE = 8192
"""Cells in the windows of one batch when the model is applied."""
CORNER = 0
"""Corner that orders a window's cells when the model is applied."""


@final
class GeST(STModel):
    """A generative transformer over neighbouring cells: what is around a place says what lies there.

    Registered fields: expression and coordinates. The model learns to predict every cell of a window from cells that
    come before it and the cell's place. See :cite:p:`gest` for the method and the model's page for what differs here.

    Parameters
    ----------
    adata
        AnnData after :meth:`setup_anndata`.
    config
        Architecture; see :class:`GeSTConfig`.
    preset
        ``"small"`` (the default; trains on any hardware) or ``"paper"`` (8 layers, 8 heads).
    random_state
        Seed of the initial weights.
    **changes
        Fields of the config to change, such as ``width=128``.

    Examples
    --------
    >>> import stgen as stg
    >>> adata = stg.datasets.toy_tissue(unit="cells")
    >>> stg.models.GeST.setup_anndata(adata, library_key="section")
    >>> model = stg.models.GeST(adata)
    >>> model.train(max_epochs=1)
    >>> adata.obsm["X_gest"] = model.embed_niches()
    """

    module: GeSTNetwork

    _network_class = GeSTNetwork
    _config_class = GeSTConfig
    _presets: ClassVar[Mapping[str, GeSTConfig]] = {
        "small": GeSTConfig(),
        "paper": GeSTConfig(
            width=128, n_layers=8, n_heads=8, dropout=0.0, window_um=600.0, distance_bias=False
        ),
    }
    _training = TrainingOptions(
        n_steps=600, min_epochs=1, batch_size=16, lr=1e-3, weight_decay=0.01, ema_decay=0.98, patience=5
    )
    _training_of_presets: ClassVar[Mapping[str, TrainingOptions]] = {
        "paper": TrainingOptions(n_steps=20_000, min_epochs=1, batch_size=32, lr=5e-4, weight_decay=0.01)
    }

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        expression: str = "counts",
        spatial_key: str = _keys.SPATIAL,
        library_key: str | None = None,
        patient_key: str | None = None,
        split_key: str | None = None,
    ) -> None:
        """Say where expression and places are.

        Parameters
        ----------
        adata
            Cells (or spots) × genes. Marked by scvi-tools in ``uns``; nothing else is changed.
        layer
            Layer of the expression. ``None`` means ``X``.
        expression
            ``"counts"``: raw counts, which the model divides by each cell's total and logs. ``"log"``: values that are
            log-normalised already.
        spatial_key
            Key in ``obsm`` of the coordinates in µm.
        library_key
            Column of ``obs`` that tells sections apart. Windows never hold cells of two sections.
        patient_key
            Column of ``obs`` with the patient; kept in the model card and checked against the split.
        split_key
            Column of ``obs`` with ``"train"``, ``"validation"`` and ``"test"``, as :func:`stgen.pp.split` writes it.
            Windows of one never hold cells of another.
        """
        cls._register(
            adata,
            [
                CoordinatesField(spatial_key, library_key),
                ExpressionField(layer, scale=expression),
                PatientField(patient_key),
                SplitField(split_key),
            ],
        )

    # ------------------------------------------------------------------------------------------------ from AnnData

    def _widths(self) -> dict[str, int]:
        return {"n_genes": self._facts["counts"]["n_genes"]}

    def _places(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in µm, and codes of sections."""
        xy, section = self._field(CoordinatesField).read(adata)
        return xy, np.zeros(len(xy), dtype=np.int64) if section is None else section

    def _pool(self, adata: AnnData) -> np.ndarray:
        """0 for training cells, 1 for validation cells, −1 for those that training must not see."""
        pool = np.full(adata.n_obs, -1, dtype=np.int64)
        for code, rows in enumerate(self._field(SplitField).rows(adata)[:2]):
            pool[rows] = code
        return pool

    def _expression(self, adata: AnnData) -> ExpressionTable:
        return ExpressionTable.read(
            adata,
            self._field(ExpressionField),
            self.genes,
            target_total=float(self.module.target_total),
            gene_share=self.module.gene_share.cpu().numpy(),
        )

    def _blocks(self, adata: AnnData) -> Iterator[Tensor]:
        """Log-normalised expression of all cells, all of the model's genes, in blocks of rows."""
        table = self._expression(adata)
        for rows in torch.arange(len(table)).split(ROWS_AT_ONCE):
            x = table.batch(rows)["expression"].to(self.device)
            yield (
                x
                if len(table.here) == len(self.genes)
                else self.module.filled(x, torch.from_numpy(table.here))
            )

    @torch.no_grad()
    def _labels(self, adata: AnnData) -> np.ndarray:
        """Meta cell of every cell."""
        words = self.module.words
        return np.concatenate([words.assign(x).cpu().numpy() for x in self._blocks(adata)])

    def _preparation_table(self, adata: AnnData, train_rows: np.ndarray) -> Table:
        """Expression of cells; the size of the window and of cells are found here, from training rows."""
        xy, section = self._places(adata)
        module = self.module
        if self.config.window_um is None:
            module.window_um.fill_(default_window_um(xy[train_rows], section[train_rows]))
        field = self._field(ExpressionField)
        table = ExpressionTable.read(adata, field, self.genes)
        if field.scale == "counts":
            values = table.values[train_rows]
            total = np.asarray(values.sum(axis=1)).ravel()
            of_gene = np.asarray(values.sum(axis=0)).ravel().astype(np.float64)
            module.target_total.fill_(float(np.median(total)) or 1.0)
            module.gene_share.copy_(torch.from_numpy(of_gene / max(of_gene.sum(), 1.0)))
            table = dataclasses.replace(table, target_total=float(module.target_total))
        return table

    def _table(self, adata: AnnData, *, targets: bool) -> CellTable:
        xy, section = self._places(adata)
        pool = self._pool(adata) if targets else np.zeros(adata.n_obs, dtype=np.int64)
        table = CellTable.make(
            self._labels(adata),
            name_keys(adata.obs_names),
            xy,
            section,
            pool=pool,
            window_um=float(self.module.window_um),
            max_cells=self.config.max_cells,
            targets=targets,
        )
        self._check_windows(table, pool)
        return table

    def _check_windows(self, table: CellTable, pool: np.ndarray) -> None:
        rows = np.flatnonzero(pool >= 0)
        sample = rows[:: max(1, len(rows) // 1000)]
        check_window(table.sizes(torch.from_numpy(sample)).numpy(), float(self.module.window_um))

    # -------------------------------------------------------------------------------------------------------- niches

    @torch.no_grad()
    def embed_niches(self, adata: AnnData | None = None, *, batch_size: int | None = None) -> np.ndarray:
        """Niche of every cell: what the network makes of its window when asked for the cell's own place.

        Parameters
        ----------
        adata
            Cells to embed. ``None`` takes the model's data.
        batch_size
            Windows at once.

        Returns
        -------
        Array, cells × D, float32.
        """
        self._check_fitted("embed niches")
        adata = self._data(adata)
        out = np.empty((adata.n_obs, self.config.width), dtype=np.float32)
        for rows, h in self._asked(adata, batch_size):
            out[rows] = h.cpu().numpy()
        return out

    def _asked(self, adata: AnnData, batch_size: int | None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Hidden states (B, D) of cells' own places, given all cells around them, windows of a size together."""
        self._check_inputs(adata)
        table = self._table(adata, targets=False)
        module, device = self.module, self.device
        looks = module.table()
        sizes = table.sizes(torch.arange(len(table)))
        order = sizes.argsort(stable=True)
        start = 0
        while start < len(order):
            n = batch_size or max(1, TOKENS_AT_ONCE // max(1, int(sizes[order[start]])))
            rows = order[start : start + n]
            start += n
            batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
            place = module.places(batch["offset"])
            tokens = looks[batch["cell"].clamp(min=0)]
            query = torch.zeros(len(rows), 1, 2, device=device)
            yield (
                rows.numpy(),
                module.norm(module.ask(tokens, place, batch["size"], query, corner=CORNER))[:, 0],
            )

    # -------------------------------------------------------------------------------------------------- unseen cells

    @torch.no_grad()
    def generate(
        self,
        adata: AnnData | None = None,
        *,
        mask: Sequence[bool] | np.ndarray | str,
        n_windows: int = 8,
        max_rounds: int = 100,
    ) -> AnnData:
        """Expression of cells from the cells around them; what ``adata`` holds of them is not looked at.

        Parameters
        ----------
        adata
            Cells, those to generate included. ``None`` takes the model's data.
        mask
            Which cells to generate: a mask over the cells, or the name of a boolean column of ``obs``.
        n_windows
            Windows whose answers are averaged for a cell: those of its nearest seen cells.
        max_rounds
            Rounds at most.

        Returns
        -------
        AnnData of the generated cells in the order of ``adata``. ``X`` is expected expression, log-normalised; the layer
        ``"picked"`` is the profile of the likeliest meta cell. ``obs`` has ``round`` (0: no cell within reach, the answer
        is that of the nearest cell), ``n_windows``, ``isolated`` and ``meta_cell``.
        """
        from anndata import AnnData as Table

        self._check_fitted("generate")
        for name, number in (("n_windows", n_windows), ("max_rounds", max_rounds)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1; got {number!r}.")
        adata = self._data(adata)
        hidden = self._mask(adata, mask)
        self._check_inputs(adata)
        xy, section = self._places(adata)
        seen = adata[~hidden]
        filled = self._fill(
            xy[~hidden],
            section[~hidden],
            self._labels(seen),
            xy[hidden],
            section[hidden],
            n_windows,
            max_rounds,
        )
        profiles = self.module.words.profiles.cpu().numpy()
        best = filled.probability.argmax(axis=1)
        made = Table(
            X=filled.probability @ profiles,
            obs=pd.DataFrame(
                {
                    "round": filled.round,
                    "n_windows": filled.n_windows,
                    "isolated": filled.round == 0,
                    "meta_cell": best,
                },
                index=adata.obs_names[hidden],
            ),
            var=pd.DataFrame(index=self.genes),
            layers={"picked": profiles[best]},
        )
        made.obsm[self._field(CoordinatesField).key] = xy[hidden]
        return made

    def _mask(self, adata: AnnData, mask: Any) -> np.ndarray:
        if isinstance(mask, str):
            if mask not in adata.obs:
                raise KeyError(f"obs[{mask!r}] does not exist; obs has {list(adata.obs.columns)}.")
            mask = adata.obs[mask].to_numpy()
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (adata.n_obs,):
            raise ValueError(
                f"`mask` must say True or False for each of the {adata.n_obs} cells; got {mask.dtype} of shape {mask.shape}."
            )
        if not mask.any() or mask.all():
            raise ValueError(
                f"`mask` must name some cells and leave some to see; it names {int(mask.sum())} of {len(mask)}."
            )
        return mask

    def _fill(
        self,
        seen_xy: np.ndarray,
        seen_section: np.ndarray,
        labels: np.ndarray,
        xy: np.ndarray,
        section: np.ndarray,
        n_windows: int,
        max_rounds: int,
    ) -> Filled:
        """Answer for places round after round; a place that is answered is seen as its likeliest meta cell."""
        m, k = len(xy), len(self.module.words.profiles)
        out = Filled(np.zeros((m, k), np.float32), np.zeros(m, np.int64), np.zeros(m, np.int64))
        todo = np.arange(m)
        reach = float(self.module.window_um) / 2
        for number in range(1, max_rounds + 1):
            place, centre = windows_of_round(
                seen_xy, seen_section, xy[todo], section[todo], reach=reach, n_windows=n_windows
            )
            if len(place) == 0:
                break
            total, count = self._averaged(seen_xy, seen_section, labels, xy[todo], place, centre)
            done = np.flatnonzero(count)
            out.probability[todo[done]] = total[done] / count[done, None]
            out.round[todo[done]], out.n_windows[todo[done]] = number, count[done]
            new = todo[done]
            seen_xy = np.concatenate([seen_xy, xy[new]])
            seen_section = np.concatenate([seen_section, section[new]])
            labels = np.concatenate([labels, out.probability[new].argmax(axis=1)])
            todo = np.delete(todo, done)
            if len(todo) == 0:
                break
        if len(todo):  # nothing within reach: the nearest seen cell of the section, and it is said
            nearest = nearest_seen(seen_xy, seen_section, xy[todo], section[todo])
            out.probability[todo, labels[nearest]] = 1.0
        return out

    def _averaged(
        self,
        seen_xy: np.ndarray,
        seen_section: np.ndarray,
        labels: np.ndarray,
        xy: np.ndarray,
        place: np.ndarray,
        centre: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums of distributions over the windows that answer for each place, and how many those are."""
        module, device = self.module, self.device
        looks = module.table()
        grid = CellGrid(seen_xy, seen_section, window_um=float(module.window_um))
        total = np.zeros((len(xy), len(module.words.profiles)), np.float32)
        count = np.zeros(len(xy), np.int64)
        order = np.argsort(centre, kind="stable")
        place, centre = place[order], centre[order]
        centres, first, n_asked = np.unique(centre, return_index=True, return_counts=True)
        size_hint = max(1, int(grid.count(seen_xy[centres[:64]], seen_section[centres[:64]], None).mean()))
        step = max(1, TOKENS_AT_ONCE // size_hint)
        for start in range(0, len(centres), step):
            chunk = slice(start, start + step)
            of, n = centres[chunk], n_asked[chunk]
            index, size, _ = grid.windows(
                seen_xy[of], seen_section[of], None, max_cells=self.config.max_cells
            )
            asked = first[chunk][:, None] + np.minimum(np.arange(n.max()), n[:, None] - 1)
            query = (xy[place[asked]] - seen_xy[of][:, None]).astype(np.float32)
            offset = (seen_xy[index] - seen_xy[of][:, None]).astype(np.float32)
            h = module.ask(
                looks[torch.from_numpy(labels[index]).to(device)],
                module.places(torch.from_numpy(offset).to(device)),
                torch.from_numpy(size).to(device),
                module.places(torch.from_numpy(query).to(device)),
                corner=CORNER,
            )
            real = np.arange(n.max()) < n[:, None]
            p = module.probabilities(h[torch.from_numpy(real).to(device)]).cpu().numpy()
            np.add.at(total, place[asked][real], p)
            np.add.at(count, place[asked][real], 1)
        return total, count

    # ------------------------------------------------------------------------------------------------------ the rest

    def normalized(self, adata: AnnData | None = None) -> np.ndarray:
        """Log-normalised expression, cells × the model's genes, on the scale that :meth:`generate` answers on."""
        self._check_fitted("normalise expression")
        adata = self._data(adata)
        self._check_inputs(adata)
        return np.concatenate([x.cpu().numpy() for x in self._blocks(adata)])

    @classmethod
    def example(cls) -> Example:
        """A small case for :func:`stgen.testing.check_model`."""
        from stgen.datasets import toy_tissue

        adata = toy_tissue(n_sections=3, n_patients=3, spots_per_section=64, n_genes=12, random_state=0)
        roles = dict(
            zip(adata.obs[_keys.LIBRARY].unique(), (_keys.TRAIN, _keys.VALIDATION, _keys.TEST), strict=True)
        )
        adata.obs[_keys.SPLIT] = adata.obs[_keys.LIBRARY].astype(str).map(roles)
        return Example(
            adata=adata,
            setup={"library_key": _keys.LIBRARY, "split_key": _keys.SPLIT},
            config={"width": 16, "n_layers": 1, "n_heads": 2, "n_meta_cells": 8},
            train={"max_epochs": 2, "batch_size": 16},
            verb="embed_niches",
        )
