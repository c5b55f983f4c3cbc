"""The command line. Torch and all that is slow to import is imported inside the commands."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from goldfold.cli.bench import add_bench
from goldfold.cli.budget import add_budget
from goldfold.cli.data import add_data
from goldfold.cli.export import add_export
from goldfold.cli.kernel import add_kernel
from goldfold.cli.parsers import Commands
from goldfold.cli.push import add_push
from goldfold.cli.tools import add_tools
from goldfold.cli.workflow import add_workflow
from goldfold.errors import BadInput, GoldfoldError


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


@functools.cache
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
    commands = Commands(parser, common)
    if find_spec("goldfold.cli.demo") is not None:  # a project made from the template has none
        import_module("goldfold.cli.demo").add_demo(commands)
    add_workflow(commands)
    add_tools(commands)
    add_bench(commands)
    add_data(commands)
    add_export(commands)
    add_budget(commands)
    add_kernel(commands)
    add_push(commands)
    return parser
