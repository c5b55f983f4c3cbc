"""A pipeline's rounds in order. The graph is checked before anything runs; what is finished is skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.config import Config, Pipeline, config_from_dict, is_pipeline, load_config, load_pipeline, read_yaml
from goldfold.config.schema import BlendMethod, DistillRound, EnsembleRound, PseudoLabelRound, TrainRound
from goldfold.ensemble import load_member, make_ensemble
from goldfold.errors import BadInput, some
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition, same_rows
from goldfold.pipeline.stages import train_run
from goldfold.progress import say
from goldfold.records import Predictions
from goldfold.submission import (
    SubmissionFormat,
    check_submission,
    decide_format,
    format_submission,
    score_submission,
    write_submission,
)


@dataclass
class Outcome:
    """What a pipeline made: cv.json of each run, ensemble.json of each ensemble, paths of the submissions."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ensembles: dict[str, dict[str, Any]] = field(default_factory=dict)
    submissions: dict[str, Path] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)


def plan_pipeline(path: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline, dict[str, Config]]:
    """The rounds and the experiment of each training round, by run name. ``overrides`` hold for every experiment.

    Raises BadInput on doubled names, references to what no earlier round makes, and experiments that differ in their
    competition or folds.
    """
    if not is_pipeline(path):
        raise BadInput(path, "this is no pipeline: it has no 'rounds'", "an experiment is run by goldfold train")
    pipeline = load_pipeline(path)
    configs: dict[str, Config] = {}
    made: dict[str, str] = {}
    for number, step in enumerate(pipeline.rounds):
        where = f"{path}: rounds.{number}"
        if isinstance(step, TrainRound):
            config = load_config(path.parent / step.experiment, [*_round_overrides(step, where, made), *overrides])
            name = str(config.name)
            configs[name] = config
        elif isinstance(step, EnsembleRound):
            _refer(step.members, made, "train", where)
            name = step.name
        else:
            _refer([step.source], made, None, where)
            continue
        if name in made:
            raise BadInput(where, f"the name '{name}' is taken by an earlier round", "give this round a name")
        made[name] = "ensemble" if isinstance(step, EnsembleRound) else "train"
    _same_competition(path, configs)
    return pipeline, configs


def run_pipeline(path: Path, workspace: Workspace, overrides: Sequence[str] = ()) -> Outcome:
    """Run every round that is not finished. Raises BadInput before anything runs when the rounds do not fit."""
    pipeline, configs = plan_pipeline(path, overrides)
    outcome = Outcome(configs=configs)
    trained = iter(configs.items())  # in the order of the training rounds
    for number, step in enumerate(pipeline.rounds, 1):
        title = f"round {number}/{len(pipeline.rounds)}: {step.kind}"
        if isinstance(step, TrainRound):
            name, config = next(trained)
            say(f"{title} {name}")
            outcome.runs[name] = train_run(config, workspace)
        elif isinstance(step, EnsembleRound):
            say(f"{title} {step.name} of {', '.join(step.members)}")
            outcome.ensembles[step.name] = ensemble_runs(step.members, step.name, step.method, workspace)
        else:
            say(f"{title} {step.source}")
            name = step.name or step.source
            outcome.submissions[name] = submit(step.source, workspace, workspace.submission(name))
    return outcome


def ensemble_runs(members: Sequence[str], name: str, method: BlendMethod, workspace: Workspace) -> dict[str, Any]:
    """Blend finished runs into ``ensembles/<name>``. Raises BadInput when they cannot be aligned."""
    config = run_config(members[0], workspace)
    for other in members[1:]:
        if not same_rows(run_config(other, workspace).competition, config.competition):
            raise BadInput(
                other, f"its competition section differs from that of {members[0]}", "blend runs of one competition"
            )
    data = load_competition(config.competition, workspace.root)
    loaded = [load_member(workspace.run(member)) for member in members]
    return make_ensemble(
        workspace.ensemble(name),
        name,
        loaded,
        (data.ids, data.targets),
        data.task,
        data.metrics[0],
        data.metrics[1:],
        method,
        config.competition.id,
    )


def run_config(name: str, workspace: Workspace) -> Config:
    """The configuration of a run. Raises BadInput when there is no such run."""
    path = workspace.run(name).config
    if not path.exists():
        known = sorted(folder.parent.name for folder in workspace.run("").folder.glob("*/config.yaml"))
        raise BadInput(
            path.parent, "there is no such run", f"the runs are {some(known, 20)}" if known else "train one first"
        )
    return config_from_dict(read_yaml(path), path)


def submit(source: str, workspace: Workspace, out: Path) -> Path:
    """Write and check the submission of a run or an ensemble. Raises BadInput."""
    ensemble = workspace.ensemble(source)
    if (ensemble / "ensemble.json").exists():
        record = files.read_json(ensemble / "ensemble.json")
        config = run_config(record["members"][0]["name"], workspace)
        path, score = ensemble / "test.parquet", record["cross_fitted"]
    else:
        config = run_config(source, workspace)
        run = workspace.run(source)
        if not run.cv.exists():
            raise BadInput(run.folder, "the run is not finished", "goldfold train finishes it")
        path, score = run.test, files.read_json(run.cv)["oof"]
    if not path.exists():
        raise BadInput(path, "there are no test predictions", "set competition.test_csv and train again")
    data = load_competition(config.competition, workspace.root)
    predictions = Predictions.read(path, source)
    _write(predictions, data, out, {"source": source, "score": score, "predictions_sha256": files.sha256_file(path)})
    return out


def score(submission: Path, solution: Path, config: Config, workspace: Workspace) -> dict[str, float | None]:
    """Every metric of the competition for a submission against the labels of ``solution``. Raises BadInput."""
    data = load_competition(config.competition, workspace.root)
    settings = config.competition
    shape = submission_format(data, submission)
    # Labels say nothing of probabilities: a metric of probabilities has no value for them.
    hard = shape.hard or shape.shape in ("label", "string")
    main, *others = [metric for metric in data.metrics if not (hard and metric.needs == "probability")] or data.metrics
    return score_submission(submission, solution, data.task, main, others, settings.id, settings.target, shape)


def submission_format(data: CompetitionData, where: Path) -> SubmissionFormat:
    """The shape that the competition's sample submission, task and metric ask for. Raises BadInput."""
    settings = data.settings
    return decide_format(
        data.task,
        data.metrics[0].needs,
        data.sample,
        settings.id,
        settings.submission,
        settings.submission_columns,
        data.sample_csv or where,
        target=settings.target,
    )


def _write(predictions: Predictions, data: CompetitionData, out: Path, record: dict[str, Any]) -> None:
    shape = submission_format(data, out)
    frame = format_submission(predictions, data.task, shape, data.sample)
    check_submission(frame, data.sample, shape, data.task, out)
    write_submission(out, frame, record)


def _round_overrides(step: TrainRound, where: str, made: dict[str, str]) -> list[str]:
    values = dict(step.set)
    if step.name:
        values["name"] = step.name
    if isinstance(step, PseudoLabelRound):
        _refer(step.teachers, made, "train", where)
        values["teacher.runs"] = list(step.teachers)
        values |= {"teacher.test": step.labels, "teacher.min_prob": step.min_prob, "teacher.test_weight": step.weight}
    if isinstance(step, DistillRound):
        _refer(step.teachers, made, "train", where)
        values["teacher.runs"] = list(step.teachers)
        values["teacher.distill"] = step.weight
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _refer(names: Sequence[str], made: dict[str, str], kind: str | None, where: str) -> None:
    for name in names:
        if name not in made or (kind is not None and made[name] != kind):
            fitting = [other for other, what in made.items() if kind in (None, what)]
            raise BadInput(
                where,
                f"no earlier round makes the {kind or 'run or ensemble'} '{name}'",
                f"earlier rounds make {some(fitting, 20) or 'nothing'}",
            )


def _same_competition(path: Path, configs: dict[str, Config]) -> None:
    first = next(iter(configs.values()), None)
    for name, config in configs.items():
        if first is None:
            continue
        if config.folds != first.folds or not same_rows(config.competition, first.competition):
            raise BadInput(
                path,
                f"the competition or folds section of '{name}' differs from that of '{first.name}'",
                "let both extend one file",
            )
