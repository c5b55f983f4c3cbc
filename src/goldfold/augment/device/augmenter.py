"""Drawing transforms for whole batches on the device, from a seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goldfold.augment.augmenter import Items, items_for, listed
from goldfold.augment.device.forms import Form, form_of, resizing
from goldfold.augment.device.geometry import Move, on_device, resample
from goldfold.augment.library import Sides, always, build
from goldfold.config.schema import Augment


@dataclass(frozen=True)
class DeviceAugmenter:
    """``forms`` one after another; see ``make_device_augmenter``."""

    forms: tuple[Form, ...]
    stored: int

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """(B, S, S, C) uint8 on a device to (B, size, size, C) uint8 there; ``pixels`` stay as they are.

        The draws depend on ``seed`` (32 bits) and B alone: the same on every device, but for the noise of GaussNoise,
        which the device itself draws.
        """
        if not self.forms:
            return pixels
        device = pixels.device
        rng, generator = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
        images, side = pixels.permute(0, 3, 1, 2).float(), self.stored
        moves: list[Move] = []
        for form in self.forms:
            chosen = rng.random(len(pixels)) < form.chance
            for step in form.draw(rng, chosen, side):
                if isinstance(step, Move):
                    moves.append(step)
                    continue
                # Moves wait for one another until values are changed, and are then one resampling.
                images, moves = resample(images, moves), []
                if not len(step.rows):
                    continue
                values = {name: on_device(drawn, device) for name, drawn in step.values.items()}
                if len(step.rows) == len(images):
                    images = step.apply(images, values, generator)
                else:
                    rows = on_device(step.rows, device)
                    images = images.index_copy(0, rows, step.apply(images[rows], values, generator))
            side = form.side or side
        return resample(images, moves).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def make_device_augmenter(
    augment: Augment, size: int, stored: int, channels: int, *, crop: int | None = None
) -> DeviceAugmenter:
    """What ``make_augmenter`` makes, for batches on the device; ``stored``: side of the stored images.

    Transforms that follow each other and only move pixels are one resampling, so images come out a little sharper.
    Raises BadInput as ``make_augmenter`` does, and for a transform or an argument that has no form on the device.
    """
    crop = crop or size
    lists = listed(augment)
    items = items_for(lists, channels, stored > crop)
    if not items and stored == size:
        return DeviceAugmenter((), stored)
    forms: list[Form] = []
    side = stored
    if lists.preset and not lists.items and stored != size:  # "none" resizes, as validation does
        forms, side = [resizing(size)], size
    for made in _forms(items, Sides(size, crop), side, channels):
        forms.append(made)
        side = made.side or side
    if side != size:
        forms.append(resizing(size))
    return DeviceAugmenter(tuple(forms), stored)


def _forms(items: Items, sides: Sides, side: int, channels: int) -> list[Form]:
    made = []
    for where, item in items:
        form = form_of(build(item, sides, where), side, channels, where)
        side = form.side or side
        made.append(form)
    return made


def try_device_augmenter(augment: Augment, size: int, stored: int, channels: int, *, crop: int | None = None) -> None:
    """Run every transform on made-up images, whatever its chance. Raises BadInput as ``make_device_augmenter`` does."""
    make_device_augmenter(augment, size, stored, channels, crop=crop)  # a wrong list is named as it is written
    train = None if augment.train is None else tuple(always(item) for item in augment.train)
    sure = augment.model_copy(update={"train": train, "add": tuple(always(item) for item in augment.add)})
    noise = np.random.default_rng(0).integers(0, 256, (16, stored, stored, channels), dtype=np.uint8)
    make_device_augmenter(sure, size, stored, channels, crop=crop)(torch.from_numpy(noise), 0)
