"""Auxiliary tasks: further label columns that the network learns beside the target and forgets at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.config.schema import Auxiliary
from goldfold.errors import BadInput, some
from goldfold.metadata import labels_of, numbers_of, require_column, scaling
from goldfold.records import Floats
from goldfold.tasks import Task, encode, make_task

KEY = "loss.auxiliary"


@dataclass(frozen=True)
class AuxiliaryTask:
    """One further label column, learnt with ``weight``.

    ``columns``: from and to in the auxiliary targets (B, A); ``logits``: from and to in the auxiliary logits, which
    follow the main ones.
    """

    name: str
    task: Task
    weight: float
    columns: tuple[int, int]
    logits: tuple[int, int]

    @property
    def n_logits(self) -> int:
        return self.task.n_logits


def make_auxiliary(
    settings: Sequence[Auxiliary],
    train: pd.DataFrame,
    where: object,
    *,
    fit: npt.NDArray[np.bool_] | None = None,
    target: str | Sequence[str] = (),
) -> tuple[tuple[AuxiliaryTask, ...], Floats, Floats]:
    """The tasks, their targets (N, A) side by side, and weights (N, K), one a task: 0, as the targets, without a label.

    An empty cell is a missing label, of a multilabel column too (its labels have spaces between them). Classes are
    those of the whole table, so that every fold has the same logits; numbers are standardised by the rows that ``fit``
    (N,) marks, or by all.
    Raises BadInput on a column that is missing, is the ``target``, or has nothing to learn.
    """
    target = [target] if isinstance(target, str) else list(target)
    names = [item.column for item in settings]
    for name in names:
        if name in target:
            raise BadInput(KEY, f"'{name}' is the target itself", "name another column")
    if len(set(names)) < len(names):
        raise BadInput(KEY, f"a column is named twice: {some(names)}", "name it once")
    fit = np.ones(len(train), dtype=np.bool_) if fit is None else fit
    tasks: list[AuxiliaryTask] = []
    targets: list[Floats] = [np.zeros((len(train), 0), dtype=np.float32)]
    weights = np.zeros((len(train), len(settings)), dtype=np.float32)
    column, logit = 0, 0
    for number, item in enumerate(settings):
        task, values, known = _encoded(item, train, where, fit)
        tasks.append(
            AuxiliaryTask(
                name=item.column,
                task=task,
                weight=item.weight,
                columns=(column, column + values.shape[1]),
                logits=(logit, logit + task.n_logits),
            )
        )
        column, logit = tasks[-1].columns[1], tasks[-1].logits[1]
        targets.append(values)
        weights[:, number] = known
    return tuple(tasks), np.concatenate(targets, axis=1), weights


def _encoded(
    item: Auxiliary, train: pd.DataFrame, where: object, fit: npt.NDArray[np.bool_]
) -> tuple[Task, Floats, npt.NDArray[np.bool_]]:
    """A column's task, its targets (N, C) with zeros where they are unknown, and where they are known (N,)."""
    name = item.column
    require_column(train, name, where, KEY)
    if item.task == "regression":
        numbers = numbers_of(train, name, where)
        known = np.isfinite(numbers)
        _require_choice(set(numbers[known]), name, where)
        _require_training(known & fit, name, where)
        mean, std = scaling(numbers[known & fit])
        values = np.where(known, (numbers - mean) / std, 0.0).astype(np.float32)[:, None]
        return make_task("regression", train, name, where=where), values, known
    labels = labels_of(train, name)
    known = np.array([label != "" for label in labels], dtype=np.bool_)
    _require_choice({label for label in labels if label}, name, where)
    _require_training(known & fit, name, where)
    rows = pd.DataFrame({name: labels}, index=train.index)[known]
    task = make_task(item.task, rows, name, where=f"{where}: {KEY}")
    values = np.zeros((len(train), len(task.classes)), dtype=np.float32)
    values[known] = encode(task, rows, name, where)
    return task, values, known


def _require_choice(values: set[object], name: str, where: object) -> None:
    if len(values) < 2:
        held = f"holds one value alone ({some(values)})" if values else "is empty"
        raise BadInput(where, f"the column '{name}' of {KEY} {held}: there is nothing to learn", "leave it out")


def _require_training(known: npt.NDArray[np.bool_], name: str, where: object) -> None:
    if not known.any():
        raise BadInput(where, f"no training row has a value in the column '{name}' of {KEY}", "leave it out")
