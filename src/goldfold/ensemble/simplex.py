"""Weights on the simplex for any metric: by gradient where the metric is smooth, else by a search from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from goldfold.ensemble.rows import Stack
from goldfold.ensemble.search import SMALLEST_GAIN, Quality, Weights, drawn, first_best, gains, weighted
from goldfold.metrics import Metric
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Doubles = npt.NDArray[np.float64]
Smooth = Callable[[Weights], tuple[float, Doubles]]
"""Weights (M,) → a loss to be made small, and its gradient (M,)."""

STEPS = (0.25, 0.1, 0.05, 0.02, 0.01)
SWEEPS = 20
SMOOTH_NUMBERS = 30_000_000
"""The smooth losses look at so many of the members' numbers at most (240 MB)."""
CRUMB = 1e-4
"""A smaller weight changes no answer and costs an inference: it becomes 0."""
# As scikit-learn's log loss clips.
TINY = float(np.finfo(np.float64).eps)


def fit_simplex(stack: Stack, rows: Ints, task: Task, metric: Metric) -> Weights:
    """The weights (M,), not negative and summing to 1, of a stack's members that are best for the metric of ``rows``.

    ``log_loss``, and for regression ``rmse`` and ``r2``, are smooth and convex in the weights (``rmse`` squared for one
    target): SLSQP (Kraft, 1988) with the gradient finds the optimum from equal weights, over all rows as long as
    members × rows is below 30 million numbers.

    Any other metric gets a direct (compass) search, which needs no gradient: it starts from the best of equal weights,
    the optimum of the log loss (of the squared error for regression) and the best single member, moves mass towards or
    away from one member at a time in steps of 0.25, 0.1, 0.05, 0.02 and 0.01, and accepts improvements only. Moves
    towards each of the members span every direction that stays on the simplex. Of more than 10,000 rows it scores a
    stratified sample.

    Both are deterministic. On a tie nothing moves and equal weights win, so a metric that cannot tell members apart
    leaves them equal, and so does one that is undefined throughout.
    """
    warm = _smooth_optimum(stack, rows, task, metric)
    if metric.name == "log_loss" or (task.name == "regression" and metric.name in ("rmse", "r2")):
        return warm
    members, quality = drawn(stack, rows, task, metric)
    count = len(members)
    starts = [np.full(count, 1 / count), warm, *np.eye(count)]
    qualities = [quality(weighted(members, start)) for start in starts]
    best = first_best(qualities)
    if qualities[best] == -np.inf:
        return starts[0]
    return _climb(members, quality, starts[best], qualities[best])


def _smooth_optimum(stack: Stack, rows: Ints, task: Task, metric: Metric) -> Weights:
    count = len(stack.members)
    rows = stack.sample(rows, task, max(SMOOTH_NUMBERS // (count * _width(task)), 1))
    equal = np.full(count, 1 / count)
    loss = _squares(stack, rows, metric) if task.name == "regression" else _likelihood(stack, rows, task)
    before, slope = loss(equal)
    # A constant truth has no R², and members that are all perfect or all alike leave nothing to choose.
    if not np.isfinite(before) or np.ptp(slope) <= SMALLEST_GAIN * max(abs(before), TINY):
        return equal
    with threadpool_limits(limits=1):  # the last bits of SciPy's linear algebra depend on the number of threads
        found = minimize(
            loss,
            equal,
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)},
            options={"ftol": 1e-12, "maxiter": 300},
        ).x
    weights = np.where(found < CRUMB, 0.0, found)
    weights /= weights.sum()
    return weights if gains(-loss(weights)[0], -before) else equal


def _likelihood(stack: Stack, rows: Ints, task: Task) -> Smooth:
    """The log loss of a blend. Its weights sum to 1, so it is that of the blended probabilities of what is true."""
    columns = np.empty((len(stack.members), len(rows) * _width(task)))
    if task.name in ("binary", "multilabel"):
        truth = stack.targets[rows] >= 0.5
        for number, member in enumerate(stack.members):
            values = member[rows]
            columns[number] = np.where(truth, values, 1 - values).ravel()
    else:
        classes = task.class_index(stack.targets[rows])
        for number, member in enumerate(stack.members):
            values = member[rows]
            own = np.take_along_axis(values, classes[:, None], axis=1)[:, 0]
            columns[number] = own / np.maximum(values.sum(axis=1), TINY)

    def loss(weights: Weights) -> tuple[float, Doubles]:
        # einsum adds up in one thread; a matrix product's last bits would depend on the number of threads.
        blended = np.maximum(np.einsum("m,mn->n", weights, columns), TINY)
        return -float(np.log(blended).mean()), -np.einsum("mn,n->m", columns, 1 / blended) / len(blended)

    return loss


def _width(task: Task) -> int:
    return len(task.classes) if task.name in ("binary", "multilabel") else 1


def _squares(stack: Stack, rows: Ints, metric: Metric) -> Smooth:
    """The squared error of a blend from the members' error products (T, M, M); its root, summed, for ``rmse`` of T > 1."""
    targets = stack.targets[rows].astype(np.float64)
    count, width = len(stack.members), targets.shape[1]
    products = np.empty((width, count, count))
    for target in range(width):
        errors = np.stack([member[rows, target] - targets[:, target] for member in stack.members])
        for one in range(count):
            products[target, one] = np.einsum("mn,n->m", errors, errors[one]) / max(len(rows), 1)
    # In units of the target's spread (R² weighs targets so) or of the equal blend's error, for a loss of about 1.
    spread = targets.var(axis=0) if metric.name == "r2" else np.full(width, products.mean() or 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        products /= spread[:, None, None]
    rooted = metric.name == "rmse" and width > 1

    def loss(weights: Weights) -> tuple[float, Doubles]:
        slopes = np.einsum("tij,j->ti", products, weights)
        squares = slopes @ weights
        if not rooted:
            return float(squares.mean()), 2 * slopes.mean(axis=0)
        roots = np.sqrt(np.maximum(squares, TINY))
        return float(roots.mean()), (slopes / roots[:, None]).mean(axis=0)

    return loss


def _climb(members: Sequence[Floats], quality: Quality, start: Weights, reached: float) -> Weights:
    weights, blend = start, weighted(members, start)
    for step in STEPS:
        for _ in range(SWEEPS):
            moved = False
            for number, member in enumerate(members):
                for mass in (step, -min(step, float(weights[number]))):
                    # All the mass has no other member to go to, and none is no move.
                    if mass == 0 or 1 + mass <= SMALLEST_GAIN:
                        continue
                    share = mass if mass > 0 else mass / (1 + mass)
                    if not gains(quality(blend + np.float32(share) * (member - blend)), reached):
                        continue
                    trial = (1 - share) * weights
                    trial[number] = weights[number] + share * (1 - weights[number])
                    trial = np.where(trial < SMALLEST_GAIN, 0.0, trial)
                    trial /= trial.sum()
                    # The blend is summed anew, so that the score is that of the weights and not of rounding errors.
                    fresh = weighted(members, trial)
                    value = quality(fresh)
                    if gains(value, reached):
                        weights, blend, reached, moved = trial, fresh, value, True
            if not moved:
                break
    return weights
