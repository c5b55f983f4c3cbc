"""The time budget: when to stop, and which networks to run in which order. Pure arithmetic: seconds in, a plan out.

A unit is one trained network (a member's fold) on all images. Out-of-fold rows are each predicted by one network of a
member, so they say what a member's first unit is worth and nothing of the further ones. Those average out the chance of a
single training, the less the more there are: the variance of a mean of f falls by 1 / (f (f + 1)) with the next. In the one
currency of gain per second, a further unit of a member with all the weight counts as half of what a further member
gained on average, times that; half, because networks of one kind err more alike than those of two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Quality = Callable[[frozenset[str]], float]
"""A set of members → how good their blend is, larger is better; of the empty set, how good the prior is."""
Weigh = Callable[[frozenset[str]], Mapping[str, float]]
"""A set of members → the weight of each in their blend."""

ALIKE = 0.5
"""What a further unit of a member is worth, over a further member (see above)."""
SLACK = 1.05
"""A unit is begun where so many times its estimate is left."""
AMPLE = 1.25
"""Nothing is left out where so many times the estimate for everything is left."""
CRUMB = 1e-9


@dataclass(frozen=True)
class Deadline:
    """``seconds`` from ``started`` on the clock ``now``; work ends ``margin`` seconds before."""

    seconds: float
    started: float
    now: Callable[[], float] = time.monotonic

    @property
    def margin(self) -> float:
        """2 % of the budget, and a minute where the budget is ten times that; for the last write, and what comes after."""
        return max(0.02 * self.seconds, min(60.0, 0.1 * self.seconds))

    @property
    def stop(self) -> float:
        return self.started + self.seconds - self.margin

    def left(self) -> float:
        """Seconds of work that are left; negative when it is over."""
        return self.stop - self.now()

    def used(self) -> float:
        return self.now() - self.started


@dataclass(frozen=True)
class Candidate:
    """A member that may run: ``seconds`` of each of its units that are not done, in their order; ``done`` units so far."""

    name: str
    seconds: tuple[float, ...]
    done: int = 0


@dataclass(frozen=True)
class Step:
    """A unit of a plan: the ``number``-th of ``member`` (from 1), which takes ``seconds`` and ends ``ends`` seconds after
    the plan's start. ``members``: those of which something is done then, and ``quality`` is that of their blend."""

    member: str
    number: int
    seconds: float
    ends: float
    members: frozenset[str]
    quality: float


@dataclass
class _State:
    """What is done, and what waits; ``ends``: when the last unit ends, ``limit``: when all must have ended."""

    waiting: dict[str, list[float]]
    done: dict[str, int]
    limit: float
    reading: float
    ends: float = 0.0
    steps: list[Step] = field(default_factory=list)

    @property
    def members(self) -> frozenset[str]:
        return frozenset(name for name, count in self.done.items() if count)

    def fits(self, name: str, chosen: Sequence[str]) -> bool:
        """Whether the next unit of a member ends in time, and leaves that to the first units of the ``chosen`` members."""
        reserved = sum(self.waiting[each][0] for each in chosen if each != name and not self.done[each])
        later = bool(self.steps) and (name not in chosen or self.done[name] > 0)
        return _fits(self.ends, self.waiting[name][0], self.reading, self.limit - reserved, later)

    def take(self, name: str, quality: Quality) -> None:
        seconds = self.waiting[name].pop(0)
        self.done[name] += 1
        self.ends = _end(self.ends, seconds, self.reading)
        self.steps.append(Step(name, self.done[name], seconds, self.ends, self.members, quality(self.members)))


def plan(
    candidates: Sequence[Candidate],
    quality: Quality,
    weights: Weigh,
    seconds: float,
    needed: Iterable[str],
    reading: float = 0.0,
) -> list[Step]:
    """The units to run in ``seconds``, in the order of gain per second; each fits into what those before it leave.

    ``needed``: members without which the blend of all is not complete. Where there is ample time only these run, all of
    them. Else members are chosen greedily by gain per second, and the choice is compared with the one that begins with
    the best single member that fits: a cheap first choice may leave no room for a much better one (Khuller, Moss and
    Naor 1999, for the budgeted maximum coverage problem). ``reading``: seconds before which no unit can end, since the
    images are still being read; the next follows the first that is so held up.
    """
    needed = frozenset(needed)
    state = _State(
        {candidate.name: list(candidate.seconds) for candidate in candidates},
        {candidate.name: candidate.done for candidate in candidates},
        seconds,
        reading,
    )
    total = sum(sum(candidate.seconds) for candidate in candidates if candidate.name in needed)
    ample = (total + reading) * AMPLE <= seconds
    pool = needed if ample else frozenset(candidate.name for candidate in candidates)
    chosen = _choose(candidates, pool, quality, seconds, reading)
    typical = _typical_gain(chosen, state.members, quality)
    while True:
        best, name = 0.0, ""
        for candidate in candidates:  # of equals the one that was named first
            waiting = state.waiting[candidate.name]
            if not waiting or candidate.name not in pool or not state.fits(candidate.name, chosen):
                continue
            takes = _end(state.ends, waiting[0], reading) - state.ends
            worth = _value(candidate.name, state, chosen, needed, quality, weights, typical) / max(takes, CRUMB)
            if worth > best:
                best, name = worth, candidate.name
        if not name:
            return state.steps
        state.take(name, quality)


def _end(before: float, seconds: float, reading: float) -> float:
    return max(before + seconds, reading)


def _fits(before: float, seconds: float, reading: float, limit: float, later: bool) -> bool:
    """Whether a unit that begins at ``before`` ends in time; ``later`` ones need some slack."""
    return _end(before, seconds * (SLACK if later else 1.0), reading) <= limit


def _choose(
    candidates: Sequence[Candidate], pool: frozenset[str], quality: Quality, limit: float, reading: float
) -> list[str]:
    """The members whose first units fit and gain, in the order of gain per second."""
    first = {
        candidate.name: candidate.seconds[0] for candidate in candidates if candidate.seconds and not candidate.done
    }
    begun = frozenset(candidate.name for candidate in candidates if candidate.done)
    open_ = [name for name in first if name in pool and _end(0.0, first[name], reading) <= limit]
    plain = _greedy(open_, first, begun, quality, limit, reading, [])
    if begun or not open_:
        return plain
    best = max(open_, key=lambda name: (_number(quality(frozenset([name]))), -open_.index(name)))
    other = _greedy(open_, first, begun, quality, limit, reading, [best])
    reached = [_number(quality(begun | frozenset(names))) for names in (plain, other)]
    return other if reached[1] > reached[0] or not plain else plain


def _greedy(
    names: Sequence[str],
    seconds: Mapping[str, float],
    begun: frozenset[str],
    quality: Quality,
    limit: float,
    reading: float,
    chosen: list[str],
) -> list[str]:
    chosen = list(chosen)
    ends = 0.0
    for name in chosen:
        ends = _end(ends, seconds[name], reading)
    while True:
        now = begun | frozenset(chosen)
        rest = [
            name for name in names if name not in chosen and _fits(ends, seconds[name], reading, limit, bool(chosen))
        ]
        takes = {name: _end(ends, seconds[name], reading) - ends for name in rest}
        gains = {name: _gain(quality, now, name) / max(takes[name], CRUMB) for name in rest}
        best = max(gains.values(), default=0.0)
        if best <= 0:
            return chosen
        name = next(name for name in rest if gains[name] == best)
        chosen.append(name)
        ends = _end(ends, seconds[name], reading)


def _value(
    name: str,
    state: _State,
    chosen: Sequence[str],
    needed: frozenset[str],
    quality: Quality,
    weights: Weigh,
    typical: float,
) -> float:
    """What the next unit of a member is worth; 0 for one that is not wanted."""
    done = state.done[name]
    if done:
        weight = weights(state.members).get(name, 0.0)
        return max(ALIKE * typical * weight / (done * (done + 1)), CRUMB**2 if name in needed else 0.0)
    if name in chosen:
        return max(_gain(quality, state.members, name), CRUMB)
    # What gains nothing comes last, and only where the blend of all is made of it.
    return CRUMB**2 if name in needed else 0.0


def _typical_gain(chosen: Sequence[str], begun: frozenset[str], quality: Quality) -> float:
    """The mean gain of the members that came after the first."""
    gains = []
    now = begun
    for name in chosen:
        if now:
            gains.append(_gain(quality, now, name))
        now = now | {name}
    gains = [gain for gain in gains if gain > 0 and math.isfinite(gain)]
    return sum(gains) / len(gains) if gains else CRUMB


def _gain(quality: Quality, now: frozenset[str], name: str) -> float:
    """By how much a blend is better with a member; where no score is defined, just above nothing."""
    before, after = quality(now), quality(now | {name})
    if math.isfinite(before) and math.isfinite(after):
        return after - before
    if not now:
        return 1.0 if math.isfinite(after) else CRUMB
    return 0.0


def _number(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
