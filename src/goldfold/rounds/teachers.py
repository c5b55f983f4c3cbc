"""Who teaches fold k: the bundles of a run or of an ensemble's members that left fold k out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from goldfold import files
from goldfold.config.schema import BlendMethod, CalibrationMethod
from goldfold.ensemble import LINEAR, Blend, Calibration, load_blend, load_calibration
from goldfold.errors import BadInput, some
from goldfold.paths import FoldPaths, RunPaths, Workspace
from goldfold.records import Floats
from goldfold.tasks import Task


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run with its folds, and its seeds in the order of training."""

    paths: RunPaths
    folds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.paths.name

    def bundles(self, fold: int | None) -> tuple[FoldPaths, ...]:
        """The folders of a fold's bundles, one a seed; None: of every fold.

        Raises BadInput when one is missing or unfinished, or when its own record names another fold.
        """
        if fold is not None and fold not in self.folds:
            known = f"it has {some(self.folds, 12)}: teachers and students need the same folds"
            raise BadInput(self.paths.folder, f"the teacher has no fold {fold}", known)
        found = []
        for number in self.folds if fold is None else (fold,):
            for place, seed in enumerate(self.seeds):
                path = self.paths.fold(number, seed if place else None)
                if not path.done.exists():
                    raise BadInput(path.folder, f"the teacher's fold {number} is not finished", "train it first")
                recorded = files.read_json(path.bundle)["fold"]
                if recorded != number:
                    what = f"a bundle of fold {recorded} lies in the folder of fold {number}"
                    raise BadInput(path.bundle, what, "delete the folder and train the fold again")
                found.append(path)
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A run, or an ensemble of runs with its stored ``blends``: by fold those fitted without that fold's labels.

    ``leaky``: its own scores are marked leaky, so every fold's labels may stand behind each of its bundles.
    """

    name: str
    runs: tuple[Run, ...]
    leaky: bool
    workspace: Workspace
    is_ensemble: bool

    def blend(self, fold: int | None) -> Blend | None:
        """How the ensemble's members are combined for ``fold`` (None: for all); None for a run. Raises BadInput."""
        return load_blend(self.workspace.ensemble(self.name), fold) if self.is_ensemble else None

    def members(self, fold: int | None) -> tuple[Run, ...]:
        """The runs that count: members of weight 0 in ``fold``'s weighted mean are left out."""
        blend = self.blend(fold)
        if blend is None or not blend.linear:
            return self.runs
        weight = dict(zip(blend.members, blend.weights, strict=True))
        return tuple(run for run in self.runs if weight[run.name] > 0)

    def combine(self, fold: int | None, values: Mapping[str, Floats], task: Task) -> Floats:
        """(N, C) of the teacher from (N, C) of each of ``members(fold)``, by run name."""
        blend = self.blend(fold)
        if blend is None:
            return values[self.name]
        # A member that does not count was not asked.
        nothing = np.zeros_like(next(iter(values.values())))
        blended = blend.apply([values.get(name, nothing) for name in blend.members], task)
        calibration = self.calibration(fold, task)
        return blended if calibration is None else calibration.apply(blended, task)

    def calibration(self, fold: int | None, task: Task) -> Calibration | None:
        """The ensemble's temperatures, fitted without ``fold``'s labels; None: it has none, or is a run."""
        return load_calibration(self.workspace.ensemble(self.name), task, fold) if self.is_ensemble else None

    def shares(self, fold: int | None) -> dict[str, float]:
        """Each run's weight in the teacher's weighted mean. Raises BadInput when the ensemble is none."""
        blend = self.blend(fold)
        if blend is None:
            return {self.name: 1.0}
        record = files.read_json(self.workspace.ensemble(self.name) / "ensemble.json")
        refuse_on_batch(self.name, blend.method, record["calibration"])
        return {name: float(weight) for name, weight in zip(blend.members, blend.weights, strict=True)}


def refuse_ranks(name: str, method: BlendMethod) -> None:
    """Raises BadInput for the ensemble of that name where it cannot teach at all."""
    if method == "rank_mean":
        raise BadInput(
            "teacher.runs",
            f"the ensemble '{name}' is a mean of ranks, which are no probabilities",
            "blend it by mean, gmean, simplex, greedy or stacking",
        )


def refuse_on_batch(name: str, method: BlendMethod, calibration: CalibrationMethod) -> None:
    """Raises BadInput for the ensemble of that name where it cannot teach online, batch by batch."""
    if method not in LINEAR:
        raise BadInput(
            "teacher.distill.how",
            f"the ensemble '{name}' is blended by {method}, which online distillation cannot do on a batch",
            "use stored, or blend it by mean, simplex or greedy",
        )
    if calibration != "none":
        raise BadInput(
            "teacher.distill.how",
            f"the ensemble '{name}' is calibrated, which online distillation cannot do on a batch",
            "use stored, or blend it without calibration",
        )


def open_teachers(names: Sequence[str], workspace: Workspace) -> tuple[Teacher, ...]:
    """The runs and ensembles of these names.

    Raises BadInput when one is neither, or both, when a run is not finished, and for ensembles of ranks, which are no
    probabilities.
    """
    return tuple(_open(name, workspace) for name in names)


def combine(teachers: Sequence[Teacher], fold: int | None, values: Mapping[str, Floats], task: Task) -> Floats:
    """(N, C) of all teachers from (N, C) of each run, by name: named teachers count equally."""
    parts = [teacher.combine(fold, values, task) for teacher in teachers]
    return task.normalise(np.mean(np.stack(parts), axis=0, dtype=np.float64))


def members(teachers: Sequence[Teacher], fold: int | None) -> tuple[Run, ...]:
    """The runs that count in any teacher, each once, in the order of their names."""
    found = {run.name: run for teacher in teachers for run in teacher.members(fold)}
    return tuple(found[name] for name in sorted(found))


def online_bundles(teachers: Sequence[Teacher], fold: int | None) -> tuple[tuple[FoldPaths, float], ...]:
    """Bundles with weights that sum to 1: teachers count equally, in them runs by their weight, in those seeds equally.

    Raises BadInput for an ensemble that is no weighted mean, and as ``Run.bundles`` does.
    """
    weights: dict[str, float] = {}
    for teacher in teachers:
        for name, share in teacher.shares(fold).items():
            weights[name] = weights.get(name, 0.0) + share / len(teachers)
    found = []
    for run in members(teachers, fold):
        bundles = run.bundles(fold)
        found += [(path, weights[run.name] / len(bundles)) for path in bundles]
    return tuple(found)


def excluded_fold(teachers: Sequence[Teacher], fold: int | None) -> int | None:
    """The fold whose labels no asked bundle has seen: ``fold``, which every bundle's record was found to name.

    None where bundles of all folds are asked, or a teacher is leaky itself.
    """
    if fold is None or any(teacher.leaky for teacher in teachers):
        return None
    for run in members(teachers, fold):
        run.bundles(fold)
    return fold


def _open(name: str, workspace: Workspace) -> Teacher:
    run, ensemble = workspace.run(name), workspace.ensemble(name) / "ensemble.json"
    if run.config.exists() and ensemble.exists():
        raise BadInput("teacher.runs", f"'{name}' is a run and an ensemble", "rename one of the two folders")
    if not ensemble.exists():
        opened = _open_run(run)
        return Teacher(name, (opened,), _is_leaky(run), workspace, is_ensemble=False)
    blend = load_blend(ensemble.parent, None)
    refuse_ranks(name, blend.method)
    runs = tuple(_open_run(workspace.run(member)) for member in blend.members)
    leaky = any(_is_leaky(found.paths) for found in runs)
    return Teacher(name, runs, leaky, workspace, is_ensemble=True)


def _open_run(paths: RunPaths) -> Run:
    if not paths.cv.exists():
        there = "is not finished" if paths.folder.is_dir() else "does not exist"
        raise BadInput("teacher.runs", f"the run '{paths.name}' {there}", "train it first")
    cv = files.read_json(paths.cv)
    return Run(paths, tuple(int(entry["fold"]) for entry in cv["folds"]), tuple(int(seed) for seed in cv["seeds"]))


def _is_leaky(paths: RunPaths) -> bool:
    return bool(files.read_json(paths.record)["leaky"])
