"""The time budget of an ensemble's kernel."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_budget(commands: Commands) -> None:
    budget = commands.add(
        "budget",
        budget_command,
        "plan an ensemble's kernel: which networks fit into its hours, and what score they buy",
    )
    budget.add_argument("ensemble", metavar="ENSEMBLE")
    budget.add_argument(
        "--hours", type=float, metavar="H", help="what the kernel may take; default: competition.hours, else 9"
    )
    budget.add_argument("--images", type=int, required=True, metavar="N", help="images of the hidden test set")
    budget.add_argument(
        "--img-per-second",
        action="append",
        default=[],
        metavar="RUN=X",
        help="a member's speed, not measured then (repeatable); ALL=X for every other member",
    )
    budget.add_argument("--read-per-second", type=float, metavar="X", help="images read a second; default: measured")
    budget.add_argument("--gpus", type=int, default=1, metavar="N", help="of the kernel, 2 of a T4x2 (default: 1)")
    budget.add_argument("--sample", type=int, default=64, metavar="N", help="images read to measure (default: 64)")


def budget_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.pipeline.budgeting import budget

    given = dict(_speed(text) for text in options.img_per_second)
    found, folder = budget(
        options.ensemble,
        workspace,
        options.hours,
        options.images,
        given=given,
        reading=options.read_per_second,
        gpus=options.gpus,
        sample=options.sample,
    )
    print(found.to_text())
    print(f"wrote {folder}/budget.csv and frontier.csv")
    return 0


def _speed(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not name or not 0 < value < float("inf"):
        raise BadInput("--img-per-second", f"'{text}' is not RUN=X with a number above 0", "write it as lite0=250")
    return name, value
