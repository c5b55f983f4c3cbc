"""Ways to blend members' predictions, as pure functions of aligned (N, C) arrays.

| method | blend | weights |
|---|---|---|
| ``mean`` | arithmetic mean | equal |
| ``gmean`` | geometric mean | equal |
| ``rank_mean`` | mean of each column's ranks | equal |
| ``simplex`` | weighted mean | direct search on the simplex |
| ``greedy`` | weighted mean | selection with replacement (Caruana et al., 2004) |

A member has one weight for all its classes, so a row of probabilities stays a row of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from goldfold.config.schema import BlendMethod
from goldfold.errors import BadInput
from goldfold.metrics import Metric, score
from goldfold.progress import progress, warn
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Weights = npt.NDArray[np.float64]
Quality = Callable[[Floats], float]
"""Values → a number, larger is better; -inf where the metric is undefined."""

EPS = 1e-7
PICKS = 25
STEPS = (0.25, 0.1, 0.05, 0.02, 0.01)
SWEEPS = 20
# A gain below the rounding error of a metric is a tie.
SMALLEST_GAIN = 1e-9
NEEDS_CALIBRATION = ("log_loss", "brier", "top5")


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What ``cross_fit`` found.

    ``weights`` (M,), ``plain`` (N, C) and ``plain_score``: fitted, applied and scored on all rows. ``values`` (N, C) and
    ``score``: each fold predicted with weights that have not seen its labels; None with a single fold.
    ``fold_weights``: fold → the weights (M,) used on it. A score is nan where the metric is undefined.
    """

    weights: Weights
    plain: Floats
    plain_score: float
    values: Floats | None = None
    score: float | None = None
    fold_weights: dict[int, Weights] = field(default_factory=dict)


def check_method(method: BlendMethod, task: Task, metric: Metric) -> None:
    """Raises BadInput when ``method`` cannot blend this task; warns where it can but should not."""
    _refuse(method, task)
    if method != "rank_mean":
        return
    if metric.needs != "probability":
        warn(
            f"rank_mean keeps only the order of images, but '{metric.name}' needs answers: thresholds lose their meaning"
        )
    elif any(name in metric.name for name in NEEDS_CALIBRATION):
        warn(f"rank_mean keeps only the order of images, but '{metric.name}' needs calibrated probabilities")


def fit(method: BlendMethod, members: Sequence[Floats], targets: Floats, task: Task, metric: Metric) -> Weights:
    """The weights (M,) of ``members``, M arrays (N, C), for ``targets`` (N, C): not negative, summing to 1.

    ``mean``, ``gmean`` and ``rank_mean`` weigh members equally. ``greedy`` is ensemble selection with replacement
    (Caruana, Niculescu-Mizil, Crew and Ksikes, ICML 2004): from the best member on, up to 25 times add the member that
    helps most (or hurts least), then keep the best prefix; ties go to the earlier member and to the shorter prefix.

    ``simplex`` is a direct (compass) search, which needs no gradient and so works for any metric: from equal weights and
    from the best single member, move mass between pairs of members in steps of 0.25, 0.1, 0.05, 0.02 and 0.01, and
    accept improvements only. It is deterministic. On a tie nothing moves and equal weights win, so a metric that cannot
    tell members apart leaves them equal.

    Where the metric is undefined (nan) for every candidate, weights stay equal. Raises BadInput for arrays that do not
    match, or a method that does not suit the task.
    """
    _refuse(method, task)
    _check_shapes(members, targets.shape)
    count = len(members)
    if count == 1 or method in ("mean", "gmean", "rank_mean"):
        return np.full(count, 1 / count)

    def quality(values: Floats) -> float:
        value = score(metric, task, targets, values)
        if np.isnan(value):
            return -np.inf
        return value if metric.greater_is_better else -value

    singles = [quality(member) for member in members]
    return _greedy(members, quality, singles) if method == "greedy" else _simplex(members, quality, singles)


def apply(method: BlendMethod, members: Sequence[Floats], weights: Weights, task: Task) -> Floats:
    """The blend (N, C) float32 of ``members``, M arrays (N, C), under ``weights`` (M,).

    ``gmean`` clips probabilities at 1e-7 from below, so that one member's zero is no veto. ``rank_mean`` replaces each
    column by its ranks among the given rows, (rank - 0.5) / N with ties averaged; its answers therefore depend on
    which rows are blended together. Rows are renormalised where they must sum to 1.
    """
    _refuse(method, task)
    _check_shapes(members, members[0].shape if members else (0, 0))
    if weights.shape != (len(members),):
        raise BadInput("ensemble", f"weights of shape {weights.shape} for {len(members)} members")
    total = np.zeros(members[0].shape, dtype=np.float64)
    # One member after the other: a matrix product would sum in an order that depends on the number of threads.
    for weight, member in zip(weights, members, strict=True):
        if weight == 0:
            continue
        if method == "gmean":
            total += weight * np.log(np.maximum(member.astype(np.float64), EPS))
        elif method == "rank_mean":
            total += weight * ((rankdata(member, method="average", axis=0) - 0.5) / max(len(member), 1))
        else:
            total += weight * member
    return task.normalise(np.exp(total) if method == "gmean" else total)


def cross_fit(
    method: BlendMethod, members: Sequence[Floats], targets: Floats, folds: Ints, task: Task, metric: Metric
) -> CrossFit:
    """Fit and score a blend twice: on all rows, and for each fold with weights fitted on the other folds' rows.

    ``members``: M arrays (N, C) of out-of-fold predictions; ``targets`` (N, C); ``folds`` (N,). The first score judges
    weights on the labels that chose them and flatters; the second does not. One small debt remains, as in all stacking
    on shared folds: the models behind the other folds' predictions have themselves trained on fold k.

    ``rank_mean`` ranks fold k's rows among themselves, as the test images will be ranked among themselves.

    With one fold there are no other rows to fit on: ``values`` and ``score`` are None, and a warning says so.
    """
    check_method(method, task, metric)
    weights = fit(method, members, targets, task, metric)
    plain = apply(method, members, weights, task)
    plain_score = score(metric, task, targets, plain)
    numbers = [int(number) for number in np.unique(folds)]
    if len(numbers) < 2:
        warn("the members have one fold only: an ensemble's score cannot be cross-fitted and is optimistic")
        return CrossFit(weights, plain, plain_score)
    values = np.empty(targets.shape, dtype=np.float32)
    fold_weights = {}
    for number in progress(numbers, f"cross-fitting {method}", len(numbers), "fold"):
        held = folds == number
        rest = ~held
        found = fit(method, [member[rest] for member in members], targets[rest], task, metric)
        values[held] = apply(method, [member[held] for member in members], found, task)
        fold_weights[number] = found
    return CrossFit(weights, plain, plain_score, values, score(metric, task, targets, values), fold_weights)


def _refuse(method: BlendMethod, task: Task) -> None:
    if task.name == "regression" and method in ("gmean", "rank_mean"):
        why = "values may be negative" if method == "gmean" else "ranks are not values"
        raise BadInput(
            "ensemble method", f"'{method}' cannot blend a regression ({why})", "use mean, simplex or greedy"
        )


def _check_shapes(members: Sequence[Floats], shape: tuple[int, ...]) -> None:
    if not members:
        raise BadInput("ensemble", "there are no members", "name at least one run")
    for number, member in enumerate(members):
        if member.shape != shape or len(shape) != 2:
            raise BadInput("ensemble", f"member {number} has the shape {member.shape}, expected {shape}")


def _gains(new: float, old: float) -> bool:
    if old == -np.inf:
        return new > old
    return new - old > SMALLEST_GAIN * max(abs(old), abs(new))


def _weighted(members: Sequence[Floats], weights: Weights) -> Floats:
    total = np.zeros(members[0].shape, dtype=np.float64)
    for weight, member in zip(weights, members, strict=True):
        if weight != 0:
            total += weight * member
    return total.astype(np.float32)


def _first_best(qualities: Sequence[float]) -> int:
    best = 0
    for number, quality in enumerate(qualities):
        if _gains(quality, qualities[best]):
            best = number
    return best


def _greedy(members: Sequence[Floats], quality: Quality, singles: list[float]) -> Weights:
    if max(singles) == -np.inf:
        return np.full(len(members), 1 / len(members))
    picks = [_first_best(singles)]
    total = members[picks[0]].astype(np.float64)
    best, length = singles[picks[0]], 1
    for size in range(2, PICKS + 1):
        qualities = [quality(((total + member) / size).astype(np.float32)) for member in members]
        pick = _first_best(qualities)
        picks.append(pick)
        total += members[pick]
        if _gains(qualities[pick], best):
            best, length = qualities[pick], size
    counts = np.bincount(picks[:length], minlength=len(members))
    return counts.astype(np.float64) / length


def _simplex(members: Sequence[Floats], quality: Quality, singles: list[float]) -> Weights:
    equal = np.full(len(members), 1 / len(members))
    best, reached = _climb(members, quality, equal, quality(_weighted(members, equal)))
    single = _first_best(singles)
    weights, found = _climb(members, quality, np.eye(len(members))[single], singles[single])
    return weights if _gains(found, reached) else best


def _climb(members: Sequence[Floats], quality: Quality, start: Weights, reached: float) -> tuple[Weights, float]:
    weights, blend = start.copy(), _weighted(members, start)
    for step in STEPS:
        for _ in range(SWEEPS):
            moved = False
            for giver in range(len(members)):
                for taker in range(len(members)):
                    if giver == taker or weights[giver] == 0:
                        continue
                    # What would be left must not be a crumb of rounding.
                    mass = step if weights[giver] - step > SMALLEST_GAIN else float(weights[giver])
                    if not _gains(quality(blend + np.float32(mass) * (members[taker] - members[giver])), reached):
                        continue
                    trial = weights.copy()
                    trial[giver] = 0.0 if mass == weights[giver] else weights[giver] - mass
                    trial[taker] += mass
                    trial /= trial.sum()
                    # The blend is summed anew, so that the score is that of the weights and not of rounding errors.
                    fresh = _weighted(members, trial)
                    value = quality(fresh)
                    if _gains(value, reached):
                        weights, blend, reached, moved = trial, fresh, value, True
            if not moved:
                break
    return weights, reached
