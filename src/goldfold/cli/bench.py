"""Measuring: speed against what the machine can do, backbones side by side, where a step's time goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.config import Config
    from goldfold.paths import Workspace


def add_bench(commands: Commands) -> None:
    bench = commands.group("bench", "measure speed against what the machine can do, or compare backbones")
    speed = bench.add("speed", speed_command, "how near the loops come to the networks' own speed: ratios, a table")
    speed.add_argument(
        "config",
        type=Path,
        nargs="?",
        metavar="CONFIG",
        help="measure this experiment; default: several of Goldfold's own",
    )
    speed.add_argument("overrides", nargs="*", metavar="key=value", help="settings of what is measured")
    speed.add_argument("--only", default="", metavar="ROW,ROW", help="rows or groups of rows; default: all")
    speed.add_argument("--repeats", type=int, metavar="N", help="turns of each row (default: 5)")
    speed.add_argument("--seconds", type=float, metavar="S", help="of one measurement, about (default: 4)")
    speed.add_argument(
        "--quick", action="store_true", help="tiny networks and images: tries the command, measures nothing"
    )
    speed.add_argument(
        "--rows", type=int, metavar="N", help="rows of the competition that is checked (default: 100000)"
    )
    speed.add_argument(
        "--fastai-python", metavar="PYTHON", help="an interpreter that has fastai, where this one has not"
    )
    speed.add_argument(
        "--out", type=Path, default=Path("benchmarks-out"), metavar="DIR", help="default: benchmarks-out"
    )
    speed.add_argument(
        "--write", type=Path, metavar="FILE", help="write the page there, too, such as docs/benchmarks.md"
    )
    speed.add_argument(
        "--from", dest="results", type=Path, action="append", default=[], metavar="JSON",
        help="measure nothing: the page of a speed.json (repeatable, a section a machine)",
    )  # fmt: skip
    models = bench.add_config("models", models_command, "train backbones a little: score, speed, memory, side by side")
    models.add_argument("--backbones", required=True, metavar="NAME,NAME", help="timm names or torchvision/<name>")
    models.add_argument("--epochs", type=int, metavar="N", help="default: the experiment's")
    models.add_argument("--folds", default="", metavar="K,K", help="only these folds; default: all")
    models.add_argument("--name", help="the folder under bench/; default: from the configuration")
    profile = commands.add_config("profile", profile_command, "where a training step's time goes, and the knob to turn")
    profile.add_argument("--fold", type=int, default=0, metavar="K", help="train on this fold's rows (default: 0)")
    profile.add_argument("--steps", type=int, default=30, metavar="N", help="steps to measure (default: 30)")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of a few further steps")


def speed_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from dataclasses import replace

    from goldfold.config import load_config
    from goldfold.pipeline.bench.page import table
    from goldfold.pipeline.bench.plan import Plan
    from goldfold.pipeline.bench.speed import bench_speed, from_config, page_of

    if options.results:
        if options.write is None:
            raise BadInput("--from", "there is nowhere to write the page", "name it with --write FILE")
        print(page_of(options.results, options.write))
        print(f"wrote {options.write}")
        return 0
    for name in ("repeats", "seconds", "rows"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise BadInput(f"--{name}", f"must be above 0, got {getattr(options, name)}")
    overrides = list(options.overrides)
    given = None
    if options.config is not None and "=" in str(options.config):
        overrides.insert(0, str(options.config))  # no CONFIG, only settings
    elif options.config is not None:
        given = from_config(load_config(options.config, overrides), workspace)
    plan = Plan(Path(), overrides=() if given else tuple(overrides), given=given, real=_real_competition())
    if options.quick:
        plan = replace(plan, quick=True, seconds=0.05, repeats=2, rows=300)
    plan = replace(
        plan,
        repeats=options.repeats or plan.repeats,
        seconds=options.seconds or plan.seconds,
        rows=options.rows or plan.rows,
        fastai_python=options.fastai_python,
    )
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    record = bench_speed(plan, only, ["goldfold", *sys.argv[1:]], options.out, options.write)
    print(table(record))
    written = [options.out / "speed.md", options.out / "speed.json", *([options.write] if options.write else [])]
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _real_competition() -> Callable[[Path, Sequence[str]], Config] | None:
    """What lays out the embedded competition; a project made from the template has none."""
    if find_spec("goldfold.cli.demo") is None:
        return None
    found: Callable[[Path, Sequence[str]], Config] = import_module("goldfold.cli.demo").bench_experiment
    return found


def models_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.bench.models import bench_models

    try:
        folds = [int(part) for part in options.folds.split(",") if part.strip()]
    except ValueError:
        raise BadInput("--folds", f"expected numbers such as 0,1, got '{options.folds}'") from None
    if options.epochs is not None and options.epochs < 1:
        raise BadInput("--epochs", f"{options.epochs} epochs train nothing", "give 1 or more")
    config = load_config(options.config, options.overrides)
    table = bench_models(
        config,
        workspace,
        options.backbones.split(","),
        options.epochs,
        folds,
        options.name,
        ["goldfold", *sys.argv[1:]],
    )
    print(table.read_text(encoding="utf-8"))
    print(f"wrote {table.parent}")
    return 0


def profile_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.config import load_config
    from goldfold.pipeline.profiling import profile

    config = load_config(options.config, options.overrides)
    print(profile(config, workspace, options.fold, options.steps, options.trace).to_text())
    if options.trace is not None:
        print(f"wrote {options.trace}: open it in chrome://tracing or ui.perfetto.dev")
    return 0
