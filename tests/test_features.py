"""The store of features: what the trunk computes of every view, once, and nothing half-written whoever dies."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections import namedtuple
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from goldfold import features as room
from goldfold.augment import centre
from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput, GoldfoldError
from goldfold.features import VIEWS, Features, JoinedFeatures, open_features, turned
from goldfold.images.colour import PLAIN, InputColours
from goldfold.machine import Machine
from goldfold.models import build_model, make_spec, set_frozen
from goldfold.models.trunk import split_trunk
from goldfold.tasks import Task

CPU = Machine(torch.device("cpu"), "fp32", channels_last=True, workers=0)
N = 10


class Pictures:
    """Random images."""

    def __init__(self, n: int = N, size: int = 16) -> None:
        self.ids = tuple(f"i{row}" for row in range(n))
        self.shape = (size, size, 3)
        self.digest = "d"
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, *self.shape), dtype=np.uint8)

    def read(self, rows: Any) -> Any:
        return self.pixels[np.asarray(rows)]


class Counted:
    """A trunk that tells which place of the image each feature comes from, and counts its calls."""

    def __init__(self, scale: float = 1.0) -> None:
        self.calls, self.scale = 0, scale

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert not torch.is_grad_enabled()
        return torch.nn.functional.avg_pool2d(x, 4) * self.scale


def prepare(pixels: Tensor) -> Tensor:
    assert pixels.dtype == torch.uint8
    return pixels.permute(0, 3, 1, 2).float() / 255


def opened(folder: Path, trunk: Any = None, images: Any = None, **changes: Any) -> Features:
    settings: dict[str, Any] = {"key": {"w": "1"}, "size": 16, "colours": PLAIN, "views": "flips", "machine": CPU}
    settings |= {"batch_size": 4} | changes
    return open_features(
        folder, trunk=trunk or Counted(), prepare=prepare, images=images or Pictures(), **settings
    )  # fmt: skip


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "features").iterdir() if not path.name.endswith(".lock"))


def test_the_views_are_the_eight_ways_a_square_lies() -> None:
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3, 1)
    seen = [turned(images, view) for view in range(8)]
    assert len({view.tobytes() for view in seen}) == 8
    assert np.array_equal(seen[0], images)
    assert np.array_equal(seen[1], np.flip(images, axis=2))
    assert np.array_equal(seen[2], np.flip(images, axis=1))
    assert np.array_equal(seen[3], np.rot90(images, 2, axes=(1, 2)))
    turns = [np.rot90(images, quarter, axes=(1, 2)) for quarter in range(4)]
    eight = {turn.tobytes() for turn in turns} | {np.flip(turn, axis=2).tobytes() for turn in turns}
    assert eight == {view.tobytes() for view in seen}
    assert VIEWS == {"none": 1, "flip": 2, "flips": 4, "d4": 8}
    with pytest.raises(ValueError, match="view 8"):
        turned(images, 8)


@pytest.mark.parametrize("views", VIEWS)
def test_features_are_what_the_trunk_gives_of_each_view(tmp_path: Path, views: str) -> None:
    images = Pictures()
    features = opened(tmp_path, images=images, views=views)
    assert (features.n_views, features.shape, features.ids) == (VIEWS[views], (3, 4, 4), images.ids)
    rows = np.array([7, 0, 9, 7])
    for view in range(features.n_views):
        stored = features.read(rows, np.full(4, view))
        pixels = np.ascontiguousarray(turned(images.pixels[rows], view))
        with torch.no_grad():
            direct = Counted()(prepare(torch.from_numpy(pixels))).numpy()
        assert stored.dtype == np.float16
        assert np.abs(stored - direct).max() < 1e-3
        assert view == 0 or np.abs(stored - features.read(rows, np.zeros(4, dtype=int))).max() > 0.01
    mixed = features.read(rows, np.arange(4) % features.n_views)
    assert all(
        np.array_equal(mixed[i], features.read(rows[i : i + 1], np.array([i % features.n_views]))[0]) for i in range(4)
    )
    mixed[:] = 0  # a fresh array: the store does not change
    assert features.read(rows, np.zeros(4, dtype=int)).any()


def test_the_pixels_are_those_of_validation(tmp_path: Path) -> None:
    """Resized to the network's size, in its colours."""
    images, colours = Pictures(size=24), InputColours(colour="hsv")
    features = opened(tmp_path, images=images, views="none", colours=colours)
    rows = np.arange(N)
    pixels = centre(images.pixels, 16, colours)
    with torch.no_grad():
        direct = Counted()(prepare(torch.from_numpy(pixels))).numpy()
    assert np.abs(features.read(rows, rows * 0) - direct).max() < 1e-3


def test_a_real_tail_trains_from_the_store(tmp_path: Path) -> None:
    model = build_model(
        make_spec(Model(backbone="test_resnet", pretrained=False), Input(size=32), Task("multiclass", ("a", "b", "c")))
    )
    set_frozen(model, 3, False)
    images = Pictures(size=32)
    split = split_trunk(model, model.prepare(torch.from_numpy(images.pixels[:2])))
    features = open_features(tmp_path, {}, split.trunk, model.prepare, images, 32, PLAIN, "flip", CPU, batch_size=4)
    rows = np.arange(N)
    flipped = torch.from_numpy(images.pixels[:, :, ::-1].copy())
    with torch.no_grad():
        expected = model.eval()(model.prepare(flipped))
        found = split.tail.eval()(torch.from_numpy(features.read(rows, rows * 0 + 1)))
    assert torch.allclose(found, expected, rtol=0.01, atol=0.01)


def test_the_second_opening_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Counted(), Counted()
    features = opened(tmp_path, first)
    assert first.calls == 3 * 4
    assert "computing 10 in 4 views" in capsys.readouterr().err
    again = opened(tmp_path, second)
    assert second.calls == 0
    assert again.folder == features.folder
    assert stores(tmp_path) == [features.folder.name]
    assert capsys.readouterr().err == ""


def test_all_that_features_depend_on_is_in_the_key(tmp_path: Path) -> None:
    opened(tmp_path)
    for change in (
        {"key": {"w": "2"}},
        {"size": 12},
        {"views": "d4"},
        {"colours": InputColours(local_mean="subtract")},
        {"images": Pictures(N - 1)},
    ):
        trunk = Counted()
        opened(tmp_path, trunk, **change)
        assert trunk.calls
    deeper = Counted()
    deeper.place = "layer3"  # type: ignore[attr-defined]
    opened(tmp_path, deeper)
    assert len(stores(tmp_path)) == 7


@pytest.mark.parametrize("harm", ["cut", "no index", "bad index", "no array"])
def test_a_broken_store_is_built_again(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    features, rows = opened(tmp_path), np.arange(N)
    wanted = features.read(rows, rows % 4)
    array, index = features.folder / "features.npy", features.folder / "index.json"
    if harm == "cut":
        array.write_bytes(array.read_bytes()[:-1])
    elif harm == "no array":
        array.unlink()
    elif harm == "no index":
        index.unlink()
    else:
        index.write_text('{"ids": [], "shape": [1], "n_views": 1}')
    trunk = Counted()
    assert np.array_equal(opened(tmp_path, trunk).read(rows, rows % 4), wanted)
    assert trunk.calls
    assert "it is built again" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1e6, float("nan")])
def test_features_beyond_half_precision_are_refused(tmp_path: Path, scale: float) -> None:
    with pytest.raises(GoldfoldError, match=r"frozen layers is .*65504; set model\.freeze\.cache to false"):
        opened(tmp_path, Counted(scale))
    assert stores(tmp_path) == []


def test_a_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(BadInput, match=r"features need 3\.84e-06 GB, 1e-06 GB are free; make room"):
        opened(tmp_path)
    assert stores(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be kept here .*input\.cache_dir"):
        opened(tmp_path / "file" / "cache")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell what is mapped")
def test_reading_leaves_nothing_of_the_store_in_memory(tmp_path: Path) -> None:
    """A map's pages count as the process's memory; a store of every view is the largest thing that training reads."""
    features = opened(tmp_path, images=Pictures(40, size=256), size=256)

    def of_files() -> int:
        status = Path("/proc/self/smaps").read_text().split("features.npy")
        return sum(int(part.split("Rss:")[1].split()[0]) for part in status[1:])

    for number in np.random.default_rng(0).permutation(40):
        features.read(np.full(4, number), np.arange(4))
    assert of_files() < 200  # kB, of 3,900


def test_unknown_rows_and_views_are_errors(tmp_path: Path) -> None:
    features = opened(tmp_path)
    for row, view in ((-1, 0), (N, 0), (0, 4), (0, -1)):
        with pytest.raises(IndexError):
            features.read(np.array([row]), np.array([view]))
    assert features.read(np.array([], dtype=int), np.array([], dtype=int)).shape == (0, 3, 4, 4)
    with pytest.raises(BadInput):
        Features(tmp_path / "none")


def test_joined_features_read_the_right_rows_of_every_part(tmp_path: Path) -> None:
    sizes = (10, 3, 5)
    parts = [opened(tmp_path, images=Pictures(n)) for n in sizes]
    joined = JoinedFeatures(parts)
    assert (joined.n_views, joined.shape, len(joined.ids)) == (4, (3, 4, 4), 18)
    rows, views = np.array([17, 0, 12, 10, 13, 9, 17]), np.array([3, 2, 1, 0, 0, 1, 3])
    found = joined.read(rows, views)
    assert found.dtype == np.float16
    for place, (part, row) in enumerate([(2, 4), (0, 0), (1, 2), (1, 0), (2, 0), (0, 9), (2, 4)]):
        assert np.array_equal(found[place], parts[part].read(np.array([row]), views[place : place + 1])[0])
    assert joined.read(np.array([], dtype=int), np.array([], dtype=int)).shape == (0, 3, 4, 4)
    assert np.array_equal(pickle.loads(pickle.dumps(joined)).read(rows, views), found)
    for row in (-1, 18):
        with pytest.raises(IndexError):
            joined.read(np.array([row]), np.array([0]))
    with pytest.raises(IndexError):
        joined.read(np.array([0]), np.array([4]))
    with pytest.raises(ValueError, match="different views"):
        JoinedFeatures([parts[0], opened(tmp_path, views="none")])


class Reading(Dataset[Tensor]):
    def __init__(self, features: Features) -> None:
        self.features = features

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.features.read(np.array([row]), np.array([row % 4])))


def test_loader_processes_open_the_store_by_its_name(tmp_path: Path) -> None:
    features, rows = opened(tmp_path), np.arange(N)
    data = pickle.dumps(features)
    assert len(data) < 500
    assert np.array_equal(pickle.loads(data).read(rows, rows % 4), features.read(rows, rows % 4))
    found = torch.cat(list(DataLoader(Reading(features), batch_size=None, num_workers=1)))
    assert np.array_equal(found.numpy(), features.read(rows, rows % 4))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    class Stopped(Counted):
        def __call__(self, x: Tensor) -> Tensor:
            if self.calls == 5:
                raise error
            return super().__call__(x)

    with pytest.raises(error):
        opened(tmp_path, Stopped())
    assert stores(tmp_path) == []
    trunk = Counted()
    opened(tmp_path, trunk)
    assert trunk.calls == 12


def build_slowly(folder: Path, log: Path) -> None:
    torch.set_num_threads(1)

    class Slow(Counted):
        def __call__(self, x: Tensor) -> Tensor:
            with log.open("a") as file:
                file.write("call\n")
            time.sleep(0.05)
            return super().__call__(x)

    name = opened(folder, Slow()).folder.name
    with (log.parent / "names").open("a") as file:
        file.write(f"{name}\n")


def start_builder(folder: Path, log: Path) -> BaseProcess:
    builder = multiprocessing.get_context("fork").Process(target=build_slowly, args=(folder, log))
    builder.start()
    return builder


def test_two_processes_build_once(tmp_path: Path) -> None:
    builders = [start_builder(tmp_path / "store", tmp_path / "log") for _ in range(2)]
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    names = (tmp_path / "names").read_text().split()
    assert len(names) == 2
    assert names[0] == names[1]
    assert (tmp_path / "log").read_text().count("call") == 12


def test_a_killed_builder_leaves_nothing_that_harms(tmp_path: Path) -> None:
    folder, log = tmp_path / "store", tmp_path / "log"
    # Another builder, long dead, of features that will never be asked for again.
    (folder / "features" / "0123.building").mkdir(parents=True)
    builder = start_builder(folder, log)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("call") > 4):
        assert builder.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.kill()
    builder.join()
    (left,) = stores(folder)
    assert left.endswith(".building")
    assert not (folder / "features" / left / "index.json").exists()
    trunk, rows = Counted(), np.arange(N)
    features = opened(folder, trunk)
    assert trunk.calls == 12
    assert stores(folder) == [features.folder.name] == [left.removesuffix(".building")]
    assert np.array_equal(features.read(rows, rows % 4), opened(tmp_path / "other").read(rows, rows % 4))


def test_a_living_builder_of_other_features_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "features" / "0123.building"
    other.mkdir(parents=True)
    with room.files.locked(tmp_path / "features" / "0123.lock"):
        opened(tmp_path)
        assert other.exists()
    opened(tmp_path, size=12)
    assert not other.exists()


def test_drawn_views_follow_the_image_itself_and_come_of_the_store_s_digest(tmp_path: Path) -> None:
    def draw(images: Any, seed: int) -> Any:
        return np.random.default_rng(seed).permutation(images, axis=2)

    features, rows = opened(tmp_path / "a", views=2, draw=draw), np.arange(N)
    assert (features.n_views, features.first) == (3, 1)
    plain = opened(tmp_path / "a", views="none")
    assert (plain.n_views, plain.first) == (1, 0)
    assert np.array_equal(features.read(rows, rows * 0), plain.read(rows, rows * 0))
    assert not np.array_equal(features.read(rows, rows * 0 + 1), features.read(rows, rows * 0 + 2))
    again = opened(tmp_path / "b", views=2, draw=draw)
    other = opened(tmp_path / "b", views=2, draw=draw, key={"w": "1", "augment": "another"})
    for view in (1, 2):
        assert np.array_equal(again.read(rows, rows * 0 + view), features.read(rows, rows * 0 + view))
        assert not np.array_equal(other.read(rows, rows * 0 + view), features.read(rows, rows * 0 + view))
    for wrong in ({"views": 2}, {"views": "flips", "draw": draw}):
        with pytest.raises(ValueError, match="with draw"):
            opened(tmp_path, **wrong)
