"""A competition's tables, read and checked once for every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config.schema import Competition
from goldfold.errors import BadInput, some
from goldfold.images import locate
from goldfold.metrics import Metric, get_metric, require_task
from goldfold.paths import find_input
from goldfold.records import Floats, Ints, check_ids
from goldfold.tasks import Task, encode, make_task


@dataclass(frozen=True, eq=False)
class CompetitionData:
    """The rows of a competition. Tables hold text; ``targets`` (N, C) belong to ``ids`` in their order."""

    settings: Competition
    task: Task
    metrics: tuple[Metric, ...]
    train: pd.DataFrame
    ids: tuple[str, ...]
    targets: Floats
    train_paths: list[Path]
    train_csv: Path
    test: pd.DataFrame | None = None
    test_ids: tuple[str, ...] = ()
    test_paths: tuple[Path, ...] = ()
    test_csv: Path | None = None
    sample: pd.DataFrame | None = None
    sample_csv: Path | None = None

    @property
    def target_columns(self) -> list[str]:
        target = self.settings.target
        return [target] if isinstance(target, str) else list(target)

    def targets_of(self, ids: tuple[str, ...]) -> Floats:
        """Targets (n, C) of some training ids, by id."""
        return self.targets[self.rows_of(ids)]

    def rows_of(self, ids: tuple[str, ...]) -> Ints:
        """Row numbers of some training ids in ``train`` and ``targets``. Raises BadInput when one is missing."""
        rows = pd.Index(self.ids).get_indexer(pd.Index(ids))
        if (rows < 0).any():
            missing = np.array(ids, dtype=object)[rows < 0]
            raise BadInput(self.train_csv, f"{len(missing)} ids are missing: {some(missing)}")
        return rows.astype(np.int64)


def load_competition(settings: Competition, root: Path) -> CompetitionData:
    """Read train, test and sample CSVs. Raises BadInput on missing files and columns, bad ids and unknown labels."""
    metrics = tuple(_metrics(settings, root))
    train_csv = find_input(root, settings.name, settings.train_csv)
    train = read_rows(train_csv, settings, [*_columns(settings.target), *([settings.group] if settings.group else [])])
    if train.empty:
        raise BadInput(train_csv, "there are no rows")
    task = make_task(
        settings.task,
        train,
        settings.target,
        classes=settings.classes,
        threshold=settings.threshold,
        separator=settings.separator,
        where=train_csv,
    )
    for metric in metrics:
        require_task(metric, task.name)
    test: pd.DataFrame | None = None
    test_ids: tuple[str, ...] = ()
    test_paths: tuple[Path, ...] = ()
    test_csv: Path | None = None
    if settings.test_csv is not None:
        test_csv = find_input(root, settings.name, settings.test_csv)
        test = read_rows(test_csv, settings, [])
        test_ids = tuple(test[settings.id])
        pattern = settings.test_image_path or settings.image_path
        test_paths = tuple(locate_images(pattern, test, root, settings, test_csv))
    sample, sample_csv = None, None
    if settings.sample_submission is not None:
        sample_csv = find_input(root, settings.name, settings.sample_submission)
        sample = read_rows(sample_csv, settings, [])
    return CompetitionData(
        settings=settings,
        task=task,
        metrics=metrics,
        train=train,
        ids=tuple(train[settings.id]),
        targets=encode(task, train, settings.target, train_csv),
        train_paths=locate_images(settings.image_path, train, root, settings, train_csv),
        train_csv=train_csv,
        test=test,
        test_ids=test_ids,
        test_paths=test_paths,
        test_csv=test_csv,
        sample=sample,
        sample_csv=sample_csv,
    )


def rows_section(settings: Competition) -> dict[str, Any]:
    """The keys that say which rows are scored, and how; further training and unlabelled images take no part."""
    return settings.model_dump(mode="json", exclude={"external", "unlabelled"})


def same_rows(first: Competition, second: Competition) -> bool:
    """Whether two experiments are scored on the same rows; external and unlabelled images may differ."""
    return rows_section(first) == rows_section(second)


def read_rows(path: Path, settings: Competition, columns: list[str]) -> pd.DataFrame:
    """A CSV of the competition with its id column and ``columns``. Raises BadInput on missing columns and bad ids."""
    frame = files.read_csv(path)
    missing = [column for column in [settings.id, *columns] if column not in frame]
    if missing:
        key = "competition.id" if settings.id in missing else "competition.target or competition.group"
        raise BadInput(
            path, f"the column '{missing[0]}' is missing", f"the columns are {some(frame.columns, 20)}; mend {key}"
        )
    check_ids(list(frame[settings.id]), path)
    return frame


def _columns(target: str | tuple[str, ...]) -> list[str]:
    return [target] if isinstance(target, str) else list(target)


def _metrics(settings: Competition, root: Path) -> list[Metric]:
    first = get_metric(settings.metric, settings.metric_direction, root)
    others = [get_metric(name, "max" if ":" in name else None, root) for name in settings.extra_metrics]
    return [first, *(metric for metric in others if metric.name != first.name)]


def locate_images(pattern: str, frame: pd.DataFrame, root: Path, settings: Competition, where: Path) -> list[Path]:
    """Each row's image file. Raises BadInput on ids that escape the image folder."""
    found = find_input(root, settings.name, pattern)
    # The pattern is looked up from its folder; an absolute pattern stays as it is.
    if found != root / pattern:
        return locate(str(found), frame, Path("/"), where)
    return locate(pattern, frame, root, where)
