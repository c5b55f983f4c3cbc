"""Whether teachers can teach their student as it asks, as far as configurations tell: before any of them is trained.

The conditions are those of the code that teaches (``goldfold.rounds``, ``goldfold.teaching``, ``pipeline.inner``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from goldfold import files
from goldfold.config import Config
from goldfold.config.schema import BlendMethod, CalibrationMethod, Folds
from goldfold.errors import BadInput
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.inner import refuse_taught
from goldfold.pipeline.lineage import find_source, run_config, runs_of
from goldfold.rounds import refuse_on_batch, refuse_ranks, refuse_single_voice, thresholds
from goldfold.tasks import Task
from goldfold.teaching import Sight, refuse_misfit


@dataclass(frozen=True)
class Source:
    """A teacher that is there or is to be made.

    ``runs``: its own run, or an ensemble's members, with their configurations (None: not known). ``method`` and
    ``calibration``: an ensemble's; ``method`` None: a run.
    """

    name: str
    runs: Mapping[str, Config | None]
    method: BlendMethod | None = None
    calibration: CalibrationMethod = "none"


def stored_source(name: str, workspace: Workspace) -> Source:
    """A finished run or ensemble as a teacher. Raises BadInput when there is none of that name."""
    runs = {run: run_config(run, workspace) for run in runs_of(name, workspace)}
    if find_source(name, workspace) != "ensemble":
        return Source(name, runs)
    record = files.read_json(workspace.ensemble(name) / "ensemble.json")
    return Source(name, runs, record["method"], record["calibration"])


def unteachable(student: Config, teachers: Sequence[Source], root: Path) -> list[str]:
    """Why these teachers cannot teach this student, a line each; none where nothing is known against it.

    An ensemble's members all count, whatever weight each will get. The train CSV is read where ``min_prob`` names classes
    and the competition does not (``root``: the project's folder); one that cannot be read is no matter of the teachers.
    """
    problems: list[str] = []
    for check in _checks(student, teachers, root):
        try:
            check()
        except BadInput as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _checks(student: Config, teachers: Sequence[Source], root: Path) -> Iterator[Callable[[], object]]:
    pseudo, distill = student.teacher.pseudo, student.teacher.distill
    how = distill.how if distill.weight or distill.features else None
    for teacher in teachers:
        if teacher.method is not None:
            yield partial(refuse_ranks, teacher.name, teacher.method)
            if how == "online" and teacher.method != "rank_mean":
                yield partial(refuse_on_batch, teacher.name, teacher.method, teacher.calibration)
    runs = {name: config for teacher in teachers for name, config in teacher.runs.items()}
    for name, config in runs.items():
        if config is not None and how == "online":
            yield partial(_refuse_other_sight, name, config, student)
        if config is not None and how == "cross_fitted":
            yield partial(refuse_taught, name, config)
    if pseudo.labels == "none":
        return
    voices = sum(2 if config is None else _voices(config, student.teacher.leaky) for config in runs.values())
    yield partial(refuse_single_voice, voices, pseudo, Task(student.competition.task, ()))
    if isinstance(pseudo.min_prob, dict) and (task := _task(student, root)) is not None:
        yield partial(thresholds, pseudo, task)


def _refuse_other_sight(name: str, teacher: Config, student: Config) -> None:
    columns = teacher.model.metadata
    metadata = bool(columns.numeric or columns.categorical)
    if student.model.freeze.cache:  # its teachers see stored images of their own
        refuse_misfit(f"teacher '{name}'", metadata)
    else:
        sights = (Sight.of_settings(teacher.input), Sight.of_settings(student.input))
        refuse_misfit(f"teacher '{name}'", metadata, *sights)


def _voices(teacher: Config, leaky: bool) -> int:
    """How many bundles of a run speak for one fold; at least 2 where that is not known."""
    return (1 + len(teacher.train.seeds)) * (_folds(teacher.folds) if leaky else 1)


def _folds(folds: Folds) -> int:
    if folds.scheme == "holdout":
        return 1
    return 2 if folds.scheme == "column" else folds.n * folds.repeats


def _task(student: Config, root: Path) -> Task | None:
    settings = student.competition
    if settings.classes is not None and settings.task != "binary":
        return Task(settings.task, settings.classes)
    try:
        return load_competition(settings, root).task
    except BadInput:
        return None
