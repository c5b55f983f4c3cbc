"""The stages of one experiment: folds, training, and the run's tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import goldfold
from goldfold import files
from goldfold.bundle import load_bundle
from goldfold.config import Config, changed_keys, config_from_dict, dump_yaml, read_yaml
from goldfold.config.schema import Tta
from goldfold.data import Examples, add_soft_labels, blend_soft_labels, labelled
from goldfold.errors import BadInput, some
from goldfold.folds import open_folds
from goldfold.images import Images, ImageSpec, open_images
from goldfold.machine import Machine, find_machine
from goldfold.metrics import score
from goldfold.models import ModelSpec, make_spec
from goldfold.paths import FoldPaths, RunPaths, Workspace, find_input
from goldfold.pipeline.competition import CompetitionData, load_competition, locate_images, read_rows
from goldfold.predict import predict_images
from goldfold.progress import say
from goldfold.records import FoldTable, Predictions, average, concatenate
from goldfold.rounds import distill_labels, pseudo_labels
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, Recipe, drop_resume_state, is_done, train_fold
from goldfold.tta import make_views

# Keys that never change what a run computes.
IRRELEVANT = ("name", "tracking", "train.workers", "input.cache", "input.cache_dir", "tta.batch_size")
VERSIONS = ("goldfold", "torch", "timm", "albumentations", "numpy", "scikit-learn", "ttach")


def load_folds(config: Config, data: CompetitionData, workspace: Workspace, remake: bool = False) -> list[FoldTable]:
    """The competition's fold tables, a table a repeat: made and stored the first time, verified ever after."""
    return open_folds(
        workspace.folds(config.competition.name),
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
    inputs = _inputs(config, data, workspace)
    fingerprint = _open_run(paths, config, inputs, machine)
    jobs = [(fold, seed) for seed in (config.train.seed, *config.train.seeds) for fold in only_folds or folds]

    if not _whole(paths, config, folds, fingerprint) or only_folds:
        train_images, test_images = _images(config, data, workspace)
        for fold, seed in jobs:
            fold_paths = paths.fold(fold, None if seed == config.train.seed else seed)
            if is_done(fold_paths, fingerprint):
                drop_resume_state(fold_paths)
                say(f"{config.name} {fold_paths.folder.name}: finished before, skipped")
                continue
            table = next(table for table in tables if fold in table.folds)
            job = _job(config, data, workspace, table, fold, seed, fold_paths, train_images, test_images, fingerprint)
            say(
                f"{config.name} {fold_paths.folder.name}: {len(job.examples)} training rows, {len(job.valid_ids)} validation rows"
            )
            tracker = WandbRun(
                config.tracking,
                project=config.competition.name,
                run=config.name,
                fold=fold_paths.folder.name,
                job_type="train",
                config=config.model_dump(mode="json"),
                folder=workspace.root,
            )
            result = train_fold(job, machine, tracker)
            tracker.finish()
            _record_fold(paths, fold_paths.folder.name, asdict(result))
    if not _whole(paths, config, folds, fingerprint):
        missing = [f.folder.name for f in _fold_paths(paths, config, folds) if not f.done.exists()]
        say(f"{config.name}: not finished yet: {some(missing, 10)}")
        return {}
    return _gather(config, data, paths, tables, folds)


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
    folder = _cache_folder(config, workspace)
    train = open_images(folder, data.ids, data.train_paths, spec, what="train images")
    if data.test_csv is None:
        return train, None
    return train, open_images(folder, data.test_ids, list(data.test_paths), spec, what="test images")


def _cache_folder(config: Config, workspace: Workspace) -> Path | None:
    if not config.input.cache:
        return None
    return workspace.root / config.input.cache_dir if config.input.cache_dir else workspace.cache()


def _inputs(config: Config, data: CompetitionData, workspace: Workspace) -> dict[str, str | None]:
    """Digests of the files that a run depends on."""
    weights = config.model.weights if config.model.pretrained else None
    folds = files.sha256_file(workspace.folds(config.competition.name))
    teachers = {f"teacher {name}": _teacher_digest(workspace.run(name), folds) for name in config.teacher.runs}
    return {
        "train_csv": files.sha256_file(data.train_csv),
        "test_csv": None if data.test_csv is None else files.sha256_file(data.test_csv),
        "folds": folds,
        "weights": None
        if weights is None
        else files.sha256_file(find_input(workspace.root, config.competition.name, weights)),
        **teachers,
    }


def _teacher_digest(paths: RunPaths, folds: str) -> str:
    if not paths.cv.exists():
        raise BadInput("teacher.runs", f"the run '{paths.name}' is not finished", "train it first")
    if files.read_json(paths.record)["inputs"]["folds"] != folds:
        raise BadInput(
            "teacher.runs", f"the run '{paths.name}' was trained on other folds", "train it again on these folds"
        )
    return files.fingerprint([files.sha256_file(paths.oof), files.sha256_file(paths.cv)])


def relevant(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that never change a result."""
    values = {key: dict(part) if isinstance(part, dict) else part for key, part in config.items()}
    for dotted in IRRELEVANT:
        section, _, key = dotted.partition(".")
        if key:
            values.get(section, {}).pop(key, None)
        else:
            values.pop(section, None)
    return values


def _open_run(paths: RunPaths, config: Config, inputs: dict[str, str | None], machine: Machine) -> str:
    """Make the run's folder, or verify that it holds this very experiment. Returns its fingerprint."""
    values = config.model_dump(mode="json")
    fingerprint = files.fingerprint({"config": relevant(values), "inputs": inputs})
    if paths.record.exists() and paths.config.exists():
        record = files.read_json(paths.record)
        changed = changed_keys(relevant(read_yaml(paths.config)), relevant(values))
        changed += [f"the file behind {name}" for name in inputs if record["inputs"].get(name) != inputs[name]]
        if changed or record["fingerprint"] != fingerprint:
            raise BadInput(
                paths.folder,
                f"this run was started with other settings: {some(changed or ['the version of Goldfold'], 10)}",
                "give the new experiment another name with --run NAME, or delete the folder",
            )
        return fingerprint
    files.write_text(paths.config, dump_yaml(config))
    files.write_json(
        paths.record,
        {
            "run": config.name,
            "fingerprint": fingerprint,
            "inputs": inputs,
            "leaky": False,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "git": _git_commit(paths.folder),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS if name != "goldfold"}
            | {"goldfold": goldfold.__version__},
            "machine": machine.describe(),
            "folds": {},
        },
    )
    return fingerprint


def _record_fold(paths: RunPaths, name: str, result: dict[str, Any]) -> None:
    record = files.read_json(paths.record)
    record["folds"][name] = result
    files.write_json(paths.record, record)


def _fold_paths(paths: RunPaths, config: Config, folds: Sequence[int]) -> list[FoldPaths]:
    seeds = [None, *config.train.seeds]
    return [paths.fold(fold, seed) for seed in seeds for fold in folds]


def _whole(paths: RunPaths, config: Config, folds: Sequence[int], fingerprint: str) -> bool:
    return all(is_done(fold, fingerprint) for fold in _fold_paths(paths, config, folds))


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


def _git_commit(folder: Path) -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def predict_run(name: str, workspace: Workspace, csv: Path | None, pattern: str | None, out: Path | None) -> Path:
    """Predict the images of a CSV with every bundle of a run, over its views. Raises BadInput."""
    paths = workspace.run(name)
    if not paths.config.exists():
        raise BadInput(paths.folder, "there is no such run", "train it first")
    config = config_from_dict(read_yaml(paths.config), paths.config)
    settings = config.competition
    if csv is None:
        if settings.test_csv is None:
            raise BadInput("--csv", "the competition has no test_csv", "name a CSV")
        csv = find_input(workspace.root, settings.name, settings.test_csv)
        pattern = pattern or settings.test_image_path
    folders = sorted(path.parent for path in paths.folder.glob("fold*/DONE"))
    if not folders:
        raise BadInput(paths.folder, "no fold is finished", "goldfold train finishes it")
    rows = read_rows(csv, settings, [])
    ids, images = (
        tuple(rows[settings.id]),
        locate_images(pattern or settings.image_path, rows, workspace.root, settings, csv),
    )
    machine = find_machine(config.train)
    stores: dict[ImageSpec, Images] = {}
    parts = []
    for folder in folders:
        bundle, model = load_bundle(folder)
        if bundle.images not in stores:
            stores[bundle.images] = open_images(
                _cache_folder(config, workspace), ids, images, bundle.images, what=csv.name
            )
        model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
        values = predict_images(
            model,
            stores[bundle.images],
            np.arange(len(ids)),
            task=bundle.task,
            views=make_views(Tta(views=bundle.views, merge=bundle.merge)),  # type: ignore[arg-type]
            how=bundle.merge,
            batch_size=config.tta.batch_size,
            machine=machine,
            what=f"{name} {folder.name}: predicting",
        )
        parts.append(Predictions(ids, values, bundle.task.classes, name))
    out = out or paths.folder / f"predict-{csv.stem}.parquet"
    average(parts, name).write(out, settings.id)
    return out
