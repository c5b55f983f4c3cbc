"""Rows of a .npy file: written in any order, read back as they were, and an error of the disk is never lost."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from goldfold import npy
from goldfold.npy import NpyFile, NpyRows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    values = np.arange(7 * 3 * 5, dtype=np.float32).reshape(7, 3, 5)
    with NpyFile(tmp_path / "x.npy", values.shape, values.dtype) as file:
        file.write(4, values[4:])
        file.write(0, values[:4])
    assert (np.load(tmp_path / "x.npy") == values).all()
    assert (NpyRows(tmp_path / "x.npy").read([6, 0, 6]) == values[[6, 0, 6]]).all()


def test_what_the_disk_refuses_meanwhile_is_raised_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells a failed write once: the last sync may well succeed."""
    refused = threading.Event()

    def refuse(handle: int) -> None:
        refused.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(npy, "SYNC_EVERY", 0.001)
    monkeypatch.setattr(os, "fdatasync", refuse, raising=False)
    before = threading.active_count()

    def build() -> None:
        with NpyFile(tmp_path / "x.npy", (2, 3), np.uint8) as file:
            file.write(0, np.ones((2, 3), np.uint8))
            assert refused.wait(10)

    with pytest.raises(OSError, match="Input/output error"):
        build()
    assert threading.active_count() == before


def test_a_file_goes_to_the_disk_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(npy, "SYNC_EVERY", 0.001)
    monkeypatch.setattr(os, "fdatasync", sent.append, raising=False)
    with NpyFile(tmp_path / "x.npy", (2, 3), np.uint8):
        for _ in range(1000):
            if len(sent) > 2:
                break
            time.sleep(0.01)
    assert len(sent) > 2
    assert len(set(sent)) == 1


def test_an_error_inside_is_the_one_that_is_raised(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"), NpyFile(tmp_path / "x.npy", (2, 3), np.uint8):
        raise KeyError("mine")
    assert threading.active_count() == before
