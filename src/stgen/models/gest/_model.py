"""GeST on AnnData: registration, presets, niches, unseen cells."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stgen import _keys
from stgen._warn import warn
from stgen.data._cells import CellTable
from stgen.data._expression import ExpressionField, ExpressionTable
from stgen.data._fields import CoordinatesField, PatientField, SplitField
from stgen.data._grid import check_window, default_window_um
from stgen.data._identity import Spots
from stgen.data._loaders import Batches, Table, name_keys
from stgen.data._places import write_places
from stgen.data._windows import neighbour_index, neighbour_mean
from stgen.models._base import Example, STModel
from stgen.nn._network import Batch
from stgen.nn._rows import gathered
from stgen.train._options import TrainingOptions

from ._annotation import (
    N_AROUND,
    SMALLEST_SECTION,
    fitted_head,
    known_labels,
    probabilities,
    within_sections,
)
from ._asking import CORNER, Asking
from ._config import LABEL_COMPONENTS, NICHE_NEIGHBORS, GeSTConfig
from ._counterfactual import Counterfactual, Tissue
from ._generation import Cells
from ._interpolation import Interpolation, inverse_distance
from ._network import GeSTNetwork
from ._perturbation import check_rings
from ._question import (
    Question,
    answer,
    check_choices,
    check_genes,
    check_labels,
    check_numbers,
    check_profile,
    checked_region,
)
from ._unseen import hidden_cells, new_places

if TYPE_CHECKING:
    from anndata import AnnData


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
    _teachers: Spots | None = None
    """Names and places of the cells whose labels were learned in this session."""

    _rows_are = "cells"
    _network_class = GeSTNetwork
    _config_class = GeSTConfig
    _presets: ClassVar[Mapping[str, GeSTConfig]] = {
        "small": GeSTConfig(),
        "paper": GeSTConfig(
            width=128, n_layers=8, n_heads=8, dropout=0.0, window_um=600.0, distance_bias=False
        ),
    }
    _training = TrainingOptions(
        n_steps=1500, min_epochs=2, batch_size=4, lr=2e-3, weight_decay=0.01, ema_decay=0.99, patience=5
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
            Key in ``obsm`` of the coordinates in µm. For ``"spatial"``, ``obsm["spatial_um"]`` is read where it is.
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
                CoordinatesField(spatial_key, library_key, cls._rows_are),
                ExpressionField(layer, scale=expression, rows_are=cls._rows_are),
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

    def _complete(self, table: ExpressionTable, batch: Batch) -> Tensor:
        x = batch["expression"].to(self.device)
        return (
            x if len(table.here) == len(self.genes) else self.module.filled(x, torch.from_numpy(table.here))
        )

    def _blocks(self, adata: AnnData) -> Iterator[Tensor]:
        """Log-normalised expression of all cells, in blocks of rows."""
        table = self._expression(adata)
        for batch in Batches(table, np.arange(len(table))):
            yield self._complete(table, batch)

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
    def embed_niches(
        self,
        adata: AnnData | None = None,
        *,
        n_neighbors: int = NICHE_NEIGHBORS,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Niche of every cell: what the network makes of a window when asked for the place in its centre.

        The state of the network for a cell's own place, averaged over the eight ways to turn and mirror its window – a
        section may lie anyhow on its slide – and over the cell and its nearest cells: a niche is larger than a cell.

        Parameters
        ----------
        adata
            Cells to embed. ``None`` takes the model's data.
        n_neighbors
            Nearest cells of the section whose states join the cell's own; 0 for none.
        batch_size
            Windows at once.

        Returns
        -------
        Array, cells × D, float32.
        """
        self._check_fitted("embed niches")
        if n_neighbors < 0:
            raise ValueError(f"`n_neighbors` must be 0 or more; got {n_neighbors!r}.")
        adata = self._data(adata)
        self._check_inputs(adata)
        return self._averaged(adata, self._states(adata, batch_size), n_neighbors)

    def _averaged(self, adata: AnnData, values: np.ndarray, n_neighbors: int) -> np.ndarray:
        """Means of values (n, …) over each cell and its nearest cells."""
        if n_neighbors == 0:
            return values
        near = neighbour_index(*self._places(adata), n_neighbors=n_neighbors)
        return (values + n_neighbors * neighbour_mean(values, near)) / (n_neighbors + 1)

    def _states(self, adata: AnnData, batch_size: int | None = None) -> np.ndarray:
        """State of the network for each cell's own place (n, D)."""
        return self._asking().states(self._table(adata, targets=False), batch_size)

    def _asking(self) -> Asking:
        return Asking(self.module, self.device)

    # -------------------------------------------------------------------------------------------------- unseen cells

    @torch.no_grad()
    def generate(
        self,
        adata: AnnData | None = None,
        *,
        mask: Sequence[bool] | np.ndarray | str | None = None,
        places: np.ndarray | None = None,
        sections: Sequence[Any] | str | None = None,
        n_windows: int = 8,
        interpolate: bool = True,
        max_rounds: int = 100,
    ) -> AnnData:
        """Expression of cells from the cells around them; what ``adata`` holds of them is not looked at.

        Parameters
        ----------
        adata
            Cells to see, and with ``mask`` also those to generate. ``None`` takes the model's data.
        mask
            Which cells to generate: a mask over the cells (a Series is joined by name), their names, or a column of ``obs`` that
            says True or False.
        places
            Instead of a mask: new places, µm, places × 2.
        sections
            Section of each of the new places, or the one of all; needed where there are several.
        n_windows
            Windows whose answers are averaged for a cell: those of its nearest seen cells.
        interpolate
            Add what the network leaves unexplained in seen cells – what a vocabulary cannot say, and what is particular
            to a region: the mean of an average by inverse distance and of a Gaussian process on coordinates. Then let a
            surface over the whole section take the share of the answer that is best for squares of seen cells, which
            are left out and asked for in the same way.
        max_rounds
            Rounds at most.

        Returns
        -------
        AnnData of the generated cells in the order that was asked. ``X`` is expected expression, log-normalised; the
        layer ``"picked"`` is the profile of the likeliest meta cell. ``obs`` has ``round`` (0: no cell within reach,
        the answer is interpolated, or without ``interpolate`` that of the nearest cell; from 2 on: seen cells are beyond
        the window, and ``X`` rests on interpolation), ``n_windows``, ``isolated``, ``meta_cell``, and ``surface_share``, the
        share of the answer that the surface has.
        """
        from anndata import AnnData as Table

        self._check_fitted("generate")
        for name, number in (("n_windows", n_windows), ("max_rounds", max_rounds)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1; got {number!r}.")
        adata = self._data(adata)
        if (mask is None) == (places is None):
            raise ValueError("Say which cells to generate with `mask`, or give new `places`, and not both.")
        self._check_inputs(adata)
        cells = Cells(*self._places(adata))
        place = self._field(CoordinatesField)
        if mask is not None:
            hidden = hidden_cells(adata, mask, cells.section, place.library_key)
            adata, obs = adata[~hidden], pd.DataFrame(index=adata.obs_names[hidden])
            asked, seen = cells.at(hidden), cells.at(~hidden)
        else:
            asked, obs = new_places(adata, cells, places, sections, place.library_key)
            seen = cells
        label = self._labels(adata)
        look = {"n_windows": n_windows, "max_rounds": max_rounds}
        filled, x = self._asking().filled(seen, label, asked, **look)
        facts = {"round": filled.round, "n_windows": filled.n_windows, "isolated": filled.round == 0}
        if interpolate:
            facts[_keys.SURFACE_SHARE], x = self._interpolated(
                adata, label, seen, asked, filled.round != 1, x, look
            )
        profiles = self.module.words.profiles.cpu().numpy()
        made = Table(
            X=x,
            obs=obs.assign(**facts, meta_cell=filled.label),
            var=pd.DataFrame(index=self.genes),
            layers={"picked": profiles[filled.label]},
        )
        write_places(made, adata, asked.xy, place.key)
        return made

    def _interpolated(
        self,
        adata: AnnData,
        label: np.ndarray,
        seen: Cells,
        asked: Cells,
        beyond: np.ndarray,
        x: np.ndarray,
        look: dict[str, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the surface (m,), and expression (m, T) with what the network leaves unsaid, from its own ``x``.

        ``beyond`` (m,) says which places no seen cell's window reaches.

        Section by section, so that a section's answer does not depend on the others.
        """
        expression, asking = self._expression(adata), self._asking()
        # one for all sections; windows that hold few cells are no error here, where most cells may be masked
        table = CellTable.make(
            label,
            np.zeros(len(label), dtype=np.int64),
            *seen,
            window_um=float(self.module.window_um),
            max_cells=self.config.max_cells,
            targets=False,
        )
        components = self.module.words.components.cpu().numpy()
        share, answer = np.zeros(len(x), dtype=np.float32), x.copy()
        number, name = np.zeros(len(label), dtype=np.int64), name_keys(adata.obs_names)
        for code in np.unique(asked.section):
            here = np.flatnonzero(asked.section == code)
            near = np.unique(inverse_distance(seen, asked.at(here), unit=1.0).indices)
            if len(near) < 2:
                continue
            near = near[np.lexsort((name[near], *seen.xy[near].T))]  # whatever the order of rows
            number[near] = np.arange(len(near))
            interpolation = Interpolation(seen.at(near), asked.at(here), beyond[here], components)
            for rows, explained in asking.left_out(table, near):
                of_rows = self._complete(expression, expression.batch(torch.from_numpy(rows))).cpu().numpy()
                interpolation.add(number[rows], of_rows, explained)

            def ask(
                out: np.ndarray, code: int = code, near: np.ndarray = near
            ) -> tuple[np.ndarray, np.ndarray]:
                others = np.setdiff1d(np.flatnonzero(seen.section == code), near[out])
                again, said = asking.filled(seen.at(others), label[others], seen.at(near[out]), **look)
                return said, again.round != 1

            share[here], answer[here] = interpolation.answer(x[here], ask)
        # expression is not negative
        return share, np.maximum(answer, 0.0)

    # -------------------------------------------------------------------------------------------------- perturbation

    def perturb(
        self,
        adata: AnnData | None = None,
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
        random_state: int = 0,
    ) -> pd.DataFrame:
        """Change the expression of a region's cells, and say what that does to the cells around it.

        The cells around the region are generated with and without the change, each from all others of its window. What
        the model says is then judged by one of two nulls:

        - ``"tissue"``: is it true? Cells that look changed already (instances) are paired with cells nearby that do
          not. Around both, cells are compared with what is usual for their kind, weighted by how strongly the model's
          answer for them moves. If the change did nothing, instance and control could swap names. ``effect`` is what
          was seen around instances, times how many times stronger the model answers here than to one instance. It is
          no proof of a cause: an instance may sit where it sits for the reason that its neighbours differ.
        - ``"sham"``: does the model answer to these genes more than to others of like expression that are changed by
          as much in the same cells? It says nothing about the tissue.

        Parameters
        ----------
        adata
            Cells. ``None`` takes the model's data.
        region
            Which cells to change: a mask over the cells (a Series is joined by name), their names, or a column of ``obs`` that
            says True or False.
        mode
            ``"activate"``: ``genes`` become a·exp(−ρ²/2σ²), with a the largest value over all cells and ρ the distance
            from the region's centre. ``"inhibit"``: they become g·(1 − exp(−ρ²/2σ²)). ``"replace"``: cells get
            ``profile``, or the mean profile of ``cell_type``.
        genes
            Genes to activate or inhibit.
        profile
            Log-normalised expression of the model's genes, in their order; or by name: a Series, a dict, or a table of one row.
        cell_type
            A label of ``obs[labels_key]``. Its cells are also the instances.
        labels_key
            Column of ``obs`` with kinds of cells, within which cells are compared. Without it, coarse clusters of meta
            cells are the kinds.
        sigma_um
            σ in µm. Without it the change is the same in the whole region.
        rings_um
            Edges of the distance rings around the region, µm. By default four up to half of the model's window.
        null
            ``"tissue"`` or ``"sham"``.
        quantized
            Show changed cells as their nearest meta cell, which can swallow a small change whole.
        n_shams
            Sham changes. Their answers are pooled over genes.
        max_pairs
            Pairs of instance and control at most.
        alpha
            False discovery rate of the calls, over all genes and rings.
        degs
            Genes that are known to be ``"High"``, ``"Low"`` or ``"n.s."``, to compare with.
        random_state
            Seed of pairs and shams.

        Returns
        -------
        Table with one row for a gene and a ring: ``gene``, ``ring``, ``from_um``, ``to_um``, ``n_cells`` generated,
        ``generated`` (mean change of the generated log-normalised expression), ``effect``, ``z``, ``p``, ``q``
        (Benjamini and Hochberg) and ``call`` (``"High"``, ``"Low"``, ``"n.s."``); with the tissue's null also
        ``observed`` and ``dose``, whose product is the effect. ``attrs`` has ``share_changed``, the share of the
        region's cells whose meta cell changed; ``n_pairs`` and ``inflation``, or ``n_draws``; and, with ``degs``,
        ``comparison``: accuracy beside that of simple answers.

        Raises
        ------
        ValueError
            If the region holds no cell or all, a gene is not in the panel, a word is not known, or fewer than 30 cells
            look changed already.
        """
        self._check_fitted("perturb")
        check_choices(
            mode, null, genes=genes, profile=profile, cell_type=cell_type, sigma_um=sigma_um, alpha=alpha
        )
        check_numbers(n_shams=n_shams, max_pairs=max_pairs)
        adata = self._data(adata)
        self._check_inputs(adata)
        edges = check_rings(rings_um, float(self.module.window_um) / 2)
        rows = np.flatnonzero(checked_region(adata, region))
        numbers = None if genes is None else check_genes(genes, self.genes)
        kind, instance = check_labels(adata.obs, labels_key, cell_type)
        tissue = Tissue(*self._places(adata), self.normalized(adata), self._labels(adata))
        if instance is not None:
            profile = tissue.x[instance].mean(axis=0)
        if kind is None:
            coarse = self.module.words.coarse
            kind = coarse[0].cpu().numpy()[tissue.label] if len(coarse) else tissue.label
        question = Question(
            region=rows,
            mode=mode,
            genes=numbers,
            profile=None if profile is None else check_profile(profile, self.genes),
            sigma_um=sigma_um,
            edges=edges,
            null=null,
            n_shams=n_shams,
            max_pairs=max_pairs,
            alpha=alpha,
            instance=instance,
            kind=kind,
        )
        asked = Counterfactual(
            self.module, tissue, max_cells=self.config.max_cells, quantized=quantized, corner=CORNER
        )
        return answer(question, asked, self.genes, degs, np.random.default_rng(random_state))

    # -------------------------------------------------------------------------------------------------------- labels

    @torch.no_grad()
    def learn_labels(
        self, labels_key: str, adata: AnnData | None = None, *, by_section: bool | None = None
    ) -> None:
        """Learn to name niches from labelled cells; the labels are kept with the model.

        A linear head on the network's state for each cell, its niche (see :meth:`embed_niches`), the cell's first 30
        principal components and their mean over its 30 nearest cells. The network itself stays as it is: labelled cells are few.

        Parameters
        ----------
        labels_key
            Column of ``obs`` with the labels. Cells whose label is missing (in any spelling: NaN, ``None``, ``"nan"``) are
            seen as neighbours only, and so are cells of a class that has no other cell: that class is left out, with a
            warning.
        adata
            Labelled cells. ``None`` takes the model's data, of which only training rows teach.
        by_section
            Compare each cell with the rest of its own section, here and in :meth:`annotate`: features are centred and
            scaled section by section. Patients, chemistry and depth then cancel, and so does what a section has more of.
            ``None`` does so if labelled cells lie in several sections.

        Raises
        ------
        ValueError
            If fewer than two classes have two cells, or the column holds a score and no classes.
        """
        self._check_fitted("learn labels")
        adata = self._data(adata)
        self._check_inputs(adata)
        if labels_key not in adata.obs:
            raise KeyError(f"obs[{labels_key!r}] does not exist; obs has {list(adata.obs.columns)}.")
        column = adata.obs[labels_key]
        if adata is self._adata:  # labels of validation and test rows are as good as missing
            column = column.where(self._pool(adata) == 0)
        labels = known_labels(column, labels_key)
        known = labels.notna().to_numpy()
        if by_section is None:
            by_section = len(np.unique(self._places(adata)[1][known])) > 1
        features = self._label_features(adata, by_section)[known]
        classes, weight, offset = fitted_head(features, labels.to_numpy()[known].astype(str))
        self.module.keep_head(
            classes, torch.from_numpy(weight), torch.from_numpy(offset), within_sections=by_section
        )
        self.module.to(self.device)
        self._teachers = Spots.of(adata, self._fields).rows(known)

    @torch.no_grad()
    def annotate(self, adata: AnnData | None = None, *, labels_key: str | None = None) -> pd.DataFrame:
        """Names of niches: probability of every label for every cell.

        Parameters
        ----------
        adata
            Cells to name. ``None`` takes the model's data.
        labels_key
            Column of ``obs`` of the *model's* data to learn from first, see :meth:`learn_labels`. Without it the labels
            that were learned before.

        Returns
        -------
        Table, cells × labels; each row sums to 1. ``attrs["n_learned"]`` counts the cells among them whose labels taught
        this model in this session: a score must leave those out.

        Warns
        -----
        UserWarning
            If all cells that are named taught.
        """
        self._check_fitted("annotate")
        adata = self._data(adata)
        self._check_inputs(adata)
        if labels_key is not None:
            self.learn_labels(labels_key)
        table = self._named(adata)
        table.attrs["n_learned"] = int(self._taught(adata).sum())
        if table.attrs["n_learned"] == len(table):
            warn(
                f"All {len(table)} cells that are named here taught the labels: agreement with those says nothing about new "
                "cells. Name others than those the labels were learned from."
            )
        return table

    def _taught(self, adata: AnnData) -> np.ndarray:
        """Which cells are among those whose labels this model learned; unknown of a model from a folder."""
        return Spots.of(adata, self._fields).among(self._teachers)

    @torch.no_grad()
    def _named(self, adata: AnnData) -> pd.DataFrame:
        """Probability of every label for every cell."""
        if not self.module.classes:
            raise ValueError(
                "This GeST has learned no labels. Name a column of its data with `labels_key=`, or call "
                "`model.learn_labels(labels_key, labelled_adata)` first."
            )
        weight, offset = self.module.head_weight.cpu().numpy(), self.module.head_offset.cpu().numpy()
        features = self._label_features(adata, bool(self.module.head_within_sections))
        p = probabilities(features, weight, offset)
        return pd.DataFrame(p, index=adata.obs_names, columns=pd.Index(self.module.classes, name="label"))

    def _label_features(self, adata: AnnData, by_section: bool) -> np.ndarray:
        """(n, F): components of each cell, their mean around it, the network's state for its place, and the niche."""
        own = np.concatenate(
            [self.module.words.pcs(x)[:, :LABEL_COMPONENTS].cpu().numpy() for x in self._blocks(adata)]
        )
        state = self._states(adata)
        around = self._averaged(adata, own, N_AROUND - 1)
        niche = self._averaged(adata, state, NICHE_NEIGHBORS)
        features = np.concatenate([own, around, state, niche], axis=1)
        if not by_section:
            return features
        section = self._places(adata)[1]
        smallest = int(np.unique(section, return_counts=True)[1].min())
        if smallest < SMALLEST_SECTION:
            warnings.warn(
                f"Labels were learned by comparing cells with the rest of their section; a section here has only {smallest} "
                "cells. Name whole sections, or learn the labels with `by_section=False`.",
                stacklevel=3,
            )
        return within_sections(features, section)

    # ------------------------------------------------------------------------------------------------------ the rest

    def normalized(self, adata: AnnData | None = None) -> np.ndarray:
        """Log-normalised expression, cells × the model's genes, on the scale that :meth:`generate` answers on."""
        self._check_fitted("normalise expression")
        adata = self._data(adata)
        self._check_inputs(adata)
        return gathered((x.cpu() for x in self._blocks(adata)), adata.n_obs).numpy()

    @torch.no_grad()
    def quantization_report(self, adata: AnnData | None = None) -> pd.DataFrame:
        """What is lost when cells are replaced by meta cells: no picked answer can be better.

        Parameters
        ----------
        adata
            Cells to replace. ``None`` takes the model's data; others say more than those the vocabulary was found in.

        Returns
        -------
        Table, genes × (``r2``, ``mean``): share of a gene's variance that its meta cells keep (NaN where a gene is
        constant), and its mean, log-normalised. ``attrs`` holds ``r2`` over all genes, ``rmse``, ``n_meta_cells`` and
        ``n_used``, the meta cells that occur.
        """
        self._check_fitted("report what its vocabulary keeps")
        adata = self._data(adata)
        self._check_inputs(adata)
        found = self.module.words.quantization(lambda: self._blocks(adata))
        mean = sum(x.double().sum(0) for x in self._blocks(adata)) / adata.n_obs
        table = pd.DataFrame(
            {"r2": found["r2_per_gene"].numpy(), "mean": np.asarray(mean)},
            index=pd.Index(self.genes, name="gene"),
        )
        used = found["used"]
        table.attrs = {
            "r2": found["r2"],
            "rmse": found["rmse"],
            "n_meta_cells": len(used),
            "n_used": int((used > 0).sum()),
        }
        return table

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
