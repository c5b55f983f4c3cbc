"""To Kaggle: a pack's data set and the kernel that reads it."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands
from goldfold.errors import BadInput

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_push(commands: Commands) -> None:
    push = commands.add(
        "push", push_command, "show how a pack and its kernel would go to Kaggle; --go sends them, the data set first"
    )
    push.add_argument("source", metavar="ENSEMBLE_OR_PACK", help="an exported pack, or the run or ensemble in it")
    push.add_argument(
        "--kernel", type=Path, metavar="DIR", help="with kernel-metadata.json and the kernel; default: inference"
    )
    push.add_argument("--kernel-only", action="store_true", help="the data set lies on Kaggle already")
    push.add_argument(
        "--wait", type=float, default=60.0, metavar="MINUTES", help="for Kaggle to process the data set (default: 60)"
    )
    push.add_argument("--go", action="store_true", help="do it; otherwise nothing is sent")


def push_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.errors import GoldfoldError
    from goldfold.kaggle.push import ask, find_pack, prepare, push
    from goldfold.kaggle.upload import find_owner

    if not 0 < options.wait < 1e6:
        raise BadInput("--wait", f"{options.wait:g} minutes are no time", "give a number above 0")
    folder = find_pack(options.source, workspace)
    owner: str | None = None
    try:
        owner = find_owner()
    except GoldfoldError:
        if options.go:
            raise
    kernel = options.kernel or workspace.root / "inference"
    delivery = prepare(folder, kernel, workspace, owner)
    again = ["goldfold", "push", options.source, *(["--kernel", str(options.kernel)] if options.kernel else [])]
    if options.go:
        print(push(delivery, kernel_only=options.kernel_only, minutes=options.wait,
                   again=shlex.join([*again, "--kernel-only", "--go"])))  # fmt: skip
        return 0
    known, told = ask(delivery)
    print(f"data set {delivery.dataset['id']}: {folder}, {told}")
    print(json.dumps(delivery.dataset, indent=2))
    print(f"kernel {delivery.kernel['id']}: {delivery.code}")
    print(json.dumps(delivery.kernel, indent=2))
    print("in this order:" if known is not None or options.kernel_only else "in this order, of create and version one:")
    for command in delivery.commands(known, kernel_only=options.kernel_only):
        print(f"    {shlex.join(command)}")
    print("nothing was sent; --go does it")
    return 0
