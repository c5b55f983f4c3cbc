"""Where a training step's time goes: the loop's own functions, with a mark between one part and the next.

Nothing is marked in ordinary training. On a GPU the marks are events on its own time line, so nothing waits for anything
that it would not wait for otherwise, and time without data shows as such.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from goldfold import files
from goldfold.data import Batches, EpochOrder, TrainBatch, prefetched
from goldfold.machine import Machine
from goldfold.progress import progress
from goldfold.seeds import seed_everything
from goldfold.training.job import EPOCH, FoldJob
from goldfold.training.loop import backward, update
from goldfold.training.session import Session, make_loader, pace, peak_rate, start
from goldfold.training.window import Window

PARTS = ("wait", "copy", "prepare", "forward", "backward", "optimizer", "rest")
"""wait: for the loader. copy: what is waited for of it. prepare: normalisation, transforms on the device, mixing, erasing, online
teachers. backward: with the loss. optimizer: with clipping and averages."""
WARM_UP = 3
TRACED = 5


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each part, a number a micro-batch; ``images``: in one of them."""

    seconds: dict[str, tuple[float, ...]]
    images: int

    @property
    def steps(self) -> int:
        return len(self.seconds["wait"])

    @property
    def total(self) -> float:
        """Seconds of all steps together."""
        return sum(sum(values) for values in self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Of the whole time, by part; they add up to 1."""
        return {part: sum(values) / self.total for part, values in self.seconds.items()}

    @property
    def images_per_second(self) -> float:
        return self.images * self.steps / self.total


class Marks:
    """Stamps at which a part begins; the next one ends it. With ``named``, the parts are named in torch's profiler."""

    def __init__(self, device: torch.device, named: bool = False) -> None:
        self.on_gpu, self.named = device.type == "cuda", named
        self.stamps: list[tuple[str, Any]] = []
        self._span: Any = None

    def begin(self, part: str) -> None:
        if self.named:
            self._leave()
            self._span = torch.profiler.record_function(part)
            self._span.__enter__()
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.stamps.append((part, event))
        else:
            self.stamps.append((part, time.perf_counter()))

    def end(self) -> None:
        self._leave()
        self.begin("")
        self._leave()
        if self.on_gpu:
            torch.cuda.synchronize()

    def spans(self) -> list[tuple[str, float]]:
        """Part and seconds, in order."""
        pairs = zip(self.stamps, self.stamps[1:], strict=False)
        return [
            (part, begun.elapsed_time(done) / 1e3 if self.on_gpu else done - begun)
            for (part, begun), (_, done) in pairs
        ]

    def _leave(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None


def profile_steps(job: FoldJob, machine: Machine, steps: int, trace: Path | None = None) -> StepTimes:
    """Train ``steps`` micro-batches of the first phase and say what each part took. Leaves no artefact but ``trace``.

    ``trace``: a Chrome trace (JSON, for chrome://tracing or ui.perfetto.dev) of a few steps more.
    """
    session = start(job, machine)
    order, loader = make_loader(job, machine, session, session.stretch)
    session.wrapped.train()
    batches = _endless(job, session, order, loader)
    marks = Marks(machine.device)
    images = _train(job, machine, session, batches, marks, steps + WARM_UP, "profile")
    by_part: dict[str, list[float]] = {part: [] for part in PARTS}
    for part, seconds in marks.spans():
        if part == "wait":
            for values in by_part.values():
                values.append(0.0)
        by_part[part][-1] += seconds
    if trace is not None:
        _trace(job, machine, session, batches, min(steps, TRACED), trace)
    return StepTimes({part: tuple(values[WARM_UP:]) for part, values in by_part.items()}, images)


def _train(
    job: FoldJob,
    machine: Machine,
    session: Session,
    batches: Iterator[TrainBatch],
    marks: Marks,
    steps: int,
    what: str,
) -> int:
    """Train with marks; returns the images of a micro-batch."""
    rates, window, images = pace(session, job), session.stretch.accumulate, 0
    peak = peak_rate(session.stretch, session.accelerator)
    hooks = [
        session.wrapped.register_forward_pre_hook(lambda *_: marks.begin("forward")),
        session.wrapped.register_forward_hook(lambda *_: marks.begin("backward")),
    ]
    losses, step = torch.zeros((), device=machine.device), Window(session, what)
    coming = prefetched(_fetched(batches, marks), machine.device)
    try:
        for number in progress(range(steps), what, steps, "steps"):
            marks.begin("wait")
            batch = next(coming)
            marks.begin("prepare")
            whole = (number + 1) % window == 0
            step.add(partial(backward, job, machine, session, batch, number, window), len(batch.targets), last=whole)
            if whole:
                for loss in step.settle():
                    losses += loss
                marks.begin("optimizer")
                update(session, peak * rates.factor(session.stretch, session.progress.step))
                step = Window(session, what)
            marks.begin("rest")
            images = len(batch.targets)
        marks.end()
    finally:
        for hook in hooks:
            hook.remove()
    return images


def _fetched(batches: Iterator[TrainBatch], marks: Marks) -> Iterator[TrainBatch]:
    """The batches; from the moment that one is there it is copied, or waited for on its way."""
    for batch in batches:
        marks.begin("copy")
        yield batch


def _endless(job: FoldJob, session: Session, order: EpochOrder, loader: Batches[TrainBatch]) -> Iterator[TrainBatch]:
    while True:
        seed_everything(job.seed, job.fold, EPOCH, session.progress.epoch)
        order.epoch = session.progress.epoch
        yield from loader
        session.progress.epoch += 1


def _trace(
    job: FoldJob, machine: Machine, session: Session, batches: Iterator[TrainBatch], steps: int, path: Path
) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if machine.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        _train(job, machine, session, batches, Marks(machine.device, named=True), steps, "trace")
    files.write_atomic(path, lambda temporary: found.export_chrome_trace(str(temporary)))
