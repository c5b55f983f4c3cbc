"""Random erasing (Zhong et al. 2020) of normalised images, on the device."""

from __future__ import annotations

from timm.data.random_erasing import RandomErasing
from torch import Tensor

from goldfold.augment.generators import seeded
from goldfold.config.schema import Erase
from goldfold.seeds import derive_seed


def erase_batch(erase: Erase, images: Tensor, *seed: int) -> Tensor:
    """Images (B, C, H, W), normalised, with boxes filled: zeros (the mean colour), a normal draw a channel, or a pixel.

    Each image is chosen with chance ``prob``; it gets 1 to ``count`` boxes, which share the drawn area. The draw depends
    on ``seed`` alone. The input is left as it was; with ``prob`` 0 it comes back itself.
    """
    if not erase.prob:
        return images
    low, high = erase.area
    eraser = RandomErasing(
        probability=erase.prob,
        min_area=low,
        max_area=high,
        mode=erase.mode,
        max_count=erase.count,
        device=images.device,
    )
    with seeded(derive_seed(*seed), images.device):
        return eraser(images.clone())
