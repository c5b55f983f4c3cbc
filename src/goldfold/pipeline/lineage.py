"""What finished runs and ensembles come from: members, teachers, and whether one of them has seen validated labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from goldfold import files
from goldfold.config import Config, changed_keys, config_from_dict, read_yaml
from goldfold.ensemble import load_member
from goldfold.errors import BadInput, some
from goldfold.paths import Workspace
from goldfold.pipeline.competition import rows_section

Kind = Literal["run", "ensemble"]


def find_source(name: str, workspace: Workspace) -> Kind | None:
    """What a name stands for in this folder; None: nothing. Raises BadInput when it is a run's and an ensemble's."""
    run, ensemble = workspace.run(name), workspace.ensemble(name)
    has_run, has_ensemble = run.config.exists(), (ensemble / "ensemble.json").exists()
    if has_run and has_ensemble:
        raise BadInput(
            name,
            f"it is the name of a run ({run.folder}) and of an ensemble ({ensemble})",
            "rename one of these folders",
        )
    return "run" if has_run else "ensemble" if has_ensemble else None


def known_sources(workspace: Workspace) -> list[str]:
    """Names of the runs and ensembles in this folder, sorted."""
    runs = workspace.run("").folder.glob("*/config.yaml")
    ensembles = workspace.ensemble("").glob("*/ensemble.json")
    return sorted({path.parent.name for path in (*runs, *ensembles)})


def runs_of(name: str, workspace: Workspace) -> list[str]:
    """The runs behind a name: a run's own, or an ensemble's members. Raises BadInput when there is nothing."""
    kind = find_source(name, workspace)
    if kind is None:
        known = known_sources(workspace)
        raise BadInput(
            name, "there is no such run or ensemble", f"there are {some(known, 20)}" if known else "train one first"
        )
    if kind == "run":
        return [name]
    record = files.read_json(workspace.ensemble(name) / "ensemble.json")
    return [str(member["name"]) for member in record["members"]]


def lineage(name: str, workspace: Workspace) -> list[str]:
    """The runs behind a name and, further on, the runs that taught them; each once, the nearest first."""
    found: list[str] = []
    waiting = runs_of(name, workspace)
    while waiting:
        run = waiting.pop(0)
        if run not in found:
            found.append(run)
            for teacher in run_config(run, workspace).teacher.runs:
                waiting += runs_of(teacher, workspace)
    return found


def run_config(name: str, workspace: Workspace) -> Config:
    """The configuration of a run. Raises BadInput when there is no such run."""
    path = workspace.run(name).config
    if not path.exists():
        known = sorted(folder.parent.name for folder in workspace.run("").folder.glob("*/config.yaml"))
        raise BadInput(
            path.parent, "there is no such run", f"the runs are {some(known, 20)}" if known else "train one first"
        )
    return config_from_dict(read_yaml(path), path)


def optimistic(config: Config) -> bool:
    """Whether the labels of a validated fold shape that fold's weights, so that the run's own scores are a little too
    good: they choose the epoch, the end of the training, or the rate."""
    train = config.train
    greedy = train.soup.epochs > 0 and train.soup.method == "greedy"
    return train.keep == "best" or greedy or train.early_stopping.patience > 0 or config.schedule.name == "plateau"


def refuse_optimistic(name: str, teacher: Config) -> None:
    """Raises BadInput for a teacher whose fold-k networks were shaped by fold k's labels."""
    if optimistic(teacher):
        raise BadInput(
            "teacher.runs",
            f"the labels of each validated fold chose weights of '{name}' (train.keep best, early stopping, a greedy soup "
            "or a plateau schedule), and would reach that fold's student",
            "train the teacher without, or set teacher.leaky to true and have the scores marked",
        )


def refuse_optimistic_teachers(config: Config, workspace: Workspace) -> None:
    """Raises BadInput as ``refuse_optimistic`` does for the runs behind an experiment's teachers, unless it is leaky."""
    for name in () if config.teacher.leaky else config.teacher.runs:
        for run in runs_of(name, workspace):
            refuse_optimistic(run, run_config(run, workspace))


def is_leaky_source(name: str, workspace: Workspace) -> bool:
    """Whether a finished run, or a member of an ensemble, learned from a teacher that has seen validated labels.

    An ensemble remembers what its members were when it was made.
    """
    if any(bool(files.read_json(workspace.run(run).record)["leaky"]) for run in runs_of(name, workspace)):
        return True
    made = workspace.ensemble(name) / "ensemble.json"
    return find_source(name, workspace) == "ensemble" and bool(files.read_json(made)["leaky"])


def is_leaky(config: Config, workspace: Workspace) -> bool:
    """Whether an experiment's scores are inflated: by its own leave, or through a teacher whose scores are."""
    teacher = config.teacher
    return bool(teacher.runs) and (teacher.leaky or any(is_leaky_source(name, workspace) for name in teacher.runs))


def named(name: str, leaky: bool) -> str:
    """A name as every table shows it."""
    return f"{name} (leaky)" if leaky else name


def differences(config: Config, other: Config) -> list[str]:
    """The keys in which two experiments are not scored on the same rows, folds and labels; none when they are."""
    competition = changed_keys(rows_section(other.competition), rows_section(config.competition), "competition.")
    return competition + changed_keys(
        other.folds.model_dump(mode="json"), config.folds.model_dump(mode="json"), "folds."
    )


def teacher_digest(name: str, workspace: Workspace, folds: str, classes: Sequence[str] = ()) -> str:
    """A digest of what a teacher teaches. Raises BadInput unless it is finished, on the folds of that digest.

    ``name``: a run or an ensemble, whose members are then in the digest. ``classes``: those of the student; empty: any.
    """
    kind = find_source(name, workspace)
    if kind != "ensemble":
        return _run_digest(name, workspace, folds, classes)
    refuse_stale(name, workspace)
    path = workspace.ensemble(name) / "ensemble.json"
    members = {run: _run_digest(run, workspace, folds, classes) for run in runs_of(name, workspace)}
    return files.fingerprint([files.sha256_file(path), members])


def refuse_stale(name: str, workspace: Workspace) -> None:
    """Raises BadInput for an ensemble whose members were trained anew since it was made."""
    path = workspace.ensemble(name) / "ensemble.json"
    for member in files.read_json(path)["members"]:
        run = str(member["name"])
        if load_member(workspace.run(run)).digest != member["digest"]:
            raise BadInput(
                path, f"the ensemble was made of other predictions of '{run}' than lie there now", "make it again"
            )


def _run_digest(name: str, workspace: Workspace, folds: str, classes: Sequence[str]) -> str:
    paths = workspace.run(name)
    if not paths.cv.exists():
        known = [other for other in known_sources(workspace) if other != name]
        there = f"; there are {some(known, 20)}" if known and not paths.config.exists() else ""
        raise BadInput("teacher.runs", f"the run '{name}' is not finished", f"train it first{there}")
    if files.read_json(paths.record)["inputs"]["folds"] != folds:
        raise BadInput("teacher.runs", f"the run '{name}' was trained on other folds", "train it again on these folds")
    for path in sorted(paths.folder.glob("fold*/bundle.json"))[:1]:
        own = files.read_json(path)["task"]["classes"]
        if classes and list(own) != list(classes):
            raise BadInput(
                "teacher.runs",
                f"the run '{name}' knows the classes {some(own)}, the student {some(classes)}",
                "teacher and student need the same labels",
            )
    return files.fingerprint([files.sha256_file(paths.oof), files.sha256_file(paths.cv)])
