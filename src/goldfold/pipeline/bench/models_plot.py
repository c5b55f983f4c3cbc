"""The picture of candidate backbones: score against speed, and against memory, with the front of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.pipeline.bench.candidates import Candidate
from goldfold.progress import warn

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito's palette: apart for every kind of colour vision


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
    # By score, so that the numbers of the points are ranks; names beside points would cover each other.
    shown.sort(key=lambda each: float(each.mean or 0), reverse=greater_is_better)
    figure = Figure(figsize=(13, max(5.2, 1.6 + 0.27 * len(shown))), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06, "left": 0.065, "right": 0.73, "top": 0.86})
    way = "higher" if greater_is_better else "lower"
    speed = [float(each.rate or 0) for each in shown]
    memory = [float(each.memory_mb or 0) for each in shown]
    _draw(panels[0], shown, speed, True, greater_is_better, "images a second at prediction, all views")
    _draw(panels[1], shown, memory, False, greater_is_better, "peak memory of training, MB")
    panels[0].set_ylabel(f"{metric} ({way} is better)")
    figure.text(0.065, 0.93, "Backbones: score against speed and memory", fontsize=13, fontweight="bold")
    figure.text(0.73, 0.93, "area: parameters; line: no other is better in both", fontsize=9, color=GREY, ha="right")
    lines = [f"{rank:>2}  {each.mean:.4f}  {_short(each.backbone)}" for rank, each in enumerate(shown, 1)]
    figure.text(0.745, 0.86, "\n".join(lines), fontsize=9, family="monospace", va="top", linespacing=1.6)
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
    axes.margins(x=0.1, y=0.12)
    _widen(axes, values)
    for rank, (value, score) in enumerate(zip(values, scores, strict=True), 1):
        axes.annotate(
            str(rank), (value, score), xytext=(9, 8), textcoords="offset points", ha="center", fontsize=9, zorder=4
        )
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
    ratio = high / low
    several = (1.0, 2.0, 3.0, 5.0) if ratio > 4 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 30 else several))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
