"""A row of the table: its goal, its raw samples, and the figure that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from goldfold.errors import GoldfoldError
from goldfold.progress import say

Kind = Literal["rate_ratio", "seconds", "growth"]
Sample = dict[str, float]
"""rate_ratio: ``amount`` in ``seconds`` against ``base_amount`` in ``base_seconds``; seconds: ``seconds``; growth: ``peak``
and ``base_peak`` in MB. A row may add figures of its own."""


class CannotMeasure(GoldfoldError):
    """Why a row has no figure on this machine."""


@dataclass(frozen=True)
class Goal:
    """What is to be reached: at least ``number`` of a ratio, less than it of seconds and growth."""

    kind: Kind
    number: float

    @property
    def text(self) -> str:
        if self.kind == "rate_ratio":
            return f"≥ {self.number:g}"
        return f"< {self.number:g} s" if self.kind == "seconds" else f"< {self.number:.0%}"

    def reached(self, figure: float) -> bool:
        return figure >= self.number if self.kind == "rate_ratio" else figure < self.number


@dataclass(frozen=True)
class Measurement:
    """Samples of one row; ``details``: what was measured, on what; ``notes``: lines for the reader.

    ``spoilt``: why the goal is missed whatever the figure says (a score that got worse).
    """

    samples: tuple[Sample, ...]
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spoilt: str | None = None


@dataclass(frozen=True)
class Row:
    """``name`` and ``group`` are what --only takes."""

    name: str
    group: str
    title: str
    goal: Goal
    measure: Callable[[], Measurement]


def figure_of(kind: Kind, sample: Mapping[str, float]) -> float:
    """One sample's figure."""
    if kind == "seconds":
        return sample["seconds"]
    if kind == "growth":
        return sample["peak"] / sample["base_peak"] - 1
    return (sample["amount"] / sample["seconds"]) / (sample["base_amount"] / sample["base_seconds"])


def run_row(row: Row) -> dict[str, Any]:
    """Measure a row; the record that JSON and page hold. What cannot be measured says why."""
    record: dict[str, Any] = {
        "name": row.name,
        "group": row.group,
        "title": row.title,
        "kind": row.goal.kind,
        "goal": row.goal.number,
        "goal_text": row.goal.text,
        "samples": [],
        "figure": None,
        "reached": None,
        "why": None,
        "details": {},
        "notes": [],
    }
    say(f"bench: {row.title}")
    try:
        found = row.measure()
    except (GoldfoldError, RuntimeError, MemoryError, OSError) as error:
        # One row's failure, such as a full GPU, must not cost the others.
        return record | {"why": _one_line(error)}
    return record | conclude(row.goal, found)


def conclude(goal: Goal, found: Measurement) -> dict[str, Any]:
    figures = [figure_of(goal.kind, sample) for sample in found.samples]
    middle = median(figures)
    return {
        "samples": [dict(sample) for sample in found.samples],
        "figure": {"median": middle, "min": min(figures), "max": max(figures)},
        "reached": goal.reached(middle) and found.spoilt is None,
        "why": found.spoilt,
        "details": found.details,
        "notes": list(found.notes),
    }


def take_turns(
    repeats: int, ours: Callable[[], tuple[float, float]], base: Callable[[], tuple[float, float]], slices: int = 1
) -> tuple[Sample, ...]:
    """Measure two things in turns, so that a slow minute of the machine slows both. Each gives an amount and its seconds.

    A sample is the sum of ``slices`` turns of each: the shorter they are, the more of the machine's moods they share.
    """
    samples = []
    for number in range(repeats):
        sample: Sample = dict.fromkeys(("amount", "seconds", "base_amount", "base_seconds"), 0.0)
        for turn in range(number, number + slices):
            for ours_now in (True, False) if turn % 2 == 0 else (False, True):  # each goes first every other time
                amount, seconds = ours() if ours_now else base()
                sample["amount" if ours_now else "base_amount"] += amount
                sample["seconds" if ours_now else "base_seconds"] += seconds
        samples.append(sample)
    return tuple(samples)


def rates(samples: Sequence[Sample]) -> dict[str, float]:
    """Median rates of both sides, for the reader: amounts a second."""
    return {
        "per_second": round(median(each["amount"] / each["seconds"] for each in samples), 2),
        "base_per_second": round(median(each["base_amount"] / each["base_seconds"] for each in samples), 2),
    }


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:300]
