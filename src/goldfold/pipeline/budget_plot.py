"""The picture of a time budget: the score of every subset against its time, the frontier, the limit and the plan."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from goldfold import files
from goldfold.metrics import Metric
from goldfold.progress import warn

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe & Ito's palette: apart for every kind of colour vision


def draw_budget(points: pd.DataFrame, steps: pd.DataFrame, metric: Metric, work: float, title: str, path: Path) -> bool:
    """Write the picture (PNG) of frontier.csv (``points``) and budget.csv (``steps``); ``work``: hours that are left for it.

    Returns whether it was written: without matplotlib there is only a line that says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[plot]"')
        return False
    figure = Figure(figsize=(8, 4.6), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.76))
    frontier = points[points["frontier"]]
    latest = max([work, *points["hours"], *steps["hours"]])
    scale, unit = (1.0, "hours") if latest > 2 else (60.0, "minutes") if latest > 2 / 60 else (3600.0, "seconds")
    axes.plot(points["hours"] * scale, points["score"], "o", color=GREY, markersize=4, label="subsets of the members")
    axes.step(
        [*frontier["hours"] * scale, latest * scale * 1.05],
        [*frontier["score"], frontier["score"].iloc[-1]] if len(frontier) else [float("nan")],
        where="post",
        color=BLUE,
        linewidth=2,
        label="frontier: one network of each member",
    )
    if len(steps):
        axes.plot(
            steps["hours"] * scale,
            steps["score"],
            "D",
            color=ORANGE,
            markersize=5,
            label="the plan, network by network",
        )
    axes.axvline(work * scale, color="black", linestyle="--", linewidth=1)
    axes.text(work * scale, 1.01, "limit", transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    if latest > 20 * min(points["hours"], default=latest):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    way = "higher" if metric.greater_is_better else "lower"
    axes.set_xlabel(unit)
    axes.set_ylabel(f"cross-fitted {metric.name} ({way} is better)")
    figure.text(0.015, 0.95, f"Time budget: {title}", fontsize=13, fontweight="bold", va="center")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True
