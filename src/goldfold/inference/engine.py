"""The engine: reads the images once, runs units in the order of gain per second, and keeps the best submission written.

The caller's thread watches the clock and writes; a second one conducts. Whatever hangs, in a read or on a device, the
caller's goes on, and ends in time with what is done.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from goldfold.errors import GoldfoldError
from goldfold.images import ImageSpec
from goldfold.inference.budget import SLACK, Candidate, Deadline, Step, plan
from goldfold.inference.devices import CPU, describe, first_line
from goldfold.inference.frontier import Fits
from goldfold.inference.inputs import HiddenRows
from goldfold.inference.networks import Loader, Unit, by_member
from goldfold.inference.reader import GLANCE, THREADS, NoRoom, Reader
from goldfold.inference.running import Outcome, Progress, run_unit
from goldfold.inference.tally import Tally
from goldfold.kaggle.pack import Pack
from goldfold.progress import say, warn

PROBE = 3
"""Batches a device by which a member's throughput is measured; the first warms up."""
PROBING = 0.1
"""Of the time, the most that is spent on measuring members before the plan is made. What they predict is kept."""
SEARCHING, LONGEST_SEARCH = 0.01, 120.0
"""Of the time, and in seconds, the most that is spent on fitting blends of subsets before the plan is made."""
FEWEST_ROWS = 1024
"""Chunks have so many rows, or a multiple: whole batches of any usual size."""


@dataclass(frozen=True)
class Room:
    """Where decoded images go. ``bytes``: the most that a store may take; ``patience``: seconds that a file may take."""

    scratch: Path | None
    bytes: int
    threads: int
    patience: float = 120.0


@dataclass
class Throughput:
    """Images a second and pass of each member, as last measured, and the seconds that loading takes.

    A member that was not measured yet is judged by what its network moves through memory for an image, against those
    that were.
    """

    rates: dict[str, float] = field(default_factory=dict)
    loading: float = 0.0
    _moved: dict[str, float] = field(default_factory=dict)

    def note(self, unit: Unit, rate: float | None) -> None:
        if rate is not None:
            self.rates[unit.member.name] = rate * unit.passes
            self._moved[unit.member.name] = rate * unit.passes * max(unit.member.image_bytes, 1)

    def seconds(self, unit: Unit, rows: int) -> float:
        """An estimate for ``rows`` images; 0 where nothing was measured."""
        rate = self.rates.get(unit.member.name)
        if rate is None:
            rate = min(self._moved.values(), default=math.inf) / max(unit.member.image_bytes, 1)
        return self.loading + rows * unit.passes / rate


def chunk_bounds(rows: int, specs: Sequence[ImageSpec], room: int) -> list[int]:
    """Where chunks begin, and the number of rows: one chunk where the store has room for all images, else as many as it
    takes with two at a time, since the next is read while one is predicted."""
    each = max(sum(int(np.prod(spec.shape)) for spec in specs), 1)
    if rows * each <= room:
        return [0, rows]
    most = max(room // (2 * each) // FEWEST_ROWS * FEWEST_ROWS, FEWEST_ROWS)
    count = -(-rows // most)
    size = -(-rows // count // FEWEST_ROWS) * FEWEST_ROWS  # chunks of about one size, of whole batches
    return [*range(0, rows, size), rows]


class Engine:
    """Predicts ``hidden`` with the ``units`` of a pack until all is done or the ``deadline`` comes.

    ``failed``: by name why a unit was given up; ``throughput``: as measured; ``tally``: what is predicted.
    """

    def __init__(
        self,
        pack: Pack,
        hidden: HiddenRows,
        units: Sequence[Unit],
        fits: Fits,
        devices: Sequence[torch.device],
        deadline: Deadline,
        room: Room,
    ) -> None:
        self.pack, self.hidden, self.fits, self.deadline, self.room = pack, hidden, fits, deadline, room
        self.units = [unit for unit in units if len(hidden.ids)]
        self.devices = list(devices)
        self.failed: dict[str, str] = {}
        self.reasons: dict[int, str] = {}
        """By row why an image is unreadable."""
        self.throughput = Throughput()
        self.steps: list[tuple[float, str, int]] = []
        """What was finished: seconds since the start, unit, chunk."""
        self.specs = list(dict.fromkeys(unit.bundle.images for unit in self.units))
        self.tally = Tally(
            {member.name: len(member.folds) for member in pack.members},
            chunk_bounds(len(hidden.ids), self.specs, room.bytes),
            len(pack.task.classes),
        )
        self.error: str | None = None
        self._stop = threading.Event()
        self._loader = Loader(pack, hidden, deadline.now)
        self._readers: dict[int, Reader] = {}
        self._opening = threading.Lock()

    def run(self, publish: Callable[[], None]) -> None:
        """Until everything is done or the time is up. ``publish`` is called in this thread whenever more is done; it must
        be quick."""
        worker = threading.Thread(target=self._conduct, name=f"{THREADS}conduct", daemon=True)
        worker.start()
        shown, took = 0, 0.0
        while worker.is_alive() and self.deadline.left() > 2 * took:
            worker.join(GLANCE / 4)
            if self.tally.version != shown:
                shown, begun = self.tally.version, time.monotonic()
                publish()
                took = time.monotonic() - begun
        in_time = not worker.is_alive()
        self._stop.set()
        self.tally.close()
        if not in_time:
            say(f"time is up after {self.deadline.used():.0f} of {self.deadline.seconds:.0f} seconds")
        if self.tally.version != shown or not shown or self.tally.has_partial():
            publish()
        for reader in list(self._readers.values()):
            reader.close()
        # A thread that computes while Python ends may take the process with it: it stops after its batch.
        worker.join(max(min(self.deadline.margin / 4, 30.0), 0.0))

    def complete(self) -> bool:
        """Whether every network that the blend of all needs has predicted every image."""
        return self.tally.complete(self.fits.needed)

    def _over(self) -> bool:
        return self._stop.is_set() or self.deadline.left() <= 0

    def _conduct(self) -> None:
        try:
            for chunk in range(self.tally.chunks if self.units else 0):
                reader = self._reader(chunk)
                threading.Thread(target=self._read_ahead, args=(chunk, reader), daemon=True).start()
                self._run_chunk(chunk, reader, self._chunk_stop(chunk))
                self._note_unreadable(chunk, reader)
                reader.close()
                if self._over():
                    return
        except GoldfoldError as error:
            self.error = str(error)
        except Exception as error:  # the submission that stands is kept, and the log says why it got no better
            self.error = f"{type(error).__name__}: {first_line(error)}"
            warn(traceback.format_exc())

    def _chunk_stop(self, chunk: int) -> float:
        """When a chunk's time is over: its share of what is left, by rows."""
        bounds = self.tally.bounds
        share = (bounds[chunk + 1] - bounds[chunk]) / max(bounds[-1] - bounds[chunk], 1)
        return self.deadline.now() + self.deadline.left() * share

    def _reader(self, chunk: int) -> Reader:
        """The reader of a chunk, started. Without room on the disk its images are held in memory. Raises NoRoom."""
        with self._opening:
            if chunk not in self._readers:
                paths = self.hidden.paths[self.tally.bounds[chunk] : self.tally.bounds[chunk + 1]]
                room = self.room
                try:
                    reader = Reader(paths, self.specs, room.scratch, room.threads, room.patience)
                except NoRoom as error:
                    warn(f"{error}; they are held in memory")
                    reader = Reader(paths, self.specs, None, room.threads, room.patience)
                self._readers = {chunk: reader}  # the one before is closed by who runs it
                reader.start()
            return self._readers[chunk]

    def _read_ahead(self, chunk: int, reader: Reader) -> None:
        """Begin to read the next chunk when this one is read."""
        while not reader.finished:
            if self._stop.wait(GLANCE):
                return
        if chunk + 1 < self.tally.chunks:
            self._reader(chunk + 1)

    def _run_chunk(self, chunk: int, reader: Reader, stop: float) -> None:
        first, last = self.tally.bounds[chunk : chunk + 2]
        left = {name: list(units) for name, units in by_member(self._usable()).items()}
        begun: dict[Unit, Progress] = {}

        def over() -> bool:
            return self._over() or self.deadline.now() >= stop

        def run(unit: Unit, probe: bool, coming: Unit | None) -> None:
            name = unit.member.name
            progress = begun.setdefault(unit, Progress(unit, last - first))
            self.tally.begin(chunk, progress)
            members = frozenset([name, *(each for each in self.fits.names if self.tally.folds(each)[chunk])])

            def meanwhile() -> None:
                if coming is not None:
                    self._loader.prepare(coming)
                # Now, so that a submission in the last minute need not wait for it.
                self.fits.best(members)

            limit = max(min(PROBE * len(self.devices), len(progress.batches) // 5), 1) if probe else None
            outcome = self._run(progress, reader, first, over, limit, meanwhile)
            self._note_unreadable(chunk, reader)
            self.throughput.note(unit, outcome.rate)
            if outcome.error is not None:
                self._give_up(unit, outcome.error)
                self.tally.drop(chunk, progress)
            elif progress.whole:
                self.tally.add(chunk, progress)
                self.steps.append((self.deadline.used(), unit.name, chunk))
            if outcome.error is not None or progress.whole:
                left[name].remove(unit)
                begun.pop(unit, None)

        self._probe(left, over, run)
        if chunk == 0:
            self.fits.search_within(min(SEARCHING * self.deadline.left(), LONGEST_SEARCH))
        while not over() and any(left.values()):
            steps = self._plan(left, begun, last - first, stop - self.deadline.now(), reader, chunk)
            if not steps:
                return
            self._say_plan(steps, chunk)
            run(left[steps[0].member][0], False, self._coming(left, steps))

    def _plan(
        self, left: dict[str, list[Unit]], begun: dict[Unit, Progress], rows: int, seconds: float, reader: Reader,
        chunk: int,
    ) -> list[Step]:  # fmt: skip
        """What to run in ``seconds``; where nothing whole fits any more and nothing is whole yet, what brings most."""
        candidates = [
            Candidate(
                name,
                tuple(
                    self.throughput.seconds(unit, begun[unit].rows_left() if unit in begun else rows)
                    for unit in left.get(name, ())
                ),
                self.tally.folds(name)[chunk],
            )
            for name in self.fits.names
        ]
        usable = {candidate.name for candidate in candidates if candidate.seconds or candidate.done}
        reading = reader.seconds_left()
        judge, needed = (self.fits.quality, self.fits.weights), self.fits.needed & usable
        steps = plan(candidates, *judge, seconds / SLACK, needed, reading)
        if steps or self.tally.has_whole(chunk):
            return steps
        return plan(candidates, *judge, float("inf"), needed, reading)

    def _probe(
        self, left: dict[str, list[Unit]], over: Callable[[], bool], run: Callable[[Unit, bool, Unit | None], None]
    ) -> None:
        """Measure each member on its first images, the lightest first: where time is short, others are too dear to try."""
        order = sorted(left, key=lambda name: left[name][0].member.image_bytes * left[name][0].passes)
        unknown = [name for name in order if name not in self.throughput.rates]
        ends = self.deadline.now() + PROBING * self.deadline.left()
        for place, name in enumerate(unknown):
            coming = next((left[other][0] for other in unknown[place + 1 :] if left[other]), None)
            while name not in self.throughput.rates and left[name]:
                rows = PROBE * len(self.devices) * left[name][0].member.batch_size
                need = self.throughput.seconds(left[name][0], rows) if self.throughput.rates else 0.0
                if over() or (self.throughput.rates and self.deadline.now() + need > ends):
                    return
                run(left[name][0], True, coming)

    def _run(
        self, progress: Progress, reader: Reader, first: int, over: Callable[[], bool], limit: int | None,
        meanwhile: Callable[[], object],
    ) -> Outcome:  # fmt: skip
        """A unit on all devices that work; on the CPU when none does any more."""
        while True:
            try:
                networks = self._loader.take(progress.unit, self.devices)
            except GoldfoldError as error:
                return Outcome(error=error)
            self.throughput.loading = self._loader.seconds
            outcome = run_unit(networks, progress, reader, first, over, limit, self.deadline.now, meanwhile)
            if not outcome.broken:
                return outcome
            self.devices = [device for device in self.devices if device not in outcome.broken] or [CPU]
            self._loader.forget()
            say(f"going on with {', '.join(describe(device) for device in self.devices)}")

    def _usable(self) -> list[Unit]:
        return [unit for unit in self.units if unit.name not in self.failed]

    def _give_up(self, unit: Unit, error: Exception) -> None:
        self.failed[unit.name] = str(error)
        warn(f"{error}; '{unit.member.name}' counts without {unit.fold.bundle.rsplit('/', 1)[-1]}")

    def _note_unreadable(self, chunk: int, reader: Reader) -> None:
        self.tally.mark_unreadable(chunk, reader.unreadable)
        if reader.finished:
            first = self.tally.bounds[chunk]
            self.reasons.update({first + row: reason for row, reason in reader.reasons.items()})

    def _coming(self, left: dict[str, list[Unit]], steps: Sequence[Step]) -> Unit | None:
        if len(steps) < 2:
            return None
        units = left[steps[1].member]
        place = 1 if steps[1].member == steps[0].member else 0
        return units[place] if len(units) > place else None

    def _say_plan(self, steps: Sequence[Step], chunk: int) -> None:
        share = f", part {chunk + 1} of {self.tally.chunks}" if self.tally.chunks > 1 else ""
        say(
            f"{self.deadline.used():.0f} s: {steps[0].member}, network {steps[0].number}{share}: about "
            f"{steps[0].seconds:.0f} s; {len(steps)} to run, about {steps[-1].ends:.0f} of "
            f"{self.deadline.left():.0f} s"
        )
