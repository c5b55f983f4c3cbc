"""The embedded competition's command. A project made from the template has no such competition, and not this file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands

if TYPE_CHECKING:
    from goldfold.config import Config
    from goldfold.paths import Workspace


def add_demo(commands: Commands) -> None:
    demo = commands.add("demo", demo_command, "prepare the embedded competition and run it to a scored submission")
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--tiny", action="store_true", help="scikit-learn's digits, random weights, no download")
    which.add_argument("--few", action="store_true", help="a tenth of the labels: pseudo-labels, noisy student")
    demo.add_argument("--prepare", action="store_true", help="only lay out the data, weights and configurations")
    demo.add_argument("--no-photographs", dest="photographs", action="store_false", help="draw the scores alone")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the files")


def demo_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.demo.play import run_demo
    from goldfold.pipeline.rounds_report import compare_rounds, rounds_text
    from goldfold.pipeline.run import PipelineFailed

    try:
        report = run_demo(
            workspace,
            "digits" if options.tiny else "elpv-few" if options.few else "elpv",
            prepare_only=options.prepare,
            photographs=options.photographs,
            overrides=options.overrides,
        )
    except PipelineFailed as failed:
        print(rounds_text(compare_rounds(failed.outcome, workspace)))
        raise
    print(report)
    return 0


def bench_experiment(root: Path, overrides: Sequence[str]) -> Config:
    """The embedded competition and its first experiment under ``root``, for `goldfold bench speed`; without its packages
    the digits."""
    from goldfold.config import load_config
    from goldfold.demo.digits import prepare_digits
    from goldfold.demo.elpv import prepare_elpv
    from goldfold.demo.weights import convert_lite
    from goldfold.errors import BadInput
    from goldfold.paths import shipped_configs

    try:
        prepare_elpv(root, 0)
        convert_lite(0, root / "weights")
    except BadInput:
        prepare_digits(root, 0)
        return load_config(shipped_configs() / "digits" / "resnet.yaml", overrides)
    return load_config(shipped_configs() / "elpv" / "lite0.yaml", overrides)
