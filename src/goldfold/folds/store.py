"""Fold tables on disk: ``folds/<competition>.csv`` and its record ``.json``, checked against the train CSV."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config.schema import Folds
from goldfold.errors import BadInput, some
from goldfold.folds.deal import GIVEN, STRATIFIED, make_folds
from goldfold.folds.strata import whole_number
from goldfold.records import TRAIN_ONLY, Floats, FoldTable, Ints
from goldfold.tasks import Task

REMAKE = "'goldfold folds CONFIG --remake' makes new ones; scores before and after are not comparable"
ACCEPT = "the folds remain valid: 'goldfold folds CONFIG --accept' records the new file"
KEYS = (
    "scheme", "n", "seed", "repeats", "stratify", "bins", "column", "group", "rows", "source_sha256", "id",
    "train_columns", "column_sha256", "folds_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class StoredFolds:
    """What lies on disk: the tables (without groups, which only the train CSV holds), the record and the id column."""

    tables: list[FoldTable]
    record: dict[str, Any]
    id_column: str


@dataclass(frozen=True)
class Change:
    """How a train CSV differs from the one that the folds were made of: in ways that matter, or only in others."""

    matters: tuple[str, ...]
    harmless: tuple[str, ...]


def write_folds(
    path: Path,
    tables: Sequence[FoldTable],
    settings: Folds,
    frame: pd.DataFrame,
    id_column: str,
    columns: Sequence[str],
    train_csv: Path,
    *,
    group: str | None = None,
) -> None:
    """Writes ``path`` (id, fold, fold_1, ...: numbers within each repeat) and the ``.json`` beside it.

    ``frame``: the train CSV as text columns; ``columns``: those that the folds depend on (id, targets, group, stratify,
    column), whose digests are recorded. The files are whole or absent each; a pair that does not belong together is
    refused when it is read.
    """
    n = _count(tables[0])
    _write_csv(path, tables, id_column, n)
    record = {
        "scheme": settings.scheme,
        "n": n,
        "seed": settings.seed,
        "repeats": len(tables),
        "stratify": list(settings.stratify),
        "bins": settings.bins,
        "column": settings.column,
        "group": group,
        "rows": len(tables[0].ids),
        "id": id_column,
        "train_csv": train_csv.name,
        "source_sha256": tables[0].source_sha256,
        "train_columns": [str(name) for name in frame.columns],
        "column_sha256": {name: _digest(frame[id_column], frame[name]) for name in dict.fromkeys(columns)},
        "folds_sha256": _folds_digest(tables),
    }
    files.write_json(_record_path(path), record)


def read_folds(path: Path) -> StoredFolds:
    """The stored tables and their record. Raises BadInput when either file is missing, broken or edited by hand."""
    beside = _record_path(path)
    for present, absent in ((path, beside), (beside, path)):
        if present.exists() and not absent.exists():
            raise BadInput(
                absent, f"is missing, and {present.name} means nothing without it", f"restore it, or {REMAKE}"
            )
    frame = files.read_csv(path)
    record = files.read_json(beside)
    if not isinstance(record, dict) or any(key not in record for key in KEYS):
        lacking = [key for key in KEYS if not isinstance(record, dict) or key not in record]
        raise BadInput(beside, f"lacks the keys {some(lacking)}", f"restore it, or {REMAKE}")
    id_column, n, repeats = str(record["id"]), int(record["n"]), int(record["repeats"])
    expected = [id_column, *_fold_columns(repeats)]
    if list(frame.columns) != expected:
        raise BadInput(path, f"has the columns {some(frame.columns)}, expected {some(expected)}", REMAKE)
    ids = tuple(frame[id_column])
    tables = []
    for repeat, name in enumerate(expected[1:]):
        numbers = [whole_number(text) for text in frame[name]]
        wrong = [row + 2 for row, number in enumerate(numbers) if number is None or not TRAIN_ONLY <= number < n]
        if wrong:
            raise BadInput(path, f"column '{name}', row {some(wrong)}: not a fold from 0 to {n - 1}", REMAKE)
        fold = np.array(numbers, dtype=np.int64)
        fold[fold != TRAIN_ONLY] += repeat * n
        tables.append(
            FoldTable(
                ids, fold, str(record["scheme"]), int(record["seed"]) + repeat, record["source_sha256"], where=path
            )
        )
    if _folds_digest(tables) != record["folds_sha256"]:
        raise BadInput(
            path,
            f"does not match {beside.name}: it was edited, or only one of the two was written",
            f"restore both (folds of your own: folds.scheme: column), or {REMAKE}",
        )
    return StoredFolds(tables, record, id_column)


def open_folds(
    path: Path,
    settings: Folds,
    frame: pd.DataFrame,
    *,
    id_column: str,
    task: Task,
    targets: Floats,
    target_columns: Sequence[str],
    group: str | None,
    train_csv: Path,
    remake: bool = False,
) -> list[FoldTable]:
    """The competition's fold tables: made and written when neither file exists (or ``remake``), else read and checked.

    ``frame``: ``train_csv`` as text columns; the rest as for ``make_folds``. The tables carry the groups. Raises
    BadInput when the settings or the train CSV are not those that the folds were made of, and says what differs.
    """
    if remake or not (path.exists() or _record_path(path).exists()):
        tables = make_folds(
            settings,
            frame,
            id_column=id_column,
            task=task,
            targets=targets,
            target_columns=target_columns,
            group=group,
            source_sha256=files.sha256_file(train_csv),
        )
        columns = _columns_that_matter(settings, id_column, target_columns, group)
        write_folds(path, tables, settings, frame, id_column, columns, train_csv, group=group)
        return tables
    stored = read_folds(path)
    _check_settings(path, stored.record, settings, task, group)
    wanted = _columns_that_matter(settings, id_column, target_columns, group)
    recorded = set(stored.record["column_sha256"])
    if recorded != set(wanted):
        raise BadInput(
            path, f"made from the columns {some(sorted(recorded))}, the configuration names {some(wanted)}", REMAKE
        )
    change = _compare(stored, frame, files.sha256_file(train_csv) == stored.record["source_sha256"])
    _refuse(path, train_csv, change)
    if change.harmless:
        raise BadInput(path, f"{train_csv} has changed since ({'; '.join(change.harmless)})", ACCEPT)
    if group is None:
        return stored.tables
    group_of = dict(zip(frame[id_column], frame[group], strict=True))
    groups = tuple(group_of[name] for name in stored.tables[0].ids)
    return [dataclasses.replace(table, groups=groups) for table in stored.tables]


def accept_source(path: Path, frame: pd.DataFrame, *, train_csv: Path) -> tuple[str, ...]:
    """Records a train CSV (``frame``: its text columns) that changed in ways that cannot matter to the folds.

    The folds stay as they are, by id; rows follow the new file's order. Returns what had changed (empty: nothing).
    Raises BadInput when ids or a column that matters changed.
    """
    stored = read_folds(path)
    sha256 = files.sha256_file(train_csv)
    change = _compare(stored, frame, sha256 == stored.record["source_sha256"])
    _refuse(path, train_csv, change)
    if not change.harmless:
        return ()
    ids = tuple(frame[stored.id_column])
    tables = [
        dataclasses.replace(table, ids=ids, fold=table.fold[table.rows(ids, path)], source_sha256=sha256)
        for table in stored.tables
    ]
    _write_csv(path, tables, stored.id_column, int(stored.record["n"]))
    changes = {
        "source_sha256": sha256,
        "train_csv": train_csv.name,
        "train_columns": [str(name) for name in frame.columns],
    }
    files.write_json(_record_path(path), stored.record | changes)
    return change.harmless


def _columns_that_matter(
    settings: Folds, id_column: str, target_columns: Sequence[str], group: str | None
) -> list[str]:
    given = [settings.column] if settings.column is not None and settings.scheme in GIVEN else []
    return list(dict.fromkeys([id_column, *target_columns, *([group] if group else []), *settings.stratify, *given]))


def _check_settings(path: Path, record: dict[str, Any], settings: Folds, task: Task, group: str | None) -> None:
    """Refuses stored folds of other settings; only the keys that the scheme reads count."""
    keys = ["scheme", "column"] if settings.scheme in GIVEN else ["scheme", "n", "seed", "repeats", "stratify"]
    if settings.scheme in STRATIFIED and (settings.stratify or task.name == "regression"):
        keys.append("bins")
    now = settings.model_dump(mode="json") | {"group": group}
    differ = [key for key in [*keys, "group"] if record[key] != now[key]]
    if differ:
        before = ", ".join(f"{key}={_show(record[key])}" for key in differ)
        after = ", ".join(f"{key}={_show(now[key])}" for key in differ)
        raise BadInput(path, f"the folds were made with {before}, the configuration says {after}", REMAKE)


def _compare(stored: StoredFolds, frame: pd.DataFrame, same_bytes: bool) -> Change:
    """What changed in the train CSV since the folds were made."""
    record, id_column = stored.record, stored.id_column
    if id_column not in frame:
        return Change((f"the id column '{id_column}' is gone",), ())
    before, now = list(stored.tables[0].ids), list(frame[id_column])
    old, new = set(before), set(now)
    matters = []
    if new - old:
        matters.append(f"{_ids(len(new - old))} added: {some([name for name in now if name not in old])}")
    if old - new:
        matters.append(f"{_ids(len(old - new))} removed: {some([name for name in before if name not in new])}")
    if len(now) != len(new):
        matters.append(f"{len(now) - len(new)} rows repeat an id")
    columns: dict[str, str] = record["column_sha256"]
    missing = [name for name in columns if name not in frame]
    if missing:
        matters.append(f"columns that mattered are gone: {some(missing)}")
    if matters or same_bytes:
        # With other ids every column's digest differs, which would say nothing; with the same bytes none does.
        return Change(tuple(matters), ())
    changed = [name for name, digest in columns.items() if _digest(frame[id_column], frame[name]) != digest]
    if changed:
        return Change((f"values changed in column {some(changed)}",), ())
    harmless = []
    if before != now:
        harmless.append("the same rows in another order")
    added = [name for name in frame.columns if name not in record["train_columns"]]
    gone = [name for name in record["train_columns"] if name not in frame]
    if added:
        harmless.append(f"columns added that do not matter: {some(added)}")
    if gone:
        harmless.append(f"columns removed that did not matter: {some(gone)}")
    return Change(
        (), tuple(harmless or ["nothing that the folds depend on: other columns' values, quoting or line endings"])
    )


def _refuse(path: Path, train_csv: Path, change: Change) -> None:
    if change.matters:
        what = f"the folds were made of another {train_csv} ({'; '.join(change.matters)})"
        raise BadInput(path, what, f"restore it, or {REMAKE}")


def _digest(ids: pd.Series[Any], values: pd.Series[Any]) -> str:
    """A digest of a column by id, whatever the order of rows."""
    digest = hashlib.sha256()
    for name, value in sorted(zip(ids.astype(str), values.astype(str), strict=True)):
        # Lengths first, so that no two columns of texts run together to the same bytes.
        digest.update(f"{len(name)}:{name}{len(value)}:{value}".encode())
    return digest.hexdigest()


def _folds_digest(tables: Sequence[FoldTable]) -> str:
    ids = pd.Series(tables[0].ids)
    return files.fingerprint([_digest(ids, pd.Series(table.fold).astype(str)) for table in tables])


def _write_csv(path: Path, tables: Sequence[FoldTable], id_column: str, n: int) -> None:
    ids = tables[0].ids
    frame = pd.DataFrame({id_column: pd.Series(ids, dtype=object)})
    for repeat, (name, table) in enumerate(zip(_fold_columns(len(tables)), tables, strict=True)):
        fold: Ints = table.fold[table.rows(ids, path)]
        frame[name] = np.where(fold == TRAIN_ONLY, TRAIN_ONLY, fold - repeat * n)
    files.write_csv(path, frame)


def _count(table: FoldTable) -> int:
    """The number of folds of the first repeat."""
    return len(table.folds)


def _fold_columns(repeats: int) -> list[str]:
    return ["fold", *(f"fold_{repeat}" for repeat in range(1, repeats))]


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _ids(count: int) -> str:
    return "1 id" if count == 1 else f"{count} ids"


def _show(value: object) -> str:
    return "null" if value is None else str(value)
