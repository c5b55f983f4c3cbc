"""Goldfold's own transforms: what each does, and that libraries with global generators draw from the batch's seed."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from goldfold.augment import Augmenter, make_augmenter
from goldfold.augment.generators import seeded
from goldfold.augment.library import albumentations
from goldfold.augment.own import OWN
from goldfold.config.schema import Augment
from goldfold.errors import BadInput
from goldfold.images.colour import local_contrast, to_space

Pixels = npt.NDArray[np.uint8]
POLICIES: list[dict[str, Any]] = [
    *({"AutoAugment": {"policy": name}} for name in ("original", "originalr", "v0", "v0r", "3a")),
    {"RandAugment": None},
    {"RandAugment": {"m": 3, "n": 4, "mstd": 0, "increasing": False}},
    {"TrivialAugment": None},
    {"AugMix": None},
    {"AugMix": {"blended": True, "depth": 2, "width": 2, "alpha": 0.5}},
]


def photos(n: int = 16, size: int = 32, channels: int = 3) -> Pixels:
    rng = np.random.default_rng(7)
    small = rng.integers(20, 236, (n, 6, 6, channels), dtype=np.uint8)
    grown = [cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR) for image in small]
    return np.stack(grown).reshape(n, size, size, channels)


def augmenter(*items: dict[str, Any], size: int = 32) -> Augmenter:
    return make_augmenter(Augment(train=items), size)


def name_of(item: dict[str, Any]) -> str:
    ((name, given),) = item.items()
    return f"{name} {given}"


def digest() -> str:
    """Of what every policy makes."""
    return hashlib.sha256(b"".join(augmenter(item)(photos(4), 5).tobytes() for item in POLICIES)).hexdigest()


def test_no_name_hides_one_of_albumentations() -> None:
    assert not [name for name in OWN if hasattr(albumentations(), name)]


class TestPolicies:
    @pytest.mark.parametrize("item", POLICIES, ids=name_of)
    def test_draws_are_the_seeds_alone(self, item: dict[str, Any]) -> None:
        images = photos()
        augment = augmenter(item)
        first = augment(images, 3)
        assert (first != images).any(axis=(1, 2, 3)).mean() > 0.3
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        torch.manual_seed(99)
        assert np.array_equal(augment(images, 3), first)  # neither history nor the process's generators matter
        assert np.array_equal(pickle.loads(pickle.dumps(augment))(images, 3), first)
        assert not np.array_equal(augment(images, 4), first)  # as batches and epochs have seeds of their own
        same = augment(np.repeat(images[:1], 16, axis=0), 3)
        assert len(np.unique(same, axis=0)) > 6  # and each image of a batch has a draw of its own

    @pytest.mark.parametrize("item", POLICIES, ids=name_of)
    def test_global_generators_stay_where_they_were(self, item: dict[str, Any]) -> None:
        def states() -> tuple[Any, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002

        before = states()
        augmenter(item)(photos(4), 0)
        assert states() == before

    def test_they_stay_even_when_something_fails(self) -> None:
        before = random.getstate(), torch.get_rng_state().tolist()

        def fail() -> None:
            with seeded(0):
                random.random()
                torch.rand(3)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert (random.getstate(), torch.get_rng_state().tolist()) == before

    def test_another_process_draws_the_same(self) -> None:
        code = "from tests.augment.test_own import *; print(digest())"
        environment = {**os.environ, "PYTHONHASHSEED": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == digest()

    @pytest.mark.parametrize("item", POLICIES, ids=name_of)
    def test_grey_images_stay_grey_and_alpha_is_refused(self, item: dict[str, Any]) -> None:
        grey = photos(16, channels=1)
        found = augmenter(item)(grey, 0)
        assert found.shape == grey.shape
        assert not np.array_equal(found, grey)
        assert np.array_equal(found, augmenter(item)(np.repeat(grey, 3, axis=3), 0)[..., :1])
        with pytest.raises(BadInput, match="is for images of 1 or 3 channels"):
            augmenter(item)(photos(1, channels=4), 0)

    @pytest.mark.parametrize("item", [{"AutoAugment": {"policy": "v0"}}, {"RandAugment": {"m": 10, "mstd": 0, "n": 6}}])
    def test_posterize_keeps_a_bit(self, item: dict[str, Any]) -> None:
        # timm asks Pillow for 0 bits here: black before Pillow 13, an error from there on.
        found = augmenter(item, size=8)(photos(600, 8), 0)
        assert found.reshape(600, -1).any(axis=1).mean() > 0.98

    def test_they_stand_in_choices(self) -> None:
        items = [{"OneOf": {"transforms": [{"AugMix": {}}, {"HorizontalFlip": {"p": 1.0}}], "p": 1.0}}]
        images = photos(40)
        found = augmenter(*items)(images, 0)
        flipped = (found == images[:, :, ::-1]).all(axis=(1, 2, 3))
        assert 0.2 < flipped.mean() < 0.8

    def test_p_is_a_chance(self) -> None:
        images = photos(200, 8)
        found = augmenter({"AugMix": {"p": 0.25, "severity": 10}}, size=8)(images, 0)
        assert 0.1 < (found != images).any(axis=(1, 2, 3)).mean() < 0.35

    def test_strength(self) -> None:
        def change(item: dict[str, Any]) -> float:
            images = photos(64)
            return float(np.abs(augmenter(item)(images, 0).astype(int) - images).mean())

        for weak, strong in (({"severity": 1}, {"severity": 10}), ({"depth": 1}, {"depth": 3, "severity": 6})):
            assert change({"AugMix": weak}) < change({"AugMix": strong})
        mild, hard = ({"m": m, "mstd": 0, "increasing": True} for m in (1, 10))
        assert change({"RandAugment": mild}) < change({"RandAugment": hard})
        assert change({"RandAugment": {"n": 1}}) < change({"RandAugment": {"n": 4}})

    def test_what_is_off_is_off_for_timm(self) -> None:
        # timm 1.0.26 takes "inc0" and "b0" for on.
        def ops(**given: Any) -> set[str]:
            return {op.name for op in OWN["RandAugment"](**given)._policy.ops}

        assert "SolarizeIncreasing" in ops(increasing=True)
        assert "SolarizeIncreasing" not in ops(increasing=False)
        assert {op.magnitude_std for op in OWN["RandAugment"](mstd=0.25)._policy.ops} == {0.25}
        assert not OWN["AugMix"]()._policy.blended
        made = OWN["AugMix"](severity=4, width=2, depth=3, alpha=0.5, blended=True)._policy
        assert (made.width, made.depth, made.alpha, made.blended) == (2, 3, 0.5, True)
        assert {(op.magnitude, op.magnitude_std) for op in made.ops} == {(4, float("inf"))}
        assert OWN["AugMix"]()._policy.depth == -1


class TestColorSkew:
    def test_multiplies_value(self) -> None:
        images = photos()
        found = augmenter({"ColorSkew": {"hue": [1, 1], "saturation": [1, 1], "value": [0.5, 0.5], "p": 1}})(images, 0)
        assert np.abs(found - images / 2).max() <= 1

    def test_multiplies_saturation_and_clips(self) -> None:
        images = photos()

        def skew(factor: float) -> npt.NDArray[np.float32]:
            item = {"ColorSkew": {"hue": [1, 1], "saturation": [factor, factor], "value": [1, 1], "p": 1}}
            return np.stack(
                [cv2.cvtColor(i.astype(np.float32) / 255, cv2.COLOR_RGB2HSV) for i in augmenter(item)(images, 0)]
            )

        before = np.stack([cv2.cvtColor(i.astype(np.float32) / 255, cv2.COLOR_RGB2HSV) for i in images])
        assert np.abs(skew(0.5)[..., 1] - before[..., 1] / 2).max() < 0.02
        assert np.abs(skew(0.5)[..., 2] - before[..., 2]).max() < 0.005
        assert np.abs(skew(9)[..., 1] - np.minimum(before[..., 1] * 9, 1)).max() < 0.03

    def test_multiplies_hue(self) -> None:
        green = np.broadcast_to(np.array([0, 200, 0], dtype=np.uint8), (2, 8, 8, 3)).copy()  # 120 degrees
        found = augmenter({"ColorSkew": {"hue": [0.5, 0.5], "saturation": [1, 1], "value": [1, 1], "p": 1}}, size=8)(
            green, 0
        )
        assert (found == [200, 200, 0]).all()  # 60 degrees

    def test_a_factor_of_one_changes_nothing(self) -> None:
        item = {"ColorSkew": {"hue": [1, 1], "saturation": [1, 1], "value": [1, 1], "p": 1}}
        assert np.array_equal(augmenter(item)(photos(), 0), photos())

    def test_factors_are_drawn_from_their_ranges(self) -> None:
        flat = np.full((300, 4, 4, 3), 100, dtype=np.uint8)
        found = augmenter({"ColorSkew": {"value": [0.5, 1.5], "p": 1}}, size=4)(flat, 0)[:, 0, 0, 0]
        assert found.min() >= 50
        assert found.max() <= 150
        assert np.histogram(found, bins=4, range=(50, 150))[0].min() > 40

    def test_grey_keeps_its_channel_and_alpha_its_values(self) -> None:
        dark = {"ColorSkew": {"hue": [1, 1], "saturation": [1, 1], "value": [0.5, 0.5], "p": 1}}
        grey, transparent = photos(channels=1), photos(channels=4)
        assert np.abs(augmenter(dark)(grey, 0) - grey / 2).max() <= 1
        found = augmenter(dark)(transparent, 0)
        assert np.array_equal(found[..., 3], transparent[..., 3])
        assert np.abs(found[..., :3] - transparent[..., :3] / 2).max() <= 1


@pytest.mark.parametrize("space", ["hls", "hsv", "luv", "xyz", "ycrcb", "lab", "yuv"])
def test_color_space(space: str) -> None:
    images = photos(40)
    found = augmenter({"ColorSpace": {"space": space, "p": 0.5}})(images, 0)
    converted = np.stack([to_space(image, space) for image in images])
    is_converted, is_plain = ((found == other).all(axis=(1, 2, 3)) for other in (converted, images))
    assert (is_converted | is_plain).all()
    assert 0.2 < is_converted.mean() < 0.8
    with pytest.raises(BadInput, match="needs images of 3 or 4 channels"):
        augmenter({"ColorSpace": {"space": space, "p": 1}})(photos(1, channels=1), 0)


@pytest.mark.parametrize("mode", ["subtract", "hsv_blur"])
def test_local_mean(mode: str) -> None:
    images = photos(4)
    found = augmenter({"LocalMean": {"mode": mode, "sigma": 0.1, "p": 1}})(images, 0)
    assert np.array_equal(found, np.stack([local_contrast(image, mode, 0.1) for image in images]))
    assert not np.array_equal(found, images)
    transparent = photos(4, channels=4)
    found = augmenter({"LocalMean": {"mode": mode, "sigma": 0.1, "p": 1}})(transparent, 0)
    assert np.array_equal(found[..., 3], transparent[..., 3])
    assert augmenter({"LocalMean": {"mode": mode, "p": 1}})(photos(4, channels=1), 0).shape == (4, 32, 32, 1)
