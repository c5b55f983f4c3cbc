"""The learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from goldfold.config.schema import Schedule
from goldfold.errors import BadInput, some

TINY = 1e-9
"""Epochs that are equal but for rounding."""


@dataclass(frozen=True)
class Clock:
    """``starts``: the optimizer step at which each epoch begins, and the number of steps in all at the end.

    Epochs may differ in their numbers of steps, since phases differ in batch size.
    """

    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] != 0 or list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"a clock's starts rise from 0, got {self.starts}")

    @classmethod
    def even(cls, epochs: int, steps_per_epoch: int) -> Clock:
        return cls(tuple(range(0, epochs * steps_per_epoch + 1, steps_per_epoch)))

    @property
    def total(self) -> int:
        """Steps."""
        return self.starts[-1]

    @property
    def epochs(self) -> int:
        return len(self.starts) - 1

    def step_at(self, epoch: float) -> float:
        """Linear within each epoch; after the end as if the last epoch went on."""
        if not self.epochs:
            return 0.0
        number = min(max(math.floor(epoch), 0), self.epochs - 1)
        first, after = self.starts[number : number + 2]
        return first + (epoch - number) * (after - first)

    def epoch_at(self, step: float) -> float:
        """The inverse of ``step_at``."""
        if not self.epochs:
            return 0.0
        number = min(max(bisect_right(self.starts, step) - 1, 0), self.epochs - 1)
        first, after = self.starts[number : number + 2]
        return number + (step - first) / (after - first)


def check_schedule(schedule: Schedule, epochs: int) -> None:
    """Raises BadInput on milestones that never come in a training of ``epochs`` epochs."""
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if late:
        raise BadInput(
            "schedule.milestones",
            f"{some(f'{milestone:g}' for milestone in late)} never comes in {epochs} epochs",
            "leave it out or train longer",
        )


def lr_factor(schedule: Schedule, step: int, clock: Clock) -> float:
    """The rate of optimizer step ``step`` (0 to ``clock.total - 1``) over the peak rate.

    The schedule proper begins on the last step of the linear warm-up, whose steps have (step + 1) / warm-up steps of its
    first value, so that nothing jumps (Goyal et al. 2017). linear, cosine, polynomial and cosine_restarts run from there
    to the last step. step, multi_step and exponential count their epochs from the start of the training, so warm-up
    rises to wherever they have got to. plateau is 1: its decays hang on scores, see ``plateau_factor``.

    ``min_factor`` is where linear, cosine, polynomial, one_cycle and each cycle of cosine_restarts end, and a floor of
    step, multi_step and exponential; triangular has start_factor. Raises BadInput when a cycle is shorter than a step.
    """
    warmup = min(round(clock.step_at(schedule.warmup_epochs)), clock.total)
    if step < warmup:
        return (step + 1) / warmup * _curve(schedule, warmup - 1, warmup, clock)
    return _curve(schedule, step, warmup, clock)


def momentum_at(schedule: Schedule, step: int, clock: Clock) -> float | None:
    """Momentum (or first beta) of optimizer step ``step``, falling as the rate rises; None where it is left as it is.

    By cosine halves in one_cycle (Smith and Topin 2018), linear in triangular, where each cycle swings all the way.
    """
    if schedule.momentum_cycle is None:
        return None
    at_lowest, at_peak = schedule.momentum_cycle
    if schedule.name == "triangular":
        first, after, _ = _cycle(schedule, step, 0, clock)
        return at_lowest + (at_peak - at_lowest) * _triangle((step - first) / (after - first))
    done = step / max(clock.total - 1, 1)
    if done < schedule.peak_at:
        return _cosine(at_lowest, at_peak, done / schedule.peak_at)
    return _cosine(at_peak, at_lowest, (done - schedule.peak_at) / (1 - schedule.peak_at))


def plateau_factor(schedule: Schedule, scores: Sequence[float | None], greater_is_better: bool) -> float:
    """gamma for each time that more than ``patience`` validations in a row brought no gain above ``threshold``.

    ``scores``: all so far, None where there is none, which is no gain. Counted as torch's ReduceLROnPlateau counts with
    an absolute threshold and no cooldown; never below ``min_factor``; 1 for every other schedule.
    """
    if schedule.name != "plateau":
        return 1.0
    best, stale, decays = -math.inf, 0, 0
    for score in scores:
        value = -math.inf if score is None else score if greater_is_better else -score
        if value > best + schedule.threshold:
            best, stale = value, 0
        else:
            stale += 1
        if stale > schedule.patience:
            decays, stale = decays + 1, 0
    return max(schedule.gamma**decays, schedule.min_factor)


def _curve(schedule: Schedule, step: int, warmup: int, clock: Clock) -> float:
    """The schedule proper, from the last of ``warmup`` steps on."""
    name, least, start = schedule.name, schedule.min_factor, max(warmup - 1, 0)
    done = min((step - start) / max(clock.total - 1 - start, 1), 1.0)
    if name == "linear":
        return least + (1 - least) * (1 - done)
    if name == "cosine":  # Loshchilov and Hutter 2017
        return _cosine(1.0, least, done)
    if name == "polynomial":
        return least + (1 - least) * (1 - done) ** schedule.power
    if name == "one_cycle":  # Smith and Topin 2018; cosine halves as fastai has them
        if done < schedule.peak_at:
            return _cosine(schedule.start_factor, 1.0, done / schedule.peak_at)
        return _cosine(1.0, least, (done - schedule.peak_at) / (1 - schedule.peak_at))
    if name == "cosine_restarts":  # SGDR, Loshchilov and Hutter 2017; each cycle's last step is at its valley
        first, after, number = _cycle(schedule, step, warmup, clock)
        peak = max(schedule.cycle_decay**number, least)
        return _cosine(peak, least, (step - first) / max(after - 1 - first, 1))
    if name == "triangular":  # Smith 2017
        first, after, number = _cycle(schedule, step, warmup, clock)
        peak = max(schedule.cycle_decay**number, schedule.start_factor)
        return schedule.start_factor + (peak - schedule.start_factor) * _triangle((step - first) / (after - first))
    epoch = clock.epoch_at(step) + TINY
    if name == "step":
        return max(schedule.gamma ** math.floor(epoch / schedule.decay_epochs), least)
    if name == "multi_step":
        return max(schedule.gamma ** bisect_right(schedule.milestones, epoch), least)
    if name == "exponential":
        return max(schedule.gamma ** (clock.epoch_at(step) / schedule.decay_epochs), least)
    return 1.0


def _cycle(schedule: Schedule, step: int, warmup: int, clock: Clock) -> tuple[int, int, int]:
    """First step, step after the last, and number of the cycle that ``step`` lies in.

    The last one may reach beyond the end. Cycles count their epochs from the end of warm-up; the first one takes the
    last warm-up step with it.
    """
    first, number, length = max(warmup - 1, 0), 0, schedule.cycle_epochs
    end = clock.epoch_at(warmup) + length
    while (after := round(clock.step_at(end) + TINY)) <= step:
        if after <= first:
            break
        first, number, length = after, number + 1, length * schedule.cycle_mult
        end += length
    if after <= first:
        raise BadInput(
            "schedule.cycle_epochs",
            f"a cycle of {schedule.cycle_epochs:g} epochs is shorter than a step",
            "lengthen it",
        )
    return first, after, number


def _cosine(begin: float, end: float, done: float) -> float:
    """Half a cosine from ``begin`` (done 0) to ``end`` (done 1)."""
    return end + (begin - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _triangle(done: float) -> float:
    """Up from 0 to 1 at half of the way, and down again."""
    return 1 - abs(2 * done - 1)
