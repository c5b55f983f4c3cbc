"""Against rare classes: weights in the loss, the rows of an epoch, the rows that are augmented otherwise.

Targets (N, C) may be soft: pseudo-labels count by their shares where classes are weighed, and as their likeliest class
where rows are dealt to classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from goldfold.config.schema import Balance
from goldfold.errors import BadInput
from goldfold.records import Floats, Ints
from goldfold.tasks import Task


def class_weights(balance: Balance, targets: Floats, task: Task) -> Floats | None:
    """Weights (C,) of the classes in the loss, of mean 1 over the training rows.

    ``inverse``: 1 / frequency; ``effective``: 1 / the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et
    al. 2019). A binary or multilabel column's weight is for its positives, against its negatives. Raises BadInput for
    a regression.
    """
    if balance.loss_weights == "none":
        return None
    _require_classes("balance.loss_weights", task)
    count = np.maximum(targets.sum(axis=0, dtype=np.float64), 1)
    inverse = balance.loss_weights == "inverse"
    if task.name in ("binary", "multilabel"):
        other = np.maximum(len(targets) - count, 1)
        weights = other / count if inverse else _effective(other, balance.beta) / _effective(count, balance.beta)
        return weights.astype(np.float32)
    weights = 1 / count if inverse else 1 / _effective(count, balance.beta)
    return (weights * len(targets) / (weights * count).sum()).astype(np.float32)


def _effective(count: npt.NDArray[np.float64], beta: float) -> npt.NDArray[np.float64]:
    return -np.expm1(count * np.log(beta)) / (1 - beta)


def draw_epoch(balance: Balance, targets: Floats, task: Task, seed: int) -> Ints:
    """The row numbers of one epoch in their order, a pure function of ``seed``; every epoch has equally many.

    ``none``: each of the N rows once. ``oversample``: N draws with replacement by ``sampling_weights``.
    ``undersample``: of each class (``row_classes``) as many rows as the smallest has, others in each epoch.
    Raises BadInput for a regression.
    """
    rng = np.random.default_rng(seed)
    if balance.sampling == "none":
        return rng.permutation(len(targets))
    weights = sampling_weights(balance, targets, task)
    if weights is not None:
        chance = weights.astype(np.float64)
        return rng.choice(len(targets), len(targets), p=chance / chance.sum())
    classes = row_classes(targets, task)
    groups = [np.flatnonzero(classes == number) for number in np.unique(classes)]
    least = min(len(group) for group in groups)
    return rng.permutation(np.concatenate([rng.choice(group, least, replace=False) for group in groups]))


def sampling_weights(balance: Balance, targets: Floats, task: Task) -> Floats | None:
    """The relative chance of each row (N,) in a draw of ``oversample``; None for other ways of sampling.

    As if a class were drawn first, each equally often, and then a row by its share of that class. Where a row may have
    several labels it counts as its rarest one, and without any as a row of the largest possible class.
    """
    if balance.sampling != "oversample":
        return None
    _require_classes("balance.sampling", task)
    shares = np.concatenate([1 - targets, targets], axis=1) if task.name == "binary" else targets
    # A class that only soft labels hint at is not drawn as often as one with rows of its own.
    frequency = np.maximum(shares.sum(axis=0, dtype=np.float64), 1)
    chances = shares / frequency
    chance = chances.sum(axis=1) if task.one_class_each else chances.max(axis=1)
    return np.maximum(chance, 1 / len(targets)).astype(np.float32)


def rare_rows(
    balance: Balance, targets: Floats, task: Task, counted: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """The rows (N,) whose class has fewer rows than ``rare_below`` times the largest class.

    A multilabel row is judged by its rarest label; rows without any label are a class of their own. ``counted`` (N,):
    the rows by which classes are counted; None: all. Raises BadInput for a regression.
    """
    among = np.ones(len(targets), dtype=bool) if counted is None else counted
    classes = row_classes(targets, task, among)
    if task.name == "multilabel":
        has = targets[among] >= 0.5
        count = np.append(has.sum(axis=0), (~has.any(axis=1)).sum())
    else:
        count = np.bincount(classes[among], minlength=classes.max() + 1)
    return (count < balance.rare_below * count.max())[classes]


def row_classes(targets: Floats, task: Task, counted: npt.NDArray[np.bool_] | None = None) -> Ints:
    """The one class (N,) that each row is dealt to: its likeliest; of a multilabel row its rarest label, C without any.

    ``counted`` (N,): the rows by which labels are rare; None: all. Raises BadInput for a regression.
    """
    _require_classes("balance", task)
    if task.name == "binary":
        return (targets[:, 0] >= 0.5).astype(np.int64)
    if task.name != "multilabel":
        return targets.argmax(axis=1).astype(np.int64)
    has = targets >= 0.5
    known = has if counted is None else has[counted]
    rarity = np.where(has, known.sum(axis=0), len(targets) + 1)
    return np.where(has.any(axis=1), rarity.argmin(axis=1), targets.shape[1]).astype(np.int64)


def _require_classes(key: str, task: Task) -> None:
    if task.name == "regression":
        raise BadInput(key, "a regression task has no classes to balance", "set it to none")
