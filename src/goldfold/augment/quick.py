"""albumentations' commonest transforms without what a training does not need, to the bit: same draws, same pixels.

``run`` leaves out the bookkeeping of Compose (targets beside the image, replay, checks). The forms in ``_forms`` also leave
out matrices for boxes, floats where a table of 256 values says the same, and copies. Everything else is asked of the
library itself. Tests compare each with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from goldfold.augment.library import albumentations
from goldfold.images.decode import Pixels

Quick = Callable[[Any, Pixels], Pixels]

_RAMP = np.arange(256, dtype=np.float32)


def run(compose: Any, image: Pixels) -> Any:
    """``compose(image=image)["image"]`` for a chain with a chance of 1, (H, W, C) uint8."""
    compose.py_random.random()  # drawn for the chain's own chance
    for transform in compose.transforms:
        image = _applied(transform, image)
    return image


def _applied(transform: Any, image: Any) -> Any:
    kind: Any = type(transform)
    apply = transform._key2func.get("image") if _plain(kind) else None
    if apply is None or transform.targets_as_params:
        return transform(image=image)["image"]
    if not transform.should_apply():
        return image
    image = np.ascontiguousarray(image)
    quick = _forms().get(kind)
    if quick is not None and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] <= 4:
        return np.ascontiguousarray(quick(transform, image))
    return np.ascontiguousarray(apply(image, **_drawn(transform, image)))


@functools.cache
def _plain(kind: Any) -> bool:
    """A transform that only draws and applies, as its base class says."""
    base = albumentations().BasicTransform
    names = ("__call__", "apply_with_params", "should_apply", "update_transform_params")
    return issubclass(kind, base) and all(getattr(kind, name) is getattr(base, name) for name in names)


def _drawn(transform: Any, image: Pixels) -> dict[str, Any]:
    data = {"image": image}
    params: dict[str, Any] = transform.update_transform_params(params=transform.get_params(), data=data)
    params.update(transform.get_params_dependent_on_data(params=params, data=data))
    return params


@functools.cache
def _forms() -> dict[type, Quick]:
    library = albumentations()
    return {
        library.Affine: _affine,
        library.RandomResizedCrop: _resized_crop,
        library.RandomBrightnessContrast: _brightness_contrast,
        library.HueSaturationValue: _hue_saturation,
        library.ColorJitter: _jitter,
    }


def _affine(transform: Any, image: Pixels) -> Pixels:
    if transform.fit_output:
        return np.asarray(transform.apply(image, **_drawn(transform, image)))
    from albumentations.augmentations.geometric import functional as geometric

    height, width, channels = image.shape
    translate = transform._get_translate_params((height, width))
    shear = transform._get_shear_params()
    scale = transform._get_scale(transform.scale, transform.keep_ratio, transform.balanced_scale, transform.py_random)
    rotate = transform.py_random.uniform(*transform.rotate)
    middle = geometric.center((height, width))
    matrix = geometric.create_affine_transformation_matrix(translate, shear, scale, rotate, middle)
    if _is_identity(matrix):
        return image
    warped = cv2.warpAffine(
        image,
        matrix[:2],
        (width, height),
        flags=transform.interpolation,
        borderMode=transform.border_mode,
        borderValue=geometric.extend_value(transform.fill, channels),
    )
    return warped.reshape(height, width, channels)


def _is_identity(matrix: npt.NDArray[np.float64]) -> bool:
    """np.allclose with the identity: the same bounds, a tenth of the time."""
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            same = row == column
            if not abs(value - same) <= 1e-8 + 1e-5 * same:
                return False
    return True


def _resized_crop(transform: Any, image: Pixels) -> Pixels:
    params = {"shape": image.shape}
    left, top, right, bottom = transform.get_params_dependent_on_data(params, {"image": image})["crop_coords"]
    crop = image[top:bottom, left:right]
    height, width = transform.size
    if crop.shape[:2] == (height, width):
        return crop
    method = transform._get_interpolation_for_resize(crop.shape[:2], "image")
    return cv2.resize(crop, (width, height), interpolation=method).reshape(height, width, image.shape[2])


def _brightness_contrast(transform: Any, image: Pixels) -> Pixels:
    drawn = transform.get_params_dependent_on_data({}, {"image": image})
    return _linear(image, float(drawn["alpha"]), float(drawn["beta"]))


def _linear(image: Pixels, factor: float, offset: float) -> Pixels:
    return _looked_up(image, np.clip(_RAMP * factor + offset, 0, 255).astype(np.uint8))


def _looked_up(image: Pixels, table: Pixels) -> Pixels:
    from albumentations.augmentations.pixel.functional import sz_lut  # a fifth of cv2.LUT's time

    return np.asarray(sz_lut(image, table, inplace=False))


def _hue_saturation(transform: Any, image: Pixels) -> Pixels:
    drawn = transform.get_params()
    hue, saturation, value = drawn["hue_shift"], drawn["sat_shift"], drawn["val_shift"]
    if image.shape[2] != 3 or (hue == 0 and saturation == 0 and value == 0):
        return np.asarray(transform.apply(image, **drawn))
    tables: list[Pixels | None] = [None, None, None]
    if hue != 0:
        tables[0] = _turned(hue)
    if saturation != 0:
        tables[1] = np.append(np.zeros(1, np.uint8), _shifted(saturation)[1:])  # grey stays grey
    if value != 0:
        tables[2] = _shifted(value)
    return _in_hsv(image, tables)


def _in_hsv(image: Pixels, tables: list[Pixels | None]) -> Pixels:
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)))
    for place, table in enumerate(tables):
        if table is not None:
            planes[place] = _looked_up(np.asarray(planes[place], np.uint8), table)
    return np.asarray(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB), np.uint8)


def _turned(hue: float) -> Pixels:
    return np.asarray(np.mod(np.arange(256, dtype=np.int16) + hue, 180).astype(np.uint8))


def _shifted(shift: float) -> Pixels:
    """albumentations' own sum of a plane and a number, of all 256 values: what it gives depends on the value alone."""
    from albumentations.augmentations.pixel.functional import add_constant

    return np.asarray(add_constant(np.arange(256, dtype=np.uint8)[None], shift, inplace=True))[0]


def _jitter(transform: Any, image: Pixels) -> Pixels:
    drawn = transform.get_params()
    if image.shape[2] != 3:
        return np.asarray(transform.apply(image, **drawn))
    for place in drawn["order"]:
        image = _JITTER[place][1](image, drawn[_JITTER[place][0]])
    return image


def _brighter(image: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return image
    # albumentations multiplies by a float32 here.
    return _looked_up(image, np.clip(_RAMP * np.float32(factor), 0, 255).astype(np.uint8))


def _contrasted(image: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return image
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean = cv2.sumElems(grey)[0] / grey.size  # exact sums: the very mean that NumPy finds
    if factor == 0:
        return np.full_like(image, int(mean + 0.5))
    return _linear(image, factor, mean * (1 - factor))


def _saturated(image: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return image
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(grey if factor == 0 else cv2.addWeighted(image, factor, grey, 1 - factor, gamma=0), np.uint8)


def _hued(image: Pixels, factor: float) -> Pixels:
    if factor == 0:
        return image
    return _in_hsv(image, [_turned(180 * factor), None, None])


_JITTER: list[tuple[str, Callable[[Pixels, float], Pixels]]] = [
    ("brightness", _brighter),
    ("contrast", _contrasted),
    ("saturation", _saturated),
    ("hue", _hued),
]
"""In the order of albumentations' own list, whose places a draw orders."""
