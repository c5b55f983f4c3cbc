"""Running a process under a limit of time and memory, as a container does, with its output shown as it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

POLL_SECONDS = 0.2
FIELDS = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True)
class Ended:
    """How a process ended. ``limit``: the one that it broke; ``memory_bytes``: the most that it and its children used.

    ``memory_bytes`` is 0 where the system does not tell it (no /proc).
    """

    code: int
    seconds: float
    memory_bytes: int
    limit: Literal["time", "memory"] | None


def watch(
    command: Sequence[str],
    directory: Path,
    variables: Mapping[str, str],
    seconds: float,
    memory_bytes: int,
    show: Callable[[str], None],
) -> Ended:
    """Run ``command`` in a session of its own, giving each line of output to ``show``; what is left of it is killed.

    Memory counts as a container's does: anonymous and shared pages of all processes, a page that several share once; mapped
    files, such as weights, can be dropped and are not counted. (A limit of the address space would not do: torch reserves
    far more than it uses.)
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [*command],
        cwd=directory,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_relay, args=(process.stdout, show), daemon=True)
    reader.start()
    most, limit = 0, None
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=POLL_SECONDS)
                break
            most = max(most, used_memory(process.pid))
            if most > memory_bytes:
                limit = "memory"
            elif time.monotonic() - started > seconds:
                limit = "time"
            if limit:
                break
    finally:
        ended = time.monotonic()
        _kill(process.pid)
        code = process.wait()
        reader.join(timeout=5)
    return Ended(code, ended - started, most, "time" if limit == "time" else "memory" if limit == "memory" else None)


def used_memory(session: int) -> int:
    """Bytes that all processes of a session use now."""
    return sum(_process_memory(pid) for pid in _members(session))


def _members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The second field is a name in brackets, which may hold anything; the session is the sixth.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def _process_memory(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(FIELDS))
    return 0


def _kill(session: int) -> None:
    # The process may have put children into groups of their own, but not out of its session.
    for pid in {session, *_members(session)}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _relay(lines: IO[str], show: Callable[[str], None]) -> None:
    for line in lines:
        # Even when nobody can be shown it: a full pipe would stop the process.
        with contextlib.suppress(OSError):
            show(line.rstrip("\n"))
