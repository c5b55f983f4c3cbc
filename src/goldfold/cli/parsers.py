"""What the groups of commands are added to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goldfold.paths import Workspace

Command = Callable[[argparse.Namespace, "Workspace"], int]


class Commands:
    """The parser's commands; each takes what stands before it, too (``--directory``, ``--debug``)."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
        self._commands: Any = parser.add_subparsers(metavar="COMMAND", required=True)
        self._common = common

    def add(self, name: str, command: Command, help: str) -> argparse.ArgumentParser:
        """A command; its options and arguments are added to what this returns."""
        sub: argparse.ArgumentParser = self._commands.add_parser(
            name, help=help, description=help, parents=[self._common]
        )
        sub.set_defaults(command=command)
        return sub

    def group(self, name: str, help: str) -> Commands:
        """A command with commands of its own: ``goldfold data download``."""
        sub: argparse.ArgumentParser = self._commands.add_parser(
            name, help=help, description=help, parents=[self._common]
        )
        return Commands(sub, self._common)

    def add_config(self, name: str, command: Command, help: str) -> argparse.ArgumentParser:
        """A command that takes ``CONFIG [key=value ...]``."""
        sub = self.add(name, command, help)
        sub.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
        return sub
