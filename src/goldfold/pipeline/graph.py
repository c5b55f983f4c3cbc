"""A pipeline's rounds as a graph, checked before anything runs: who needs whom, and whether they fit together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from goldfold import files
from goldfold.config import Config, Pipeline, is_pipeline, load_config, load_pipeline
from goldfold.config.schema import DistillRound, EnsembleRound, PseudoLabelRound, Round, SubmitRound
from goldfold.errors import BadInput, some
from goldfold.paths import Workspace
from goldfold.pipeline.blending import check_settings
from goldfold.pipeline.lineage import (
    Kind,
    differences,
    find_source,
    known_sources,
    refuse_optimistic,
    run_config,
    runs_of,
)
from goldfold.pipeline.round_keys import round_overrides
from goldfold.pipeline.teachable import Source, stored_source, unteachable


@dataclass(frozen=True)
class Planned:
    """A round with its name and what it needs: names of other rounds, or of runs and ensembles on disk.

    ``number`` counts from 1; ``config``: the experiment of a training round, whose teacher's keys are in ``step`` too.
    ``name`` is None for a training round whose experiment cannot be loaded.
    """

    number: int
    step: Round
    name: str | None
    needs: tuple[str, ...]
    config: Config | None = None

    @property
    def makes(self) -> Kind:
        return "ensemble" if isinstance(self.step, EnsembleRound) else "run"


@dataclass(frozen=True)
class Plan:
    """A pipeline whose rounds fit together, but for ``problems``, a line each."""

    path: Path
    pipeline: Pipeline
    rounds: tuple[Planned, ...]
    problems: tuple[str, ...]

    @property
    def configs(self) -> dict[str, Config]:
        """The experiment of each training round, by run name."""
        return {item.name: item.config for item in self.rounds if item.config is not None and item.name is not None}


def plan_pipeline(
    path: Path, overrides: Sequence[str] = (), workspace: Workspace | None = None
) -> tuple[Pipeline, dict[str, Config]]:
    """The rounds and the experiment of each training round, by run name. ``overrides`` hold for every experiment.

    Raises BadInput when the rounds do not fit together; see ``plan_rounds``.
    """
    plan = plan_rounds(path, overrides, workspace)
    refuse_problems(plan)
    return plan.pipeline, plan.configs


def refuse_problems(plan: Plan) -> None:
    """Raises BadInput with the first of a plan's problems."""
    if plan.problems:
        first, *others = plan.problems
        more = f"{len(others)} more problem{'s' if len(others) > 1 else ''}: goldfold check lists all" if others else ""
        where, _, what = first.partition(": ")
        raise BadInput(where, what, more)


def plan_rounds(path: Path, overrides: Sequence[str] = (), workspace: Workspace | None = None) -> Plan:
    """Read a pipeline and find all that is wrong with its graph, without reading any image.

    Problems: experiments that do not load, doubled names, names that neither an earlier round makes nor a run or ensemble
    on disk has, rounds that need each other, teachers, students and members that differ in competition, task, classes or
    folds, and teachers who cannot teach as their student asks (``teachable.unteachable``). ``workspace``: the project folder; default: the working folder. Raises BadInput when the file is
    no pipeline.
    """
    workspace = workspace or Workspace(Path())
    if not is_pipeline(path):
        raise BadInput(path, "this is no pipeline: it has no 'rounds'", "an experiment is run by goldfold train")
    pipeline = load_pipeline(path)
    problems: list[str] = []
    rounds = []
    for index, step in enumerate(pipeline.rounds):
        try:
            rounds.append(_planned(path, index, step, overrides))
        except BadInput as error:
            problems.append(f"{path}: rounds.{index}: {error}")
            needs = step.teachers if isinstance(step, PseudoLabelRound | DistillRound) else ()
            rounds.append(Planned(index + 1, step, getattr(step, "name", None), needs))
    made = {item.name: item for item in reversed(rounds) if item.name and not isinstance(item.step, SubmitRound)}
    problems += _doubled(path, rounds, workspace)
    cycles, knots = _cycles(path, rounds, made)
    problems += cycles
    # A round whose experiment does not load may make any name.
    guess = any(item.name is None for item in rounds)
    for item in rounds:
        problems += _references(path, item, made, knots, workspace, guess)
    problems += _mismatches(path, rounds, made, workspace)
    problems += _optimistic(path, rounds, made, workspace)
    problems += _unsuited(path, rounds, made, workspace)
    problems += _unteachable(path, rounds, made, workspace)
    return Plan(path, pipeline, tuple(rounds), tuple(dict.fromkeys(problems)))


def _planned(path: Path, index: int, step: Round, overrides: Sequence[str]) -> Planned:
    if isinstance(step, EnsembleRound):
        return Planned(index + 1, step, step.name, step.members)
    if isinstance(step, SubmitRound):
        return Planned(index + 1, step, step.name or step.source, (step.source,))
    experiment = path.parent / step.experiment
    config = load_config(experiment, [*round_overrides(step, experiment, overrides), *overrides])
    if not isinstance(step, PseudoLabelRound | DistillRound):
        return Planned(index + 1, step, str(config.name), config.teacher.runs, config)
    section = config.teacher.pseudo if isinstance(step, PseudoLabelRound) else config.teacher.distill
    kept = {key: getattr(section, key) for key in type(section).model_fields} | {"leaky": config.teacher.leaky}
    return Planned(index + 1, step.model_copy(update=kept), str(config.name), config.teacher.runs, config)


def _where(path: Path, item: Planned) -> str:
    return f"{path}: rounds.{item.number - 1}"


def _doubled(path: Path, rounds: Sequence[Planned], workspace: Workspace) -> list[str]:
    problems, taken = [], dict[tuple[bool, str], int]()
    for item in rounds:
        if item.name is None:
            continue
        submits = isinstance(item.step, SubmitRound)
        if (submits, item.name) in taken:
            what = f"the submission '{item.name}' is written" if submits else f"the name '{item.name}' is taken"
            problems.append(str(BadInput(_where(path, item), f"{what} by an earlier round", "give this round a name")))
        taken.setdefault((submits, item.name), item.number)
        if submits:
            continue
        ensemble = isinstance(item.step, EnsembleRound)
        other = workspace.run(item.name).folder if ensemble else workspace.ensemble(item.name)
        if (other / ("config.yaml" if ensemble else "ensemble.json")).exists():
            what = f"'{item.name}' is the name of {'a run' if ensemble else 'an ensemble'} too ({other})"
            problems.append(str(BadInput(_where(path, item), what, "name this round otherwise")))
        heard = item.step.teachers if isinstance(item.step, PseudoLabelRound | DistillRound) else item.needs
        twice = dict.fromkeys(name for name in heard if heard.count(name) > 1)
        problems += [str(BadInput(_where(path, item), f"'{name}' is named twice", "name it once")) for name in twice]
    return problems


def _cycles(
    path: Path, rounds: Sequence[Planned], made: Mapping[str, Planned]
) -> tuple[list[str], set[tuple[str, str]]]:
    """Lines about rounds that need each other, and the pairs (round, what it needs) that make these cycles."""
    needs = {name: [need for need in dict.fromkeys(item.needs) if need in made] for name, item in made.items()}
    problems: list[str] = []
    knots: set[tuple[str, str]] = set()
    while True:
        try:
            TopologicalSorter(needs).prepare()
        except CycleError as error:
            chain = list(error.args[1])[:-1]  # each is needed by the next, and the last by the first
            first = min(range(len(chain)), key=lambda place: made[chain[place]].number)
            chain = [*chain[first:], *chain[:first], chain[first]]
            for before, after in pairwise(chain):
                knots.add((after, before))
                needs[after] = [need for need in needs[after] if need != before]
            what = f"rounds that need each other: {' -> '.join(chain)}"
            problems.append(str(BadInput(_where(path, made[chain[0]]), what, "a teacher comes before its student")))
        else:
            return problems, knots


def _references(
    path: Path,
    item: Planned,
    made: Mapping[str, Planned],
    knots: set[tuple[str, str]],
    workspace: Workspace,
    guess: bool,
) -> list[str]:
    problems = []
    for name in dict.fromkeys(item.needs):
        maker = made.get(name)
        if maker is not None and maker.number >= item.number:
            if (item.name, name) in knots:
                continue
            what, mend = f"'{name}' is made by a later round (rounds.{maker.number - 1})", "move that round up"
        elif (kind := find_source(name, workspace) if maker is None else maker.makes) is not None:
            if kind != "ensemble" or not isinstance(item.step, EnsembleRound):
                continue
            what, mend = f"the member '{name}' is an ensemble, and members are runs", "name its members instead"
        elif guess:
            continue
        else:
            earlier = [other for other, round in made.items() if round.number < item.number]
            earlier.sort(key=lambda other: made[other].number)
            known = list(dict.fromkeys([*earlier, *known_sources(workspace)]))
            near = difflib.get_close_matches(name, known, 1, 0.6)
            what = f"no earlier round makes '{name}', and no such run or ensemble is on disk"
            mend = f"did you mean '{near[0]}'? " if near else ""
            mend += f"earlier rounds make {some(earlier, 20) or 'nothing'}"
        problems.append(str(BadInput(_where(path, item), what, mend)))
    return problems


def _optimistic(path: Path, rounds: Sequence[Planned], made: Mapping[str, Planned], workspace: Workspace) -> list[str]:
    """Lines about teachers whose weights were chosen by labels that their students are validated on."""
    problems = []
    for item in rounds:
        if item.config is None or item.config.teacher.leaky:
            continue
        for name in item.needs:
            maker = made.get(name)
            members = [name] if maker is None or not isinstance(maker.step, EnsembleRound) else list(maker.needs)
            try:
                for member in members:
                    planned = made.get(member)
                    if planned is not None and planned.config is not None:
                        refuse_optimistic(member, planned.config)
                    elif planned is None and find_source(member, workspace) is not None:
                        for run in runs_of(member, workspace):
                            refuse_optimistic(run, run_config(run, workspace))
            except BadInput as error:
                problems.append(f"{_where(path, item)}: {error}")
    return problems


def _unteachable(path: Path, rounds: Sequence[Planned], made: Mapping[str, Planned], workspace: Workspace) -> list[str]:
    """Lines about teachers who cannot teach as their student asks."""
    problems = []
    for item in rounds:
        if item.config is None:
            continue
        teachers = []
        for name in dict.fromkeys(item.needs):
            try:
                teachers.append(_source(name, made, workspace))
            except BadInput:  # a line of its own says what is wrong with that name
                teachers.append(Source(name, {name: None}))
        problems += [f"{_where(path, item)}: {line}" for line in unteachable(item.config, teachers, workspace.root)]
    return problems


def _source(name: str, made: Mapping[str, Planned], workspace: Workspace) -> Source:
    """A teacher, made by a round or on disk. Raises BadInput when there is neither."""
    planned = made.get(name)
    if planned is None:
        return stored_source(name, workspace)
    if not isinstance(planned.step, EnsembleRound):
        return Source(name, {name: planned.config})
    step, runs = planned.step, dict[str, Config | None]()
    for member in step.members:
        runs[member] = made[member].config if member in made else run_config(member, workspace)
    return Source(name, runs, step.method, step.calibration)


def _unsuited(path: Path, rounds: Sequence[Planned], made: Mapping[str, Planned], workspace: Workspace) -> list[str]:
    """Lines about ensemble rounds whose settings do not suit the task or metric of their members."""
    problems = []
    for item in rounds:
        if not isinstance(item.step, EnsembleRound):
            continue
        config = next((made[name].config for name in item.needs if name in made), None)
        if config is None:
            continue
        try:
            check_settings(item.step, config.competition, workspace.root)
        except BadInput as error:
            problems.append(f"{_where(path, item)}: {error}")
    return problems


def _mismatches(path: Path, rounds: Sequence[Planned], made: Mapping[str, Planned], workspace: Workspace) -> list[str]:
    """Lines about experiments of the pipeline, and runs on disk that it names, which are scored on other rows."""
    first = next((item for item in rounds if item.config is not None), None)
    reference, of = (first.config, f"'{first.name}'") if first is not None else (None, "")
    problems = []
    for item in rounds:
        if item.config is not None and reference is not None:
            problems += _differing(_where(path, item), f"'{item.name}'", item.config, reference, of)
        for name in dict.fromkeys(item.needs):
            if name in made:
                continue
            try:
                for run in [] if find_source(name, workspace) is None else runs_of(name, workspace):
                    found = run_config(run, workspace)
                    if reference is None:
                        reference, of = found, f"'{run}'"
                    whose = f"'{name}'" if run == name else f"'{run}' in '{name}'"
                    problems += _differing(_where(path, item), whose, found, reference, of)
                    problems += _unfinished(_where(path, item), run, found, workspace)
            except BadInput as error:
                problems.append(str(error))
    return problems


def _differing(where: str, whose: str, config: Config, reference: Config, of: str) -> list[str]:
    keys = differences(config, reference)
    if not keys:
        return []
    sections = " and ".join(dict.fromkeys(key.partition(".")[0] for key in keys))
    what = f"the {sections} section of {whose} differs from that of {of} in {some(keys)}"
    return [str(BadInput(where, what, "let both extend one file"))]


def _unfinished(where: str, run: str, config: Config, workspace: Workspace) -> list[str]:
    paths = workspace.run(run)
    if not paths.cv.exists():
        return [str(BadInput(where, f"the run '{run}' is not finished", "goldfold train finishes it"))]
    folds = workspace.folds(config.competition.name)
    if folds.exists() and files.read_json(paths.record)["inputs"]["folds"] != files.sha256_file(folds):
        return [str(BadInput(where, f"the run '{run}' was trained on other folds", f"train it again on {folds}"))]
    return []
