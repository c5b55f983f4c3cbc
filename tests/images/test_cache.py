"""The store: right pixels, one build, and nothing half-written whoever dies."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from goldfold.errors import BadInput
from goldfold.images import ImageSpec, LazyImages, StoredImages, UnreadableImage, cache, load, open_images

SPEC = ImageSpec(size=12, channels=3, resize="squash", interpolation="area", range="full")
N = 40


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return make_images(tmp_path / "images", N)


def make_images(folder: Path, n: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{row}.png" for row in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
    return paths


def names(n: int = N) -> list[str]:
    return [f"id{row}" for row in range(n)]


def opened(folder: Path, paths: list[Path], spec: ImageSpec = SPEC) -> StoredImages:
    found = open_images(folder, names(len(paths)), paths, spec, workers=2)
    assert isinstance(found, StoredImages)
    return found


def stores(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/images.npy"))


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []

    def counted(path: Path, spec: ImageSpec) -> np.ndarray:
        seen.append(path)
        return load(path, spec)

    monkeypatch.setattr(cache, "load", counted)
    return seen


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    real = cache.files.sha256_file

    def counted(path: Path | str) -> str:
        seen.append(Path(path))
        return real(path)

    monkeypatch.setattr(cache.files, "sha256_file", counted)
    return seen


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_stored_and_lazy_images_are_what_load_gives(tmp_path: Path, images: list[Path], channels: int) -> None:
    spec = ImageSpec(size=12, channels=channels, resize="crop", interpolation="area", range="full")
    rows = [3, 0, 39, 3]
    wanted = np.stack([load(images[row], spec) for row in rows])
    lazy = open_images(None, names(), images, spec)
    assert isinstance(lazy, LazyImages)
    for found in (opened(tmp_path / "cache", images, spec), lazy):
        assert found.ids == tuple(names())
        assert found.shape == (12, 12, channels)
        for asked in (rows, np.array(rows), tuple(rows)):
            pixels = found.read(asked)
            assert type(pixels) is np.ndarray
            assert pixels.dtype == np.uint8
            assert np.array_equal(pixels, wanted)
        pixels[:] = 0  # a fresh array: the store does not change
        assert np.array_equal(found.read(rows), wanted)
        assert found.read([]).shape == (0, 12, 12, channels)
        for wrong in (-1, N):
            with pytest.raises(IndexError):
                found.read([wrong])
    assert not list((tmp_path / "cache").glob("*.building"))


def test_the_second_opening_neither_decodes_nor_hashes(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, hashed = count_decodes(monkeypatch), count_hashes(monkeypatch)
    opened(tmp_path / "cache", images)
    assert sorted(decoded) == sorted(hashed) == sorted(images)
    opened(tmp_path / "cache", images)
    assert len(decoded) == len(hashed) == N


def test_changed_bytes_give_a_new_store_and_touched_files_the_same(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    opened(folder, images)
    hashed = count_hashes(monkeypatch)
    os.utime(images[5], ns=(1, 1))
    opened(folder, images)
    assert hashed == [images[5]]
    assert len(stores(folder)) == 1
    Image.new("RGB", (16, 20), "red").save(images[5])
    assert (opened(folder, images).read([5]) == [255, 0, 0]).all()
    assert len(stores(folder)) == 2


def test_the_same_bytes_elsewhere_find_the_same_store(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path / "cache", images)
    shutil.copytree(images[0].parent, tmp_path / "moved")
    decoded = count_decodes(monkeypatch)
    second = opened(tmp_path / "cache", [tmp_path / "moved" / path.name for path in images])
    assert second.folder == first.folder
    assert not decoded


def test_ids_order_and_spec_are_part_of_the_key(tmp_path: Path, images: list[Path]) -> None:
    folder = tmp_path / "cache"
    opened(folder, images)
    opened(folder, images[::-1])
    open_images(folder, names()[::-1], images, SPEC)
    for change in ({"size": 13}, {"channels": 1}, {"resize": "crop"}, {"interpolation": "linear"}, {"range": "image"}):
        opened(folder, images, ImageSpec(**{**SPEC.__dict__, **change}))
    assert len(stores(folder)) == 8


def test_a_pickled_store_is_its_name(tmp_path: Path, images: list[Path]) -> None:
    store = opened(tmp_path / "cache", images)
    data = pickle.dumps(store)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.ids == store.ids
    assert np.array_equal(again.read([1, 2]), store.read([1, 2]))


@pytest.mark.parametrize("junk", [b"", b"PAR1 no parquet", None])
def test_a_corrupt_digests_file_is_made_again(tmp_path: Path, images: list[Path], junk: bytes | None) -> None:
    folder = tmp_path / "cache"
    first = opened(folder, images)
    if junk is None:
        pd.DataFrame({"other": [1]}).to_parquet(folder / "digests.parquet")
    else:
        (folder / "digests.parquet").write_bytes(junk)
    assert opened(folder, images).folder == first.folder
    assert len(pd.read_parquet(folder / "digests.parquet")) == N


def test_digests_of_other_images_are_kept(tmp_path: Path, images: list[Path]) -> None:
    folder = tmp_path / "cache"
    opened(folder, images[:10])
    opened(folder, images[20:])
    assert len(pd.read_parquet(folder / "digests.parquet")) == 30


@pytest.mark.parametrize("harm", ["cut", "cut to nothing", "long", "no index", "bad index", "no array"])
def test_a_broken_store_is_built_again(
    tmp_path: Path, images: list[Path], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(tmp_path / "cache", images)
    wanted = store.read(range(N))
    array, index = store.folder / "images.npy", store.folder / "index.json"
    data = array.read_bytes()
    if harm == "no index":
        index.unlink()
    elif harm == "bad index":
        index.write_text(json.dumps({"ids": [], "shape": [1, 1, 1]}))
    elif harm == "no array":
        array.unlink()
    else:
        array.write_bytes({"cut": data[:-1], "cut to nothing": b"", "long": data + b"x"}[harm])
    again = opened(tmp_path / "cache", images)
    assert np.array_equal(again.read(range(N)), wanted)
    assert "it is built again" in capsys.readouterr().err


def test_unreadable_images_are_named_and_nothing_is_kept(tmp_path: Path, images: list[Path]) -> None:
    folder = tmp_path / "cache"
    images[7].write_bytes(b"junk")
    with pytest.raises(UnreadableImage, match=r"7\.png: not a readable image"):
        opened(folder, images)
    images[9].write_bytes(b"")
    images[11].write_bytes(b"junk")
    with pytest.raises(UnreadableImage, match=r"7\.png: .*\(and 2 more images fail\)"):
        opened(folder, images)
    images[9].unlink()
    with pytest.raises(UnreadableImage, match=r"9\.png: .*No such file"):
        opened(folder, images)
    assert stores(folder) == []
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(BadInput, match=r"need 1\.73e-05 GB, 1e-06 GB are free; make room"):
        opened(tmp_path / "cache", images)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path, images: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be kept here .*input\.cache_dir"):
        opened(tmp_path / "file" / "cache", images)


def test_wrong_calls(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(BadInput, match="duplicate ids: a"):
        open_images(tmp_path / "cache", ["a", "a"], images[:2], SPEC)
    with pytest.raises(ValueError, match="1 ids for 2 paths"):
        open_images(tmp_path / "cache", ["a"], images[:2], SPEC)
    assert open_images(tmp_path / "cache", [], [], SPEC).read([]).shape == (0, 12, 12, 3)
    with pytest.raises(BadInput):
        StoredImages(tmp_path / "none")


BUILDER = """
import sys, time
from pathlib import Path
from goldfold.images import ImageSpec, cache, load, open_images

folder, source, log = map(Path, sys.argv[1:])
paths = sorted(source.iterdir())

def slow(path, spec):
    with log.open("a") as file:
        file.write(path.name + "\\n")
    time.sleep(0.05)
    return load(path, spec)

cache.load = slow
spec = ImageSpec(size=12, channels=3, resize="squash", interpolation="area", range="full")
images = open_images(folder, [path.stem for path in paths], paths, spec, workers=2)
print(images.folder.name, int(images.read(range(len(paths))).sum()))
"""


def start_builder(folder: Path, source: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(source), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_build_once(tmp_path: Path, images: list[Path]) -> None:
    log = tmp_path / "log"
    builders = [start_builder(tmp_path / "cache", images[0].parent, log) for _ in range(2)]
    said = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], said
    assert said[0][0] == said[1][0] != ""
    assert len(log.read_text().splitlines()) == N
    assert len(stores(tmp_path / "cache")) == 1


def test_a_killed_builder_leaves_nothing_that_harms(tmp_path: Path, images: list[Path]) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    # Another builder, long dead, of images that will never be asked for again.
    (folder / "0123.building").mkdir(parents=True)
    builder = start_builder(folder, images[0].parent, log)
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert builder.poll() is None, builder.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert stores(folder) == [next(folder.glob("*.building")).name]
    paths = sorted(images)
    again = open_images(folder, [path.stem for path in paths], paths, SPEC, workers=2)
    assert not list(folder.glob("*.building"))
    assert np.array_equal(again.read(range(N)), np.stack([load(path, SPEC) for path in paths]))


def test_a_living_builder_of_other_images_is_left_alone(tmp_path: Path, images: list[Path]) -> None:
    folder = tmp_path / "cache"
    (folder / "0123.building").mkdir(parents=True)
    with cache._locked(folder / "0123.lock", ""):
        opened(folder, images)
        assert (folder / "0123.building").exists()
    opened(folder, images[:5])
    assert not (folder / "0123.building").exists()


def test_an_interrupt_stops_the_build_soon_and_cleans_up(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, spec: ImageSpec) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "cache", images)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_threads_keep_the_order() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert cache.in_threads(work, range(50), 4, "work") == [number * number for number in range(50)]
    assert cache.in_threads(work, [], 4, "work") == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell what is mapped")
def test_reading_leaves_nothing_of_the_store_in_memory(tmp_path: Path) -> None:
    """A map's pages count as the process's memory, so a store of ten times the images would take ten times as much."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    store = opened(tmp_path / "cache", paths, ImageSpec(512, 3, "squash", "area", "full"))

    def of_files() -> int:
        status = Path("/proc/self/smaps").read_text().split("images.npy")
        return sum(int(part.split("Rss:")[1].split()[0]) for part in status[1:])

    for number in np.random.default_rng(0).permutation(40):
        assert (store.read([number]) == [number, 0, 0]).all()
    assert of_files() < 1000  # kB, of 31,000


@pytest.mark.parametrize("wrong", [-1, N])
def test_a_row_beyond_the_store_is_an_index_error(wrong: int, tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(IndexError, match=str(wrong)):
        opened(tmp_path / "cache", images).read([0, wrong])


def test_a_store_cut_short_while_it_is_read_is_told(tmp_path: Path, images: list[Path]) -> None:
    store = opened(tmp_path / "cache", images)
    path = next((tmp_path / "cache").glob("*/images.npy"))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OSError, match="cut short"):
        store.read([N - 1])
