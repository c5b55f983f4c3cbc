"""How a simulated kernel is shut in: no network, inputs that nobody can write, Kaggle's paths.

Best in Linux namespaces of its own, which any user may make on most systems: there is no network device but the loopback,
the inputs are read-only mounts and all lies under ``/kaggle``. Where the system forbids namespaces, a guard in the
interpreter refuses sockets and names, the inputs are only protected by their permissions, and the kernel is told its
folders by ``GOLDFOLD_INPUT`` and ``GOLDFOLD_WORKING``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from goldfold.errors import BadInput

Isolation = Literal["auto", "namespace", "guard"]
STAGE = Path(__file__).with_name("stage.py")
UNSHARE = ("--user", "--map-root-user", "--mount", "--net")
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # fmt: skip
GUARD = '''\
"""No network: what a kernel of a code competition has. Only local sockets and the loopback device are left."""
import socket

_LOCAL = ("127.", "::1", "localhost")


def _check(address):
    if isinstance(address, tuple) and not str(address[0]).startswith(_LOCAL):
        raise OSError(101, f"Network is unreachable: {address[0]} (a simulated kernel has no internet)")


class _Socket(socket.socket):
    def connect(self, address):
        _check(address)
        return super().connect(address)

    def connect_ex(self, address):
        _check(address)
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        _check(rest[-1])
        return super().sendto(data, *rest)


_getaddrinfo = socket.getaddrinfo


def _lookup(host, *rest, **named):
    if host and not str(host).startswith(_LOCAL):
        raise socket.gaierror(-3, f"Temporary failure in name resolution: {host} (a simulated kernel has no internet)")
    return _getaddrinfo(host, *rest, **named)


socket.socket = _Socket
socket.getaddrinfo = _lookup
'''


@dataclass(frozen=True)
class Stage:
    """Where a kernel runs. ``command`` and ``variables`` start it; ``network``, ``inputs``: how they are kept, in words."""

    command: tuple[str, ...]
    directory: Path
    variables: dict[str, str]
    network: str
    inputs: str


def namespaces_work(scratch: Path) -> str | None:
    """None where this system lets us make the namespaces, else the reason why it does not."""
    unshare = shutil.which("unshare")
    if not sys.platform.startswith("linux") or unshare is None:
        return "this system has no 'unshare'"
    probe = scratch / "probe"
    (probe / "root").mkdir(parents=True)
    plan = {
        "read_only": [],
        "root": str(probe / "root"),
        "folders": {"kaggle/input": str(probe)},
        "directory": "/kaggle/input",
    }
    path = probe / "plan.json"
    true = shutil.which("true") or "/bin/true"
    path.write_text(json.dumps({**plan, "command": [true]}), encoding="utf-8")
    done = subprocess.run([*_enter(unshare), str(path)], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"no namespaces here: {lines[-1] if lines else f'exit code {done.returncode}'}"


def set_stage(
    scratch: Path,
    python: Path,
    packages: Path,
    kernel: Path,
    read_only: Sequence[Path],
    isolation: Isolation,
    variables: Mapping[str, str],
) -> Stage:
    """Prepare ``scratch`` (with the folders input, working, temp and src) for a run of ``kernel``.

    ``packages``: site-packages of ``python``, for the guard. ``read_only``: where the links of the input folder lead.
    Raises BadInput when namespaces are asked for and not allowed.
    """
    reason = "as asked for" if isolation == "guard" else namespaces_work(scratch)
    if reason and isolation == "namespace":
        raise BadInput("--isolation", f"this system does not allow namespaces ({reason})", "take auto or guard")
    clean = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    clean |= {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "temp"), **variables}
    if reason:
        (packages / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
        _protect(scratch / "input")
        clean |= {"GOLDFOLD_INPUT": str(scratch / "input"), "GOLDFOLD_WORKING": str(scratch / "working")}
        kept = "by their permissions" + (", which do not bind the root user" if os.geteuid() == 0 else "")
        return Stage(
            (str(python), str(kernel)),
            scratch / "working",
            clean,
            f"sockets refused in the interpreter ({reason})",
            kept,
        )
    folders = {f"kaggle/{name}": str(scratch / name) for name in ("input", "working", "temp", "src")}
    (scratch / "root").mkdir()
    plan = {
        "read_only": [str(path.resolve()) for path in (scratch / "input", *read_only)],
        "root": str(scratch / "root"),
        "folders": folders,
        "directory": "/kaggle/working",
        "command": [str(python), f"/kaggle/src/{kernel.name}"],
    }
    path = scratch / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    unshare = shutil.which("unshare")
    assert unshare is not None
    return Stage((*_enter(unshare), str(path)), scratch, clean, "a network namespace of its own", "mounted so")


def _enter(unshare: str) -> list[str]:
    return [unshare, *UNSHARE, sys.executable, "-I", "-S", str(STAGE)]


def _protect(folder: Path) -> None:
    """Take the right to write from a tree. Links are left alone: what they lead to is not ours."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
