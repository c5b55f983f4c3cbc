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

from goldfold.augment import LABEL_SAFE, PRESETS, Augmenter, centre, make_augmenter, try_augmenter
from goldfold.config.schema import Augment
from goldfold.errors import BadInput
from goldfold.images.colour import InputColours

INVERT: dict[str, Any] = {"InvertImg": {"p": 1.0}}
CHAIN: tuple[dict[str, Any], ...] = ({"HorizontalFlip": {"p": 0.5}}, {"RandomGamma": {"p": 0.5}})
AUGMIX: dict[str, Any] = {"AugMix": {"severity": 8}}


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


@pytest.mark.parametrize("preset", ["flips", "light", "medium", "heavy", "medical", "satellite"])
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


@pytest.mark.parametrize("preset", ["flips", "light", "medical"])
def test_larger_stored_images_are_cropped_at_random(preset: str) -> None:
    # A ramp tells where the crop began; a resize would keep both ends.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (40, 64, 64, 3)).copy()
    found = make_augmenter(Augment(preset=preset), 32)(ramp, 0)  # type: ignore[arg-type]
    spans = found.astype(int).max(axis=(1, 2, 3)) - found.astype(int).min(axis=(1, 2, 3))  # quarter turns keep it
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
        ({"RandAugmnt": {}}, "did you mean 'RandAugment'?"),
        ({"RandAugment": {"magnitude": 9}}, "unknown argument 'magnitude'; its arguments are "),
        ({"RandAugment": {"m": 11}}, "m: Input should be less than or equal to 10, got 11"),
        ({"AugMix": {"depth": 0}}, "depth: "),
        ({"ColorSpace": {}}, "space: Field required"),
        ({"ColorSpace": {"space": "rgb"}}, "space: Input should be 'hls', 'hsv', "),
        ({"ColorSkew": {"hue": [1.2, 0.8]}}, "hue: should be [lowest, highest]"),
        ({"LocalMean": {"mode": "none"}}, "mode: "),
        ({"AutoAugment": {"policy": "v1"}}, "policy: "),
        ({"TrivialAugment": {"p": 2}}, "p: Input should be less than or equal to 1"),
        ({"OneOf": {"transforms": [{"AugMix": {"width": 0}}]}}, "OneOf.transforms[0].AugMix: width: "),
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


def test_every_preset_says_what_it_is_safe_for() -> None:
    assert list(LABEL_SAFE) == list(PRESETS)
    assert all("\n" not in text and text.endswith(".") for text in LABEL_SAFE.values())


def test_satellite_and_medical_turn_images_all_eight_ways() -> None:
    # A quarter that is bright and one that is half bright tell each of the eight ways from the others.
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:16, :16], image[:16, 16:] = 200, 100
    turned = [np.rot90(flipped, k) for flipped in (image, image[:, ::-1]) for k in range(4)]
    for preset in ("medical", "satellite"):
        found = make_augmenter(Augment(preset=preset), 32)(np.repeat(image[None], 100, axis=0), 0)  # type: ignore[arg-type]
        nearest = [int(np.argmin([np.abs(one.astype(int) - way).mean() for way in turned])) for one in found]
        assert len(set(nearest)) == 8, preset


def test_medical_keeps_hue() -> None:
    # One flat colour: whatever the light, its hue stays.
    flat = np.broadcast_to(np.array([150, 60, 90], dtype=np.uint8), (64, 32, 32, 3)).copy()

    def hues(preset: str) -> npt.NDArray[np.uint8]:
        found = make_augmenter(Augment(preset=preset), 32)(flat, 0)[:, 16, 16][None]  # type: ignore[arg-type]
        return cv2.cvtColor(found, cv2.COLOR_RGB2HSV_FULL)[0, :, 0].astype(int)

    assert np.ptp(hues("medical")) <= 3
    assert np.ptp(hues("satellite")) > 6


class TestAdd:
    def test_stands_after_the_preset(self) -> None:
        images = batch(8)
        added = make_augmenter(Augment(preset="flips", add=(INVERT,)), 32)(images, 0)
        assert np.array_equal(added, 255 - make_augmenter(Augment(preset="flips"), 32)(images, 0))

    def test_stands_after_a_users_list(self) -> None:
        dropped = {"Posterize": {"num_bits": 1, "p": 1.0}}  # not the same before and after inverting
        found = make_augmenter(Augment(train=(dropped,), add=(INVERT,)), 32)(batch(), 0)
        assert np.array_equal(found, 255 - own(dropped)(batch(), 0))
        assert not np.array_equal(found, own(INVERT, dropped)(batch(), 0))

    def test_sees_images_of_the_networks_size(self) -> None:
        larger = batch(4, 48)
        found = make_augmenter(Augment(preset="none", add=({"PixelDropout": {"p": 1.0, "dropout_prob": 0.1}},)), 32)(
            larger, 0
        )
        plain = centre(larger, 32)
        changed = (found != plain).any(axis=3)
        assert 0.02 < changed.mean() < 0.3  # single pixels, not the blocks that resizing afterwards would blur
        assert (found[changed] == 0).all()

    @pytest.mark.parametrize("preset", ["none", "medium"])
    def test_a_wrong_one_is_named_by_its_place(self, preset: str) -> None:
        for items in ([INVERT, {"Blurr": {}}], [INVERT, {"CoarseDropout": {"max_holes": 3}}]):
            with pytest.raises(BadInput, match=r"^augment\.add\[1\]"):
                make_augmenter(Augment(preset=preset, add=items), 32)  # type: ignore[arg-type]

    def test_is_tried_too(self) -> None:
        rare = Augment(preset="none", add=({"ISONoise": {"p": 0.001}},))
        try_augmenter(rare, 32, 32, 3)
        with pytest.raises(BadInput, match=r"augment.preset none with augment.add: a transform fails"):
            try_augmenter(rare, 32, 32, 1)


class TestCrop:
    def test_a_phase_of_smaller_images_sees_as_much_of_the_scene(self) -> None:
        ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (20, 64, 64, 3)).copy()

        def spans(crop: int | None) -> npt.NDArray[np.int64]:
            found = make_augmenter(Augment(preset="flips"), 16, crop=crop)(ramp, 0).astype(int)
            assert found.shape == (20, 16, 16, 3)
            return np.ptp(found, axis=(1, 2, 3))

        assert (spans(None) == 15).all()
        assert (spans(48) >= 44).all()
        assert (spans(64) >= 58).all()

    def test_a_users_crop_without_sides_is_of_that_side(self) -> None:
        ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (8, 64, 64, 3)).copy()
        found = make_augmenter(Augment(train=({"CenterCrop": None},)), 16, crop=48)(ramp, 0)
        assert found[0, 0, 0, 0] == pytest.approx(8 + 1, abs=1)
        assert found[0, 0, -1, 0] == pytest.approx(55 - 1, abs=1)


class TestViews:
    def views(self, augment: Augment, n: int = 12, size: int = 32, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
        found = make_augmenter(augment, size, 3)(batch(n), seed)
        assert found.shape == (3 * n, size, size, 3)
        return np.split(found, 3)

    @pytest.mark.parametrize("place", ["train", "add", "between"])
    def test_the_clean_view_is_the_plain_chain(self, place: str) -> None:
        augment = {
            "train": Augment(train=(*CHAIN, AUGMIX)),
            "add": Augment(train=CHAIN, add=(AUGMIX,)),
            "between": Augment(train=(CHAIN[0], AUGMIX, CHAIN[1])),
        }[place]
        clean, first, second = self.views(augment)
        assert np.array_equal(clean, own(*CHAIN)(batch(12), 0))
        different = [(a != b).any(axis=(1, 2, 3)).mean() for a, b in ((clean, first), (clean, second), (first, second))]
        assert min(different) > 0.9

    def test_views_are_of_the_same_clean_image(self) -> None:
        # Shares of AugMix near 0: its views are almost the clean image, whichever way that was flipped and cropped.
        mild = {"AugMix": {"severity": 1, "depth": 1, "width": 1}}
        clean, first, second = self.views(Augment(preset="medium", add=(mild,)), n=32)
        plain = make_augmenter(Augment(preset="medium"), 32)(batch(32), 0)
        assert np.array_equal(clean, plain)
        for view in (first, second):
            near = np.abs(view.astype(int) - clean).mean(axis=(1, 2, 3))
            far = np.abs(np.roll(view, 1, axis=0).astype(int) - clean).mean(axis=(1, 2, 3))
            assert np.median(near) < np.median(far) / 2

    def test_without_another_transform(self) -> None:
        clean, first, _ = self.views(Augment(preset="none", add=(AUGMIX,)), size=24)
        assert np.array_equal(clean, centre(batch(12), 24))
        assert not np.array_equal(first, clean)

    def test_draws_follow_the_seed(self) -> None:
        augment = Augment(preset="none", add=(AUGMIX,))
        once, again, other = (np.concatenate(self.views(augment, seed=seed)) for seed in (1, 1, 2))
        assert np.array_equal(once, again)
        assert not np.array_equal(once[12:], other[12:])

    def test_there_is_no_clean_view_without_augmix_or_with_a_hidden_one(self) -> None:
        with pytest.raises(BadInput, match=r"^loss.jsd: .*AugMix"):
            make_augmenter(Augment(preset="medium"), 32, 3)
        hidden = {"OneOf": {"transforms": [AUGMIX, {"Blur": {}}]}}
        with pytest.raises(BadInput, match=r"^augment.add\[0\]: AugMix within a choice"):
            make_augmenter(Augment(add=(hidden, AUGMIX)), 32, 3)
        with pytest.raises(BadInput, match="expected one transform"):
            make_augmenter(Augment(add=({"OneOf": {"transforms": ["AugMix"]}}, AUGMIX)), 32, 3)


@pytest.mark.parametrize("preset", ["none", "medium"])
def test_colours_come_last(preset: str) -> None:
    lab = InputColours("lab")
    images = batch(6, 40)
    augment = Augment(preset=preset, add=({"AugMix": {}},))  # type: ignore[arg-type]
    for views in (1, 3):
        plain = make_augmenter(augment, 32, views)(images, 3)
        assert np.array_equal(make_augmenter(augment, 32, views, lab)(images, 3), lab(plain))
    assert np.array_equal(make_augmenter(Augment(preset="none"), 32, 1, lab)(images, 0), centre(images, 32, lab))
    assert np.array_equal(centre(images, 32, lab), lab(centre(images, 32)))
    assert np.array_equal(centre(images, 40, lab), lab(images))
