"""The quick forms are the library's transforms, bit for bit and draw for draw."""

from __future__ import annotations

import itertools
import random
import warnings
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from goldfold.augment import PRESETS, Augmenter, make_augmenter
from goldfold.augment.library import Sides, build, known_transforms
from goldfold.augment.quick import _forms, run
from goldfold.config.schema import Augment

SIDE = 32
Pixels = npt.NDArray[np.uint8]


def pictures(n: int, channels: int = 3, size: int = SIDE) -> list[Pixels]:
    """Noise, smooth images, and some of one colour, of extremes, of grey."""
    rng = np.random.default_rng(3)
    made = [rng.integers(0, 256, (size, size, channels), dtype=np.uint8)]
    made += [np.full_like(made[0], value) for value in (0, 255, 77)]
    made.append(np.repeat(made[0][..., :1], channels, axis=2))
    while len(made) < n:
        small = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
        made.append(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels))
    return made[:n]


def compare(items: Any, images: list[Pixels], draws: int, size: int = SIDE) -> int:
    """Both ways with generators of one seed; returns how many images were changed."""
    chain = A.Compose([build(item, Sides(size, size), "x") for item in items], is_check_shapes=False)
    changed = 0
    for seed in range(draws):
        found = []
        for way in (lambda image: chain(image=image)["image"], lambda image: run(chain, image)):
            chain.set_random_state(np.random.default_rng(seed), random.Random(seed))
            before = [image.copy() for image in images]
            found.append([way(image) for image in images])
            assert all(map(np.array_equal, images, before)), "left as they were"
            # Whatever is drawn next is drawn alike, too.
            found[-1].append((chain.py_random.random(), chain.random_generator.random()))
        assert found[0].pop() == found[1].pop()
        for image, library, quick in zip(images, *found, strict=True):
            assert (quick.dtype, quick.shape) == (library.dtype, library.shape)
            assert np.array_equal(quick, library), items
            assert quick.flags.c_contiguous == library.flags.c_contiguous
            changed += not np.array_equal(image, quick)
    return changed


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_presets(preset: str, channels: int) -> None:
    items = [item for item in PRESETS[preset] if channels == 3 or "HueSaturationValue" not in item]
    for size in (SIDE, 24):
        assert compare(items, pictures(8, channels), 12, size) > 30


ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("ColorJitter", {}),
    ("ColorJitter", {"brightness": [0, 3], "contrast": [0, 3], "saturation": [0, 4], "hue": [-0.5, 0.5]}),
    ("ColorJitter", {"brightness": [1, 1], "contrast": [0, 0], "saturation": [0, 0], "hue": [0, 0]}),
    ("ColorJitter", {"brightness": [0, 0], "contrast": [1, 1], "saturation": [1, 1], "hue": [0.25, 0.25]}),
    ("HueSaturationValue", {}),
    ("HueSaturationValue", {"hue_shift_limit": 180, "sat_shift_limit": 255, "val_shift_limit": 255}),
    ("HueSaturationValue", {"hue_shift_limit": 0, "sat_shift_limit": [-0.5, 0.5], "val_shift_limit": 0}),
    ("HueSaturationValue", {"hue_shift_limit": [3, 3], "sat_shift_limit": 0, "val_shift_limit": [-20, -20]}),
    ("HueSaturationValue", {"hue_shift_limit": 0, "sat_shift_limit": 0, "val_shift_limit": 0}),
    ("RandomBrightnessContrast", {"brightness_limit": [-1, 1], "contrast_limit": [-1, 1]}),
    ("RandomBrightnessContrast", {"brightness_by_max": False}),
    ("RandomBrightnessContrast", {"ensure_safe_range": True}),
    ("Affine", {"rotate": [-180, 180], "shear": [-20, 20], "scale": [0.5, 2]}),
    ("Affine", {"translate_px": [-9, 9], "fill": 70, "border_mode": 0, "interpolation": 2, "balanced_scale": True}),
    ("Affine", {"rotate": [-40, 40], "fit_output": True}),
    ("Affine", {"rotate": [-1e-7, 1e-7]}),
    ("Affine", {"translate_percent": [-0.2, 0.2], "border_mode": 1, "interpolation": 0}),
    ("RandomResizedCrop", {"scale": [0.1, 1], "ratio": [0.5, 2], "interpolation": 3}),
    ("RandomResizedCrop", {"scale": [1, 1], "ratio": [1, 1]}),
    ("RandomResizedCrop", {"size": [20, 12], "area_for_downscale": "image"}),
]


@pytest.mark.parametrize("p", [1.0, 0.6])
@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_quick_forms(name: str, arguments: dict[str, Any], p: float) -> None:
    assert known_transforms()[name] in _forms()
    compare([{name: {**arguments, "p": p}}, {"HorizontalFlip": {"p": 0.5}}], pictures(7), 12)
    if name not in ("HueSaturationValue",):
        compare([{name: {**arguments, "p": p}}], pictures(6, 1), 4)


def test_jitter_takes_every_order() -> None:
    chain = A.Compose([A.ColorJitter(p=1.0)])
    orders = set()
    for seed in range(150):
        chain.set_random_state(np.random.default_rng(seed), random.Random(seed))
        chain.py_random.random()
        orders.add(tuple(chain.transforms[0].get_params()["order"]))
    assert orders == set(itertools.permutations(range(4)))
    compare([{"ColorJitter": {"p": 1.0}}], pictures(6), 150)


def test_every_value_of_saturation_and_value_is_looked_up_rightly() -> None:
    saturation, value = np.meshgrid(np.arange(256), np.arange(256))
    hsv = np.stack([saturation % 180, saturation, value], axis=2).astype(np.uint8)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    item = {"HueSaturationValue": {"sat_shift_limit": 60, "val_shift_limit": 60, "p": 1.0}}
    compare([item], [np.asarray(image, np.uint8)], 40, 256)


def test_all_other_transforms_of_the_library() -> None:
    seen = 0
    for name in known_transforms():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                chain = A.Compose([build({name: {"p": 1.0}}, Sides(SIDE, SIDE), "x")])
                chain(image=pictures(6)[5])
            except Exception:
                continue
            compare([{name: {"p": 0.7}}], pictures(6)[5:], 4)
            seen += 1
    assert seen > 80


@pytest.mark.parametrize("preset", ["medium", "heavy"])
def test_an_augmenter_draws_as_albumentations_does(preset: str) -> None:
    """What training sees is what a plain Compose with the batch's two generators makes of it, in order."""
    images = np.stack(pictures(9))
    augmenter: Augmenter = make_augmenter(Augment(preset=preset), SIDE)  # type: ignore[arg-type]
    chain = A.Compose([build(item, Sides(SIDE, SIDE), "x") for item in PRESETS[preset]])
    for seed in range(4):
        chain.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert np.array_equal(augmenter(images, seed), np.stack([chain(image=image)["image"] for image in images]))
