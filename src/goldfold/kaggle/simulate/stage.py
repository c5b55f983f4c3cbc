"""Runs a command where ``/kaggle`` is: started inside new user, mount and network namespaces, with the standard library alone.

``python stage.py PLAN.json`` builds a root folder that shows all of this machine's and ``/kaggle`` beside it, makes folders
read-only, brings the loopback device up, and becomes the command. ``isolation`` writes the plan.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
# What statvfs(3) calls the flags of a mount that a remount has to repeat, and what mount(2) calls them.
KEPT = ((os.ST_NOSUID, 2), (os.ST_NODEV, 4), (os.ST_NOEXEC, 8), (os.ST_NOATIME, 1024), (os.ST_NODIRATIME, 2048), (os.ST_RELATIME, 1 << 21))  # fmt: skip


def mount(source: Path | str, target: Path, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    name = None if kind is None else kind.encode()
    if libc.mount(str(source).encode(), str(target).encode(), name, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def bind(source: Path, target: Path, read_only: bool = False) -> None:
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        found = os.statvfs(target).f_flag
        kept = sum(flag for status, flag in KEPT if found & status)
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def build_root(root: Path, folders: Mapping[str, str]) -> None:
    """Show this machine's top folders under ``root``, and ``folders`` (path below ``root`` → folder) beside them."""
    mount("goldfold", root, "tmpfs", 0)
    own = {Path(path).parts[0] for path in folders}
    for entry in os.scandir("/"):
        place = root / entry.name
        if entry.name in own:
            continue
        if entry.is_symlink():
            place.symlink_to(Path(entry.path).readlink())
            continue
        if entry.is_dir():
            place.mkdir()
        elif entry.is_file():
            place.touch()
        else:
            continue
        bind(Path(entry.path), place)
    for path, source in folders.items():
        (root / path).mkdir(parents=True)
        bind(Path(source), root / path)


def loopback_up() -> None:
    """Processes of the kernel may talk to each other; a new network namespace has a loopback device that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(device, 0x8913, request))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(device, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


def main(plan: Mapping[str, Any]) -> None:
    mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
    for path in plan["read_only"]:
        bind(Path(path), Path(path), read_only=True)
    root = Path(plan["root"])
    build_root(root, plan["folders"])
    loopback_up()
    os.chroot(root)
    os.chdir(plan["directory"])
    command: list[str] = plan["command"]
    os.execv(command[0], command)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
