"""``goldfold canary``: run a pipeline small, on shuffled labels and planted twins, and see whether a score leaves chance."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.canary.build import build
from goldfold.canary.checks import (
    Seed,
    check_rounds,
    measure_metric,
    remember,
    too_few_rows,
)
from goldfold.canary.plant import Planting, plant
from goldfold.canary.report import Report
from goldfold.canary.settings import Listener, changes, kept_overrides, listen, needs_alike, shrink, write_pipeline
from goldfold.config import Config
from goldfold.errors import BadInput
from goldfold.images import ImageSpec
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.graph import Plan, plan_pipeline, plan_rounds, refuse_problems
from goldfold.pipeline.run import run_pipeline
from goldfold.progress import say
from goldfold.tasks import Task

ROWS, EPOCHS, SIZE = 200, 30, 64


@dataclass(frozen=True)
class Scale:
    """How small: originals, folds, epochs of every training, side of the images in pixels."""

    rows: int
    folds: int
    epochs: int
    size: int


def run_canary(
    path: Path,
    overrides: Sequence[str],
    workspace: Workspace,
    *,
    seed: int = 0,
    seeds: int = 1,
    rows: int = ROWS,
    epochs: int = EPOCHS,
    size: int | None = None,
    keep: bool = False,
) -> Report:
    """Run the pipeline's rounds on ``seeds`` small competitions, from ``seed`` on, and write ``canary/<pipeline>/canary.json``.

    Every seed begins anew: what was trained by code that may have changed since is never taken over. ``rows``:
    originals; ``size``: side of the images in pixels (None: 64, or what an override of input.size says); ``keep``: leave
    the seeds' folders. Raises BadInput before anything runs where the pipeline or the numbers do not fit.
    """
    for option, number in (
        ("--seeds", seeds),
        ("--rows", rows),
        ("--epochs", epochs),
        ("--size", SIZE if size is None else size),
    ):
        if number < 1:
            raise BadInput(option, f"{number} is not 1 or more")
    if seed < 0:
        raise BadInput("--seed", f"{seed} is not 0 or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("goldfold canary", "runs in one process", "start it without a launcher")
    plan = plan_rounds(path, overrides, workspace)
    refuse_problems(plan)
    rounds = listen(plan)
    if not plan.configs:
        raise BadInput(path, "no round trains anything, so there is nothing to watch")
    first = next(iter(plan.configs.values()))
    if size is None:
        size = first.input.size if any(text.startswith("input.size=") for text in overrides) else SIZE
    data = load_competition(first.competition, workspace.root)
    scale = Scale(rows, _fold_count(first, data), epochs, size)
    folder = workspace.root / "canary" / str(plan.pipeline.name)
    with _held(folder, keep):
        done: list[Seed] = []
        for number in range(seed, seed + seeds):
            say(f"canary {plan.pipeline.name}: seed {number} ({len(done) + 1}/{seeds})")
            inner = Workspace(folder / f"seed{number}")
            planting = plant(data.task, data.targets, scale.folds, scale.rows, number)
            changed = _run_seed(inner, number, planting, plan, data, workspace, overrides, scale)
            done.append(Seed(number, planting, data.targets[planting.labels], inner))
        report = _measure(plan, rounds, done, data, scale, changed)
        files.write_json(folder / "canary.json", report.to_dict())
    return report


@contextmanager
def _held(folder: Path, keep: bool) -> Iterator[None]:
    """Hold the canary's folder, empty of earlier seeds; they are removed again at the end, unless they are kept."""
    with files.locked(folder, wait=False) as held:
        if not held:
            raise BadInput(folder, "another canary of this pipeline is running", "wait for it")
        _clear(folder)
        # What an earlier canary found is no answer for this one, should it fail.
        (folder / "canary.json").unlink(missing_ok=True)
        files.remove_leftovers(folder)
        try:
            yield
        finally:
            if not keep:
                _clear(folder)
            with suppress(OSError):
                folder.rmdir()  # only where it is empty: nothing was measured


def _clear(folder: Path) -> None:
    for left in folder.glob("seed*"):
        if left.is_dir():
            shutil.rmtree(left)


def _run_seed(
    inner: Workspace,
    number: int,
    planting: Planting,
    plan: Plan,
    data: CompetitionData,
    workspace: Workspace,
    overrides: Sequence[str],
    scale: Scale,
) -> dict[str, Any]:
    """Build one seed's competition in ``inner`` and run the rounds on it; returns the settings that differ."""
    first = next(iter(plan.configs.values()))
    spec = replace(ImageSpec.from_config(first.input), size=scale.size)
    # Rounds may differ in their unlabelled images.
    parts = {part.csv: part for config in plan.configs.values() for part in config.competition.unlabelled}
    settings = data.settings.model_copy(update={"unlabelled": tuple(parts.values())})
    counts = build(inner.root, planting, data, settings, spec, workspace.root, number)
    small = {
        name: shrink(
            config,
            root=workspace.root,
            labels=_labels(data.task, config),
            folds=scale.folds,
            size=scale.size,
            epochs=scale.epochs,
            seed=number,
            pool=bool(config.competition.unlabelled),
            alike=needs_alike(plan.configs.values()),
        )
        for name, config in plan.configs.items()
    }
    path = write_pipeline(inner.root / "configs", plan, small)
    kept = kept_overrides(overrides)
    changed = changes(plan, plan_pipeline(path, kept, inner)[1])
    say(
        f"{counts['train']} training rows with shuffled labels, {int(planting.original.sum())} of them originals, in "
        f"{scale.folds} folds; {len(planting.pool_ids)} twins in the pool, {int((~planting.original).sum())} among other "
        "folds' rows"
    )
    say("no groups, no external images, a single deal of the folds; changed in the rounds:")
    for key, value in changed.items():
        say(f"  {key}={json.dumps(value)}")
    run_pipeline(path, inner, kept)
    return changed


def _measure(
    plan: Plan,
    rounds: Sequence[Listener],
    seeds: Sequence[Seed],
    data: CompetitionData,
    scale: Scale,
    changed: Mapping[str, Any],
) -> Report:
    kinds = {entry.name: entry.kind for entry in rounds}
    metric = data.metrics[0]
    checks = check_rounds(kinds, seeds, data.task)
    controls = [
        control
        for name, config in plan.configs.items()
        for control in remember(name, range(scale.folds), seeds, config.train.seeds[:1], data.task)
    ]
    return Report(
        pipeline=str(plan.pipeline.name),
        rounds=tuple(rounds),
        checks=tuple(checks),
        controls=tuple(controls),
        metric=metric.name,
        metrics=tuple(measure_metric(name, kind, seeds, data.task, metric) for name, kind in kinds.items()),
        few=tuple(too_few_rows(checks)),
        settings={
            "seeds": [seed.number for seed in seeds],
            "folds": scale.folds,
            "rows": int(seeds[0].planting.original.sum()),
            "size": scale.size,
        },
        changes=changed,
    )


def _fold_count(config: Config, data: CompetitionData) -> int:
    """As many folds as the pipeline has, at least two."""
    settings = config.folds
    if settings.scheme == "holdout":
        return 2
    if settings.scheme == "column" and settings.column in data.train:
        return max(2, sum(1 for value in set(data.train[settings.column]) if value.strip() not in ("", "-1")))
    return settings.n


def _labels(task: Task, config: Config) -> list[str]:
    """The classes to write down; none where the columns are the classes."""
    several = not isinstance(config.competition.target, str)
    if task.name == "regression" or several:
        return []
    return task.labels()
