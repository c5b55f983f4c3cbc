"""Everything that could fail later, checked before any training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from goldfold import files
from goldfold.balance import class_weights, draw_epoch
from goldfold.config import Config
from goldfold.errors import BadInput, some
from goldfold.folds import make_folds
from goldfold.images import ImageSpec, find_unreadable
from goldfold.losses import make_joint
from goldfold.machine import find_machine
from goldfold.models import build_model, set_frozen, try_sizes
from goldfold.models.trunk import split_trunk
from goldfold.optim import make_optimizer, set_momentum
from goldfold.paths import Workspace, find_input
from goldfold.pipeline.competition import CompetitionData, load_competition, read_rows
from goldfold.pipeline.external import ExternalData, load_external
from goldfold.pipeline.jobs import fit_auxiliary, fit_encoder, fold_spec, make_recipe, try_augmentation
from goldfold.pipeline.run import submission_format
from goldfold.pipeline.run_folder import teacher_digest
from goldfold.pipeline.stages import load_folds
from goldfold.progress import say
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


def check_experiment(
    config: Config, workspace: Workspace, decode: bool = True, made: Collection[str] = ()
) -> list[str]:
    """Problems of an experiment, a line each; none when it can be trained and submitted. Writes nothing.

    ``made``: runs that the pipeline makes, so that they may be missing still.
    """
    found = Findings()
    data = found.attempt(lambda: load_competition(config.competition, workspace.root))
    if data is None:
        # The first problem hides the others: look at each table by itself too.
        _check_tables(config, workspace.root, found)
    else:
        say(f"{data.train_csv}: {len(data.ids)} rows, task {data.task.name}, classes {some(data.task.classes, 10)}")
        _check_data(config, data, workspace, found)
        settings = config.competition
        external = found.attempt(
            lambda: load_external(settings, data.task, workspace.root, data.ids, data.test_ids)  # type: ignore[union-attr]
        )
        if decode:
            _check_images(config, data, external or [], found)
        _check_disk(config, data, workspace, found)
        found.attempt(lambda: _check_model(config, data, workspace))
    for name in set(config.teacher.runs) - set(made):
        found.attempt(lambda name=name: _check_teacher(config, workspace, name))  # type: ignore[misc]
    found.attempt(lambda: try_augmentation(config))
    found.attempt(lambda: make_views(config.tta))
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
        found.attempt(lambda: load_folds(config, data, workspace))
    else:
        found.attempt(
            lambda: make_folds(
                config.folds,
                data.train,
                id_column=config.competition.id,
                task=data.task,
                targets=data.targets,
                target_columns=data.target_columns,
                group=config.competition.group,
                source_sha256="",
            )
        )
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


def _check_images(config: Config, data: CompetitionData, external: Sequence[ExternalData], found: Findings) -> None:
    paths, ids = [*data.train_paths, *data.test_paths], [*data.ids, *data.test_ids]
    for part in external:
        paths += part.paths
        ids += part.ids
    for name, reason in find_unreadable(paths, ids, ImageSpec.from_config(config.input), None):
        found.problems.append(f"id {name}: {reason}")
    say(f"images: {len(paths)} read")


def _check_disk(config: Config, data: CompetitionData, workspace: Workspace, found: Findings) -> None:
    if not config.input.cache:
        return
    spec = ImageSpec.from_config(config.input)
    need = (len(data.ids) + len(data.test_ids)) * spec.size**2 * spec.channels
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


def _check_teacher(config: Config, workspace: Workspace, name: str) -> None:
    folds = workspace.folds(config.competition.name)
    teacher_digest(workspace.run(name), files.sha256_file(folds) if folds.exists() else "")


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
    if config.model.freeze.cache:
        set_frozen(model, config.model.freeze.stages, config.model.freeze.batch_norm)
        split_trunk(model, model.prepare(torch.zeros(2, spec.size, spec.size, spec.channels, dtype=torch.uint8)))
    count = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"model: {spec.backbone}, {count / 1e6:.1f} M parameters, weights {path or ('hub' if config.model.pretrained else 'random')}"
    )
