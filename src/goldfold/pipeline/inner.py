"""Cross-fitted teachers: each member trained again within fold k's training rows, on all but the part that it labels."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace

from goldfold import files
from goldfold.config import Config, config_from_dict, read_yaml
from goldfold.errors import BadInput, some
from goldfold.machine import several_processes
from goldfold.paths import FoldPaths, Workspace
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.settling import recalled
from goldfold.progress import say
from goldfold.records import Floats, FoldTable
from goldfold.rounds import Run, clear_inner, gather_inner, inner_parts
from goldfold.tracking import WandbRun
from goldfold.training import is_done, train_fold

STARTED = "started.json"
"""The fingerprint of an inner training that goes on; gone when it is finished."""


def refuse_taught(name: str, member: Config) -> None:
    """Raises BadInput for a teacher of ``cross_fitted`` that cannot be trained again on labels alone."""
    if member.teacher.runs:
        raise BadInput(
            "teacher.distill.how",
            f"the teacher '{name}' was itself taught (by {some(member.teacher.runs)}), which inner folds cannot repeat",
            "use stored or online, or teachers that were trained on labels alone",
        )


def inner_values(
    config: Config, data: CompetitionData, workspace: Workspace, table: FoldTable, fold: int, run: Run, paths: FoldPaths
) -> Floats:
    """(N, C) of fold ``fold``'s training rows, in their order, by networks of ``run``'s own configuration and first seed.

    Each row is predicted by one that was trained on the other parts of these rows alone, and on external images that
    are pictures of neither this part nor the validated fold. They live in ``paths.inner``, ``<run>-<part>``; a finished
    one keeps its predictions alone. Cost: ``teacher.distill.inner`` trainings. Raises BadInput for a member that has
    teachers of its own, whose labels inner folds could not keep apart, and for rows that cannot be dealt.
    """
    if several_processes():
        raise BadInput(
            "teacher.distill.how",
            "inner folds of cross_fitted are trained by one process",
            "start this run without a launcher",
        )
    member = config_from_dict(read_yaml(run.paths.config), run.paths.config)
    refuse_taught(run.name, member)
    train_ids = table.train_ids(fold)
    parts = inner_parts(
        config.folds,
        data.train.iloc[data.rows_of(train_ids)],
        data.targets_of(train_ids),
        data.task,
        fold=fold,
        inner=config.teacher.distill.inner,
        id_column=config.competition.id,
        target_columns=data.target_columns,
        group=config.competition.group,
    )
    mark = files.fingerprint(
        [
            files.read_json(run.paths.record)["fingerprint"],
            files.sha256_file(run.paths.oof),  # of networks that saw the same images
            fold,
            list(parts.ids),
            parts.fold.tolist(),
        ]
    )
    folders = [FoldPaths(paths.inner / f"{run.name}-{part}") for part in parts.folds]
    waiting = [part for part in parts.folds if not is_done(folders[part], mark)]
    if waiting:
        _train(config, member, data, workspace, table.valid_ids(fold), parts, waiting, folders, mark, run.name, fold)
    return gather_inner(folders, train_ids, f"{run.name}, inner folds of fold {fold}")


def _train(
    config: Config,
    member: Config,
    data: CompetitionData,
    workspace: Workspace,
    hidden: tuple[str, ...],
    parts: FoldTable,
    waiting: list[int],
    folders: list[FoldPaths],
    mark: str,
    name: str,
    fold: int,
) -> None:
    # The member as it was, on this machine and without test images.
    here = {"device": config.train.device, "workers": config.train.workers}
    cache = {"cache": config.input.cache, "cache_dir": config.input.cache_dir}
    again = member.model_copy(
        update={
            "name": f"{config.name} fold {fold}, inner {name}",
            "train": member.train.model_copy(update=here),
            "input": member.input.model_copy(update=cache),
        }
    )
    machine = recalled(again.train, workspace.run(name).record)
    data = replace(data, test=None, test_ids=(), test_paths=(), test_csv=None)
    sources = open_sources(again, data, workspace)
    tracking = config.tracking.model_copy(update={"wandb": False})
    for part in waiting:
        paths = folders[part]
        # A process that trains another seed of the student needs the same inner networks.
        with files.locked(paths.folder) if machine.is_main else nullcontext():
            if not is_done(paths, mark):
                _start(paths, mark)
                job = plain_job(
                    again, data, workspace, parts, part, again.train.seed, paths, sources, mark, hidden=hidden
                )
                say(f"{job.run}, part {part}: {len(job.examples)} training rows, {len(job.valid_ids)} to label")
                tracker = WandbRun(
                    tracking,
                    project=config.competition.name,
                    run=job.run,
                    fold=paths.folder.name,
                    job_type="inner",
                    config={},
                    folder=workspace.root,
                )
                train_fold(job, machine, tracker)
            if machine.is_main:
                clear_inner(paths)


def _start(paths: FoldPaths, mark: str) -> None:
    """Make the folder this very training's: what another left in it goes."""
    started = paths.folder / STARTED
    if started.exists() and files.read_json(started)["fingerprint"] == mark:
        return
    for path in paths.folder.iterdir() if paths.folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    files.write_json(started, {"fingerprint": mark})
