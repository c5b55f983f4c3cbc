"""An array in a .npy file that is read and written row by row, not mapped.

A map's pages count as the memory of the process that touched them: training on a store larger than a container's limit
would have it killed. Reading rows with ``pread`` is as fast, and leaves the file to the system's own cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SYNC_EVERY = 0.25
"""Seconds after which a file that is being written is sent to the disk."""


class NpyRows:
    """The rows of the array in ``path``, of ``shape`` (N, ...) and ``dtype``; the file stays open while this lives.

    Threads and forked processes may read at once: no place in the file is shared. Raises ValueError, EOFError or OSError
    when the file is missing, no array, or shorter or longer than it says.
    """

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.offset + mapped.nbytes != path.stat().st_size:
            raise ValueError(f"{path.name} is not as long as it says")
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[Any] = mapped.dtype
        self._start: int = mapped.offset
        self._size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._file = path.open("rb", buffering=0)

    def read(self, rows: Sequence[int]) -> Array:
        """Rows by number → (B, ...), a fresh array. Raises IndexError, and OSError for a file that was cut short."""
        if len(rows) and not 0 <= min(rows) <= max(rows) < self.shape[0]:
            raise IndexError(f"rows {min(rows)} to {max(rows)} of {self.shape[0]}")
        found = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        whole, handle = found.reshape(-1).view(np.uint8).data, self._file.fileno()
        for place, row in enumerate(rows):
            _read_at(handle, whole[place * self._size : (place + 1) * self._size], self._start + row * self._size)
        return found


class NpyFile:
    """A new file for an array of ``shape`` (N, ...), filled by ``write`` in any order, also from several threads.

    A context manager. The file has its full length at once, so that a full disk fails then and not in hours; it is on the
    disk when the block is left without an error. A thread sends it there meanwhile: at the end alone, all would wait for a
    twentieth of the time in which images are decoded. Raises OSError.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        kind = np.dtype(dtype)
        self._size = int(np.prod(shape[1:])) * kind.itemsize
        self._left = threading.Event()
        self._failure: OSError | None = None
        self._syncing = threading.Thread(target=self._sync, daemon=True)
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        try:
            np.lib.format.write_array_header_1_0(self._file, header)
            self._file.flush()
            self._start = self._file.tell()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, self._start + shape[0] * self._size)
        except BaseException:
            self._file.close()
            raise

    def write(self, row: int, values: Array) -> None:
        """``values`` (B, ...) of the file's own type as the rows from ``row`` on."""
        rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        offset = self._start + row * self._size
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written

    def __enter__(self) -> NpyFile:
        self._syncing.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._left.set()
        self._syncing.join()
        try:
            if kind is None:
                if self._failure is not None:  # the system tells it once
                    raise self._failure
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _sync(self) -> None:
        send = getattr(os, "fdatasync", os.fsync)
        while self._failure is None and not self._left.wait(SYNC_EVERY):
            try:
                send(self._file.fileno())
            except OSError as error:
                self._failure = error


def _read_at(handle: int, part: memoryview, offset: int) -> None:
    while part:
        got = os.preadv(handle, [part], offset)
        if not got:
            raise OSError("the file was cut short while it was read")
        part, offset = part[got:], offset + got
