"""The rows that a fold trains on, and the guard over labels that come from teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from goldfold.errors import GoldfoldError, some
from goldfold.images import Images
from goldfold.records import Floats, Ints, SoftLabels


class LeakError(GoldfoldError):
    """Labels of a teacher that has seen the validated fold."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N training rows: ``rows`` (N,) into ``images``, ``targets`` (N, C) and ``weights`` (N,) float32.

    ``metadata`` (N, M): encoded columns of the CSV. ``auxiliary`` (N, A): targets of all auxiliary tasks side by side,
    ``auxiliary_weights`` (N, K): one a task, 0 where the label is missing.
    """

    images: Images
    rows: Ints
    targets: Floats
    weights: Floats
    metadata: Floats
    auxiliary: Floats
    auxiliary_weights: Floats

    def __len__(self) -> int:
        return len(self.rows)


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
    )


def add_soft_labels(
    examples: Examples, images: Images, soft: SoftLabels, fold: int, metadata: Floats | None = None
) -> Examples:
    """Append images that teachers labelled; ``metadata`` (n, M) belongs to ``soft.ids``.

    Raises LeakError unless the teachers never saw ``fold``'s labels.
    """
    _refuse_leak(soft, fold)
    return _appended(examples, images, soft.ids, soft.targets, soft.weights, metadata)


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
    return _appended(examples, images, ids, targets, weights, metadata)


def _appended(
    examples: Examples, images: Images, ids: Sequence[str], targets: Floats, weights: Floats, metadata: Floats | None
) -> Examples:
    if metadata is None and examples.metadata.shape[1]:
        raise GoldfoldError(f"{len(ids)} further images have no metadata, and the network needs it")
    n, offset = len(ids), len(examples.images.ids)

    def below(known: Floats, added: Floats | None) -> Floats:
        return np.concatenate([known, np.zeros((n, known.shape[1]), dtype=np.float32) if added is None else added])

    return Examples(
        images=JoinedImages(examples.images, images),
        rows=np.concatenate([examples.rows, rows_of(images, ids) + offset]),
        targets=np.concatenate([examples.targets, targets]),
        weights=np.concatenate([examples.weights, weights]),
        metadata=below(examples.metadata, metadata),
        auxiliary=below(examples.auxiliary, None),
        auxiliary_weights=below(examples.auxiliary_weights, None),
    )


def blend_soft_labels(examples: Examples, ids: Sequence[str], soft: SoftLabels, share: float, fold: int) -> Examples:
    """Targets (1 - share) x label + share x teacher on training rows. Raises LeakError as ``add_soft_labels`` does."""
    _refuse_leak(soft, fold)
    teacher = soft.targets[soft.rows(ids, soft.where)]
    return replace(examples, targets=((1 - share) * examples.targets + share * teacher).astype(np.float32))


def _refuse_leak(soft: SoftLabels, fold: int) -> None:
    if soft.excluded_fold != fold:
        raise LeakError(
            f"{soft.where}: teachers that left out fold {soft.excluded_fold} may not teach the student of fold {fold}, "
            "whose validation labels they have seen"
        )


def rows_of(images: Images, ids: Sequence[str]) -> Ints:
    """Row numbers of ``ids`` in an image store. Raises GoldfoldError when one is missing."""
    position = {name: row for row, name in enumerate(images.ids)}
    missing = [name for name in ids if name not in position]
    if missing:
        raise GoldfoldError(f"{len(missing)} ids have no image in the store: {some(missing)}")
    return np.array([position[name] for name in ids], dtype=np.int64)


class JoinedImages:
    """Two image stores as one; the second's rows follow the first's."""

    def __init__(self, first: Images, second: Images) -> None:
        self._parts = (first, second)
        self.ids = (*first.ids, *second.ids)
        self.shape = first.shape
        self.digest = None if first.digest is None or second.digest is None else f"{first.digest} {second.digest}"

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        rows = np.asarray(rows, dtype=np.int64)
        offset = len(self._parts[0].ids)
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for part, chosen, start in ((self._parts[0], rows < offset, 0), (self._parts[1], rows >= offset, offset)):
            if chosen.any():
                pixels[chosen] = part.read(rows[chosen] - start)
        return pixels
