"""Training curves: training and validation loss over epochs, and the epoch that was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ._axes import INK, KIND_COLORS, many_axes, quiet

SPLITS = ("train", "validation")
COLORS = {"train": KIND_COLORS["baseline"], "validation": KIND_COLORS["model"], "": INK}


def history(data: Any, *, quantities: Sequence[str] = ("loss",), axes: Any = None) -> np.ndarray:
    """Draw how training went.

    Parameters
    ----------
    data
        A fitted model, its ``history_`` (one table per quantity), or a table with one row per epoch.
    quantities
        What to draw, one panel each: ``"loss"`` draws ``train_loss`` and ``validation_loss`` together.
    axes
        Axes to draw on, one for each panel.

    Returns
    -------
    Array of axes. A ring marks the epoch with the lowest validation loss (of the last phase). A curve breaks off where training enters another
    phase, whose loss has other parts (GenST).

    Examples
    --------
    >>> import pandas as pd, stgen as stg
    >>> table = pd.DataFrame({"train_loss": [3.0, 2.0, 1.5], "validation_loss": [3.1, 2.4, 2.6]})
    >>> axes = stg.pl.history(table)
    """
    table = _table(data)
    quantities = [quantities] if isinstance(quantities, str) else list(quantities)
    curves = {quantity: _curves(table, quantity) for quantity in quantities}
    axes = many_axes(axes, 1, len(quantities), 4.4, 3.0).ravel()
    for ax, (quantity, columns) in zip(axes, curves.items()):
        for split, column in columns.items():
            values = table[column].dropna()
            phases = _phases(table, values)
            for i, part in enumerate(phases):
                label = None if i else split or quantity
                ax.plot(part.index, part, color=COLORS[split], label=label, linewidth=1.8)
            if split == "validation":
                place = int(np.argmin(phases[-1]))
                best, lowest = phases[-1].index[place], float(phases[-1].iloc[place])
                ax.plot(best, lowest, "o", markerfacecolor="none", color=COLORS[split], markersize=9)
                ax.annotate(
                    f"best, epoch {best}",
                    (best, lowest),
                    xytext=(0, 9),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize="small",
                    color=COLORS[split],
                )
        ax.set(xlabel="epoch", ylabel=quantity)
        ax.margins(y=0.18)
        if len(columns) > 1:
            ax.legend(frameon=False)
        quiet(ax)
    return axes


def _phases(table: pd.DataFrame, values: pd.Series) -> list[pd.Series]:
    """Parts of a curve with one loss each: where a phase begins, another loss does, and no line should join them."""
    phase = table["phase"].reindex(values.index) if "phase" in table else pd.Series(0, index=values.index)
    return [part for _, part in values.groupby((phase != phase.shift()).cumsum())]


def _table(data: Any) -> pd.DataFrame:
    found = data
    if hasattr(data, "history_"):
        found = data.history_
        if found is None:
            raise ValueError("This model has no history; call `train` first.")
    if isinstance(found, Mapping):
        columns = {
            name: values.iloc[:, 0] if isinstance(values, pd.DataFrame) else pd.Series(values)
            for name, values in found.items()
        }
        found = pd.DataFrame(columns)
    if not isinstance(found, pd.DataFrame):
        raise TypeError(
            f"Expected a fitted model, its `history_`, or a table with one row per epoch; got {type(data).__name__}."
        )
    if found.empty:
        raise ValueError("The history is empty; call `train` first.")
    return found


def _curves(table: pd.DataFrame, quantity: str) -> dict[str, str]:
    """Columns of one quantity by split; the quantity itself if it has no splits."""
    found = {}
    for split in SPLITS:
        for name in (f"{quantity}_{split}", f"{split}_{quantity}", f"{split}/{quantity}"):
            if name in table:
                found[split] = name
    if not found and quantity in table:
        found[""] = quantity
    if not found:
        raise KeyError(
            f"There is no {quantity!r} in the history; it has {', '.join(map(str, table.columns))}."
        )
    return found
