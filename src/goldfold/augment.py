"""Transforms of training images. albumentations stays behind this room.

Presets, as lists in the same form as ``augment.train``:

=========  ====================================================================================================
none       nothing random; larger stored images are resized, as in validation
flips      horizontal and vertical flip
light      horizontal flip, small shift, scale and rotation, small changes of brightness and contrast
medium     random-resized crop (0.7 to 1 of the area), light a bit stronger, coarse dropout (DeVries and Taylor 2017)
heavy      medium stronger, with blur or noise, and with hue and saturation for 3 channels
=========  ====================================================================================================

Where the stored images are larger than the network's input, flips and light begin with a random crop.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from goldfold.config.schema import Augment
from goldfold.errors import BadInput, some

# OpenCV's own threads would fight with the loader's workers for the cores.
cv2.setNumThreads(0)

Pixels = npt.NDArray[np.uint8]
Item = Mapping[str, Mapping[str, Any] | None]

_REFLECT = 4  # cv2.BORDER_REFLECT_101: no black corners, which would tell how an image was turned

_FLIP: dict[str, Any] = {"HorizontalFlip": {"p": 0.5}}

PRESETS: dict[str, list[dict[str, dict[str, Any]]]] = {
    "none": [],
    "flips": [_FLIP, {"VerticalFlip": {"p": 0.5}}],
    "light": [
        _FLIP,
        {
            "Affine": {
                "translate_percent": [-0.05, 0.05],
                "scale": [0.95, 1.05],
                "keep_ratio": True,
                "rotate": [-7, 7],
                "border_mode": _REFLECT,
                "p": 0.5,
            }
        },
        {"RandomBrightnessContrast": {"brightness_limit": 0.1, "contrast_limit": 0.1, "p": 0.5}},
    ],
    "medium": [
        {"RandomResizedCrop": {"scale": [0.7, 1.0], "ratio": [0.8, 1.25], "area_for_downscale": "image"}},
        _FLIP,
        {
            "Affine": {
                "translate_percent": [-0.06, 0.06],
                "scale": [0.9, 1.1],
                "keep_ratio": True,
                "rotate": [-15, 15],
                "border_mode": _REFLECT,
                "p": 0.5,
            }
        },
        {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
        {
            "CoarseDropout": {
                "num_holes_range": [1, 2],
                "hole_height_range": [0.1, 0.3],
                "hole_width_range": [0.1, 0.3],
                "p": 0.3,
            }
        },
    ],
    "heavy": [
        {"RandomResizedCrop": {"scale": [0.5, 1.0], "ratio": [0.75, 1.3333], "area_for_downscale": "image"}},
        _FLIP,
        {
            "Affine": {
                "translate_percent": [-0.1, 0.1],
                "scale": [0.8, 1.2],
                "keep_ratio": True,
                "rotate": [-30, 30],
                "border_mode": _REFLECT,
                "p": 0.7,
            }
        },
        {"RandomBrightnessContrast": {"brightness_limit": 0.3, "contrast_limit": 0.3, "p": 0.7}},
        {
            "HueSaturationValue": {
                "hue_shift_limit": 10,
                "sat_shift_limit": 25,
                "val_shift_limit": 0,
                "p": 0.5,
            }
        },
        {
            "OneOf": {
                "transforms": [{"GaussianBlur": {"blur_limit": [3, 5]}}, {"GaussNoise": {"std_range": [0.02, 0.08]}}],
                "p": 0.3,
            }
        },
        {
            "CoarseDropout": {
                "num_holes_range": [1, 4],
                "hole_height_range": [0.1, 0.3],
                "hole_width_range": [0.1, 0.3],
                "p": 0.5,
            }
        },
    ],
}

_COLOUR_ONLY = {"HueSaturationValue"}
_ON_DEVICE = {"Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"}
_NOT_FOR_IMAGES = {"BaseCompose", "BasicTransform", "Compose", "DualTransform", "ImageOnlyTransform", "Lambda"}
_NOT_FOR_IMAGES |= {"ReplayCompose", "Transform3D"}
_HARMLESS = "is a special case of"
"""ShiftScaleRotate warns so and does what it is asked; every other warning means that it does something else."""


class Augmenter:
    """Draws transforms for batches; see ``make_augmenter``. Pickles, so loader workers may hold it."""

    def __init__(self, items: Sequence[Item], size: int, *, preset: bool, where: str) -> None:
        self.size = size
        self._items, self._preset, self._where = tuple(items), preset, where
        self._composed: dict[tuple[bool, bool], Any] = {}
        self._compose(channels=3, larger=False)  # a wrong list is refused now, not in the first batch

    def __call__(self, images: Pixels, seed: int) -> Pixels:
        """(B, S, S, C) uint8 to (B, size, size, C) uint8, contiguous; ``images`` stay as they are.

        The draws depend on ``seed`` (0 or more) and the images' order alone, so never on the process that makes the batch.
        Raises BadInput when a transform of the user's list refuses these images or changes their type or channels.
        """
        stored, channels = images.shape[1], images.shape[3]
        if not self._items:
            return centre(images, self.size)
        compose = self._compose(channels, stored > self.size)
        # Not compose.set_random_seed: it gives every transform a generator of the same seed, so that two of p=0.5 always
        # act together (flips would only ever turn by 180 degrees). One pair of generators is shared instead.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        batch = np.empty((len(images), self.size, self.size, channels), dtype=np.uint8)
        for place, image in enumerate(images):
            try:
                made = compose(image=image)["image"]
            except Exception as error:  # whatever albumentations, OpenCV or NumPy raise
                what = f"a transform fails on images of shape {image.shape} ({error})"
                raise BadInput(self._where, what, "change or remove it") from error
            if made.ndim == 2:
                made = made[..., None]
            if made.dtype != np.uint8 or made.ndim != 3 or made.shape[2] != channels:
                what = f"the transforms give {made.dtype} of shape {made.shape} for uint8 of shape {image.shape}"
                raise BadInput(self._where, what, "leave out what changes the type or the channels")
            batch[place] = _resized(made, self.size)
        return batch

    def _compose(self, channels: int, larger: bool) -> Any:
        key = (channels == 3, larger)
        if key not in self._composed:
            items = self._items
            if self._preset:
                items = tuple(item for item in items if channels == 3 or not _COLOUR_ONLY & item.keys())
                if larger and "RandomResizedCrop" not in items[0]:
                    items = ({"RandomCrop": {}}, *items)
            transforms = [_build(item, self.size, f"{self._where}[{row}]") for row, item in enumerate(items)]
            self._composed[key] = _library().Compose(transforms, is_check_shapes=False)
        return self._composed[key]


def make_augmenter(augment: Augment, size: int) -> Augmenter:
    """The preset, or the user's list where there is one; images come out with side ``size`` in pixels.

    A transform whose output size is left out (``RandomCrop``, ``RandomResizedCrop``, ``Resize`` and the like) makes
    ``size``. Raises BadInput for an unknown transform or argument (albumentations 2.0.8 only warns of those and goes on
    with defaults), for a wrong value, and for transforms that give tensors or floats.
    """
    if augment.train is not None:
        return Augmenter(augment.train, size, preset=False, where="augment.train")
    return Augmenter(PRESETS[augment.preset], size, preset=True, where=f"augment.preset {augment.preset}")


def try_augmenter(augment: Augment, size: int, stored: int, channels: int) -> None:
    """Run every transform on made-up images of side ``stored``, whatever its chance. Raises BadInput when one fails."""
    if augment.train is not None:
        augment = augment.model_copy(update={"train": tuple(_always(item) for item in augment.train)})
    # Several images, so that each member of a choice has its turn.
    noise = np.random.default_rng(0).integers(0, 256, (16, stored, stored, channels), dtype=np.uint8)
    make_augmenter(augment, size)(noise, seed=0)


def _always(item: Item) -> Item:
    """The transform with a chance of 1 (or 0 where it was); the members of a choice keep theirs, which are weights."""
    ((name, given),) = item.items()
    arguments = dict(given or {})
    if arguments.get("p", 1) > 0:
        arguments["p"] = 1.0
    if name == "Sequential":
        arguments["transforms"] = [_always(member) for member in arguments["transforms"]]
    return {name: arguments}


def centre(images: Pixels, size: int) -> Pixels:
    """What validation and test see: (B, S, S, C) resized to (B, size, size, C), averaged by area where it shrinks.

    Stored images of the right size come back as they are, not copied.
    """
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    batch = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for place, image in enumerate(images):
        batch[place] = _resized(image, size)
    return batch


def _resized(image: Pixels, size: int) -> Pixels:
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    method = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method).reshape(size, size, channels)


@functools.cache
def _library() -> Any:
    # Imported late: it takes seconds, and prediction does not need it. It would ask the network for newer versions.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


@functools.cache
def _known() -> dict[str, Any]:
    library = _library()
    kinds = (library.BasicTransform, library.BaseCompose)
    found = {
        name: value for name, value in vars(library).items() if inspect.isclass(value) and issubclass(value, kinds)
    }
    return {name: value for name, value in found.items() if name not in _NOT_FOR_IMAGES}


def _build(item: Item, size: int, where: str) -> Any:
    """One transform, or a choice of several, from ``{name: {argument: value}}``. Raises BadInput."""
    if not isinstance(item, Mapping) or len(item) != 1:
        raise BadInput(where, f"expected one transform, got {item!r}", "write each as {Name: {argument: value}}")
    ((name, given),) = item.items()
    where = f"{where}.{name}"
    if name in _ON_DEVICE:
        raise BadInput(
            where, "Goldfold normalises on the device", "leave it out; model.mean and model.std set the values"
        )
    if name not in _known():
        nearest = _nearest(str(name), _known())[:1]
        raise BadInput(
            where, "albumentations has no such transform", f"did you mean '{nearest[0]}'?" if nearest else ""
        )
    kind = _known()[name]
    if given is not None and not isinstance(given, Mapping):
        raise BadInput(where, f"expected arguments, got {given!r}", "write {argument: value}")
    arguments = dict(given or {})
    parameters = {key: value for key, value in inspect.signature(kind).parameters.items() if key != "strict"}
    for argument in arguments:
        if argument not in parameters:
            names = _nearest(str(argument), parameters, cutoff=0)
            raise BadInput(where, f"unknown argument '{argument}'", f"its arguments are {some(names, 12)}")
    if issubclass(kind, _library().BaseCompose):
        _build_choice(arguments, size, where)
    _fill_size(arguments, parameters, name, size)
    return _construct(kind, arguments, where)


def _build_choice(arguments: dict[str, Any], size: int, where: str) -> None:
    """Build the nested transforms in place, and check what albumentations does not."""
    nested = arguments.get("transforms")
    if not isinstance(nested, (list, tuple)) or not nested:
        raise BadInput(where, "has no transforms", "write transforms: [{Name: {argument: value}}, ...]")
    arguments["transforms"] = [_build(item, size, f"{where}.transforms[{row}]") for row, item in enumerate(nested)]
    chance = arguments.get("p", 0.5)
    if isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance <= 1:
        raise BadInput(where, f"p should be a number from 0 to 1, got {chance!r}")


def _fill_size(arguments: dict[str, Any], parameters: Mapping[str, inspect.Parameter], name: str, size: int) -> None:
    required = {key for key, value in parameters.items() if value.default is inspect.Parameter.empty}
    if name.endswith("3D"):
        return
    if "size" in required:
        arguments.setdefault("size", (size, size))
    if {"height", "width"} <= required and not {"height", "width"} & arguments.keys():
        arguments.update(height=size, width=size)


def _construct(kind: Any, arguments: dict[str, Any], where: str) -> Any:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            made = kind(**arguments)
        except Exception as error:  # pydantic's errors come wrapped; some transforms raise their own kinds
            raise BadInput(where, _in_a_line(error)) from error
    for warning in seen:
        if issubclass(warning.category, UserWarning) and _HARMLESS not in str(warning.message):
            raise BadInput(where, str(warning.message), "albumentations would only warn and do something else")
    return made


def _in_a_line(error: Exception) -> str:
    problems = getattr(error.__cause__, "errors", None)
    if problems is None:
        return str(error)
    # A union reports each alternative that failed; the first of each argument is enough.
    first = {str(problem["loc"][0]) if problem["loc"] else "arguments": problem for problem in reversed(problems())}
    lines = []
    for argument, problem in reversed(first.items()):
        got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
        lines.append(f"{argument}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _nearest(name: str, names: Mapping[str, Any], cutoff: float = 0.5) -> list[str]:
    """``names`` from the most alike to the least."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted((other for other in names if likeness(other) >= cutoff), key=likeness, reverse=True)
