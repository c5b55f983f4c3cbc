"""Goldfold's commands in processes of their own that begin at once: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# The server starts no thread: torch's do not survive a fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "albumentations",
        "pyarrow.dataset",
        "pyarrow.parquet",
        "sklearn.model_selection",
        "goldfold.augment.own",
        "goldfold.cli",
        "goldfold.pipeline.report",
        "goldfold.pipeline.run",
        "goldfold.teaching",
    ]
)


def start(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> BaseProcess:
    """``goldfold`` with ``arguments`` in ``folder``; what it prints goes to ``log``, its exit code is the process's.

    ``before``, a function of a module, is called first.
    """
    process = FORKS.Process(target=_run, args=(list(arguments), folder, log, dict(variables or {}), before))
    process.start()
    return process


def run(arguments: Sequence[str], folder: Path, log: Path) -> int:
    """The same to its end: the exit code."""
    return _end(start(arguments, folder, log))


def run_pair(
    arguments: Sequence[str], folder: Path, log: Path, before: Callable[[], object] | None = None
) -> tuple[int, int]:
    """Two processes of one training, as torchrun starts them: both exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [log.with_suffix(f".{rank}") for rank in (0, 1)]
    pair = [
        start(arguments, folder, own, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, before)
        for rank, own in enumerate(logs)
    ]
    codes = _end(pair[0]), _end(pair[1])
    log.write_text("".join(own.read_text() for own in logs))
    return codes


def _end(process: BaseProcess) -> int:
    process.join(timeout=200)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(
    arguments: list[str], folder: Path, log: Path, variables: dict[str, str], before: Callable[[], object] | None
) -> None:
    import torch

    from goldfold.cli import main

    os.chdir(folder)
    os.environ |= variables
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(main(arguments))
