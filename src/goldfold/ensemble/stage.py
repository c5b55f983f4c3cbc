"""The ensemble stage: finished runs in, ``ensembles/<name>/`` out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config.schema import BlendMethod
from goldfold.ensemble.blend import CrossFit, Weights, apply, cross_fit
from goldfold.errors import BadInput, some
from goldfold.metrics import Metric, score
from goldfold.paths import RunPaths
from goldfold.progress import warn
from goldfold.records import Floats, Ints, Predictions, check_ids
from goldfold.tasks import Task

Truth = tuple[Sequence[str], Floats]
"""The ids (N,) and targets (N, C) of labelled images."""

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A finished run inside an ensemble. ``oof`` has folds; ``digest`` changes with either table."""

    name: str
    oof: Predictions
    test: Predictions | None
    digest: str


def load_member(run_paths: RunPaths) -> Member:
    """The member of a finished run. Raises BadInput when the run is not finished or its tables are broken."""
    if not run_paths.cv.is_file():
        state = "is not finished (it has no cv.json)" if run_paths.folder.is_dir() else "does not exist"
        raise BadInput(run_paths.folder, f"the run {state}", "run 'goldfold train' with its experiment first")
    name = run_paths.name
    test = Predictions.read(run_paths.test, name) if run_paths.test.is_file() else None
    digests = [files.sha256_file(path) for path in (run_paths.oof, run_paths.test) if path.is_file()]
    return Member(name, Predictions.read(run_paths.oof, name), test, files.fingerprint(digests))


def align(members: Sequence[Member]) -> list[Member]:
    """The members with all rows in the order of the first member's ids.

    Raises BadInput, naming the two members and the first ids, when the members differ in ids, classes or the fold of an
    id, when some have test predictions and others have none, or when a member appears twice.
    """
    if not members:
        raise BadInput("ensemble", "there are no members", "name at least one run")
    names = [member.name for member in members]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadInput("ensemble", f"members are named twice: {some(doubled)}", "name each run once")
    first = members[0]
    aligned = []
    for member in members:
        if member.oof.fold is None:
            raise BadInput(member.oof.where, f"the out-of-fold predictions of '{member.name}' have no folds")
        pair = f"members '{first.name}' and '{member.name}'"
        if (first.test is None) != (member.test is None):
            has, lacks = (first, member) if member.test is None else (member, first)
            raise BadInput(pair, f"'{has.name}' has test predictions, '{lacks.name}' has none", "finish both runs")
        oof = _align(member.oof, first.oof, pair, "out-of-fold")
        test = None
        if member.test is not None and first.test is not None:
            if member.test.classes != member.oof.classes:
                raise BadInput(member.test.where, "classes differ from those of the out-of-fold predictions")
            test = _align(member.test, first.test, pair, "test")
        aligned.append(Member(member.name, oof, test, member.digest))
    return aligned


def make_ensemble(
    folder: Path,
    name: str,
    members: Sequence[Member],
    truth: Truth,
    task: Task,
    metric: Metric,
    extra_metrics: Sequence[Metric],
    method: BlendMethod,
    id_column: str,
) -> dict[str, Any]:
    """Blend ``members`` and write ``folder`` (``ensembles/<name>``); returns the record of ``ensemble.json``.

    ``truth``: ids and (N, C) targets of the labelled images, in any order; rows without out-of-fold predictions (a
    holdout's training part) are left out. Written, ``ensemble.json`` last:

    - ``oof.parquet``: the cross-fitted predictions, in the order of ``truth``: no row's weights have seen its label
      (``"oof": "cross_fitted"``). With a single fold there are none, so the plain blend is stored (``"oof": "plain"``).
    - ``test.parquet``: the blend under weights fitted on all rows, if the members have test predictions.
    - ``ensemble.json``: the members with weights; ``cv``: the plain score, fitted and scored on the same rows;
      ``cross_fitted``: the honest one, or null; ``optimism``: how much better the plain one looks.

    The order of members or of their rows changes nothing but the order in which members are listed. When members,
    method, metrics, classes and truth are those of the stored record, nothing is computed and that record is returned.
    Raises BadInput as ``align`` does, and for images without a label.
    """
    # A fixed order of members and rows: sums and ties come out the same however they were named.
    given = [member.name for member in members]
    ordered = align(sorted(members, key=lambda member: member.name))
    if ordered[0].oof.classes != task.classes:
        raise BadInput(
            ordered[0].oof.where,
            f"predicts the classes {some(ordered[0].oof.classes)}, the competition has {some(task.classes)}",
        )
    ids, targets = _labelled(ordered[0], truth)
    mark = files.fingerprint(
        {
            "format": FORMAT,
            "members": [[member.name, member.digest] for member in ordered],
            "method": method,
            "metrics": [[item.name, item.greater_is_better] for item in (metric, *extra_metrics)],
            "task": [task.name, task.classes, task.negative, task.threshold],
            "id": id_column,
            "truth": _digest(ids, targets),
        }
    )
    stored = _stored(folder, mark, ordered[0].test is not None)
    if stored is not None:
        return stored

    tables = [member.oof.take(ids) for member in ordered]
    folds = tables[0].fold
    assert folds is not None  # align has seen to it
    fitted = cross_fit(method, [table.values for table in tables], targets, folds, task, metric)
    metrics = (metric, *extra_metrics)
    plain = _scores(metrics, task, targets, fitted.plain, folds)
    honest = None if fitted.values is None else _scores(metrics, task, targets, fitted.values, folds)
    weights = dict(zip((member.name for member in ordered), fitted.weights, strict=True))
    own = {
        member.name: score(metric, task, targets, table.values) for member, table in zip(ordered, tables, strict=True)
    }
    by_name = {member.name: member for member in ordered}
    record = {
        "name": name,
        "method": method,
        "members": [
            {
                "name": each,
                "weight": float(weights[each]),
                "score": _number(own[each]),
                "digest": by_name[each].digest,
            }
            for each in given
        ],
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "task": task.name,
        "classes": list(task.classes),
        "rows": len(ids),
        "cv": plain,
        "cross_fitted": honest,
        "fold_weights": {
            str(fold): {each: float(found[names]) for names, each in enumerate(weights)}
            for fold, found in fitted.fold_weights.items()
        },
        "optimism": _optimism(fitted, metric),
        "oof": "plain" if fitted.values is None else "cross_fitted",
        "test": ordered[0].test is not None,
        "fingerprint": mark,
    }
    values = fitted.plain if fitted.values is None else fitted.values
    oof = Predictions(ids, values, task.classes, name, folds, folder / "oof.parquet")
    _write(folder, record, oof, _blend_test(method, ordered, fitted.weights, task, name), id_column)
    return record


def _align(table: Predictions, first: Predictions, pair: str, kind: str) -> Predictions:
    if table.classes != first.classes:
        raise BadInput(pair, f"{kind} classes differ: {some(first.classes)} against {some(table.classes)}")
    if table is first:
        return table
    mine, theirs = pd.Index(table.ids), pd.Index(first.ids)
    extra, missing = mine.difference(theirs, sort=False), theirs.difference(mine, sort=False)
    if len(extra) or len(missing):
        what = [f"{len(missing)} only in the first: {some(missing)}"] if len(missing) else []
        what += [f"{len(extra)} only in the second: {some(extra)}"] if len(extra) else []
        raise BadInput(pair, f"{kind} ids differ, {', '.join(what)}", "blend runs of the same competition and folds")
    found = table.take(first.ids)
    if found.fold is not None and first.fold is not None and (found.fold != first.fold).any():
        wrong = np.array(first.ids, dtype=object)[found.fold != first.fold]
        raise BadInput(
            pair, f"{len(wrong)} ids are in different folds: {some(wrong)}", "train both runs on the same fold table"
        )
    return found


def _labelled(member: Member, truth: Truth) -> tuple[tuple[str, ...], Floats]:
    ids, targets = truth
    check_ids(ids, "labels")
    if targets.shape != (len(ids), len(member.oof.classes)):
        raise BadInput(
            "labels", f"targets of shape {targets.shape} for {len(ids)} ids and {len(member.oof.classes)} classes"
        )
    known, predicted = pd.Index(ids), pd.Index(member.oof.ids)
    unknown = predicted.difference(known, sort=False)
    if len(unknown):
        raise BadInput(
            member.oof.where,
            f"{len(unknown)} predicted ids of '{member.name}' have no label: {some(unknown)}",
            "use the train CSV that the run was trained on",
        )
    kept = np.flatnonzero(known.isin(predicted))
    return tuple(ids[int(row)] for row in kept), targets[kept]


def _digest(ids: Sequence[str], targets: Floats) -> str:
    state = hashlib.sha256("\n".join(ids).encode())
    state.update(np.ascontiguousarray(targets, dtype=np.float32).tobytes())
    return state.hexdigest()


def _stored(folder: Path, mark: str, needs_test: bool) -> dict[str, Any] | None:
    path = folder / "ensemble.json"
    tables = ["oof.parquet", *(["test.parquet"] if needs_test else [])]
    if not path.is_file() or not all((folder / table).is_file() for table in tables):
        return None
    record = files.read_json(path)
    return record if isinstance(record, dict) and record.get("fingerprint") == mark else None


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _scores(metrics: Sequence[Metric], task: Task, targets: Floats, values: Floats, folds: Ints) -> dict[str, Any]:
    metric, *extra = metrics
    each = [(int(fold), folds == fold) for fold in np.unique(folds)]
    of_folds = [score(metric, task, targets[rows], values[rows]) for _, rows in each]
    spread = float(np.std(of_folds, ddof=1)) if len(of_folds) > 1 else None
    return {
        "score": _number(score(metric, task, targets, values)),
        "std": _number(spread),
        "folds": [
            {"fold": fold, "score": _number(found), "rows": int(rows.sum())}
            for (fold, rows), found in zip(each, of_folds, strict=True)
        ],
        "extra": {item.name: _number(score(item, task, targets, values)) for item in extra},
    }


def _optimism(fitted: CrossFit, metric: Metric) -> float | None:
    if fitted.score is None:
        return None
    gap = fitted.plain_score - fitted.score
    return _number(gap if metric.greater_is_better else -gap)


def _blend_test(
    method: BlendMethod, members: Sequence[Member], weights: Weights, task: Task, name: str
) -> Predictions | None:
    tests = [member.test for member in members if member.test is not None]
    if not tests:
        warn(f"the members of '{name}' have no test predictions, so the ensemble has none")
        return None
    # Sorted ids, so that the order of one member's rows is not that of the result.
    ids = tuple(sorted(tests[0].ids))
    values = apply(method, [test.take(ids).values for test in tests], weights, task)
    return Predictions(ids, values, task.classes, name, where=name)


def _write(folder: Path, record: dict[str, Any], oof: Predictions, test: Predictions | None, id_column: str) -> None:
    # The record goes first and comes last: a folder that was cut off half-way has none.
    (folder / "ensemble.json").unlink(missing_ok=True)
    oof.write(folder / "oof.parquet", id_column)
    if test is None:
        (folder / "test.parquet").unlink(missing_ok=True)
    else:
        test.write(folder / "test.parquet", id_column)
    files.write_json(folder / "ensemble.json", record)
