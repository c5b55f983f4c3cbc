"""Members' predictions side by side, with an order of rows that depends on what the rows hold and on nothing else.

A sum of many numbers depends on their order in its last bits, and a search that compares sums can then end elsewhere.
So fitting never walks through rows as they were given: each row has a key, a hash of its predictions and its target,
and rows are taken by ascending key. The same keys draw a sample: the rows with the smallest keys are as good as random.
A row's key depends on no other row, so the choice among the rows of some folds cannot know the labels of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goldfold.records import Floats, Ints
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

Keys = npt.NDArray[np.uint64]

RARE = 50
"""A sample keeps at least so many rows of each class, if there are as many."""


@dataclass(frozen=True, eq=False)
class Stack:
    """M members' predictions for the same N rows. Nothing is copied: ``members`` are the arrays (N, C) as given."""

    members: tuple[Floats, ...]
    targets: Floats
    keys: Keys
    seed: int

    @staticmethod
    def of(members: Sequence[Floats], targets: Floats, seed: int = 0) -> Stack:
        """A stack of M arrays (N, C) and (N, C) targets."""
        return Stack(tuple(members), targets, row_keys([*members, targets], seed), seed)

    def ordered(self, rows: Ints | None = None) -> Ints:
        """``rows`` (default: all) by ascending key."""
        given = np.arange(len(self.targets)) if rows is None else rows
        return given[np.argsort(self.keys[given], kind="stable")]

    def sample(self, rows: Ints, task: Task, limit: int) -> Ints:
        """About ``limit`` of ``rows`` (ordered), each class in proportion but with at least ``RARE`` rows; ordered.

        Multilabel and regression rows are drawn without regard to their targets. With few enough rows, all of them.
        """
        if len(rows) <= limit:
            return rows
        if not task.one_class_each:
            return rows[:limit]
        classes = np.asarray(task.truth(self.targets[rows]))
        kept = np.zeros(len(rows), dtype=bool)
        for number in np.unique(classes):
            own = np.flatnonzero(classes == number)
            kept[own[: max(round(len(own) * limit / len(rows)), RARE)]] = True
        return rows[kept]


def row_keys(tables: Sequence[Floats], seed: int = 0) -> Keys:
    """A 64-bit hash (N,) of each row across ``tables``, arrays of N rows: FNV-1a over float32 words, then SplitMix64.

    Whole numbers only, so nothing depends on threads or on the machine.
    """
    keys = np.full(len(tables[0]), 0xCBF29CE484222325 ^ derive_seed(seed), dtype=np.uint64)
    for table in tables:
        words = np.ascontiguousarray(table, dtype=np.float32).view(np.uint32)
        for column in range(words.shape[1]):
            keys ^= words[:, column]
            keys *= np.uint64(0x100000001B3)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys
