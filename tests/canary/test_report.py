"""The verdict: red before blind before green, and silence counts only where something could have been carried."""

from __future__ import annotations

from goldfold.canary.checks import Check, Control
from goldfold.canary.report import Report
from goldfold.canary.settings import Listener

ROUNDS = (
    Listener("first", "train", (), False),
    Listener("inner", "distill", ("first",), False),
    Listener("blend", "ensemble", ("first", "inner"), False),
    Listener("by-run", "pseudo_label", ("inner",), False),
    Listener("by-blend", "pseudo_label", ("blend", "inner"), False),
)


def report(memories: dict[str, float], leak: str = "") -> Report:
    checks = [
        Check(entry.name, "pool", 40, 0.3, 0.3, 0.2, 0.4, 0.2, 0.5, "leak" if entry.name == leak else "chance")
        for entry in ROUNDS
    ]
    controls = tuple(
        Control(name, twins, 40, 0.5, 0.3, memory) for name, memory in memories.items() for twins in ("pool", "planted")
    )
    return Report("p", ROUNDS, tuple(checks), controls, "accuracy", (), (), {}, {})


def test_students_of_teachers_that_remember_nothing_are_deaf() -> None:
    memories = {"first": 0.9, "inner": 0.1, "by-run": 0.9, "by-blend": 0.9}
    found = report(memories)
    assert [(name, round(memory, 3)) for name, memory in found.deaf] == [("by-run", 0.1)]  # by-blend: (0.5 + 0.1) / 2
    assert found.verdict == "blind"
    assert any(line.startswith("blind: the teachers of by-run remember 0.10") for line in found.verdict_lines())
    assert report(memories | {"inner": 0.3}).verdict == "green"
    assert [name for name, _ in report(memories | {"first": 0.6}).deaf] == ["by-run", "by-blend"]


def test_an_alarm_is_no_silence() -> None:
    found = report({"first": 0.9, "inner": 0.1, "by-run": 0.9, "by-blend": 0.9}, leak="by-run")
    assert (found.verdict, found.deaf) == ("red", [])
