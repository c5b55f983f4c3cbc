"""Cores that a process may use: affinity, hyper-threads, a container's quota. The system's files are pretended."""

from __future__ import annotations

from pathlib import Path

import pytest

from goldfold import cores


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight logical cores, two a physical one, without a quota."""
    monkeypatch.setattr(cores, "SYSTEM", tmp_path / "sys")
    monkeypatch.setattr(cores, "PROC", tmp_path / "proc")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for core in range(8):
        write(
            tmp_path, f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 4},{core % 4 + 4}\n"
        )
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_two_threads_of_a_core_are_one_physical_core(system: Path) -> None:
    assert (cores.logical_cores(), cores.physical_cores(), cores.cpu_quota()) == (8, 4, None)
    assert cores.processor_name() == "Some CPU @ 2 GHz"


def test_affinity_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 4, 5})
    assert (cores.logical_cores(), cores.physical_cores()) == (3, 2)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        # Version 2: of nested groups the tightest one.
        (
            {
                "proc/self/cgroup": "0::/kube/pod\n",
                "sys/fs/cgroup/kube/cpu.max": "200000 100000",
                "sys/fs/cgroup/kube/pod/cpu.max": "max 100000",
            },
            2,
        ),
        # Version 1, beside a controller that says nothing of cores.
        (
            {
                "proc/self/cgroup": "4:memory:/other\n3:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/other/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/other/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_containers_quota(system: Path, files: dict[str, str], expected: float | None) -> None:
    for path, text in files.items():
        write(system, path, text)
    assert cores.cpu_quota() == expected
    assert cores.logical_cores() == (8 if expected is None else max(int(expected), 1))
    assert cores.physical_cores() <= cores.logical_cores()


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "SYSTEM", tmp_path)
    monkeypatch.setattr(cores, "PROC", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert (cores.logical_cores(), cores.physical_cores(), cores.cpu_quota()) == (2, 2, None)
    assert cores.processor_name()
