"""From stored images to the side that a network is shown, without augmentation."""

from __future__ import annotations

import cv2
import numpy as np

from goldfold.images.colour import PLAIN, InputColours
from goldfold.images.decode import Pixels


def centre(images: Pixels, size: int, colours: InputColours = PLAIN) -> Pixels:
    """What validation and test see: (B, S, S, C) resized to (B, size, size, C), averaged by area where it shrinks.

    Stored images of the right size come back as they are, not copied, where the colours are plain.
    """
    if images.shape[1:3] == (size, size):
        return colours(np.ascontiguousarray(images))
    batch = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for place, image in enumerate(images):
        batch[place] = resized(image, size)
    return colours(batch)


def resized(image: Pixels, size: int) -> Pixels:
    """(H, W, C) uint8 to (size, size, C): averaged by area where it shrinks, linear where it grows."""
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    method = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method).reshape(size, size, channels)
