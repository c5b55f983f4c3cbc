"""Where a score would lie by chance: the same predictions against the labels of their fold in any other order.

The predictions of fold k's rows must not depend on fold k's labels. Then each order of these labels within the fold is
equally likely, and the score's distribution over the orders is its null distribution (a permutation test: Fisher 1935;
Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goldfold.records import Floats
from goldfold.tasks import Task

Doubles = npt.NDArray[np.float64]
WIDENING = float(np.sqrt(2))
"""How much further from chance a score may lie than single orders of one fold's labels say.

The folds are not quite independent of each other: a network that remembers says a label of every picture that looks
alike, so two such pictures in two folds speak for each other, and their agreement is counted twice. That at most doubles
the variance of a sum over folds."""
ENOUGH = 30
"""Orders at least as extreme as the observed one, after which p is known well enough (Besag and Clifford 1991)."""
BATCH = 2000
"""Orders at once; the first batch gives the interval that is shown."""


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one fold: ``agreement`` (R, L) of each row's prediction with each of the fold's L labels, ``own`` (R,)
    the place of its own label among them. R may be less than L: not every row of a fold is scored."""

    agreement: Doubles
    own: npt.NDArray[np.int64]

    @property
    def observed(self) -> float:
        return float(self.agreement[np.arange(len(self.own)), self.own].sum())

    @property
    def mean(self) -> float:
        """Expected sum over all orders of the labels."""
        return float(self.agreement.mean(axis=1).sum())

    @property
    def variance(self) -> float:
        """Of the sum over all orders (Hoeffding 1951, "A Combinatorial Central Limit Theorem")."""
        rows, labels = self.agreement.shape
        if labels < 2:
            return 0.0
        square = np.zeros((labels, labels))
        square[:rows] = self.agreement
        centred = square - square.mean(axis=0) - square.mean(axis=1, keepdims=True) + square.mean()
        return float((centred**2).sum() / (labels - 1))

    def draw(self, orders: int, rng: np.random.Generator) -> Doubles:
        """(orders,) sums under random orders of the labels."""
        rows, labels = self.agreement.shape
        places = rng.random((orders, labels), dtype=np.float32).argsort(axis=1)[:, :rows]
        return np.asarray(self.agreement[np.arange(rows), places].sum(axis=1))


@dataclass(frozen=True)
class Chance:
    """A mean score a row against chance. ``low`` and ``high`` hold 95 % of the widened range; ``p`` is two-sided in it, and
    ``deviation`` is its deviation; ``above``: on which side of chance the score is."""

    rows: int
    score: float
    mean: float
    low: float
    high: float
    deviation: float
    p: float

    @property
    def above(self) -> bool:
        return self.score > self.mean


def against_chance(blocks: Sequence[Block], level: float, rng: np.random.Generator) -> Chance:
    """The mean score of all blocks' rows and its place among random orders of the labels, widened by ``WIDENING``.

    So many orders are drawn that p can fall below ``level``; no more than needed where the score is ordinary.
    """
    rows = sum(len(block.own) for block in blocks)
    if not rows:
        raise ValueError("no rows to score")
    observed = sum(block.observed for block in blocks)
    mean = sum(block.mean for block in blocks)
    slack = 1e-9 * max(1.0, abs(observed))  # sums of the same terms in another order are equal
    above = below = drawn = 0
    first: Doubles | None = None
    while drawn < 4 / level:
        sums = np.sum([block.draw(BATCH, rng) for block in blocks], axis=0)
        sums = mean + WIDENING * (sums - mean)
        first = sums if first is None else first
        above += int((sums >= observed - slack).sum())
        below += int((sums <= observed + slack).sum())
        drawn += BATCH
        if min(above, below) >= ENOUGH:
            break
    assert first is not None
    low, high = np.quantile(first, [0.025, 0.975]) / rows
    return Chance(
        rows=rows,
        score=observed / rows,
        mean=mean / rows,
        low=float(low),
        high=float(high),
        deviation=WIDENING * float(np.sqrt(sum(block.variance for block in blocks))) / rows,
        p=min(1.0, 2 * (min(above, below) + 1) / (drawn + 1)),
    )


def agreement(task: Task, values: Floats, targets: Floats) -> Doubles:
    """(R, L): how well each of R predictions (R, C) fits each of L targets (L, C); 1 is perfect.

    The probability of the truth (multilabel: its mean over the labels). Regression: the product of both, in units that
    ``by_rank`` gives.
    """
    given, truth = values.astype(np.float64), targets.astype(np.float64)
    if task.name in ("binary", "multilabel"):
        return np.asarray((given @ truth.T + (1 - given) @ (1 - truth).T) / truth.shape[1])
    if task.name == "regression":
        return np.asarray(given @ truth.T / truth.shape[1])
    return np.asarray(given @ truth.T)


def by_rank(values: Floats, targets: Floats) -> Floats:
    """(R, C) values by their rank among all ``targets`` (M, C), with mean 0 and variance 1 for the targets themselves,
    so that no outlier speaks for all."""
    out = np.empty(values.shape, dtype=np.float32)
    for column in range(targets.shape[1]):
        known = np.sort(targets[:, column])
        below, upto = (np.searchsorted(known, values[:, column], side) for side in ("left", "right"))
        out[:, column] = ((below + upto) / (2 * len(known)) - 0.5) * np.sqrt(12)
    return out
