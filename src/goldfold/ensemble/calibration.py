"""Calibration of a blend's probabilities by temperature (Guo, Pleiss, Sun and Weinberger, ICML 2017).

``temperature`` divides all log-probabilities (logits, where a class is answered by itself) by one number;
``class_temperature`` by a number a class: vector scaling without its biases. One temperature above 1 makes predictions
less sure; of one a class, those above 1 also raise their class, since logarithms of probabilities are below 0.
A class without a row of its own, or with no other, has nothing to be fitted on, and keeps a temperature of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from goldfold.config.schema import BlendMethod, CalibrationMethod
from goldfold.errors import BadInput
from goldfold.records import Floats
from goldfold.tasks import Task

Doubles = npt.NDArray[np.float64]

EPS = 1e-7
COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature; rows without an error would have it fall to nothing."""


@dataclass(frozen=True)
class Calibration:
    """Fitted temperatures: one, or one a class in the order of the classes."""

    temperatures: tuple[float, ...]

    def apply(self, values: Floats, task: Task) -> Floats:
        """(N, C) probabilities, calibrated; float32, rows summing to 1 where a row has one of several classes."""
        logits = _logits(values, task)
        logits /= np.array(self.temperatures)
        return task.normalise(softmax(logits, axis=1) if _exclusive(task) else expit(logits))

    def to_dict(self) -> dict[str, Any]:
        return {"temperatures": list(self.temperatures)}

    @staticmethod
    def from_dict(record: Any, task: Task, where: object = "ensemble.json") -> Calibration:
        """The calibration of ``to_dict``. Raises BadInput when the record is not one, or belongs to another task."""
        try:
            found = tuple(float(value) for value in record["temperatures"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                where, f"not a stored calibration ({type(error).__name__}: {error})", "delete it and run again"
            ) from None
        if len(found) not in (1, len(task.classes)) or not all(0 < value < np.inf for value in found):
            raise BadInput(where, f"{len(found)} temperatures do not suit {len(task.classes)} classes")
        return Calibration(found)


def check_calibration(method: CalibrationMethod, blend: BlendMethod, task: Task) -> None:
    """Raises BadInput when the values of this task and blend cannot be calibrated, or the key would do nothing."""
    if method == "none":
        return
    if task.name == "regression":
        raise BadInput("calibration", "a regression has no probabilities to calibrate", "use calibration: none")
    if blend == "rank_mean":
        raise BadInput("calibration", "rank_mean gives ranks, which are no probabilities", "use another method or none")
    if method == "class_temperature" and len(task.classes) == 1:
        raise BadInput("calibration", "there is one column of probabilities", "use calibration: temperature")


def fit_calibration(method: CalibrationMethod, values: Floats, targets: Floats, task: Task) -> Calibration | None:
    """The temperatures that minimise the log loss of ``values`` (N, C) against ``targets`` (N, C); None for ``none``.

    The loss is convex in one over the temperature, so there is one minimum. Probabilities are clipped at 1e-7.
    """
    if method == "none":
        return None
    logits = _logits(values, task)
    truth = targets.astype(np.float64)
    if method == "temperature":
        return Calibration((_one(logits, truth, _exclusive(task)),))
    if _exclusive(task):
        return Calibration(_for_classes(logits, truth))
    columns = range(len(task.classes))
    return Calibration(tuple(_one(logits[:, [c]], truth[:, [c]], False) for c in columns))


def _exclusive(task: Task) -> bool:
    return task.name in ("multiclass", "ordinal")


def _logits(values: Floats, task: Task) -> Doubles:
    clipped = np.clip(values.astype(np.float64), EPS, 1 - EPS)
    logits = np.log(clipped)
    if not _exclusive(task):
        logits -= np.log1p(-clipped)
    return logits


def _one(logits: Doubles, truth: Doubles, exclusive: bool) -> float:
    # With one label alone the coldest temperature would always be best.
    if (truth == truth[:1]).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if exclusive:
            return -float((truth * log_softmax(scaled, axis=1)).sum()) / len(truth)
        return -float((truth * log_expit(scaled) + (1 - truth) * log_expit(-scaled)).mean())

    found = minimize_scalar(
        loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-5, "maxiter": 100}
    )
    return float(np.exp(found.x))


def _for_classes(logits: Doubles, truth: Doubles) -> tuple[float, ...]:
    totals = truth.sum(axis=1, keepdims=True)

    def loss(inverse: Doubles) -> tuple[float, Doubles]:
        logs = log_softmax(logits * inverse, axis=1)
        slopes = ((np.exp(logs) * totals - truth) * logits).sum(axis=0)
        return -float((truth * logs).sum()) / len(truth), slopes / len(truth)

    count = logits.shape[1]
    seen = truth.sum(axis=0)
    bounds = [(1 / HOTTEST, 1 / COLDEST) if 0 < rows < len(truth) else (1.0, 1.0) for rows in seen]
    found = minimize(loss, np.ones(count), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
    return tuple(float(1 / value) for value in found.x)
