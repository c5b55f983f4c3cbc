"""Paired differences of scores with their confidence interval, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

LEVEL = 0.95
WITHIN, NO_SPREAD = "within noise", "no spread: no interval"


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences and its confidence interval; None: too little to tell (``low`` and ``high``)."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def paired(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and Student-t confidence interval of paired differences; no interval for fewer than two.

    Raises ValueError when there are none.
    """
    if not differences:
        raise ValueError("there are no differences")
    n, mean = len(differences), fmean(differences)
    if n < 2:
        return Interval(n, mean)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(differences) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def verdict(interval: Interval, greater_is_better: bool, unit: str = "seed") -> str:
    """better, worse, or why that cannot be said; ``unit``: what the differences are paired by."""
    if interval.low is None or interval.high is None:
        return f"one {unit}: no interval"
    if interval.low <= 0 <= interval.high:
        return WITHIN
    if math.isclose(interval.low, interval.high, rel_tol=1e-9):
        # A coarse metric may move by the same step every time; that is no measure of its noise.
        return NO_SPREAD
    return "better" if (interval.mean > 0) == greater_is_better else "worse"
