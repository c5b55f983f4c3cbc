"""Drawing transforms for whole batches, from a seed alone."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from goldfold.augment.library import Sides, albumentations, always, build, holds
from goldfold.augment.presets import COLOUR_ONLY, PRESETS, Item
from goldfold.augment.quick import run
from goldfold.config.schema import Augment
from goldfold.errors import BadInput
from goldfold.images.centre import centre, resized
from goldfold.images.colour import PLAIN, InputColours
from goldfold.seeds import derive_seed

# OpenCV's own threads would fight with the loader's workers for the cores.
cv2.setNumThreads(0)

Pixels = npt.NDArray[np.uint8]

_AUGMIX = 1
"""Keeps AugMix's draws apart from the clean chain's."""

Items = tuple[tuple[str, Item], ...]
"""Transforms, each with where it stands in the configuration."""


@dataclass(frozen=True)
class Lists:
    """The preset or the user's list, and what is added to it. ``where``: the first of them, for messages."""

    items: Items
    added: Items
    where: str
    preset: bool


def listed(augment: Augment) -> Lists:
    """What ``augment`` names, each transform with its place."""
    preset = augment.train is None
    where = f"augment.preset {augment.preset}" if preset else "augment.train"
    first = PRESETS[augment.preset] if augment.train is None else augment.train
    return Lists(_numbered(first, where), _numbered(augment.add, "augment.add"), where, preset)


def items_for(lists: Lists, channels: int, larger: bool) -> Items:
    """The transforms for images of ``channels``, which are ``larger`` than what a crop leaves or not."""
    items = lists.items
    if lists.preset:
        items = tuple(entry for entry in items if channels == 3 or not COLOUR_ONLY & entry[1].keys())
        if larger and items and "RandomResizedCrop" not in items[0][1]:
            items = ((lists.where, {"RandomCrop": {}}), *items)
    return (*items, *lists.added)


class Augmenter:
    """Draws transforms for batches; see ``make_augmenter``. Pickles, so loader workers may hold it."""

    def __init__(
        self, augment: Augment, size: int, *, views: int = 1, colours: InputColours = PLAIN, crop: int | None = None
    ) -> None:
        self.size, self.views, self.colours = size, views, colours
        self._crop = crop or size
        self._lists = listed(augment)
        self._where = self._lists.where + (" with augment.add" if self._lists.added else "")
        self._augmix: Items = ()
        if views != 1:
            self._set_augmix_apart()
        self._composed: dict[tuple[bool, bool], Any] = {}
        self._mixed: Any = self._build(self._augmix) if self._augmix else None
        self._compose(channels=3, larger=False)  # a wrong list is refused now, not in the first batch

    def __call__(self, images: Pixels, seed: int) -> Pixels:
        """(B, S, S, C) uint8 to (views x B, size, size, C) uint8, contiguous; ``images`` stay as they are.

        The draws depend on ``seed`` (0 or more) and the images' order alone, so never on the process that makes the batch.
        Raises BadInput when a transform of the user's list refuses these images or changes their type or channels.
        """
        stored, channels = images.shape[1], images.shape[3]
        lists = self._lists
        if not (lists.items or lists.added or self._augmix):
            return centre(images, self.size, self.colours)
        compose = self._compose(channels, stored > self._crop)
        # Not compose.set_random_seed: it gives every transform a generator of the same seed, so that two of p=0.5 always
        # act together (flips would only ever turn by 180 degrees). One pair of generators is shared instead.
        _draw_from(compose, seed)
        if self._mixed is not None:
            _draw_from(self._mixed, derive_seed(seed, _AUGMIX))
        batch = np.empty((self.views * len(images), self.size, self.size, channels), dtype=np.uint8)
        for place, image in enumerate(images):
            if lists.preset and not lists.items:  # "none" resizes, as validation does; what is added sees that
                image = resized(image, self.size)
            batch[place] = self._apply(compose, image)
            for view in range(1, self.views):
                batch[view * len(images) + place] = self._apply(self._mixed, batch[place])
        return self.colours(batch)

    def _apply(self, compose: Any, image: Pixels) -> Pixels:
        try:
            made = run(compose, image)
        except Exception as error:  # whatever albumentations, OpenCV or NumPy raise
            what = f"a transform fails on images of shape {image.shape} ({error})"
            raise BadInput(self._where, what, "change or remove it") from error
        if made.ndim == 2:
            made = made[..., None]
        if made.dtype != np.uint8 or made.ndim != 3 or made.shape[2] != image.shape[2]:
            what = f"the transforms give {made.dtype} of shape {made.shape} for uint8 of shape {image.shape}"
            raise BadInput(self._where, what, "leave out what changes the type or the channels")
        return resized(made, self.size)

    def _compose(self, channels: int, larger: bool) -> Any:
        key = (channels == 3, larger)
        if key not in self._composed:
            self._composed[key] = self._build(items_for(self._lists, channels, larger))
        return self._composed[key]

    def _build(self, items: Sequence[tuple[str, Item]]) -> Any:
        sides = Sides(self.size, self._crop)
        transforms = [build(item, sides, where) for where, item in items]
        return albumentations().Compose(transforms, is_check_shapes=False)

    def _set_augmix_apart(self) -> None:
        everything = (*self._lists.items, *self._lists.added)
        self._augmix = tuple(entry for entry in everything if "AugMix" in entry[1])
        if not self._augmix:
            what = "compares AugMix's views, and there is no AugMix"
            raise BadInput("loss.jsd", what, "put it into augment.add or augment.train")
        self._build(everything)  # what is malformed is named first
        for where, item in everything:
            if "AugMix" not in item and holds(item, "AugMix"):
                what = "AugMix within a choice leaves no clean view for loss.jsd"
                raise BadInput(where, what, "put it into the list itself")
        items, added = (
            tuple(entry for entry in part if entry not in self._augmix)
            for part in (self._lists.items, self._lists.added)
        )
        self._lists = replace(self._lists, items=items, added=added)


def make_augmenter(
    augment: Augment, size: int, views: int = 1, colours: InputColours = PLAIN, *, crop: int | None = None
) -> Augmenter:
    """The preset or the user's list, then ``augment.add``; images come out with side ``size``, in ``colours``.

    ``views`` 3, for the consistency loss: B clean images, then B + B AugMix views of the same; all other transforms make
    the clean ones, also those that stand after AugMix.
    ``crop``: side in stored pixels of what a preset's random crop cuts from larger images; None: ``size``. A phase of
    smaller images gives the experiment's size here, and so sees as much of the scene as validation does.

    A transform whose output size is left out makes ``size`` (``RandomResizedCrop``, ``Resize`` and the like) or ``crop``
    (``RandomCrop``, ``CenterCrop``). Raises BadInput for an unknown transform or argument (albumentations 2.0.8 only warns
    of those and goes on with defaults), for a wrong value, for transforms that give tensors or floats, and for 3 views
    without AugMix.
    """
    if views not in (1, 3):
        raise ValueError(f"1 or 3 views, not {views}")
    return Augmenter(augment, size, views=views, colours=colours, crop=crop)


def as_stored(images: Pixels, seed: int) -> Pixels:
    """For batches that the device augments: the images as they are."""
    return images


def try_augmenter(augment: Augment, size: int, stored: int, channels: int, views: int = 1) -> None:
    """Run every transform on made-up images of side ``stored``, whatever its chance.

    Raises BadInput when one fails, or warns that it leaves such images as they are.
    """
    make_augmenter(augment, size, views)  # before any list is read on, a wrong one is named
    train = None if augment.train is None else tuple(always(item) for item in augment.train)
    augment = augment.model_copy(update={"train": train, "add": tuple(always(item) for item in augment.add)})
    # Several images, so that each member of a choice has its turn.
    noise = np.random.default_rng(0).integers(0, 256, (16, stored, stored, channels), dtype=np.uint8)
    augmenter = make_augmenter(augment, size, views)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        augmenter(noise, seed=0)
    for warning in seen:
        if issubclass(warning.category, UserWarning):
            what = f"on images of {channels} channels: {' '.join(str(warning.message).split())}"
            raise BadInput("augment", what, "leave that transform out")


def _numbered(items: Sequence[Item], where: str) -> Items:
    return tuple((f"{where}[{row}]", item) for row, item in enumerate(items))


def _draw_from(compose: Any, seed: int) -> None:
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
