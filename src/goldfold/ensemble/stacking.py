"""Stacking: a regression on the members' predictions (Wolpert, 1992), with a penalty chosen by inner cross-validation.

| task | features of member m | regression | gives |
|---|---|---|---|
| binary, multilabel | the log-odds of the label | logistic, each label by itself | probability of the label |
| multiclass, ordinal | the log-probabilities of all classes | multinomial logistic | probabilities of the classes |
| the same, above 600 features | the log-odds of the class | logistic, each class against the rest | those, renormalised |
| regression | the value of the target | ridge, each target by itself | value |

An ordinal task is stacked as classes, because a row of probabilities must come out: its expected grade follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from goldfold.ensemble.rows import Stack
from goldfold.progress import warn
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Doubles = npt.NDArray[np.float64]

EPS = 1e-7
FIT_ROWS = 20_000
CHOICE_ROWS = 2_000
FEATURES = 600
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""scikit-learn's C: the prior variance of a coefficient, which does not depend on the number of rows."""
SHRINKAGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties on the squared distance of the coefficients from equal weights, for targets of variance 1."""
INNER = 3


@dataclass(frozen=True, eq=False)
class Fitted:
    """Coefficients of M members: (C, M), each column of its own predictions, or (C, M, C) of all; intercept (C,)."""

    coefficients: Doubles
    intercept: Doubles


def fit_stacking(stack: Stack, rows: Ints, task: Task) -> Fitted:
    """The regression of ``rows`` (ordered) of a stack, by scikit-learn.

    Logistic regression has an L2 penalty whose C, of 0.0001 to 0.1, has the best log loss in 3 inner folds of these
    rows; it fits log loss whatever the competition's metric is. Ridge regression shrinks towards the plain mean of the
    members (scikit-learn's leave-one-out chooses how much). At most 20,000 rows are fitted, 2,000 for the choice of C.

    A label with one value only, or a class that no row has, cannot be fitted: coefficients are then 1/M, the geometric
    mean, for that label (or for all classes), and a warning says so.
    """
    rows = stack.sample(rows, task, FIT_ROWS)
    with threadpool_limits(limits=1):  # a matrix product's last bits depend on the number of threads
        if task.name == "regression":
            return _ridge(stack, rows)
        if task.name in ("binary", "multilabel") or len(stack.members) * len(task.classes) > FEATURES:
            return _by_column(stack, rows, task)
        return _multinomial(stack, rows, task)


def predict(fitted: Fitted, values: Sequence[Floats], task: Task) -> Doubles:
    """The regression's (N, C) predictions for M arrays (N, C) in the order of its members. Rows may need normalising."""
    total = np.zeros(values[0].shape, dtype=np.float64)
    total += fitted.intercept
    full = fitted.coefficients.ndim == 3
    # Term by term: a matrix product's last bits depend on the number of threads and on which rows come together.
    for number, member in enumerate(values):
        if task.name == "regression":
            total += fitted.coefficients[:, number] * member
        elif not full:
            total += fitted.coefficients[:, number] * _odds(member)
        else:
            logs = _logs(member)
            for column in range(logs.shape[1]):
                total += fitted.coefficients[:, number, column] * logs[:, column, None]
    if task.name == "regression":
        return total
    if not full:
        return np.exp(-np.logaddexp(0, -total))
    powers = np.exp(total - total.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def shares(fitted: Fitted) -> Doubles:
    """Each member's share (M,) of the absolute coefficients; equal where all are 0."""
    sizes = np.abs(fitted.coefficients).sum(axis=0)
    sizes = sizes.reshape(len(sizes), -1).sum(axis=1)
    total = sizes.sum()
    return sizes / total if total > 0 else np.full(len(sizes), 1 / len(sizes))


def _logs(values: Floats) -> Doubles:
    return np.log(np.maximum(values.astype(np.float64), EPS))


def _odds(values: Floats) -> Doubles:
    kept = values.astype(np.float64).clip(EPS, 1 - EPS)
    return np.log(kept) - np.log1p(-kept)


def _multinomial(stack: Stack, rows: Ints, task: Task) -> Fitted:
    count, width = len(stack.members), len(task.classes)
    truth = task.class_index(stack.targets[rows])
    seen = np.bincount(truth, minlength=width)
    if (seen == 0).any():
        lacking = task.classes[int(np.argmin(seen))]
        warn(f"stacking: no row of the class '{lacking}' to fit on, so the members are weighed equally")
        return Fitted(np.repeat(np.eye(width)[:, None, :], count, axis=1) / count, np.zeros(width))
    features = np.concatenate([_logs(member[rows]) for member in stack.members], axis=1)
    coefficients, intercept = _logistic(features, truth, stack, rows, task)
    if width == 2:
        # scikit-learn gives the log-odds of the second class alone.
        coefficients, intercept = (
            np.concatenate([-coefficients, coefficients]) / 2,
            np.append(-intercept, intercept) / 2,
        )
    return Fitted(coefficients.reshape(width, count, width), intercept)


def _by_column(stack: Stack, rows: Ints, task: Task) -> Fitted:
    count, width = len(stack.members), len(task.classes)
    coefficients, intercept = np.full((width, count), 1 / count), np.zeros(width)
    if task.name in ("binary", "multilabel"):
        truth = (stack.targets[rows] >= 0.5).astype(np.int64)
    else:
        truth = np.eye(width, dtype=np.int64)[task.class_index(stack.targets[rows])]
    for column in range(width):
        if len(np.unique(truth[:, column])) < 2:
            warn(
                f"stacking: every row has the same label for '{task.classes[column]}', so the members are weighed equally there"
            )
            continue
        features = np.stack([_odds(member[rows, column]) for member in stack.members], axis=1)
        found, start = _logistic(features, truth[:, column], stack, rows, task)
        coefficients[column], intercept[column] = found[0], start[0]
    return Fitted(coefficients, intercept)


def _logistic(features: Doubles, truth: Ints, stack: Stack, rows: Ints, task: Task) -> tuple[Doubles, Doubles]:
    """Coefficients (K, F) and intercept (K,) for features (N, F), under the best of ``PENALTIES``."""
    from sklearn.linear_model import LogisticRegression

    def fitted(chosen: npt.NDArray[np.bool_] | Ints, penalty: float) -> LogisticRegression:
        # Newton's method for two classes: few features, exact in a handful of steps.
        solver = "lbfgs" if truth.max() > 1 else "newton-cholesky"
        return LogisticRegression(C=penalty, solver=solver, tol=1e-3, max_iter=2000).fit(
            features[chosen], truth[chosen]
        )

    chosen = np.searchsorted(stack.keys[rows], stack.keys[stack.sample(rows, task, CHOICE_ROWS)])
    best = PENALTIES[1]
    if np.bincount(truth[chosen], minlength=truth.max() + 1)[np.unique(truth)].min() >= INNER:
        inner = np.empty(len(chosen), dtype=np.int64)
        for number in np.unique(truth):
            own = truth[chosen] == number
            inner[own] = np.arange(int(own.sum())) % INNER
        losses = []
        for penalty in PENALTIES:
            total = 0.0
            for fold in range(INNER):
                held = chosen[inner == fold]
                odds = fitted(chosen[inner != fold], penalty).predict_log_proba(features[held])
                total -= float(odds[np.arange(len(held)), truth[held]].sum())
            losses.append(total)
        best = PENALTIES[int(np.argmin(losses))]
    model = fitted(np.arange(len(rows)), best)
    return model.coef_.astype(np.float64), model.intercept_.astype(np.float64)


def _ridge(stack: Stack, rows: Ints) -> Fitted:
    from sklearn.linear_model import RidgeCV

    count, width = len(stack.members), stack.targets.shape[1]
    coefficients, intercept = np.full((width, count), 1 / count), np.zeros(width)
    if len(rows) < INNER:
        return Fitted(coefficients, intercept)
    for target in range(width):
        truth = stack.targets[rows, target].astype(np.float64)
        features = np.stack([member[rows, target] for member in stack.members], axis=1).astype(np.float64)
        spread = truth.std()
        if spread == 0:
            continue
        # What the plain mean leaves over, so that the penalty pulls towards equal weights.
        model = RidgeCV(alphas=SHRINKAGES).fit(features / spread, (truth - features.mean(axis=1)) / spread)
        coefficients[target] += model.coef_
        intercept[target] = model.intercept_ * spread
    return Fitted(coefficients, intercept)
