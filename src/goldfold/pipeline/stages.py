"""The stages of one experiment: folds, training, and the run's tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from goldfold import files
from goldfold.config import Config
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.folds import open_folds
from goldfold.machine import Machine, find_machine
from goldfold.metrics import score
from goldfold.paths import RunPaths, Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.jobs import make_job, open_sources, try_augmentation
from goldfold.pipeline.run_folder import digest_inputs, fold_folders, is_whole, open_run, record_fold
from goldfold.progress import say
from goldfold.records import FoldTable, Predictions, average, concatenate
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, FoldResult, drop_resume_state, is_done, train_fold


def load_folds(config: Config, data: CompetitionData, workspace: Workspace, remake: bool = False) -> list[FoldTable]:
    """The competition's fold tables, a table a repeat: made and stored the first time, verified ever after."""
    path = workspace.folds(config.competition.name)
    with files.locked(path.parent):  # another process may be between the table and its record
        return open_folds(
            path,
            config.folds,
            data.train,
            id_column=config.competition.id,
            task=data.task,
            targets=data.targets,
            target_columns=data.target_columns,
            group=config.competition.group,
            train_csv=data.train_csv,
            remake=remake,
        )


def train_run(config: Config, workspace: Workspace, only_folds: Sequence[int] = ()) -> dict[str, Any]:
    """Train every fold (or ``only_folds``) of an experiment; returns cv.json, or {} while folds are missing.

    Finished folds are skipped, a killed one goes on. Raises BadInput when the run's folder holds another experiment.
    """
    assert config.name is not None
    data = load_competition(config.competition, workspace.root)
    tables = load_folds(config, data, workspace)
    folds = [fold for table in tables for fold in table.folds]
    unknown = [fold for fold in only_folds if fold not in folds]
    if unknown:
        raise BadInput("--fold", f"there is no fold {some(unknown)}", f"the folds are {some(folds, 30)}")
    paths = workspace.run(config.name)
    machine = find_machine(config.train)
    sources = open_sources(config, data, workspace)
    inputs = digest_inputs(config, data, workspace, sources)
    with files.locked(paths.folder):
        fingerprint = open_run(paths, config, inputs, machine)
    jobs = [(fold, seed) for seed in (config.train.seed, *config.train.seeds) for fold in only_folds or folds]

    for done in fold_folders(paths, config, folds):
        if is_done(done, fingerprint):
            drop_resume_state(done)  # a kill may have come between the fold's end and this
    if not is_whole(paths, config, folds, fingerprint):
        try_augmentation(config)
        for fold, seed in jobs:
            fold_paths = paths.fold(fold, None if seed == config.train.seed else seed)
            if is_done(fold_paths, fingerprint):
                say(f"{config.name} {fold_paths.folder.name}: finished before, skipped")
                continue
            table = next(table for table in tables if fold in table.folds)
            job = make_job(config, data, workspace, table, fold, seed, fold_paths, sources, fingerprint)
            say(
                f"{config.name} {fold_paths.folder.name}: {len(job.examples)} training rows, {len(job.valid_ids)} validation rows"
            )
            result = _train_alone(job, config, workspace, machine)
            if machine.is_main:
                record_fold(paths, fold_paths.folder.name, asdict(result))
    if not is_whole(paths, config, folds, fingerprint):
        missing = [f.folder.name for f in fold_folders(paths, config, folds) if not f.done.exists()]
        say(f"{config.name}: not finished yet: {some(missing, 10)}")
        return {}
    with files.locked(paths.folder):
        return _gather(config, data, paths, tables, folds)


def _train_alone(job: FoldJob, config: Config, workspace: Workspace, machine: Machine) -> FoldResult:
    """Train one fold, tracked; no two commands may train the same one."""
    folder = job.paths.folder
    # Of several processes that train one model together, the first holds the folder for all.
    with files.locked(folder, wait=False) if machine.is_main else nullcontext(True) as held:
        if not held:
            raise BadInput(folder, "another process is training this fold", "wait for it, or train another with --fold")
        tracker = WandbRun(
            config.tracking if machine.is_main else config.tracking.model_copy(update={"wandb": False}),
            project=config.competition.name,
            run=job.run,
            fold=folder.name,
            job_type="train",
            config=config.model_dump(mode="json"),
            folder=workspace.root,
        )
        try:
            return train_fold(job, machine, tracker)
        except torch.OutOfMemoryError as error:
            raise GoldfoldError(
                f"{folder}: the GPU's memory is full; halve train.batch_size and double train.accumulate for the same "
                "effective batch, or lower input.size"
            ) from error
        finally:
            tracker.finish()


def _gather(
    config: Config, data: CompetitionData, paths: RunPaths, tables: Sequence[FoldTable], folds: Sequence[int]
) -> dict[str, Any]:
    """Write the run's oof.parquet, test.parquet and cv.json from its folds, averaged over seeds and repeats."""
    assert config.name is not None
    seeds = [None, *config.train.seeds]
    by_fold = {
        fold: average([Predictions.read(paths.fold(fold, seed).oof, config.name) for seed in seeds], config.name)
        for fold in folds
    }
    scores = []
    for fold in folds:
        part = by_fold[fold]
        truth = data.targets_of(part.ids)
        scores.append({"fold": fold, "rows": len(part.ids), **_scores(data, truth, part)})
    repeats = [concatenate([by_fold[fold] for fold in table.folds], config.name) for table in tables]
    oof = average(repeats, config.name)
    oof.write(paths.oof, config.competition.id)
    if data.test_csv is not None:
        tests = [Predictions.read(paths.fold(fold, seed).test, config.name) for fold in folds for seed in seeds]
        average(tests, config.name).write(paths.test, config.competition.id)
    main = data.metrics[0]
    values = [float(value) for entry in scores if (value := entry[main.name]) is not None]
    cv = {
        "run": config.name,
        "metric": main.name,
        "greater_is_better": main.greater_is_better,
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "oof": _scores(data, data.targets_of(oof.ids), oof),
        "folds": scores,
        "seeds": [config.train.seed, *config.train.seeds],
        "keep": config.train.keep,
        "optimistic": optimistic(config),
        "leaky": False,
    }
    files.write_json(paths.cv, cv)
    return cv


def optimistic(config: Config) -> bool:
    """Whether validation labels chose the weights, so that the run's own scores are a little too good."""
    return config.train.keep == "best" or (config.train.soup.epochs > 0 and config.train.soup.method == "greedy")


def _scores(data: CompetitionData, truth: Any, predictions: Predictions) -> dict[str, float | None]:
    values = {metric.name: score(metric, data.task, truth, predictions.values) for metric in data.metrics}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
