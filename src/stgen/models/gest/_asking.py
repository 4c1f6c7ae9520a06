"""What a fitted network says of cells and places, window by window.

n cells, m places, B windows, D width, K meta cells, V values of an answer (K, or T without quantisation), T genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from stgen.data._cells import CellTable

from ._generation import TOKENS_AT_ONCE, Cells, Filled, Windows, fill
from ._network import TURNS, GeSTNetwork, turned

CORNER = 0
"""Corner that orders a window's cells when the model is applied."""


class Asking:
    """A fitted network, asked without gradients.

    Parameters
    ----------
    network
        Fitted.
    device
        Where it lies.
    """

    def __init__(self, network: GeSTNetwork, device: torch.device) -> None:
        self.network, self.config, self.device = network, network.config, device

    def states(self, table: CellTable, batch_size: int | None = None) -> np.ndarray:
        """State of the network for each cell's own place (n, D), averaged over turned and mirrored windows."""
        out = np.zeros((len(table), self.config.width), dtype=np.float32)
        for rows, h in self.own_places(table, batch_size=batch_size, turns=range(TURNS)):
            out[rows] = self.network.norm(h).mean(0).cpu().numpy()
        return out

    def left_out(self, table: CellTable, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Expected expression (·, T) of cells ``rows``, each from the others around it, some at a time."""
        for some_rows, h in self.own_places(table, rows, itself=False):
            yield some_rows, self._expected(self._value(h[0]))

    def own_places(
        self,
        table: CellTable,
        rows: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        itself: bool = True,
        turns: Iterable[int] = (0,),
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Hidden states (turns, B, D) of cells' own places, given the cells around them, windows of a size together.

        ``itself`` says whether a cell is among the cells around its place.
        """
        network, device = self.network, self.device
        looks = network.table()
        asked = torch.arange(len(table)) if rows is None else torch.from_numpy(rows)
        sizes = table.sizes(asked)
        by_size = sizes.argsort(stable=True)
        start = 0
        while start < len(by_size):
            chunk = by_size[
                start : start + (batch_size or max(1, TOKENS_AT_ONCE // int(sizes[by_size[start]])))
            ]
            start += len(chunk)
            batch = {name: tensor.to(device) for name, tensor in table.batch(asked[chunk]).items()}
            cell, offset, size = batch["cell"], batch["offset"], batch["size"]
            if not itself:
                # the cell goes to the end, where padding is
                last = (batch["member"] == batch["index"][:, None]).long().argsort(dim=1, stable=True)
                cell = cell.gather(1, last)
                offset = offset.gather(1, last[..., None].expand(-1, -1, 2))
                size = size - 1
            query = torch.zeros(len(chunk), 1, 2, device=device)
            tokens, place = looks[cell.clamp(min=0)], network.places(offset)
            states = [
                network.ask(tokens, turned(place, how), size, query, corner=CORNER)[:, 0] for how in turns
            ]
            yield asked[chunk].numpy(), torch.stack(states)

    def filled(
        self, seen: Cells, label: np.ndarray, asked: Cells, *, n_windows: int, max_rounds: int
    ) -> tuple[Filled, np.ndarray]:
        """What the network finds for places, and the expression (m, T) that it expects there."""
        profiles = self.network.words.profiles.cpu().numpy()
        filled = fill(
            seen,
            label,
            asked,
            self._ask,
            n_values=len(profiles) if self.config.quantized else profiles.shape[1],
            label_of=self._label_of,
            window_um=float(self.network.window_um),
            max_cells=self.config.max_cells,
            n_windows=n_windows,
            max_rounds=max_rounds,
        )
        x = self._expected(filled.value)
        x[filled.round == 0] = profiles[filled.label[filled.round == 0]]
        return filled, x

    def _ask(self, windows: Windows) -> np.ndarray:
        """What is asked in each window: distributions over meta cells, or profiles."""
        network, device = self.network, self.device
        label, size, offset, query, is_asked = (torch.from_numpy(part).to(device) for part in windows)
        tokens, place, query = network.table()[label.long()], network.places(offset), network.places(query)
        answers = (
            network.ask(tokens, turned(place, how), size, turned(query, how), corner=CORNER)
            for how in range(TURNS)
        )
        return np.mean([self._value(h[is_asked]) for h in answers], axis=0)

    def _value(self, h: Tensor) -> np.ndarray:
        """What the network says of places, from hidden states: distributions, or profiles if it does not quantise."""
        network = self.network
        return (network.probabilities(h) if self.config.quantized else network.answer(h)).cpu().numpy()

    def _expected(self, value: np.ndarray) -> np.ndarray:
        """Expression (n, T) that a distribution over meta cells expects."""
        return value @ self.network.words.profiles.cpu().numpy() if self.config.quantized else value.copy()

    def _label_of(self, value: np.ndarray) -> np.ndarray:
        """The likeliest meta cell, or that of a profile."""
        if self.config.quantized:
            return value.argmax(axis=1)
        return self.network.words.assign(torch.from_numpy(value).to(self.device)).cpu().numpy()
