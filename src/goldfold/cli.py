"""The command line. Torch and all that is slow to import is imported inside the commands."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.errors import BadInput, GoldfoldError

if TYPE_CHECKING:
    from goldfold.paths import Workspace

Command = Callable[[argparse.Namespace, "Workspace"], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 success, 1 a failed run, 2 bad input."""
    parser = make_parser()
    # Not set_defaults: the parsers share these options, and the command's would overwrite what stands before it.
    options, rest = parser.parse_known_args(arguments, argparse.Namespace(directory=".", debug=False))
    # argparse cannot take overrides on both sides of an option, so those after one arrive as the rest.
    stray = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if stray:
        parser.error(f"unrecognised arguments: {' '.join(stray)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    logging.getLogger("timm").setLevel(logging.WARNING)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        from goldfold.paths import Workspace

        root = Path(options.directory)
        if not root.is_dir():
            raise BadInput("--directory", f"'{root}' is not a folder")
        os.chdir(root)
        return int(options.command(options, Workspace(Path())))
    except GoldfoldError as error:
        if options.debug:
            raise
        print(f"goldfold: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("goldfold: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        if options.debug:
            raise
        print(f"goldfold: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-C", "--directory", default=argparse.SUPPRESS, metavar="DIR", help="work in this project folder"
    )
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    parser = argparse.ArgumentParser(
        prog="goldfold",
        description="From folds to a checked submission. Settings are YAML; key.sub=value overrides one.",
        parents=[common],
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, parents=[common])
        sub.set_defaults(command=command)
        return sub

    def add_config(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        sub = add(name, command, help)
        sub.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
        return sub

    demo = add("demo", demo_command, "prepare the embedded competition and run it to a scored submission")
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--tiny", action="store_true", help="scikit-learn's digits, random weights, no download")
    which.add_argument("--few", action="store_true", help="a tenth of the labels: pseudo-labels, noisy student")
    demo.add_argument("--prepare", action="store_true", help="only lay out the data, weights and configurations")
    demo.add_argument("--no-photographs", dest="photographs", action="store_false", help="draw the scores alone")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the files")
    check = add_config("check", check_command, "find everything that could fail later (CONFIG may be a pipeline)")
    check.add_argument("--no-decode", dest="decode", action="store_false", help="do not decode the images")
    folds = add_config("folds", folds_command, "make the fold table, or verify it, and print class counts")
    folds.add_argument("--remake", action="store_true", help="deal anew; scores before and after cannot be compared")
    folds.add_argument("--accept", action="store_true", help="record a changed train CSV whose folds remain valid")
    train = add_config("train", train_command, "train all folds; resumes, skips what is finished")
    train.add_argument("--fold", type=int, action="append", default=[], metavar="K", help="only this fold (repeatable)")
    train.add_argument("--run", metavar="NAME", help="the run's name")
    predict = add("predict", predict_command, "predict a CSV's images with a run")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("--csv", type=Path, help="rows to predict; default: the competition's test CSV")
    predict.add_argument("--images", metavar="PATTERN", help="image path pattern; default: the run's")
    predict.add_argument("--out", type=Path, help="Parquet file; default: runs/RUN/predict-<csv>.parquet")
    ensemble = add("ensemble", ensemble_command, "blend runs; weights are fitted on out-of-fold predictions")
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
    submit = add("submit", submit_command, "write a submission and check it against the sample")
    submit.add_argument("source", metavar="RUN_OR_ENSEMBLE")
    submit.add_argument("--out", type=Path, help="CSV file; default: submissions/<name>.csv")
    score = add("score", score_command, "score a submission against known labels")
    score.add_argument("submission", type=Path)
    score.add_argument("solution", type=Path)
    score.add_argument("config", type=Path, metavar="CONFIG")
    score.add_argument("overrides", nargs="*", metavar="key=value")
    run = add("run", run_command, "run a pipeline's rounds in order; resumable")
    run.add_argument("config", type=Path, metavar="PIPELINE")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every experiment of the pipeline")
    preview = add_config("augment-preview", augment_preview_command, "draw a sheet of augmented training images")
    preview.add_argument("--photos", type=int, default=6, metavar="N", help="rows: training images (default: 6)")
    preview.add_argument("--draws", type=int, default=8, metavar="N", help="columns: draws of each (default: 8)")
    preview.add_argument("--seed", type=int, default=0, help="seed of the choice and of the draws")
    preview.add_argument("--out", type=Path, help="PNG file; default: previews/<name>.png")
    lr_find = add_config("lr-find", lr_find_command, "raise the learning rate step by step and watch the loss")
    lr_find.add_argument("--fold", type=int, default=0, metavar="K", help="train on this fold's rows (default: 0)")
    lr_find.add_argument("--steps", type=int, default=100, metavar="N", help="optimizer steps (default: 100)")
    lr_find.add_argument("--from", dest="lowest", type=float, default=1e-7, metavar="LR", help="first rate: 1e-7")
    lr_find.add_argument("--to", dest="highest", type=float, default=10.0, metavar="LR", help="last rate: 10")
    lr_find.add_argument("--out", type=Path, help="PNG and JSON file; default: lr-find/<name>.png and .json")
    ablate = add_config("ablate", ablate_command, "train with tricks on and off; says what each is worth")
    kind = ablate.add_mutually_exclusive_group(required=True)
    kind.add_argument("--stack", metavar="TRICKS", help="add one after the other (comma-separated names or key=value)")
    kind.add_argument("--drop", metavar="TRICKS", help="all on, then each left out")
    kind.add_argument("--add", metavar="TRICKS", help="all off, then each alone")
    ablate.add_argument("--seeds", type=int, default=4, metavar="N", help="trainings a row (default: 4)")
    ablate.add_argument("--folds", default="", metavar="K,K", help="only these folds; default: all")
    ablate.add_argument("--name", help="the ablation's folder; default: from the configuration and the kind")
    ablate.add_argument("--keep-weights", action="store_true", help="keep every trained network")
    canary = add("canary", canary_command, "shuffle the labels, plant twins, run a pipeline small: does a score leak?")
    canary.add_argument("config", type=Path, metavar="PIPELINE")
    canary.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings for every experiment of the pipeline"
    )
    canary.add_argument("--seeds", type=int, default=1, metavar="N", help="competitions, pooled (default: 1)")
    canary.add_argument("--seed", type=int, default=0, metavar="S", help="the first of them (default: 0)")
    canary.add_argument("--rows", type=int, default=200, metavar="N", help="labelled rows of each (default: 200)")
    canary.add_argument("--epochs", type=int, default=30, metavar="N", help="of every training (default: 30)")
    canary.add_argument("--size", type=int, metavar="PX", help="side of the images (default: 64)")
    canary.add_argument("--keep", action="store_true", help="keep the competitions and all that was trained")
    tricks = add("tricks", tricks_command, "list the tricks; or show one")
    tricks.add_argument("trick", nargs="?", metavar="NAME", help="show this trick's keys, values and source")
    tricks.add_argument("--write", type=Path, metavar="FILE", help="write the table of all tricks as Markdown")
    schema = add("schema", schema_command, "write the JSON schemas of the configuration files")
    schema.add_argument("--to", type=Path, metavar="DIR", help="write files here; default: print the experiment's")
    return parser


def demo_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.demo.play import run_demo

    print(
        run_demo(
            workspace,
            "digits" if options.tiny else "elpv-few" if options.few else "elpv",
            prepare_only=options.prepare,
            photographs=options.photographs,
            overrides=options.overrides,
        )
    )
    return 0


def check_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import is_pipeline, load_config
    from goldfold.pipeline.check import check_experiment, check_pipeline

    if is_pipeline(options.config):
        problems = check_pipeline(options.config, options.overrides, workspace, decode=options.decode)
    else:
        problems = check_experiment(load_config(options.config, options.overrides), workspace, decode=options.decode)
    for line in problems:
        print(f"goldfold: {line}", file=sys.stderr)
    print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problems found")
    return 2 if problems else 0


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

    overrides = [*options.overrides, *([f"name={options.run}"] if options.run else [])]
    config = load_config(options.config, overrides)
    cv = train_run(config, workspace, options.fold)
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
        outcome = run_pipeline(options.config, workspace, options.overrides)
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


def augment_preview_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.preview import preview

    config = load_config(options.config, options.overrides)
    out = options.out or workspace.root / "previews" / f"{config.name}.png"
    print(f"wrote {preview(config, workspace, out, options.photos, options.draws, options.seed)}")
    return 0


def lr_find_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.lr_find import lr_find

    config = load_config(options.config, options.overrides)
    out = (options.out or workspace.root / "lr-find" / str(config.name)).with_suffix("")
    found = lr_find(config, workspace, out, options.fold, options.lowest, options.highest, options.steps)
    for name, rate in found["suggestions"].items():
        print(f"{name.replace('_', ' ')}: optim.lr={rate:.2g}")
    print(f"wrote {out}.png and {out}.json")
    return 0


def ablate_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.pipeline.ablate import Kind, ablate

    kind: Kind = "stack" if options.stack is not None else "drop" if options.drop is not None else "add"
    table = ablate(
        options.config,
        options.overrides,
        kind,
        getattr(options, kind),
        options.seeds,
        _folds(options.folds),
        options.name,
        workspace,
        options.keep_weights,
    )
    print(table.read_text(encoding="utf-8"))
    print(f"wrote {table.parent}")
    return 0


def _folds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput("--folds", f"expected numbers such as 0,1, got '{text}'") from None


def canary_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.canary import run_canary

    report = run_canary(
        options.config,
        options.overrides,
        workspace,
        seed=options.seed,
        seeds=options.seeds,
        rows=options.rows,
        epochs=options.epochs,
        size=options.size,
        keep=options.keep,
    )
    print(report.to_text())
    print(f"wrote {workspace.root / 'canary' / report.pipeline / 'canary.json'}")
    return report.exit_code


def tricks_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold import tricks

    if options.write is not None:
        from goldfold import files

        files.write_text(options.write, tricks.page())
        print(f"wrote {options.write}")
    elif options.trick is not None:
        print(tricks.describe(tricks.find_trick(options.trick)))
    else:
        print(tricks.listing())
    return 0


def schema_command(options: argparse.Namespace, workspace: Workspace) -> int:
    import json

    from goldfold import files
    from goldfold.config import json_schemas

    schemas = json_schemas()
    if options.to is None:
        print(json.dumps(schemas["experiment.schema.json"], indent=2))
        return 0
    for name, schema in schemas.items():
        files.write_json(options.to / name, schema)
        print(f"wrote {options.to / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
