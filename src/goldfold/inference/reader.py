"""Every image is read and decoded once, for all members: threads write it, in each size that a member wants, to a store.

A reader holds one chunk of the test rows. Networks follow the front of the reading: ``Shown.read`` waits for its rows. An
image that cannot be decoded is left black and remembered; so is one whose file does not come within ``patience`` seconds,
whose thread is given up and replaced.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from goldfold.errors import GoldfoldError
from goldfold.images import ImageSpec, UnreadableImage
from goldfold.images.decode import Pixels, load_specs

WAITING, READY, UNREADABLE = range(3)
BLOCK = 8
"""Rows that a thread takes at once."""
THREADS = "goldfold-"
"""How the names of all threads of the engine begin."""
GLANCE = 0.2
"""Seconds between two looks at the clock while waiting."""


class Stopped(GoldfoldError):
    """The reading was stopped while somebody waited for it."""


class NoRoom(GoldfoldError):
    """The scratch folder has no room for the store."""


@dataclass
class _Task:
    """The rows that a thread has taken: the next one, its end, and since when it is at this one."""

    row: int
    stop: int
    since: float
    given_up: bool = False


class Reader:
    """Decodes ``paths`` in ``specs``, in order, in ``threads``; ``images`` gives what was decoded, as it comes.

    The store is a file a spec in ``folder`` (None: memory), whose room is taken when the reader is made. Raises NoRoom.
    ``load``: a file in several specs, or UnreadableImage.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        specs: Sequence[ImageSpec],
        folder: Path | None,
        threads: int,
        patience: float = 120.0,
        load: Callable[[Path, Sequence[ImageSpec]], list[Pixels]] = load_specs,
    ) -> None:
        self.paths, self.specs = tuple(paths), tuple(dict.fromkeys(specs))
        self.patience, self.threads, self._load = patience, max(threads, 1), load
        self.reasons: dict[int, str] = {}
        """By row why an image is unreadable."""
        self._state = np.zeros(len(self.paths), dtype=np.uint8)
        self._changed = threading.Condition()
        self._tasks: dict[int, _Task] = {}
        self._started_threads, self._next, self._left = 0, 0, len(self.paths)
        self._begun, self._ended = time.monotonic(), 0.0
        self._halt = False
        self._stores = {spec: _allocate((len(self.paths), *spec.shape), folder) for spec in self.specs}

    def start(self) -> None:
        self._begun = time.monotonic()
        with self._changed:
            for _ in range(min(self.threads, len(self.paths))):
                self._start_thread()

    def images(self, spec: ImageSpec) -> Shown:
        """What a network reads; each caller has its own, which counts how long it waited."""
        return Shown(self, self._stores[spec])

    @property
    def unreadable(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a row could not be decoded (so far)."""
        return self._state == UNREADABLE

    @property
    def finished(self) -> bool:
        return self._left == 0

    def rate(self) -> float:
        """Images a second since the start; infinite before the first."""
        done = len(self.paths) - self._left
        seconds = (self._ended or time.monotonic()) - self._begun
        return done / seconds if done and seconds > 0 else float("inf")

    def seconds_left(self) -> float:
        """An estimate from the rate so far; 0 before there is one."""
        return self._left / self.rate()

    def wait(self, rows: npt.NDArray[np.int64]) -> float:
        """Until ``rows`` are decoded or given up; returns the seconds that it took. Raises Stopped."""
        if (self._state[rows] != WAITING).all():
            return 0.0
        begun = time.monotonic()
        with self._changed:
            while (self._state[rows] == WAITING).any():
                if self._halt:
                    raise Stopped("the reading of images was stopped")
                self._changed.wait(GLANCE)
                self._give_up_slow()
        return time.monotonic() - begun

    def close(self) -> None:
        """Stop the threads. The store is gone when nobody holds a part of it any more."""
        with self._changed:
            self._halt = True
            self._changed.notify_all()
        self._stores = {}

    def _start_thread(self, task: _Task | None = None) -> None:
        """Holding the lock. ``task``: rows to begin with, which another thread was given up on."""
        number = self._started_threads
        self._started_threads += 1
        if task is not None:
            self._tasks[number] = task
        # Not a pool: Python would wait at its exit for a thread that hangs in a read.
        threading.Thread(target=self._work, args=(number, task), name=f"{THREADS}decode-{number}", daemon=True).start()

    def _work(self, number: int, task: _Task | None) -> None:
        while True:
            if task is None:
                with self._changed:
                    if self._halt or self._next >= len(self.paths):
                        return
                    task = _Task(self._next, min(self._next + BLOCK, len(self.paths)), time.monotonic())
                    self._next = task.stop
                    self._tasks[number] = task
            for row in range(task.row, task.stop):
                if not self._decode(task, row):
                    return
            with self._changed:
                self._tasks.pop(number, None)
                self._changed.notify_all()
            task = None

    def _decode(self, task: _Task, row: int) -> bool:
        """Decode a row into the store; returns whether the thread is still wanted."""
        with self._changed:
            if self._halt or task.given_up:
                return False
            task.row, task.since = row, time.monotonic()
        found: list[Pixels] = []
        reason = None
        try:
            found = self._load(self.paths[row], self.specs)
        except UnreadableImage as error:
            reason = str(error)
        except Exception as error:  # whatever a broken file does to a decoder, the other rows go on
            reason = f"{self.paths[row]}: {type(error).__name__}: {error}"
        # The lock is held while pixels are copied: a thread that was given up must not write any more.
        with self._changed:
            if self._halt or task.given_up:
                return False
            for store, pixels in zip(self._stores.values(), found, strict=reason is None):
                store[row] = pixels
            self._settle(row, reason)
        return True

    def _settle(self, row: int, reason: str | None) -> None:
        """Holding the lock."""
        if reason is not None:
            self.reasons[row] = reason
        self._state[row] = READY if reason is None else UNREADABLE
        self._left -= 1
        if self._left == 0:
            self._ended = time.monotonic()
            self._changed.notify_all()

    def _give_up_slow(self) -> None:
        """Holding the lock: leave threads that hang at one file, and let others take their rows over."""
        now = time.monotonic()
        for number, task in list(self._tasks.items()):
            if now - task.since < self.patience:
                continue
            task.given_up = True
            del self._tasks[number]
            self._settle(task.row, f"{self.paths[task.row]}: not read within {self.patience:g} s")
            self._start_thread(_Task(task.row + 1, task.stop, now))


class Shown:
    """The decoded images of a reader in one spec; ``waited``: seconds that their reader spent waiting."""

    def __init__(self, reader: Reader, store: Pixels) -> None:
        self.waited = 0.0
        self._reader, self._store = reader, store

    def read(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """(B, S, S, C) uint8, a fresh array; waits for the rows. An unreadable image is black. Raises Stopped."""
        self.waited += self._reader.wait(rows)
        return self._store[rows]


def _allocate(shape: tuple[int, ...], folder: Path | None) -> Pixels:
    """Zeros in a file of ``folder`` without a name, which is gone with the last that uses it; or in memory."""
    size = int(np.prod(shape))
    if folder is None or size == 0:
        try:
            return np.zeros(shape, dtype=np.uint8)
        except MemoryError as error:
            raise NoRoom(f"no memory for {size / 1e9:.3g} GB of images") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Writing to a map of a file that finds the disk full kills the process: the room is taken first.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise NoRoom(f"{folder}: no room for {size / 1e9:.3g} GB of images ({error.strerror or error})") from error
    return np.frombuffer(mapped, dtype=np.uint8).reshape(shape)
