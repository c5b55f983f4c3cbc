"""What a fold trains on: labelled rows, teachers' rows, their order and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from goldfold.augment import Augmenter, centre
from goldfold.config.schema import Balance
from goldfold.errors import GoldfoldError, some
from goldfold.images import Images
from goldfold.records import Floats, Ints, SoftLabels
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

B = TypeVar("B")
TrainBatch = tuple[Tensor, Tensor, Tensor]


class LeakError(GoldfoldError):
    """Labels of a teacher that has seen the validated fold."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N training rows: ``rows`` (N,) into ``images``, ``targets`` (N, C) and ``weights`` (N,) float32."""

    images: Images
    rows: Ints
    targets: Floats
    weights: Floats

    def __len__(self) -> int:
        return len(self.rows)


def labelled(images: Images, ids: Sequence[str], targets: Floats) -> Examples:
    """Rows with true labels; ``targets`` (N, C) belong to ``ids`` in their order."""
    rows = rows_of(images, ids)
    return Examples(images, rows, targets, np.ones(len(rows), dtype=np.float32))


def add_soft_labels(examples: Examples, images: Images, soft: SoftLabels, fold: int) -> Examples:
    """Append images that teachers labelled. Raises LeakError unless the teachers never saw ``fold``'s labels."""
    _refuse_leak(soft, fold)
    rows = rows_of(images, soft.ids)
    offset = len(examples.images.ids)
    return Examples(
        images=JoinedImages(examples.images, images),
        rows=np.concatenate([examples.rows, rows + offset]),
        targets=np.concatenate([examples.targets, soft.targets]),
        weights=np.concatenate([examples.weights, soft.weights]),
    )


def blend_soft_labels(examples: Examples, ids: Sequence[str], soft: SoftLabels, share: float, fold: int) -> Examples:
    """Targets (1 - share) x label + share x teacher on training rows. Raises LeakError as ``add_soft_labels`` does."""
    _refuse_leak(soft, fold)
    teacher = soft.targets[soft.rows(ids, soft.where)]
    targets = ((1 - share) * examples.targets + share * teacher).astype(np.float32)
    return Examples(examples.images, examples.rows, targets, examples.weights)


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


@dataclass(frozen=True, eq=False)
class Request:
    """One batch to be made: its rows, and the seed of its augmentation, whichever process makes it."""

    rows: Ints
    seed: int


class Batches(Generic[B]):
    """A loader's batches. An error in a loader process is raised here as itself, not as torch's report of it."""

    def __init__(self, loader: DataLoader[B]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[B]:
        for batch in self.loader:
            if isinstance(batch, GoldfoldError):
                raise batch
            yield batch


class TrainBatches(Dataset[TrainBatch | GoldfoldError]):
    """Batches of (pixels (B, S, S, C) uint8, targets (B, C), weights (B,)), made whole from a Request."""

    def __init__(self, examples: Examples, augment: Augmenter) -> None:
        self.examples = examples
        self.augment = augment

    def __getitems__(self, request: Request) -> TrainBatch | GoldfoldError:
        examples = self.examples
        try:
            pixels = self.augment(examples.images.read(examples.rows[request.rows]), request.seed)
        except GoldfoldError as error:
            return error
        return (
            torch.from_numpy(pixels),
            torch.from_numpy(examples.targets[request.rows]),
            torch.from_numpy(examples.weights[request.rows]),
        )


class EpochOrder(Sampler[Request]):
    """The batches of an epoch, a pure function of (seed, epoch); rank r takes the r-th part of each global batch.

    The rows that do not fill a last batch wait for another epoch's order (all rows, when they fill no batch at all).
    """

    def __init__(
        self, n: int, batch_size: int, *seed: int, weights: Floats | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0
        self.weights = None if weights is None else weights.astype(np.float64) / weights.sum(dtype=np.float64)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return max(self.n // (self.batch_size * self.world), 1)

    def __iter__(self) -> Iterator[Request]:
        rng = np.random.default_rng(derive_seed(*self.seed, self.epoch))
        order = rng.permutation(self.n) if self.weights is None else rng.choice(self.n, self.n, p=self.weights)
        step = self.batch_size * self.world
        for number in range(len(self)):
            rows = order[number * step : (number + 1) * step][self.rank :: self.world]
            yield Request(rows, derive_seed(*self.seed, self.epoch, number, self.rank))


def train_loader(
    examples: Examples, augment: Augmenter, order: EpochOrder, *, workers: int, pin_memory: bool
) -> Batches[TrainBatch]:
    """Batches in the order's order. The number of workers never changes what they hold."""
    loader: DataLoader[Any] = DataLoader(
        TrainBatches(examples, augment),
        batch_sampler=order,  # type: ignore[arg-type]  # it yields Requests, which the data set takes whole
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
    )
    return Batches(loader)


class PlainBatches(Dataset[Tensor | GoldfoldError]):
    """Pixels (B, S, S, C) uint8 of given rows without augmentation, in order."""

    def __init__(self, images: Images, rows: Ints, size: int, batch_size: int) -> None:
        self.images, self.size = images, size
        self.batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor | GoldfoldError:
        try:
            return torch.from_numpy(centre(self.images.read(self.batches[number]), self.size))
        except GoldfoldError as error:
            return error


def plain_loader(
    images: Images, rows: Ints, size: int, batch_size: int, *, workers: int, pin_memory: bool
) -> Batches[Tensor]:
    batches = PlainBatches(images, rows, size, batch_size)
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    return Batches(loader)


def class_weights(kind: str, targets: Floats, task: Task) -> Floats | None:
    """Weights (C,) of the classes in the loss, of mean 1 over the training rows.

    ``inverse``: 1 / frequency; ``effective``: the effective number of samples (Cui et al. 2019), with beta 0.999.
    """
    if kind == "none" or task.name == "regression":
        return None
    count = np.maximum(targets.sum(axis=0, dtype=np.float64), 1)
    if task.name in ("binary", "multilabel"):
        # Positives of a column against its negatives.
        other = np.maximum(len(targets) - count, 1)
        weights = other / count if kind == "inverse" else _effective(other) / _effective(count)
        return weights.astype(np.float32)
    weights = 1 / count if kind == "inverse" else 1 / _effective(count)
    return (weights * len(targets) / (weights * count).sum()).astype(np.float32)


def _effective(count: npt.NDArray[np.float64], beta: float = 0.999) -> npt.NDArray[np.float64]:
    return (1 - beta**count) / (1 - beta)


def sampling_weights(balance: Balance, targets: Floats, task: Task) -> Floats | None:
    """The chance of each row (N,) to be drawn, or None for each row once an epoch."""
    if balance.sampling == "none":
        return None
    classes = np.concatenate([1 - targets, targets], axis=1) if task.name == "binary" else targets
    frequency = np.maximum(classes.sum(axis=0, dtype=np.float64), 1)
    # A row with several labels counts as its rarest one, a row with none as a row of a class of its own.
    return np.maximum((classes / frequency).max(axis=1), 1 / len(targets)).astype(np.float32)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    # OpenCV's own threads would fight with the other workers for the cores.
    cv2.setNumThreads(0)
