"""How right the pseudo-labels of finished runs were, once the labels of their images are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config import Config
from goldfold.paths import RunPaths, Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.lineage import find_source, is_leaky_source, lineage, named
from goldfold.records import Floats, SoftLabels
from goldfold.tasks import Task, encode


@dataclass(frozen=True)
class LabelScore:
    """Means over a run's folds (and seeds): ``number`` of labels whose truth is known, and how right they were.

    ``right``: the share of right ones; of a regression the mean absolute error. ``classes``: by the class that was given,
    how many and the share of right ones (multilabel: by label, of the images that were given it). None where a class was
    given to no image of any fold.
    """

    run: str
    leaky: bool
    folds: int
    number: float
    right: float | None
    classes: Mapping[str, tuple[float, float | None]]

    def line(self, task: Task) -> str:
        """One line for people."""
        of = f"{named(self.run, self.leaky)}: {self.number:.0f} pseudo-labels a fold with a known label"
        if self.right is None:
            return of
        if task.name == "regression":
            return f"{of}: mean absolute error {self.right:.4f}"
        shares = [
            f"{name} {share:.4f} of {number:.0f}" for name, (number, share) in self.classes.items() if share is not None
        ]
        return f"{of}: {self.right:.4f} right ({', '.join(shares)}; mean over {self.folds} folds)"


def score_submitted_labels(
    submission: Path, solution: Path, config: Config, workspace: Workspace
) -> list[tuple[Task, LabelScore]]:
    """How right the pseudo-labels were that stand behind a submission, by ``score_labels``.

    The submission's .json names its source. Nothing is found where there is none, where it is that of another CSV, or
    where the source is not in this folder. Raises BadInput as reading the solution does.
    """
    beside = submission.with_suffix(".json")
    if not beside.exists():
        return []
    record = files.read_json(beside)
    source = record.get("source") if isinstance(record, dict) else None
    if not source or record.get("sha256") != files.sha256_file(submission) or find_source(source, workspace) is None:
        return []
    return score_labels(lineage(source, workspace), solution, config, workspace)


def score_labels(
    runs: Sequence[str], solution: Path, config: Config, workspace: Workspace
) -> list[tuple[Task, LabelScore]]:
    """How right the stored pseudo-labels of ``runs`` were, on the ids that ``solution`` knows; runs without any left out."""
    settings = config.competition
    students = [name for name in runs if _label_tables(workspace.run(name))]
    if not students:
        return []
    task = load_competition(settings, workspace.root).task
    known = files.read_csv(solution)
    truth, ids = encode(task, known, settings.target, solution), tuple(known[settings.id])
    found = []
    for name in students:
        tables = [SoftLabels.read(path) for path in _label_tables(workspace.run(name))]
        score = _mean(name, is_leaky_source(name, workspace), [_compare(table, ids, truth, task) for table in tables])
        if score is not None:
            found.append((task, score))
    return found


def _label_tables(run: RunPaths) -> list[Path]:
    return sorted(run.folder.glob("fold*/labels.parquet"))


@dataclass(frozen=True)
class _Fold:
    """``hits`` (n, 1) or, for multilabel, (n, C); ``given`` (n, C): the classes that the labels name."""

    hits: Floats
    given: Floats
    classes: tuple[str, ...]


def _compare(soft: SoftLabels, ids: Sequence[str], truth: Floats, task: Task) -> _Fold:
    """A fold's labels against the truth, by id; for a regression ``hits`` are absolute errors (n, C)."""
    rows = pd.Index(ids).get_indexer(pd.Index(soft.ids))
    mine, theirs = soft.targets[rows >= 0], truth[rows[rows >= 0]]
    if task.name == "regression":
        return _Fold(np.abs(mine - theirs), np.zeros((len(mine), 0), dtype=np.float32), ())
    if task.name == "multilabel":
        given = (mine >= task.threshold).astype(np.float32)
        return _Fold((given == (theirs >= 0.5)).astype(np.float32), given, task.classes)
    if task.name == "binary":
        answers, true = (mine[:, 0] >= task.threshold).astype(int), (theirs[:, 0] >= 0.5).astype(int)
    else:
        answers, true = mine.argmax(axis=1), theirs.argmax(axis=1)
    labels = tuple(task.labels())
    return _Fold((answers == true).astype(np.float32)[:, None], np.eye(len(labels), dtype=np.float32)[answers], labels)


def _mean(run: str, leaky: bool, folds: Sequence[_Fold]) -> LabelScore | None:
    """Means over folds; a share over those folds that have such labels. None where no label's truth is known."""
    if not any(len(fold.hits) for fold in folds):
        return None
    classes = {}
    for column, name in enumerate(folds[0].classes):
        shares = []
        for fold in folds:
            given = fold.given[:, column] > 0
            hits = fold.hits[:, column if fold.hits.shape[1] > 1 else 0]
            shares += [float(hits[given].mean())] if given.any() else []
        number = fmean(float(fold.given[:, column].sum()) for fold in folds)
        classes[name] = (number, fmean(shares) if shares else None)
    return LabelScore(
        run,
        leaky,
        len(folds),
        fmean(len(fold.hits) for fold in folds),
        fmean(float(fold.hits.mean()) for fold in folds if len(fold.hits)),
        classes,
    )
