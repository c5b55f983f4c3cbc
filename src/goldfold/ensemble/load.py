"""Members of an ensemble, read and brought into one order; and what a stored ensemble was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.ensemble.blend import Blend
from goldfold.ensemble.calibration import Calibration
from goldfold.errors import BadInput, some
from goldfold.paths import RunPaths
from goldfold.records import Predictions
from goldfold.tasks import Decisions, Task


@dataclass(frozen=True)
class Member:
    """A finished run inside an ensemble.

    ``oof`` has folds (with repeats: those of the first); ``digest`` changes with either table; ``folds``: the numbers of
    all folds that the run was validated on, every repeat's (empty: those of ``oof``); ``fold_table``: a digest of the fold
    table that it was trained on (empty: not known); ``leaky``: its scores are inflated; ``optimistic``: validation labels
    chose its weights.
    """

    name: str
    oof: Predictions
    test: Predictions | None
    digest: str
    folds: tuple[int, ...] = ()
    leaky: bool = False
    optimistic: bool = False
    fold_table: str = ""


def load_member(run_paths: RunPaths) -> Member:
    """The member of a finished run. Raises BadInput when the run is not finished or its tables are broken."""
    if not run_paths.cv.is_file():
        state = "is not finished (it has no cv.json)" if run_paths.folder.is_dir() else "does not exist"
        raise BadInput(run_paths.folder, f"the run {state}", "run 'goldfold train' with its experiment first")
    name = run_paths.name
    test = Predictions.read(run_paths.test, name) if run_paths.test.is_file() else None
    digests = [files.sha256_file(path) for path in (run_paths.oof, run_paths.test) if path.is_file()]
    cv = files.read_json(run_paths.cv)
    try:
        folds = tuple(sorted(int(entry["fold"]) for entry in cv["folds"]))
        leaky, optimistic = bool(cv["leaky"]), bool(cv["optimistic"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            run_paths.cv, f"not the scores of a run ({type(error).__name__}: {error})", "train the run again"
        ) from None
    oof = Predictions.read(run_paths.oof, name)
    record = files.read_json(run_paths.record) if run_paths.record.is_file() else {}
    table = str(record.get("inputs", {}).get("folds", ""))
    return Member(name, oof, test, files.fingerprint(digests), folds, leaky, optimistic, table)


def align(members: Sequence[Member]) -> list[Member]:
    """The members with all rows in the order of the first member's ids.

    Raises BadInput, naming the two members and the first ids, when the members differ in ids, classes, the fold of an id
    or the number of folds (of another number of repeats, say), in the fold table where there are repeats, whose folds no
    out-of-fold table holds, when some have test predictions and others have none, or
    when a member appears twice.
    """
    if not members:
        raise BadInput("ensemble", "there are no members", "name at least one run")
    names = [member.name for member in members]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadInput("ensemble", f"members are named twice: {some(doubled)}", "name each run once")
    first = members[0]
    index = pd.Index(first.oof.ids)
    test_index = index if first.test is None else pd.Index(first.test.ids)
    aligned = []
    for member in members:
        if member.oof.fold is None:
            raise BadInput(member.oof.where, f"the out-of-fold predictions of '{member.name}' have no folds")
        pair = f"members '{first.name}' and '{member.name}'"
        if (first.test is None) != (member.test is None):
            has, lacks = (first, member) if member.test is None else (member, first)
            raise BadInput(pair, f"'{has.name}' has test predictions, '{lacks.name}' has none", "finish both runs")
        if _folds(member) != _folds(first):
            raise BadInput(
                pair, f"{_folds_text(first)} against {_folds_text(member)}", "train both runs on the same fold table"
            )
        repeated = len(_folds(first)) > len(_first_folds(first))
        if repeated and member.fold_table and first.fold_table and member.fold_table != first.fold_table:
            raise BadInput(pair, "their fold tables differ", "train both runs on the same fold table")
        oof = _align(member.oof, first.oof, index, pair, "out-of-fold")
        test = None
        if member.test is not None and first.test is not None:
            if member.test.classes != member.oof.classes:
                raise BadInput(member.test.where, "classes differ from those of the out-of-fold predictions")
            test = _align(member.test, first.test, test_index, pair, "test")
        aligned.append(replace(member, oof=oof, test=test))
    return aligned


def load_blend(folder: Path, fold: int | None) -> Blend:
    """The blend of a stored ensemble (``ensembles/<name>``), before its calibration.

    ``fold``: the one that was fitted without that fold's labels; None: the one of all rows. Raises BadInput when the
    folder holds no ensemble, or none for that fold.
    """
    record = _record(folder)
    where = folder / "ensemble.json"
    if fold is None:
        return Blend.from_dict(record["fitted"]["blend"], where)
    stored = record["fold_fitted"]
    if not stored and record["method"] in ("mean", "gmean"):
        return Blend.from_dict(record["fitted"]["blend"], where)  # equal weights: no label shaped them
    if str(fold) not in stored:
        known = some(sorted(int(number) for number in stored), 30)
        raise BadInput(
            where,
            f"the ensemble has no blend that was fitted without fold {fold}",
            f"it has those without fold {known}" if stored else "its members have one fold, so nothing is cross-fitted",
        )
    return Blend.from_dict(stored[str(fold)]["blend"], where)


def load_calibration(folder: Path, task: Task, fold: int | None = None) -> Calibration | None:
    """The calibration that a stored ensemble's ``test.parquet`` holds, fitted on all rows, or the one that was fitted
    without a fold's labels; None: none was asked for. Raises BadInput as ``load_blend`` does."""
    record = _record(folder)
    if fold is not None and record["calibration"] != "none":
        if str(fold) not in record["fold_fitted"]:
            raise BadInput(
                folder / "ensemble.json",
                f"no temperature was fitted without fold {fold}, as its members have one fold",
                "make the ensemble without calibration",
            )
        found = record["fold_fitted"][str(fold)]["calibration"]
    else:
        found = record["fitted"]["calibration"]
    return None if found is None else Calibration.from_dict(found, task, folder / "ensemble.json")


def load_decisions(folder: Path, task: Task) -> Decisions | None:
    """The decisions of a stored ensemble, fitted on all rows; None where answers are decided as ever. Raises BadInput."""
    found = _record(folder)["fitted"]["decisions"]
    return None if found is None else Decisions.from_dict(found, task, folder / "ensemble.json")


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "ensemble.json"
    record = files.read_json(path)
    if not isinstance(record, dict) or not {"fitted", "fold_fitted"} <= record.keys():
        raise BadInput(path, "it was written by another version of Goldfold", "run 'goldfold ensemble' again")
    return record


def _folds(member: Member) -> tuple[int, ...]:
    return member.folds or _first_folds(member)


def _first_folds(member: Member) -> tuple[int, ...]:
    return () if member.oof.fold is None else tuple(int(fold) for fold in np.unique(member.oof.fold))


def _folds_text(member: Member) -> str:
    count, first = len(_folds(member)), len(_first_folds(member))
    repeats = f", {count // first} repeats of {first}" if count > first > 0 else ""
    return f"'{member.name}' has {count} fold{'s' if count != 1 else ''} ({some(_folds(member), 3)}{repeats})"


def _align(table: Predictions, first: Predictions, index: pd.Index[str], pair: str, kind: str) -> Predictions:
    """``table`` in the order of ``first``, whose ids are ``index``."""
    if table.classes != first.classes:
        raise BadInput(pair, f"{kind} classes differ: {some(first.classes)} against {some(table.classes)}")
    found = table
    if table.ids != first.ids:
        # Where each of its ids stands in the first: one look-up table serves all members.
        places = index.get_indexer(pd.Index(table.ids))
        if (places < 0).any() or len(table.ids) != len(first.ids):
            mine, theirs = pd.Index(table.ids), pd.Index(first.ids)
            extra, missing = mine.difference(theirs, sort=False), theirs.difference(mine, sort=False)
            what = [f"{len(missing)} only in the first: {some(missing)}"] if len(missing) else []
            what += [f"{len(extra)} only in the second: {some(extra)}"] if len(extra) else []
            raise BadInput(
                pair, f"{kind} ids differ, {', '.join(what)}", "blend runs of the same competition and folds"
            )
        rows = np.empty(len(places), dtype=np.int64)
        rows[places] = np.arange(len(places))
        fold = None if table.fold is None else table.fold[rows]
        found = Predictions(first.ids, table.values[rows], table.classes, table.run, fold, table.where)
    if found.fold is not None and first.fold is not None and (found.fold != first.fold).any():
        wrong = np.array(first.ids, dtype=object)[found.fold != first.fold]
        raise BadInput(
            pair, f"{len(wrong)} ids are in different folds: {some(wrong)}", "train both runs on the same fold table"
        )
    return found
