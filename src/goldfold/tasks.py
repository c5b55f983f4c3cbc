"""The five tasks: how labels become targets, and how probabilities become answers.

Every task speaks (N, C) float32 targets and (N, C) float32 predictions, a column a class, so that mixing, soft labels,
TTA, ensembles and metrics need no cases of their own. The number of logits differs only for ``ordinal`` (C - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.errors import BadInput, some
from goldfold.records import Floats

TaskName = Literal["binary", "multiclass", "multilabel", "ordinal", "regression"]
Activation = Literal["sigmoid", "softmax", "cumulative", "identity"]
DecisionKind = Literal["thresholds", "cut_points", "multipliers"]
Truth = npt.NDArray[np.generic]

RANKS = 1e-3
"""How far from 1 a row's sum is when its values are no probabilities."""

ACTIVATIONS: dict[str, Activation] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multilabel": "sigmoid",
    "ordinal": "cumulative",
    "regression": "identity",
}
DEFAULT_LOSSES = {
    "binary": "bce",
    "multiclass": "cross_entropy",
    "multilabel": "bce",
    "ordinal": "bce",
    "regression": "mse",
}
KINDS: dict[str, DecisionKind] = {
    "binary": "thresholds",
    "multilabel": "thresholds",
    "ordinal": "cut_points",
    "multiclass": "multipliers",
}


@dataclass(frozen=True)
class Decisions:
    """How probabilities become answers, where that was fitted (``goldfold.ensemble.decisions``).

    ``thresholds`` (C,): a class is answered from this probability on; ``cut_points`` (C - 1,), ascending: the grade is
    the number of cut points that the expected grade reaches; ``multipliers`` (C,), positive: the class with the largest
    product of probability and multiplier is answered.
    """

    kind: DecisionKind
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "values": list(self.values)}

    @staticmethod
    def from_dict(record: Any, task: Task, where: object = "ensemble.json") -> Decisions:
        """The decisions of ``to_dict``. Raises BadInput when the record is not one, or belongs to another task."""
        try:
            found = Decisions(record["kind"], tuple(float(value) for value in record["values"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                where, f"not stored decisions ({type(error).__name__}: {error})", "delete it and run again"
            ) from None
        expected = len(task.classes) - (task.name == "ordinal")
        if found.kind != KINDS.get(task.name) or len(found.values) != expected:
            raise BadInput(where, f"{len(found.values)} {found.kind} do not suit a {task.name} task of {expected}")
        if not np.isfinite(found.values).all():
            raise BadInput(where, f"{found.kind} that are not finite")
        return found


@dataclass(frozen=True)
class Task:
    """A task with its classes.

    ``classes``: the columns of targets and predictions. binary: the positive class alone; ordinal: in order;
    regression: the target columns. ``negative``: the other label of a binary task.
    """

    name: TaskName
    classes: tuple[str, ...]
    negative: str | None = None
    threshold: float = 0.5
    separator: str = " "

    @property
    def n_logits(self) -> int:
        return len(self.classes) - 1 if self.name == "ordinal" else len(self.classes)

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.name]

    @property
    def default_loss(self) -> str:
        return DEFAULT_LOSSES[self.name]

    @property
    def one_class_each(self) -> bool:
        """Whether a row belongs to exactly one class."""
        return self.name in ("binary", "multiclass", "ordinal")

    def labels(self) -> list[str]:
        """All the labels that a row may have, negative first."""
        return [*([self.negative] if self.negative is not None else []), *self.classes]

    def class_index(self, targets: Floats) -> npt.NDArray[np.int64]:
        """(N, C) targets or probabilities → (N,) index into ``labels()`` (tasks with one class a row)."""
        if self.name == "binary":
            return (targets[:, 0] >= self.threshold).astype(np.int64)
        if self.name == "ordinal":
            # The expected grade, rounded: better than the arg-max under QWK and MAE.
            return np.clip(np.floor(self.expected_grade(targets) + 0.5), 0, len(self.classes) - 1).astype(np.int64)
        return targets.argmax(axis=1).astype(np.int64)

    def expected_grade(self, values: Floats) -> npt.NDArray[np.float64]:
        """(N, C) probabilities of grades → (N,) the mean grade, 0 to C - 1 (ordinal). Of ranks: by their shares of a row."""
        exact = values.astype(np.float64)
        total, grade = exact.sum(axis=1), exact @ np.arange(len(self.classes))
        return np.where(np.abs(total - 1) > RANKS, grade / np.maximum(total, 1e-12), grade)

    def truth(self, targets: Floats) -> Truth:
        """(N, C) targets as scikit-learn's ``y_true``: (N,) class indices, (N, C) 0/1 for multilabel, or values."""
        if self.name in ("binary", "multilabel"):
            # Labels are 0 or 1 (soft ones count as their nearest); the decision threshold is for predictions.
            index = (targets >= 0.5).astype(np.int64)
            return index[:, 0] if self.name == "binary" else index
        if self.one_class_each:
            return self.class_index(targets)
        return targets[:, 0] if targets.shape[1] == 1 else targets

    def decide(self, values: Floats, decisions: Decisions | None = None) -> Truth:
        """(N, C) predictions as hard answers, in the shape of ``truth``; by ``decisions`` where some were fitted."""
        if decisions is not None:
            return self._decide(values, decisions)
        if self.name == "binary":
            return self.class_index(values)
        if self.name == "multilabel":
            return (values >= self.threshold).astype(np.int64)
        return self.truth(values)

    def one_hot(self, answers: Truth) -> Floats:
        """Hard answers, as ``decide`` gives them, as (N, C) values of 0 and 1 (not for regression)."""
        if self.name == "binary":
            return answers.astype(np.float32)[:, None]
        if self.name == "multilabel":
            return answers.astype(np.float32)
        return np.eye(len(self.classes), dtype=np.float32)[answers.astype(np.int64)]

    def _decide(self, values: Floats, decisions: Decisions) -> npt.NDArray[np.int64]:
        given = np.array(decisions.values)
        if decisions.kind == "thresholds":
            index = (values >= given).astype(np.int64)
            return index[:, 0] if self.name == "binary" else index
        if decisions.kind == "cut_points":
            return np.searchsorted(given, self.expected_grade(values), side="right").astype(np.int64)
        return (values * given).argmax(axis=1).astype(np.int64)

    def normalise(self, values: npt.NDArray[np.floating]) -> Floats:
        """Predictions after blending: rows sum to 1 where a row has exactly one class of C columns."""
        if self.name in ("multiclass", "ordinal"):
            values = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
        return values.astype(np.float32)


def make_task(
    name: TaskName,
    frame: pd.DataFrame,
    target: str | Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    separator: str = " ",
    where: object = "train CSV",
) -> Task:
    """The task of a training table. ``classes`` fixes the labels and their order; else they are found and sorted.

    Raises BadInput when the labels do not suit the task.
    """
    columns = [target] if isinstance(target, str) else list(target)
    missing = [column for column in columns if column not in frame]
    if missing:
        raise BadInput(
            where, f"target column {some(missing)} is missing", f"the columns are: {some(frame.columns, 20)}"
        )
    if name == "regression":
        return Task(name, tuple(columns))
    if name == "multilabel":
        if isinstance(target, str):
            found = {label for text in frame[target] for label in text.split(separator) if label}
            return Task(name, tuple(classes or sorted_labels(found)), None, threshold, separator)
        return Task(name, tuple(columns), None, threshold, separator)
    if len(columns) != 1:
        raise BadInput("competition.target", f"a {name} task has one target column, not {len(columns)}")
    labels = list(classes) if classes else sorted_labels(set(frame[columns[0]]))
    if name == "binary":
        if len(labels) != 2:
            raise BadInput(
                where, f"a binary task needs two labels in '{columns[0]}', found {len(labels)}: {some(labels)}"
            )
        return Task(name, (labels[1],), labels[0], threshold, separator)
    if len(labels) < 2:
        raise BadInput(
            where, f"a {name} task needs at least two classes in '{columns[0]}', found {some(labels) or 'none'}"
        )
    return Task(name, tuple(labels), None, threshold, separator)


def sorted_labels(labels: set[str]) -> list[str]:
    """Numbers by value, other labels by text: ``2`` comes before ``10``."""
    try:
        return sorted(labels, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(labels)


def encode(task: Task, frame: pd.DataFrame, target: str | Sequence[str], where: object = "train CSV") -> Floats:
    """The (N, C) float32 targets of a table of text columns. Raises BadInput on a label that the task does not know."""
    columns = [target] if isinstance(target, str) else list(target)
    missing = [column for column in columns if column not in frame]
    if missing:
        raise BadInput(
            where, f"target column {some(missing)} is missing", f"the columns are: {some(frame.columns, 20)}"
        )
    if task.name == "regression" or (task.name == "multilabel" and not isinstance(target, str)):
        return _numbers(task, frame, columns, where)
    column = frame[columns[0]]
    if task.name == "multilabel":
        position = {label: index for index, label in enumerate(task.classes)}
        targets = np.zeros((len(frame), len(task.classes)), dtype=np.float32)
        for row, text in enumerate(column):
            for label in text.split(task.separator):
                if label and label not in position:
                    raise BadInput(
                        where,
                        f"unknown label '{label}' in column '{columns[0]}', row {row + 2}",
                        f"known: {some(task.classes)}",
                    )
                if label:
                    targets[row, position[label]] = 1
        return targets
    labels = task.labels()
    index = pd.Index(labels).get_indexer(pd.Index(column))
    if (index < 0).any():
        row = int(np.argmax(index < 0))
        raise BadInput(
            where,
            f"unknown label '{column.iloc[row]}' in column '{columns[0]}', row {row + 2}",
            f"known: {some(labels)}",
        )
    if task.name == "binary":
        return index.astype(np.float32)[:, None]
    return np.eye(len(labels), dtype=np.float32)[index]


def _numbers(task: Task, frame: pd.DataFrame, columns: list[str], where: object) -> Floats:
    values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values)
    if task.name == "multilabel":
        wrong |= (values != 0) & (values != 1)
    if wrong.any():
        row, column = (int(part[0]) for part in np.nonzero(wrong))
        expected = "0 or 1" if task.name == "multilabel" else "a number"
        raise BadInput(
            where,
            f"'{frame[columns[column]].iloc[row]}' in column '{columns[column]}', row {row + 2}, is not {expected}",
        )
    return values.astype(np.float32)
