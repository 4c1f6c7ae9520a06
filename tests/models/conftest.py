"""The smallest model the base can carry: counts ~ Poisson(exp(linear)), and a tissue where that is true.

scvi-tools takes seconds to import, so the model is made inside a fixture, on first use.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen import _keys

N_GENES, N_FEATURES = 7, 5


def make_tissue(
    *, n_sections=4, side=8, n_genes=N_GENES, n_features=N_FEATURES, layout="csr", random_state=0
):
    """Sections of ``side``² spots 100 µm apart, counts Poisson with rates log-linear in the histology."""
    rng = np.random.default_rng(random_state)
    n = side * side
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 100.0
    xy = np.concatenate([grid + rng.normal(0, 5, grid.shape) + 5000 * s for s in range(n_sections)])
    histology = rng.normal(size=(n_sections * n, n_features)).astype(np.float32)
    weights = rng.normal(0, 0.4, size=(n_features, n_genes))
    counts = rng.poisson(np.exp(1.0 + histology @ weights)).astype(np.float32)
    section = np.repeat([f"s{s}" for s in range(n_sections)], n)
    patient = np.repeat([f"p{s // 2}" if s < n_sections - 1 else "p9" for s in range(n_sections)], n)
    split = np.full(n_sections * n, _keys.TRAIN, dtype=object)
    split[section == f"s{n_sections - 2}"] = _keys.VALIDATION
    split[section == f"s{n_sections - 1}"] = _keys.TEST
    obs = pd.DataFrame(
        {_keys.LIBRARY: section, _keys.PATIENT: patient, _keys.SPLIT: split},
        index=[f"spot{i}" for i in range(n_sections * n)],
    )
    convert = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[layout]
    var = pd.DataFrame(index=[f"G{g}" for g in range(n_genes)])
    adata = ad.AnnData(
        convert(counts), obs=obs, var=var, obsm={_keys.SPATIAL: xy, _keys.HISTOLOGY: histology}
    )
    adata.uns[_keys.HISTOLOGY_PARAMS] = {"encoder": "random/v1", "tile_um": 100.0, "n_features": n_features}
    return adata


@functools.cache
def linear_model() -> SimpleNamespace:
    """The example model: its class, network, config."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from stgen.models._base import Example, STModel, spot_fields
    from stgen.nn._network import Loss, Network

    @dataclass(frozen=True, kw_only=True)
    class LinearConfig:
        n_neighbors: int = 2
        dropout: float = 0.0
        scales: tuple[int, ...] = (1, 2)

        def __post_init__(self):
            if not 0 <= self.dropout < 1:
                raise ValueError(f"`dropout` must be in [0, 1); got {self.dropout}.")

    class LinearNetwork(Network):
        def __init__(self, config, *, n_features, n_genes, order=None):
            super().__init__()
            self.order = list(order) if order is not None else list(range(n_genes))
            self.register_buffer("offset", torch.zeros(n_genes))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            n_inputs = n_features * (2 if config.n_neighbors else 1)
            self.linear = nn.Linear(n_inputs, n_genes)
            self.dropout = nn.Dropout(config.dropout)

        def prepare(self, batches):
            totals = torch.stack([b["counts"].sum(0) for b in batches]).sum(0)
            n = sum(len(b["index"]) for b in batches)
            self.offset = torch.log(totals / n + 0.1)
            self.order = totals.argsort(descending=True).tolist()

        def sizes(self):
            return {"order": self.order}

        def forward(self, batch):
            inputs = batch["histology"]
            if "neighbours" in batch:
                inputs = torch.cat([inputs, batch["neighbours"].mean(1)], dim=1)
            return self.linear(self.dropout(inputs)) + self.offset

        def loss(self, batch, *, generator=None):
            log_rate = self(batch)
            nll = F.poisson_nll_loss(log_rate, batch["counts"])
            return Loss(nll, {"poisson": nll})

    class LinearCounts(STModel):
        """Counts from histology, log-linear."""

        _network_class, _config_class = LinearNetwork, LinearConfig
        _presets = {"flat": LinearConfig(n_neighbors=0)}

        @classmethod
        def setup_anndata(cls, adata, **keys):
            cls._register(adata, spot_fields(**keys))

        @torch.no_grad()
        def predict(self, adata=None, *, batch_size=None):
            self._check_fitted("predict")
            batches = self._batches(adata, batch_size=batch_size)
            return np.concatenate([self.module(batch).exp().cpu().numpy() for batch in batches])

        @classmethod
        def example(cls):
            keys = {"library_key": _keys.LIBRARY, "patient_key": _keys.PATIENT, "split_key": _keys.SPLIT}
            return Example(adata=make_tissue(), setup=keys, train={"max_epochs": 3, "batch_size": 32})

    return SimpleNamespace(
        Model=LinearCounts, Network=LinearNetwork, Config=LinearConfig, keys=LinearCounts.example().setup
    )


@pytest.fixture
def linear():
    return linear_model()


@pytest.fixture
def tissue():
    return make_tissue()


@pytest.fixture
def fitted(linear, tissue):
    linear.Model.setup_anndata(tissue, **linear.keys)
    model = linear.Model(tissue)
    model.train(20, lr=0.05, progress_bar=False)
    return model
