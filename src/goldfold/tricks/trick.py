"""What the registry knows of one trick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Section = Literal["A", "B", "C", "D", "E", "F"]


@dataclass(frozen=True)
class Trick:
    """A switch of the training. ``name``: the word of `goldfold ablate`; ``row``: the row of the catalogue it serves.

    ``keys``: dotted configuration keys, or ``rounds.<key>`` of a pipeline's rounds; ``on`` and ``off``: dotted overrides that set them. Empty: no single switch does
    it (``note`` says why). ``card``: the stem of its page in docs/tricks/; ``default`` and ``source`` are text.
    """

    name: str
    section: Section
    title: str
    row: str
    keys: tuple[str, ...]
    card: str
    default: str
    source: str
    on: dict[str, Any] = field(default_factory=dict)
    off: dict[str, Any] = field(default_factory=dict)
    note: str = ""


ADD: dict[str, Any] = {"augment.add": []}
"""Off, for tricks that add a transform. An ablation takes theirs out and leaves the others."""


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    """``on`` of a trick that adds one transform."""
    return {"augment.add": [{name: arguments}]}
