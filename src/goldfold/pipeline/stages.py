"""The stages of one experiment: folds, training, and the run's tables."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from goldfold import files
from goldfold.config import Config
from goldfold.data import LeakError
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.folds import make_folds, open_folds
from goldfold.machine import Machine, find_machine, several_processes, tune_allocator
from goldfold.paths import FoldPaths, Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.gather import gather
from goldfold.pipeline.jobs import Sources, open_sources, try_augmentation
from goldfold.pipeline.lineage import is_leaky, named, refuse_optimistic_teachers
from goldfold.pipeline.parallel import Jobs, Place, how_many, on_ray, processes, run_all, share_gpus, visible_gpus
from goldfold.pipeline.reporting import Reporter
from goldfold.pipeline.run_folder import digest_inputs, fold_folders, is_whole, open_run, record_fold
from goldfold.pipeline.settling import fold_memory, settle
from goldfold.pipeline.teaching import make_job
from goldfold.pipeline.views import refuse_single_fold, settle_views
from goldfold.progress import plain_lines, say, warn
from goldfold.records import Floats, FoldTable
from goldfold.tasks import Task
from goldfold.tracking import Sweep
from goldfold.training import FoldJob, FoldResult, drop_resume_state, is_done, train_fold


def load_folds(config: Config, data: CompetitionData, workspace: Workspace, remake: bool = False) -> list[FoldTable]:
    """The competition's fold tables, a table a repeat: made and stored the first time, verified ever after."""
    path = workspace.folds(config.competition.name)
    with files.locked(path.parent):  # another process may be between the table and its record
        return open_folds(path, config.folds, data.train, train_csv=data.train_csv, remake=remake, **_dealt(data))


def try_folds(config: Config, data: CompetitionData) -> list[FoldTable]:
    """The fold tables that would be made, written nowhere. Raises BadInput when they cannot be."""
    return make_folds(config.folds, data.train, source_sha256="", **_dealt(data))


class Dealt(TypedDict):
    """What rows are dealt by."""

    id_column: str
    task: Task
    targets: Floats
    target_columns: Sequence[str]
    group: str | None


def _dealt(data: CompetitionData) -> Dealt:
    settings = data.settings
    return Dealt(
        id_column=settings.id,
        task=data.task,
        targets=data.targets,
        target_columns=data.target_columns,
        group=settings.group,
    )


class FoldsFailed(GoldfoldError):
    """Some folds of a run failed, for the ``reasons`` given by fold; the others are trained."""

    def __init__(self, run: str, reasons: Mapping[str, str], exit_code: int) -> None:
        folds: dict[str, list[str]] = {}
        for fold, reason in reasons.items():
            folds.setdefault(reason, []).append(fold)
        lines = [f"{', '.join(which)} failed: {reason}" for reason, which in folds.items()]
        super().__init__(f"{run}: {'; '.join(lines)}; the same command trains only what is missing")
        self.exit_code = exit_code


@dataclass(frozen=True, eq=False)
class Opened:
    """What the folds of a run share in one process."""

    config: Config
    workspace: Workspace
    data: CompetitionData
    tables: list[FoldTable]
    sources: Sources
    machine: Machine
    reporter: Reporter
    fingerprint: str


@dataclass(frozen=True)
class FoldTask:
    """One fold of one seed for another process, which opens the rest by itself. ``folder``: where it works."""

    config: Config
    workspace: Workspace
    folder: Path
    fold: int
    seed: int
    machine: Machine
    threads: int
    fingerprint: str


def train_run(
    config: Config,
    workspace: Workspace,
    only_folds: Sequence[int] = (),
    sweep: Sweep | None = None,
    jobs: Jobs = 1,
    place: Place = "here",
) -> dict[str, Any]:
    """Train every fold (or ``only_folds``) of an experiment; returns cv.json, or {} while folds are missing.

    Finished folds are skipped, a killed one goes on. A fold that fails does not keep the others from training.
    ``sweep``: the W&B sweep that this run is a trial of. ``jobs``: folds at a time, in processes of their own ``here`` or
    on a cluster. Raises FoldsFailed at the end when a fold failed, BadInput when the run's folder holds another
    experiment.
    """
    assert config.name is not None
    if several_processes() and (jobs != 1 or place != "here"):
        what = "a launcher has started several processes, which train one model together"
        raise BadInput("--jobs", what, "leave --jobs out, or start without the launcher")
    data = load_competition(config.competition, workspace.root)
    tables = load_folds(config, data, workspace)
    refuse_single_fold(config, tables)
    folds = [fold for table in tables for fold in table.folds]
    unknown = [fold for fold in only_folds if fold not in folds]
    if unknown:
        raise BadInput("--fold", f"there is no fold {some(unknown)}", f"the folds are {some(folds, 30)}")
    paths = workspace.run(config.name)
    machine = find_machine(config.train)
    reporter = Reporter(config, paths, workspace.root, machine.is_main, sweep)
    sources = open_sources(config, data, workspace)
    inputs = digest_inputs(config, data, workspace, sources)
    refuse_optimistic_teachers(config, workspace)
    leaky = is_leaky(config, workspace)
    if leaky:
        warn(
            f"{named(config.name, leaky)}: its teachers have seen validated labels; its out-of-fold scores are inflated"
        )
    epochs_of_a_fold = len(tables[0].train_ids(folds[0])) * config.train.epochs
    with files.locked(paths.folder):  # of several processes one measures and chooses, for all
        settled = settle(config, data.task, workspace, paths, images=epochs_of_a_fold)
        machine = settled.machine
        fingerprint = open_run(paths, config, inputs, settled, leaky)
    for done in fold_folders(paths, config, folds):
        if is_done(done, fingerprint):
            drop_resume_state(done)  # a kill may have come between the fold's end and this
    failed: dict[str, GoldfoldError] = {}
    if not is_whole(paths, config, folds, fingerprint):
        try_augmentation(config)
        opened = Opened(config, workspace, data, tables, sources, machine, reporter, fingerprint)
        failed = _train_folds(opened, only_folds or folds, jobs, place)
    if failed:
        code = 1 if any(error.exit_code == 1 for error in failed.values()) else 2
        raise FoldsFailed(config.name, {name: str(error) for name, error in failed.items()}, code)
    if not is_whole(paths, config, folds, fingerprint):
        missing = [f.folder.name for f in fold_folders(paths, config, folds) if not f.done.exists()]
        say(f"{config.name}: not finished yet: {some(missing, 10)}")
        return {}
    with files.locked(paths.folder):
        with memory_full(paths.folder, "lower tta.batch_size"):
            settle_views(config, data, paths, tables, sources, machine.predicting, fingerprint)
        cv = gather(config, data, paths, tables, leaky)
    reporter.whole(data, cv)
    return cv


def _train_folds(run: Opened, folds: Sequence[int], jobs: Jobs, place: Place) -> dict[str, GoldfoldError]:
    """Train what is not finished; returns what failed, by the fold's folder."""
    config, machine = run.config, run.machine
    waiting = []
    for seed in (config.train.seed, *config.train.seeds):
        for fold in folds:
            paths = _fold_paths(config, run.workspace, fold, seed)
            if is_done(paths, run.fingerprint):
                say(f"{config.name} {paths.folder.name}: finished before, skipped")
            else:
                waiting.append((fold, seed))
    gpus = visible_gpus(torch.cuda.device_count()) if machine.device.type == "cuda" else []
    slots = min(how_many(jobs, gpus), len(waiting))
    if place == "here" and 0 < len(gpus) < slots:
        gpus = _shared(run, gpus, slots)
        slots = len(gpus)
    if place == "here" and slots <= 1:
        found = [(_name(run, fold, seed), train_one(run, fold, seed)) for fold, seed in waiting]
        return {name: error for name, error in found if error is not None}
    threads = max(torch.get_num_threads() // slots, 1)
    if config.train.workers is None and machine.workers:
        machine = replace(machine, workers=max(machine.workers // slots, 1))
    tasks = [
        FoldTask(config, run.workspace, Path.cwd(), fold, seed, machine, threads, run.fingerprint)
        for fold, seed in waiting
    ]
    each = f"{threads} thread{'s' if threads > 1 else ''}" + (
        f", GPU {' or '.join(dict.fromkeys(gpus))}" if gpus else ""
    )
    say(f"{config.name}: {slots} of {len(tasks)} folds at a time, each in a process of its own ({each})")
    start = processes(gpus) if place == "here" else on_ray(1.0 if gpus else 0.0, threads)
    ended = run_all(train_elsewhere, tasks, slots, start, _died)
    return {
        _name(run, task.fold, task.seed): error for task, error in zip(tasks, ended, strict=True) if error is not None
    }


def _shared(run: Opened, gpus: Sequence[str], slots: int) -> list[str]:
    """The GPU of each of ``slots`` folds at a time, or of as many as fit into their memory.

    Folds that crowd each other out would train in smaller pieces, and not to the same result as alone.
    """
    free = [torch.cuda.mem_get_info(number)[0] for number in range(len(gpus))]
    try:
        each = fold_memory(run.config, run.data.task, run.machine)
    except MemoryError:
        each = max(free)
    torch.cuda.empty_cache()  # after an error, too: the folds' processes need it
    if each is None:
        return [gpus[slot % len(gpus)] for slot in range(slots)]
    shared = share_gpus(gpus, slots, free, each)
    told = f"{run.config.name}: a fold takes about {each / 1e9:.1f} GB of a GPU, {max(free) / 1e9:.1f} GB are free"
    say(told if len(shared) == slots else f"{told}: not {slots} but {len(shared)} folds at a time")
    return shared


def train_elsewhere(task: FoldTask) -> GoldfoldError | None:
    """``train_one`` in a process that knows nothing of the run yet."""
    os.chdir(task.folder)
    torch.set_num_threads(task.threads)
    plain_lines()
    if task.machine.device.type == "cpu":
        tune_allocator()
    config, workspace = task.config, task.workspace
    data = load_competition(config.competition, workspace.root)
    run = Opened(
        config,
        workspace,
        data,
        load_folds(config, data, workspace),
        open_sources(config, data, workspace),
        task.machine,
        Reporter(config, workspace.run(str(config.name)), workspace.root, task.machine.is_main),
        task.fingerprint,
    )
    try:
        return train_one(run, task.fold, task.seed)
    finally:
        if task.machine.device.type == "cuda":
            torch.cuda.empty_cache()  # another process may share the GPU


def train_one(run: Opened, fold: int, seed: int) -> GoldfoldError | None:
    """Train one fold and note it in run.json. Returns what was wrong with this fold; raises what is of the whole run."""
    config, machine = run.config, run.machine
    paths = _fold_paths(config, run.workspace, fold, seed)
    name = paths.folder.name
    table = next(table for table in run.tables if fold in table.folds)
    try:
        with memory_full(paths.folder, "lower tta.batch_size of this run, or let smaller teachers teach"):
            job = make_job(
                config, run.data, run.workspace, table, fold, seed, paths, run.sources, run.fingerprint, machine
            )
        say(f"{config.name} {name}: {len(job.examples)} training rows, {len(job.valid_ids)} validation rows")
        result = _train_alone(job, run.reporter, machine)
    except Exception as error:
        # Of several processes that train one model none may go on to another fold alone.
        if not _is_of_fold(error, paths) or several_processes():
            raise
        reason = _reason(error)
        say(f"{config.name} {name}: failed: {reason}")
        return error if isinstance(error, GoldfoldError) else GoldfoldError(reason)
    if machine.is_main:
        record_fold(run.workspace.run(str(config.name)), name, asdict(result))
    return None


def _died(task: FoldTask) -> GoldfoldError:
    paths = _fold_paths(task.config, task.workspace, task.fold, task.seed)
    what = "its process died without a word (killed for lack of memory?)"
    say(f"{task.config.name} {paths.folder.name}: failed: {what}")
    return GoldfoldError(f"{paths.folder}: {what}; try fewer --jobs")


def _fold_paths(config: Config, workspace: Workspace, fold: int, seed: int) -> FoldPaths:
    return workspace.run(str(config.name)).fold(fold, None if seed == config.train.seed else seed)


def _name(run: Opened, fold: int, seed: int) -> str:
    return _fold_paths(run.config, run.workspace, fold, seed).folder.name


def _reason(error: Exception) -> str:
    """One line about a failure. Of one that nobody foresaw, a driver's or a disk's say, the traceback is shown too."""
    if isinstance(error, GoldfoldError):
        return str(error)
    say("".join(traceback.format_exception(error)).rstrip())
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _is_of_fold(error: Exception, paths: FoldPaths) -> bool:
    """Whether a failure is one fold's: the others may go well. Bad input and leaks are about the whole experiment,
    unless it is a file of that fold's own folder that is wrong."""
    if isinstance(error, BadInput):
        return str(error).startswith((f"{paths.folder}:", f"{paths.folder}{os.sep}"))
    return not isinstance(error, LeakError)


def _train_alone(job: FoldJob, reporter: Reporter, machine: Machine) -> FoldResult:
    """Train one fold, tracked; no two commands may train the same one."""
    folder = job.paths.folder
    # Of several processes that train one model together, the first holds the folder for all.
    with files.locked(folder, wait=False) if machine.is_main else nullcontext(True) as held:
        if not held:
            raise BadInput(folder, "another process is training this fold", "wait for it, or train another with --fold")
        mend = "lower input.size or tta.batch_size, or take a smaller model.backbone"
        with reporter.fold(folder.name) as tracker, memory_full(folder, mend):
            return train_fold(job, machine, tracker)


@contextmanager
def memory_full(where: Path, mend: str) -> Iterator[None]:
    """A full GPU is one line, and one fold's failure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GoldfoldError(f"{where}: the GPU's memory is full; {mend}") from error
