"""MANIFEST.json: every file of a pack with its size and digest, so that a broken copy is found before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import goldfold
from goldfold import files
from goldfold.errors import BadInput, some

FORMAT = 1
NAME = "MANIFEST.json"
LEFT_OUT = (NAME, "dataset-metadata.json")
"""Files of a pack that no manifest lists: itself, and what Kaggle takes out of a data set."""


@dataclass(frozen=True)
class Entry:
    """A file: its path within the pack, its size and its digest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Damage:
    """A file of a pack that is not as its manifest says, and in which way."""

    path: str
    reason: str


def write_manifest(folder: Path, source: str) -> list[Entry]:
    """List all files under ``folder`` in its MANIFEST.json, sorted by path; returns the list."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries = [
        Entry(path, (folder / path).stat().st_size, files.sha256_file(folder / path))
        for path in paths
        if path not in LEFT_OUT
    ]
    record = {
        "format": FORMAT,
        "goldfold": goldfold.__version__,
        "source": source,
        "files": [{"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256} for entry in entries],
    }
    files.write_json(folder / NAME, record)
    return entries


def read_manifest(folder: Path) -> list[Entry]:
    """The files that a pack must have. Raises BadInput where MANIFEST.json is missing, broken or names a file elsewhere."""
    where = folder / NAME
    record = files.read_json(where)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BadInput(where, f"not a manifest of format {FORMAT}", "export the pack with this version of Goldfold")
    try:
        return [Entry(inside(item["path"], where), int(item["bytes"]), str(item["sha256"])) for item in record["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            where, f"not a whole manifest ({type(error).__name__}: {error})", "export the pack again"
        ) from None


def find_damage(folder: Path, paths: Iterable[str] | None = None) -> list[Damage]:
    """What differs from the manifest, over all files or over some ``paths`` of it; nothing where the pack is whole.

    A path that the manifest does not list is damage too. Raises BadInput as ``read_manifest`` does.
    """
    entries = {entry.path: entry for entry in read_manifest(folder)}
    found = []
    for path in entries if paths is None else dict.fromkeys(paths):
        reason = _damage(folder / path, entries[path]) if path in entries else f"{NAME} does not list it"
        if reason:
            found.append(Damage(path, reason))
    return found


def verify(folder: Path, paths: Iterable[str] | None = None) -> None:
    """Raises BadInput, naming the first files, unless all (or some ``paths``) are as the manifest says."""
    damage = find_damage(folder, paths)
    if damage:
        told = some([f"{item.path} ({item.reason})" for item in damage], 3)
        raise BadInput(folder, f"{len(damage)} files are not those that were exported: {told}", "copy the pack again")


def inside(path: Any, where: object) -> str:
    """A path that stays within its folder. Raises BadInput for any other: packs are other people's files."""
    pure = PurePosixPath(str(path))
    if not isinstance(path, str) or not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise BadInput(where, f"'{path}' is not a path within the pack", "export the pack again")
    return path


def _damage(path: Path, entry: Entry) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:  # the quick question first: weights are large
            return f"{size} bytes instead of {entry.bytes}"
        return None if files.sha256_file(path) == entry.sha256 else "other bytes"
    except (FileNotFoundError, BadInput):
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
