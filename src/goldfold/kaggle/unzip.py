"""Archives from elsewhere, unpacked with care."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from goldfold.errors import GoldfoldError
from goldfold.progress import progress

ROOM = 50 * 2**20
"""Bytes that stay free on the disk."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into ``folder``, checking every file's checksum.

    Raises GoldfoldError, and leaves nothing outside ``folder``, for a broken or encrypted archive, for names that lead
    out of ``folder``, for links, for a name that stands twice, and where the disk has too little room.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = _files(source)
            targets = [folder / _safe(item, archive) for item in members]
            if len(set(targets)) != len(targets):
                raise GoldfoldError(f"{archive}: two files of the archive have one name")
            folder.mkdir(parents=True, exist_ok=True)
            size, free = sum(item.file_size for item in members), shutil.disk_usage(folder).free
            if size + ROOM > free:
                raise GoldfoldError(
                    f"{archive}: unpacked it has {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left"
                )
            pairs = list(zip(members, targets, strict=True))
            for item, target in progress(pairs, f"unpacking {archive.name}", len(pairs), "files"):
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(item) as packed, target.open("xb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        raise GoldfoldError(f"{archive}: not a whole zip archive ({error}); download it again") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise GoldfoldError(f"{archive}: a file and a folder of one name ({error.filename})") from error


def unpack_inner(folder: Path) -> None:
    """Unpack the archives that lie in ``folder`` (older competitions ship train.zip), each in its place.

    The files of ``train.zip`` come to lie in ``train/``, a ``train.csv.zip`` becomes ``train.csv``.
    """
    for archive in sorted(folder.rglob("*.zip")):
        base = archive.with_suffix("")
        if not zipfile.is_zipfile(archive):
            raise GoldfoldError(f"{archive.name}: not a whole zip archive; download it again")
        with zipfile.ZipFile(archive) as source:
            names = [_safe(item, archive) for item in _files(source)]
        tops = {name.parts[0] for name in names}
        alone = names == [PurePosixPath(base.name)]
        # Whether it brings its own folder along.
        target = archive.parent if alone or (tops == {base.name} and len(names[0].parts) > 1) else base
        made = archive.parent / base.name
        if made.exists():
            continue  # unpacked twins are shipped as well
        target.mkdir(parents=True, exist_ok=True)
        unpack(archive, target)
        archive.unlink()


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Without folders, and without what macOS adds."""
    return [item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")]


def _safe(item: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The path of a member within the archive, if it stays there."""
    name = item.filename
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0] or not path.parts
    if outside or "\0" in name:
        raise GoldfoldError(f"{archive}: '{name}' leads out of the archive; nothing of it is used")
    if stat.S_ISLNK(item.external_attr >> 16):
        raise GoldfoldError(f"{archive}: '{name}' is a link; nothing of it is used")
    return path
