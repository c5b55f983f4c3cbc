"""The picture of candidate backbones: score against speed, and against memory, with the front of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.pipeline.bench.candidates import Candidate
from goldfold.progress import warn

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito's palette: apart for every kind of colour vision
LABEL_GAP = 0.055
"""Of the axes' height, the least distance between two labels."""


def draw_candidates(candidates: Sequence[Candidate], metric: str, greater_is_better: bool, path: Path) -> bool:
    """Write the picture (PNG). Returns whether it was: without matplotlib, or with nothing to show, a line says so."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[plot]"')
        return False
    shown = [each for each in candidates if each.mean is not None and each.rate is not None]
    if not shown:
        warn(f"no {path.name}: no backbone has a score yet")
        return False
    figure = Figure(figsize=(12, 5.2), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06, "left": 0.07, "right": 0.98, "top": 0.86})
    way = "higher" if greater_is_better else "lower"
    speed = [float(each.rate or 0) for each in shown]
    memory = [float(each.memory_mb or 0) for each in shown]
    _draw(panels[0], shown, speed, True, greater_is_better, "images a second at prediction, all views")
    _draw(panels[1], shown, memory, False, greater_is_better, "peak memory of training, MB")
    panels[0].set_ylabel(f"{metric} ({way} is better)")
    figure.text(0.07, 0.93, "Backbones: score against speed and memory", fontsize=13, fontweight="bold")
    figure.text(0.98, 0.93, "area: parameters; line: no other is better in both", fontsize=9, color=GREY, ha="right")
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _draw(
    axes: Any, shown: Sequence[Candidate], values: list[float], more_is_better: bool, greater: bool, label: str
) -> None:
    scores = [float(each.mean or 0) for each in shown]
    most = max(each.parameters or 1.0 for each in shown)
    # Areas between those of a dot that is seen and one that hides nothing.
    areas = [60 + 500 * (each.parameters or 0.0) / most for each in shown]
    front = front_of(values, scores, more_is_better, greater)
    colours = [ORANGE if place in front else BLUE for place in range(len(shown))]
    axes.set_xscale("log")
    axes.scatter(values, scores, s=areas, c=colours, alpha=0.55, linewidths=0, zorder=2)
    axes.scatter(values, scores, s=8, c=colours, zorder=3)
    path = sorted(front, key=lambda place: values[place])
    axes.plot([values[p] for p in path], [scores[p] for p in path], color=ORANGE, linewidth=1.2, zorder=1)
    for each, value, score in zip(shown, values, scores, strict=True):
        if each.std is not None:
            axes.errorbar([value], [score], yerr=[each.std], color=GREY, linewidth=0.8, capsize=2, zorder=1)
    axes.margins(x=0.25, y=0.15)
    _widen(axes, values)
    _label(axes, shown, values, scores)
    axes.set_xlabel(label)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def front_of(values: Sequence[float], scores: Sequence[float], more_is_better: bool, greater: bool) -> set[int]:
    """Places that no other beats in both (as good in one and better in the other)."""
    points = [
        (value if more_is_better else -value, score if greater else -score)
        for value, score in zip(values, scores, strict=True)
    ]
    return {
        place
        for place, mine in enumerate(points)
        if not any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in points)
    }


def _widen(axes: Any, values: Sequence[float]) -> None:
    """Plain numbers on a logarithmic axis that may span less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = min(values), max(values)
    if high / low < 1.5:
        axes.set_xlim(low / 1.5, high * 1.5)
    wide = high / low > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(axes: Any, shown: Sequence[Candidate], values: Sequence[float], scores: Sequence[float]) -> None:
    """Names beside their points, towards the middle, moved up where they would cover each other."""
    taken: list[tuple[float, float]] = []
    left_log, right_log = (math.log10(edge) for edge in axes.get_xlim())
    for number in sorted(range(len(shown)), key=lambda each: scores[each]):
        across = (math.log10(values[number]) - left_log) / (right_log - left_log)
        height = _height(axes, scores[number])
        while any(abs(height - other) < LABEL_GAP and abs(across - beside) < 0.45 for beside, other in taken):
            height += LABEL_GAP / 4
        taken.append((across, height))
        to_left = across > 0.6
        axes.annotate(
            shown[number].backbone,
            (values[number], scores[number]),
            xytext=(across + (-0.035 if to_left else 0.035), height),
            textcoords="axes fraction",
            ha="right" if to_left else "left",
            va="center",
            fontsize=9,
            zorder=4,
        )


def _height(axes: Any, score: float) -> float:
    low, high = axes.get_ylim()
    return float((score - low) / (high - low))
