"""Transforms on the device: the same parameters from the same ranges as on the host, an image each, by the seed alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from albumentations.augmentations.geometric.functional import d4

from goldfold.augment import PRESETS, make_augmenter
from goldfold.augment.device import make_device_augmenter, try_device_augmenter
from goldfold.augment.device.forms import _TURNS
from goldfold.augment.device.geometry import Move, resample
from goldfold.config import config_from_dict
from goldfold.config.schema import Augment
from goldfold.errors import BadInput

SIDE = 32
BRIGHTER: dict[str, Any] = {
    "RandomBrightnessContrast": {"brightness_limit": [0.1, 0.1], "contrast_limit": [0, 0], "p": 1}
}
Pixels = npt.NDArray[np.uint8]


def picture(n: int = 1, size: int = SIDE, channels: int = 3, seed: int = 5) -> Pixels:
    """Smooth images, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 7, 7, channels), dtype=np.uint8)
    grown = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in small]
    return np.stack(grown).reshape(n, size, size, channels)


def on_device(augment: Augment, images: Pixels, seed: int = 0, size: int = SIDE, crop: int | None = None) -> Pixels:
    _, stored, _, channels = images.shape
    made = make_device_augmenter(augment, size, stored, channels, crop=crop)(torch.from_numpy(images), seed)
    assert made.dtype == torch.uint8
    assert made.is_contiguous()
    return made.numpy()


def on_host(augment: Augment, images: Pixels, seed: int = 0, size: int = SIDE, crop: int | None = None) -> Pixels:
    return make_augmenter(augment, size, crop=crop)(images, seed)


def only(name: str, **arguments: Any) -> Augment:
    return Augment(train=({name: {"p": 1.0, **arguments}},))


@pytest.mark.parametrize("side", [SIDE, 31])
@pytest.mark.parametrize("turn", list(_TURNS))
def test_turns_are_exact(turn: str, side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)  # noise: no neighbour is alike
    matrix = np.eye(3)
    matrix[:2] = _TURNS[turn]
    matrix[:2, 2] *= side - 1
    images = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float()
    found = resample(images, [Move(matrix[None], side)])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, d4(image, turn))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("HorizontalFlip", ["h"]),
        ("VerticalFlip", ["v"]),
        ("Transpose", ["t"]),
        ("RandomRotate90", ["e", "r90", "r180", "r270"]),
        ("D4", list(_TURNS)),
    ],
)
def test_each_image_is_turned_by_itself_and_exactly(name: str, views: list[str]) -> None:
    images = np.repeat(np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8), 400, axis=0)
    found = on_device(Augment(train=({name: {"p": 0.5}},)), images)
    count = {view: sum(np.array_equal(one, d4(images[0], view)) for one in found) for view in views}  # type: ignore[arg-type]
    stayed = count.pop("e", 0) if "e" in count else sum(np.array_equal(one, images[0]) for one in found)
    assert stayed + sum(count.values()) == 400
    share = 200 / len(views)
    assert all(abs(number - share) < 5 * np.sqrt(share) for number in count.values()), count


# Ranges of one value, so that both forms draw the same, and the largest mean difference in grey levels.
FIXED: list[tuple[str, dict[str, Any], float]] = [
    ("RandomBrightnessContrast", {"brightness_limit": [0.1, 0.1], "contrast_limit": [-0.2, -0.2]}, 0.01),
    ("RandomBrightnessContrast",
     {"brightness_limit": [0.1, 0.1], "contrast_limit": [0.3, 0.3], "brightness_by_max": False}, 0.05),
    ("HueSaturationValue",
     {"hue_shift_limit": [9.5, 9.5], "sat_shift_limit": [-20.5, -20.5], "val_shift_limit": [7, 7]}, 0.5),
    ("HueSaturationValue", {"hue_shift_limit": [-50, -50], "sat_shift_limit": [40, 40], "val_shift_limit": 0}, 0.5),
    ("ColorJitter", {"brightness": [1.2, 1.2], "contrast": [1, 1], "saturation": [1, 1], "hue": [0, 0]}, 0.01),
    ("ColorJitter", {"brightness": [1, 1], "contrast": [0.7, 0.7], "saturation": [1, 1], "hue": [0, 0]}, 0.05),
    ("ColorJitter", {"brightness": [1, 1], "contrast": [1, 1], "saturation": [1.5, 1.5], "hue": [0, 0]}, 0.1),
    ("ColorJitter", {"brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": [0.1, 0.1]}, 0.5),
    ("GaussianBlur", {"blur_limit": [5, 5], "sigma_limit": [1.3, 1.3]}, 0.5),
    ("GaussianBlur", {"sigma_limit": [0.8, 0.8]}, 0.5),
    ("Affine", {"rotate": [20, 20], "scale": [1.2, 1.2], "border_mode": 4}, 0.6),
    ("Affine", {"rotate": [-35, -35], "scale": [0.7, 0.7], "border_mode": 4}, 0.6),
    ("Affine", {"translate_percent": [0.1, 0.1], "shear": {"x": [10, 10], "y": [-5, -5]}, "border_mode": 2}, 0.6),
    ("Affine", {"translate_px": {"x": [-6, -6], "y": [3, 3]}, "scale": [0.8, 0.8], "border_mode": 1}, 0.6),
    ("Affine", {"rotate": [30, 30], "scale": {"x": [0.8, 0.8], "y": [1.1, 1.1]}, "fill": 90}, 0.8),
    ("CenterCrop", {"height": 20, "width": 20}, 0.6),
    ("Resize", {"height": 16, "width": 16}, 0.6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "most"), FIXED)
def test_the_same_parameters_give_the_same_pixels(name: str, arguments: dict[str, Any], most: float) -> None:
    images, augment = picture(6), only(name, **arguments)
    host, device = on_host(augment, images), on_device(augment, images)
    assert not np.array_equal(host, images) or name == "Resize"
    assert np.abs(host.astype(float) - device).mean() < most


def statistics(batch: Pixels) -> npt.NDArray[np.float64]:
    """(4, 2): over draws the mean and the deviation of an image's mean, deviation, share of black, and sharpness."""
    values = batch.astype(np.float64)
    each = [
        values.mean(axis=(1, 2, 3)),
        values.std(axis=(1, 2)).mean(axis=1),
        100 * (values == 0).all(axis=3).mean(axis=(1, 2)),
        np.abs(np.diff(values, axis=2)).mean(axis=(1, 2, 3)),
    ]
    return np.array([[one.mean(), one.std()] for one in each])


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
@pytest.mark.parametrize(("stored", "channels"), [(SIDE, 3), (48, 3), (SIDE, 1)])
def test_presets_are_statistically_what_the_host_makes(preset: str, stored: int, channels: int) -> None:
    augment = Augment(preset=preset)  # type: ignore[arg-type]
    images = np.repeat(picture(1, stored, channels), 1000, axis=0)
    host, device = on_host(augment, images), on_device(augment, images, seed=1)
    assert host.shape == device.shape
    mean, spread = (statistics(made).T for made in (host, device))
    errors = mean[1] / np.sqrt(1000) * np.sqrt(2)  # of a difference of two means
    # Beyond chance: a grey level in mean and deviation, and one resampling is up to 15 % sharper than several.
    slack = np.array([0.5, 1.0, 0.1, 0.15 * mean[0, 3]])
    assert (np.abs(mean[0] - spread[0]) < 4 * errors + slack).all(), (mean, spread)
    assert (np.abs(mean[1] - spread[1]) < 0.15 * mean[1] + slack).all(), (mean, spread)
    # And pixel by pixel: the mean picture and its deviation.
    for moment in (np.mean, np.std):
        pair = [moment(made.astype(np.float64), axis=0) for made in (host, device)]
        assert np.abs(pair[0] - pair[1]).mean() < 3.0, preset


def test_noise_and_holes_have_the_asked_size() -> None:
    flat = np.full((500, SIDE, SIDE, 3), 128, dtype=np.uint8)
    noisy = on_device(only("GaussNoise", std_range=[0.05, 0.05]), flat).astype(float)
    assert noisy.std() == pytest.approx(on_host(only("GaussNoise", std_range=[0.05, 0.05]), flat).std(), rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.05)
    holes = only("CoarseDropout", num_holes_range=[1, 3], hole_height_range=[0.1, 0.4], hole_width_range=[4 / 32, 0.2])
    shares = [(made == 0).all(axis=3).mean(axis=(1, 2)) for made in (on_device(holes, flat), on_host(holes, flat))]
    assert shares[0].mean() == pytest.approx(shares[1].mean(), rel=0.1)
    assert shares[0].std() == pytest.approx(shares[1].std(), rel=0.15)
    pixels = only("CoarseDropout", num_holes_range=[1, 1], hole_height_range=[5, 5], hole_width_range=[3, 3], fill=7)
    assert ((on_device(pixels, flat) == 7).all(axis=3).sum(axis=(1, 2)) == 15).all()


def test_jitter_in_all_orders_is_statistically_what_the_host_makes() -> None:
    jitter = only("ColorJitter", brightness=[0.6, 1.4], contrast=[0.6, 1.4], saturation=[0.3, 1.7], hue=[-0.2, 0.2])
    images = np.repeat(picture(1), 1500, axis=0)
    host, device = (made(jitter, images).astype(float) for made in (on_host, on_device))
    assert np.abs(host.mean(axis=0) - device.mean(axis=0)).mean() < 2
    assert np.abs(host.std(axis=0) - device.std(axis=0)).mean() < 2


@pytest.mark.parametrize("preset", ["light", "medium", "heavy", "medical", "satellite"])
def test_draws_follow_the_seed_and_differ_between_images(preset: str) -> None:
    augment = Augment(preset=preset)  # type: ignore[arg-type]
    images = np.repeat(picture(1), 16, axis=0)
    before = images.copy()
    first = on_device(augment, images, seed=3)
    assert np.array_equal(images, before)
    assert np.array_equal(on_device(augment, images, seed=3), first)
    assert not np.array_equal(on_device(augment, images, seed=4), first)
    assert len(np.unique(first, axis=0)) > 8
    state = torch.get_rng_state()
    on_device(augment, images, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # dropout knows nothing of it


def test_an_image_is_drawn_alike_whatever_lies_beside_it() -> None:
    images, other = picture(8), picture(8, seed=6)
    other[3] = images[3]
    heavy = Augment(preset="heavy")
    assert np.array_equal(on_device(heavy, images, 2)[3], on_device(heavy, other, 2)[3])


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize(("stored", "size"), [(20, 32), (48, 32), (48, 24)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_preset_makes_the_size(preset: str, stored: int, size: int, channels: int) -> None:
    augment = Augment(preset=preset)  # type: ignore[arg-type]
    made = on_device(augment, picture(3, stored, channels), size=size, crop=32)
    assert made.shape == (3, size, size, channels)


def test_none_with_an_addition_is_resized_first_as_on_the_host() -> None:
    augment = Augment(preset="none", add=(BRIGHTER,))
    images = picture(4, 64)
    assert np.abs(on_host(augment, images).astype(float) - on_device(augment, images)).mean() < 0.7


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"RandomGamma": {}}, "augment.train[0].RandomGamma: has no form on the device"),
        ({"AutoAugment": {}}, "augment.train[0].AutoAugment: has no form on the device"),
        ({"Affine": {"fit_output": True}}, "augment.train[0].Affine: fit_output has no form on the device"),
        ({"Affine": {"interpolation": 2}}, "another interpolation than linear"),
        ({"CoarseDropout": {"fill": "random"}}, "fill random"),
        ({"RandomCrop": {"height": 64, "width": 64}}, "cuts 64 pixels out of 32"),
        ({"RandomResizedCrop": {"p": 0.5}}, "p below 1"),
        ({"OneOf": {"transforms": [{"Posterize": {}}]}}, "OneOf.transforms[0].Posterize: has no form on the device"),
        ({"RandomFlip": {}}, "there is no such transform"),
    ],
)
def test_what_has_no_form_is_refused_in_one_line(item: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as error:
        try_device_augmenter(Augment(train=(item,)), SIDE, SIDE, 3)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_colours_are_refused_for_grey_images() -> None:
    with pytest.raises(BadInput, match="needs 3 channels"):
        try_device_augmenter(only("HueSaturationValue"), SIDE, SIDE, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": {"jsd": 1.0}, "augment": {"on": "device", "add": [{"AugMix": {}}]}}, "loss.jsd"),
        ({"balance": {"rare_preset": "heavy"}}, "balance.rare_preset"),
        ({"input": {"colour": "hsv"}}, "input.colour"),
        ({"input": {"local_mean": "subtract"}}, "input.local_mean"),
        ({"augment": {"on": "device", "preset": "none"}}, "augment.on does nothing"),
    ],
)
def test_settings_that_need_the_host_are_refused(settings: dict[str, Any], words: str) -> None:
    competition = {"name": "c", "task": "multiclass", "metric": "accuracy", "train_csv": "a.csv", "image_path": "{id}"}
    with pytest.raises(BadInput, match=words):
        config_from_dict({"competition": competition, "augment": {"on": "device"}, **settings}, "exp.yaml")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("preset", ["medium", "satellite"])
def test_a_gpu_draws_what_the_cpu_draws(preset: str) -> None:
    images = torch.from_numpy(picture(32))
    augment = make_device_augmenter(Augment(preset=preset), SIDE, SIDE, 3)  # type: ignore[arg-type]
    gpu = augment(images.cuda(), 7).cpu().numpy().astype(float)
    assert np.abs(gpu - augment(images, 7).numpy()).mean() < 0.05
