"""The store of features: what a frozen trunk makes of every view of every image, computed once, read row by row.

    <folder>/features/<key>/features.npy    (V * N, ...) float16, view after view
    <folder>/features/<key>/index.json      ids, shape, views, what the key was made of
    <folder>/features/<key>.lock/           held by the process that builds the store
    <folder>/features/<key>.building/       a store being built, or what a killed builder left

The key is a digest of all that the features depend on (weights, network, images, size, views), so a store never goes
stale.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goldfold import files
from goldfold.augment import centre
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import Images
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.memory import AtOnce
from goldfold.npy import NpyFile, NpyRows
from goldfold.progress import progress, say, warn
from goldfold.seeds import derive_seed

FORMAT = 3
"""Raise it when the features or the layout change, so that older stores are left alone."""

VIEWS = {"none": 1, "flip": 2, "flips": 4, "d4": 8}
"""How many of ``turned``'s views a name stands for, from the first on."""

Draw = Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]]
"""Images as stored (B, S, S, C) and a seed → what an augmentation makes of them, of the network's size."""

Rows = npt.NDArray[np.integer[Any]]
Array = npt.NDArray[Any]


def turned(images: Array, view: int) -> Array:
    """One of the 8 ways in which a square lies on itself: images (B, S, S, C) → (B, S, S, C), a view of them.

    0: as it is, 1: left and right swapped, 2: upside down, 3: both (half a turn); 4 to 7: those, transposed.
    """
    if not 0 <= view < 8:
        raise ValueError(f"view {view} of 8")
    if view & 1:
        images = images[:, :, ::-1]
    if view & 2:
        images = images[:, ::-1]
    if view & 4:
        images = images.swapaxes(1, 2)
    return images


class Features:
    """Features in a store. ``shape``: of one image's; ``n_views``: views of each image, the first of it as it is.

    ``first``: the first view to train on; 1 where the views after the first were drawn.

    Pickles as the folder's name: a loader process opens the file itself. Raises BadInput when the store is missing,
    cut short or not a store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = files.read_json(folder / "index.json")
        try:
            self.ids: tuple[str, ...] = tuple(index["ids"])
            self.n_views: int = index["n_views"]
            self.first: int = index["first"]
            self.shape: tuple[int, ...] = tuple(index["shape"])
            self._rows = NpyRows(folder / "features.npy")
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(folder, f"the store of features is broken ({error})", "delete it and run again") from error
        if self._rows.dtype != np.float16 or self._rows.shape != (self.n_views * len(self.ids), *self.shape):
            raise BadInput(folder, "features.npy is not what index.json says", "delete the folder and run again")

    def read(self, rows: Rows, views: Rows) -> npt.NDArray[np.float16]:
        """Of each row of the images, that view (rows and views (B,)) → (B, ...), a fresh array. Raises IndexError."""
        rows, views = np.asarray(rows, dtype=np.int64), np.asarray(views, dtype=np.int64)
        for numbers, count, what in ((rows, len(self.ids), "row"), (views, self.n_views, "view")):
            if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
                raise IndexError(f"{what}s {numbers.min()} to {numbers.max()} of {count} in a store of features")
        return self._rows.read((views * len(self.ids) + rows).tolist())

    def __reduce__(self) -> tuple[type[Features], tuple[Path]]:
        return Features, (self.folder,)


class JoinedFeatures:
    """Features of several stores of images as one; each store's rows follow those of the one before.

    A store a part: the training images' features are found again when other images are joined to them. Raises
    ValueError when the parts differ in views or shape.
    """

    def __init__(self, parts: Sequence[Features]) -> None:
        kinds = {(part.n_views, part.first, part.shape) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"stores of features with different views or shapes: {sorted(kinds)}")
        ((self.n_views, self.first, self.shape),) = kinds
        self.parts = tuple(parts)
        self.ids = tuple(name for part in parts for name in part.ids)
        self._starts = np.cumsum([0, *(len(part.ids) for part in parts)])

    def read(self, rows: Rows, views: Rows) -> npt.NDArray[np.float16]:
        """See ``Features.read``; rows count through all parts."""
        rows, views = np.asarray(rows, dtype=np.int64), np.asarray(views, dtype=np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.ids):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self.ids)} stored features")
        out = np.empty((len(rows), *self.shape), dtype=np.float16)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owner):
            chosen = owner == number
            out[chosen] = self.parts[number].read(rows[chosen] - self._starts[number], views[chosen])
        return out


def open_features(
    folder: Path,
    key: dict[str, Any],
    trunk: Callable[[Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor],
    images: Images,
    size: int,
    colours: InputColours,
    views: str | int,
    machine: Machine,
    batch_size: int = 128,
    what: str = "features",
    draw: Draw | None = None,
) -> Features:
    """The features of all ``images``, from the store in ``folder``, which is built when missing.

    ``key``: JSON values, digests of all that the features depend on but size, colours and views. ``trunk``: prepared
    images → features (B, ...); ``prepare``: uint8 pixels (B, size, size, C) on the device → prepared images.
    ``views``: a name of ``VIEWS``, or K: the image as it is, then K that ``draw`` makes (its settings are in ``key``), by
    seeds that come of the store's own digest, so that they are the same whoever builds it. Two processes may build at
    once: the second waits and reuses. Raises BadInput for a full disk or a folder that cannot be written, and
    GoldfoldError for features that float16 does not hold.
    """
    drawn = isinstance(views, int)
    if drawn != (draw is not None):
        raise ValueError(f"views {views!r} with draw {draw!r}")
    source = {"key": key, "size": size, "colours": repr(colours), "views": views}
    # The same key with another library may be cut elsewhere.
    source["place"] = getattr(trunk, "place", None)
    name = files.fingerprint({"format": FORMAT, "ids": images.ids, **source})[:32]
    folder = folder / "features"  # apart from the store of images, whose locks are of another kind
    try:
        found = _open(folder / name)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, name, what):
            found = _open(folder / name)
            if found is not None:
                return found
            _remove_dead_builds(folder, name)
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            building = folder / f"{name}.building"
            building.mkdir()
            try:
                n_views = views + 1 if isinstance(views, int) else VIEWS[views]
                shown = _Shown(images, size, colours, n_views, batch_size, draw, int(name[:16], 16))
                at_once = AtOnce(batch_size, machine.device, machine.precision, what)
                batches = _Batches(trunk, prepare, shown, machine, at_once)
                shape = _write(building / "features.npy", folder / name, batches, what)
                index = {"format": FORMAT, "ids": images.ids, "n_views": n_views, "first": int(drawn), "shape": shape}
                files.write_json(building / "index.json", {**index, "source": source})
                building.rename(folder / name)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            return Features(folder / name)
    except OSError as error:
        mend = "set input.cache_dir to a folder with room that you may write to, or model.freeze.cache to false"
        raise BadInput(folder, f"the store of features cannot be kept here ({error})", mend) from error


def _open(folder: Path) -> Features | None:
    if not folder.exists():
        return None
    try:
        return Features(folder)
    except BadInput as error:
        warn(f"{error} (it is built again)")
        return None


@contextlib.contextmanager
def _held(folder: Path, name: str, what: str) -> Iterator[None]:
    lock = folder / f"{name}.lock"
    with files.locked(lock, wait=False) as held:
        if held:
            yield
            return
    say(f"{what}: waiting for another process that computes them")
    with files.locked(lock):
        yield


def _remove_dead_builds(folder: Path, name: str) -> None:
    """Remove half-built stores whose builder is gone: nobody holds their lock. We hold the lock of ``name``."""
    for left in folder.glob("*.building"):
        if left.stem == name:
            shutil.rmtree(left)
        else:
            with files.locked(folder / f"{left.stem}.lock", wait=False) as held:
                if held:
                    shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class _Shown:
    """The pixels of every view of every image, batch by batch: (first row, view, (B, size, size, C) uint8)."""

    images: Images
    size: int
    colours: InputColours
    n_views: int
    batch_size: int
    draw: Draw | None
    seed: int

    @property
    def n_images(self) -> int:
        return len(self.images.ids)

    def __len__(self) -> int:
        return -(-self.n_images // self.batch_size) * self.n_views

    def __iter__(self) -> Iterator[tuple[int, int, Array]]:
        for start in range(0, self.n_images, self.batch_size):
            stored = self.images.read(range(start, min(start + self.batch_size, self.n_images)))
            plain = centre(stored, self.size, self.colours)
            for view in range(self.n_views):
                if self.draw is None:
                    yield start, view, turned(plain, view)
                else:
                    seed = derive_seed(self.seed, self.seed >> 32, view, start)
                    yield start, view, self.draw(stored, seed) if view else plain


@dataclass(frozen=True, eq=False)
class _Batches:
    """The features of what is shown, batch by batch: (first row, view, values (B, ...) float16)."""

    trunk: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    shown: _Shown
    machine: Machine
    at_once: AtOnce

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[tuple[int, int, npt.NDArray[np.float16]]]:
        for start, view, pixels in self.shown:
            found = self.at_once.in_parts(self._compute, torch.from_numpy(np.ascontiguousarray(pixels)))
            yield start, view, found.numpy()

    def _compute(self, pixels: Tensor) -> Tensor:
        with torch.no_grad(), self.machine.autocast():
            values = self.trunk(self.prepare(pixels.to(self.machine.device))).float()
        largest = float(values.abs().max())
        if not largest <= float(np.finfo(np.float16).max):  # NaN too
            what = (
                f"a feature of the frozen layers is {largest:.3g}, and the store of features holds numbers up to 65504"
            )
            raise GoldfoldError(f"{what}; set model.freeze.cache to false")
        return values.half().cpu()


def _write(path: Path, target: Path, batches: _Batches, what: str) -> tuple[int, ...]:
    """Write (V * N, ...) as .npy; the shape of one image's features. Raises BadInput when the disk lacks room."""
    shown = batches.shown
    with contextlib.ExitStack() as stack:
        out: NpyFile | None = None
        for start, view, values in progress(batches, f"{what}: computing", len(batches), "batches"):
            if out is None:
                shape = values.shape[1:]
                need = shown.n_views * shown.n_images * int(np.prod(shape)) * 2
                _check_room(path.parent, need, what)
                size = f"{need / 1e9:.3g} GB"
                say(f"{what}: computing {shown.n_images} in {shown.n_views} views to {target} ({size})")
                out = stack.enter_context(NpyFile(path, (shown.n_views * shown.n_images, *shape), np.float16))
            out.write(view * shown.n_images + start, values)
        if out is None:
            raise GoldfoldError(f"{what}: there are no images")
    return tuple(shape)


def _check_room(folder: Path, need: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if need >= free:
        raise BadInput(
            folder.parent,
            f"{what} need {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are free",
            "make room, set input.cache_dir to another disk, freeze more stages, take fewer model.freeze.cache_views, "
            "or set model.freeze.cache to false",
        )
