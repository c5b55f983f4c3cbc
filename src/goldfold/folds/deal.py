"""Dealing rows to folds. The deal depends on ids, never on the order of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.config.schema import Folds
from goldfold.errors import BadInput, some
from goldfold.folds.groups import deal_by_labels, deal_by_size
from goldfold.folds.strata import flag, make_strata, whole_number
from goldfold.progress import warn
from goldfold.records import TRAIN_ONLY, Floats, FoldTable, Ints, check_ids
from goldfold.tasks import Task

GROUPED = ("group", "stratified_group", "group_multilabel")
STRATIFIED = ("stratified", "stratified_group")
LABELLED = ("multilabel", "group_multilabel")
GIVEN = ("holdout", "column")
"""Schemes that read the folds from a column of the train CSV."""


def make_folds(
    settings: Folds,
    frame: pd.DataFrame,
    *,
    id_column: str,
    task: Task,
    targets: Floats,
    target_columns: Sequence[str],
    group: str | None,
    source_sha256: str,
) -> list[FoldTable]:
    """One fold table a repeat, in the row order of ``frame``; table ``r`` numbers its folds from ``r * n`` on.

    ``frame``: the train CSV's N rows as text columns; ``targets`` (N, C) float32; ``target_columns``: their columns'
    names; ``group``: the column that must not cross folds. Rows are dealt in the order of their ids, so the same ids get
    the same folds in any row order. kfold, stratified and stratified_group are scikit-learn's; multilabel is
    iterative-stratification's (Sechidis et al., 2011); group and group_multilabel are in ``groups.py``.

    Raises BadInput when a column is missing, a class (or stratum) has fewer rows than there are folds, groups are too
    few, or scheme, group, stratify and column do not fit each other.
    """
    if re.fullmatch(r"fold(_\d+)?", id_column):
        raise BadInput(
            "competition.id", f"an id column named '{id_column}' clashes with the fold columns", "rename the column"
        )
    if id_column not in frame:
        raise BadInput("competition.id", f"the train CSV has no column '{id_column}'")
    ids = tuple(frame[id_column])
    check_ids(ids, f"train CSV, column '{id_column}'")
    if targets.shape[0] != len(ids):
        raise BadInput("train CSV", f"{targets.shape[0]} rows of targets for {len(ids)} ids")
    _check_fit(settings, task, group)
    groups = None if group is None else _groups(frame, group)
    if settings.scheme in GIVEN:
        return [_table(ids, _given(settings, frame), settings, 0, source_sha256, groups)]
    if len(ids) < settings.n:
        raise BadInput("folds.n", f"{settings.n} folds of {len(ids)} rows", "lower folds.n")
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    ordered_groups = None if groups is None else np.array(groups, dtype=object)[order]
    tables = []
    for repeat in range(settings.repeats):
        dealt = _deal(
            settings,
            settings.seed + repeat,
            frame.iloc[order],
            task,
            targets[order],
            target_columns,
            ordered_groups,
            quiet=repeat > 0,
        )
        fold = np.empty(len(ids), dtype=np.int64)
        fold[order] = dealt + repeat * settings.n
        tables.append(_table(ids, fold, settings, repeat, source_sha256, groups))
    deals = {pd.factorize(table.fold)[0].tobytes() for table in tables}
    if len(deals) < len(tables):
        warn(f"{len(tables)} repeats gave {len(deals)} different deals: these groups leave no more freedom")
    return tables


def class_counts(tables: Sequence[FoldTable], task: Task, targets: Floats, ids: Sequence[str]) -> pd.DataFrame:
    """How many rows of each class each fold validates: a row a fold (-1: rows that are only trained on).

    ``targets`` (N, C) belong to ``ids``. Columns: the task's labels (multilabel: rows that have the label), or for
    regression ``count``, ``mean`` and ``std`` (of each target where there are several). Raises BadInput on an id that a
    table lacks.
    """
    rows: dict[int, dict[str, float]] = {}
    for table in tables:
        fold = table.fold[table.rows(ids, "class counts")]
        for number in sorted(set(fold.tolist())):
            rows[number] = _summary(task, targets[fold == number])
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "fold"
    return frame.sort_index()


def _summary(task: Task, targets: Floats) -> dict[str, float]:
    if task.name == "regression":
        summary: dict[str, float] = {"count": len(targets)}
        for column, name in enumerate(task.classes):
            tail = "" if len(task.classes) == 1 else f" {name}"
            values = targets[:, column].astype(np.float64)
            summary |= {f"mean{tail}": float(values.mean()), f"std{tail}": float(values.std())}
        return summary
    if task.name == "multilabel":
        return dict(zip(task.classes, (int(count) for count in (targets >= 0.5).sum(axis=0)), strict=True))
    counts = np.bincount(task.class_index(targets), minlength=len(task.labels()))
    return dict(zip(task.labels(), counts.tolist(), strict=True))


def _check_fit(settings: Folds, task: Task, group: str | None) -> None:
    """Refuses settings that the scheme would silently ignore."""
    scheme = settings.scheme
    if scheme in GROUPED and group is None:
        raise BadInput("competition.group", f"folds.scheme '{scheme}' needs a group column", "name it")
    if group is not None and scheme not in GROUPED + GIVEN:
        better = {"kfold": "group", "stratified": "stratified_group", "multilabel": "group_multilabel"}[scheme]
        raise BadInput(
            "folds.scheme",
            f"'{scheme}' ignores competition.group '{group}', so groups would lie in two folds",
            f"use {better}, or set competition.group: null",
        )
    if settings.stratify and scheme not in STRATIFIED:
        raise BadInput("folds.stratify", f"scheme '{scheme}' does not stratify on columns", "remove it")
    if settings.column is not None and scheme not in GIVEN:
        raise BadInput("folds.column", f"scheme '{scheme}' does not read a column", "remove it or use scheme: column")
    if scheme in LABELLED and task.name == "regression":
        raise BadInput("folds.scheme", f"'{scheme}' needs labels, and a regression target has none")
    if settings.seed < 0 or settings.seed + settings.repeats > 2**32:
        raise BadInput("folds.seed", f"{settings.seed} is not a seed", "use a whole number from 0 to 2**32 - 1")


def _groups(frame: pd.DataFrame, group: str) -> tuple[str, ...]:
    if group not in frame:
        raise BadInput("competition.group", f"the train CSV has no column '{group}'")
    groups = tuple(str(value) for value in frame[group])
    empty = [row + 2 for row, value in enumerate(groups) if not value.strip()]
    if empty:
        raise BadInput(
            "competition.group",
            f"column '{group}' is empty in row {some(empty)}",
            "give such rows a group (their own id where they belong to none)",
        )
    return groups


def _given(settings: Folds, frame: pd.DataFrame) -> Ints:
    """The folds that a column of the train CSV holds (N,): a validation flag (holdout) or fold numbers (column)."""
    column = settings.column or ""
    if column not in frame:
        raise BadInput("folds.column", f"the train CSV has no column '{column}'")
    where = f"train CSV, column '{column}'"
    read = flag if settings.scheme == "holdout" else whole_number
    values = [read(text) for text in frame[column]]
    wrong = [row for row, value in enumerate(values) if value is None]
    if wrong:
        expected = "yes or no (1/true/yes, 0/false/no)" if settings.scheme == "holdout" else "a whole number"
        raise BadInput(where, f"'{frame[column].iloc[wrong[0]]}' in row {wrong[0] + 2} is not {expected}")
    if settings.scheme == "holdout":
        fold = np.where(np.array(values, dtype=bool), 0, TRAIN_ONLY).astype(np.int64)
        if len(set(fold.tolist())) != 2:
            what = "every row" if (fold == 0).any() else "no row"
            raise BadInput(where, f"marks {what} for validation", "mark some rows, not all")
        return fold
    fold = np.array(values, dtype=np.int64)
    found = sorted(set(fold.tolist()))
    numbers = [number for number in found if number != TRAIN_ONLY]
    if not numbers or found[0] < TRAIN_ONLY or numbers != list(range(len(numbers))):
        raise BadInput(
            where,
            f"holds the fold numbers {some(found, 12)}",
            "number the folds 0, 1, 2, ... (-1: rows that are only trained on)",
        )
    if len(found) == 1:
        raise BadInput(where, "holds one fold only, so no row is left to train on", "add folds, or rows with -1")
    return fold


def _deal(
    settings: Folds,
    seed: int,
    frame: pd.DataFrame,
    task: Task,
    targets: Floats,
    target_columns: Sequence[str],
    groups: npt.NDArray[np.object_] | None,
    quiet: bool,
) -> Ints:
    """(N,) fold numbers from 0 to n - 1 of one repeat. Rows come in the order of their ids."""
    from sklearn import model_selection

    n, scheme = settings.n, settings.scheme
    empty = np.zeros((len(frame), 1))
    codes: Ints = np.zeros(len(frame), dtype=np.int64)
    if groups is not None:
        names, codes = np.unique(groups.astype(str), return_inverse=True)
        if len(names) < n:
            raise BadInput("folds.n", f"{n} folds of {len(names)} groups", f"lower folds.n to {len(names)} or less")
    if scheme == "group":
        return deal_by_size(codes, n, seed)
    if scheme in LABELLED:
        labels = _labels(task, targets)
        if not quiet:
            _warn_rare(_label_names(task), labels, codes if scheme == "group_multilabel" else None, n)
        if scheme == "group_multilabel":
            return deal_by_labels(codes, labels, n, seed)
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

        if labels.shape[1] == 1:  # the library refuses a single label
            labels = np.hstack([labels, ~labels])
        splitter = MultilabelStratifiedKFold(n, shuffle=True, random_state=seed)
        return _numbers(splitter.split(empty, labels), len(frame), n)
    if scheme == "kfold":
        return _numbers(model_selection.KFold(n, shuffle=True, random_state=seed).split(empty), len(frame), n)
    strata = make_strata(settings, frame, task, targets, target_columns)
    strata.check(n)
    if scheme == "stratified":
        splitter = model_selection.StratifiedKFold(n, shuffle=True, random_state=seed)
        return _numbers(splitter.split(empty, strata.codes), len(frame), n)
    if not quiet:
        _warn_rare(strata.names, np.eye(len(strata.names), dtype=bool)[strata.codes], codes, n)
    splitter = model_selection.StratifiedGroupKFold(n, shuffle=True, random_state=seed)
    return _numbers(splitter.split(empty, strata.codes, codes), len(frame), n)


def _labels(task: Task, targets: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(targets >= 0.5)


def _label_names(task: Task) -> tuple[str, ...]:
    return tuple(f"'{name}'" for name in task.classes)


def _warn_rare(names: Sequence[str], labels: npt.NDArray[np.bool_], groups: Ints | None, n: int) -> None:
    """Says which labels cannot be in every fold. No error: rows can still be dealt, and rare labels are a fact."""
    rare = []
    for column, name in enumerate(names):
        rows = np.flatnonzero(labels[:, column])
        found = len(rows) if groups is None else len(set(groups[rows].tolist()))
        if 0 < found < n:
            rare.append(f"{name} ({found})")
    if rare:
        unit = "rows" if groups is None else "groups"
        warn(f"labels in fewer {unit} than the {n} folds are absent from some folds: {some(rare)}")


def _numbers(splits: object, rows: int, n: int) -> Ints:
    """scikit-learn's splits as (N,) fold numbers. Raises BadInput when a fold got no row."""
    fold = np.full(rows, -1, dtype=np.int64)
    for number, (_, valid) in enumerate(splits):  # type: ignore[var-annotated, arg-type]
        fold[valid] = number
    if sorted(set(fold.tolist())) != list(range(n)):
        raise BadInput("folds.n", f"rows cannot be dealt to {n} folds: one would be empty", "lower folds.n")
    return fold


def _table(
    ids: tuple[str, ...], fold: Ints, settings: Folds, repeat: int, sha256: str, groups: tuple[str, ...] | None
) -> FoldTable:
    return FoldTable(ids, fold, settings.scheme, settings.seed + repeat, sha256, groups, "train CSV")
