"""Which rows the canary's competition has, which labels they get, and where their twins are planted. Pure.

Folds are dealt without a look at labels. The shuffled labels are then spread over the folds (as many of each class as
can be) and, within a fold, over its rows uniformly at random. So, given all that a model of fold k may know (images,
folds, the other folds' labels), every order of fold k's labels is equally likely: the permutation test is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goldfold.errors import BadInput
from goldfold.records import Floats, Ints
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

NOISE = 3.0
"""Deviation of a twin's pixel noise, of 255 levels: far below what a resize or a JPEG does, yet no pixel row is equal."""
BRIGHTNESS = 2.0
"""Most levels by which a twin is brighter or darker."""
FILLERS = 4
"""One image without a twin, from the real pool, for so many original rows."""


@dataclass(frozen=True, eq=False)
class Planting:
    """The canary's training rows and its pool. Numbers are rows of the real train CSV.

    ``ids`` (M,): originals, then planted twins, in no order that tells them apart by fold or label. ``pixels`` (M,):
    whose image a row shows; ``labels`` (M,): whose target columns it has; ``fold`` (M,). ``twin`` (M,): the place of a
    row's twin among the training rows, -1 where it is in the pool. ``original`` (M,): False for planted twins.
    ``pool_ids`` (P,): twins in the pool; ``pool_of`` (P,): the place of the original of each.
    """

    ids: tuple[str, ...]
    pixels: Ints
    labels: Ints
    fold: Ints
    twin: Ints
    original: npt.NDArray[np.bool_]
    pool_ids: tuple[str, ...]
    pool_of: Ints

    @property
    def in_pool(self) -> npt.NDArray[np.bool_]:
        """(M,) originals with a twin in the pool."""
        return self.original & (self.twin < 0)

    @property
    def in_training(self) -> npt.NDArray[np.bool_]:
        """(M,) rows whose twin is a training row of another fold: originals and the twins themselves."""
        return self.twin >= 0


def plant(task: Task, targets: Floats, n_folds: int, rows: int, seed: int) -> Planting:
    """Choose ``rows`` originals of the N ``targets`` (N, C), deal them, plant a twin of each, shuffle the labels.

    Half of each fold's originals get their twin in the pool, the other half as a training row of another fold, with a
    label of its own. Raises BadInput where there are too few rows to say anything.
    """
    rng = np.random.default_rng(derive_seed(seed, 0xCA2A27))
    chosen = rng.permutation(choose_rows(task, targets, rows, rng))
    n = len(chosen)
    if n < 4 * n_folds:
        raise BadInput("--rows", f"{n} rows are too few for {n_folds} folds", f"{4 * n_folds} rows are the least")
    fold = np.arange(n, dtype=np.int64) % n_folds
    turn = np.arange(n, dtype=np.int64) // n_folds  # place within its fold
    planted = np.flatnonzero(turn % 2 == 1)
    # The twins of a fold's rows go to the other folds in turn.
    twin_fold = (fold[planted] + 1 + (turn[planted] // 2) % (n_folds - 1)) % n_folds
    twin = np.full(n + len(planted), -1, dtype=np.int64)
    twin[planted] = np.arange(n, n + len(planted))
    twin[n:] = planted
    fold = np.concatenate([fold, twin_fold])
    pixels = np.concatenate([chosen, chosen[planted]])
    pool_of = np.flatnonzero(turn % 2 == 0)
    width = len(str(n + len(planted)))
    return Planting(
        ids=tuple(f"o{row:0{width}d}" if row < n else f"t{row:0{width}d}" for row in range(len(fold))),
        pixels=pixels,
        labels=shuffle_labels(pixels, task, targets, fold, rng),
        fold=fold,
        twin=twin,
        original=np.arange(len(fold)) < n,
        pool_ids=tuple(f"p{row:0{width}d}" for row in pool_of),
        pool_of=pool_of,
    )


def choose_rows(task: Task, targets: Floats, rows: int, rng: np.random.Generator) -> Ints:
    """At most ``rows`` row numbers. As many of each class as there are, since a rare class's labels are too few to
    show a leak in a proportional sample; of a regression's or multilabel targets, evenly along their order."""
    order = _by_label(targets, rng.permutation(len(targets)))
    if len(order) <= rows:
        return np.sort(order)
    if not task.one_class_each:
        return np.sort(order[np.linspace(0, len(order) - 1, rows).round().astype(np.int64)])
    truth = np.asarray(task.truth(targets))[order]
    turn = np.empty(len(order), dtype=np.int64)
    for label in np.unique(truth):
        turn[truth == label] = np.arange((truth == label).sum())
    # Which classes lend the rows of the last, incomplete turn is drawn too.
    return np.sort(order[np.lexsort([rng.random(len(order)), turn])[:rows]])


def shuffle_labels(sources: Ints, task: Task, targets: Floats, fold: Ints, rng: np.random.Generator) -> Ints:
    """(M,) ``sources`` (whose labels there are) in a new order: spread over the folds, then random within each."""
    order = _by_label(targets, rng.permutation(sources))
    # Every fold takes labels at even steps along the sorted list, from a start of its own.
    steps, tags = [], []
    for number in np.unique(fold):
        size = int((fold == number).sum())
        steps.append((np.arange(size) + rng.random()) / size)
        tags.append(np.full(size, number))
    taken = np.concatenate(tags)[np.argsort(np.concatenate(steps), kind="stable")]
    labels = np.empty(len(sources), dtype=np.int64)
    for number in np.unique(fold):
        labels[fold == number] = rng.permutation(order[taken == number])
    return labels


def twin_pixels(pixels: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A slightly altered copy (H, W, C): a little brighter or darker, a little noise; never equal to the original."""
    change = rng.normal(rng.uniform(-BRIGHTNESS, BRIGHTNESS), NOISE, pixels.shape)
    altered = np.clip(np.rint(pixels + change), 0, 255).astype(np.uint8)
    if np.array_equal(altered, pixels):  # of an image of one or two pixels, say
        altered.flat[0] ^= 1
    return altered


def _by_label(targets: Floats, rows: Ints) -> Ints:
    """``rows`` sorted by their targets; rows of equal targets stay in their order."""
    return rows[np.lexsort(targets[rows].T[::-1])]
