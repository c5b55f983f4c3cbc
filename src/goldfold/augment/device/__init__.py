"""Transforms of training images on the device, for machines with few CPU cores (``augment.on: device``)."""

from goldfold.augment.device.augmenter import DeviceAugmenter, make_device_augmenter, try_device_augmenter

__all__ = ["DeviceAugmenter", "make_device_augmenter", "try_device_augmenter"]
