"""What the network sees of RGB pixels: another colour space, local contrast. The same in every stage, on uint8."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from goldfold.config.schema import Input
from goldfold.errors import BadInput
from goldfold.images.decode import Pixels

LOCAL_SIGMA = 1 / 60
"""Deviation of the blur over the image's side. Graham (Diabetic Retinopathy 2015) takes a thirtieth of the eye's radius."""

# _FULL: hue over 0..255 like the other planes; plain HSV and HLS keep it within 0..179.
_CODES = {
    "hls": cv2.COLOR_RGB2HLS_FULL,
    "hsv": cv2.COLOR_RGB2HSV_FULL,
    "luv": cv2.COLOR_RGB2LUV,
    "xyz": cv2.COLOR_RGB2XYZ,
    "ycrcb": cv2.COLOR_RGB2YCrCb,
    "lab": cv2.COLOR_RGB2LAB,
    "yuv": cv2.COLOR_RGB2YUV,
}
COLOURS = ("rgb", *_CODES)
LOCAL_MEANS = ("none", "subtract", "hsv_blur")


@dataclass(frozen=True)
class InputColours:
    """``input.colour`` and ``input.local_mean``, the last step before the network in every stage.

    Raises BadInput for an unknown word.
    """

    colour: str = "rgb"
    local_mean: str = "none"

    def __post_init__(self) -> None:
        for key, known in (("colour", COLOURS), ("local_mean", LOCAL_MEANS)):
            if getattr(self, key) not in known:
                what = f"'{getattr(self, key)}' is unknown"
                raise BadInput(f"input.{key}", what, f"choose one of {', '.join(known)}")

    @classmethod
    def from_config(cls, input: Input) -> InputColours:
        return cls(input.colour, input.local_mean)

    @property
    def plain(self) -> bool:
        """Whether pixels stay as they are."""
        return self.colour == "rgb" and self.local_mean == "none"

    def __call__(self, pixels: Pixels) -> Pixels:
        """RGB (B, H, W, 3) uint8 to what the network sees, of the same shape; the local mean goes before the colour space.

        ``pixels`` are left as they were; they come back themselves where there is nothing to do. Raises BadInput for
        another number of channels than 3.
        """
        if self.plain:
            return pixels
        if pixels.shape[3] != 3:
            what = f"colours need 3 channels, and the images have {pixels.shape[3]}"
            raise BadInput("input.colour", what, "set input.channels to 3")
        out = np.empty_like(pixels, order="C")
        # One image at a time, so that a batch's other images cannot change the last bit.
        for place, image in enumerate(pixels):
            out[place] = to_space(local_contrast(np.ascontiguousarray(image), self.local_mean), self.colour)
        return out


PLAIN = InputColours("rgb", "none")


def to_space(image: Pixels, space: str) -> Pixels:
    """RGB (H, W, 3) uint8 in another colour space, as OpenCV scales its planes to 0..255."""
    return image if space == "rgb" else np.asarray(cv2.cvtColor(image, _CODES[space]), dtype=np.uint8)


def local_contrast(image: Pixels, mode: str, sigma: float = LOCAL_SIGMA) -> Pixels:
    """RGB (H, W, 3) uint8 with its local contrast raised or smoothed; ``sigma`` is relative to the shorter side.

    subtract: 4 x image - 4 x blurred image + 128, clipped (Graham 2015); hsv_blur: hue, saturation and value blurred,
    then back to RGB.
    """
    deviation = sigma * min(image.shape[:2])
    if mode == "none":
        return image
    if mode == "subtract":
        blurred = cv2.GaussianBlur(image, (0, 0), deviation)
        return np.asarray(cv2.addWeighted(image, 4, blurred, -4, 128), dtype=np.uint8)
    return _blurred_in_hsv(image, deviation)


def _blurred_in_hsv(image: Pixels, deviation: float) -> Pixels:
    hue, saturation, value = cv2.split(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
    # Hue is an angle: the mean of 359 and 1 degrees is 0, and a grey pixel's hue has no weight.
    angle = np.deg2rad(hue)
    planes = [saturation * np.cos(angle), saturation * np.sin(angle), saturation, value]
    blurred = [cv2.GaussianBlur(plane, (0, 0), deviation) for plane in planes]
    hue = np.rad2deg(np.arctan2(blurred[1], blurred[0])) % 360
    rgb = cv2.cvtColor(cv2.merge([hue, blurred[2], blurred[3]]), cv2.COLOR_HSV2RGB)
    return np.asarray(np.clip(np.rint(rgb * 255), 0, 255), dtype=np.uint8)
