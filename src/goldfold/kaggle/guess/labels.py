"""What is predicted: the target columns, the task, and a metric that suits both and the sample submission."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.errors import BadInput, some
from goldfold.kaggle.guess.tables import Roles
from goldfold.tasks import TaskName, sorted_labels

TARGET_NAMES = re.compile(
    r"^(y|.*(label|target|class|categor|diagnos|species|breed|grade|severity|level|stage|score|rating|outcome|type|tag).*)$",
    re.IGNORECASE,
)
NUMBER_NAMES = re.compile(r"(label|class|categor|species|breed|type|tag)", re.IGNORECASE)
ORDER_NAMES = re.compile(r"(grade|severity|level|stage|score|rating|quality|isup|degree|rank|ordinal)", re.IGNORECASE)
SEVERAL_NAMES = re.compile(r"(labels|tags|classes|attributes|attribute_ids|categories)$", re.IGNORECASE)
NEVER = re.compile(
    r"^(fold|folds|kfold|split|is_train|set|subset|usage|width|height|filename|file|path|.*path|url|md5|hash|date|"
    r"timestamp|datetime|index|unnamed.*|license|source)$",
    re.IGNORECASE,
)
MANY = 30
"""Distinct numbers from which they are values rather than classes."""
MOST_GRADES = 12


@dataclass(frozen=True)
class Target:
    """``columns``: one, or several for multilabel and regression; ``unsure`` belongs to the choice of the columns."""

    columns: tuple[str, ...]
    why: str
    unsure: bool = False


@dataclass(frozen=True)
class TaskGuess:
    """``separator``: between the labels of one multilabel column."""

    name: TaskName
    why: str
    unsure: bool = False
    separator: str | None = None


def find_target(roles: Roles, used: Sequence[str], grouping: Sequence[str]) -> Target:
    """The target's columns. ``used``: columns of the image pattern; ``grouping``: columns that name groups.

    Raises BadInput when the training table has nothing but ids.
    """
    frame = roles.train.frame
    asked = [] if roles.sample is None else [str(name) for name in roles.sample.frame.columns if name != roles.id]
    there = [name for name in asked if name in frame]
    where = "" if roles.sample is None else roles.sample.name
    if asked and len(there) == len(asked):
        have = "it" if len(asked) == 1 else "them"
        return Target(tuple(asked), f"{where} asks for {_quoted(asked)}, and {roles.train.name} has {have}")
    if len(there) > 1:
        lacking = [name for name in asked if name not in there]
        return Target(
            tuple(there), f"{where} asks for {_quoted(asked)}; {roles.train.name} lacks {_quoted(lacking)}", True
        )
    test = set() if roles.test is None else {str(name) for name in roles.test.frame.columns}
    free = [str(name) for name in frame.columns if name != roles.id and str(name) not in test]
    free = [name for name in free if not NEVER.match(name) and frame[name].nunique() > 1]
    if not free:
        raise BadInput(
            roles.train.path,
            "there is no column of labels",
            f"the columns are {some(frame.columns, 20)}; join the labels",
        )
    # A sample with a column a class: the labels are the columns' names.
    for name in free if len(asked) > 1 else ():
        labels = set(frame[name]) - {""}
        if labels <= set(asked) or _suit(sorted(labels), asked):
            return Target((name,), f"the columns of {where} are the labels in it")
    ranked = sorted(free, key=lambda name: _rank(name, frame, used, grouping), reverse=True)
    best = ranked[0]
    reason = "the test rows lack it" if roles.test is not None and "label" not in test else "it looks like labels"
    if len(asked) == 1:
        reason += f"; {where} calls the answer '{asked[0]}'"
    others = [name for name in ranked[1:] if name not in grouping][:5]
    also = f"; others are {_quoted(others)}" if others else ""
    return Target((best,), f"{reason}{also}", unsure=bool(others) or not TARGET_NAMES.match(best))


def find_task(roles: Roles, target: Target) -> TaskGuess:
    """What kind of answer the target's values are."""
    frame = roles.train.frame
    if len(target.columns) > 1:
        return _of_columns(frame, target.columns)
    name = target.columns[0]
    values = frame[name].str.strip()
    distinct = sorted_labels(set(values))
    shown = f"'{name}' holds {len(distinct)} values: {some(distinct, 6)}"
    numbers = to_numbers(values)
    separator = None if numbers is not None else _separator(distinct, name)
    if separator is not None:
        words = {word for text in distinct for word in text.split(separator) if word}
        return TaskGuess(
            "multilabel",
            f"'{name}' holds texts of several labels, parted by {_spelt(separator)}: {some(sorted(words), 8)}",
            unsure=not SEVERAL_NAMES.search(name),
            separator=separator,
        )
    if len(distinct) == 2:
        return TaskGuess("binary", f"{shown}; the second is the positive one")
    if numbers is None:
        return TaskGuess("multiclass", shown, unsure=len(distinct) > len(values) / 2)
    whole = bool((numbers == np.round(numbers)).all())
    fractions = roles.sample is not None and name in roles.sample.frame and _fractions(roles.sample.frame[name])
    if not whole or (len(distinct) > MANY and not NUMBER_NAMES.search(name)) or (fractions and len(distinct) > 2):
        return TaskGuess("regression", f"{shown}; numbers, not classes", unsure=whole)
    steps = np.unique(numbers)
    graded = len(steps) <= MOST_GRADES and bool((np.diff(steps) == 1).all())
    if graded and ORDER_NAMES.search(name):
        return TaskGuess("ordinal", f"{shown}; by its name an order, else it is multiclass", unsure=True)
    if graded and not NUMBER_NAMES.search(name):
        return TaskGuess("multiclass", f"{shown}; ordinal if they are grades in an order", unsure=True)
    return TaskGuess("multiclass", shown)


def find_metric(roles: Roles, target: Target, task: TaskName) -> tuple[str, str]:
    """A metric by habit, and why; only the competition's page Evaluation knows."""
    page = "read the competition's page Evaluation"
    asked = [] if roles.sample is None else [name for name in roles.sample.frame.columns if name != roles.id]
    soft = roles.sample is not None and any(_fractions(roles.sample.frame[name]) for name in asked)
    if task == "binary":
        if roles.sample is not None and not soft:
            return "f1", f"the sample holds whole answers; usual is f1, then accuracy and mcc; {page}"
        return "auc", f"usual for probabilities, then log_loss; {page}"
    if task == "multiclass":
        if len(asked) > 1:
            return "log_loss", f"usual for a column a class, then macro_auc; {page}"
        counts = roles.train.frame[target.columns[0]].value_counts()
        if counts.iloc[0] >= 3 * counts.iloc[-1]:
            return "macro_f1", f"classes are uneven ({counts.iloc[0]} to {counts.iloc[-1]} rows); else accuracy; {page}"
        return "accuracy", f"classes are even; else macro_f1; {page}"
    if task == "multilabel":
        if len(asked) > 1 or (not asked and len(target.columns) > 1):
            return "macro_auc", f"usual for a column a label, then log_loss; {page}"
        return "macro_f1", f"usual for texts of labels, then micro_f1; {page}"
    if task == "ordinal":
        return "qwk", f"usual for grades; {page}"
    return "rmse", f"usual for numbers, then mae; {page}"


def to_numbers(values: pd.Series[str]) -> npt.NDArray[np.float64] | None:
    """The values as numbers; None where one is none."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    return numbers if len(numbers) and np.isfinite(numbers).all() else None


def _of_columns(frame: pd.DataFrame, columns: tuple[str, ...]) -> TaskGuess:
    columns_of = [to_numbers(frame[name]) for name in columns]
    known = [numbers for numbers in columns_of if numbers is not None]
    if len(known) < len(columns):
        broken = [name for name, numbers in zip(columns, columns_of, strict=True) if numbers is None]
        return TaskGuess("regression", f"{some(broken)} hold other things than numbers; mend this by hand", unsure=True)
    table = np.stack(known, axis=1)
    if not np.isin(table, (0, 1)).all():
        return TaskGuess("regression", f"{len(columns)} columns of numbers")
    if (table.sum(axis=1) == 1).all():
        why = f"{len(columns)} columns of 0 and 1; each row has exactly one 1, so a single column of labels would make it multiclass"
        return TaskGuess("multilabel", why, unsure=True)
    return TaskGuess("multilabel", f"{len(columns)} columns of 0 and 1, and rows with none or several 1")


def _rank(name: str, frame: pd.DataFrame, used: Sequence[str], grouping: Sequence[str]) -> tuple[float, ...]:
    values = frame[name]
    numbers = to_numbers(values)
    share = values.nunique() / len(values)
    score = 4.0 * bool(TARGET_NAMES.match(name)) - 4.0 * (name in grouping)
    score += 1.0 * (name in used)  # a class folder
    score -= 3.0 * (numbers is None and share > 0.5)  # free text
    score -= 1.0 * bool(re.search(r"_?(id|idx|index|code|num)$", name, re.IGNORECASE))
    return (score, -share)


def _suit(labels: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether each column is one label with something before or after it: prob_cat, c3."""
    return len(labels) == len(columns) and all(
        sum(
            bool(re.search(rf"(^|[^0-9a-z]|(?<=[a-z])(?=\d)){re.escape(label.lower())}$", column.lower()))
            for column in columns
        )
        == 1
        for label in labels
    )


def _separator(distinct: Sequence[str], name: str) -> str | None:
    """What parts several labels in one text: the texts are made of fewer labels than there are texts."""
    for separator in ("|", ";", ",", " "):
        parted = [[word for word in text.split(separator) if word] for text in distinct]
        if not any(len(words) > 1 for words in parted):
            continue
        words = {word for text in parted for word in text}
        alone = any(len(text) == 1 for text in parted)
        if len(words) < len(distinct) and (alone or SEVERAL_NAMES.search(name) or separator != " "):
            return separator
    return None


def _quoted(names: Sequence[str]) -> str:
    return some([f"'{name}'" for name in names], 8)


def _spelt(separator: str) -> str:
    return {" ": "spaces", ",": "commas", ";": "semicolons", "|": "bars"}[separator]


def _fractions(values: pd.Series[str]) -> bool:
    numbers = to_numbers(values)
    return numbers is not None and bool((numbers != np.round(numbers)).any())
