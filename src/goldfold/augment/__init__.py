"""Transforms of training images. albumentations stays behind this room."""

from goldfold.augment.augmenter import Augmenter, as_stored, make_augmenter, try_augmenter
from goldfold.augment.erase import erase_batch
from goldfold.augment.presets import LABEL_SAFE, PRESETS
from goldfold.images.centre import centre

__all__ = [
    "LABEL_SAFE",
    "PRESETS",
    "Augmenter",
    "as_stored",
    "centre",
    "erase_batch",
    "make_augmenter",
    "try_augmenter",
]
