"""The learning-rate range test: what rates to try, and what their losses say (Smith 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goldfold import files
from goldfold.errors import BadInput, GoldfoldError
from goldfold.progress import warn

EXPLODED = 4.0
"""Loss over the least loss so far at which the test ends, as in fastai."""
BLUE, ORANGE, PURPLE = "#0072B2", "#E69F00", "#CC79A7"  # Okabe & Ito's palette: apart for every kind of colour vision


@dataclass(frozen=True)
class Suggestion:
    """Two usual readings of the curve. ``steepest``: where the loss falls fastest; ``minimum_tenth``: a tenth of the rate
    at which it is least."""

    steepest: float
    minimum_tenth: float


def ramp(start: float, end: float, steps: int) -> list[float]:
    """``steps`` rates from ``start`` to ``end``, each the same multiple of the one before. Raises BadInput."""
    if steps < 2:
        raise BadInput("lr-find", f"{steps} steps make no ramp", "take 100 or so")
    if not 0 < start < end < math.inf:
        raise BadInput("lr-find", f"the rates must rise from above 0, got {start:g} to {end:g}")
    return [start * (end / start) ** (step / (steps - 1)) for step in range(steps)]


def smooth(losses: Sequence[float], beta: float = 0.98) -> list[float]:
    """Exponential moving average without the bias to 0 of its first values (Kingma and Ba 2015)."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = beta * average + (1 - beta) * loss
        smoothed.append(average / (1 - beta**count))
    return smoothed


def diverged(losses: Sequence[float]) -> bool:
    """Whether the smoothed loss has come to four times its least value, or the last loss is not finite."""
    if not losses:
        return False
    smoothed = smooth(losses)
    best = min(smoothed)
    return not math.isfinite(smoothed[-1]) or (best > 0 and smoothed[-1] > EXPLODED * best)


def centred(losses: Sequence[float]) -> list[float]:
    """The curve that is read and drawn: losses averaged to both sides, so that it does not lag behind the rate.

    An average of the past alone comes down a decade of rates too late in a test of a hundred steps. The weights fall by e
    within a twentieth of the losses (those before the first that is not finite); losses far above the first ones count
    as the ceiling, since an explosion would spread over the steps before it.
    """
    finite = _finite(losses)
    if not finite:
        return []
    start = max(finite[: max(len(finite) // 10, 1)])
    ceiling = 2 * start - min(finite)
    capped = [min(loss, ceiling) for loss in finite]
    beta = math.exp(-20 / max(len(finite), 20))
    ahead = smooth(capped, beta)
    back = smooth(capped[::-1], beta)[::-1]
    return [(one + other) / 2 for one, other in zip(ahead, back, strict=True)]


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Read the smoothed losses over the logarithm of the rates.

    The first tenth and the last twentieth, whose averages are one-sided, are left out; the steepest descent is looked
    for before the minimum. Raises GoldfoldError when the loss never falls.
    """
    smoothed = centred(losses)
    first, after = len(smoothed) // 10, len(smoothed) - len(smoothed) // 20
    values, used = np.asarray(smoothed[first:after]), np.asarray(rates[first:after])
    if len(values) < 3:
        raise GoldfoldError(
            f"lr-find: {len(smoothed)} losses before the end are too few to read; take more steps or lower rates"
        )
    least = int(values.argmin())
    slopes = np.gradient(values, np.log(used))[: least + 1]
    steepest = int(slopes.argmin())
    fall = float(values[: least + 1].max() - values[least])
    if fall <= 1e-6 * abs(float(values[0])):  # rounding alone
        raise GoldfoldError(
            f"lr-find: the loss never falls between rates {used[0]:.1e} and {used[-1]:.1e}; "
            "start from a lower rate, and check the labels and the loss"
        )
    return Suggestion(float(used[steepest]), float(used[least]) / 10)


def plot(
    path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: Suggestion | None, title: str
) -> bool:
    """Write the curve and both suggestions as a PNG (900 x 540); returns whether it was written.

    Without matplotlib there is only a line that says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn(f'no {path.name}: the package matplotlib is not installed; pip install "goldfold[plot]"')
        return False
    smoothed = centred(losses)
    figure = Figure(figsize=(9, 5.4), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot(rates[: len(losses)], losses, color="#999999", linewidth=0.8, alpha=0.7, label="loss of each step")
    axes.plot(rates[: len(smoothed)], smoothed, color=BLUE, linewidth=2, label="smoothed")
    marks = [] if suggestion is None else _marks(suggestion)
    for rate, name, colour, marker in marks:
        height = float(np.interp(math.log(rate), np.log(rates[: len(smoothed)]), smoothed))
        axes.axvline(rate, color=colour, linewidth=1, linestyle="--")
        axes.plot(
            [rate], [height], marker=marker, markersize=9, color=colour, linestyle="none", label=f"{name}: {rate:.1e}"
        )
    if smoothed:  # the explosion at the end would flatten all that matters
        low, start = min(_finite(losses)), max(smoothed[: smoothed.index(min(smoothed)) + 1])
        room = max(start - low, 0.05 * abs(start), 1e-6)
        axes.set_ylim(low - 0.1 * room, start + 0.4 * room)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", wrap=True)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=10, loc="lower left")
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _marks(suggestion: Suggestion) -> list[tuple[float, str, str, str]]:
    return [
        (suggestion.steepest, "steepest descent", ORANGE, "o"),
        (suggestion.minimum_tenth, "minimum / 10", PURPLE, "D"),
    ]


def _finite(values: Sequence[float]) -> list[float]:
    """The values before the first that is not finite."""
    end = next((number for number, value in enumerate(values) if not math.isfinite(value)), len(values))
    return list(values[:end])
