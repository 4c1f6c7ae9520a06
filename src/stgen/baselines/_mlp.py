"""Baselines for H&E → counts that are trained: one hidden layer, and a count classifier without autoregression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ._base import HistologyBaseline, Rows

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float64]


class _Standardizer:
    """Features with mean 0 and standard deviation 1 over the training spots, for torch."""

    def __init__(self, features: NDArray[Any]) -> None:
        self.mean = features.mean(axis=0, dtype=np.float64)
        sd = features.std(axis=0, dtype=np.float64)
        self.sd = np.where(sd > 0, sd, 1)

    def __call__(self, features: NDArray[Any]) -> Tensor:
        import torch

        return torch.from_numpy(((features - self.mean) / self.sd).astype(np.float32))


@final
class MLPOnHistology(HistologyBaseline):
    """Perceptron with one hidden layer on standardised histology features, squared error.

    Early stopping on held-out training sections chooses the number of epochs; all training rows are then used.

    Parameters
    ----------
    n_hidden
        Width of the hidden layer.
    dropout
        Share of hidden units that is left out in training.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs
        Epochs at most.
    patience
        Epochs without a better validation loss before a fold stops.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "MLP"
    kind = "baseline"
    needs_histology = True

    def __init__(
        self,
        *,
        n_hidden: int = 256,
        dropout: float = 0.5,
        learning_rate: float = 3e-4,
        weight_decay: float = 1.0,
        max_epochs: int = 200,
        patience: int = 15,
        scale: str | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(scale=scale, random_state=random_state)
        self.n_hidden, self.dropout = n_hidden, dropout
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_epochs, self.patience = max_epochs, patience

    def _fit(self, rows: Rows, y: Floats) -> None:
        import torch

        from ._networks import fit_network, one_hidden_layer

        assert rows.histology is not None
        self.features_ = _Standardizer(rows.histology)
        x = self.features_(rows.histology)
        self.mean_ = y.mean(axis=0)
        # one number for all genes: a variable gene should weigh more than a noisy constant one
        self.sd_ = float(y.std(axis=0).mean()) or 1.0
        goal = torch.from_numpy(((y - self.mean_) / self.sd_).astype(np.float32))

        def build(rows: NDArray[np.int64]) -> nn.Module:
            return one_hidden_layer(x.shape[1], goal.shape[1], self.n_hidden, self.dropout)

        def loss(network: nn.Module, index: Tensor) -> Tensor:
            return (network(x[index]) - goal[index]).square().mean()

        self.network_, self.n_epochs_ = fit_network(
            build,
            loss,
            rows.section,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            patience=self.patience,
            random_state=self.random_state,
        )

    def _predict(self, rows: Rows) -> Floats:
        from ._networks import answer

        assert rows.histology is not None
        parts = [part.numpy() for part in answer(self.network_, self.features_(rows.histology))]
        return np.concatenate(parts).astype(np.float64) * self.sd_ + self.mean_


@final
class CountClassifier(HistologyBaseline):
    """Residual perceptron that classifies the count of every gene, all genes at once.

    It is what is left of a next-scale autoregressive model without autoregression: the same soft labels over count
    tokens, the same features, no gene sees another. The prediction is the mean of the distribution, in counts.

    Parameters
    ----------
    n_tokens
        Vocabulary: counts below 16 have a token each, larger ones share tokens of growing width up to the largest
        training count. A token's value is the mean of the training counts in it.
    width, n_blocks, dropout
        Of the residual trunk.
    n_basis
        Functions of the token's value that the image may add to a gene's log frequencies.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs
        Epochs at most.
    patience
        Epochs without a better validation loss before a fold stops.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "count classifier"
    kind = "baseline"
    needs_histology = True
    scales = ("counts",)

    def __init__(
        self,
        *,
        n_tokens: int = 48,
        width: int = 256,
        n_blocks: int = 2,
        dropout: float = 0.5,
        n_basis: int = 3,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        max_epochs: int = 100,
        patience: int = 10,
        scale: str | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(scale=scale, random_state=random_state)
        if n_tokens < 2:
            raise ValueError(f"`n_tokens` must be at least 2; got {n_tokens}.")
        self.n_tokens, self.n_basis = n_tokens, n_basis
        self.width, self.n_blocks, self.dropout = width, n_blocks, dropout
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_epochs, self.patience = max_epochs, patience

    def _fit(self, rows: Rows, y: Floats) -> None:
        import torch

        from ._networks import CountClassifierNetwork, fit_network, soft_labels

        assert rows.histology is not None
        self.features_ = _Standardizer(rows.histology)
        x = self.features_(rows.histology)
        self.edges_ = token_edges(int(y.max()), self.n_tokens)
        self.values_ = token_values(y, self.edges_)
        edges = torch.from_numpy(self.edges_.astype(np.float32))
        basis = torch.from_numpy(smooth_basis(self.values_, self.n_basis).astype(np.float32))
        counts = torch.from_numpy(y.astype(np.float32))

        def build(rows: NDArray[np.int64]) -> nn.Module:
            parts = torch.from_numpy(rows).split(1024)
            frequency = torch.stack([soft_labels(counts[part], edges).sum(dim=0) for part in parts]).sum(
                dim=0
            )
            log_frequency = ((frequency + 1e-2) / len(rows)).log()
            return CountClassifierNetwork(
                x.shape[1],
                log_frequency,
                basis,
                width=self.width,
                n_blocks=self.n_blocks,
                dropout=self.dropout,
            )

        def loss(network: nn.Module, index: Tensor) -> Tensor:
            log_p = network(x[index]).log_softmax(dim=-1)
            return -(soft_labels(counts[index], edges) * log_p).sum(dim=-1).mean()

        self.network_, self.n_epochs_ = fit_network(
            build,
            loss,
            rows.section,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            patience=self.patience,
            random_state=self.random_state,
        )

    def _predict(self, rows: Rows) -> Floats:
        from ._networks import answer

        assert rows.histology is not None
        logits = answer(self.network_, self.features_(rows.histology))
        return np.concatenate(
            [part.softmax(dim=-1).numpy().astype(np.float64) @ self.values_ for part in logits]
        )


def token_edges(largest: int, n_tokens: int, *, n_exact: int = 16) -> NDArray[np.int64]:
    """First count of every token, and the end of the last: one by one at first, then growing geometrically."""
    n_exact = min(n_exact, n_tokens - 1)
    exact = np.arange(min(n_exact, largest + 1) + 1)
    if largest < n_exact:
        return exact
    growing = np.geomspace(n_exact + 1, largest + 1, n_tokens - n_exact)
    return np.unique(np.concatenate([exact, np.round(growing).astype(np.int64)]))


def token_values(y: Floats, edges: NDArray[np.int64]) -> Floats:
    """Mean of the counts in every token's range; the middle of the range where there are none."""
    token = np.clip(np.searchsorted(edges, y.ravel(), side="right") - 1, 0, len(edges) - 2)
    n_here = np.bincount(token, minlength=len(edges) - 1)
    total = np.bincount(token, weights=y.ravel(), minlength=len(edges) - 1)
    return np.where(n_here > 0, total / np.maximum(n_here, 1), (edges[:-1] + edges[1:] - 1) / 2)


def smooth_basis(values: Floats, n_basis: int) -> Floats:
    """Orthogonal polynomials of the log count over the tokens, K × V, each with mean square 1."""
    x = np.log1p(values)
    x = (x - x.mean()) / (x.std() or 1.0)
    degree = min(n_basis, len(values) - 1)
    polynomials = np.linalg.qr(np.vander(x, degree + 1, increasing=True))[0][:, 1:]
    return polynomials.T * np.sqrt(len(values))
