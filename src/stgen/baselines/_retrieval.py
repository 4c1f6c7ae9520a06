"""Retrieval: the expression of those training spots whose profile fits the image best.

An encoder of histology and one of expression are trained so that the two views of one spot meet in a shared space and
those of different spots do not. A new spot is answered with the profiles of training spots near its image, weighted by
how near they are. Nothing is regressed: the answer is always a mean of profiles that were measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from stgen.metrics import pearson

from ._base import HistologyBaseline, Rows

if TYPE_CHECKING:
    from ._contrastive import Library, Pairs

Floats = NDArray[np.float64]

SHARPNESS = (0.1, 0.2, 0.35, 0.6)
"""Temperatures of the weights that are tried."""
MAX_LEFT_OUT = 600
"""Left-out spots at most on which a choice is scored, per fold."""


class Choice(NamedTuple):
    """What left-out training sections decide."""

    n_epochs: int
    sharpness: float
    """Temperature of the weights of the spots that are found."""


@final
class ContrastiveRetrieval(HistologyBaseline):
    """Mean profile of the training spots that are nearest to the image in a space shared by image and expression.

    Two perceptrons with a linear path beside them, one of histology and one of expression, are trained with a
    symmetric contrastive loss: in a batch, each image has to find its own profile and each profile its own image. The
    number of epochs and the temperature of the weights are those with the highest mean Pearson correlation per gene on
    left-out training sections; all training rows are then used.

    Parameters
    ----------
    n_neighbors
        Training spots per mean; all if there are fewer. Many are better than few: single profiles are noisy, and
        the weights fall off anyway.
    softness
        Share of the loss's target that goes to spots of like expression: 0 asks for the very spot.
    temperature
        Of the loss; the larger, the less do the hardest pairs count.
    n_dimensions
        Of the shared space.
    n_hidden, dropout
        Width of the hidden layers, and the share of their units that is left out in training.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs, max_steps
        Epochs at most, and batches at most if the epochs are long; one and two thirds of them are tried as well.
    scale, random_state
        See :class:`HistologyBaseline`.
    """

    name = "contrastive retrieval"
    kind = "baseline"
    needs_histology = True

    def __init__(
        self,
        *,
        n_neighbors: int = 1000,
        softness: float = 0.0,
        temperature: float = 0.2,
        n_dimensions: int = 64,
        n_hidden: int = 128,
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1.0,
        max_epochs: int = 30,
        max_steps: int = 500,
        scale: str | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(scale=scale, random_state=random_state)
        if n_neighbors < 1:
            raise ValueError(f"`n_neighbors` must be at least 1; got {n_neighbors}.")
        if not 0 <= softness <= 1:
            raise ValueError(f"`softness` must be between 0 and 1; got {softness}.")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be above 0; got {temperature}.")
        if min(max_epochs, max_steps) < 1:
            raise ValueError(
                f"`max_epochs` and `max_steps` must be at least 1; got {max_epochs} and {max_steps}."
            )
        self.n_neighbors, self.softness, self.temperature = n_neighbors, softness, temperature
        self.n_dimensions, self.n_hidden, self.dropout = n_dimensions, n_hidden, dropout
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_epochs, self.max_steps = max_epochs, max_steps

    def _fit(self, rows: Rows, y: Floats) -> None:
        from stgen.nn._random import global_random_state_kept

        from ._contrastive import Pairs

        assert rows.histology is not None
        with global_random_state_kept():
            self.choice_ = self._choose(rows, y)
            pairs = Pairs(rows.histology, y)
            ((_, self.found_),) = self._libraries(pairs, (self.choice_.n_epochs,), "all rows")

    def _predict(self, rows: Rows) -> Floats:
        assert rows.histology is not None
        (answer,) = self.found_.answers(rows.histology, self.n_neighbors, [self.choice_.sharpness])
        return answer

    def _choose(self, rows: Rows, y: Floats) -> Choice:
        """The choice with the best mean score over left-out sections."""
        from ._contrastive import BATCH, Pairs
        from ._networks import validation_folds

        assert rows.histology is not None
        generator = np.random.default_rng(self.random_state)
        n_epochs = min(self.max_epochs, self.max_steps // -(-len(y) // BATCH))
        stops = tuple(sorted({max(1, n_epochs * third // 3) for third in (1, 2, 3)}))
        scores: dict[Choice, list[float]] = {}
        for fold, held_out in enumerate(validation_folds(rows.section, self.random_state)):
            pairs = Pairs(np.delete(rows.histology, held_out, axis=0), np.delete(y, held_out, axis=0))
            asked = np.sort(generator.permutation(held_out)[:MAX_LEFT_OUT])
            for n_epochs, library in self._libraries(pairs, stops, f"fold {fold}"):
                answers = library.answers(rows.histology[asked], self.n_neighbors, SHARPNESS)
                for sharpness, answer in zip(SHARPNESS, answers, strict=True):
                    value = score(y[asked], answer, rows.section[asked])
                    scores.setdefault(Choice(n_epochs, sharpness), []).append(value)
        return max(scores, key=lambda choice: float(np.mean(scores[choice])))

    def _libraries(self, pairs: Pairs, stops: tuple[int, ...], purpose: str) -> Iterator[tuple[int, Library]]:
        """What encoders have learned after so many epochs; each is only good until the next."""
        from stgen.nn._random import seed_from, seed_global_generators

        from ._contrastive import Library, TwoEncoders, train_encoders

        seed_global_generators(seed_from(self.random_state, purpose))
        network = TwoEncoders(
            pairs.histology.shape[1], pairs.profile.shape[1], self.n_dimensions, self.n_hidden, self.dropout
        )
        optimiser = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        for epoch in train_encoders(
            network,
            pairs,
            softness=self.softness,
            temperature=self.temperature,
            optimiser=optimiser,
            stops=stops,
        ):
            yield epoch, Library(network, pairs)


def score(truth: Floats, answer: Floats, section: NDArray[np.str_]) -> float:
    """Mean Pearson correlation per gene within sections; what is undefined counts as 0."""
    by_section = [pearson(truth[section == name], answer[section == name]) for name in np.unique(section)]
    return float(np.nan_to_num(by_section).mean())
