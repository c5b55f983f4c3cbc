"""What rows are stratified on: the class, quantile bins of a number, or a combination of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.config.schema import Folds
from goldfold.errors import BadInput, some
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

MISSING = "missing"


@dataclass(frozen=True)
class Strata:
    """``codes`` (N,) int64 into ``names``; ``kind`` and ``mend`` word the error about a rare stratum."""

    codes: Ints
    names: tuple[str, ...]
    kind: str
    mend: str

    def check(self, n: int) -> None:
        """Raises BadInput when a stratum has fewer rows than there are folds."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        rare = sorted((int(count), name) for count, name in zip(counts, self.names, strict=True) if 0 < count < n)
        if not rare:
            return
        count, name = rare[0]
        more = f" (and {len(rare) - 1} more have too few)" if len(rare) > 1 else ""
        fewer = f"lower folds.n to {count} or less, " if count >= 2 else ""
        raise BadInput(
            "folds.n", f"{self.kind} {name} has {_rows(count)}, fewer than the {n} folds{more}", f"{fewer}{self.mend}"
        )


def make_strata(settings: Folds, frame: pd.DataFrame, task: Task, targets: Floats, columns: Sequence[str]) -> Strata:
    """The strata of each row: of ``settings.stratify``'s columns, else of the target (``columns`` are its names).

    Raises BadInput where there is nothing to stratify on.
    """
    if settings.stratify:
        return _of_columns(settings, frame)
    if task.name == "multilabel":
        raise BadInput(
            "folds.scheme",
            f"'{settings.scheme}' cannot stratify a multilabel target",
            "use multilabel or group_multilabel, or name columns in folds.stratify",
        )
    if task.one_class_each:
        names = tuple(f"'{label}'" for label in task.labels())
        return Strata(
            task.class_index(targets), names, "class", "merge the class with another one, or use folds.scheme: kfold"
        )
    if targets.shape[1] != 1:
        raise BadInput(
            "folds.stratify",
            f"{targets.shape[1]} target columns have no strata of their own",
            f"name one of them ({some(columns)}) or use folds.scheme: kfold",
        )
    codes, names = _codes(_bins(targets[:, 0].astype(np.float64), settings.bins))
    return Strata(codes, names, "the target's bin", "lower folds.bins, or use folds.scheme: kfold")


def _of_columns(settings: Folds, frame: pd.DataFrame) -> Strata:
    missing = [column for column in settings.stratify if column not in frame]
    if missing:
        raise BadInput("folds.stratify", f"the train CSV has no column {some(missing)}")
    parts = [
        [f"{column}={value}" for value in _values(frame[column].tolist(), settings.bins)]
        for column in settings.stratify
    ]
    codes, names = _codes([" & ".join(row) for row in zip(*parts, strict=True)])
    if len(settings.stratify) == 1:
        return Strata(codes, names, "the stratum", "lower folds.bins, or use folds.scheme: kfold")
    return Strata(codes, names, "the combination", "drop a column from folds.stratify, or lower folds.bins")


def _values(texts: list[str], bins: int) -> list[str]:
    """A column's values, binned when they are numbers with more than ``bins`` distinct values."""
    filled = [text for text in texts if text.strip()]
    try:
        numbers = np.array([float(text) for text in filled])
    except ValueError:
        return [text if text.strip() else MISSING for text in texts]
    if len(set(numbers.tolist())) <= bins or not np.isfinite(numbers).all():
        return [text if text.strip() else MISSING for text in texts]
    binned = iter(_bins(numbers, bins))
    return [next(binned) if text.strip() else MISSING for text in texts]


def _bins(values: npt.NDArray[np.float64], bins: int) -> list[str]:
    """The quantile bin of each number, as text; the number itself where there are at most ``bins`` distinct ones."""
    distinct = np.unique(values)
    if len(distinct) <= bins:
        return [f"{value:g}" for value in values]
    # Equal values must share a bin, so edges that ties make equal are one edge.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    inside = np.clip(np.searchsorted(edges, values, side="left"), 1, len(edges) - 1)
    return [f"{edges[part - 1]:g} to {edges[part]:g}" for part in inside]


def _codes(keys: list[str]) -> tuple[Ints, tuple[str, ...]]:
    names = sorted(set(keys))
    position = {name: code for code, name in enumerate(names)}
    return np.array([position[key] for key in keys], dtype=np.int64), tuple(names)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def flag(text: str) -> bool | None:
    """A yes or no of a CSV column; None where it is neither."""
    word = text.strip().lower()
    if word in ("1", "1.0", "true", "yes"):
        return True
    return False if word in ("", "0", "0.0", "false", "no") else None


def whole_number(text: str) -> int | None:
    """A whole number of a CSV column (``3`` or, as pandas writes columns with gaps, ``3.0``); None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None
