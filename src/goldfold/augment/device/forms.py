"""albumentations' transforms as draws for a whole batch: the same parameters from the same ranges, an image each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goldfold.augment.device import pixels
from goldfold.augment.device.geometry import Matrices, Move, shift, stretch
from goldfold.errors import BadInput

Chosen = npt.NDArray[np.bool_]
Values = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Change:
    """Values of the images in ``rows`` (n,) changed; ``values`` (n, ...) were drawn for them."""

    rows: npt.NDArray[np.int64]
    values: Values
    apply: Callable[[Tensor, dict[str, Tensor], torch.Generator], Tensor]


Steps = Sequence[Move | Change]
Draw = Callable[[np.random.Generator, Chosen, int], Steps]
"""From a generator, the images that are chosen (B,) and the side of all to what is done to them."""


@dataclass(frozen=True)
class Form:
    """A transform on the device: its chance, its draw, and the side that it leaves (None: the one it got)."""

    chance: float
    draw: Draw
    side: int | None = None


# Border modes by OpenCV's numbers, which the lists hold.
_BORDERS = {0: "constant", 1: "clamp", 2: "mirror", 4: "reflect"}
_LINEAR = 1

# From the output's (x, y, 1) to the input's, in units of the last pixel's number.
_TURNS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "e": ((1, 0, 0), (0, 1, 0)),
    "r90": ((0, -1, 1), (1, 0, 0)),
    "r180": ((-1, 0, 1), (0, -1, 1)),
    "r270": ((0, 1, 0), (-1, 0, 1)),
    "v": ((1, 0, 0), (0, -1, 1)),
    "hvt": ((0, -1, 1), (-1, 0, 1)),
    "h": ((-1, 0, 1), (0, 1, 0)),
    "t": ((0, 1, 0), (1, 0, 0)),
}


def form_of(transform: Any, side: int, channels: int, where: str) -> Form:
    """The device form of a transform that albumentations has built and checked. ``side``: of the images before it.

    Raises BadInput that names a transform or an argument without one.
    """
    name = type(transform).__name__
    where = f"{where}.{name}" if not where.endswith(name) else where
    if name not in _FORMS:
        raise BadInput(where, "has no form on the device", "set augment.on=host, or leave it out")
    return _FORMS[name](transform, side, channels, where)


def _without(where: str, wrong: bool, what: str) -> None:
    if wrong:
        raise BadInput(where, f"{what} has no form on the device", "set augment.on=host, or leave it out")


def _uniform(rng: np.random.Generator, pair: Sequence[float], n: int) -> npt.NDArray[np.float64]:
    return rng.uniform(pair[0], pair[1], n)


def _only(matrix: npt.NDArray[np.floating], chosen: Chosen) -> Matrices:
    return np.where(chosen[:, None, None], matrix, np.eye(3))


def _turns(names: Sequence[str]) -> Callable[[Any, int, int, str], Form]:
    def make(transform: Any, side: int, channels: int, where: str) -> Form:
        table = np.tile(np.eye(3), (len(names), 1, 1))
        for place, name in enumerate(names):
            table[place, :2] = _TURNS[name]
        table[:, :2, 2] *= side - 1

        def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
            which = rng.integers(len(names), size=len(chosen))
            return [Move(_only(table[which], chosen), side)]

        return Form(transform.p, draw)

    return make


def _affine(transform: Any, side: int, channels: int, where: str) -> Form:
    _without(where, transform.fit_output, "fit_output")
    _without(where, transform.balanced_scale, "balanced_scale")
    _without(where, transform.interpolation != _LINEAR, "another interpolation than linear")
    _without(where, transform.border_mode not in _BORDERS, "border_mode wrap")
    fill = _fill(transform.fill, channels, where)
    percent, pixels_ = transform.translate_percent, transform.translate_px

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        n = len(chosen)
        moved = np.zeros((n, 2))
        for place, axis in enumerate("xy"):
            if percent is not None:
                moved[:, place] = np.trunc(_uniform(rng, percent[axis], n) * side)
            elif pixels_ is not None:
                low, high = (int(value) for value in pixels_[axis])
                moved[:, place] = rng.integers(low, high + 1, size=n)
        shear = np.tan(np.deg2rad([-_uniform(rng, transform.shear[axis], n) for axis in "xy"]))
        scale = np.array([_uniform(rng, transform.scale[axis], n) for axis in "xy"])
        if transform.keep_ratio:
            scale[1] = scale[0]
        angle = np.deg2rad(_uniform(rng, transform.rotate, n))
        turn, slant = np.tile(np.eye(3), (n, 1, 1)), np.tile(np.eye(3), (n, 1, 1))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 0, 1], turn[:, 1, 0] = np.sin(angle), -np.sin(angle)
        slant[:, 0, 1], slant[:, 1, 0] = shear
        middle = np.full(n, side / 2 - 0.5)
        sized = np.zeros((n, 3, 3))
        sized[:, 0, 0], sized[:, 1, 1], sized[:, 2, 2] = scale[0], scale[1], 1
        forward = shift(middle + moved[:, 0], middle + moved[:, 1]) @ slant @ turn @ sized @ shift(-middle, -middle)
        extent = np.full((n, 2), float(side))
        return [
            Move(_only(np.linalg.inv(forward), chosen), side, _BORDERS[transform.border_mode], extent, fill),
        ]

    return Form(transform.p, draw)


def _resized_crop(transform: Any, side: int, channels: int, where: str) -> Form:
    _without(where, transform.interpolation != _LINEAR, "another interpolation than linear")
    target = _square(transform.size[0], transform.size[1], where)
    _without(where, transform.p < 1, "p below 1")
    low, high = np.log(transform.ratio[0]), np.log(transform.ratio[1])
    averaged = transform.area_for_downscale is not None

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        n = len(chosen)
        area = rng.uniform(transform.scale[0], transform.scale[1], (10, n)) * side * side
        ratio = np.exp(rng.uniform(low, high, (10, n)))
        widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (widths > 0) & (widths <= side) & (heights > 0) & (heights <= side)
        first, each = fits.argmax(axis=0), np.arange(n)
        # Where ten tries fit none, the largest crop of an allowed shape in the middle.
        most = [min(side, round(side * transform.ratio[1])), min(side, round(side / transform.ratio[0]))]
        found = fits.any(axis=0)
        width = np.where(found, widths[first, each], most[0])
        height = np.where(found, heights[first, each], most[1])
        left = np.where(found, np.floor((side - width + 1) * rng.random(n)), (side - width) // 2)
        top = np.where(found, np.floor((side - height + 1) * rng.random(n)), (side - height) // 2)
        return [
            Move(shift(left, top), side),
            Move(
                stretch(width / target, height / target),
                target,
                "clamp",
                np.stack([width, height], axis=1),
                shrink=-(-side // target) if averaged else 1,
            ),
        ]

    return Form(1.0, draw, target)


def _crop(transform: Any, side: int, channels: int, where: str) -> Form:
    target = _square(transform.height, transform.width, where)
    _without(where, transform.pad_if_needed, "pad_if_needed")
    _without(where, transform.p < 1, "p below 1")
    if target > side:
        raise BadInput(where, f"cuts {target} pixels out of {side}", "make it smaller, or raise input.cache_size")
    middle = type(transform).__name__ == "CenterCrop"

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        n, rest = len(chosen), side - target
        left, top = np.floor((rest + 1) * rng.random((2, n)))
        if middle:
            left, top = np.full(n, rest // 2), np.full(n, rest // 2)
        return [Move(shift(left, top), target)]

    return Form(1.0, draw, target)


def _resize(transform: Any, side: int, channels: int, where: str) -> Form:
    _without(where, transform.interpolation != _LINEAR, "another interpolation than linear")
    _without(where, transform.p < 1, "p below 1")
    averaged = transform.area_for_downscale is not None
    return resizing(_square(transform.height, transform.width, where), averaged=averaged)


def resizing(target: int, *, averaged: bool = True) -> Form:
    """Every image to side ``target``: linear where it grows, and where it shrinks unless it is ``averaged`` there."""

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        factor, extent = np.full(len(chosen), side / target), np.full((len(chosen), 2), float(side))
        shrink = -(-side // target) if averaged else 1
        return [Move(stretch(factor, factor), target, "clamp", extent, shrink=shrink)]

    return Form(1.0, draw, target)


def _square(height: int, width: int, where: str) -> int:
    _without(where, height != width, f"an output of {height} x {width}")
    return int(height)


def _fill(fill: Any, channels: int, where: str) -> tuple[float, ...]:
    _without(where, isinstance(fill, str), f"fill {fill}")
    values = tuple(float(value) for value in fill) if isinstance(fill, (tuple, list)) else (float(fill),)
    if len(values) not in (1, channels):
        raise BadInput(where, f"fill has {len(values)} values for {channels} channels", "give one, or one a channel")
    return values


def _change(
    names: Sequence[str], values: Callable[[np.random.Generator, int, int], Sequence[Any]], apply: Callable[..., Tensor]
) -> Draw:
    """A change whose values, one array (B, ...) a name, are drawn by ``values`` from (generator, B, side)."""

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        drawn = values(rng, len(chosen), side)
        rows = np.flatnonzero(chosen)
        return [Change(rows, {name: found[rows] for name, found in zip(names, drawn, strict=True)}, apply)]

    return draw


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _brightness_contrast(transform: Any, side: int, channels: int, where: str) -> Form:
    _without(where, transform.ensure_safe_range, "ensure_safe_range")
    by_max = transform.brightness_by_max

    def values(rng: np.random.Generator, n: int, side: int) -> Sequence[Any]:
        return 1 + _uniform(rng, transform.contrast_limit, n), _uniform(rng, transform.brightness_limit, n)

    def apply(images: Tensor, drawn: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        top = 255.0 if by_max else images.mean(dim=(1, 2, 3), keepdim=True)
        return pixels.linear(images, _each(drawn["factor"]), _each(drawn["offset"]) * top)

    return Form(transform.p, _change(("factor", "offset"), values, apply))


def _hue_saturation(transform: Any, side: int, channels: int, where: str) -> Form:
    if channels != 3:
        raise BadInput(where, f"needs 3 channels, and the images have {channels}", "leave it out")
    limits = (transform.hue_shift_limit, transform.sat_shift_limit, transform.val_shift_limit)
    names = ("hue", "saturation", "value")

    def values(rng: np.random.Generator, n: int, side: int) -> Sequence[Any]:
        return [_uniform(rng, limit, n) for limit in limits]

    def apply(images: Tensor, drawn: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return pixels.shift_hsv(images, *(_each(drawn[name]) for name in names))

    return Form(transform.p, _change(names, values, apply))


def _jitter(transform: Any, side: int, channels: int, where: str) -> Form:
    if channels not in (1, 3):
        raise BadInput(where, f"needs 1 or 3 channels, and the images have {channels}", "leave it out")
    steps: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
        ("brightness", lambda images, factor: pixels.linear(images, factor, torch.zeros_like(factor))),
        ("contrast", pixels.contrast),
        ("saturation", pixels.saturation if channels == 3 else lambda images, factor: images),
        ("hue", pixels.hue if channels == 3 else lambda images, factor: images),
    ]
    names = [name for name, _ in steps]

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        n = len(chosen)
        drawn = {name: _uniform(rng, getattr(transform, name), n) for name in names}
        order = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
        made = []
        for turn in range(4):
            for place, (name, step) in enumerate(steps):
                rows = np.flatnonzero(chosen & (order[:, turn] == place))
                made.append(Change(rows, {"factor": drawn[name][rows]}, _stepping(step)))
        return made

    return Form(transform.p, draw)


def _stepping(step: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda images, drawn, generator: step(images, _each(drawn["factor"]))


def _holes(transform: Any, side: int, channels: int, where: str) -> Form:
    fill = _fill(transform.fill, channels, where)
    fewest, most = transform.num_holes_range
    shares = transform.hole_height_range[1] < 1  # as albumentations tells shares of the side from pixels

    def lengths(rng: np.random.Generator, pair: Sequence[float], shape: tuple[int, int], side: int) -> Any:
        if shares:
            return np.floor(side * rng.uniform(pair[0], pair[1], shape))
        return rng.integers(int(pair[0]), int(min(pair[1], side)) + 1, shape)

    def values(rng: np.random.Generator, n: int, side: int) -> Sequence[Any]:
        count = rng.integers(fewest, most + 1, (n, 1))
        height = lengths(rng, transform.hole_height_range, (n, most), side)
        width = lengths(rng, transform.hole_width_range, (n, most), side)
        top = np.floor(rng.random((n, most)) * (side - height + 1))
        left = np.floor(rng.random((n, most)) * (side - width + 1))
        there = np.arange(most) < count
        return [np.stack([left, top, left + width * there, top + height * there], axis=2)]

    def apply(images: Tensor, drawn: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return pixels.fill_boxes(images, drawn["boxes"], fill)

    return Form(transform.p, _change(("boxes",), values, apply))


def _blur(transform: Any, side: int, channels: int, where: str) -> Form:
    low, high = (int(value) for value in transform.blur_limit)
    widest = max(high, int(transform.sigma_limit[1] * 3.5) * 2 + 1 if low == 0 else 0)
    reach = widest // 2
    if reach >= side:
        raise BadInput(
            where, f"its kernel of {widest} is too wide for images of {side}", "lower blur_limit or sigma_limit"
        )

    def values(rng: np.random.Generator, n: int, side: int) -> Sequence[Any]:
        sigma = _uniform(rng, transform.sigma_limit, n)
        width = rng.integers(low, high + 1, n)
        width = np.where(width == 0, (sigma * 3.5).astype(np.int64) * 2 + 1, width)
        place = np.arange(-reach, reach + 1)
        kernels = np.exp(-0.5 * (place / np.maximum(sigma, 1e-6)[:, None]) ** 2) * (abs(place) <= (width // 2)[:, None])
        return [kernels / kernels.sum(axis=1, keepdims=True)]

    def apply(images: Tensor, drawn: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return pixels.blur(images, drawn["kernels"])

    return Form(transform.p, _change(("kernels",), values, apply))


def _noise(transform: Any, side: int, channels: int, where: str) -> Form:
    _without(where, transform.noise_scale_factor != 1, "noise_scale_factor")

    def values(rng: np.random.Generator, n: int, side: int) -> Sequence[Any]:
        return 255 * _uniform(rng, transform.mean_range, n), 255 * _uniform(rng, transform.std_range, n)

    def apply(images: Tensor, drawn: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        shared = not transform.per_channel
        return pixels.add_noise(images, _each(drawn["mean"]), _each(drawn["std"]), generator, shared=shared)

    return Form(transform.p, _change(("mean", "std"), values, apply))


def _one_of(transform: Any, side: int, channels: int, where: str) -> Form:
    members = [
        form_of(member, side, channels, f"{where}.transforms[{row}]") for row, member in enumerate(transform.transforms)
    ]
    _without(where, any(member.side not in (None, side) for member in members), "a choice that changes the side")
    shares = np.array(transform.transforms_ps)

    def draw(rng: np.random.Generator, chosen: Chosen, side: int) -> Steps:
        which = rng.choice(len(members), size=len(chosen), p=shares)
        return [
            step for place, member in enumerate(members) for step in member.draw(rng, chosen & (which == place), side)
        ]

    return Form(transform.p, draw)


_FORMS: dict[str, Callable[[Any, int, int, str], Form]] = {
    "HorizontalFlip": _turns(["h"]),
    "VerticalFlip": _turns(["v"]),
    "Transpose": _turns(["t"]),
    "RandomRotate90": _turns(["e", "r90", "r180", "r270"]),
    "D4": _turns(list(_TURNS)),
    "Affine": _affine,
    "RandomResizedCrop": _resized_crop,
    "RandomCrop": _crop,
    "CenterCrop": _crop,
    "Resize": _resize,
    "RandomBrightnessContrast": _brightness_contrast,
    "HueSaturationValue": _hue_saturation,
    "ColorJitter": _jitter,
    "CoarseDropout": _holes,
    "GaussianBlur": _blur,
    "GaussNoise": _noise,
    "OneOf": _one_of,
}
"""By the names that a list may hold; each takes the built transform, the side before it, the channels and where it stands."""
