"""From data to a submission: the commands of a competitor's day."""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_workflow(commands: Commands) -> None:
    check = commands.add_config(
        "check", check_command, "find everything that could fail later (CONFIG may be a pipeline)"
    )
    check.add_argument("--no-decode", dest="decode", action="store_false", help="only see that the images are there")
    folds = commands.add_config("folds", folds_command, "make the fold table, or verify it, and print class counts")
    folds.add_argument("--remake", action="store_true", help="deal anew; scores before and after cannot be compared")
    folds.add_argument("--accept", action="store_true", help="record a changed train CSV whose folds remain valid")
    train = commands.add_config("train", train_command, "train all folds; resumes, skips what is finished")
    train.add_argument("--fold", type=int, action="append", default=[], metavar="K", help="only this fold (repeatable)")
    train.add_argument("--run", metavar="NAME", help="the run's name")
    _add_jobs(train)
    predict = commands.add("predict", predict_command, "predict a CSV's images with a run")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("--csv", type=Path, help="rows to predict; default: the competition's test CSV")
    predict.add_argument("--images", metavar="PATTERN", help="image path pattern; default: the run's")
    predict.add_argument("--out", type=Path, help="Parquet file; default: runs/RUN/predict-<csv>.parquet")
    ensemble = commands.add("ensemble", ensemble_command, "blend runs; weights are fitted on out-of-fold predictions")
    ensemble.add_argument("runs", nargs="+", metavar="RUN")
    ensemble.add_argument("--name", required=True)
    ensemble.add_argument(
        "--method", default="simplex", choices=["mean", "gmean", "rank_mean", "simplex", "greedy", "stacking"]
    )
    ensemble.add_argument("--bags", type=int, metavar="N", help="bags of greedy; default: 10 with 8 members, else 1")
    ensemble.add_argument(
        "--calibration",
        default="none",
        choices=["none", "temperature", "class_temperature"],
        help="temperatures fitted to the blend's probabilities (default: none)",
    )
    ensemble.add_argument(
        "--decisions",
        default="fixed",
        choices=["fixed", "fitted"],
        help="fitted: thresholds, cut points or class multipliers for the metric (default: fixed)",
    )
    submit = commands.add("submit", submit_command, "write a submission and check it against the sample")
    submit.add_argument("source", metavar="RUN_OR_ENSEMBLE")
    submit.add_argument("--out", type=Path, help="CSV file; default: submissions/<name>.csv")
    score = commands.add("score", score_command, "score a submission against known labels")
    score.add_argument("submission", type=Path)
    score.add_argument("solution", type=Path)
    score.add_argument("config", type=Path, metavar="CONFIG")
    score.add_argument("overrides", nargs="*", metavar="key=value")
    run = commands.add("run", run_command, "run a pipeline's rounds in order; resumable")
    run.add_argument("config", type=Path, metavar="PIPELINE")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every experiment of the pipeline")
    _add_jobs(run)


def _add_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="folds at a time, a process each; auto: one a GPU (default: 1)",
    )
    command.add_argument(
        "--on", choices=["here", "ray"], default="here", help="where they run: this machine, or a Ray cluster"
    )


def _jobs(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, or auto, and not '{text}'")
    return int(text)


def check_command(options: argparse.Namespace, workspace: Workspace) -> int:
    with _little_garbage():
        from goldfold.config import is_pipeline, load_config
        from goldfold.pipeline.check import check_experiment, check_pipeline

        if is_pipeline(options.config):
            problems = check_pipeline(options.config, options.overrides, workspace, decode=options.decode)
        else:
            config = load_config(options.config, options.overrides)
            problems = check_experiment(config, workspace, decode=options.decode)
    for line in problems:
        print(f"goldfold: {line}", file=sys.stderr)
    print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problems found")
    return 2 if problems else 0


@contextlib.contextmanager
def _little_garbage() -> Iterator[None]:
    """Look for garbage seldom: torch's import makes a million objects that stay, and each look at them takes its time.

    Not for training, where a forgotten cycle may hold a batch.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def folds_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.folds import accept_source, class_counts
    from goldfold.pipeline.competition import load_competition
    from goldfold.pipeline.stages import load_folds

    config = load_config(options.config, options.overrides)
    data = load_competition(config.competition, workspace.root)
    path = workspace.folds(config.competition.name)
    if options.accept:
        accept_source(path, data.train, train_csv=data.train_csv)
    tables = load_folds(config, data, workspace, remake=options.remake)
    print(f"{path}: {config.folds.scheme}, seed {config.folds.seed}, {len(data.ids)} rows of {data.train_csv}")
    print(class_counts(tables, data.task, data.targets, data.ids).to_string())
    return 0


def train_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.report import run_lines
    from goldfold.pipeline.stages import train_run
    from goldfold.tracking import find_sweep

    overrides = [*options.overrides, *([f"name={options.run}"] if options.run else [])]
    config = load_config(options.config, overrides)
    sweep = find_sweep(config.tracking)
    if sweep is not None and options.fold:
        raise BadInput("--fold", f"a trial of the W&B sweep {sweep.id} is scored on all folds", "leave it out")
    cv = train_run(config, workspace, options.fold, sweep, options.jobs, options.on)
    if cv:
        print("\n".join([*run_lines(cv), f"wrote {workspace.run(str(config.name)).folder}"]))
    return 0


def predict_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.pipeline.inference import predict_run

    print(f"wrote {predict_run(options.run, workspace, options.csv, options.images, options.out)}")
    return 0


def ensemble_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from pydantic import ValidationError

    from goldfold import files
    from goldfold.config.schema import EnsembleRound
    from goldfold.pipeline.blending import ensemble_runs
    from goldfold.pipeline.report import ensemble_table

    try:
        settings = EnsembleRound(
            kind="ensemble",
            name=options.name,
            members=tuple(options.runs),
            method=options.method,
            bags=options.bags,
            calibration=options.calibration,
            decisions=options.decisions,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"--{first['loc'][0]}" if first["loc"] else "goldfold ensemble"
        raise BadInput(where, first["msg"].removeprefix("Value error, ")) from None
    record = ensemble_runs(settings, workspace)
    print(ensemble_table(record, {name: files.read_json(workspace.run(name).cv) for name in options.runs}))
    print(f"wrote {workspace.ensemble(options.name)}")
    return 0


def submit_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.pipeline.submitting import submit

    print(f"wrote {submit(options.source, workspace, options.out or workspace.submission(options.source))}")
    return 0


def score_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.label_report import score_submitted_labels
    from goldfold.pipeline.submitting import score

    config = load_config(options.config, options.overrides)
    for name, value in score(options.submission, options.solution, config, workspace).items():
        print(f"{name}: {'undefined' if value is None else f'{value:.6f}'}")
    for task, found in score_submitted_labels(options.submission, options.solution, config, workspace):
        print(found.line(task))
    return 0


def run_command(options: argparse.Namespace, workspace: Workspace) -> int:
    import shlex

    from goldfold.pipeline.rounds_report import compare_rounds, rounds_text, write_rounds
    from goldfold.pipeline.run import PipelineFailed, run_pipeline

    failed: PipelineFailed | None = None
    try:
        outcome = run_pipeline(options.config, workspace, options.overrides, options.jobs, options.on)
    except PipelineFailed as error:
        failed, outcome = error, error.outcome
    table = compare_rounds(outcome, workspace)
    page = write_rounds(table, workspace, shlex.join(["goldfold", "run", str(options.config), *options.overrides]))
    print(rounds_text(table))
    for path in (*outcome.submissions.values(), page):
        print(f"wrote {path}")
    if failed is not None:
        raise failed
    return 0
