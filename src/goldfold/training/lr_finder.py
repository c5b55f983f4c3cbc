"""The learning-rate range test (Smith 2017): train while the rate grows, and watch the loss. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from goldfold.data import TrainBatch, prefetched
from goldfold.lr_range import diverged, ramp
from goldfold.machine import Machine
from goldfold.progress import progress
from goldfold.seeds import seed_everything
from goldfold.training.job import EPOCH, FoldJob
from goldfold.training.loop import backward, update
from goldfold.training.session import make_loader, peak_rate, start
from goldfold.training.window import Window


@dataclass(frozen=True)
class LrRange:
    """``losses[i]``: the loss before the optimizer step at ``rates[i]``, a value of ``optim.lr``."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]


def find_lr_range(job: FoldJob, machine: Machine, lowest: float, highest: float, steps: int) -> LrRange:
    """Up to ``steps`` optimizer steps of the first phase at rates from ``lowest`` to ``highest``, until the loss explodes.

    Accumulation, mixed precision and clipping are those of the configuration; the schedule takes no part.
    """
    session = start(job, machine)
    stretch = session.stretch
    order, loader = make_loader(job, machine, session, stretch)
    rates, losses = ramp(lowest, highest, steps), list[float]()
    session.wrapped.train()
    batches: Iterator[TrainBatch] = iter(())
    for rate in progress(rates, "lr-find", steps, "steps"):
        step = Window(session, f"{job.run} lr-find")
        for left in reversed(range(stretch.accumulate)):
            batch = next(batches, None)
            if batch is None:  # another epoch begins
                order.epoch = session.progress.epoch = session.progress.epoch + 1
                seed_everything(job.seed, job.fold, EPOCH, order.epoch)
                batches = prefetched(loader, machine.device)
                batch = next(batches)
            number = session.progress.step * stretch.accumulate
            run = partial(backward, job, machine, session, batch, number, stretch.accumulate)
            step.add(run, len(batch.targets), last=not left)
        # All processes must agree on when to stop.
        total = sum(float(session.accelerator.reduce(loss, "mean")) for loss in step.settle())
        losses.append(total / stretch.accumulate)
        if diverged(losses):
            break
        update(session, peak_rate(stretch, session.accelerator, rate))
    return LrRange(tuple(rates[: len(losses)]), tuple(losses))
