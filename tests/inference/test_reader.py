"""Every file is read once, whatever is wanted of it; what cannot be read, or hangs, does not hold up the rest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goldfold.images import ImageSpec, decode, load
from goldfold.images.decode import Pixels, decode_ways, load_specs
from goldfold.inference.reader import NoRoom, Reader, Stopped

RGB = ImageSpec(12, 3, "squash", "area", "full")
GREY = ImageSpec(9, 1, "letterbox", "linear", "full")
DEEP = ImageSpec(12, 3, "crop", "cubic", "image")
SPECS = (RGB, GREY, DEEP)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Nineteen pictures of several modes; a JPEG that lies on its side and a picture of 16 bits among them."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(17):
        mode, channels = [("RGB", 3), ("L", 1), ("RGBA", 4)][number % 3]
        pixels = rng.integers(0, 256, (10 + number, 20 - number // 2, channels), dtype=np.uint8)
        found.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(found[-1])
    turned = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 60000, (11, 13), dtype=np.uint16)).save(tmp_path / "deep.png")
    return [*found, tmp_path / "turned.jpg", tmp_path / "deep.png"]


def rows(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(count, dtype=np.int64)


@pytest.mark.parametrize("folder", [True, False])
def test_images_are_those_of_the_plain_loader_in_every_spec(paths: list[Path], tmp_path: Path, folder: bool) -> None:
    reader = Reader(paths, SPECS, tmp_path / "scratch" if folder else None, threads=3)
    reader.start()
    for spec in SPECS:
        found = reader.images(spec).read(rows(len(paths)))
        assert np.array_equal(found, np.stack([load(path, spec) for path in paths]))
    assert reader.finished
    assert not reader.unreadable.any()
    reader.close()
    assert list((tmp_path / "scratch").glob("*")) == []  # nothing is left behind, killed or not


def test_a_file_is_read_and_decoded_once_for_all_specs(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[Path] = Counter()
    opened: list[object] = []
    read, open_ = Path.read_bytes, Image.open

    def counted(path: Path) -> bytes:
        reads[path] += 1
        return read(path)

    def opening(*arguments: Any) -> Image.Image:
        opened.append(arguments)
        return open_(*arguments)

    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(Image, "open", opening)
    reader = Reader(paths, SPECS, None, threads=2)
    reader.start()
    for spec in SPECS:
        for _ in range(3):
            reader.images(spec).read(rows(len(paths)))
    reader.close()
    assert reads == Counter(dict.fromkeys(paths, 1))
    assert len(opened) == len(paths)


def test_one_decoding_gives_the_same_pixels_as_one_for_each(paths: list[Path]) -> None:
    ways = [(1, "full"), (3, "full"), (4, "full"), (3, "image")]
    for path in paths:
        for found, way in zip(decode_ways(path, ways), ways, strict=True):
            assert np.array_equal(found, decode(path, *way))
        for found, spec in zip(load_specs(path, SPECS), SPECS, strict=True):
            assert np.array_equal(found, load(path, spec))


def test_unreadable_images_are_black_and_told(paths: list[Path], tmp_path: Path) -> None:
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    paths[5].unlink()
    paths[7].write_bytes(b"")
    reader = Reader(paths, SPECS, tmp_path / "scratch", threads=2)
    reader.start()
    found = reader.images(RGB).read(rows(len(paths)))
    assert np.flatnonzero(reader.unreadable).tolist() == [3, 5, 7]
    assert sorted(reader.reasons) == [3, 5, 7]
    assert "does not exist" in reader.reasons[5]
    assert not found[[3, 5, 7]].any()
    assert found[4].any()
    reader.close()


def test_a_decoder_that_crashes_costs_its_own_row_alone(paths: list[Path]) -> None:
    def crash(path: Path, specs: Sequence[ImageSpec]) -> list[Pixels]:
        if path == paths[2]:
            raise ZeroDivisionError("a decoder's bug")
        return load_specs(path, specs)

    reader = Reader(paths, SPECS, None, threads=2, load=crash)
    reader.start()
    reader.images(GREY).read(rows(len(paths)))
    assert list(reader.reasons) == [2]
    assert "ZeroDivisionError" in reader.reasons[2]
    reader.close()


def test_a_read_that_hangs_is_given_up_and_the_thread_replaced(paths: list[Path]) -> None:
    hung = threading.Event()
    free = threading.Event()

    def slow(path: Path, specs: Sequence[ImageSpec]) -> list[Pixels]:
        if path == paths[1]:
            hung.set()
            assert free.wait(60)
        return load_specs(path, specs)

    reader = Reader(paths, SPECS, None, threads=1, patience=0.3, load=slow)
    reader.start()
    found = reader.images(RGB).read(rows(len(paths)))  # one thread alone, and it hangs at the second row
    assert hung.is_set()
    assert list(reader.reasons) == [1]
    assert "not read within" in reader.reasons[1]
    assert np.array_equal(found[2], load(paths[2], RGB))
    free.set()
    for thread in threading.enumerate():
        if thread.name == "goldfold-decode-0":
            thread.join(10)
    assert not reader.images(RGB).read(rows(2))[1].any()  # what came too late is not written
    reader.close()


def test_who_waits_is_let_go_when_the_reader_is_closed(paths: list[Path]) -> None:
    free = threading.Event()

    def slow(path: Path, specs: Sequence[ImageSpec]) -> list[Pixels]:
        assert free.wait(60)
        return load_specs(path, specs)

    reader = Reader(paths, SPECS, None, threads=1, load=slow)
    reader.start()
    threading.Timer(0.1, reader.close).start()
    with pytest.raises(Stopped):
        reader.images(RGB).read(rows(3))
    free.set()


def test_no_room_is_known_before_anything_is_read(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match="no room for"):
        Reader(paths * 10, [ImageSpec(400_000, 3, "squash", "area", "full")], tmp_path, threads=1)
    (tmp_path / "file").touch()
    with pytest.raises(NoRoom):
        Reader(paths, SPECS, tmp_path / "file", threads=1)


def test_no_images_at_all(tmp_path: Path) -> None:
    reader = Reader([], SPECS, tmp_path, threads=2)
    reader.start()
    assert reader.finished
    assert reader.seconds_left() == 0
    assert reader.images(RGB).read(rows(0)).shape == (0, 12, 12, 3)
    reader.close()
