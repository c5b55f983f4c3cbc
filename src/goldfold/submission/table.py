"""Submission tables: written, checked, read back and scored.

All CSV files are read as text, so that the id ``007`` stays ``007``; rows are matched by id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some
from goldfold.metrics import Metric, score
from goldfold.progress import warn
from goldfold.records import Floats, Predictions, check_ids
from goldfold.submission.shape import SubmissionFormat
from goldfold.tasks import Decisions, Task, encode

USAGE = "Usage"
OVERSHOOT = 1e-6
SUM_TOLERANCE = 1e-3


def format_submission(
    predictions: Predictions,
    task: Task,
    format: SubmissionFormat,
    sample: pd.DataFrame | None,
    decisions: Decisions | None = None,
) -> pd.DataFrame:
    """``predictions`` as the table to submit: the sample's columns and ids, in its order.

    Where the submission holds answers (``format.holds_answers``), ``decisions`` make them, if there are any; columns of
    probabilities do not know them.
    Without a sample: the predictions' ids, the id column first. An image of a ``string`` submission without any label
    above the threshold gets its most likely one, because an empty cell is refused; unless the sample has empty cells.
    Raises BadInput unless the sample's ids are exactly those predicted.
    """
    if predictions.classes != task.classes:
        raise BadInput(
            predictions.where, f"predicts the classes {some(predictions.classes)}, the task has {some(task.classes)}"
        )
    if sample is None:
        ids = list(predictions.ids)
        order = [format.id_column, *format.columns]
    else:
        ids = list(sample[format.id_column])
        order = [str(name) for name in sample.columns]
        _same_ids(predictions.ids, ids, predictions.where, "the sample submission")
    values = predictions.take(ids).values
    frame = pd.DataFrame({format.id_column: pd.Series(ids, dtype=object)})
    if format.shape == "label":
        labels = np.array(format.labels, dtype=object)
        frame[format.columns[0]] = labels[np.asarray(task.decide(values, decisions)).astype(np.int64)]
    elif format.shape == "string":
        frame[format.columns[0]] = _strings(task, format, values, sample, decisions)
    else:
        if format.hard:
            values = task.one_hot(task.decide(values, decisions))
        elif task.name != "regression":
            # Blending may overshoot by a rounding error; anything more is for check_submission to refuse.
            near = (values > -OVERSHOOT) & (values < 1 + OVERSHOOT)
            values = np.where(near, np.clip(values, 0, 1), values)
        for column, name in zip(format.columns, format.classes, strict=True):
            found = _of_class(task, values, name)
            frame[column] = found.astype(np.int64) if format.hard else found
    for name in order:
        if name not in frame and sample is not None:  # of a hidden sample that has more than the public one
            frame[name] = sample[name].to_numpy()
    return frame[order]


def check_submission(
    frame: pd.DataFrame,
    sample: pd.DataFrame | None,
    format: SubmissionFormat,
    task: Task,
    where: object = "submission",
) -> None:
    """Raises BadInput for the first fault of ``frame`` (as formatted, or read as text).

    The columns are the sample's in its order, the ids the same (in any order), no cell is empty, and every cell is what
    its column holds: a known label, a finite number, a probability. Rows of multiclass probabilities that do not sum to
    1 only give a warning.
    """
    expected = [format.id_column, *format.columns] if sample is None else [str(name) for name in sample.columns]
    if [str(name) for name in frame.columns] != expected:
        raise BadInput(where, f"the columns are {some(frame.columns, 20)}", f"the sample's are {some(expected, 20)}")
    ids = list(frame[format.id_column])
    check_ids(ids, where)
    if sample is not None:
        _same_ids(ids, list(sample[format.id_column]), where, "the sample submission")
    for column in format.columns:
        if _may_be_empty(format, sample) and not frame[column].isna().any():
            continue
        empty = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
        if empty.any():
            names = frame.loc[empty, format.id_column]
            raise BadInput(where, f"{len(names)} empty cells in column '{column}', ids {some(names)}")
    values = read_answers(frame, task, format, where)
    if format.shape == "columns" and task.name in ("multiclass", "ordinal"):
        off = np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE
        if off.any():
            warn(f"{where}: the probabilities of {int(off.sum())} rows do not sum to 1")


def write_submission(path: Path, frame: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write the CSV and, last, the record beside it (``<name>.json``); returns that record.

    ``record``: where the submission comes from (source, fingerprint, score if known); rows, columns and the CSV's
    sha256 are added. Raises BadInput when ``path`` is not a .csv file.
    """
    if path.suffix != ".csv":
        raise BadInput(path, "a submission's name must end in .csv")
    beside = path.with_suffix(".json")
    # No record may vouch for another CSV than its own, even when writing is cut off.
    beside.unlink(missing_ok=True)
    files.write_csv(path, frame)
    whole = {
        **{
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        },
        "rows": len(frame),
        "columns": [str(name) for name in frame.columns],
        "sha256": files.sha256_file(path),
    }
    files.write_json(beside, whole)
    return whole


def read_answers(frame: pd.DataFrame, task: Task, format: SubmissionFormat, where: object = "submission") -> Floats:
    """A submission's answers as values (N, C) float32 in the order of its rows.

    Labels become one-hot rows, strings multi-hot rows, probabilities and numbers stay. Raises BadInput for a missing
    column, an unknown label, or a cell that is no number or no probability.
    """
    missing = [column for column in format.columns if column not in frame]
    if missing:
        raise BadInput(where, f"column {some(missing)} is missing", f"the columns are: {some(frame.columns, 20)}")
    if format.shape in ("label", "string"):
        cells = frame[format.columns[0]].astype(str)
        return _read_labels(cells, task, format, where)
    numbers = {
        name: _read_numbers(frame, column, task, format, where)
        for column, name in zip(format.columns, format.classes, strict=True)
    }
    if task.name == "binary":
        positive = task.classes[0]
        found = numbers[positive] if positive in numbers else 1 - numbers[format.classes[0]]
        return found[:, None].astype(np.float32)
    return np.stack([numbers[name] for name in task.classes], axis=1).astype(np.float32)


def score_submission(
    submission: Path,
    solution: Path,
    task: Task,
    metric: Metric,
    extra_metrics: Sequence[Metric],
    id_column: str,
    target: str | Sequence[str],
    format: SubmissionFormat,
) -> dict[str, float | None]:
    """Scores of a submission's CSV against known labels: metric name → score, None where undefined.

    ``solution`` has the id and target columns as the train CSV has them; other columns are ignored, but for ``Usage``:
    with its values Public and Private each part is scored as well (``public_<metric>``, ``private_<metric>``), and other
    rows count nowhere. Raises BadInput unless both files have the same ids.
    """
    answers, known = files.read_csv(submission), files.read_csv(solution)
    for path, frame in ((submission, answers), (solution, known)):
        if id_column not in frame:
            raise BadInput(path, f"has no id column '{id_column}'", f"its columns are: {some(frame.columns, 20)}")
        check_ids(list(frame[id_column]), path)
    _same_ids(answers[id_column], known[id_column], submission, solution)
    values = read_answers(answers, task, format, submission)
    targets = encode(task, known, target, solution)
    rows = pd.Index(answers[id_column]).get_indexer(pd.Index(known[id_column]))
    values = values[rows]
    parts: dict[str, npt.NDArray[np.bool_]] = {"": np.ones(len(known), dtype=bool)}
    if USAGE in known:
        usage = known[USAGE].str.strip().str.lower().to_numpy()
        split = {f"{part}_": usage == part for part in ("public", "private") if (usage == part).any()}
        if split:
            parts = {"": np.logical_or.reduce(list(split.values())), **split}
    found = {
        f"{part}{item.name}": score(item, task, targets[kept], values[kept])
        for part, kept in parts.items()
        for item in (metric, *extra_metrics)
    }
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def _same_ids(
    ids: Sequence[str] | pd.Series[str], others: Sequence[str] | pd.Series[str], where: object, of: object
) -> None:
    mine, theirs = pd.Index(ids), pd.Index(others)
    missing, extra = theirs.difference(mine, sort=False), mine.difference(theirs, sort=False)
    if len(missing) or len(extra):
        what = [f"{len(missing)} ids of {of} are missing: {some(missing)}"] if len(missing) else []
        what += [f"{len(extra)} ids are not in {of}: {some(extra)}"] if len(extra) else []
        raise BadInput(where, ", ".join(what))


def _of_class(task: Task, values: Floats, name: str) -> Floats:
    if task.name == "binary":
        return values[:, 0] if name == task.classes[0] else 1 - values[:, 0]
    return values[:, task.classes.index(name)]


def _may_be_empty(format: SubmissionFormat, sample: pd.DataFrame | None) -> bool:
    if format.shape != "string" or sample is None:
        return False
    cells = sample[format.columns[0]]
    return bool((cells.astype(str).str.strip() == "").any()) and not bool((cells.astype(str).str.strip() == "").all())


def _strings(
    task: Task,
    format: SubmissionFormat,
    values: Floats,
    sample: pd.DataFrame | None,
    decisions: Decisions | None,
) -> list[str]:
    chosen = np.asarray(task.decide(values, decisions)).astype(bool)
    empty = ~chosen.any(axis=1)
    if empty.any() and not _may_be_empty(format, sample):
        above = f"{task.threshold:g}" if decisions is None else "its threshold"
        warn(f"{int(empty.sum())} images have no label above {above}: their most likely one is submitted")
        chosen[empty, values[empty].argmax(axis=1)] = True
    names = format.labels
    return [task.separator.join(names[column] for column in np.flatnonzero(row)) for row in chosen]


def _read_labels(cells: pd.Series[str], task: Task, format: SubmissionFormat, where: object) -> Floats:
    position = {label: number for number, label in enumerate(format.labels)}
    values = np.zeros((len(cells), len(position)), dtype=np.float32)
    for row, text in enumerate(cells):
        labels = [text] if format.shape == "label" else [label for label in text.split(task.separator) if label]
        for label in labels:
            if label not in position:
                raise BadInput(
                    where,
                    f"unknown label '{label}' in column '{format.columns[0]}', row {row + 2}",
                    f"known: {some(format.labels)}",
                )
            values[row, position[label]] = 1
    # The negative label has no column of its own.
    return values[:, 1:] if task.name == "binary" else values


def _read_numbers(
    frame: pd.DataFrame, column: str, task: Task, format: SubmissionFormat, where: object
) -> npt.NDArray[np.float64]:
    found = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
    wrong, expected = ~np.isfinite(found), "a number"
    if task.name != "regression":
        wrong |= (found < 0) | (found > 1)
        expected = "a probability from 0 to 1"
    if format.hard:
        wrong |= (found != 0) & (found != 1)
        expected = "0 or 1"
    if wrong.any():
        row = int(np.argmax(wrong))
        name = frame[format.id_column].iloc[row] if format.id_column in frame else f"row {row + 2}"
        raise BadInput(where, f"'{frame[column].iloc[row]}' in column '{column}', id {name}, is not {expected}")
    return found
