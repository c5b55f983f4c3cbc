"""Pseudo-labels on disk: what a fold's student was given, kept beside its bundle."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from goldfold import files
from goldfold.paths import FoldPaths
from goldfold.records import SoftLabels
from goldfold.rounds.pseudo import Selection
from goldfold.tasks import Task


def store_labels(
    paths: FoldPaths,
    soft: SoftLabels,
    selection: Selection,
    teachers: Sequence[str],
    fingerprint: str,
    id_column: str,
    task: Task,
) -> None:
    """Write ``labels.parquet`` and then ``labels.json``. Without any label there is no table."""
    paths.labels_record.unlink(missing_ok=True)
    if soft.ids:
        soft.write(paths.labels, id_column, task.classes)
    else:
        paths.labels.unlink(missing_ok=True)
    files.write_json(
        paths.labels_record,
        {
            "fingerprint": fingerprint,
            "teachers": list(teachers),
            "excluded_fold": soft.excluded_fold,
            "candidates": selection.candidates,
            "taken": len(soft.ids),
            "classes": selection.classes,
            "mean_confidence": selection.mean_confidence,
        },
    )


def has_labels(paths: FoldPaths, fingerprint: str) -> bool:
    """Whether these very labels are stored: the record, which is written last, and the table that it tells of."""
    if not paths.labels_record.exists():
        return False
    record = files.read_json(paths.labels_record)
    return record["fingerprint"] == fingerprint and (record["taken"] == 0 or paths.labels.exists())


def read_labels(paths: FoldPaths) -> SoftLabels | None:
    """The labels of ``store_labels``; None: none was taken."""
    return SoftLabels.read(paths.labels) if files.read_json(paths.labels_record)["taken"] else None


def copy_labels(source: FoldPaths, target: FoldPaths) -> None:
    """Store the labels of one seed's student for another's: they depend on teachers alone."""
    target.labels_record.unlink(missing_ok=True)
    if source.labels.exists():
        files.write_atomic(target.labels, lambda temporary: _copy(source.labels, temporary))
    else:
        target.labels.unlink(missing_ok=True)
    files.write_json(target.labels_record, files.read_json(source.labels_record))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
