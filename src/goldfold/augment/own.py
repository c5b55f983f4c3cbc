"""Transforms that albumentations has not, as its own kind: they stand in lists and choices beside its names.

=============  ======================================================================================================
ColorSkew      hue, saturation and value, each times a random factor (Seif's nine-part guide)
ColorSpace     planes of another colour space in place of red, green and blue, now and then
LocalMean      minus the local mean (Graham 2015), or blurred in HSV
AutoAugment    a searched policy of pairs (Cubuk et al. 2019), by timm
RandAugment    n operations of one strength (Cubuk et al. 2020), by timm
TrivialAugment one operation of random strength (Müller and Hutter 2021), by torchvision
AugMix         mixed chains of operations (Hendrycks et al. 2020), by timm
=============  ======================================================================================================

The last four draw from global generators, so each call seeds those from the batch's own draws and puts them back.
They and ColorSpace need RGB; grey images go through the four as RGB and come back grey. The first three leave alpha as
it is; the four refuse it, since they would move colours and alpha apart.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field

from goldfold.augment.generators import seeded
from goldfold.augment.library import albumentations
from goldfold.images.colour import LOCAL_SIGMA, local_contrast, to_space
from goldfold.images.decode import Pixels

_ImageOnlyTransform: Any = albumentations().ImageOnlyTransform
_Schema: Any = albumentations().BasicTransform.InitSchema

GREY = (128, 128, 128)
"""What rotations, shears and shifts leave empty; timm's own default."""


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] <= pair[1]:
        raise ValueError("should be [lowest, highest], 0 or more")
    return pair


Factors = Annotated[tuple[float, float], AfterValidator(_rising)]
Strength = Annotated[int, Field(ge=0, le=10)]
Positive = Annotated[int, Field(ge=1)]


class _OfColours(_ImageOnlyTransform):  # type: ignore[misc]
    """A change of the three colours. Grey images are taken as RGB of equal planes, and alpha is kept aside."""

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        channels = img.shape[2] if img.ndim == 3 else 1
        rgb = cv2.cvtColor(img, cv2.COLOR_GRAY2RGB) if channels == 1 else img[..., :3]
        made = self._change(np.ascontiguousarray(rgb), params)
        if channels == 1:
            return made[..., :1].reshape(img.shape)
        return made if channels == 3 else np.concatenate([made, img[..., 3:]], axis=2)

    @abstractmethod
    def _change(self, rgb: Pixels, params: dict[str, Any]) -> Pixels:
        """RGB (H, W, 3) uint8 → the same, changed by the draw."""


class ColorSkew(_OfColours):
    """Hue (0..360), saturation and value, each times a factor drawn from its range, clipped (Seif's nine-part guide).

    Hue is multiplied, not turned: reds near 0 stay, while blues and magentas move most.
    """

    class InitSchema(_Schema):  # type: ignore[misc]
        hue: Factors
        saturation: Factors
        value: Factors

    def __init__(
        self,
        hue: tuple[float, float] = (0.95, 1.05),
        saturation: tuple[float, float] = (0.7, 1.3),
        value: tuple[float, float] = (0.7, 1.3),
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.hue, self.saturation, self.value = hue, saturation, value

    def get_params(self) -> dict[str, Any]:
        return {"factors": [self.py_random.uniform(*pair) for pair in (self.hue, self.saturation, self.value)]}

    def _change(self, rgb: Pixels, params: dict[str, Any]) -> Pixels:
        hsv = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv = np.clip(hsv * np.array(params["factors"], np.float32), 0, np.array([360, 1, 1], np.float32))
        return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)


class ColorSpace(_OfColours):
    """Planes of another colour space in place of RGB. ``input.colour`` is for a network that always sees them."""

    class InitSchema(_Schema):  # type: ignore[misc]
        space: Literal["hls", "hsv", "luv", "xyz", "ycrcb", "lab", "yuv"]

    def __init__(self, space: str, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.space = space

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        if img.ndim != 3 or img.shape[2] < 3:
            raise ValueError("ColorSpace needs images of 3 or 4 channels")
        return super().apply(img, **params)

    def _change(self, rgb: Pixels, params: dict[str, Any]) -> Pixels:
        return to_space(rgb, self.space)


class LocalMean(_OfColours):
    """Local contrast, as ``input.local_mean`` has it for every stage. ``sigma``: of the blur, over the shorter side."""

    class InitSchema(_Schema):  # type: ignore[misc]
        mode: Literal["subtract", "hsv_blur"]
        sigma: Annotated[float, Field(gt=0, le=1)]

    def __init__(self, mode: str = "subtract", sigma: float = LOCAL_SIGMA, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.mode, self.sigma = mode, sigma

    def _change(self, rgb: Pixels, params: dict[str, Any]) -> Pixels:
        return local_contrast(rgb, self.mode, self.sigma)


class _OfPillow(_OfColours):
    """A policy of another library: from a PIL image to a PIL image, with draws from the global generators."""

    _policy: Callable[[Image.Image], Image.Image]

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        if img.ndim == 3 and img.shape[2] > 3:
            raise ValueError(f"{type(self).__name__} is for images of 1 or 3 channels")
        return super().apply(img, **params)

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(32)}

    def _change(self, rgb: Pixels, params: dict[str, Any]) -> Pixels:
        with seeded(params["seed"]):
            return np.array(self._policy(Image.fromarray(rgb)), dtype=np.uint8)


def _with_a_bit(policy: Any) -> Any:
    """timm's policy with a posterize that keeps 1 bit at least: it asks Pillow for 0 at times, which gave black and, from
    Pillow 13 on, raises."""
    ops = policy.ops if hasattr(policy, "ops") else [op for pair in policy.policy for op in pair]
    for op in ops:
        if op.name.startswith("Posterize"):
            op.level_fn = functools.partial(_a_bit_at_least, op.level_fn)
    return policy


def _a_bit_at_least(level_fn: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    return (max(level_fn(level, settings)[0], 1),)


class AutoAugment(_OfPillow):
    """One of 25 searched pairs of operations an image. ``policy``: ImageNet's of the paper (original), of TensorFlow's
    EfficientNet (v0), both with posterize the right way up (r), or the three operations of DeiT III (3a)."""

    class InitSchema(_Schema):  # type: ignore[misc]
        policy: Literal["original", "originalr", "v0", "v0r", "3a"]

    def __init__(self, policy: str = "original", p: float = 1.0) -> None:
        from timm.data.auto_augment import auto_augment_transform

        super().__init__(p=p)
        self.policy = policy
        self._policy = _with_a_bit(auto_augment_transform(policy, {"img_mean": GREY}))


class RandAugment(_OfPillow):
    """``n`` operations of strength ``m`` (0 to 10; normal deviation ``mstd``), each done with a chance of one half.

    ``increasing``: a greater ``m`` changes the image more, for every operation; else some run the other way.
    """

    class InitSchema(_Schema):  # type: ignore[misc]
        m: Strength
        n: Positive
        mstd: Annotated[float, Field(ge=0)]
        increasing: bool

    def __init__(self, m: int = 9, n: int = 2, mstd: float = 0.5, increasing: bool = True, p: float = 1.0) -> None:
        from timm.data.auto_augment import rand_augment_transform

        super().__init__(p=p)
        self.m, self.n, self.mstd, self.increasing = m, n, mstd, increasing
        # A dictionary of our own: timm 1.0.26 writes magnitude_std into the one that its transforms share.
        settings = {"img_mean": GREY, "magnitude_std": mstd}
        self._policy = _with_a_bit(rand_augment_transform(f"rand-m{m}-n{n}{'-inc1' if increasing else ''}", settings))


class TrivialAugment(_OfPillow):
    """One of 14 operations of a strength drawn from its wide range; nothing to set."""

    class InitSchema(_Schema):  # type: ignore[misc]
        pass

    def __init__(self, p: float = 1.0) -> None:
        from torchvision.transforms.v2 import TrivialAugmentWide

        super().__init__(p=p)
        self._policy = TrivialAugmentWide(fill=list(GREY))


class AugMix(_OfPillow):
    """``width`` chains of operations mixed with each other, and with the image, by shares drawn with ``alpha``.

    ``severity``: the most strength, 1 to 10; ``depth``: operations a chain, -1: 1 to 3 by chance; ``blended``: a faster
    way of timm's that differs a little from the paper's. With ``loss.jsd`` its views are compared.
    """

    class InitSchema(_Schema):  # type: ignore[misc]
        severity: Annotated[int, Field(ge=1, le=10)]
        width: Positive
        depth: Annotated[int, Field(ge=1)] | Literal[-1]
        alpha: Annotated[float, Field(ge=0.001)]
        blended: bool

    def __init__(
        self,
        severity: int = 3,
        width: int = 3,
        depth: int = -1,
        alpha: float = 1.0,
        blended: bool = False,
        p: float = 1.0,
    ) -> None:
        from timm.data.auto_augment import augment_and_mix_transform

        super().__init__(p=p)
        self.severity, self.width, self.depth, self.alpha, self.blended = severity, width, depth, alpha, blended
        # What is off is left out: timm 1.0.26 takes b0 (and RandAugment's inc0) for on.
        words = f"augmix-m{severity}-w{width}-a{alpha:f}" + (f"-d{depth}" if depth > 0 else "") + "-b1" * blended
        self._policy = _with_a_bit(augment_and_mix_transform(words, {"img_mean": GREY}))


OWN = {
    kind.__name__: kind for kind in (ColorSkew, ColorSpace, LocalMean, AutoAugment, RandAugment, TrivialAugment, AugMix)
}
"""By the names that a list may hold."""
