"""Everything that could fail later, checked before any training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from goldfold import files
from goldfold.balance import class_weights, draw_epoch
from goldfold.bundle import prediction_images
from goldfold.config import Config
from goldfold.errors import BadInput, some
from goldfold.images import ImageSpec, find_unreadable
from goldfold.losses import make_joint
from goldfold.machine import find_machine
from goldfold.models import build_model, set_frozen, try_sizes
from goldfold.models.trunk import split_trunk
from goldfold.optim import make_optimizer, set_momentum
from goldfold.paths import Workspace, find_input
from goldfold.pipeline.competition import CompetitionData, load_competition, read_rows
from goldfold.pipeline.external import ExternalData, UnlabelledData, load_external, load_unlabelled
from goldfold.pipeline.graph import plan_rounds
from goldfold.pipeline.jobs import (
    fit_auxiliary,
    fit_encoder,
    fold_spec,
    labels_unlabelled,
    make_recipe,
    try_augmentation,
)
from goldfold.pipeline.lineage import find_source, refuse_optimistic_teachers, runs_of, teacher_digest
from goldfold.pipeline.stages import load_folds, try_folds
from goldfold.pipeline.submitting import submission_format
from goldfold.pipeline.teachable import stored_source, unteachable
from goldfold.pipeline.views import refuse_single_fold
from goldfold.predict import try_views
from goldfold.progress import say
from goldfold.rounds import online_bundles, open_teachers, thresholds
from goldfold.teaching import OnlineTeacher, check_teachers
from goldfold.training.plan import make_plan
from goldfold.tta import make_views

T = TypeVar("T")


class Findings:
    """Problems found so far, each one line; a check that fails does not keep the next from running."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except BadInput as error:
            line = str(error)
            if line not in self.problems:
                self.problems.append(line)
            return None


def check_pipeline(path: Path, overrides: Sequence[str], workspace: Workspace, decode: bool = True) -> list[str]:
    """Problems of a pipeline's graph and of its experiments, a line each; none when it can run. Writes nothing.

    Raises BadInput when the file is no pipeline.
    """
    plan = plan_rounds(path, overrides, workspace)
    problems = list(plan.problems)
    made = [item.name for item in plan.rounds if item.name is not None]
    decoded: set[Path] = set()
    for item in plan.rounds:
        if item.config is None:
            continue
        say(f"checking {item.name}")
        # What the graph has said needs no second line here.
        found = check_experiment(item.config, workspace, decode, [*made, *item.needs], decoded)
        problems += [line for line in found if not any(known.endswith(f": {line}") for known in plan.problems)]
    return list(dict.fromkeys(problems))


def check_experiment(
    config: Config,
    workspace: Workspace,
    decode: bool = True,
    made: Collection[str] = (),
    decoded: set[Path] | None = None,
) -> list[str]:
    """Problems of an experiment, a line each; none when it can be trained and submitted. Writes nothing.

    ``made``: runs and ensembles that the pipeline makes or has checked itself; such a teacher is looked at where it is
    there already. ``decoded``: images that were decoded before and need no second look; this experiment's are added.
    """
    found = Findings()
    data = found.attempt(lambda: load_competition(config.competition, workspace.root))
    if data is None:
        # The first problem hides the others: look at each table by itself too.
        _check_tables(config, workspace.root, found)
    else:
        say(f"{data.train_csv}: {len(data.ids)} rows, task {data.task.name}, classes {some(data.task.classes, 10)}")
        _check_data(config, data, workspace, found)
        further = found.attempt(lambda: _further_images(config, data, workspace))  # type: ignore[arg-type]
        if decode:
            _check_images(config, data, further or [], set() if decoded is None else decoded, found)
        else:
            found.attempt(lambda: _check_files(data, further or []))
        _check_disk(config, data, workspace, found)
        found.attempt(lambda: _check_model(config, data, workspace))
        _check_teachers(config, data, workspace, made, found)
    found.attempt(lambda: try_augmentation(config))
    found.attempt(lambda: make_views(config.tta, config.input.size))
    machine = found.attempt(lambda: find_machine(config.train))
    if machine is not None:
        say(f"machine: {machine.describe()}")
    return found.problems


def _check_tables(config: Config, root: Path, found: Findings) -> None:
    settings = config.competition
    for csv in (settings.train_csv, settings.test_csv, settings.sample_submission):
        if csv is not None:
            path = find_input(root, settings.name, csv)
            found.attempt(lambda path=path: read_rows(path, settings, []))  # type: ignore[misc]


def _check_data(config: Config, data: CompetitionData, workspace: Workspace, found: Findings) -> None:
    overlap = set(data.ids) & set(data.test_ids)
    if overlap:
        found.problems.append(
            str(
                BadInput(
                    data.test_csv,
                    f"{len(overlap)} ids are in the train CSV too: {some(sorted(overlap))}",
                    "images are named by id, so ids must differ",
                )
            )
        )
    if workspace.folds(config.competition.name).exists():
        found.attempt(lambda: refuse_single_fold(config, load_folds(config, data, workspace)))
    else:
        found.attempt(lambda: refuse_single_fold(config, try_folds(config, data)))
    if data.sample is not None:
        found.attempt(lambda: _check_sample(config, data))


def _check_sample(config: Config, data: CompetitionData) -> None:
    settings, sample = config.competition, data.sample
    assert sample is not None
    where = data.sample_csv or "competition.sample_submission"
    submission_format(data, Path(settings.name))
    if data.test_csv is not None:
        odd = set(sample[settings.id]) ^ set(data.test_ids)
        if odd:
            raise BadInput(where, f"{len(odd)} ids are not both here and in {data.test_csv.name}: {some(sorted(odd))}")


def _further_images(config: Config, data: CompetitionData, workspace: Workspace) -> list[ExternalData | UnlabelledData]:
    """External images, and those that are to be pseudo-labelled; says how many the latter are."""
    settings = config.competition
    external = load_external(settings, data.task, workspace.root, data.ids, data.test_ids)
    pools = load_unlabelled(settings, workspace.root, data.ids, data.test_ids, external)
    pseudo = config.teacher.pseudo
    if pseudo.labels != "none":
        sizes = {"test": len(data.test_ids)} if pseudo.images in ("all", "test") else {}
        if pseudo.images in ("all", "unlabelled"):
            sizes |= {pool.csv.name: len(pool.ids) for pool in pools}
        total = sum(sizes.values())
        parts = ", ".join(f"{count} of {name}" for name, count in sizes.items())
        say(f"to be pseudo-labelled: {total} images ({parts}) beside {len(data.ids)} labelled ones")
        if total == 0:
            raise BadInput("teacher.pseudo.images", "there are no images to label", "add rows to those tables")
    return [*external, *(pools if labels_unlabelled(config) else [])]


def _named_images(data: CompetitionData, further: Sequence[ExternalData | UnlabelledData]) -> list[tuple[Path, str]]:
    """Every image's file and id."""
    named = [*zip(data.train_paths, data.ids, strict=True), *zip(data.test_paths, data.test_ids, strict=True)]
    for part in further:
        named += zip(part.paths, part.ids, strict=True)
    return named


def _check_files(data: CompetitionData, further: Sequence[ExternalData | UnlabelledData]) -> None:
    """Raises BadInput where images are missing. Their content is not looked at: 100,000 take less than a second."""
    missing = [(path, name) for path, name in _named_images(data, further) if not os.path.isfile(path)]  # noqa: PTH113 - twice as fast as Path.is_file
    if missing:
        ids = some(name for _, name in missing)
        what = f"{len(missing)} image files do not exist, such as {missing[0][0]} (ids {ids})"
        raise BadInput("competition.image_path", what, "mend the pattern, or take their rows out of the CSV")


def _check_images(
    config: Config,
    data: CompetitionData,
    further: Sequence[ExternalData | UnlabelledData],
    decoded: set[Path],
    found: Findings,
) -> None:
    new = [(path, name) for path, name in _named_images(data, further) if path not in decoded]
    paths, ids = [path for path, _ in new], [name for _, name in new]
    decoded.update(paths)
    for name, reason in find_unreadable(paths, ids, ImageSpec.from_config(config.input), None):
        found.problems.append(f"id {name}: {reason}")
    say(f"images: {len(paths)} read")


def _check_disk(config: Config, data: CompetitionData, workspace: Workspace, found: Findings) -> None:
    if not config.input.cache:
        return
    spec = ImageSpec.from_config(config.input)
    sides = {spec.size, prediction_images(config.input, config.tta).size}
    need = (len(data.ids) + len(data.test_ids)) * sum(side**2 for side in sides) * spec.channels
    free = shutil.disk_usage(workspace.root).free
    if need > free:
        found.problems.append(
            str(
                BadInput(
                    "input.cache",
                    f"the decoded store needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                    "lower input.size or set input.cache=false",
                )
            )
        )


def _check_teachers(
    config: Config, data: CompetitionData, workspace: Workspace, made: Collection[str], found: Findings
) -> None:
    """Teachers that are there: finished, on the same folds and labels, and fit to teach as they are asked to."""
    found.attempt(lambda: thresholds(config.teacher.pseudo, data.task))
    path = workspace.folds(config.competition.name)
    folds = files.sha256_file(path) if path.exists() else ""
    there = []
    for name in config.teacher.runs:
        missing = found.attempt(lambda name=name: find_source(name, workspace) is None)  # type: ignore[misc]
        if missing is None or (name in made and (missing or not _is_finished(name, workspace))):
            continue
        if found.attempt(lambda name=name: teacher_digest(name, workspace, folds, data.task.classes)) is not None:  # type: ignore[misc]
            there.append(name)
    unfit: list[str] = []
    if len(there) == len(config.teacher.runs):
        found.attempt(lambda: refuse_optimistic_teachers(config, workspace))
        unfit = unteachable(config, [stored_source(name, workspace) for name in there], workspace.root)
        found.problems += [line for line in unfit if line not in found.problems]
    if there and not unfit and config.teacher.distill.how == "online":
        found.attempt(lambda: _check_online(config, data, there, workspace))


def _is_finished(name: str, workspace: Workspace) -> bool:
    return all(workspace.run(run).cv.exists() for run in runs_of(name, workspace))


def _check_online(config: Config, data: CompetitionData, names: Sequence[str], workspace: Workspace) -> None:
    """Raises BadInput where a network cannot answer on the student's own images."""
    teachers = open_teachers(names, workspace)
    for fold in dict.fromkeys(fold for teacher in teachers for run in teacher.runs for fold in run.folds):
        bundles = tuple((paths.folder, weight) for paths, weight in online_bundles(teachers, fold))
        online = OnlineTeacher(bundles, fold)
        if config.model.freeze.cache:
            check_teachers(online, data.task)
        else:
            spec = fold_spec(config, data, None, None, np.zeros(0, dtype=np.int64))
            check_teachers(online, data.task, spec, ImageSpec.from_config(config.input))


def _check_model(config: Config, data: CompetitionData, workspace: Workspace) -> None:
    """Build the network with its weights, its optimizers and its loss, as training will, and show it two images."""
    encoder = fit_encoder(config, data, data.ids)
    if encoder is not None and data.test is not None and data.test_csv is not None:
        encoder.transform(data.test, data.test_csv, data.settings.id)
    auxiliary, *_ = fit_auxiliary(config, data, data.ids)
    # Without images: a colour space's own mean and deviation are not needed to see whether the network runs.
    spec = fold_spec(config, data, encoder, None, np.zeros(0, dtype=np.int64))
    weights = config.model.weights if config.model.pretrained else None
    path = None if weights is None else find_input(workspace.root, config.competition.name, weights)
    recipe = make_recipe(config)
    plan = make_plan(recipe)
    model = build_model(
        spec,
        weights=path,
        hub=config.model.pretrained and path is None,
        auxiliary=[task.n_logits for task in auxiliary],
        zero_init_last=config.model.zero_init_last,
    )
    class_weights(config.balance, data.targets, data.task)
    make_joint(config.loss, data.task, auxiliary=auxiliary)
    draw_epoch(config.balance, data.targets, data.task, 0)
    for stretch in plan:
        set_frozen(model, stretch.frozen, config.model.freeze.batch_norm)
        optimizer = make_optimizer(stretch.optim, model)
        if config.schedule.momentum_cycle is not None:
            set_momentum(optimizer, config.schedule.momentum_cycle[0])
    try_sizes(model, [spec.size, *(stretch.size for stretch in plan)])
    try_views(model, config.tta)
    if config.model.freeze.cache:
        set_frozen(model, config.model.freeze.stages, config.model.freeze.batch_norm)
        split_trunk(model, model.prepare(torch.zeros(2, spec.size, spec.size, spec.channels, dtype=torch.uint8)))
    count = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"model: {spec.backbone}, {count / 1e6:.1f} M parameters, weights {path or ('hub' if config.model.pretrained else 'random')}"
    )
