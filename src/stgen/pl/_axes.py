"""Axes to draw on, and what all plots share: colours of kinds of methods, spots to scale, a scale bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection

KIND_COLORS = {
    "model": "#0f7c7c",
    "baseline": "#6d9dc5",
    "null": "#a3a3a3",
    "oracle": "#d8a13a",
    "peer": "#8d6cab",
}
INK = "#333333"
FAINT = "#cccccc"


def one_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or new ones on a figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def many_axes(axes: Any, n_rows: int, n_columns: int, width: float, height: float) -> np.ndarray:
    """The axes given, or a new grid with panels of this size in inches; always an array of two dimensions."""
    if axes is None:
        import matplotlib.pyplot as plt

        size = (width * n_columns, height * n_rows)
        return plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)[1]
    axes = np.asarray(axes, dtype=object)
    if axes.size != n_rows * n_columns:
        raise ValueError(
            f"{n_rows} × {n_columns} panels need {n_rows * n_columns} axes; got {axes.size}. "
            f"Make them with `plt.subplots({n_rows}, {n_columns})`."
        )
    return axes.reshape(n_rows, n_columns)


def quiet(ax: Axes) -> None:
    """Only the spines that carry a scale."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK)


def spot_pitch(xy: np.ndarray) -> float:
    """Typical distance to the nearest other spot, in the units of the coordinates."""
    if len(xy) < 2:
        return 1.0
    distance = cKDTree(xy).query(xy, k=2)[0][:, 1]
    distance = distance[distance > 0]  # spots that share their place say nothing
    return float(np.median(distance)) if len(distance) else 1.0


def cell_size(xy: np.ndarray) -> float:
    """Diameter of discs that cover the ground of cells, which lie less evenly than spots of an array."""
    if len(xy) < 5:
        return spot_pitch(xy)
    distance = cKDTree(xy).query(xy[:: max(1, len(xy) // 5000)], k=5)[0][:, 1:].mean(axis=1)
    return float(np.median(distance)) or spot_pitch(xy)


def draw_spots(
    ax: Axes, xy: np.ndarray, values: np.ndarray, *, diameter: float | None = None, **colors: Any
) -> EllipseCollection:
    """Discs in data units, so that they stay in place and to scale at any zoom."""
    from matplotlib.collections import EllipseCollection

    diameter = 0.92 * spot_pitch(xy) if diameter is None else diameter
    size = np.full(len(xy), diameter)
    spots = EllipseCollection(
        size,
        size,
        np.zeros(len(xy)),
        units="xy",
        offsets=xy,
        offset_transform=ax.transData,
        linewidths=0,
        rasterized=len(xy) > 5000,
        **colors,
    )
    spots.set_array(values)
    ax.add_collection(spots)
    low, high = xy.min(axis=0) - diameter, xy.max(axis=0) + diameter
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[])  # y down, as in the image
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    return spots


def scale_bar(ax: Axes, xy: np.ndarray) -> None:
    """A bar of a round length in µm below the tissue."""
    width = float(np.ptp(xy[:, 0])) or 1.0
    length = round_length(0.3 * width)
    pitch = spot_pitch(xy)
    left, bottom = xy[:, 0].min() - pitch / 2, xy[:, 1].max() + 1.6 * pitch
    ax.plot(
        [left, left + length], [bottom, bottom], color=INK, linewidth=2, solid_capstyle="butt", clip_on=False
    )
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    ax.text(
        left + length / 2, bottom + 0.4 * pitch, label, ha="center", va="top", fontsize="small", color=INK
    )
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, bottom + 0.06 * float(np.ptp(xy[:, 1])) + pitch), high)


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 × 10ⁿ that is not longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)))
