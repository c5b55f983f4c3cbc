"""The stages of one experiment: folds, training, and the run's tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goldfold import files
from goldfold.config import Config
from goldfold.data import Examples, add_soft_labels, blend_soft_labels, labelled
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.folds import open_folds
from goldfold.images import Images, ImageSpec, open_images
from goldfold.machine import Machine, find_machine
from goldfold.metrics import score
from goldfold.models import ModelSpec, make_spec
from goldfold.paths import FoldPaths, RunPaths, Workspace, find_input
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.run_folder import digest_inputs, fold_folders, is_whole, open_run, record_fold
from goldfold.progress import say, warn
from goldfold.records import FoldTable, Predictions, average, concatenate
from goldfold.rounds import distill_labels, pseudo_labels
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, FoldResult, Recipe, drop_resume_state, is_done, train_fold


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
    train_images, test_images = _images(config, data, workspace)
    inputs = digest_inputs(config, data, workspace, train_images, test_images)
    with files.locked(paths.folder):
        fingerprint = open_run(paths, config, inputs, machine)
    jobs = [(fold, seed) for seed in (config.train.seed, *config.train.seeds) for fold in only_folds or folds]

    for done in fold_folders(paths, config, folds):
        if is_done(done, fingerprint):
            drop_resume_state(done)  # a kill may have come between the fold's end and this
    if not is_whole(paths, config, folds, fingerprint):
        for fold, seed in jobs:
            fold_paths = paths.fold(fold, None if seed == config.train.seed else seed)
            if is_done(fold_paths, fingerprint):
                say(f"{config.name} {fold_paths.folder.name}: finished before, skipped")
                continue
            table = next(table for table in tables if fold in table.folds)
            job = _job(config, data, workspace, table, fold, seed, fold_paths, train_images, test_images, fingerprint)
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


def _job(
    config: Config,
    data: CompetitionData,
    workspace: Workspace,
    table: FoldTable,
    fold: int,
    seed: int,
    paths: FoldPaths,
    images: Images,
    test_images: Images | None,
    fingerprint: str,
) -> FoldJob:
    assert config.name is not None
    train_ids, valid_ids = table.train_ids(fold), table.valid_ids(fold)
    examples = labelled(images, train_ids, data.targets_of(train_ids))
    mean = std = None
    if data.task.name == "regression":
        mean = tuple(float(value) for value in examples.targets.mean(axis=0, dtype=np.float64))
        std = tuple(max(float(value), 1e-6) for value in examples.targets.std(axis=0, dtype=np.float64))
    examples = _taught(config, data, workspace, fold, train_ids, examples, test_images)
    weights = config.model.weights if config.model.pretrained else None
    return FoldJob(
        run=config.name,
        fold=fold,
        seed=seed,
        paths=paths,
        fingerprint=fingerprint,
        id_column=config.competition.id,
        task=data.task,
        metrics=data.metrics,
        recipe=_recipe(config),
        spec=_spec(config, data, mean, std),
        weights=None if weights is None else find_input(workspace.root, config.competition.name, weights),
        examples=examples,
        images=images,
        valid_ids=valid_ids,
        valid_targets=data.targets_of(valid_ids),
        test=test_images,
    )


def _taught(
    config: Config,
    data: CompetitionData,
    workspace: Workspace,
    fold: int,
    train_ids: tuple[str, ...],
    examples: Examples,
    test_images: Images | None,
) -> Examples:
    """Add what the fold's own teachers say of test and training images."""
    teacher = config.teacher
    runs = [workspace.run(name) for name in teacher.runs]
    if teacher.distill:
        soft = distill_labels(runs, fold, examples.images, train_ids, find_machine(config.train))
        examples = blend_soft_labels(examples, train_ids, soft, teacher.distill, fold)
    if teacher.test != "none":
        if test_images is None:
            raise BadInput("teacher.test", "the competition has no test_csv to label")
        soft = pseudo_labels(
            runs, fold, data.task, hard=teacher.test == "hard", min_prob=teacher.min_prob, weight=teacher.test_weight
        )
        say(f"{config.name} fold {fold}: {len(soft.ids)} of {len(data.test_ids)} test images pseudo-labelled")
        if soft.ids:
            examples = add_soft_labels(examples, test_images, soft, fold)
        else:
            warn(
                f"{config.name} fold {fold}: no image reaches teacher.min_prob={teacher.min_prob}; it trains without any"
            )
    return examples


def _recipe(config: Config) -> Recipe:
    return Recipe(
        config.input,
        config.augment,
        config.mix,
        config.model,
        config.loss,
        config.optim,
        config.schedule,
        config.train,
        config.balance,
        config.tta,
    )


def _spec(
    config: Config, data: CompetitionData, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> ModelSpec:
    return make_spec(config.model, config.input, data.task, mean, std)


def _images(config: Config, data: CompetitionData, workspace: Workspace) -> tuple[Images, Images | None]:
    spec = ImageSpec.from_config(config.input)
    folder = cache_folder(config, workspace)
    train = open_images(folder, data.ids, data.train_paths, spec, what="train images")
    if data.test_csv is None:
        return train, None
    return train, open_images(folder, data.test_ids, list(data.test_paths), spec, what="test images")


def cache_folder(config: Config, workspace: Workspace) -> Path | None:
    """Where decoded images are stored; None: they are decoded each time."""
    if not config.input.cache:
        return None
    return workspace.root / config.input.cache_dir if config.input.cache_dir else workspace.cache()


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
        "leaky": False,
    }
    files.write_json(paths.cv, cv)
    return cv


def _scores(data: CompetitionData, truth: Any, predictions: Predictions) -> dict[str, float | None]:
    values = {metric.name: score(metric, data.task, truth, predictions.values) for metric in data.metrics}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
