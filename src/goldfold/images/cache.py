"""The store of decoded images: each file is decoded and resized once, then read row by row.

    <folder>/<key>/images.npy      (N, S, S, C) uint8
    <folder>/<key>/index.json      ids, shape, spec
    <folder>/<key>.lock            held by the process that builds the store
    <folder>/<key>.building/       a store being built, or what a killed builder left
    <folder>/digests.parquet       sha256 of files by path, size and time of change

The key is a digest of the ids, the bytes of the files, the spec and the format's version: a store never goes stale, and
the same images elsewhere find the same store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput
from goldfold.images.decode import ImageSpec, Pixels, UnreadableImage, in_threads, load
from goldfold.npy import NpyFile, NpyRows
from goldfold.progress import say, warn
from goldfold.records import check_ids

FORMAT = 1
"""Raise it when the decoded pixels or the layout change, so that older stores are left alone."""

Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Digest = tuple[int, int, str]
"""Size in bytes, time of change in ns, sha256."""


class Images(Protocol):
    """Decoded images by row number. ``shape`` is (S, S, C)."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def digest(self) -> str | None:
        """Changes with any image's bytes; None where the bytes were not read."""
        ...

    def read(self, rows: Rows) -> Pixels:
        """(B, S, S, C) uint8, a fresh array that the caller may change. Raises IndexError for an unknown row."""
        ...


class StoredImages:
    """Images in a store (a folder of ``images.npy`` and ``index.json``).

    Pickles as the folder's name: a loader process opens the file itself. Raises BadInput when the store is missing, cut
    short or not a store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = files.read_json(folder / "index.json")
        try:
            self.ids: tuple[str, ...] = tuple(index["ids"])
            size, _, channels = index["shape"]
            self._rows = NpyRows(folder / "images.npy")
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(folder, f"the store of images is broken ({error})", "delete it and run again") from error
        self.shape: tuple[int, int, int] = (size, size, channels)
        if self._rows.dtype != np.uint8 or self._rows.shape != (len(self.ids), *self.shape):
            raise BadInput(folder, "images.npy is not what index.json says", "delete the folder and run again")
        self.digest: str | None = folder.name

    def read(self, rows: Rows) -> Pixels:
        """See ``Images.read``. Threads and forked processes may read at once."""
        return self._rows.read(_row_numbers(rows).tolist())

    def __reduce__(self) -> tuple[type[StoredImages], tuple[Path]]:
        return StoredImages, (self.folder,)


class LazyImages:
    """Images that are decoded at every read: no disk space, more work. ``read`` raises UnreadableImage."""

    def __init__(self, ids: Sequence[str], paths: Sequence[Path], spec: ImageSpec) -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self.shape: tuple[int, int, int] = spec.shape
        self.digest: str | None = None
        self._paths = tuple(paths)
        self._spec = spec

    def read(self, rows: Rows) -> Pixels:
        """See ``Images.read``."""
        numbers = _row_numbers(rows)
        pixels = np.empty((len(numbers), *self.shape), dtype=np.uint8)
        for place, row in enumerate(numbers):
            pixels[place] = load(self._paths[row], self._spec)
        return pixels


def _row_numbers(rows: Rows) -> npt.NDArray[np.int64]:
    numbers = np.asarray(rows, dtype=np.int64)
    # -1 is pandas' sign for "not found", and would read the last image.
    if numbers.size and numbers.min() < 0:
        raise IndexError(f"row {numbers.min()} of a store of images")
    return numbers


def open_images(
    folder: Path | None,
    ids: Sequence[str],
    paths: Sequence[Path],
    spec: ImageSpec,
    workers: int | None = None,
    what: str = "images",
) -> Images:
    """The images of ``paths``, named ``ids``: from the store in ``folder``, which is built when missing, or decoded at
    each read where ``folder`` is None.

    ``workers`` threads decode (None: one a core); ``what`` names the images in messages. Two processes may build at once:
    the second waits and reuses. Raises UnreadableImage that names the first bad file (nothing is kept then), and
    BadInput for doubled ids, a full disk or a folder that cannot be written.
    """
    check_ids(ids, what)
    if len(ids) != len(paths):
        raise ValueError(f"{len(ids)} ids for {len(paths)} paths")
    if folder is None or not ids:
        return LazyImages(ids, paths, spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = _digest_files(folder, paths, workers, what)
        key = files.fingerprint(
            {"format": FORMAT, "spec": dataclasses.asdict(spec), "images": list(zip(ids, digests, strict=True))}
        )[:32]
        return _open_store(folder / key) or _build_store(folder, key, ids, paths, spec, workers, what)
    except OSError as error:
        mend = "set input.cache_dir to a folder with room that you may write to, or input.cache=false"
        raise BadInput(folder, f"the store of images cannot be kept here ({error})", mend) from error


def _open_store(folder: Path) -> StoredImages | None:
    if not folder.exists():
        return None
    try:
        return StoredImages(folder)
    except BadInput as error:
        warn(f"{error} (it is built again)")
        return None


def _build_store(
    folder: Path, key: str, ids: Sequence[str], paths: Sequence[Path], spec: ImageSpec, workers: int | None, what: str
) -> StoredImages:
    with _locked(_lock_file(folder, key), f"{what}: waiting for another process that decodes them"):
        _remove_dead_builds(folder, key)
        stored = _open_store(folder / key)
        if stored is not None:
            return stored
        if (folder / key).exists():
            shutil.rmtree(folder / key)
        need = len(ids) * int(np.prod(spec.shape))
        free = shutil.disk_usage(folder).free
        if need >= free:
            raise BadInput(
                folder,
                f"{len(ids)} decoded {what} need {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are free",
                "make room, set input.cache_dir to another disk, lower input.size, or set input.cache=false",
            )
        building = folder / f"{key}.building"
        building.mkdir()
        try:
            say(f"{what}: decoding {len(ids)} to {folder / key} ({need / 1e9:.3g} GB)")
            _write_pixels(building / "images.npy", paths, spec, workers, what)
            index = {"format": FORMAT, "ids": list(ids), "shape": spec.shape, "spec": dataclasses.asdict(spec)}
            files.write_json(building / "index.json", index)
            building.rename(folder / key)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return StoredImages(folder / key)


def _write_pixels(path: Path, paths: Sequence[Path], spec: ImageSpec, workers: int | None, what: str) -> None:
    """Decode to ``path`` as .npy; every thread writes at its rows' own places, so memory stays small."""
    with NpyFile(path, (len(paths), *spec.shape), np.uint8) as file:

        def place(row: int) -> UnreadableImage | None:
            try:
                file.write(row, load(paths[row], spec)[None])
            except UnreadableImage as error:
                return error
            return None

        _raise_first(in_threads(place, range(len(paths)), workers, f"{what}: decoding"))


def _raise_first(results: Sequence[object]) -> None:
    failed = [result for result in results if isinstance(result, UnreadableImage)]
    if not failed:
        return
    first = failed[0]
    if len(failed) == 1:
        raise first
    more = f"{first.reason} (and {len(failed) - 1} more images fail)"
    raise UnreadableImage(first.path, more, "goldfold check lists them all") from first


def _digest_files(folder: Path, paths: Sequence[Path], workers: int | None, what: str) -> list[str]:
    """The sha256 of every file; those whose size and time of change are as remembered are not read."""
    known = _read_digests(folder)

    def look(name: str) -> Digest | UnreadableImage:
        try:
            status = os.stat(name)  # noqa: PTH116 - as in sha256_file
            size, changed, digest = known.get(name, (-1, -1, ""))
            if (size, changed) != (status.st_size, status.st_mtime_ns):
                digest = files.sha256_file(name)
        except (OSError, ValueError, BadInput) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return UnreadableImage(Path(name), f"the file cannot be read ({reason})", "check competition.image_path")
        return status.st_size, status.st_mtime_ns, digest

    names = [str(path.absolute()) for path in paths]
    found = in_threads(look, names, workers, f"{what}: checking files")
    _raise_first(found)
    digests = [item for item in found if not isinstance(item, UnreadableImage)]
    new = {name: digest for name, digest in zip(names, digests, strict=True) if known.get(name) != digest}
    if new:
        with contextlib.suppress(OSError):  # a folder that is only read may still hold the store
            _remember_digests(folder, new)
    return [digest for _, _, digest in digests]


def _read_digests(folder: Path) -> dict[str, Digest]:
    path = folder / "digests.parquet"
    if not path.exists():
        return {}
    try:
        frame = files.read_parquet(path)
        columns = [frame[name].tolist() for name in ("path", "size", "mtime_ns", "sha256")]
    except (BadInput, KeyError):
        return {}  # it only saves time: the files are read again
    return {name: (size, changed, digest) for name, size, changed, digest in zip(*columns, strict=True)}


def _remember_digests(folder: Path, new: dict[str, Digest]) -> None:
    with _locked(folder / "digests.lock", ""):
        for left in folder.glob(".digests.parquet.*.tmp"):  # of a writer that was killed
            left.unlink(missing_ok=True)
        rows = [(name, *digest) for name, digest in (_read_digests(folder) | new).items()]
        frame = pd.DataFrame(rows, columns=["path", "size", "mtime_ns", "sha256"])
        files.write_parquet(folder / "digests.parquet", frame)


def _lock_file(folder: Path, key: str) -> Path:
    return folder / f"{key}.lock"


@contextlib.contextmanager
def _locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock between processes; the system lets go of it when the holder dies, however it dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _remove_dead_builds(folder: Path, key: str) -> None:
    """Remove half-built stores whose builder is gone: nobody holds their lock. We hold the lock of ``key``."""
    for left in folder.glob("*.building"):
        if left.stem == key:
            shutil.rmtree(left)
            continue
        with _lock_file(folder, left.stem).open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
