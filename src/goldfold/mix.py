"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) on soft targets, on the device.

timm's Mixup casts targets to whole numbers, so labels of teachers could not pass it; hence our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from goldfold.config.schema import Mix
from goldfold.seeds import derive_seed

Box = tuple[int, int, int, int]
"""top, bottom, left, right in pixels."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """How a batch of B images is mixed: ``share`` of itself, the rest of ``partner`` (B,), within ``box`` for CutMix.

    Each method leaves its arguments as they were.
    """

    share: float
    partner: Tensor
    box: Box | None = None

    def to(self, device: torch.device) -> Mixing:
        """The same, its indices on ``device``: brought there once, without waiting for it."""
        if device.type != "cuda":
            return self
        return replace(self, partner=self.partner.pin_memory().to(device, non_blocking=True))

    def images(self, images: Tensor) -> Tensor:
        """(B, C, H, W): blended, or with the partner's pixels in the box."""
        partner = self.partner.to(images.device)
        if self.box is None:
            return self.share * images + (1 - self.share) * images[partner]
        top, bottom, left, right = self.box
        other = images[partner, :, top:bottom, left:right]
        images = images.clone()
        images[:, :, top:bottom, left:right] = other
        return images

    def values(self, values: Tensor) -> Tensor:
        """(B, ...): anything that blends by the share."""
        return self.share * values + (1 - self.share) * values[self.partner.to(values.device)]

    def targets(self, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (B, K) and sample weights (B,): the weighted losses of both sources, as one target and one weight."""
        mixed = self.values(weights)
        mass = self.values(weights[:, None] * targets)
        return torch.where(mixed[:, None] > 0, mass / mixed[:, None].clamp_min(1e-12), targets), mixed


def draw_mix(settings: Mix, n: int, height: int, width: int, *seed: int) -> Mixing | None:
    """The mixing of a batch of ``n`` images, or None for one that stays as it is. Depends on ``seed`` alone."""
    if not (settings.mixup or settings.cutmix) or n < 2:
        return None
    rng = np.random.default_rng(derive_seed(*seed))
    if rng.random() >= settings.prob:
        return None
    cut = settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < settings.switch_prob)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(n))
    if not cut:
        return Mixing(share, partner)
    box = cut_box(height, width, share, rng)
    # The box is clipped at the border: the share is what is really left of the first image.
    top, bottom, left, right = box
    return Mixing(1 - (bottom - top) * (right - left) / (height * width), partner, box)


def cut_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
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
