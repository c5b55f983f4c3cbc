"""Decisions fitted to a metric: thresholds, cut points of grades, multipliers of classes.

Line by line: one threshold, cut point or multiplier moves while the others stand still, to where the metric is best, until
none moves. Nothing is drawn, and a move must gain, so the same rows give the same decisions whatever their order, and a
metric that does not care leaves the fixed decisions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from goldfold.config.schema import DecisionMethod
from goldfold.ensemble.rows import Stack
from goldfold.ensemble.tally import METRICS, Doubles, Tally, tally
from goldfold.errors import BadInput
from goldfold.metrics import Metric
from goldfold.records import Floats, Ints
from goldfold.tasks import Decisions, Task

Quality = Callable[[Tally], Doubles]
"""Counts of T candidates → (T,) numbers, larger is better; -inf where the metric is undefined."""

SEARCH_ROWS = 20_000
"""Rows on which class multipliers are searched."""
SWEEPS = 20
CANDIDATES = 256
"""Places of a multiplier that are tried at once."""
COUNTS = 1_000_000
"""Numbers that the counts of one line's candidates may hold: memory, and for few labels every place is tried."""
SMALLEST_GAIN = 1e-9
WIDEST = 20.0
"""A multiplier lies between one over this and this."""
MOST_CLASSES = 100


def decides(metric: Metric, task: Task) -> bool:
    """Whether ``metric`` sees hard answers of this task, so that decisions change it."""
    return metric.needs == "label" or (task.name == "ordinal" and metric.needs == "value")


def check_decisions(method: DecisionMethod, task: Task, metric: Metric) -> None:
    """Raises BadInput when there is nothing to fit for this task and metric."""
    if method == "fixed":
        return
    mend = "use decisions: fixed"
    if task.name == "regression":
        raise BadInput("decisions", "a regression's answers are values, which nothing decides", mend)
    if not decides(metric, task):
        raise BadInput("decisions", f"'{metric.name}' judges probabilities, so fitted decisions would do nothing", mend)
    if metric.name not in METRICS:
        raise BadInput("decisions", f"they cannot be fitted to the metric '{metric.name}'", mend)
    if task.name == "multiclass" and len(task.classes) > MOST_CLASSES:
        raise BadInput("decisions", f"{len(task.classes)} multipliers would fit chance (at most {MOST_CLASSES})", mend)


def fixed_decisions(task: Task) -> Decisions:
    """What ``Task.decide`` does without fitted decisions."""
    count = len(task.classes)
    if task.name in ("binary", "multilabel"):
        return Decisions("thresholds", (float(task.threshold),) * count)
    if task.name == "ordinal":
        return Decisions("cut_points", tuple(number + 0.5 for number in range(count - 1)))
    return Decisions("multipliers", (1.0,) * count)


def fit_decisions(
    method: DecisionMethod, values: Floats, targets: Floats, task: Task, metric: Metric
) -> Decisions | None:
    """The decisions that are best for ``metric`` on probabilities ``values`` (N, C) and ``targets`` (N, C).

    None for ``fixed``. A threshold lies half-way between two values, so that rounding decides nothing. Thresholds that
    maximise F1: Lipton, Elkan and Naryanaswamy 2014; cut points of an expected grade for QWK are Kaggle's old
    ``OptimizedRounder``, here without its random simplex. Raises BadInput as ``check_decisions`` does.
    """
    check_decisions(method, task, metric)
    start = fixed_decisions(task)
    if method == "fixed":
        return None
    if len(values) == 0:
        return start

    def quality(counts: Tally) -> Doubles:
        with np.errstate(all="ignore"):
            found = METRICS[metric.name](counts)
        return np.where(np.isfinite(found), found if metric.greater_is_better else -found, -np.inf)

    truth = np.asarray(task.truth(targets)).astype(np.int64)
    if task.name == "binary":
        cuts = _fit_cuts(values[:, 0].astype(np.float64), truth, start.values, 1.0, quality)
        return Decisions("thresholds", cuts)
    if task.name == "ordinal":
        cuts = _fit_cuts(task.expected_grade(values), truth, start.values, len(task.classes) - 1.0, quality)
        return Decisions("cut_points", cuts)
    if task.name == "multilabel":
        return Decisions("thresholds", _fit_labels(values, truth, task.threshold, quality))
    found = Decisions("multipliers", _fit_multipliers(values, targets, truth, task, quality))
    count = len(task.classes)
    reached, fixed = (
        quality(tally(truth, task.decide(values, each).astype(np.int64), count))[0] for each in (found, start)
    )
    # A tie that the search broke otherwise than an arg-max does must not make a loss of a gain.
    return found if _gains(float(reached), float(fixed)) else start


def _ties(qualities: Doubles, best: float) -> npt.NDArray[np.bool_]:
    """Which candidates are as good as ``best``, but for rounding."""
    if best == -np.inf:
        return np.ones(len(qualities), dtype=bool)
    return best - qualities <= SMALLEST_GAIN * np.maximum(np.abs(qualities), abs(best))


def _gains(new: float, old: float) -> bool:
    return not _ties(np.array([old]), new)[0] if new > old else False


def _best(qualities: Doubles, distance: Doubles) -> int:
    """The best candidate; of equals the one that is nearest to where it stands."""
    ties = np.flatnonzero(_ties(qualities, float(qualities.max())))
    return int(ties[np.argmin(distance[ties])])


def _line(at: int, low: int, high: int, limit: int, judge: Callable[[Ints], Doubles]) -> tuple[int, float]:
    """The best place of ``low`` to ``high``, and how good it is; ``at`` is where the line stands.

    ``judge``: places (T,) → qualities (T,). At most about ``limit`` places are judged at once: where there are more, an
    even choice of them first, then those around the best.
    """
    while True:
        chosen = np.linspace(low, high, min(limit, high - low + 1)).round().astype(np.int64)
        tried = np.union1d(chosen, [at])
        qualities = judge(tried)
        pick = _best(qualities, np.abs(tried - at).astype(np.float64))
        step = int(np.diff(chosen).max()) if len(chosen) > 1 else 1
        at = int(tried[pick])
        if step == 1:
            return at, float(qualities[pick])
        low, high = max(at - step, low), min(at + step, high)


def _fit_cuts(
    scores: Doubles, truth: Ints, start: tuple[float, ...], highest: float, quality: Quality
) -> tuple[float, ...]:
    """Cut points of ``scores`` (N,), from 0 to ``highest``: ascending; the answer is how many of them a score reaches."""
    labels = len(start) + 1
    distinct, place = np.unique(scores, return_inverse=True)
    # below[d, k]: rows of label k whose score is one of the first d distinct ones.
    below = np.zeros((len(distinct) + 1, labels))
    np.add.at(below, (place + 1, truth), 1)
    below = below.cumsum(axis=0)
    cuts = list(start)
    at = np.array([0, *np.searchsorted(distinct, cuts), len(distinct)], dtype=np.int64)
    apart = np.abs(np.arange(labels)[:, None] - np.arange(labels)).astype(np.float64)  # [label, answer]

    def judge(ends: Ints) -> Doubles:
        """``ends`` (T, labels + 1): between which of the distinct scores each answer is given."""
        given = np.diff(below[ends], axis=1)  # (T, answer, label)
        hits = np.diagonal(given, axis1=1, axis2=2)
        off, squared = (np.einsum("tak,ka->t", given, apart**power) for power in (1, 2))
        return quality(Tally(below[-1], hits, given.sum(axis=2), off, squared))

    def judge_line(line: int, places: Ints) -> Doubles:
        ends = np.tile(at, (len(places), 1))
        ends[:, line] = places
        return judge(ends)

    reached = float(judge(at[None])[0])
    for _ in range(SWEEPS):
        moved = False
        for line in range(1, labels):
            limit = max(COUNTS // labels**2, 16)
            found, value = _line(
                int(at[line]), int(at[line - 1]), int(at[line + 1]), limit, functools.partial(judge_line, line)
            )
            if _gains(value, reached):
                at[line], reached, moved = found, value, True
                cuts[line - 1] = _between(distinct, found, highest)
        if not moved:
            break
    # A cut that never moved may lie beyond one that moved to the same place between two scores.
    return tuple(float(cut) for cut in np.maximum.accumulate(cuts))


def _between(distinct: Doubles, place: int, highest: float) -> float:
    """Half-way between the distinct scores before and after ``place``, or between the outermost and the end."""
    if place == 0:
        return float(distinct[0]) / 2
    if place == len(distinct):
        return float((distinct[-1] + highest) / 2) if distinct[-1] < highest else highest + 0.5
    return float((distinct[place - 1] + distinct[place]) / 2)


def _fit_labels(values: Floats, truth: Ints, threshold: float, quality: Quality) -> tuple[float, ...]:
    """A threshold a label. A label without positives, or without negatives, keeps the fixed one."""
    labels = values.shape[1]
    cuts = [float(threshold)] * labels
    total = truth.sum(axis=0).astype(np.float64)
    answers = values >= np.float64(threshold)
    hits, answered = (answers & (truth == 1)).sum(axis=0).astype(np.float64), answers.sum(axis=0).astype(np.float64)

    def judge(tried_hits: Doubles, tried_answered: Doubles) -> Doubles:
        nothing = np.zeros(len(tried_hits))
        return quality(Tally(total, tried_hits, tried_answered, nothing, nothing))

    def judge_line(label: int, above: Doubles, places: Ints) -> Doubles:
        tried_hits, tried_answered = np.tile(hits, (len(places), 1)), np.tile(answered, (len(places), 1))
        tried_hits[:, label], tried_answered[:, label] = above[1, places], above[:, places].sum(axis=0)
        return judge(tried_hits, tried_answered)

    reached = float(judge(hits[None], answered[None])[0])
    open_labels = [int(label) for label in np.flatnonzero((total > 0) & (total < len(truth)))]
    lines = {label: _above(values[:, label].astype(np.float64), truth[:, label]) for label in open_labels}
    for _ in range(SWEEPS):
        moved = False
        for label, (distinct, above) in lines.items():
            here = int(np.searchsorted(distinct, cuts[label]))
            found, value = _line(
                here, 0, len(distinct), max(COUNTS // labels, 16), functools.partial(judge_line, label, above)
            )
            if _gains(value, reached):
                cuts[label], reached, moved = _between(distinct, found, 1.0), value, True
                hits[label], answered[label] = above[1, found], above[:, found].sum()
        if not moved:
            break
    return tuple(cuts)


def _above(scores: Doubles, truth: Ints) -> tuple[Doubles, Doubles]:
    """The D distinct scores, and (2, D + 1): the negatives and positives whose score is not below each of them."""
    distinct, place = np.unique(scores, return_inverse=True)
    rows = np.zeros((2, len(distinct) + 1))
    np.add.at(rows, (truth, place + 1), 1)
    return distinct, rows.sum(axis=1, keepdims=True) - rows.cumsum(axis=1)


def _fit_multipliers(values: Floats, targets: Floats, truth: Ints, task: Task, quality: Quality) -> tuple[float, ...]:
    """A multiplier a class. Of more than 20,000 rows about so many are searched, and what is found must help all rows.

    Which rows depends on what they hold: every n-th would be of one kind where ids come in pairs.
    """
    if len(values) <= SEARCH_ROWS:
        return _search_multipliers(values, truth, quality)
    stack = Stack.of([values], targets)
    rows = stack.sample(stack.ordered(), task, SEARCH_ROWS)
    found = _search_multipliers(values[rows], truth[rows], quality)
    labels = values.shape[1]
    plain = float(quality(tally(truth, values.argmax(axis=1), labels))[0])
    helped = float(quality(tally(truth, (values * np.array(found)).argmax(axis=1), labels))[0])
    return found if _gains(helped, plain) else (1.0,) * labels


def _search_multipliers(values: Floats, truth: Ints, quality: Quality) -> tuple[float, ...]:
    """The search is of logarithms, at quantiles of where rows change their answer."""
    labels = values.shape[1]
    logs = np.log(np.maximum(values.astype(np.float64), 1e-12))
    shift = np.zeros(labels)
    counts = tally(truth, logs.argmax(axis=1), labels)
    reached = float(quality(counts)[0])
    for _ in range(SWEEPS):
        moved = False
        for label in range(labels):
            others = logs + shift
            others[:, label] = -np.inf
            rival = others.argmax(axis=1)
            needed = others.max(axis=1) - logs[:, label]  # the label is answered from this shift on
            wanted = np.log(WIDEST)
            tried = np.unique(np.quantile(np.clip(needed, -wanted, wanted), np.linspace(0, 1, CANDIDATES)))
            tried = np.unique(np.concatenate([(tried[1:] + tried[:-1]) / 2, [-wanted, shift[label], wanted]]))
            qualities = quality(_shifted(truth, rival, needed, tried, label, labels))
            pick = _best(qualities, np.abs(tried - shift[label]))
            if _gains(float(qualities[pick]), reached):
                shift[label], reached, moved = tried[pick], float(qualities[pick]), True
        if not moved:
            break
    # Only ratios matter.
    return tuple(float(value) for value in np.exp(shift - shift.mean()))


def _shifted(truth: Ints, rival: Ints, needed: Doubles, tried: Doubles, label: int, labels: int) -> Tally:
    """The counts when ``label``'s logarithm is shifted by each of ``tried`` (T,): it takes the rows that need less."""
    bins = len(tried) + 1
    since = np.searchsorted(tried, needed, side="right")  # the first candidate that takes the row; bins - 1: none
    gained = np.zeros((bins, labels))
    lost_hits, lost_answers = np.zeros((bins, labels)), np.zeros((bins, labels))
    np.add.at(gained, (since, truth), 1)
    np.add.at(lost_answers, (since, rival), 1)
    np.add.at(lost_hits, (since[truth == rival], rival[truth == rival]), 1)
    before = tally(truth, rival, labels)
    taken, lost = gained.cumsum(axis=0)[:-1], lost_answers.cumsum(axis=0)[:-1]
    hits = before.hits - lost_hits.cumsum(axis=0)[:-1]
    hits[:, label] += taken[:, label]
    answered = before.answered - lost
    answered[:, label] += taken.sum(axis=1)
    apart = np.abs(truth - label) - np.abs(truth - rival), (truth - label) ** 2 - (truth - rival) ** 2
    off, squared = (
        start + np.bincount(since, weights=change, minlength=bins).cumsum()[:-1]
        for start, change in zip((before.off, before.off_squared), apart, strict=True)
    )
    return Tally(before.truth, hits, answered, off, squared)
