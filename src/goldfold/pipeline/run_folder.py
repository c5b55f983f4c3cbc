"""A run's folder: what it was started with, and what is finished in it."""

from __future__ import annotations

import datetime
import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import goldfold
from goldfold import files
from goldfold.config import Config, changed_keys, dump_yaml, read_yaml
from goldfold.errors import BadInput, some
from goldfold.paths import FoldPaths, RunPaths, Workspace, find_input
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.jobs import Sources
from goldfold.pipeline.lineage import teacher_digest
from goldfold.pipeline.settling import Settled
from goldfold.training import is_done

# Keys that never change what a run computes.
IRRELEVANT = (
    "name", "tracking", "competition.hours", "train.workers", "input.cache", "input.cache_dir", "tta.batch_size",
)  # fmt: skip
IMAGES = ("train_images", "test_images")
EXTERNAL_IMAGES, UNLABELLED_IMAGES = "external_images_", "unlabelled_images_"
VERSIONS = ("goldfold", "torch", "timm", "albumentations", "numpy", "scikit-learn", "ttach")


def digest_inputs(
    config: Config, data: CompetitionData, workspace: Workspace, sources: Sources
) -> dict[str, str | None]:
    """Digests of the files that a run depends on; None for images that are decoded at each read."""
    weights = config.model.weights if config.model.pretrained else None
    folds = files.sha256_file(workspace.folds(config.competition.name))
    teachers = {
        f"teacher {name}": teacher_digest(name, workspace, folds, data.task.classes) for name in config.teacher.runs
    }
    external: dict[str, str | None] = {}
    for number, (part, images) in enumerate(sources.external):
        # By number: on Kaggle the same files lie elsewhere, and two sets may both have a train.csv.
        external[f"external_csv_{number}"] = files.sha256_file(part.csv)
        external[f"{EXTERNAL_IMAGES}{number}"] = images.digest
    for number, (pool, pictures) in enumerate(sources.unlabelled):
        external[f"unlabelled_csv_{number}"] = files.sha256_file(pool.csv)
        external[f"{UNLABELLED_IMAGES}{number}"] = pictures.digest
    return {
        "train_csv": files.sha256_file(data.train_csv),
        "test_csv": None if data.test_csv is None else files.sha256_file(data.test_csv),
        "folds": folds,
        "weights": None
        if weights is None
        else files.sha256_file(find_input(workspace.root, config.competition.name, weights)),
        "train_images": sources.train.digest,
        "test_images": None if sources.test is None else sources.test.digest,
        **teachers,
        **external,
    }


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


def open_run(
    paths: RunPaths, config: Config, inputs: dict[str, str | None], settled: Settled, leaky: bool = False
) -> str:
    """Make the run's folder, or verify that it holds this very experiment. Returns its fingerprint."""
    values = config.model_dump(mode="json")
    # Images take no part, as their digests are unknown without a store, which may be switched on or off.
    images = [name for name in inputs if name in IMAGES or name.startswith((EXTERNAL_IMAGES, UNLABELLED_IMAGES))]
    named = {name: digest for name, digest in inputs.items() if name not in images}
    fingerprint = files.fingerprint({"config": relevant(values), "inputs": named})
    files.remove_leftovers(paths.folder)
    # A run that failed before its first epoch (weights that do not fit, say) may be started anew with other settings.
    begun = any(paths.folder.glob("fold*/metrics.jsonl"))
    if begun and paths.record.exists() and paths.config.exists():
        record = files.read_json(paths.record)
        changed = changed_keys(relevant(read_yaml(paths.config)), relevant(values))
        known = record["inputs"]
        changed += [f"the file behind {name}" for name in named if known.get(name) != inputs[name]]
        changed += [
            f"{name.replace('_', ' ')} (their bytes)"
            for name in images
            if inputs[name] is not None and known.get(name) not in (None, inputs[name])
        ]
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
            "leaky": leaky,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "git": _git_commit(paths.folder),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS if name != "goldfold"}
            | {"goldfold": goldfold.__version__},
            "machine": settled.machine.describe(),
            "choice": settled.record,
            "folds": {},
        },
    )
    return fingerprint


def record_fold(paths: RunPaths, name: str, result: dict[str, Any]) -> None:
    with files.locked(paths.folder):  # other processes may train other folds of this run
        record = files.read_json(paths.record)
        record["folds"][name] = result
        files.write_json(paths.record, record)


def fold_folders(paths: RunPaths, config: Config, folds: Sequence[int]) -> list[FoldPaths]:
    seeds = [None, *config.train.seeds]
    return [paths.fold(fold, seed) for seed in seeds for fold in folds]


def is_whole(paths: RunPaths, config: Config, folds: Sequence[int], fingerprint: str) -> bool:
    return all(is_done(fold, fingerprint) for fold in fold_folders(paths, config, folds))


def _git_commit(folder: Path) -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
