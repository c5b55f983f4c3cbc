"""Changes of values on the device, as albumentations' uint8 forms have them: batches (n, C, H, W) of 0..255.

Whole numbers go in and come out, as in the CPU form. Values a sample have the shape (n, 1, 1, 1).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goldfold.augment.device.geometry import on_device


def linear(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """``factor`` x ``images`` + ``offset``, cut off at the comma like a look-up table of uint8."""
    return (images * factor + offset).clamp_(0, 255).floor_()


def grey(images: Tensor) -> Tensor:
    """Luminance (n, 1, H, W) of RGB (ITU-R 601), itself of grey."""
    if images.shape[1] == 1:
        return images
    return (0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]).round_()


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """About the image's mean luminance."""
    return linear(images, factor, grey(images).mean(dim=(1, 2, 3), keepdim=True) * (1 - factor))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """RGB blended with its luminance."""
    return torch.lerp(grey(images).expand_as(images), images, factor).round_().clamp_(0, 255)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """RGB with its hue turned by ``factor`` of a circle."""
    angle, dull, value = _to_hsv(images)
    turned = _from_hsv((angle + 180 * factor[:, 0]).remainder(180).floor(), dull, value)
    return torch.where(factor == 0, images, turned)


def shift_hsv(images: Tensor, hue_shift: Tensor, sat_shift: Tensor, val_shift: Tensor) -> Tensor:
    """RGB with hue (0..180), saturation and value (0..255) shifted; grey pixels stay grey."""
    angle, dull, value = _to_hsv(images)
    angle = (angle + hue_shift[:, 0]).remainder(180).floor()
    coloured = (dull > 0).to(dull.dtype)
    dull = (dull + sat_shift[:, 0].trunc()).clamp(0, 255) * coloured
    return _from_hsv(angle, dull, (value + val_shift[:, 0].trunc()).clamp(0, 255))


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue 0..180, saturation and value 0..255, each (n, H, W), whole numbers as OpenCV has them in uint8."""
    red, green, blue = images.unbind(1)
    value = images.amax(dim=1)
    span = value - images.amin(dim=1)
    dull = (255 * span / value.clamp(min=1)).round_()
    sixth = torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    sixth = torch.where(value == red, green - blue, sixth)
    return (30 * sixth / span.clamp(min=1)).round_().remainder(180), dull, value


def _from_hsv(angle: Tensor, dull: Tensor, value: Tensor) -> Tensor:
    sector, strength = angle / 30, value * dull / 255
    planes = []
    for start in (5, 3, 1):
        place = (sector + start).remainder(6)
        planes.append(value - strength * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(planes, dim=1).round_().clamp_(0, 255)


def fill_boxes(images: Tensor, boxes: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Boxes (n, K, 4) of left, top, right, bottom filled; an empty one fills nothing."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device).view(1, 1, -1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    in_rows = (rows >= boxes[..., 1:2]) & (rows < boxes[..., 3:4])
    in_columns = (columns >= boxes[..., 0:1]) & (columns < boxes[..., 2:3])
    holes = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1, keepdim=True)
    return torch.where(holes, on_device(np.array(fill), images.device).view(1, -1, 1, 1), images)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolved along both axes with ``kernels`` (n, K), K odd, mirrored about the border pixels."""
    taps = kernels.shape[1]
    reach = taps // 2
    for axis in (2, 3):
        pad = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        padded = F.pad(images, pad, mode="reflect")
        length = images.shape[axis]
        parts = (kernels[:, tap].view(-1, 1, 1, 1) * padded.narrow(axis, tap, length) for tap in range(taps))
        images = sum(parts, torch.zeros_like(images))
    return images.round_().clamp_(0, 255)


def add_noise(images: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator, *, shared: bool) -> Tensor:
    """Normal noise a pixel, of every channel its own or ``shared``, cut to whole numbers as the CPU form does."""
    shape = (images.shape[0], 1 if shared else images.shape[1], *images.shape[2:])
    noise = torch.randn(shape, generator=generator, device=images.device)
    return (images + (noise * std + mean).trunc_()).clamp_(0, 255)
