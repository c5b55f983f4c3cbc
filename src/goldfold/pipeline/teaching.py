"""What a fold's job gets from its teachers: labels of unlabelled images, and probabilities to distil from.

Fold k's student is taught by bundles that left fold k out; ``SoftLabels.excluded_fold`` carries that to the data room,
which refuses anything else. ``teacher.leaky`` asks the bundles of all folds instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config import Config
from goldfold.data import JoinedImages, add_soft_labels, add_teacher, rows_of
from goldfold.errors import BadInput
from goldfold.images import Images, ImageSpec
from goldfold.machine import Machine, find_machine
from goldfold.paths import FoldPaths, RunPaths, Workspace
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.external import outside
from goldfold.pipeline.inner import inner_values
from goldfold.pipeline.jobs import Sources, cache_folder, plain_job
from goldfold.progress import say, warn
from goldfold.records import Floats, FoldTable, Predictions, SoftLabels
from goldfold.rounds import (
    Pool,
    Selection,
    Stores,
    Teacher,
    combine,
    copy_labels,
    excluded_fold,
    has_labels,
    imbalance,
    join,
    mean_of,
    members,
    online_bundles,
    open_teachers,
    predicted_voices,
    read_labels,
    select,
    store_labels,
    stored_voices,
)
from goldfold.teaching import OnlineTeacher, label_views
from goldfold.training import FoldJob

LABELS_FORMAT = 1
"""Raise it when the same teachers and settings would give other labels, so that stored ones are made again."""

NO_CHOICE = ("sampling_prob", "cool_down")
"""Keys of teacher.pseudo that shape the training and not the labels."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """One fold's student and its teachers.

    ``asked``: the fold whose bundles are asked; None: those of all folds. ``excluded``: the fold whose labels none of
    them has seen; None, too, where a teacher's own scores are leaky.
    """

    config: Config
    data: CompetitionData
    workspace: Workspace
    table: FoldTable
    sources: Sources
    machine: Machine
    teachers: tuple[Teacher, ...]
    asked: int | None
    excluded: int | None
    leaky: bool

    @property
    def names(self) -> str:
        return f"labels of {', '.join(teacher.name for teacher in self.teachers)}"

    @property
    def cache(self) -> Path | None:
        return cache_folder(self.config, self.workspace)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Images that may be pseudo-labelled: ``pool`` for the teachers, ``images`` for the student."""

    pool: Pool
    images: Images
    csv: Path
    is_test: bool


def make_job(
    config: Config,
    data: CompetitionData,
    workspace: Workspace,
    table: FoldTable,
    fold: int,
    seed: int,
    paths: FoldPaths,
    sources: Sources,
    fingerprint: str,
    machine: Machine | None = None,
) -> FoldJob:
    """All that training this fold needs. Without a ``fingerprint`` nothing is written (a test of settings).

    ``machine``: what the run computes in; its teachers answer as it predicts.

    Raises BadInput and, when a teacher has seen the fold, LeakError.
    """
    job = plain_job(config, data, workspace, table, fold, seed, paths, sources, fingerprint)
    teacher = config.teacher
    if fingerprint and teacher.pseudo.labels == "none":
        # A run that never began may have been started anew with other settings.
        paths.labels_record.unlink(missing_ok=True)
        paths.labels.unlink(missing_ok=True)
    if not teacher.runs:
        return job
    teachers = open_teachers(teacher.runs, workspace)
    leaky = teacher.leaky or any(found.leaky for found in teachers)
    asked = None if teacher.leaky else fold
    lesson = Lesson(
        config=config,
        data=data,
        workspace=workspace,
        table=table,
        sources=sources,
        machine=(machine or find_machine(config.train)).predicting,
        teachers=teachers,
        asked=asked,
        excluded=excluded_fold(teachers, asked),
        leaky=leaky,
    )
    # A student of a leaky teacher is leaky, whether or not it asked for that.
    job = replace(job, recipe=replace(job.recipe, teacher=teacher.model_copy(update={"leaky": leaky})))
    if teacher.distill.weight or teacher.distill.features:
        job = _distilled(lesson, job)
    if teacher.pseudo.labels != "none":
        job = _pseudo_labelled(lesson, job)
    return job


# --- probabilities of the training rows -------------------------------------------------------------------------------


def _distilled(lesson: Lesson, job: FoldJob) -> FoldJob:
    how, config = lesson.config.teacher.distill.how, lesson.config
    if how == "online":
        bundles = tuple((path.folder, weight) for path, weight in online_bundles(lesson.teachers, lesson.asked))
        online = OnlineTeacher(bundles, lesson.excluded)
        if not config.model.freeze.cache:
            return replace(job, teacher=online)
        stores, shown = Stores(_labelled_pools(lesson, job), lesson.cache), config.model.freeze.cache_views
        assert isinstance(shown, str)  # drawn ones are refused when the configuration is read
        views = label_views(
            online,
            lesson.machine,
            lambda spec: _joined(stores, spec),
            stores.chosen,
            shown,
            fold=job.fold,
            task=job.task,
            leaky=lesson.leaky,
            batch_size=config.tta.batch_size,
            what=f"{job.run} fold {job.fold}: online teachers",
        )
        return _with_teacher(lesson, job, views)
    if lesson.asked is None:
        ids, values = _out_of_fold(lesson)
    elif how == "cross_fitted" and job.fingerprint:
        ids, values = _cross_fitted(lesson, job, lesson.asked)
    else:
        # What inner folds would say cannot be had without training them.
        stores = Stores(_labelled_pools(lesson, job), lesson.cache)
        ids, values = stores.chosen, _said(lesson, _predicted(lesson, stores))
    weights = np.ones(len(ids), dtype=np.float32)
    return _with_teacher(lesson, job, [SoftLabels(ids, values, weights, lesson.excluded, lesson.names)])


def _with_teacher(lesson: Lesson, job: FoldJob, views: Sequence[SoftLabels]) -> FoldJob:
    return replace(job, examples=add_teacher(job.examples, views, job.fold, leaky=lesson.leaky))


def _labelled_pools(lesson: Lesson, job: FoldJob) -> list[Pool]:
    """The fold's training rows and the external rows that train with them."""
    data, used = lesson.data, set(job.examples.ids)
    train_ids = lesson.table.train_ids(job.fold)
    pools = [Pool("train images", data.ids, tuple(data.train_paths), data.train, train_ids)]
    for part, _ in lesson.sources.external:
        chosen = tuple(name for name in part.ids if name in used)
        if chosen:
            pools.append(Pool(part.csv.name, part.ids, part.paths, part.frame, chosen))
    return pools


def _joined(stores: Stores, spec: ImageSpec) -> Images:
    opened = [stores.open(number, spec) for number in range(len(stores.pools))]
    return reduce(lambda first, second: JoinedImages(first, second), opened)


def _predicted(lesson: Lesson, stores: Stores) -> dict[str, list[Floats]]:
    return predicted_voices(
        members(lesson.teachers, lesson.asked),
        lesson.asked,
        stores,
        lesson.data.task,
        machine=lesson.machine,
        batch_size=lesson.config.tta.batch_size,
    )


def _said(lesson: Lesson, voices: dict[str, list[Floats]]) -> Floats:
    """(N, C) of all teachers together."""
    return combine(lesson.teachers, lesson.asked, mean_of(voices), lesson.data.task)


def _out_of_fold(lesson: Lesson) -> tuple[tuple[str, ...], Floats]:
    """The leaky form: out-of-fold predictions of the training rows, by teachers of which all but one fold's saw fold k."""
    runs = members(lesson.teachers, None)
    tables = {run.name: Predictions.read(run.paths.oof, run.name) for run in runs}
    common = set.intersection(*(set(table.ids) for table in tables.values()))
    ids = tuple(name for name in lesson.data.ids if name in common)
    values = {name: table.take(ids).values for name, table in tables.items()}
    return ids, combine(lesson.teachers, None, values, lesson.data.task)


def _cross_fitted(lesson: Lesson, job: FoldJob, fold: int) -> tuple[tuple[str, ...], Floats]:
    # The inner networks depend on teachers alone: all seeds of the student share those of the first.
    paths = RunPaths(job.paths.folder.parent).fold(fold)
    values = {
        run.name: inner_values(lesson.config, lesson.data, lesson.workspace, lesson.table, fold, run, paths)
        for run in members(lesson.teachers, fold)
    }
    return lesson.table.train_ids(fold), combine(lesson.teachers, fold, values, lesson.data.task)


# --- labels of unlabelled images --------------------------------------------------------------------------------------


def _pseudo_labelled(lesson: Lesson, job: FoldJob) -> FoldJob:
    candidates = _candidates(lesson, job)
    soft = _labels(lesson, job, candidates)
    if soft is None:
        return job
    examples = job.examples
    for found in candidates:
        own = set(found.pool.chosen)
        taken = np.array([name in own for name in soft.ids], dtype=np.bool_)
        if not taken.any():
            continue
        part = SoftLabels(
            tuple(name for name in soft.ids if name in own),
            soft.targets[taken],
            soft.weights[taken],
            soft.excluded_fold,
            soft.where,
        )
        metadata = None
        if job.metadata is not None:
            rows = pd.Index(found.pool.ids).get_indexer(pd.Index(part.ids))
            metadata = job.metadata.transform(found.pool.frame.iloc[rows], found.csv, job.id_column)
        examples = add_soft_labels(examples, found.images, part, job.fold, metadata, leaky=lesson.leaky)
    return replace(job, examples=examples)


def _candidates(lesson: Lesson, job: FoldJob) -> list[Candidates]:
    """The images that ``teacher.pseudo.images`` names, without copies of validation images among the unlabelled."""
    data, sources, which = lesson.data, lesson.sources, lesson.config.teacher.pseudo.images
    found = []
    if which != "unlabelled" and data.test is not None and data.test_csv is not None and sources.test is not None:
        pool = Pool("test images", data.test_ids, data.test_paths, data.test, data.test_ids)
        found.append(Candidates(pool, sources.test, data.test_csv, is_test=True))
    valid_rows = rows_of(sources.train, job.valid_ids)
    for part, images in sources.unlabelled:
        keep = outside(images, sources.train, valid_rows, f"{job.run} fold {job.fold}: {part.csv.name}")
        chosen = tuple(part.ids[place] for place in keep)
        if chosen:
            pool = Pool(part.csv.name, part.ids, part.paths, part.frame, chosen)
            found.append(Candidates(pool, images, part.csv, is_test=False))
    if not found:
        raise BadInput(
            "teacher.pseudo.images",
            f"'{which}' has no images to label",
            "give competition.test_csv or competition.unlabelled",
        )
    return found


def _labels(lesson: Lesson, job: FoldJob, candidates: Sequence[Candidates]) -> SoftLabels | None:
    """The fold's pseudo-labels, those that are stored where they fit; None: no image was taken."""
    if not job.fingerprint:
        found, _ = _select(lesson, candidates)
        return found if found.ids else None
    mark = _labels_mark(lesson, candidates)
    first = RunPaths(job.paths.folder.parent).fold(job.fold)
    # One process labels; others that train this very fold with it wait, and read what it wrote.
    with files.locked(job.paths.last):
        if not has_labels(job.paths, mark):
            if has_labels(first, mark):
                copy_labels(first, job.paths)
            else:
                found, selection = _select(lesson, candidates)
                names = [teacher.name for teacher in lesson.teachers]
                store_labels(job.paths, found, selection, names, mark, job.id_column, job.task)
        record = files.read_json(job.paths.labels_record)
        soft = read_labels(job.paths)
    _report(lesson, job, record)
    return soft


def _select(lesson: Lesson, candidates: Sequence[Candidates]) -> tuple[SoftLabels, Selection]:
    task = lesson.data.task
    runs = members(lesson.teachers, lesson.asked)
    parts = []
    for found in candidates:
        if found.is_test:
            parts.append(stored_voices(runs, lesson.asked, found.pool.chosen, task))
        else:
            parts.append(_predicted(lesson, Stores([found.pool], lesson.cache)))
    voices = join(parts)
    ids = tuple(name for found in candidates for name in found.pool.chosen)
    every = [values for run in runs for values in voices[run.name]]
    selection = select(ids, _said(lesson, voices), every, task, lesson.config.teacher.pseudo)
    soft = SoftLabels(selection.ids, selection.targets, selection.weights, lesson.excluded, lesson.names)
    return soft, selection


def _labels_mark(lesson: Lesson, candidates: Sequence[Candidates]) -> str:
    """A digest of all that the labels depend on."""
    bundles = {}
    for run in members(lesson.teachers, lesson.asked):
        bundles[run.name] = [
            [
                path.folder.name,
                files.sha256_file(path.bundle),
                [files.sha256_file(path.test) for found in candidates if found.is_test],
            ]
            for path in run.bundles(lesson.asked)
        ]
    task = lesson.data.task
    blends = [teacher.blend(lesson.asked) for teacher in lesson.teachers]
    calibrations = [teacher.calibration(lesson.asked, task) for teacher in lesson.teachers]
    return files.fingerprint(
        {
            "format": LABELS_FORMAT,
            "settings": lesson.config.teacher.pseudo.model_dump(mode="json", exclude=set(NO_CHOICE)),
            "excluded_fold": lesson.excluded,
            "teachers": [teacher.name for teacher in lesson.teachers],
            "blends": [None if blend is None else blend.to_dict() for blend in blends],
            "calibrations": [None if found is None else found.to_dict() for found in calibrations],
            "bundles": bundles,
            "candidates": [
                [files.sha256_file(found.csv), sorted(found.pool.chosen), found.images.digest] for found in candidates
            ],
            "task": [task.name, task.classes, task.negative, task.threshold],
        }
    )


def _report(lesson: Lesson, job: FoldJob, record: dict[str, Any]) -> None:
    who = f"{job.run} {job.paths.folder.name}"
    taken, classes = record["taken"], record["classes"]
    counts = f" ({', '.join(f'{name}: {count}' for name, count in classes.items())})" if taken and classes else ""
    say(f"{who}: {taken} of {record['candidates']} images pseudo-labelled{counts}")
    if not taken:
        warn(f"{who}: no image passes teacher.pseudo, so it trains without pseudo-labels")
        return
    labelled = lesson.data.targets_of(lesson.table.train_ids(job.fold))
    odd = imbalance(classes, taken, labelled, job.task)
    if odd is not None:
        warn(f"{who}: {odd}; teacher.pseudo.top_k balances them")
