"""Batches of stored images as prediction shows them: in order, without augmentation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from goldfold.errors import GoldfoldError, some
from goldfold.images.cache import Images, StoredImages
from goldfold.images.centre import centre
from goldfold.images.colour import PLAIN, InputColours
from goldfold.records import Ints

B = TypeVar("B")
AHEAD = 2
"""Batches that a thread reads before they are asked for."""


class Batches(Generic[B]):
    """A loader's batches. An error in a loader process is raised here as itself, not as torch's report of it."""

    def __init__(self, loader: DataLoader[B] | ReadAhead) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[B]:
        batch: Any
        for batch in self.loader:
            if isinstance(batch, GoldfoldError):
                raise batch
            yield batch


def rows_of(images: Images, ids: Sequence[str]) -> Ints:
    """Row numbers of ``ids`` in an image store. Raises GoldfoldError when one is missing."""
    position = {name: row for row, name in enumerate(images.ids)}
    missing = [name for name in ids if name not in position]
    if missing:
        raise GoldfoldError(f"{len(missing)} ids have no image in the store: {some(missing)}")
    return np.array([position[name] for name in ids], dtype=np.int64)


class PlainBatches(Dataset[Tensor | GoldfoldError]):
    """Pixels (B, S, S, C) uint8 of given rows without augmentation, in order, in the network's colours."""

    def __init__(self, images: Images, rows: Ints, size: int, batch_size: int, colours: InputColours) -> None:
        self.images, self.size, self.colours = images, size, colours
        self.batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor | GoldfoldError:
        try:
            return torch.from_numpy(centre(self.images.read(self.batches[number]), self.size, self.colours))
        except GoldfoldError as error:
            return error


class ReadAhead:
    """The batches in order, a few of them read ahead by a thread; ``pin``: into memory from which a GPU copies at once."""

    def __init__(self, batches: PlainBatches, *, pin: bool) -> None:
        self.batches, self.pin = batches, pin

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor | GoldfoldError]:
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[Tensor | GoldfoldError]] = deque()
            for number in range(len(self)):
                waiting.append(pool.submit(self._read, number))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, number: int) -> Tensor | GoldfoldError:
        batch = self.batches[number]
        return batch.pin_memory() if self.pin and isinstance(batch, Tensor) else batch


def plain_loader(
    images: Images,
    rows: Ints,
    size: int,
    batch_size: int,
    *,
    workers: int,
    pin_memory: bool,
    colours: InputColours = PLAIN,
) -> Batches[Tensor]:
    """Batches of at most ``batch_size`` rows. ``workers`` processes prepare them, unless there is nothing to prepare: pixels
    that lie in the store as the network sees them are read here, for a GPU by a thread, sooner than a process starts."""
    batches = PlainBatches(images, rows, size, batch_size, colours)
    if isinstance(images, StoredImages) and images.shape[:2] == (size, size) and colours.plain:
        if pin_memory:
            return Batches(ReadAhead(batches, pin=True))
        workers = 0
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        generator=idle_generator(),
    )
    return Batches(loader)


def idle_generator() -> torch.Generator:
    """A loader that starts its processes draws a seed for them, which nothing here uses.

    From the global generator it would move dropout's draws, by the number of processes and by where a run goes on.
    """
    return torch.Generator().manual_seed(0)


def start_worker(number: int) -> None:
    # OpenCV's own threads would fight with the other workers for the cores.
    cv2.setNumThreads(0)
