"""Ways to blend members' predictions, and ``Blend``: a fitted one, which can be stored and applied to other rows.

| method | blend | fitted |
|---|---|---|
| ``mean`` | arithmetic mean | nothing: equal weights |
| ``gmean`` | geometric mean | nothing: equal weights |
| ``rank_mean`` | mean of each column's ranks | nothing: equal weights |
| ``simplex`` | weighted mean | weights on the simplex, for the metric (``simplex.py``) |
| ``greedy`` | weighted mean | selection with replacement and bagging (Caruana et al., 2004; ``greedy.py``) |
| ``stacking`` | logistic or ridge regression on the members | coefficients (``stacking.py``) |

All but stacking give a member one weight for all its classes, so a row of probabilities stays a row of probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import stacking
from goldfold.ensemble.greedy import fit_greedy
from goldfold.ensemble.rows import Stack
from goldfold.ensemble.simplex import fit_simplex
from goldfold.errors import BadInput, some
from goldfold.metrics import Metric
from goldfold.progress import warn
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Weights = npt.NDArray[np.float64]
Doubles = npt.NDArray[np.float64]

EPS = 1e-7
LINEAR: tuple[BlendMethod, ...] = ("mean", "simplex", "greedy")
"""Weighted arithmetic means of the members."""
NEEDS_CALIBRATION = ("log_loss", "brier", "top5")


@dataclass(frozen=True, eq=False)
class Blend:
    """A fitted blend of ``members`` (their names, in the order in which values are given).

    ``weights`` (M,): not negative, summing to 1. For stacking they only tell: each member's share of the absolute
    coefficients. ``coefficients`` and ``intercept`` belong to stacking alone (``stacking.Fitted`` has their shapes).
    ``by_column``: ranks for a metric of each column's order, which stay as they are. Raises BadInput when the parts do not belong together.
    """

    method: BlendMethod
    members: tuple[str, ...]
    weights: Weights
    coefficients: Doubles | None = None
    intercept: Doubles | None = None
    by_column: bool = False

    def __post_init__(self) -> None:
        _check_names(self.members)
        if self.weights.shape != (len(self.members),):
            raise BadInput("ensemble", f"weights of shape {self.weights.shape} for {len(self.members)} members")
        # Written so that NaN is refused too.
        if not ((self.weights >= 0).all() and abs(self.weights.sum() - 1) < 1e-6):
            raise BadInput("ensemble", f"weights that sum to {self.weights.sum():g}, or are negative")
        if (self.method == "stacking") != (self.coefficients is not None) or (
            (self.coefficients is None) != (self.intercept is None)
        ):
            raise BadInput("ensemble", "stacking, and no other method, has coefficients and an intercept")

    @property
    def linear(self) -> bool:
        """Whether the blend is a weighted arithmetic mean of its members."""
        return self.method in LINEAR

    def apply(self, values: Sequence[Floats], task: Task) -> Floats:
        """The blend (N, C) float32 of ``values``, M arrays (N, C) in the order of ``members``.

        ``gmean`` clips probabilities at 1e-7 from below, so that one member's zero is no veto. ``rank_mean`` replaces
        each column by its ranks among the given rows, (rank - 0.5) / N with ties averaged; its answers therefore
        depend on which rows are blended together. Rows are renormalised where they must sum to 1, except ``by_column``:
        dividing each row by its own sum would put the images of a column into another order. Raises BadInput for values
        that do not match the members.
        """
        _refuse(self.method, task)
        if len(values) != len(self.members):
            raise BadInput("ensemble", f"values of {len(values)} members for a blend of {len(self.members)}")
        check_shapes(values, (len(values[0]), len(task.classes)))
        # By name, so that the last bit does not depend on the order in which members are listed.
        order = by_name(self.members)
        values, weights = [values[number] for number in order], self.weights[order]
        if self.coefficients is not None and self.intercept is not None:
            fitted = stacking.Fitted(self.coefficients[:, order], self.intercept)
            return task.normalise(stacking.predict(fitted, values, task))
        total = np.zeros(values[0].shape, dtype=np.float64)
        # One member after the other: a matrix product would sum in an order that depends on the number of threads.
        for weight, member in zip(weights, values, strict=True):
            if weight == 0:
                continue
            if self.method == "gmean":
                clipped = np.maximum(member.astype(np.float64), EPS)
                total += weight * np.log(clipped)
                if task.activation == "sigmoid":  # the other side of a yes or no has a mean of its own
                    total -= weight * np.log(np.maximum(1 - clipped, EPS))
            elif self.method == "rank_mean":
                total += weight * ((ranks(member) - 0.5) / max(len(member), 1))
            else:
                total += weight * member
        if self.method == "gmean":
            total = expit(total) if task.activation == "sigmoid" else np.exp(total)
        return total.astype(np.float32) if self.by_column else task.normalise(total)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict`` gives the same blend, bit for bit."""
        return {
            "method": self.method,
            "members": list(self.members),
            "weights": self.weights.tolist(),
            "coefficients": None if self.coefficients is None else self.coefficients.tolist(),
            "intercept": None if self.intercept is None else self.intercept.tolist(),
            "by_column": self.by_column,
        }

    @staticmethod
    def from_dict(record: dict[str, Any], where: object = "ensemble.json") -> Blend:
        """The blend of ``to_dict``. Raises BadInput when the record is not one."""
        try:
            method = record["method"]
            if method not in get_args(BlendMethod):
                raise BadInput(where, f"unknown blend method '{method}'")
            parts = [record[name] for name in ("weights", "coefficients", "intercept")]
            weights, coefficients, intercept = (
                None if part is None else np.array(part, dtype=np.float64) for part in parts
            )
            if weights is None:
                raise BadInput(where, "a blend without weights")
            by_column = bool(record.get("by_column", False))  # older records have none
            return Blend(method, tuple(record["members"]), weights, coefficients, intercept, by_column)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                where, f"not a stored blend ({type(error).__name__}: {error})", "delete it and run again"
            ) from None


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


def fit(
    method: BlendMethod,
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    task: Task,
    metric: Metric,
    seed: int = 0,
    bags: int | None = None,
) -> Blend:
    """The blend of ``members``, M arrays (N, C) float32 called ``names``, that is best for ``targets`` (N, C).

    ``mean``, ``gmean`` and ``rank_mean`` weigh members equally; ``simplex.fit_simplex``, ``greedy.fit_greedy`` and
    ``stacking.fit_stacking`` say what the others do. The order of members or of rows changes nothing, to the last bit;
    ``seed`` chooses the bags of ``greedy`` and the rows that searches and stacking look at when there are very many;
    ``bags``: how many ``greedy`` draws (None: as ``fit_greedy`` chooses).
    A metric that is undefined (nan) for every candidate leaves the weights of ``simplex`` and ``greedy`` equal. Raises
    BadInput for arrays that do not match, names that are not unique, or a method that does not suit the task.
    """
    return fit_rows(method, names, stack(names, members, targets, seed), task, metric, bags=bags)


def stack(names: Sequence[str], members: Sequence[Floats], targets: Floats, seed: int) -> Stack:
    """The members side by side, by name. Raises BadInput for arrays that do not match or names that are not unique."""
    _check_names(names)
    if len(names) != len(members):
        raise BadInput("ensemble", f"{len(names)} names for {len(members)} members")
    check_shapes(members, targets.shape)
    return Stack.of([members[number] for number in by_name(names)], targets, seed)


def fit_rows(
    method: BlendMethod,
    names: Sequence[str],
    stacked: Stack,
    task: Task,
    metric: Metric,
    rows: Ints | None = None,
    bags: int | None = None,
) -> Blend:
    """``fit`` on some ``rows`` of a ``stack`` of the members called ``names`` (default: all); sees no other row."""
    _refuse(method, task)
    given = stacked.ordered(rows)
    count = len(names)
    fitted: stacking.Fitted | None = None
    weights = np.full(count, 1 / count)
    if method == "stacking":
        fitted = stacking.fit_stacking(stacked, given, task)
        weights = stacking.shares(fitted)
    elif count > 1 and len(given) and method == "simplex":
        weights = fit_simplex(stacked, given, task, metric)
    elif count > 1 and len(given) and method == "greedy":
        weights = fit_greedy(stacked, given, task, metric, bags)
    back = np.argsort(by_name(names))  # from the order of names to the order in which they were given
    if fitted is None:
        by_column = method == "rank_mean" and metric.by_column
        return Blend(method, tuple(names), weights[back], by_column=by_column)
    return Blend(method, tuple(names), weights[back], fitted.coefficients[:, back], fitted.intercept)


def ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Each column's ranks from 1 to N, ties at their mean: (N, C) → (N, C)."""
    return pd.DataFrame(values).rank(method="average").to_numpy(dtype=np.float64)


def by_name(names: Sequence[str]) -> Ints:
    """The positions of ``names`` in the order of the names."""
    return np.array(sorted(range(len(names)), key=lambda number: names[number]), dtype=np.int64)


def check_shapes(members: Sequence[Floats], shape: tuple[int, ...]) -> None:
    """Raises BadInput unless every one of at least one array has ``shape``, (N, C)."""
    if not members:
        raise BadInput("ensemble", "there are no members", "name at least one run")
    for number, member in enumerate(members):
        if member.shape != shape or len(shape) != 2:
            raise BadInput("ensemble", f"member {number} has the shape {member.shape}, expected {shape}")


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise BadInput("ensemble", "there are no members", "name at least one run")
    doubled = sorted({name for name in names if list(names).count(name) > 1})
    if doubled:
        raise BadInput("ensemble", f"members are named twice: {some(doubled)}", "name each run once")


def _refuse(method: BlendMethod, task: Task) -> None:
    if task.name == "regression" and method in ("gmean", "rank_mean"):
        why = "values may be negative" if method == "gmean" else "ranks are not values"
        raise BadInput(
            "ensemble method", f"'{method}' cannot blend a regression ({why})", "use mean, simplex, greedy or stacking"
        )
