"""Ensemble selection with replacement and bagging (Caruana, Niculescu-Mizil, Crew and Ksikes, ICML 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goldfold.ensemble.rows import Stack
from goldfold.ensemble.search import Quality, Weights, drawn, first_best, gains
from goldfold.metrics import Metric
from goldfold.records import Floats, Ints
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

PICKS = 25
"""Beyond about forty picks selection overfits small tables, and the first 25 already divide the mass in steps of 4 %."""
PATIENCE = 8
BAGS = 10
BAGGED_FROM = 8
"""With fewer members a bag of half of them would only leave good ones out."""
FEWEST_BAGGED = 4
"""Of fewer members a bag holds one or two, and its selection would be a draw."""


def fit_greedy(stack: Stack, rows: Ints, task: Task, metric: Metric, bags: int | None = None) -> Weights:
    """The weights (M,) of a stack's members by ensemble selection for the metric of ``rows`` (ordered).

    From the best member on, add the member that helps most (or hurts least), up to 25 picks or until 8 in a row have
    not helped, then keep the best prefix; ties go to the earlier member and to the shorter prefix. With 8 members or
    more this is done in 10 bags, each of a random half of the members (seeded by the stack), and the bags' weights are
    averaged: a member that shines by chance is in half of them only. ``bags`` sets another number; 1 is no bagging,
    and so are fewer than 4 members.

    Of more than 10,000 rows a stratified sample is scored. Weights stay equal where the metric is undefined throughout.
    """
    members, quality = drawn(stack, rows, task, metric)
    count = len(members)
    singles = [quality(member) for member in members]
    if max(singles) == -np.inf:
        return np.full(count, 1 / count)
    if bags is None:
        bags = BAGS if count >= BAGGED_FROM else 1
    if bags == 1 or count < FEWEST_BAGGED:
        return select(members, quality, singles)
    total = np.zeros(count)
    for bag in range(bags):
        generator = np.random.default_rng(derive_seed(stack.seed, bag))
        chosen = np.sort(generator.choice(count, (count + 1) // 2, replace=False))
        total[chosen] += select([members[each] for each in chosen], quality, [singles[each] for each in chosen])
    return total / total.sum()


def select(members: Sequence[Floats], quality: Quality, singles: Sequence[float]) -> Weights:
    """The weights (M,) of one selection among ``members``, whose own qualities are ``singles``."""
    if max(singles) == -np.inf:
        return np.full(len(members), 1 / len(members))
    picks = [first_best(singles)]
    total = members[picks[0]].astype(np.float64)
    best, length = singles[picks[0]], 1
    for size in range(2, PICKS + 1):
        # In float64, so that a member added to itself is that member again and no rounding looks like a gain.
        qualities = [quality(((total + member) / size).astype(np.float32)) for member in members]
        pick = first_best(qualities)
        picks.append(pick)
        total += members[pick]
        if gains(qualities[pick], best):
            best, length = qualities[pick], size
        elif size - length >= PATIENCE:
            break
    counts = np.bincount(picks[:length], minlength=len(members))
    return counts.astype(np.float64) / length
