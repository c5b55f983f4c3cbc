"""Submissions of finished runs and ensembles, and their scores against known labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from goldfold import files
from goldfold.config import Config
from goldfold.ensemble import load_decisions
from goldfold.errors import BadInput
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.lineage import find_source, is_leaky_source, refuse_stale, run_config
from goldfold.progress import warn
from goldfold.records import Predictions
from goldfold.submission import (
    SubmissionFormat,
    check_submission,
    decide_format,
    format_submission,
    score_submission,
    write_submission,
)
from goldfold.tasks import Decisions


def submit(source: str, workspace: Workspace, out: Path) -> Path:
    """Write and check the submission of a run or an ensemble. Raises BadInput."""
    ensemble = workspace.ensemble(source) if find_source(source, workspace) == "ensemble" else None
    score: dict[str, Any] | None = None
    if ensemble is not None:
        config = run_config(files.read_json(ensemble / "ensemble.json")["members"][0]["name"], workspace)
        refuse_stale(source, workspace)
        path = ensemble / "test.parquet"
    else:
        config = run_config(source, workspace)
        run = workspace.run(source)
        if not run.cv.exists():
            raise BadInput(run.folder, "the run is not finished", "goldfold train finishes it")
        path, score = run.test, files.read_json(run.cv)["oof"]
    if not path.exists():
        raise BadInput(path, "there are no test predictions", "set competition.test_csv and train again")
    leaky = is_leaky_source(source, workspace)
    if leaky:
        warn(f"{source} (leaky): its teachers have seen validated labels, so its out-of-fold scores are inflated")
    data = load_competition(config.competition, workspace.root)
    decisions = None
    if ensemble is not None:
        decisions, score = _decisions(ensemble, data, out)
    record = {"source": source, "score": score, "leaky": leaky, "predictions_sha256": files.sha256_file(path)}
    _write(Predictions.read(path, source), data, out, record, decisions)
    return out


def _decisions(ensemble: Path, data: CompetitionData, out: Path) -> tuple[Decisions | None, dict[str, Any] | None]:
    """The fitted decisions that reach the submission, if any, and the cross-fitted score of what is submitted."""
    steps = files.read_json(ensemble / "ensemble.json")["steps"]
    decisions = load_decisions(ensemble, data.task)
    if decisions is not None and not submission_format(data, out).holds_answers:
        warn(f"{out}: it holds probabilities, so the fitted {decisions.kind.replace('_', ' ')} do not reach it")
        decisions, steps = None, steps[:-1]
    return decisions, steps[-1]["cross_fitted"]


def score(submission: Path, solution: Path, config: Config, workspace: Workspace) -> dict[str, float | None]:
    """Every metric of the competition for a submission against the labels of ``solution``. Raises BadInput."""
    data = load_competition(config.competition, workspace.root)
    settings = config.competition
    shape = submission_format(data, submission)
    # Labels say nothing of probabilities: a metric of probabilities has no value for them.
    answers = shape.holds_answers
    main, *others = [
        metric for metric in data.metrics if not (answers and metric.needs == "probability")
    ] or data.metrics
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


def _write(
    predictions: Predictions, data: CompetitionData, out: Path, record: dict[str, Any], decisions: Decisions | None
) -> None:
    shape = submission_format(data, out)
    frame = format_submission(predictions, data.task, shape, data.sample, decisions)
    check_submission(frame, data.sample, shape, data.task, out)
    if not _is_there(out, frame, record):
        write_submission(out, frame, record)


def _is_there(out: Path, frame: pd.DataFrame, record: dict[str, Any]) -> bool:
    """Whether this very submission was written before."""
    beside = out.with_suffix(".json")
    if out.suffix != ".csv" or not (out.exists() and beside.exists()):
        return False
    stored = files.read_json(beside)
    text = frame.to_csv(index=False, lineterminator="\n")
    return (
        all(stored.get(key) == value for key, value in record.items())
        and stored.get("sha256") == files.sha256_file(out) == hashlib.sha256(text.encode()).hexdigest()
    )
