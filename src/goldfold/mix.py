"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) on soft targets, on the device.

timm's Mixup casts targets to whole numbers, so labels of teachers could not pass it; hence our own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from goldfold.config.schema import Mix
from goldfold.seeds import derive_seed


def mix_batch(
    settings: Mix, images: Tensor, targets: Tensor, weights: Tensor, *seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image (B, C, H, W) with another of the batch, targets (B, K) and sample weights (B,) alike.

    The draw depends on ``seed`` alone. The inputs are left as they were.
    """
    if not (settings.mixup or settings.cutmix) or len(images) < 2:
        return images, targets, weights
    rng = np.random.default_rng(derive_seed(*seed))
    if rng.random() >= settings.prob:
        return images, targets, weights
    cut = settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < settings.switch_prob)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if cut:
        top, bottom, left, right = cut_box(images.shape[2], images.shape[3], share, rng)
        # The box is clipped at the border: the share is what is really left of the first image.
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        other = images[partner, :, top:bottom, left:right]
        images = images.clone()
        images[:, :, top:bottom, left:right] = other
    else:
        images = share * images + (1 - share) * images[partner]
    mixed_weights = share * weights + (1 - share) * weights[partner]
    # The weighted losses of both sources, as one target and one weight.
    mass = share * weights[:, None] * targets + (1 - share) * (weights[:, None] * targets)[partner]
    mixed = torch.where(mixed_weights[:, None] > 0, mass / mixed_weights[:, None].clamp_min(1e-12), targets)
    return images, mixed, mixed_weights


def cut_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box (top, bottom, left, right) that covers ``1 - share`` of the image before it is clipped at the border."""
    side = np.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = int(rng.integers(height)), int(rng.integers(width))
    return (
        max(row - half_height, 0),
        min(row + half_height, height),
        max(column - half_width, 0),
        min(column + half_width, width),
    )
