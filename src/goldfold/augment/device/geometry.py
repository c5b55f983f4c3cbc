"""Moves of pixels, drawn an image each, and fused into one resampling of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Matrices = npt.NDArray[np.float64]
"""(B, 3, 3)"""


@dataclass(frozen=True, eq=False)
class Move:
    """Where each pixel of the output, of side ``side``, comes from: ``matrix`` (B, 3, 3) maps its (x, y) to the input's.

    ``border``: what lies outside of the input, whose sides are ``extent`` (B, 2), width and height: ``clamp`` (its
    border pixels), ``reflect`` (mirrored about the border pixels), ``mirror`` (about the border itself) or ``constant``
    (``fill``, a value a channel or one for all). None: nothing outside is ever asked for. ``shrink``: how many input
    pixels an output pixel may span in a line, to be averaged.
    """

    matrix: Matrices
    side: int
    border: str | None = None
    extent: npt.NDArray[np.float64] | None = None
    fill: tuple[float, ...] = (0.0,)
    shrink: int = 1


def on_device(values: npt.NDArray[np.floating | np.integer], device: torch.device) -> Tensor:
    """Drawn numbers as float32, or row numbers as int64. Pinned on the way to a GPU, so that nothing waits for it."""
    kind = torch.int64 if values.dtype.kind == "i" else torch.float32
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(kind)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def groups(moves: Sequence[Move]) -> list[list[Move]]:
    """Moves that one resampling can do: not past a constant border, nor past a loss of detail that is enlarged again."""
    found: list[list[Move]] = [[]]
    for move in moves:
        if found[-1] and move.side > found[-1][-1].side:
            found.append([])
        found[-1].append(move)
        if move.border == "constant":
            found.append([])
    return [group for group in found if group]


def resample(images: Tensor, moves: Sequence[Move]) -> Tensor:
    """Images (B, C, S, S) in 0..255 after all ``moves`` in their order, bilinear, rounded to whole numbers.

    Fewer roundings and less blur than a resampling a move, as albumentations does them; flips and quarter turns alone are
    exact.
    """
    for group in groups(moves):
        images = _resample(images, group)
    return images


def _resample(images: Tensor, moves: Sequence[Move]) -> Tensor:
    device, last = images.device, moves[-1]
    finer = int(np.prod([move.shrink for move in moves]))
    line = (torch.arange(last.side * finer, device=device) + 0.5) / finer - 0.5
    x, y = line.view(1, 1, -1), line.view(1, -1, 1)
    pending: Matrices | None = None
    inside = None
    for move in reversed(moves):
        pending = move.matrix if pending is None else move.matrix @ pending
        if move.border is not None and move.extent is not None:
            x, y = _mapped(on_device(pending, device), x, y)
            extent, pending = on_device(move.extent, device), None
            if move.border == "constant":
                inside = _share_inside(x, extent[:, 0]) * _share_inside(y, extent[:, 1])
            x, y = _folded(x, extent[:, 0], move.border), _folded(y, extent[:, 1], move.border)
    if pending is not None:
        x, y = _mapped(on_device(pending, device), x, y)
    sides = max(images.shape[3] - 1, 1), max(images.shape[2] - 1, 1)
    grid = torch.stack([x * (2 / sides[0]) - 1, y * (2 / sides[1]) - 1], dim=-1)
    found = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    if inside is not None:
        fill = on_device(np.array(last.fill), device).view(1, -1, 1, 1)
        found = torch.lerp(fill.expand_as(found), found, inside[:, None])
    if finer > 1:
        found = F.avg_pool2d(found, finer)
    return found.round_()


def _mapped(matrix: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    rows = matrix[:, :2, :, None, None]
    return (
        rows[:, 0, 0] * x + rows[:, 0, 1] * y + rows[:, 0, 2],
        rows[:, 1, 0] * x + rows[:, 1, 1] * y + rows[:, 1, 2],
    )


def _folded(at: Tensor, extent: Tensor, border: str) -> Tensor:
    """Positions (B, H, W) outside of 0..extent-1 as the ones inside whose pixel stands for them."""
    last = (extent - 1).view(-1, 1, 1)
    if border == "reflect":
        period = (2 * last).clamp(min=1e-6)
        at = at.remainder(period)
        at = torch.minimum(at, period - at)
    elif border == "mirror":
        period = 2 * (last + 1)
        at = (at + 0.5).remainder(period)
        at = torch.minimum(at, period - at) - 0.5
    return torch.minimum(at.clamp(min=0), last)


def _share_inside(at: Tensor, extent: Tensor) -> Tensor:
    """How much of a bilinear sample at these positions lies within the image along one axis."""
    last = (extent - 1).view(-1, 1, 1)
    return (1 - torch.maximum(-at, at - last).clamp(min=0)).clamp(min=0)


def shift(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Matrices:
    """Translations (B, 3, 3) by ``x`` and ``y`` (B,)."""
    made = np.tile(np.eye(3), (len(x), 1, 1))
    made[:, 0, 2], made[:, 1, 2] = x, y
    return made


def stretch(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Matrices:
    """From pixels of an output to those of an input that has ``x``, ``y`` (B,) times as many; centres of pixels count."""
    made = shift(x / 2 - 0.5, y / 2 - 0.5)
    made[:, 0, 0], made[:, 1, 1] = x, y
    return made
