"""Presets, as lists in the same form as ``augment.train``, and what they are safe for.

=========  ====================================================================================================
none       nothing random; larger stored images are resized, as in validation
flips      horizontal and vertical flip
light      horizontal flip, small shift, scale and rotation, small changes of brightness and contrast
medium     random-resized crop (0.7 to 1 of the area), light a bit stronger, coarse dropout (DeVries and Taylor 2017)
heavy      medium stronger, with blur or noise, and with hue and saturation for 3 channels
medical    flips and quarter turns, small shift, scale and rotation, small changes of brightness and contrast; no hue
satellite  random-resized crop (0.6 to 1 of the area), flips and quarter turns, brightness, contrast, and a little hue
           and saturation for 3 channels
=========  ====================================================================================================

Where the stored images are larger than the network's input, flips, light and medical begin with a random crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Item = Mapping[str, Mapping[str, Any] | None]

REFLECT = 4  # cv2.BORDER_REFLECT_101: no black corners, which would tell how an image was turned

COLOUR_ONLY = frozenset({"HueSaturationValue"})
"""Transforms of presets that need 3 channels; other images do without."""

_FLIP: dict[str, Any] = {"HorizontalFlip": {"p": 0.5}}
_D4: dict[str, Any] = {"D4": {"p": 1.0}}


def _affine(shift: float, scale: float, degrees: int, p: float) -> dict[str, Any]:
    return {
        "Affine": {
            "translate_percent": [-shift, shift],
            "scale": [1 - scale, 1 + scale],
            "keep_ratio": True,
            "rotate": [-degrees, degrees],
            "border_mode": REFLECT,
            "p": p,
        }
    }


def _crop(area: float, ratio: list[float]) -> dict[str, Any]:
    return {"RandomResizedCrop": {"scale": [area, 1.0], "ratio": ratio, "area_for_downscale": "image"}}


def _light(limit: float, p: float) -> dict[str, Any]:
    return {"RandomBrightnessContrast": {"brightness_limit": limit, "contrast_limit": limit, "p": p}}


def _hue(hue: int, saturation: int, p: float) -> dict[str, Any]:
    limits = {"hue_shift_limit": hue, "sat_shift_limit": saturation, "val_shift_limit": 0}
    return {"HueSaturationValue": {**limits, "p": p}}


def _holes(most: int, p: float) -> dict[str, Any]:
    sides = {"hole_height_range": [0.1, 0.3], "hole_width_range": [0.1, 0.3]}
    return {"CoarseDropout": {"num_holes_range": [1, most], **sides, "p": p}}


PRESETS: dict[str, list[dict[str, dict[str, Any]]]] = {
    "none": [],
    "flips": [_FLIP, {"VerticalFlip": {"p": 0.5}}],
    "light": [_FLIP, _affine(0.05, 0.05, 7, 0.5), _light(0.1, 0.5)],
    "medium": [_crop(0.7, [0.8, 1.25]), _FLIP, _affine(0.06, 0.1, 15, 0.5), _light(0.2, 0.5), _holes(2, 0.3)],
    "heavy": [
        _crop(0.5, [0.75, 1.3333]),
        _FLIP,
        _affine(0.1, 0.2, 30, 0.7),
        _light(0.3, 0.7),
        _hue(10, 25, 0.5),
        {
            "OneOf": {
                "transforms": [{"GaussianBlur": {"blur_limit": [3, 5]}}, {"GaussNoise": {"std_range": [0.02, 0.08]}}],
                "p": 0.3,
            }
        },
        _holes(4, 0.5),
    ],
    "medical": [_D4, _affine(0.05, 0.1, 15, 0.5), _light(0.1, 0.5)],
    "satellite": [_crop(0.6, [0.8, 1.25]), _D4, _light(0.2, 0.5), _hue(5, 15, 0.3)],
}

LABEL_SAFE: dict[str, str] = {
    "none": "Always.",
    "flips": "When the label survives a mirror and a half turn: not for text, digits, left against right, up against down.",
    "light": "When the label survives a mirror: most photographs, and radiographs whose label names no side.",
    "medium": "When it survives a mirror and the loss of the border or of a patch: photographs whose object fills them.",
    "heavy": "When it survives half the area, wrong colours, blur and noise: photographs of large objects of any colour.",
    "medical": "When the image has no up and no side, as in dermatology, microscopy and histology, and for radiographs "
    "whose label hangs on neither pose nor side (not: laterality, a chest's heart side). Colours, which stains and "
    "lesions are told by, stay; larger stored images lose their border.",
    "satellite": "When the image is seen from above and its label is about the whole: not for one small object near the "
    "border, nor where the exact colour or the brightness is the label (crop stages, water).",
}
"""Each preset's condition: when its transforms leave the label true."""
