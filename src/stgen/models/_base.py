"""What models share: the talk between AnnData, networks and files. The one module that imports scvi-tools.

A model registers fields (what it reads), builds a network (config, widths of the data, sizes found by
`prepare`), trains it on training rows, and applies it to inputs alone. A concrete model adds a network
class, a config class, `setup_anndata` and its verb:

>>> class Model(STModel):
...     _network_class, _config_class = ModelNetwork, ModelConfig
...
...     @classmethod
...     def setup_anndata(cls, adata, *, layer=None, split_key=None):
...         cls._register(adata, spot_fields(layer=layer, split_key=split_key))
...
...     def predict(self, adata=None, *, batch_size=None):
...         self._check_fitted("predict")
...         return np.concatenate([self.module(batch).cpu().numpy() for batch in self._batches(adata)])

Of scvi-tools we use the registration (`AnnDataManager`), the base class with its words.
Its marks on the user's object are two strings in `uns`; applying a model to other data leaves no mark at
all, because inputs are read through the fields without a manager. Its pickled files are not used.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from stgen import _keys
from stgen._labels import read_labels
from stgen._settings import settings
from stgen._warn import warn
from stgen.data._fields import (
    CoordinatesField,
    CountsField,
    Field,
    HistologyField,
    PatientField,
    SplitField,
    check_observations,
    check_patients,
    field_from,
)
from stgen.data._identity import Spots
from stgen.data._loaders import Batches, SpotTable, Table
from stgen.data._rows import row_numbers
from stgen.nn._devices import one_device
from stgen.nn._network import Batch, Network
from stgen.nn._random import global_random_state_kept, seed_from, seed_global_generators
from stgen.train._files import read_bundle, read_facts, write_bundle
from stgen.train._options import TrainingOptions
from stgen.train._plan import TrainingPlan
from stgen.train._runner import fit, prepare
from stgen.train._state import TrainingState, load_state, save_state

from ._example import Example
from ._facts import difference, digest_of_rows, history, plain, tuples

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stgen")

STEM = "model"
PREDICTION_BATCH = 256
INTERRUPTED = "Training was interrupted"
"""How the warning of an interrupt begins."""


def spot_fields(
    *,
    layer: str | None = None,
    histology_key: str = _keys.HISTOLOGY,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
) -> list[Field]:
    """What a model from H&E to counts reads: histology and place are inputs, counts the target."""
    return [
        HistologyField(histology_key),
        CoordinatesField(spatial_key, library_key),
        CountsField(layer),
        PatientField(patient_key),
        SplitField(split_key),
    ]


class STModel(BaseModelClass):
    """A network with the verbs of scvi-tools.

    Parameters
    ----------
    adata
        The AnnData given to ``setup_anndata``.
    config
        Architecture. ``None`` takes that of ``preset``, else the defaults.
    preset
        Name of a ready-made architecture with training defaults that suit it.
    random_state
        Seed of the initial weights. ``None`` takes ``stg.settings.random_state``.
    **changes
        Fields of the config to change, such as ``width=64``.
    """

    _rows_are: ClassVar[str] = "spots"
    """How messages call observations."""
    _network_class: ClassVar[type[Network]]
    _config_class: ClassVar[Any]
    _presets: ClassVar[Mapping[str, Any]] = {}
    """Config of each preset."""
    _training: ClassVar[TrainingOptions] = TrainingOptions()
    """Training defaults of this model."""
    _training_of_presets: ClassVar[Mapping[str, TrainingOptions]] = {}
    """Training defaults of a preset, where they differ."""
    _validates_itself: ClassVar[bool] = False
    """Whether validation samples do not come from ``split_key``, see :meth:`_sample_rows`."""

    def __init__(
        self,
        adata: AnnData | None = None,
        config: Any = None,
        *,
        preset: str | None = None,
        random_state: int | None = None,
        registry: Mapping[str, Any] | None = None,
        sizes: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        if adata is None and registry is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs data to know its widths: `{name}.setup_anndata(adata)`, then `{name}(adata)`; "
                f"or load a fitted one with `{name}.load(folder)`."
            )
        super().__init__(adata, registry=None if registry is None else dict(registry))
        self.preset = preset
        self.config = self._config_of(config, preset, changes)
        self._fields: list[Field] = [field_from(saved) for saved in self.registry_["stgen_fields"]]
        self._random_state = settings.random_state if random_state is None else random_state
        self._prepared = False
        self._rows_of_history: list[dict[str, float]] = []
        self._card: dict[str, Any] = {}
        self._trained_spots: Spots | None = None
        self.module = self._build(sizes or {})

    @classmethod
    def _config_of(cls, config: Any, preset: str | None, changes: Mapping[str, Any]) -> Any:
        """The config to build from, with errors that name what exists."""
        if config is not None and preset is not None:
            raise ValueError("Give `config` or `preset`, not both; change single fields by keyword.")
        if preset is not None and preset not in cls._presets:
            raise ValueError(f"`preset` must be one of {', '.join(map(repr, cls._presets))}; got {preset!r}.")
        if config is None:
            config = cls._config_class() if preset is None else cls._presets[preset]
        if not isinstance(config, cls._config_class):
            raise TypeError(f"`config` must be a {cls._config_class.__name__}; got {type(config).__name__}.")
        known = [one.name for one in dataclasses.fields(config)]
        strange = [name for name in changes if name not in known]
        if strange:
            raise TypeError(f"{cls.__name__} has no option {strange[0]!r}; it has {', '.join(known)}.")
        return dataclasses.replace(config, **changes)

    def _build(self, sizes: Mapping[str, Any]) -> Network:
        """The network, seeded, in evaluation mode."""
        with global_random_state_kept():
            seed_global_generators(seed_from(self._random_state, "weights"))
            network = self._network_class(self.config, **self._widths(), **sizes)
        return network.eval()

    # -------------------------------------------------------------------------------- what a model may change

    def _widths(self) -> dict[str, int]:
        """Facts of the data that the network is built with."""
        return {
            "n_features": self._facts["histology"]["n_features"],
            "n_genes": self._facts["counts"]["n_genes"],
        }

    def _table(self, adata: AnnData, *, targets: bool) -> Table:
        """The data as tensors. Inputs were compared with what the model knows."""
        return SpotTable.read(
            adata,
            self._fields,
            n_neighbors=getattr(self.config, "n_neighbors", 0) or 0,
            targets=targets,
            genes=self.genes if targets else None,
        )

    def _preparation_table(self, adata: AnnData, train_rows: np.ndarray) -> Table | None:
        """What ``prepare`` reads of the training rows, where that is not the table that trains."""
        return None

    def _sample_rows(
        self, train_rows: np.ndarray, validation_rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the table that train and that validate: spots, unless a model's samples are something else."""
        return train_rows, validation_rows

    def _finish(self, table: Table) -> None:
        """Find what is read off a trained network; most have nothing to find."""

    @classmethod
    def example(cls) -> Example:
        """A small case on which :func:`stgen.testing.check_model` can try the model."""
        raise NotImplementedError(f"{cls.__name__} brings no example; see `stgen.testing.Example`.")

    # ----------------------------------------------------------------------------------------------- register

    @classmethod
    def _register(cls, adata: AnnData, fields: Sequence[Field]) -> None:
        """Check what the fields name and remember it for the constructor."""
        check_observations(adata, minimum=2, rows_are=cls._rows_are)
        _own(adata)
        manager = AnnDataManager(
            fields=list(fields),
            setup_method_args={"model_name": cls.__name__, "stgen_fields": [one.saved() for one in fields]},
        )
        manager.register_fields(adata)
        kinds = {type(one): one for one in fields}
        if PatientField in kinds and SplitField in kinds:
            check_patients(adata, kinds[PatientField], kinds[SplitField])  # type: ignore[arg-type]
        cls.register_manager(manager)

    @property
    def _facts(self) -> dict[str, dict[str, Any]]:
        """What each field held when the model was set up."""
        return {key: entry["state_registry"] for key, entry in self.registry_["field_registries"].items()}

    def _field(self, kind: type[Field]) -> Any:
        """The field of this kind."""
        return next(one for one in self._fields if isinstance(one, kind))

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the order of the network."""
        return list(self._facts["counts"]["genes"])

    @property
    def adata(self) -> AnnData | None:
        """The data the model was set up with or given since."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        self._check_inputs(adata)
        self._adata = adata

    def _check_inputs(self, adata: AnnData) -> None:
        """Raise unless the inputs in ``adata`` are of the kind the model was fitted on."""
        check_observations(adata, rows_are=self._rows_are)
        for one in self._fields:
            if not (one.is_target or one.for_training or one.is_empty):
                one.compare(self._facts[one.registry_key], adata)

    def _data(self, adata: AnnData | None) -> AnnData:
        """The data to work on: that given, else the model's own."""
        if adata is not None:
            return adata
        if self._adata is None:
            raise ValueError(f"This {type(self).__name__} was loaded without data; say which with `adata=`.")
        return self._adata

    # -------------------------------------------------------------------------------------------------- apply

    def _batches(
        self,
        adata: AnnData | None = None,
        *,
        targets: bool = False,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Batch]:
        """Batches on the device, in the order of ``adata`` or ``indices``; inputs only unless asked."""
        adata = self._data(adata)
        self._check_inputs(adata)
        rows = np.arange(adata.n_obs) if indices is None else row_numbers(adata, indices)
        device = self.device
        for batch in Batches(self._table(adata, targets=targets), rows, batch_size or PREDICTION_BATCH):
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    def _check_fitted(self, verb: str) -> None:
        """Explain what to do before ``verb`` can be used."""
        if not self.is_trained_:
            name = type(self).__name__
            raise RuntimeError(
                f"This {name} is not fitted, so it cannot {verb}. Call `train()` first, or load a fitted "
                f"one with `{name}.load(folder)`."
            )

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    # -------------------------------------------------------------------------------------------------- train

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        warmup: float | None = None,
        gradient_clip: float | None = None,
        ema_decay: float | None = None,
        early_stopping: bool | None = None,
        patience: int | None = None,
        precision: str | None = None,
        random_state: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        progress_bar: bool | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume_from: str | Path | None = None,
    ) -> None:
        """Fit on the training rows of ``split_key``; validation rows choose the epoch, test rows do nothing.

        Without ``split_key`` all rows are for training, for a fixed number of epochs. Called on a fitted
        model it goes on from the current weights. ``None`` always means the default of the model, see
        ``training_defaults``.

        Stopped by Ctrl-C (or a notebook's stop button), the model is fitted with the weights that it would
        have kept after the last finished epoch, and a warning says which. The interrupt is then passed on:
        loops over models, scripts and cells that wait in line stop too. Before an epoch (of the last
        phase, where there are several) is finished, the model is left unfitted.

        Parameters
        ----------
        max_epochs
            Passes over the training rows.
        batch_size
            Rows per step.
        lr
            Highest learning rate of AdamW; it rises linearly and falls along a cosine.
        weight_decay
            Of matrices.
        warmup
            Share of steps in which the learning rate rises.
        gradient_clip
            Largest norm of the gradient; 0 leaves it alone.
        ema_decay
            Decay per step of a running average of weights, which is validated and kept; 0 keeps the last
            weights.
        early_stopping
            Stop when validation has not improved for ``patience`` epochs, and keep the best weights.
        patience
            Epochs without improvement.
        precision
            ``"32"``, or ``"bf16"`` where the device supports it.
        random_state
            Seed. The same seed gives the same result; the global random state is left as found.
        accelerator
            ``"auto"`` takes a CUDA GPU if there is one, else the CPU, and never MPS; ``"cpu"``, ``"gpu"``,
            ``"cuda"`` or ``"mps"`` must be there.
        devices
            ``"auto"`` or 1: the first. A list: the number of the GPU to use, from 0, such as ``[1]``.
        progress_bar
            Show one bar. ``None`` takes ``stg.settings.progress_bar``.
        checkpoint_dir
            Folder that keeps the state of training, overwritten every ``checkpoint_every`` epochs.
        checkpoint_every
            Epochs between two checkpoints.
        resume_from
            Folder of such a state: training goes on as if it had never stopped, and keeps writing there. Only
            ``max_epochs`` may be changed.

        Raises
        ------
        ValueError
            If data, options or checkpoint do not fit; the message says what was expected.
        KeyboardInterrupt
            If the user stops it; the model may be fitted nonetheless, see above.

        Warns
        -----
        UserWarning
            If the user stopped it and the model is fitted.
        """
        asked: dict[str, Any] = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "gradient_clip": gradient_clip,
            "ema_decay": ema_decay,
            "early_stopping": early_stopping,
            "patience": patience,
            "precision": precision,
            "random_state": random_state,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        adata = self._data(None)
        train_rows, validation_rows, test_rows = self._field(SplitField).rows(adata)
        accelerator, devices, device = one_device(accelerator, devices)
        if resume_from is None:
            state, options = TrainingState(), dataclasses.replace(self.training_defaults, **given)
        else:
            state, options = self._resume(Path(resume_from), given, (train_rows, validation_rows))
            checkpoint_dir = resume_from if checkpoint_dir is None else checkpoint_dir
        if not self._validates_itself:
            self._say_what_stops(options, given, len(validation_rows))
        first = None if self._prepared else self._preparation_table(adata, train_rows)
        table = self._table(adata, targets=True) if first is None else None
        if not self._prepared:
            self.module.cpu()
            source = table if first is None else first
            assert source is not None
            prepare(self.module, source, train_rows, random_state=options.random_state)
            self._prepared = True
        if table is None:
            table = self._table(adata, targets=True)
        self.is_trained_ = False  # until this training ends well
        report = fit(
            self.module,
            table,
            *self._sample_rows(train_rows, validation_rows),
            options,
            accelerator=accelerator,
            devices=devices,
            device=device,
            progress_bar=settings.progress_bar if progress_bar is None else progress_bar,
            label=type(self).__name__,
            state=state,
            on_epoch=self._checkpointer(checkpoint_dir, checkpoint_every, (train_rows, validation_rows)),
        )
        self.to_device(device)
        self._finish(table)
        self.is_trained_ = True
        self.train_indices_, self.validation_indices_, self.test_indices_ = (
            train_rows,
            validation_rows,
            test_rows,
        )
        self._rows_of_history = [*self._rows_of_history, *report.history]
        self.history_ = history(self._rows_of_history)
        self._card = self._describe(adata, train_rows, options, report.n_epochs, report.best_epoch)
        self._trained_spots = Spots.of(adata, self._fields).rows(train_rows)
        if report.interrupted:
            kept = report.n_epochs if report.best_epoch is None else report.best_epoch + 1
            warn(
                f"{INTERRUPTED} in epoch {report.n_epochs + 1}; the model keeps the weights of epoch {kept} and "
                "can be used."
            )
            raise KeyboardInterrupt

    @property
    def training_defaults(self) -> TrainingOptions:
        """What ``train`` does unless told otherwise."""
        options = self._training_of_presets.get(self.preset or "", self._training)
        return dataclasses.replace(options, random_state=settings.random_state)

    def _say_what_stops(self, options: TrainingOptions, given: Mapping[str, Any], n_validation: int) -> None:
        if n_validation or not options.early_stopping:
            return
        split = self._field(SplitField)
        reason = (
            "no `split_key` was given"
            if split.is_empty
            else f"obs[{split.key!r}] has no {_keys.VALIDATION!r} row"
        )
        if given.get("early_stopping"):
            raise ValueError(
                f"Early stopping needs validation rows, and {reason}. Write a split with `stg.pp.split` and "
                "name it in `setup_anndata(split_key=…)`."
            )
        logger.warning(
            "%s, so training runs a fixed number of epochs without early stopping.",
            reason[0].upper() + reason[1:],
        )

    def _describe(
        self,
        adata: AnnData,
        train_rows: np.ndarray,
        options: TrainingOptions,
        n_epochs: int,
        best_epoch: int | None,
    ) -> dict[str, Any]:
        """The model card: what the model was fitted on, by name."""
        place, patient = self._field(CoordinatesField), self._field(PatientField)

        def names(key: str | None) -> list[str]:
            return (
                [] if key is None else sorted(read_labels(adata.obs[key].iloc[train_rows]).dropna().unique())
            )

        return {
            "n_training_spots": len(train_rows),
            "training_sections": names(place.library_key),
            "training_patients": names(patient.key),
            "n_epochs": n_epochs,
            "best_epoch": best_epoch,
            "options": dataclasses.asdict(options),
        }

    def _learned(self, adata: AnnData) -> np.ndarray:
        """Which rows trained the model, by section, name and place; none are known of a model that was loaded."""
        if self._trained_spots is None:
            return np.zeros(adata.n_obs, dtype=bool)
        return Spots.of(adata, self._fields).among(self._trained_spots)

    @property
    def card(self) -> dict[str, Any]:
        """What the model was fitted on: numbers of spots and epochs, sections and patients by name."""
        return dict(self._card)

    # ----------------------------------------------------------------------------------------- stop and go on

    def _checkpointer(
        self, directory: str | Path | None, every: int, rows: tuple[np.ndarray, np.ndarray]
    ) -> Any:
        """A function that keeps the state of training at the end of an epoch."""
        if directory is None:
            return None

        def keep(plan: TrainingPlan) -> None:
            if plan.state.epoch % every and plan.state.epoch != plan.n_epochs:
                return
            facts = {**self._identity(), "sizes": self.module.sizes(), "rows": digest_of_rows(*rows)}
            weights = dict(self.module.state_dict())
            save_state(Path(directory), plan.state, weights, plan.optimizer, plan.options, facts)

        return keep

    def _identity(self) -> dict[str, Any]:
        """What must be equal for weights to be of this model."""
        return {
            "class": type(self).__name__,
            "config": plain(dataclasses.asdict(self.config)),
            "widths": self._widths(),
            "genes": self.genes,
        }

    def _resume(
        self, directory: Path, given: Mapping[str, Any], rows: tuple[np.ndarray, np.ndarray]
    ) -> tuple[TrainingState, TrainingOptions]:
        """State and options of an earlier run, and its weights into the network."""
        state, weights, options, facts = load_state(directory)
        for name, value in self._identity().items():
            if facts[name] != value:
                raise ValueError(
                    f"{directory} holds the training of a model with another {name} "
                    f"({difference(facts[name], value)}). Build the model as it was, or train without "
                    "`resume_from`."
                )
        if facts["rows"] != digest_of_rows(*rows):
            raise ValueError(
                f"{directory} holds a training on other rows than these {len(rows[0])} training and "
                f"{len(rows[1])} "
                "validation rows. Use the same AnnData and split, or train without `resume_from`."
            )
        for name, value in given.items():
            if name != "max_epochs" and value != getattr(options, name):
                raise ValueError(
                    f"A resumed training keeps its options: `{name}` was {getattr(options, name)!r}; got "
                    f"{value!r}. Only `max_epochs` may be changed."
                )
        self.module = self._build(facts["sizes"])
        self.module.load_state_dict(weights)
        self._prepared, self.is_trained_ = True, False
        return state, dataclasses.replace(options, **given)

    # ------------------------------------------------------------------------------------------ save and load

    def save(self, dir_path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model into a folder: weights as safetensors, everything else as json. No data is written.

        Parameters
        ----------
        dir_path
            Folder; made if it does not exist.
        overwrite
            Replace a model that is already there. Other files in the folder are left alone.
        """
        directory = Path(dir_path)
        if directory.exists() and not directory.is_dir():
            raise FileExistsError(f"{directory} is a file; a folder is expected.")
        if (directory / f"{STEM}.json").exists() and not overwrite:
            raise FileExistsError(
                f"{directory} already holds a model. Choose another folder, or say `overwrite=True`."
            )
        facts = {
            **self._identity(),
            "preset": self.preset,
            "sizes": self.module.sizes(),
            "registry": plain(dict(self.registry_)),
            "random_state": self._random_state,
            "is_trained": self.is_trained_,
            "is_prepared": self._prepared,
            "card": self._card,
            "history": self._rows_of_history,
        }
        write_bundle(directory, STEM, dict(self.module.state_dict()), facts)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Read a model that :meth:`save` wrote. Nothing is unpickled; every file is checked.

        Parameters
        ----------
        dir_path
            Folder.
        adata
            Data to work on. Without it, say the data in each call. It is not marked.
        accelerator, device
            Where the network goes, as in :meth:`train`; a number is that of the GPU, from 0.
        """
        place = one_device(accelerator, [int(device)] if str(device).isdigit() else device)[2]
        tensors, facts = read_bundle(Path(dir_path), STEM)
        if facts["class"] != cls.__name__:
            raise ValueError(
                f"{dir_path} holds a {facts['class']}, not a {cls.__name__}. Load it with "
                f"`{facts['class']}.load`."
            )
        config = cls._config_class(**tuples(facts["config"]))
        model = cls(
            None,
            config=config,
            registry=facts["registry"],
            sizes=facts["sizes"],
            random_state=facts["random_state"],
        )
        model.preset = facts["preset"]
        model.module.load_state_dict(tensors)
        model.is_trained_, model._prepared = facts["is_trained"], facts["is_prepared"]
        model._card, model._rows_of_history = facts["card"], facts["history"]
        if model.is_trained_:
            model.history_ = history(model._rows_of_history)
        model.to_device(place)
        if adata is not None:
            model.adata = adata
        return model

    @staticmethod
    def load_registry(dir_path: str | Path) -> dict[str, Any]:
        """What a saved model was set up with."""
        return read_facts(Path(dir_path), STEM)["registry"]

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """There are no pickled models to convert."""
        raise NotImplementedError("Models of stgen were never pickled; there is nothing to convert.")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = False,
        commit_message: str = "Upload model",
    ) -> None:
        """Upload the model to the Hugging Face Hub, as :meth:`save` writes it.

        Parameters
        ----------
        repo_id
            ``owner/name``; made if it does not exist.
        token
            Access token. ``None`` takes the one you logged in with.
        private
            Whether a new repository is private.
        commit_message
            Message of the commit.
        """
        import tempfile

        self._check_fitted("be shared")
        api = _hub().HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder, overwrite=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        adata: AnnData | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Load a model from the Hugging Face Hub.

        Parameters
        ----------
        repo_id
            ``owner/name``.
        adata, accelerator, device
            As for :meth:`load`.
        revision
            Branch, tag or commit.
        token
            Access token. ``None`` takes the one you logged in with.
        """
        patterns = [f"{STEM}.json", f"{STEM}-*.safetensors"]
        folder = _hub().snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns)
        return cls.load(folder, adata, accelerator=accelerator, device=device)

    # --------------------------------------------------------------------------------------------------- show

    def __repr__(self) -> str:
        n_parameters = sum(parameter.numel() for parameter in self.module.parameters())
        widths = ", ".join(f"{value} {name.removeprefix('n_')}" for name, value in self._widths().items())
        state = "not fitted"
        if self.is_trained_:
            state = f"fitted on {self._card['n_training_spots']} {self._rows_are} in {self._card['n_epochs']} epochs"
            if self._card["best_epoch"] is not None:
                state += f" (epoch {self._card['best_epoch'] + 1} kept)"
        return f"{type(self).__name__}: {widths}, {n_parameters:,} parameters, {state}"

    @property
    def summary_string(self) -> str:
        """One line about the model."""
        return repr(self)


# ------------------------------------------------------------------------------------------------------ marks


def setup_marks(adata: AnnData) -> dict[str, Any]:
    """The marks ``setup_anndata`` has left on ``adata`` so far."""
    return {key: adata.uns[key] for key in _keys.SETUP_MARKS if key in adata.uns}


def remove_setup_marks(adata: AnnData, before: Mapping[str, Any]) -> None:
    """Put the marks of ``setup_anndata`` back to what they were, and forget the object if it had none.

    Parameters
    ----------
    adata
        AnnData that was set up in between.
    before
        What :func:`setup_marks` gave before.
    """
    now = setup_marks(adata)
    for key in now:
        if key not in before:
            del adata.uns[key]
    adata.uns.update(before)
    mark = _keys.SETUP_MARKS[0]
    if mark in now and mark not in before:
        for kind in _kinds(STModel):
            kind._setup_adata_manager_store.pop(now[mark], None)


def _kinds(kind: type) -> Iterator[Any]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _own(adata: AnnData) -> None:
    """A view becomes an AnnData of its own, because registration marks the object."""
    if not adata.is_view:
        return
    if adata.isbacked:
        raise ValueError(
            "This is a view of a backed AnnData, which cannot be set up. Run `adata = adata.to_memory()`."
        )
    adata._init_as_actual(adata.copy())


# ---------------------------------------------------------------------------------------------------- helpers


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('Sharing models needs huggingface_hub: `pip install "stgen[hub]"`.') from error
    return huggingface_hub
