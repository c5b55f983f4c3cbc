"""The shape of a submission, from the task, the metric and the competition's sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from goldfold.errors import BadInput, some
from goldfold.progress import warn
from goldfold.records import check_ids
from goldfold.tasks import Task

Shape = Literal["label", "probability", "columns", "string"]
SHAPES: dict[str, tuple[Shape, ...]] = {
    "binary": ("label", "probability", "columns"),
    "multiclass": ("label", "columns"),
    "ordinal": ("label", "columns"),
    "multilabel": ("string", "columns"),
    "regression": ("columns",),
}


@dataclass(frozen=True)
class SubmissionFormat:
    """How answers are written.

    ``columns``: all columns but the id, in order; ``classes``: the class of each, for shapes with a column a class (and
    the class whose probability is given, for ``probability``); ``labels``: the text of each of ``Task.labels()``, for
    ``label`` and ``string``; ``hard``: a multilabel competition's columns hold 0 or 1.
    """

    shape: Shape
    id_column: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    hard: bool = False

    @property
    def holds_answers(self) -> bool:
        """Whether cells are hard answers, which say nothing of probabilities."""
        return self.hard or self.shape in ("label", "string")


def decide_format(
    task: Task,
    metric_needs: str,
    sample: pd.DataFrame | None,
    id_column: str,
    override: str = "auto",
    submission_columns: Mapping[str, str] | None = None,
    where: object = "sample submission",
    target: str | Sequence[str] = "label",
) -> SubmissionFormat:
    """The format that task, metric (what it needs: probability, label or value) and ``sample`` (text) ask for.

    ``override``: a shape, or ``auto``; ``submission_columns``: class → column, where names differ; ``target``: the train
    CSV's target, which names the columns when there is no sample. Raises BadInput for a sample without the id column or
    with doubled ids, columns that fit no class, or a shape that the task does not have.
    """
    if override != "auto" and override not in SHAPES[task.name]:
        raise BadInput(
            "competition.submission",
            f"'{override}' does not suit a {task.name} task",
            f"use {_either(SHAPES[task.name])}",
        )
    if sample is None:
        return _without_sample(task, metric_needs, id_column, override, target)
    if id_column not in sample:
        raise BadInput(where, f"has no id column '{id_column}'", f"its columns are: {some(sample.columns, 20)}")
    check_ids(list(sample[id_column]), where)
    columns = tuple(str(name) for name in sample.columns if name != id_column)
    chosen = dict(submission_columns or {})
    _check_chosen(chosen, columns, task, where)
    shape = _shape(task, metric_needs, sample, columns, override, where)
    if shape == "columns":
        names = task.labels() if task.name == "binary" else list(task.classes)
        if task.name == "regression" and len(names) == len(columns) == 1:
            return SubmissionFormat(shape, id_column, columns, task.classes)
        return _columns(task, metric_needs, id_column, columns, _match(names, columns, chosen, where))
    if len(columns) != 1:
        raise BadInput(
            where,
            f"has {len(columns)} columns beside '{id_column}' ({some(columns) or 'none'}), the shape '{shape}' needs one",
            "set competition.submission or mend the sample",
        )
    if shape == "probability":
        return SubmissionFormat(shape, id_column, columns, (_positive(task, columns[0], chosen),))
    return SubmissionFormat(shape, id_column, columns, labels=_labels(task, shape, sample[columns[0]], where))


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _without_sample(
    task: Task, metric_needs: str, id_column: str, override: str, target: str | Sequence[str]
) -> SubmissionFormat:
    names = (target,) if isinstance(target, str) else tuple(target)
    shape = override
    if override == "auto":
        soft = {"binary": "probability", "multiclass": "columns", "ordinal": "columns", "multilabel": "columns"}
        flat = {"binary": "label", "multiclass": "label", "ordinal": "label", "multilabel": "string"}
        shape = "columns" if task.name == "regression" else (flat if metric_needs == "label" else soft)[task.name]
        if shape == "string" and not isinstance(target, str):
            shape = "columns"
    if shape == "columns":
        classes = tuple(task.labels()) if task.name == "binary" else task.classes
        return _columns(task, metric_needs, id_column, classes, classes)
    if shape == "probability":
        return SubmissionFormat("probability", id_column, names[:1], task.classes)
    return SubmissionFormat(
        "label" if shape == "label" else "string", id_column, names[:1], labels=tuple(task.labels())
    )


def _columns(
    task: Task, metric_needs: str, id_column: str, columns: tuple[str, ...], classes: tuple[str, ...]
) -> SubmissionFormat:
    hard = task.name == "multilabel" and metric_needs == "label"
    return SubmissionFormat("columns", id_column, columns, classes, hard=hard)


def _shape(
    task: Task, metric_needs: str, sample: pd.DataFrame, columns: tuple[str, ...], override: str, where: object
) -> Shape:
    for shape in SHAPES[task.name]:
        if shape == override:
            return shape
    if not columns:
        raise BadInput(where, "has no column beside the ids")
    if task.name == "regression":
        return "columns"
    if len(columns) > 1:
        return "columns"
    if task.name == "multilabel":
        return "columns" if len(task.classes) == 1 and columns[0] == task.classes[0] else "string"
    if task.name != "binary":
        return "label"
    if metric_needs == "probability":
        return "probability"
    cells = {text.strip() for text in sample[columns[0]].astype(str)}
    return "label" if cells <= {"0", "1"} or cells <= set(task.labels()) else "probability"


def _labels(task: Task, shape: Shape, cells: pd.Series[str], where: object) -> tuple[str, ...]:
    """The text of each label. A binary sample of 0 and 1 wants those, whatever the train CSV calls its labels."""
    labels = task.labels()
    found = {text.strip() for text in cells.astype(str)} - {""}
    if shape == "string" or found <= set(labels):
        return tuple(labels)
    if task.name == "binary" and found <= {"0", "1"}:
        warn(f"{where}: holds 0 and 1, so '{labels[0]}' is submitted as 0 and '{labels[1]}' as 1")
        return ("0", "1")
    warn(f"{where}: holds {some(sorted(found))}, which are no labels of the task; its labels are submitted")
    return tuple(labels)


def _check_chosen(chosen: Mapping[str, str], columns: tuple[str, ...], task: Task, where: object) -> None:
    labels = task.labels()
    for name, column in chosen.items():
        if name not in labels:
            raise BadInput("competition.submission_columns", f"unknown class '{name}'", f"known: {some(labels, 20)}")
        if column not in columns:
            raise BadInput(
                "competition.submission_columns", f"{where} has no column '{column}'", f"it has: {some(columns, 20)}"
            )


def _positive(task: Task, column: str, chosen: Mapping[str, str]) -> str:
    """The class whose probability a lone column holds: the positive one, unless it is named after the other."""
    if chosen:
        return next(iter(chosen))
    negative, positive = task.labels()
    names_negative = column == negative or _names(column, negative)
    names_positive = column == positive or _names(column, positive)
    return negative if names_negative and not names_positive else positive


def _names(column: str, name: str) -> bool:
    """Whether ``column`` is ``name`` with a prefix or suffix: prob_cat, cat-score, Class 3, c3; not wildcat, class_13."""
    text, name = column.strip().casefold(), name.strip().casefold()
    if text == name:
        return True
    # A word ends where letters meet digits or anything else.
    for found in re.finditer(re.escape(name), text):
        before, after = text[: found.start()], text[found.end() :]
        if bool(before) != bool(after) and _apart(before[-1:], name[:1]) and _apart(name[-1:], after[:1]):
            return True
    return False


def _apart(left: str, right: str) -> bool:
    return not ((left.isalpha() and right.isalpha()) or (left.isdigit() and right.isdigit()))


def _match(
    classes: Sequence[str], columns: tuple[str, ...], chosen: Mapping[str, str], where: object
) -> tuple[str, ...]:
    """The class of each column: as chosen, else of the same name, else by a unique prefix or suffix."""
    mend = "name each class's column in competition.submission_columns"
    if len(columns) != len(classes):
        raise BadInput(
            where, f"has {len(columns)} columns ({some(columns)}) for {len(classes)} classes ({some(classes)})", mend
        )
    taken = dict(chosen)
    taken.update({name: name for name in classes if name not in taken and name in columns})
    # Long names first, so that 'cat' does not claim the column of 'wild cat'.
    for name in sorted((name for name in classes if name not in taken), key=lambda name: (-len(name), name)):
        free = [column for column in columns if column not in taken.values() and _names(column, name)]
        if len(free) != 1:
            what = f"columns {some(free)} may all be class '{name}'" if free else f"no column for class '{name}'"
            raise BadInput(where, f"{what} (columns: {some(columns, 20)})", mend)
        taken[name] = free[0]
    by_column = {column: name for name, column in taken.items()}
    if len(by_column) != len(columns):
        raise BadInput(where, "two classes have the same column", mend)
    return tuple(by_column[column] for column in columns)
