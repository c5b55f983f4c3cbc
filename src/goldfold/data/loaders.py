"""The order of an epoch and its batches, whichever process makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from goldfold.augment import Augmenter
from goldfold.data.examples import Examples
from goldfold.errors import GoldfoldError
from goldfold.features import Features, JoinedFeatures
from goldfold.images.batches import Batches, idle_generator, start_worker
from goldfold.records import Ints
from goldfold.seeds import derive_seed

RARE, VIEW = 1, 2
"""What a batch's derived seed is for."""


class TrainBatch(NamedTuple):
    """``pixels`` (B, S, S, C) uint8, or (3B, ...) with AugMix's views; or stored features (B, ...) float16.

    ``targets`` (B, C), ``weights`` (B,), ``metadata`` (B, M), ``auxiliary`` (B, A), ``auxiliary_weights`` (B, K).
    ``teacher`` (B, C): probabilities to distil from, (B, 0) where none are stored; ``teacher_weights`` (B,).
    """

    pixels: Tensor
    targets: Tensor
    weights: Tensor
    metadata: Tensor
    auxiliary: Tensor
    auxiliary_weights: Tensor
    teacher: Tensor
    teacher_weights: Tensor

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True, eq=False)
class Request:
    """One batch to be made: its rows, and the seed of its draws, whichever process makes it."""

    rows: Ints
    seed: int


class PixelBatches(Dataset[TrainBatch | GoldfoldError]):
    """Augmented pixels, made whole from a Request. ``rare`` (N,) rows have an augmentation of their own.

    Raises ValueError for teachers' probabilities of several views, which belong to stored features.
    """

    def __init__(
        self,
        examples: Examples,
        augment: Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]],
        rare: npt.NDArray[np.bool_] | None = None,
        rare_augment: Augmenter | None = None,
    ) -> None:
        if examples.teacher.shape[1] > 1:
            raise ValueError(f"{examples.teacher.shape[1]} views of a teacher for images that are augmented by chance")
        self.examples, self.augment, self.rare, self.rare_augment = examples, augment, rare, rare_augment

    def __getitems__(self, request: Request) -> TrainBatch | GoldfoldError:
        try:
            pixels = self.augment(self.examples.images.read(self.examples.rows[request.rows]), request.seed)
            if self.rare is not None and self.rare_augment is not None and self.rare[request.rows].any():
                rare = np.flatnonzero(self.rare[request.rows])
                plain = self.examples.images.read(self.examples.rows[request.rows[rare]])
                views = np.arange(len(pixels) // len(request.rows))[:, None] * len(request.rows)
                pixels = pixels.copy()
                pixels[(views + rare).ravel()] = self.rare_augment(plain, derive_seed(request.seed, RARE))
        except GoldfoldError as error:
            return error
        return _batch(pixels, self.examples, request.rows)


class FeatureBatches(Dataset[TrainBatch | GoldfoldError]):
    """Stored features of the frozen trunk: of each row one view, drawn by the batch's seed.

    Raises ValueError unless the teachers speak of each stored view, or of the image as such.
    """

    def __init__(self, examples: Examples, features: Features | JoinedFeatures) -> None:
        spoken = examples.teacher.shape[1]
        if spoken > 1 and spoken != features.n_views:
            raise ValueError(f"{spoken} views of a teacher for {features.n_views} stored views of each image")
        self.examples, self.features = examples, features

    def __getitems__(self, request: Request) -> TrainBatch | GoldfoldError:
        rng = np.random.default_rng(derive_seed(request.seed, VIEW))
        views = rng.integers(self.features.first, self.features.n_views, size=len(request.rows))
        stored = self.features.read(self.examples.rows[request.rows], views)
        return _batch(stored, self.examples, request.rows, views)


def _batch(pixels: npt.NDArray[Any], examples: Examples, rows: Ints, views: Ints | None = None) -> TrainBatch:
    teacher = examples.teacher[rows]
    if teacher.shape[1] > 1 and views is not None:
        teacher = teacher[np.arange(len(rows)), views]  # what the teacher said of the very view
    else:
        teacher = teacher[:, 0] if teacher.shape[1] else teacher.reshape(len(rows), 0)
    return TrainBatch(
        pixels=torch.from_numpy(pixels),
        targets=torch.from_numpy(examples.targets[rows]),
        weights=torch.from_numpy(examples.weights[rows]),
        metadata=torch.from_numpy(examples.metadata[rows]),
        auxiliary=torch.from_numpy(examples.auxiliary[rows]),
        auxiliary_weights=torch.from_numpy(examples.auxiliary_weights[rows]),
        teacher=torch.from_numpy(teacher),
        teacher_weights=torch.from_numpy(examples.teacher_weights[rows]),
    )


class EpochOrder(Sampler[Request]):
    """The batches of an epoch, a pure function of (seed, epoch); rank r takes the r-th part of each global batch.

    ``draw``: from a seed to the row numbers of an epoch, always equally many. Rows that do not fill a last batch wait
    for another epoch's order (all rows, when they fill no batch at all).
    """

    def __init__(self, draw: Callable[[int], Ints], batch_size: int, *seed: int, rank: int = 0, world: int = 1) -> None:
        self.draw, self.batch_size, self.seed, self.epoch = draw, batch_size, seed, 0
        self.rank, self.world = rank, world
        self.n = len(draw(0))

    def __len__(self) -> int:
        return max(self.n // (self.batch_size * self.world), 1)

    def __iter__(self) -> Iterator[Request]:
        order = self.draw(derive_seed(*self.seed, self.epoch))
        step = self.batch_size * self.world
        for number in range(len(self)):
            rows = order[number * step : (number + 1) * step][self.rank :: self.world]
            yield Request(rows, derive_seed(*self.seed, self.epoch, number, self.rank))


def train_loader(
    batches: PixelBatches | FeatureBatches, order: EpochOrder, *, workers: int, pin_memory: bool
) -> Batches[TrainBatch]:
    """Batches in the order's order. The number of workers never changes what they hold."""
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_sampler=order,  # type: ignore[arg-type]  # it yields Requests, which the data set takes whole
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        generator=idle_generator(),
    )
    return Batches(loader)


def _as_it_is(batch: Any) -> Any:
    return batch
