"""The picture of an ensemble's members: how their errors go together, and what each weighs, gains and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from goldfold import files
from goldfold.progress import warn

GREEN, RED, GREY, BLUE = (
    "#009E73",
    "#D55E00",
    "#666666",
    "#0072B2",
)  # Okabe & Ito: apart for every kind of colour vision
COLOURS = "cividis"
WRITTEN = 12
"""Up to so many members each cell holds its number."""


@dataclass(frozen=True)
class MemberRow:
    """A member as the picture and ``members.csv`` show it; None where a number is undefined."""

    name: str
    score: float | None
    weight: float
    gain: float | None
    mean_correlation: float | None
    leaky: bool


def draw_members(
    rows: Sequence[MemberRow],
    correlation: npt.NDArray[np.float64],
    title: str,
    metric: str,
    greater_is_better: bool,
    path: Path,
) -> bool:
    """Write the picture (PNG) of ``rows``, M members in the order of ``correlation`` (M, M), where NaN is undefined.

    Returns whether it was written: without matplotlib there is only a line that says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[plot]"')
        return False
    count = len(rows)
    cell = 0.62 if count <= WRITTEN else 0.3
    labels = [_label(row) for row in rows]
    letters = max(len(label) for label in labels)
    size = 10 if count <= WRITTEN else 8
    margin = max(0.5, 0.0098 * size * letters)  # inches that the longest name takes
    map_side = max(cell * count, 1.9)
    bars = 1.9
    width = 0.25 + margin + map_side + 0.35 + 2 * (bars + 0.3) + 0.95
    foot = max(0.6, margin * 0.68 + 0.1)
    height = 1.05 + map_side + foot
    width = max(width, 0.4 + 0.115 * len(title))
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, wide: float) -> Any:
        return figure.add_axes((left / width, foot / height, wide / width, map_side / height))

    figure.text(0.25 / width, 1 - 0.34 / height, title, fontsize=13, fontweight="bold", va="center")
    left = 0.25 + margin
    _draw_map(figure, place(left, map_side), correlation, labels, size, height)
    left += map_side + 0.35
    weights = [row.weight for row in rows]
    _draw_bars(place(left, bars), weights, [BLUE] * count, "weight", [f"{value:.3f}" for value in weights], size)
    left += bars + 0.3
    gains = [row.gain for row in rows]
    colours = [GREY if not gain else GREEN if gain > 0 else RED for gain in gains]
    written = ["–" if gain is None else _signed(gain) for gain in gains]
    axes = place(left, bars)
    _draw_bars(axes, [gain or 0.0 for gain in gains], colours, "gain: with it less without it", written, size)
    way = "higher" if greater_is_better else "lower"
    scores = ["–" if row.score is None else f"{row.score:.4f}" for row in rows]
    for place_y, text in enumerate(scores):
        axes.text(1.12, place_y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=size)
    axes.text(
        1.12, 1.02, f"{_short(metric, 12)}\n({way} is\nbetter)", transform=axes.transAxes, va="bottom", fontsize=8.5
    )
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _draw_map(
    figure: Any, axes: Any, correlation: npt.NDArray[np.float64], labels: Sequence[str], size: int, height: float
) -> None:
    count = len(labels)
    known = correlation[~np.eye(count, dtype=bool) & ~np.isnan(correlation)]
    low = min(math.floor(float(known.min()) * 10) / 10, 0.9) if known.size else 0.0
    # The diagonal is always 1 and tells nothing.
    shown = np.where(np.eye(count, dtype=bool), np.nan, correlation)
    image = axes.imshow(shown, cmap=COLOURS, vmin=low, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#eeeeee")
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.set_xticks(range(count), labels, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.set_title("correlation of errors", fontsize=10, loc="left", pad=6)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2 if count <= WRITTEN else 0.5)
    axes.tick_params(which="minor", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if count <= WRITTEN:
        for (row, column), value in np.ndenumerate(correlation):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            dark = row != column and not np.isnan(value) and (value - low) / max(1 - low, 1e-9) < 0.5
            colour = GREY if row == column else "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    elif known.size:
        box = axes.get_position()
        thin = figure.add_axes((box.x1 - box.width * 0.45, box.y1 + 0.12 / height, box.width * 0.45, 0.09 / height))
        bar = figure.colorbar(image, cax=thin, orientation="horizontal")
        bar.ax.xaxis.set_ticks_position("top")
        bar.ax.tick_params(labelsize=8, length=2, pad=1)
        bar.outline.set_visible(False)


def _draw_bars(
    axes: Any, values: Sequence[float], colours: Sequence[str], title: str, written: Sequence[str], size: int
) -> None:
    count = len(values)
    axes.barh(range(count), values, color=colours, height=0.62)
    axes.set_ylim(count - 0.5, -0.5)
    low, high = min(0.0, *values), max(0.0, *values)
    spread = (high - low) or 1.0
    # Numbers stand beyond the bars' ends.
    axes.set_xlim(low - (0.62 * spread if low < 0 else 0.02 * spread), high + 0.62 * spread)
    axes.axvline(0, color="black", linewidth=0.8)
    for place, (value, text) in enumerate(zip(values, written, strict=True)):
        side = "right" if value < 0 else "left"
        shift = -0.03 * spread if value < 0 else 0.03 * spread
        axes.text(value + shift, place, text, va="center", ha=side, fontsize=min(size, 9), color="#333333")
    axes.set_title(title, fontsize=10, loc="left", pad=6)
    axes.set_yticks([])
    axes.set_xticks([])
    for side_name in ("top", "right", "left", "bottom"):
        axes.spines[side_name].set_visible(False)


def _label(row: MemberRow) -> str:
    text = _short(row.name, 28)
    return f"{text} (leaky)" if row.leaky else text


def _short(text: str, length: int) -> str:
    """The beginning and the end, which tell names apart."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.4f}" if abs(value) >= 0.00005 else f"{value:+.0e}"
