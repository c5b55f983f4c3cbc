"""The phases of a training, resolved: what holds in each epoch, and the clock that its rate goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from goldfold.config.consistency import merged
from goldfold.config.schema import Augment, Mix, Optim, Schedule
from goldfold.config.training import Stages
from goldfold.errors import BadInput
from goldfold.schedules import Clock, check_schedule, lr_factor, momentum_at
from goldfold.training.job import Recipe


@dataclass(frozen=True)
class Stretch:
    """A phase, or the part of it before or after pseudo-labels end, with every setting filled in.

    ``number``: of the phase, from 0; ``first``: its first epoch, from 0; ``size`` in pixels; ``pseudo``: whether it
    trains on pseudo-labelled rows, where there are any.
    """

    number: int
    first: int
    epochs: int
    size: int
    batch_size: int
    accumulate: int
    optim: Optim
    augment: Augment
    mix: Mix
    frozen: Stages
    restart: bool
    reset: bool
    pseudo: bool = True

    @property
    def end(self) -> int:
        return self.first + self.epochs


def make_plan(recipe: Recipe) -> tuple[Stretch, ...]:
    """``train.phases`` over the experiment's own settings; one stretch where there are none.

    The optimizer's state is reset where a phase says so or names another optimizer. The last
    ``teacher.pseudo.cool_down`` epochs are stretches without pseudo-labels, which go on with schedule and state. Raises
    BadInput when a phase would keep the state of another optimizer, and on milestones that never come.
    """
    plan = _stretches(recipe)
    if recipe.teacher.pseudo.cool_down:
        plan = _cooled(plan, recipe.train.epochs - recipe.teacher.pseudo.cool_down)
    for begin, end in _schedules(plan):
        check_schedule(recipe.schedule, sum(stretch.epochs for stretch in plan[begin:end]))
    return plan


def _schedules(plan: Sequence[Stretch]) -> list[tuple[int, int]]:
    """From and to (not included) of the stretches that share one run of the schedule."""
    begins = [place for place, stretch in enumerate(plan) if stretch.restart]
    return list(zip(begins, [*begins[1:], len(plan)], strict=True))


def _stretches(recipe: Recipe) -> tuple[Stretch, ...]:
    train = recipe.train
    if not train.phases:
        whole = Stretch(
            number=0,
            first=0,
            epochs=train.epochs,
            size=recipe.input.size,
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            optim=recipe.optim,
            augment=recipe.augment,
            mix=recipe.mix,
            frozen=recipe.model.freeze.stages,
            restart=True,
            reset=False,
        )
        return (whole,)
    plan: list[Stretch] = []
    for number, phase in enumerate(train.phases):
        where = f"train.phases[{number}]"
        given = {"name": phase.optimizer} if isinstance(phase.optimizer, str) else dict(phase.optimizer or {})
        optim = merged(recipe.optim, given | ({} if phase.lr is None else {"lr": phase.lr}), f"{where}.optimizer")
        changed = bool(plan) and plan[-1].optim.name != optim.name
        if changed and phase.state == "keep":
            raise BadInput(
                f"{where}.state",
                f"{optim.name} cannot go on with the state of {plan[-1].optim.name}",
                "set it to reset, or leave it out",
            )
        plan.append(
            Stretch(
                number=number,
                first=plan[-1].end if plan else 0,
                epochs=phase.epochs,
                size=phase.size or recipe.input.size,
                batch_size=phase.batch_size or train.batch_size,
                accumulate=phase.accumulate or train.accumulate,
                optim=optim,
                augment=merged(recipe.augment, phase.augment, f"{where}.augment"),
                mix=merged(recipe.mix, phase.mix, f"{where}.mix"),
                frozen=recipe.model.freeze.stages if phase.frozen is None else phase.frozen,
                restart=number == 0 or phase.schedule == "restart",
                reset=changed or phase.state == "reset",
            )
        )
    return tuple(plan)


def _cooled(plan: Sequence[Stretch], epoch: int) -> tuple[Stretch, ...]:
    """The plan without pseudo-labels from epoch ``epoch`` (from 0) on: the stretch that it falls into becomes two."""
    cooled: list[Stretch] = []
    for stretch in plan:
        before = min(max(epoch - stretch.first, 0), stretch.epochs)
        if before:
            cooled.append(replace(stretch, epochs=before))
        if before == 0:
            cooled.append(replace(stretch, pseudo=False))
        elif before < stretch.epochs:
            rest = stretch.epochs - before
            cooled.append(replace(stretch, first=epoch, epochs=rest, restart=False, reset=False, pseudo=False))
    return tuple(cooled)


def at_epoch(plan: Sequence[Stretch], epoch: int) -> Stretch:
    """The stretch that epoch ``epoch`` (from 0) belongs to; the last one after the end."""
    return next((stretch for stretch in plan if epoch < stretch.end), plan[-1])


@dataclass(frozen=True)
class Pace:
    """The rate of every optimizer step, as a pure function of the step.

    ``steps``: optimizer steps an epoch, a number a stretch. The schedule runs over a stretch and those that continue
    it; the last ``swa_epochs`` are left out of it and have a constant rate (Izmailov et al. 2018).
    """

    plan: tuple[Stretch, ...]
    steps: tuple[int, ...]
    schedule: Schedule
    swa_epochs: int = 0
    swa_factor: float = 1.0

    def factor(self, stretch: Stretch, step: int) -> float:
        """The rate of global step ``step`` over the stretch's peak rate."""
        clock, start = self._clock(stretch)
        if step - start >= clock.total:
            return self.swa_factor
        return lr_factor(self.schedule, step - start, clock)

    def momentum(self, stretch: Stretch, step: int) -> float | None:
        clock, start = self._clock(stretch)
        return momentum_at(self.schedule, min(step - start, clock.total - 1), clock) if clock.total else None

    def _clock(self, stretch: Stretch) -> tuple[Clock, int]:
        """The clock of the schedule that covers the stretch, and the global step at which it starts."""
        place = next(place for place, other in enumerate(self.plan) if other.first == stretch.first)
        begin, end = next((begin, end) for begin, end in _schedules(self.plan) if begin <= place < end)
        start = sum(self.plan[k].epochs * self.steps[k] for k in range(begin))
        scheduled = self.plan[-1].end - self.swa_epochs
        starts = [0]
        for part, steps in zip(self.plan[begin:end], self.steps[begin:end], strict=True):
            for epoch in range(part.first, part.end):
                if epoch < scheduled:
                    starts.append(starts[-1] + steps)
        return Clock(tuple(starts)), start
