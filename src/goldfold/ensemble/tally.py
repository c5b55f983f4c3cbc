"""Metrics of hard answers from counts, for many candidate decisions at once.

A search for thresholds asks for a metric hundreds of times. Counts of whole numbers answer all candidates of a line
together and do not depend on the order of rows. ``tests/ensemble/test_decisions.py`` holds each to ``goldfold.metrics``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of T candidates for rows with one of K labels (multilabel: K labels answered by themselves).

    ``truth`` (K,): rows of each label; ``hits`` (T, K): of them answered so; ``answered`` (T, K): answers of each label;
    ``off`` and ``off_squared`` (T,): sums of the distance between label and answer, and of its square.
    """

    truth: Doubles
    hits: Doubles
    answered: Doubles
    off: Doubles
    off_squared: Doubles

    @property
    def rows(self) -> float:
        """Number of rows, where a row has one label."""
        return float(self.truth.sum())


def tally(truth: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], labels: int) -> Tally:
    """The counts of one candidate (T = 1): (N,) labels and (N,) answers, numbers below ``labels``."""
    off = np.abs(truth - answers).astype(np.float64)
    return Tally(
        np.bincount(truth, minlength=labels).astype(np.float64),
        np.bincount(truth[truth == answers], minlength=labels).astype(np.float64)[None],
        np.bincount(answers, minlength=labels).astype(np.float64)[None],
        np.array([off.sum()]),
        np.array([(off**2).sum()]),
    )


def _f1(counts: Tally) -> Doubles:
    """(T, K); NaN for a label that neither truth nor answers hold."""
    return 2 * counts.hits / (counts.truth + counts.answered)


def _accuracy(counts: Tally) -> Doubles:
    return counts.hits.sum(axis=1) / counts.rows


def _balanced_accuracy(counts: Tally) -> Doubles:
    present = counts.truth > 0
    return (counts.hits[:, present] / counts.truth[present]).mean(axis=1)


def _macro_f1(counts: Tally) -> Doubles:
    each = _f1(counts)
    return np.nansum(each, axis=1) / (~np.isnan(each)).sum(axis=1)


def _micro_f1(counts: Tally) -> Doubles:
    return 2 * counts.hits.sum(axis=1) / (counts.truth.sum() + counts.answered.sum(axis=1))


def _qwk(counts: Tally) -> Doubles:
    grades = np.arange(len(counts.truth))
    mean = counts.truth @ grades, counts.answered @ grades
    square = counts.truth @ grades**2, counts.answered @ grades**2
    # The sum of squared distances, were answers dealt to rows by chance.
    expected = square[0] + square[1] - 2 * mean[0] * mean[1] / counts.rows
    return 1 - counts.off_squared / expected


def _mcc(counts: Tally) -> Doubles:
    """Matthews' correlation of several classes (Gorodkin, 2004); 0 where it is undefined, as in scikit-learn."""
    rows = counts.rows
    shared = counts.hits.sum(axis=1) * rows - counts.answered @ counts.truth
    spread = (rows**2 - (counts.answered**2).sum(axis=1)) * (rows**2 - counts.truth @ counts.truth)
    return np.where(spread > 0, shared / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


METRICS: dict[str, Callable[[Tally], Doubles]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda counts: _f1(counts)[:, 1],
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "qwk": _qwk,
    "mcc": _mcc,
    "mae": lambda counts: counts.off / counts.rows,
    "rmse": lambda counts: np.sqrt(counts.off_squared / counts.rows),
}
"""By the metric's name: counts → (T,) values, NaN where undefined. For multilabel, ``macro_f1`` and ``micro_f1`` hold too."""
