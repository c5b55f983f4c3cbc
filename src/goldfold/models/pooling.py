"""From a backbone's last map to features, by a pooling of one's choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from goldfold.errors import BadInput


@dataclass(frozen=True)
class MapForm:
    """How a backbone without pooling lays out its output: maps (B, F, h, w) or (B, h, w, F), or tokens (B, P + N, F).

    ``prefix``: tokens that stand for no place in the image (class, register), P.
    """

    layout: Literal["NCHW", "NHWC", "NLC"]
    width: int
    prefix: int = 0


class Pooling(nn.Module):
    """A backbone's unpooled output → features (B, W). Tokens that stand for no place are left out.

    avg, max; concat: both side by side; gem: generalised mean with a learnt exponent (Radenovic et al. 2018), which takes
    negative activations for zero. ``reduce``: channels of a 1x1 convolution before it.
    """

    def __init__(self, kind: str, form: MapForm, reduce: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.form = form
        self.reduce = nn.Conv2d(form.width, reduce, 1) if reduce else None
        self.p = nn.Parameter(torch.full((1,), 3.0)) if kind == "gem" else None
        self.width = (reduce or form.width) * (2 if kind == "concat" else 1)

    def forward(self, features: Tensor) -> Tensor:
        maps = as_map(features, self.form)
        if self.reduce is not None:
            maps = self.reduce(maps)
        if self.p is not None:
            return generalised_mean(maps, self.p)
        pooled = []
        if self.kind != "max":
            pooled.append(maps.mean(dim=(2, 3)))
        if self.kind != "avg":
            pooled.append(maps.amax(dim=(2, 3)))
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def generalised_mean(maps: Tensor, p: Tensor, eps: float = 1e-6) -> Tensor:
    """(B, F, h, w) → (B, F): mean(max(x, eps) ** p) ** (1 / p), in float32."""
    positive = maps.float().clamp(min=eps)
    # Over the largest, so that no power leaves float32; the result does not depend on what it is divided by.
    largest = positive.detach().amax(dim=(2, 3), keepdim=True)
    means = (positive / largest).pow(p).mean(dim=(2, 3)).pow(1 / p)
    return (means * largest.flatten(1)).to(maps.dtype)


def as_map(features: Tensor, form: MapForm) -> Tensor:
    """A backbone's unpooled output as (B, F, h, w); tokens as (B, F, N, 1)."""
    if form.layout == "NCHW":
        return features
    if form.layout == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features[:, form.prefix :].transpose(1, 2).unsqueeze(-1)


def find_form(backbone: nn.Module, name: str, channels: int, size: int) -> MapForm:
    """The form of an unpooled output, found by showing the backbone an empty image (1, channels, size, size).

    timm's families say it in different ways or not at all. Raises BadInput when the output is no map.
    """
    training = backbone.training
    images = torch.zeros(1, channels, size, size)
    try:
        with torch.no_grad():
            features = backbone.eval()(images)
            pooled_before = (
                features.ndim == 4
                and features[0].numel() == max(features.shape[1:])
                and backbone.forward_features(images).shape[2:] != features.shape[2:]  # type: ignore[operator]
            )
    except (RuntimeError, AssertionError, ValueError) as error:
        what = f"{name} fails without its own pooling on images of side {size} ({' '.join(str(error).split())[:200]})"
        raise BadInput("model.pool", what, "set it to null, or try the size that the backbone was made for") from error
    finally:
        backbone.train(training)
    if features.ndim not in (3, 4) or pooled_before:
        what = f"{name} pools inside, so its last map cannot be had"
        raise BadInput("model.pool", what, "set it to null or choose another backbone")
    if features.ndim == 3:
        # Some families with a class token do not count it.
        uncounted = int(getattr(backbone, "cls_token", None) is not None)
        prefix = getattr(backbone, "num_prefix_tokens", None)
        return MapForm("NLC", features.shape[2], uncounted if prefix is None else int(prefix))
    layout = getattr(backbone, "output_fmt", "NCHW")
    if str(getattr(layout, "value", layout)) == "NHWC":
        return MapForm("NHWC", features.shape[3])
    return MapForm("NCHW", features.shape[1])
