"""The processor as this process may use it: cores, and the quota that a container sets."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM = Path("/sys")
PROC = Path("/proc")


def allowed() -> set[int]:
    """The logical cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def logical_cores() -> int:
    """How many of them it can keep busy: no more than the quota of its control groups."""
    quota = cpu_quota()
    return max(1, len(allowed()) if quota is None else min(len(allowed()), int(quota)))


def physical_cores() -> int:
    """The same without the second thread of a core: two threads on one core share its arithmetic units."""
    siblings = {_siblings(core) for core in allowed()}
    return max(1, min(len(siblings), logical_cores()))


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups of this process leave it (Docker's ``--cpus``); None: no limit."""
    found = [_quota(folder) for folder in _groups()]
    limits = [limit for limit in found if limit is not None]
    return min(limits) if limits else None


def processor_name() -> str:
    """The model of the processor, or its architecture where the system does not tell."""
    for line in _read(PROC / "cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _siblings(core: int) -> str:
    text = _read(SYSTEM / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list").strip()
    return text or f"{core}"


def _groups() -> list[Path]:
    """Folders of the control groups that this process is in and of those around them, of version 2 and 1."""
    root = SYSTEM / "fs/cgroup"
    folders = [root, root / "cpu"]
    for line in _read(PROC / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        inner = top / path.strip("/")
        while inner != top and top in inner.parents:
            folders.append(inner)
            inner = inner.parent
    return folders


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    try:
        found = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return found if found > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
