"""What the searches for weights share: how good values are, and when one is better than another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from goldfold.ensemble.rows import Stack
from goldfold.metrics import Metric, score
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Weights = npt.NDArray[np.float64]
Quality = Callable[[Floats], float]
"""Values → a number, larger is better; -inf where the metric is undefined."""

SEARCH_ROWS = 10_000
"""A search scores at most about so many rows: thousands of scores of all rows of a large table would take minutes."""
SMALLEST_GAIN = 1e-9
"""A relative gain below the rounding error of a metric is a tie."""


def drawn(stack: Stack, rows: Ints, task: Task, metric: Metric) -> tuple[list[Floats], Quality]:
    """The members' values for a sample of at most about ``SEARCH_ROWS`` of ``rows``, and their quality there."""
    sample = stack.sample(rows, task, SEARCH_ROWS)
    targets = stack.targets[sample]

    def quality(values: Floats) -> float:
        value = score(metric, task, targets, values)
        if np.isnan(value):
            return -np.inf
        return value if metric.greater_is_better else -value

    return [member[sample] for member in stack.members], quality


def gains(new: float, old: float) -> bool:
    """Whether a quality is better than another by more than rounding."""
    if old == -np.inf:
        return new > old
    return new - old > SMALLEST_GAIN * max(abs(old), abs(new))


def first_best(qualities: Sequence[float]) -> int:
    """The position of the best quality; a tie goes to the earlier."""
    best = 0
    for number, quality in enumerate(qualities):
        if gains(quality, qualities[best]):
            best = number
    return best


def weighted(members: Sequence[Floats], weights: Weights) -> Floats:
    """The weighted sum (N, C) of M arrays (N, C), added up in float64 one after the other."""
    total = np.zeros(members[0].shape, dtype=np.float64)
    for weight, member in zip(weights, members, strict=True):
        if weight != 0:
            total += weight * member
    return total.astype(np.float32)
