"""The rows that a model is most wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goldfold.records import Floats
from goldfold.tasks import Task

EPS = 1e-7


@dataclass(frozen=True)
class Mistake:
    """``loss``: how wrong the prediction is (larger is worse); ``caption``: the truth and the answer, for people."""

    id: str
    loss: float
    caption: str


def worst_mistakes(task: Task, ids: Sequence[str], targets: Floats, values: Floats, most: int) -> list[Mistake]:
    """Up to ``most`` of the rows whose answer is wrong, the worst first; of a regression the largest errors.

    ``targets``, ``values``: (N, C). The loss is the log loss of the row (summed over the labels of a multilabel task), the
    distance of the expected grade, or the mean error in standard deviations of the targets.
    """
    losses = _losses(task, targets, values)
    wrong = _wrong(task, targets, values)
    order = np.argsort(-losses, kind="stable")
    rows = [int(row) for row in order if wrong[row]][:most]
    return [Mistake(ids[row], float(losses[row]), _caption(task, targets[row], values[row])) for row in rows]


def _losses(task: Task, targets: Floats, values: Floats) -> npt.NDArray[np.float64]:
    if task.name == "regression":
        scale = np.maximum(targets.std(axis=0, dtype=np.float64), EPS)
        return (np.abs(values.astype(np.float64) - targets) / scale).mean(axis=1)
    if task.name == "ordinal":
        return np.abs(task.expected_grade(values) - task.expected_grade(targets))
    chances = np.clip(values.astype(np.float64), EPS, 1 - EPS)
    if task.name == "multiclass":
        return -np.log((chances * targets).sum(axis=1))
    return -(targets * np.log(chances) + (1 - targets) * np.log(1 - chances)).sum(axis=1)


def _wrong(task: Task, targets: Floats, values: Floats) -> npt.NDArray[np.bool_]:
    truth, answers = np.asarray(task.truth(targets)), np.asarray(task.decide(values))
    return (truth != answers).reshape(len(targets), -1).any(axis=1)


def _caption(task: Task, target: Floats, value: Floats) -> str:
    if task.name == "regression":
        parts = [
            f"{name}: {is_:.4g}, predicted {said:.4g}"
            for name, is_, said in zip(task.classes, target, value, strict=True)
        ]
        return "; ".join(parts)
    if task.name == "multilabel":
        said = np.asarray(task.decide(value[None]))[0]
        wrong = [place for place in range(len(task.classes)) if said[place] != (target[place] >= 0.5)]
        return "; ".join(
            f"{'no ' if said[place] else ''}{task.classes[place]}, predicted {value[place]:.2f}" for place in wrong
        )
    labels = task.labels()
    is_, answer = (int(task.class_index(row[None])[0]) for row in (target, value))
    if task.name == "binary":
        is_ = int(target[0] >= 0.5)
        chance = float(value[0]) if answer else 1 - float(value[0])
    else:
        chance = float(value[answer])
    return f"{labels[is_]}, predicted {labels[answer]} ({chance:.2f})"
