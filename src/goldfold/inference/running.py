"""One network on one chunk of images: all devices take its batches in turn, until it is whole or the time is up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goldfold.errors import GoldfoldError
from goldfold.forward import to_device
from goldfold.images.centre import centre
from goldfold.inference.devices import first_line, is_device_failure
from goldfold.inference.networks import Network, Unit
from goldfold.inference.reader import GLANCE, THREADS, Reader, Stopped
from goldfold.progress import say, warn
from goldfold.records import Floats

AHEAD = 2
"""Batches that wait for each device."""
BETWEEN_LINES = 60.0
"""Seconds between two lines of a long run's log."""


class Progress:
    """What a unit has predicted of a chunk's rows: ``values`` (N, C), whole batches at a time. May be gone on with."""

    def __init__(self, unit: Unit, rows: int) -> None:
        self.unit = unit
        size = unit.member.batch_size
        self.batches = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        self.done = np.zeros(len(self.batches), dtype=np.bool_)
        self.values: Floats = np.zeros((rows, len(unit.bundle.task.classes)), dtype=np.float32)

    @property
    def whole(self) -> bool:
        return bool(self.done.all())

    def rows(self) -> npt.NDArray[np.bool_]:
        """(N,) which rows are predicted."""
        found = np.zeros(len(self.values), dtype=np.bool_)
        for batch, done in zip(self.batches, self.done, strict=True):
            found[batch] = done
        return found

    def rows_left(self) -> int:
        return int(len(self.values) - self.rows().sum())


@dataclass
class Outcome:
    """How a run of a unit went: ``rate`` in images a second (None: nothing was measured), the ``broken`` devices, and the
    ``error`` for which the unit must be given up."""

    rate: float | None = None
    broken: list[torch.device] = field(default_factory=list)
    error: Exception | None = None


class _Claims:
    """Which batches are to be done: each is given out once, and once more where its device broke down."""

    def __init__(self, progress: Progress, limit: int | None) -> None:
        waiting = np.flatnonzero(~progress.done).tolist()
        self._waiting = waiting if limit is None else waiting[:limit]
        self._lock = threading.Lock()

    def take(self) -> int | None:
        with self._lock:
            return self._waiting.pop(0) if self._waiting else None

    def give_back(self, number: int) -> None:
        with self._lock:
            self._waiting.insert(0, number)

    def close(self) -> None:
        with self._lock:
            self._waiting.clear()


class _Lane:
    """A device with its network: one thread reads its batches, one computes them."""

    def __init__(
        self, network: Network, reader: Reader, first_row: int, progress: Progress, claims: _Claims,
        stop: Callable[[], bool], now: Callable[[], float],
    ) -> None:  # fmt: skip
        self.network, self.progress, self.first_row = network, progress, first_row
        self.claims, self.stop, self.now = claims, stop, now
        self.shown = reader.images(network.unit.bundle.images)
        self.error: Exception | None = None
        self.images, self.seconds, self.fed = 0, 0.0, 0.0
        self.first_images, self.first_seconds = 0, 0.0
        self._ready: queue.Queue[tuple[int, Tensor] | Exception | None] = queue.Queue(AHEAD)
        self._halt = threading.Event()
        self._copying: torch.cuda.Stream | None = None
        self.threads = [
            threading.Thread(target=work, name=f"{THREADS}{name}", daemon=True)
            for name, work in (("feed", self._feed), ("compute", self._compute))
        ]

    def _over(self) -> bool:
        return self._halt.is_set() or self.stop()

    def _feed(self) -> None:
        try:
            while not self._over() and (number := self.claims.take()) is not None:
                self._put((number, self._read(number)))
            self._put(None)
        except Stopped:
            self._put(None)
        except Exception as error:  # told by the other thread, which ends the lane
            self._put(error)

    def _read(self, number: int) -> Tensor:
        batch = self.progress.batches[number]
        begun, waited = time.monotonic(), self.shown.waited
        pixels = self.shown.read(np.arange(batch.start, batch.stop))
        tensor = torch.from_numpy(centre(pixels, self.network.unit.bundle.side, self.network.colours))
        if self.network.machine.device.type == "cuda":
            tensor = self._sent(tensor.pin_memory())
        self.fed += max(time.monotonic() - begun - (self.shown.waited - waited), 0.0)
        return tensor

    def _sent(self, pixels: Tensor) -> Tensor:
        """On the GPU, copied beside what it computes; where it is when there is no room for it."""
        device = self.network.machine.device
        if self._copying is None:
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copying):
            found = to_device(pixels, device)
        self._copying.synchronize()
        return found

    def _put(self, item: tuple[int, Tensor] | Exception | None) -> None:
        while not self._over():
            try:
                self._ready.put(item, timeout=GLANCE)
                return
            except queue.Full:
                continue

    def _compute(self) -> None:
        number: int | None = None
        try:
            while not self._over():
                try:
                    item = self._ready.get(timeout=GLANCE)
                except queue.Empty:
                    continue
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                number, pixels = item
                self._predict(number, pixels)
                number = None
        except Exception as error:  # the engine says it, and gives up the unit or the device
            self.error = error
            if not is_device_failure(error):
                self.claims.close()
            elif number is not None:
                self.claims.give_back(number)
        finally:
            self._halt.set()

    def _predict(self, number: int, pixels: Tensor) -> None:
        batch = self.progress.batches[number]
        metadata = self.network.metadata
        if metadata is not None:
            metadata = metadata[self.first_row + batch.start : self.first_row + batch.stop]
        begun = self.now()
        if pixels.is_cuda:  # or the feeding thread's stream would use the memory again too soon
            pixels.record_stream(torch.cuda.current_stream(pixels.device))
        values = self.network.predict(pixels, metadata)
        seconds = self.now() - begun
        self.progress.values[batch] = values
        self.progress.done[number] = True
        if self.first_images:
            self.images, self.seconds = self.images + len(pixels), self.seconds + seconds
        else:  # the first batch warms up, and counts where there is no other
            self.first_images, self.first_seconds = len(pixels), seconds

    def rate(self) -> float | None:
        """Images a second, without the wait for images that were not decoded yet."""
        images, seconds = (self.images, self.seconds) if self.images else (self.first_images, self.first_seconds)
        if not images:
            return None
        fed = self.fed * images / (self.images + self.first_images)
        return images / max(seconds, fed, 1e-9)


def run_unit(
    networks: Sequence[Network],
    progress: Progress,
    reader: Reader,
    first_row: int,
    stop: Callable[[], bool],
    limit: int | None = None,
    now: Callable[[], float] = time.monotonic,
    meanwhile: Callable[[], object] = lambda: None,
) -> Outcome:
    """Go on with ``progress`` on every network's device until it is whole, ``limit`` batches are done, or ``stop`` says so.

    ``first_row``: of the chunk in the test CSV. A device that breaks down leaves its batches to the others. ``meanwhile``
    is called once while the devices work.
    """
    claims = _Claims(progress, limit)
    outcome = Outcome()
    lanes = [_Lane(network, reader, first_row, progress, claims, stop, now) for network in networks]
    for lane in lanes:
        for thread in lane.threads:
            thread.start()
    meanwhile()
    for lane in lanes:
        computing = lane.threads[1]  # the other may hang in a read; it ends by itself
        while computing.is_alive():
            computing.join(BETWEEN_LINES)
            if computing.is_alive():
                done = len(progress.values) - progress.rows_left()
                say(f"{progress.unit.name}: {done} of {len(progress.values)} images")
    for lane in lanes:
        if lane.error is None:
            continue
        device = lane.network.machine.device
        if is_device_failure(lane.error):
            warn(f"{device} failed, and is not used any more: {first_line(lane.error)}")
            outcome.broken.append(device)
        elif isinstance(lane.error, GoldfoldError):
            outcome.error = lane.error
        else:
            text = f"{progress.unit.name}: {type(lane.error).__name__}: {first_line(lane.error)}"
            outcome.error = GoldfoldError(text)
    rates = [rate for lane in lanes if (rate := lane.rate()) is not None]
    outcome.rate = sum(rates) if rates else None
    return outcome
