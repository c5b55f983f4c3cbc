"""How much memory a network will need to predict, estimated without a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from goldfold.models import ModelSpec, build_model

LIVE = 2
"""At its widest place a network holds about so many times what one operation reads and writes: skips, working space."""


def image_bytes(spec: ModelSpec, side: int) -> int:
    """Estimated bytes that an image of ``side`` pixels takes in a forward pass without gradients, in float32.

    ``LIVE`` times what the largest operation reads and writes beside its weights, and the picture itself. One blank image
    is predicted to learn it.
    """
    model = build_model(spec).eval()
    pixels = torch.zeros(1, side, side, spec.channels, dtype=torch.uint8)
    metadata = None if spec.metadata is None else torch.zeros(1, spec.metadata.width)
    with torch.inference_mode(), _Widest() as widest:
        model.probabilities(model(model.prepare(pixels), metadata))
    return LIVE * widest.bytes + 4 * spec.in_chans * side * side


class _Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest sum of bytes that one operation read and wrote, weights aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        used = [*(item for item in read if not isinstance(item, nn.Parameter)), *tree_leaves(result)]
        total = sum(item.numel() * item.element_size() for item in used if isinstance(item, Tensor))
        self.bytes = max(self.bytes, total)
        return result
