"""Packs for offline kernels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from goldfold.cli.parsers import Commands

if TYPE_CHECKING:
    from goldfold.paths import Workspace


def add_export(commands: Commands) -> None:
    export = commands.add("export", export_command, "write a Kaggle data set that predicts offline: weights and wheels")
    export.add_argument("source", metavar="RUN_OR_ENSEMBLE")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder, or a pack to replace")
    export.add_argument("--fp16", action="store_true", help="store weights as float16, and measure what that costs")
    export.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="what the kernel may take; default: competition.hours, else the replaced pack's, else 9",
    )
    export.add_argument("--owner", metavar="NAME", help="your name on Kaggle, for a new data set's address")
    export.add_argument("--push", action="store_true", help="upload it: a new data set, or a new version")


def export_command(options: argparse.Namespace, workspace: Workspace) -> int:
    from goldfold.kaggle.upload import find_owner, upload_dataset
    from goldfold.pipeline.exporting import export

    # Asked before the long work, so that a missing token is known at once.
    client = find_owner() if options.push else None
    found = export(
        options.source,
        workspace,
        options.to,
        half=options.fp16,
        hours=options.hours,
        owner=options.owner or client,
    )
    print(found.to_text())
    print(f"wrote {options.to}")
    if options.push:
        print(upload_dataset(options.to, f"{found.pack.source}, Goldfold {found.pack.goldfold}"))
    return 0
