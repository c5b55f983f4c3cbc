"""Which views pay: a greedy choice by the competition's metric (Molchanov et al. 2020, greedy policy search)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from goldfold.metrics import Metric, better, score
from goldfold.records import Floats
from goldfold.tasks import Task
from goldfold.tta.views import merge


@dataclass(frozen=True)
class Step:
    """A view that was added: the score with it, and by how much it is better than without (None: the first)."""

    view: str
    score: float
    gain: float | None


@dataclass(frozen=True)
class Choice:
    """``chosen`` views in the candidates' order, the first candidate always among them; ``steps`` in that of the choice."""

    chosen: tuple[str, ...]
    steps: tuple[Step, ...]


def combine(members: Sequence[Floats], places: Sequence[int], how: str, task: Task) -> Floats:
    """The final probabilities (N, C) of views ``places``: merged within each member (V, N, C), then averaged over members.

    The views are merged in the order of their places, whatever the order of ``places``.
    """
    parts = []
    for member in members:
        merged = merge(
            [torch.from_numpy(member[place]) for place in sorted(places)], how, yes_or_no=task.activation == "sigmoid"
        )
        parts.append(task.normalise(merged.numpy()))
    return np.asarray(np.mean(np.stack(parts), axis=0, dtype=np.float64), dtype=np.float32)


def choose_views(
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    *,
    task: Task,
    metric: Metric,
    how: str,
    max_views: int,
    min_gain: float,
) -> Choice:
    """Begin with the first view, add the one that helps most, stop where none gains more than ``min_gain``.

    ``members``: probabilities (V, N, C) of each seed, which are averaged; ``targets`` (N, C). Of equal views the earlier
    is taken. A score that is undefined (NaN) is never a gain, and nothing is added to a first view without a score.
    """
    sign = 1 if metric.greater_is_better else -1

    def rate(places: Sequence[int]) -> float:
        return score(metric, task, targets, combine(members, places, how, task))

    chosen, now = [0], rate([0])
    steps = [Step(names[0], now, None)]
    while len(chosen) < min(max_views, len(names)) and not math.isnan(now):
        rest = [place for place in range(len(names)) if place not in chosen]
        best, best_score = rest[0], math.nan
        for place in rest:
            value = rate([*chosen, place])
            if not math.isnan(value) and (math.isnan(best_score) or better(metric, value, best_score)):
                best, best_score = place, value
        gain = sign * (best_score - now)
        if not gain > min_gain:
            break
        chosen.append(best)
        steps.append(Step(names[best], best_score, gain))
        now = best_score
    return Choice(tuple(names[place] for place in sorted(chosen)), tuple(steps))
