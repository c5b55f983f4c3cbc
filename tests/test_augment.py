"""Transforms: draws follow the seed alone, and no wrong list passes silently."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from goldfold.augment import PRESETS, Augmenter, centre, make_augmenter
from goldfold.config.schema import Augment
from goldfold.errors import BadInput


def batch(n: int = 8, size: int = 32, channels: int = 3) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (n, 6, 6, channels), dtype=np.uint8)
    grown = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in small]
    return np.stack(grown).reshape(n, size, size, channels)


def own(*items: dict[str, Any], size: int = 32) -> Augmenter:
    return make_augmenter(Augment(train=items), size)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", [32, 48, 20])
def test_presets_make_uint8_batches_of_the_size(preset: str, channels: int, stored: int) -> None:
    images = batch(4, stored, channels)
    before = images.copy()
    found = make_augmenter(Augment(preset=preset), 32)(images, 1)  # type: ignore[arg-type]
    assert found.shape == (4, 32, 32, channels)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(images, before)


@pytest.mark.parametrize("preset", ["flips", "light", "medium", "heavy"])
@pytest.mark.parametrize("stored", [32, 40])
def test_draws_follow_the_seed(preset: str, stored: int) -> None:
    images = batch(16, stored)
    augment = make_augmenter(Augment(preset=preset), 32)  # type: ignore[arg-type]
    first = augment(images, 3)
    other = augment(images, 4)
    assert not np.array_equal(first, other)
    assert np.array_equal(augment(images, 3), first)
    # Neither history nor process matters: a fresh or unpickled augmenter draws the same.
    assert np.array_equal(pickle.loads(pickle.dumps(augment))(images, 3), first)
    assert np.array_equal(make_augmenter(Augment(preset=preset), 32)(images, 3), first)  # type: ignore[arg-type]


def test_images_of_a_batch_are_drawn_apart() -> None:
    same = np.repeat(batch(1), 16, axis=0)
    assert len(np.unique(make_augmenter(Augment(preset="medium"), 32)(same, 0), axis=0)) > 8


def test_flips_are_independent() -> None:
    # With compose.set_random_seed both flips draw the same numbers, and only 0 and 180 degrees are ever seen.
    image = batch(1)[0]
    views = {"": image, "h": image[:, ::-1], "v": image[::-1], "hv": image[::-1, ::-1]}
    found = make_augmenter(Augment(preset="flips"), 32)(np.repeat(image[None], 200, axis=0), 0)
    count = {name: sum(np.array_equal(one, view) for one in found) for name, view in views.items()}
    assert sum(count.values()) == 200
    assert min(count.values()) > 25, count


def test_choices_follow_the_seed_too() -> None:
    nested = [{"OneOf": {"transforms": [{"HorizontalFlip": {"p": 1}}, {"InvertImg": {"p": 1}}], "p": 0.9}}]
    nested += [{"SomeOf": {"transforms": [{"VerticalFlip": {"p": 1}}, {"D4": None}, {"Blur": {}}], "n": 2}}]
    nested += [{"Sequential": {"transforms": [{"RandomGamma": {"p": 1}}], "p": 0.5}}]
    augment = own(*nested)
    images = batch(16)
    assert np.array_equal(augment(images, 0), augment(images, 0))
    assert not np.array_equal(augment(images, 0), augment(images, 1))
    assert not np.array_equal(augment(images, 0), images)


def test_none_changes_nothing_and_resizes_as_validation_does() -> None:
    images = batch(4, 32)
    assert np.array_equal(make_augmenter(Augment(preset="none"), 32)(images, 0), images)
    assert np.array_equal(own()(images, 0), images)
    larger = batch(4, 48)
    assert np.array_equal(make_augmenter(Augment(preset="none"), 32)(larger, 0), centre(larger, 32))


@pytest.mark.parametrize("preset", ["flips", "light"])
def test_larger_stored_images_are_cropped_at_random(preset: str) -> None:
    # A ramp tells where the crop began; a resize would keep both ends.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (40, 64, 64, 3)).copy()
    found = make_augmenter(Augment(preset=preset), 32)(ramp, 0)  # type: ignore[arg-type]
    spans = found.astype(int).max(axis=(1, 2, 3)) - found.astype(int).min(axis=(1, 2, 3))
    assert np.median(spans) < 40
    assert len(np.unique(found.min(axis=(1, 2, 3)))) > 8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_centre(channels: int) -> None:
    images = batch(3, 48, channels)
    found = centre(images, 24)
    assert found.shape == (3, 24, 24, channels)
    blocks = images.reshape(3, 24, 2, 24, 2, channels).mean(axis=(2, 4))
    assert np.abs(found - blocks).max() <= 1
    assert np.array_equal(centre(images, 48), images)
    assert centre(images, 60).shape == (3, 60, 60, channels)
    assert centre(images[:0], 24).shape == (0, 24, 24, channels)


def test_a_users_list_is_applied_and_resized_at_the_end() -> None:
    images = batch(4)
    assert np.array_equal(own({"HorizontalFlip": {"p": 1}})(images, 0), images[:, :, ::-1])
    assert np.array_equal(own({"InvertImg": {"p": 1.0}}, {"VerticalFlip": {"p": 1}})(images, 0), 255 - images[:, ::-1])
    assert own({"RandomCrop": {"height": 20, "width": 10}})(images, 0).shape == images.shape
    assert own({"CenterCrop": {"height": 20, "width": 10}})(batch(4, 32, 1), 0).shape == (4, 32, 32, 1)


@pytest.mark.parametrize("item", [{"RandomCrop": None}, {"CenterCrop": {}}, {"RandomResizedCrop": {"scale": [0.5, 1]}}])
def test_an_output_size_left_out_is_the_input_size(item: dict[str, Any]) -> None:
    assert own(item, size=24)(batch(4, 32), 0).shape == (4, 24, 24, 3)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"CoarseDropout": {"max_holes": 8}}, "unknown argument 'max_holes'; its arguments are num_holes_range,"),
        ({"GaussNoise": {"var_limit": [1, 2]}}, "unknown argument 'var_limit'; its arguments are "),
        ({"HorizontalFlip": {"always_apply": True}}, "unknown argument 'always_apply'; its arguments are p"),
        ({"RandomBrightnessContrast": {"brightnes_limit": 1}}, "its arguments are brightness_limit, "),
        ({"CoarseDropot": {}}, "did you mean 'CoarseDropout'?"),
        ({"horizontalflip": {}}, "did you mean 'HorizontalFlip'?"),
        ({"Qqqq": {}}, "no such transform"),
        ({"Compose": {"transforms": [{"Blur": {}}]}}, "no such transform"),
        ({"HorizontalFlip": {"p": 3}}, "HorizontalFlip: p: Input should be less than or equal to 1, got 3"),
        ({"CoarseDropout": {"num_holes_range": "abc"}}, "num_holes_range: Input should be a valid tuple"),
        ({"Affine": {"rotate": [1, 2, 3]}}, "rotate: "),
        ({"RandomCrop": {"height": 9}}, "width: Field required"),
        ({"SomeOf": {"transforms": [{"Blur": {}}], "n": 5}}, "`n` is greater than number of transforms"),
        ({"OneOf": {"transforms": [{"Blur": {"limit": 3}}]}}, "OneOf.transforms[0].Blur: unknown argument 'limit'"),
        ({"OneOf": {"transforms": [{"Blurr": {}}]}}, "did you mean 'Blur'?"),
        ({"OneOf": {"transforms": [{"Blur": {}}], "p": "x"}}, "p should be a number from 0 to 1, got 'x'"),
        ({"OneOf": {"p": 1}}, "has no transforms"),
        ({"OneOf": {"transforms": ["Blur"]}}, "expected one transform, got 'Blur'"),
        ({"Normalize": {}}, "Goldfold normalises on the device"),
        ({"ToTensorV2": None}, "Goldfold normalises on the device"),
        ({"Blur": {}, "D4": {}}, "expected one transform"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(item: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        own({"HorizontalFlip": {}}, item)
    assert words in str(caught.value)
    assert str(caught.value).startswith("augment.train[1]")
    assert "\n" not in str(caught.value)


def test_a_valid_transform_that_only_gives_advice_is_taken() -> None:
    assert own({"ShiftScaleRotate": {"rotate_limit": 5}})(batch(), 0).shape == (8, 32, 32, 3)


def test_what_only_fails_on_images_is_bad_input_too() -> None:
    with pytest.raises(BadInput, match=r"augment.train: a transform fails on images of shape \(32, 32, 1\)"):
        own({"ISONoise": {"p": 1}})(batch(2, 32, 1), 0)
    with pytest.raises(BadInput, match="leave out what changes the type or the channels"):
        own({"ToGray": {"num_output_channels": 1, "p": 1}})(batch(2), 0)


def test_no_preset_warns_or_changes_hue_of_grey_images(recwarn: pytest.WarningsRecorder) -> None:
    for preset in PRESETS:
        for channels in (1, 4):
            make_augmenter(Augment(preset=preset), 32)(batch(32, 32, channels), 0)  # type: ignore[arg-type]
    assert [str(warning.message) for warning in recwarn.list] == []


def test_the_library_is_loaded_late_and_never_asks_the_network() -> None:
    code = (
        "import sys, os, goldfold.augment as a; from goldfold.config.schema import Augment\n"
        "assert 'albumentations' not in sys.modules\n"
        "import socket; socket.socket.connect = None\n"
        "a.make_augmenter(Augment(), 8)\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1' and 'albumentations' in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
