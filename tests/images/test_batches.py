"""Pixels that need no work are read where they are wanted, others by loader processes: the same batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from goldfold.errors import GoldfoldError
from goldfold.images import Images, ImageSpec, StoredImages, open_images
from goldfold.images.batches import PlainBatches, ReadAhead, plain_loader
from goldfold.images.colour import PLAIN, InputColours
from goldfold.records import Ints
from tests.images.test_cache import make_images, names

N, SIZE = 11, 12
ROWS = np.array([7, 1, 3, 2, 9, 0, 10])


@pytest.fixture
def store(tmp_path: Path) -> StoredImages:
    paths = make_images(tmp_path / "images", N)
    found = open_images(tmp_path / "store", names(N), paths, ImageSpec(SIZE, 3, "squash", "area", "full"))
    assert isinstance(found, StoredImages)
    return found


def workers_of(images: Images, size: int, colours: InputColours) -> int:
    loader = plain_loader(images, ROWS, size, 2, workers=2, pin_memory=False, colours=colours).loader
    assert isinstance(loader, DataLoader)
    return int(loader.num_workers)


def test_processes_start_only_where_there_is_work_for_them(store: StoredImages) -> None:
    assert workers_of(store, SIZE, PLAIN) == 0
    assert workers_of(store, SIZE - 2, PLAIN) == 2
    assert workers_of(store, SIZE, InputColours("hsv")) == 2


def test_a_thread_reads_ahead_the_same_batches(store: StoredImages, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(plain_loader(store, ROWS, SIZE, 2, workers=0, pin_memory=False))
    batches = PlainBatches(store, ROWS, SIZE, 2, PLAIN)
    found = list(ReadAhead(batches, pin=False))
    assert len(ReadAhead(batches, pin=False)) == len(found) == len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True) if isinstance(a, Tensor))
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pixels.clone())  # there is a GPU to pin for elsewhere
    loader = plain_loader(store, ROWS, SIZE, 2, workers=2, pin_memory=True)
    assert isinstance(loader.loader, ReadAhead)
    assert all(torch.equal(a, b) for a, b in zip(loader, plain, strict=True))


def test_an_error_of_the_thread_arrives_and_what_was_read_before_it_too(
    store: StoredImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredImages.read

    def broken(images: StoredImages, rows: Ints) -> np.ndarray:
        if 9 in rows:
            raise GoldfoldError("the third batch")
        return read(images, rows)

    monkeypatch.setattr(StoredImages, "read", broken)
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pixels)
    loader = iter(plain_loader(store, ROWS, SIZE, 2, workers=0, pin_memory=True))
    assert len([next(loader), next(loader)]) == 2
    with pytest.raises(GoldfoldError, match="the third batch"):
        next(loader)
