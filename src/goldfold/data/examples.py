"""The rows that a fold trains on, and the guard over labels that come from teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from goldfold.errors import GoldfoldError
from goldfold.images import Images
from goldfold.images.batches import rows_of
from goldfold.records import Floats, Ints, SoftLabels

LABELLED, EXTERNAL, PSEUDO = range(3)
"""Where a row's target comes from: the competition, another data set, a teacher."""


class LeakError(GoldfoldError):
    """Labels of a teacher that has seen the validated fold."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N training rows: ``rows`` (N,) into ``images``, ``targets`` (N, C) and ``weights`` (N,) float32.

    ``metadata`` (N, M): encoded columns of the CSV. ``auxiliary`` (N, A): targets of all auxiliary tasks side by side,
    ``auxiliary_weights`` (N, K): one a task, 0 where the label is missing. ``kind`` (N,): LABELLED, EXTERNAL or PSEUDO.
    ``teacher`` (N, V, C): probabilities to distil from, of V views of an image (V 0: there are none), with
    ``teacher_weights`` (N,), 0 where a row has none.
    """

    images: Images
    rows: Ints
    targets: Floats
    weights: Floats
    metadata: Floats
    auxiliary: Floats
    auxiliary_weights: Floats
    kind: npt.NDArray[np.int8]
    teacher: Floats
    teacher_weights: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> tuple[str, ...]:
        """The image of each row."""
        return tuple(self.images.ids[row] for row in self.rows)


def labelled(
    images: Images,
    ids: Sequence[str],
    targets: Floats,
    *,
    metadata: Floats | None = None,
    auxiliary: Floats | None = None,
    auxiliary_weights: Floats | None = None,
) -> Examples:
    """Rows with true labels; ``targets`` (N, C) and the rest belong to ``ids`` in their order."""
    rows = rows_of(images, ids)
    none = np.zeros((len(rows), 0), dtype=np.float32)
    return Examples(
        images=images,
        rows=rows,
        targets=targets,
        weights=np.ones(len(rows), dtype=np.float32),
        metadata=none if metadata is None else metadata,
        auxiliary=none if auxiliary is None else auxiliary,
        auxiliary_weights=none if auxiliary_weights is None else auxiliary_weights,
        kind=np.full(len(rows), LABELLED, dtype=np.int8),
        teacher=np.zeros((len(rows), 0, targets.shape[1]), dtype=np.float32),
        teacher_weights=np.zeros(len(rows), dtype=np.float32),
    )


def add_soft_labels(
    examples: Examples,
    images: Images,
    soft: SoftLabels,
    fold: int,
    metadata: Floats | None = None,
    *,
    leaky: bool = False,
) -> Examples:
    """Append images that teachers labelled; ``metadata`` (n, M) belongs to ``soft.ids``.

    Raises LeakError unless the teachers never saw ``fold``'s labels; ``leaky`` admits teachers of all folds.
    """
    refuse_leak(soft, fold, leaky)
    _require_columns(soft, examples)
    return _appended(examples, images, soft.ids, soft.targets, soft.weights, metadata, PSEUDO)


def add_external(
    examples: Examples,
    images: Images,
    ids: Sequence[str],
    targets: Floats,
    weight: float,
    metadata: Floats | None = None,
) -> Examples:
    """Append labelled images of another data set, each with the loss weight ``weight``."""
    weights = np.full(len(ids), weight, dtype=np.float32)
    return _appended(examples, images, ids, targets, weights, metadata, EXTERNAL)


def add_teacher(examples: Examples, views: Sequence[SoftLabels], fold: int, *, leaky: bool = False) -> Examples:
    """Set the probabilities that rows are distilled from, by id: one SoftLabels a view, all of the same ids.

    Rows that the teachers say nothing of keep their labels alone. Raises LeakError as ``add_soft_labels`` does, and
    GoldfoldError when the views differ in ids, have other classes, or no row is among them.
    """
    first = views[0]
    for soft in views:
        refuse_leak(soft, fold, leaky)
        _require_columns(soft, examples)
        if soft.ids != first.ids:
            raise GoldfoldError(f"{soft.where}: the views of one image were labelled under different ids")
    place = {name: row for row, name in enumerate(first.ids)}
    found = np.array([place.get(name, -1) for name in examples.ids], dtype=np.int64)
    if (found < 0).all():
        raise GoldfoldError(f"{first.where}: none of the {len(examples)} training rows is among the labelled images")
    known = found >= 0
    teacher = np.zeros((len(examples), len(views), examples.targets.shape[1]), dtype=np.float32)
    for number, soft in enumerate(views):
        teacher[known, number] = soft.targets[found[known]]
    weights = np.zeros(len(examples), dtype=np.float32)
    weights[known] = first.weights[found[known]]
    return replace(examples, teacher=teacher, teacher_weights=weights)


def _appended(
    examples: Examples,
    images: Images,
    ids: Sequence[str],
    targets: Floats,
    weights: Floats,
    metadata: Floats | None,
    kind: int,
) -> Examples:
    if metadata is None and examples.metadata.shape[1]:
        raise GoldfoldError(f"{len(ids)} further images have no metadata, and the network needs it")
    n, offset = len(ids), len(examples.images.ids)

    def below(known: Floats, added: Floats | None) -> Floats:
        return np.concatenate([known, np.zeros((n, *known.shape[1:]), dtype=np.float32) if added is None else added])

    return Examples(
        images=JoinedImages(examples.images, images),
        rows=np.concatenate([examples.rows, rows_of(images, ids) + offset]),
        targets=np.concatenate([examples.targets, targets]),
        weights=np.concatenate([examples.weights, weights]),
        metadata=below(examples.metadata, metadata),
        auxiliary=below(examples.auxiliary, None),
        auxiliary_weights=below(examples.auxiliary_weights, None),
        kind=np.concatenate([examples.kind, np.full(n, kind, dtype=np.int8)]),
        teacher=below(examples.teacher, None),
        teacher_weights=below(examples.teacher_weights, None),
    )


def _require_columns(soft: SoftLabels, examples: Examples) -> None:
    have, need = soft.targets.shape[1], examples.targets.shape[1]
    if have != need:
        raise GoldfoldError(f"{soft.where}: labels of {have} classes for a student of {need}")


def refuse_leak(soft: SoftLabels, fold: int, leaky: bool = False) -> None:
    """Raises LeakError unless the teachers left out ``fold``; ``leaky`` admits those that left out none."""
    if soft.excluded_fold == fold or (leaky and soft.excluded_fold is None):
        return
    who = "no fold" if soft.excluded_fold is None else f"fold {soft.excluded_fold}"
    raise LeakError(
        f"{soft.where}: teachers that left out {who} may not teach the student of fold {fold}, "
        "whose validation labels they have seen"
    )


class JoinedImages:
    """Two image stores as one; the second's rows follow the first's. Either may be joined itself."""

    def __init__(self, first: Images, second: Images) -> None:
        self.parts = (first, second)
        self.ids = (*first.ids, *second.ids)
        self.shape = first.shape
        self.digest = None if first.digest is None or second.digest is None else f"{first.digest} {second.digest}"

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        rows = np.asarray(rows, dtype=np.int64)
        offset = len(self.parts[0].ids)
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for part, chosen, start in ((self.parts[0], rows < offset, 0), (self.parts[1], rows >= offset, offset)):
            if chosen.any():
                pixels[chosen] = part.read(rows[chosen] - start)
        return pixels


def parts_of(images: Images) -> tuple[Images, ...]:
    """The stores that ``images`` is joined from, in the order of its rows; itself where it is none."""
    if not isinstance(images, JoinedImages):
        return (images,)
    return tuple(leaf for part in images.parts for leaf in parts_of(part))
