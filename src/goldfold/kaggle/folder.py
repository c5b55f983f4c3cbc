"""A folder that is replaced as a whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from goldfold import files
from goldfold.errors import BadInput


@contextmanager
def replaced(target: Path, is_ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """An empty folder beside ``target`` to fill; it takes ``target``'s place at the end, unless an error ends the block.

    Raises BadInput where ``target`` is a file, or a folder that is neither empty nor ``is_ours`` (``what`` names what it
    should be), or where another process fills the same one.
    """
    target = target.resolve()
    temporary, old = target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")
    with files.locked(temporary, wait=False) as mine:
        if not mine:
            raise BadInput(target, "another process is writing it", "wait for it, or name another folder")
        try:
            if old.exists() and not target.exists():  # killed between the two renames
                old.rename(target)
            refuse_other(target, is_ours, what)
            _empty(temporary)
            yield temporary
            if old.exists():
                shutil.rmtree(old)
            if target.exists():
                target.rename(old)
            try:
                temporary.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def refuse_other(target: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Raises BadInput where ``target`` holds anything but what may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise BadInput(target, f"is a file, not a {what}", "name a folder")
    if any(target.iterdir()) and not is_ours(target):
        raise BadInput(target, f"holds other files than a {what}, and they would be lost", "name a new folder")


def copy(source: Path, target: Path) -> None:
    """A file's bytes, whole or not at all. Raises BadInput when there is no such file."""
    if not source.is_file():
        raise BadInput(source, "the file does not exist")

    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    files.write_atomic(target, write)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
