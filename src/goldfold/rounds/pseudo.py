"""Which images get a pseudo-label, and which: a pure function of what the teachers' members say.

Lee 2013 takes the likeliest class as the label; Xie et al. 2020 (noisy student) take probabilities, sure images only,
equally many a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goldfold.config.schema import Pseudo
from goldfold.errors import BadInput, some
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

Taken = npt.NDArray[np.bool_]

NEARLY_ALL = 0.9
"""From this share of the taken images on, one class is said to take nearly all."""

CLEARLY_LESS = 0.1
"""That class is no surprise unless its share of the labelled rows is lower by this."""

FEW = 5
"""Shares of fewer images say nothing."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The taken of ``candidates`` images, in the order of their ids: ``targets`` (n, C), ``weights`` (n,).

    ``classes``: how many of them each class got (multilabel: each label; regression: empty). ``mean_confidence``: None
    for regression, or when nothing was taken.
    """

    ids: tuple[str, ...]
    targets: Floats
    weights: Floats
    candidates: int
    classes: dict[str, int]
    mean_confidence: float | None


def select(ids: Sequence[str], values: Floats, voices: Sequence[Floats], task: Task, settings: Pseudo) -> Selection:
    """Take the images that ``settings`` admit.

    ``values`` (N, C): the teachers together; ``voices``: (N, C) of each single bundle, whose spread is the disagreement
    (max over classes of the largest minus the smallest probability; for regression in the target's units). An image's
    class is its likeliest; for binary it is decided at the task's threshold, and the confidence is the probability of
    the decided class. A multilabel image's confidence is that of its least sure label (the larger of p and 1 - p), and
    every label must reach its own ``min_prob``.

    ``top_k`` takes the k surest of each class among those that pass ``min_prob`` and ``margin``; multilabel: the k
    likeliest of each label that is present, images without any label are left out; regression: the k with the least
    disagreement. Ties go to the smaller id, so the order of rows changes nothing. Raises BadInput as ``thresholds``
    does, and where disagreement is asked for of a single bundle.
    """
    limits = thresholds(settings, task)
    refuse_single_voice(len(voices), settings, task)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    names, values = [ids[place] for place in order], values[order]
    spread = _spread([voice[order] for voice in voices], values)
    confidence, taken = _confidence(values, task, limits)
    if settings.margin is not None:
        taken &= spread.max(axis=1) <= np.float32(settings.margin)
    if settings.top_k is not None:
        taken = _surest(values, confidence, spread, taken, task, settings.top_k)
    places = np.flatnonzero(taken)
    chosen, sure = values[places], confidence[places]
    weights = np.full(len(places), settings.weight, dtype=np.float32)
    if settings.weighting == "confidence" and task.name != "regression":
        weights *= sure
    return Selection(
        ids=tuple(names[place] for place in places),
        targets=_hard(chosen, task) if settings.labels == "hard" else _soft(chosen, task, settings),
        weights=weights,
        candidates=len(ids),
        classes=class_counts(chosen, task),
        mean_confidence=None if task.name == "regression" or not len(places) else float(sure.mean(dtype=np.float64)),
    )


def thresholds(settings: Pseudo, task: Task) -> Floats:
    """The smallest confidence of each of ``task.labels()``, (L,) float32; 0 for a class that ``min_prob`` leaves out.

    Raises BadInput for classes that the task does not have.
    """
    labels = task.labels()
    if not isinstance(settings.min_prob, dict):
        return np.full(len(labels), settings.min_prob, dtype=np.float32)
    known = labels if task.name != "regression" else []
    unknown = [name for name in settings.min_prob if name not in known]
    if unknown:
        raise BadInput(
            "teacher.pseudo.min_prob",
            f"there is no class {some(unknown)}",
            f"the classes are {some(known, 20) or 'none'}",
        )
    return np.array([settings.min_prob.get(name, 0.0) for name in labels], dtype=np.float32)


def imbalance(classes: Mapping[str, int], taken: int, labelled: Floats, task: Task) -> str | None:
    """What is odd when one class takes nearly all images; None: nothing is.

    ``classes``: as in ``Selection``, of ``taken`` images; ``labelled`` (N, C): targets of the labelled rows. Odd is a
    class with at least 90 % of the taken, when that is more than its share of the labelled rows by 10 points.
    """
    if taken < FEW or not len(labelled):
        return None
    known = class_counts(labelled, task)
    for name, count in classes.items():
        share, before = count / taken, known[name] / len(labelled)
        if share >= NEARLY_ALL and share - before >= CLEARLY_LESS:
            return f"class '{name}' takes {share:.0%} of the pseudo-labels and has {before:.0%} of the labelled rows"
    return None


def class_counts(values: Floats, task: Task) -> dict[str, int]:
    """How many rows (N, C) each of ``task.labels()`` gets; multilabel: have the label; regression: nothing."""
    if task.name == "regression":
        return {}
    if task.name == "multilabel":
        counts = (values >= task.threshold).sum(axis=0)
    else:
        counts = np.bincount(_decided(values, task), minlength=len(task.labels()))
    return {name: int(count) for name, count in zip(task.labels(), counts, strict=True)}


def _decided(values: Floats, task: Task) -> Ints:
    """(N,) index into ``task.labels()``. A grade is the likeliest one here, not the rounded mean of all."""
    return task.class_index(values) if task.name == "binary" else values.argmax(axis=1).astype(np.int64)


def _confidence(values: Floats, task: Task, limits: Floats) -> tuple[Floats, Taken]:
    """(N,) confidences, and which reach their limits."""
    if task.name == "regression":
        return np.ones(len(values), dtype=np.float32), np.ones(len(values), dtype=np.bool_)
    if task.name == "multilabel":
        sure = np.maximum(values, 1 - values)
        return np.asarray(sure.min(axis=1)), np.asarray((sure >= limits).all(axis=1))
    index = _decided(values, task)
    every = np.concatenate([1 - values, values], axis=1) if task.name == "binary" else values
    confidence = every[np.arange(len(values)), index]
    return confidence, confidence >= limits[index]


def _spread(voices: Sequence[Floats], values: Floats) -> Floats:
    """(N, C) disagreement."""
    if len(voices) < 2:
        return np.zeros_like(values)
    stacked = np.stack(voices)
    return stacked.max(axis=0) - stacked.min(axis=0)


def _surest(values: Floats, confidence: Floats, spread: Floats, taken: Taken, task: Task, top_k: int) -> Taken:
    """The k surest of each class among ``taken``; rows come in the order of their ids, so a stable sort settles ties."""
    kept = np.zeros(len(values), dtype=np.bool_)
    if task.name == "regression":
        # Targets of different units weigh alike.
        scale = np.maximum(values.std(axis=0, dtype=np.float64), 1e-12)
        _keep(kept, np.flatnonzero(taken), -(spread / scale).max(axis=1), top_k)
    elif task.name == "multilabel":
        for column in range(values.shape[1]):
            _keep(kept, np.flatnonzero(taken & (values[:, column] >= task.threshold)), values[:, column], top_k)
    else:
        index = _decided(values, task)
        for number in range(len(task.labels())):
            _keep(kept, np.flatnonzero(taken & (index == number)), confidence, top_k)
    return kept


def _keep(kept: Taken, places: Ints, sureness: npt.NDArray[np.floating], top_k: int) -> None:
    kept[places[np.argsort(-sureness[places], kind="stable")[:top_k]]] = True


def _hard(values: Floats, task: Task) -> Floats:
    if task.name in ("binary", "multilabel"):
        return (values >= task.threshold).astype(np.float32)
    if task.name == "regression":
        return values
    return np.eye(values.shape[1], dtype=np.float32)[_decided(values, task)]


def _soft(values: Floats, task: Task, settings: Pseudo) -> Floats:
    """Probabilities after ``power`` and ``trim``; rows of one class sum to 1 again."""
    if task.name == "regression":
        return values
    exact = values.astype(np.float64)
    if settings.power != 1:
        # Divided by the largest first, so that no power makes all of a row 0.
        if task.name in ("binary", "multilabel"):
            largest = np.maximum(exact, 1 - exact)
            raised, against = (exact / largest) ** settings.power, ((1 - exact) / largest) ** settings.power
            exact = raised / (raised + against)
        else:
            raised = (exact / exact.max(axis=1, keepdims=True)) ** settings.power
            exact = raised / raised.sum(axis=1, keepdims=True)
    if settings.trim:
        cut = np.where(exact < settings.trim, 0.0, np.where(exact > 1 - settings.trim, 1.0, exact))
        if task.name not in ("binary", "multilabel"):
            # Where every class is below, there is nothing to keep, and the row stays as it is.
            total = cut.sum(axis=1, keepdims=True)
            cut = np.where(total > 0, cut / np.maximum(total, 1e-12), exact)
        exact = cut
    return exact.astype(np.float32)


def refuse_single_voice(voices: int, settings: Pseudo, task: Task) -> None:
    """Raises BadInput where disagreement is asked for of a single bundle."""
    if voices > 1:
        return
    if settings.margin is not None:
        raise BadInput(
            "teacher.pseudo.margin", "a single network agrees with itself", "name more teachers, or leave it out"
        )
    if task.name == "regression" and settings.top_k is not None:
        raise BadInput(
            "teacher.pseudo.top_k",
            "for a regression it takes the values on which networks agree most, and there is a single one",
            "name more teachers, or leave it out",
        )
