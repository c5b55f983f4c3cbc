"""The picture of an ablation: scores of the seeds, and each difference with its interval."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.pipeline.ablation_report import Findings
from goldfold.pipeline.paired import Interval
from goldfold.progress import warn

GREEN, RED, GREY = "#009E73", "#D55E00", "#666666"  # Okabe & Ito's palette: apart for every kind of colour vision


def draw_table(findings: Findings, title: str, path: Path) -> bool:
    """Write the picture (PNG): scores of the seeds at the left, differences with their intervals at the right.

    Returns whether it was written: without matplotlib there is only a line that says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[plot]"')
        return False
    lines, metric = findings.lines, findings.metric
    rows = len(lines) + (findings.total is not None)
    height = 1.45 + 0.46 * rows
    figure = Figure(figsize=(12, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    bottom, top = 0.75 / height, 1 - 0.6 / height
    left = figure.add_axes((0.235, bottom, 0.28, top - bottom))
    right = figure.add_axes((0.545, bottom, 0.27, top - bottom))
    figure.text(0.015, 1 - 0.36 / height, f"Ablation: {title}", fontsize=14, fontweight="bold")
    for place, line in enumerate(lines):
        left.plot(list(line.by_seed.values()), [place] * len(line.by_seed), "o", color=GREY, alpha=0.6, markersize=5)
        if line.mean is not None:
            left.errorbar([line.mean], [place], xerr=[line.std or 0], fmt="|", color="black", markersize=13, capsize=4)
        speed = "" if line.images_per_second is None else f"{line.images_per_second:.0f} img/s"
        ratio = "" if line.ratio is None else f" ({line.ratio:.2f}×)"
        _draw_difference(right, place, line.difference, line.verdict)
        right.text(
            1.04,
            place,
            f"{line.verdict or 'the reference'}\n{speed}{ratio}",
            transform=right.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=_colour(line.verdict),
        )
    if findings.total:
        place = len(lines)
        _draw_difference(right, place, findings.total, findings.total_verdict)
        right.text(
            1.04,
            place,
            findings.total_verdict,
            transform=right.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=_colour(findings.total_verdict),
        )
        for axes in (left, right):
            axes.axhline(place - 0.5, color="#bbbbbb", linewidth=0.8)
    labels = [textwrap.fill(_short(line.row.title, 60), 31, break_on_hyphens=False) for line in lines]
    labels += ["total: last row to first"] if findings.total else []
    left.set_yticks(range(rows), labels, fontsize=10)
    right.set_yticks(range(rows), [""] * rows)
    right.axvline(0, color="black", linewidth=0.8)
    way = "higher" if metric.greater_is_better else "lower"
    left.set_xlabel(f"{metric.name} ({way} is better): seeds, mean ± std", fontsize=10)
    reference = "the row above" if findings.kind == "stack" else f"'{lines[0].row.title}'"
    right.set_xlabel(f"difference to {reference}, 95 % interval", fontsize=10)
    for axes in (left, right):
        axes.set_ylim(rows - 0.4, -0.6)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.locator_params(axis="x", nbins=5)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _draw_difference(axes: Any, place: int, difference: Interval | None, word: str) -> None:
    if difference is None:
        return
    if difference.low is not None and difference.high is not None:
        axes.plot([difference.low, difference.high], [place, place], "-", color=_colour(word), linewidth=2)
    axes.plot([difference.mean], [place], "D", color=_colour(word), markersize=6)


def _colour(word: str) -> str:
    return {"better": GREEN, "worse": RED}.get(word, GREY)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
