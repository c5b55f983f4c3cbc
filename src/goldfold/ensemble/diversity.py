"""How much members differ, and what each is worth to the blend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.ensemble.blend import Blend, fit_rows, ranks, stack
from goldfold.ensemble.crossfit import CrossFit
from goldfold.metrics import Metric, score
from goldfold.progress import progress
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Doubles = npt.NDArray[np.float64]
Way = Literal["refitted", "renormalised"]

REFITTED_MEMBERS = 12
REFITTED_VALUES = {"simplex": 12_000_000, "greedy": 3_000_000, "stacking": 3_000_000}
"""A member is left out by fitting the rest anew with up to so many members, and up to so large a number: of members,
squared, times rows times classes. It is some seconds' work."""


@dataclass(frozen=True, eq=False)
class Diversity:
    """``correlation`` (M, M) of the members' errors, NaN for a member whose error never changes; ``gains`` (M,), NaN
    where undefined; ``way`` says how members were left out, None where none could be."""

    correlation: Doubles
    gains: Doubles
    way: Way | None

    @property
    def mean_correlation(self) -> Doubles:
        """(M,): of each member with the others; NaN where there are none."""
        others = self.correlation.copy()
        np.fill_diagonal(others, np.nan)
        known = ~np.isnan(others)
        total = np.where(known, others, 0).sum(axis=1)
        return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def measure_diversity(
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    folds: Ints,
    fitted: CrossFit,
    task: Task,
    metric: Metric,
    seed: int = 0,
    bags: int | None = None,
) -> Diversity:
    """The diversity of ``members``, M arrays (N, C) called ``names``, under the blend that was ``fitted`` to them.

    A member's gain is the cross-fitted score with it less the one without it, positive where it helps. ``refitted``: the
    other members were fitted anew, fold by fold; ``renormalised``: with many members or rows, the fitted weights (or
    coefficients) of the others were only scaled up. NaN with one member, or one fold.
    """
    correlation = error_correlation(members, targets, task)
    count = len(members)
    if count < 2 or fitted.score is None:
        return Diversity(correlation, np.full(count, np.nan), None)
    equal = fitted.blend.method in ("mean", "gmean", "rank_mean")  # leaving one out is fitting the rest anew
    small = not equal and count <= REFITTED_MEMBERS and count**2 * targets.size <= REFITTED_VALUES[fitted.blend.method]
    way: Way = "refitted" if small or equal else "renormalised"
    if small:
        scores = _refit_without(names, members, targets, folds, fitted, task, metric, seed, bags)
    else:
        scores = _drop(members, targets, folds, fitted, task, metric)
    gains = fitted.score - np.array(scores)
    return Diversity(correlation, gains if metric.greater_is_better else -gains, way)


def error_correlation(members: Sequence[Floats], targets: Floats, task: Task) -> Doubles:
    """Pearson's correlation (M, M) of the members' errors, to four decimals.

    A row's error is one less the probability of its true class; of a multilabel row, the distance of each label's
    probability from 0 or 1; of a regression, each target's residual in units of that target's deviation.
    """
    errors = np.empty((len(members), _errors(members[0], targets, task).size), dtype=np.float32)
    for row, member in enumerate(members):
        found: Doubles = _errors(member, targets, task).ravel().astype(np.float64)
        found -= found.mean()
        length = float(np.sqrt(np.square(found).sum()))
        # Equal numbers leave a crumb of rounding, which is no deviation.
        errors[row] = found / length if length > 1e-6 * np.sqrt(max(len(found), 1)) else np.nan
    # Adding 0 makes a rounded -0 a 0.
    together: Doubles = np.round((errors @ errors.T).astype(np.float64), 4).clip(-1, 1) + 0.0
    known = ~np.isnan(np.diagonal(together))
    together[np.diag_indices(len(together))] = np.where(known, 1.0, np.nan)
    return together


def correlation_table(names: Sequence[str], correlation: Doubles) -> pd.DataFrame:
    """The table of ``correlation.csv``: a row and a column a member."""
    frame = pd.DataFrame({"name": list(names)})
    for column, name in enumerate(names):
        # A run called "name" must not take the first column's place.
        frame.insert(column + 1, name, correlation[:, column], allow_duplicates=True)
    return frame


def _errors(values: Floats, targets: Floats, task: Task) -> Floats:
    if task.name == "regression":
        spread = np.where(targets.max(axis=0) > targets.min(axis=0), targets.std(axis=0), 1)
        return ((values - targets) / spread).astype(np.float32)
    if task.name in ("binary", "multilabel"):
        return np.abs(targets - values)
    return 1 - (targets * values).sum(axis=1)


def _refit_without(
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    folds: Ints,
    fitted: CrossFit,
    task: Task,
    metric: Metric,
    seed: int,
    bags: int | None,
) -> list[float]:
    scores = []
    for without in progress(range(len(names)), "members left out", len(names), "member"):
        kept = [number for number in range(len(names)) if number != without]
        own, values = [names[number] for number in kept], [members[number] for number in kept]
        stacked = stack(own, values, targets, seed)
        blended = np.empty(targets.shape, dtype=np.float32)
        for fold in fitted.fold_blends:
            held = folds == fold
            found = fit_rows(fitted.blend.method, own, stacked, task, metric, np.flatnonzero(~held), bags)
            blended[held] = found.apply([value[held] for value in values], task)
        scores.append(score(metric, task, targets, blended))
    return scores


def _drop(
    members: Sequence[Floats], targets: Floats, folds: Ints, fitted: CrossFit, task: Task, metric: Metric
) -> list[float]:
    count = len(members)
    blended = np.empty((count, *targets.shape), dtype=np.float32)
    for fold, blend in fitted.fold_blends.items():
        held = folds == fold
        values = [member[held] for member in members]
        if blend.method == "rank_mean":
            # Ranked once, not once for each member that is left out.
            values = [(ranks(value) / len(value) - 0.5 / len(value)).astype(np.float32) for value in values]
        for without in range(count):
            kept = [number for number in range(count) if number != without]
            rest = _without(blend, without)
            if blend.method == "rank_mean":
                rest = replace(rest, method="mean")
            blended[without, held] = rest.apply([values[number] for number in kept], task)
    return [score(metric, task, targets, each) for each in blended]


def _without(blend: Blend, without: int) -> Blend:
    """The blend of the other members, their weights or coefficients scaled up to what they were together."""
    kept = [number for number in range(len(blend.members)) if number != without]
    rest = blend.weights[kept]
    total = float(rest.sum())
    weights = rest / total if total > 0 else np.full(len(kept), 1 / len(kept))
    coefficients = None
    if blend.coefficients is not None:
        coefficients = blend.coefficients[:, kept] / (total if total > 0 else 1.0)
    names = tuple(blend.members[number] for number in kept)
    return Blend(blend.method, names, weights, coefficients, blend.intercept, blend.by_column)
