"""Backbones of torchvision that timm lacks, in timm's form: ``torchvision/<name>``."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
import torchvision
from timm.models import adapt_input_conv
from torch import Tensor, nn

from goldfold.errors import BadInput, some

PREFIX = "torchvision/"

_FAMILIES: dict[str, tuple[str, ...]] = {
    "alexnet": ("alexnet",),
    "shufflenet": ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    "squeezenet": ("squeezenet1_0", "squeezenet1_1"),
}
_CLASSIFIER = {"alexnet": "classifier.6", "shufflenet": "fc", "squeezenet": "classifier.1"}
_FIRST_CONVOLUTION = {"alexnet": "features.0", "shufflenet": "conv1.0", "squeezenet": "features.0"}


def torchvision_names() -> list[str]:
    """The names that ``model.backbone`` may have, prefix included."""
    return [PREFIX + name for names in _FAMILIES.values() for name in names]


def torchvision_defaults(name: str) -> dict[str, Any]:
    """Mean, std and input size (C, H, W) of a backbone, in timm's words. Raises BadInput for another name."""
    _family(name)
    return {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 224, 224)}


def make_torchvision(
    name: str, weights: Path | None, in_chans: int = 3, pool: str | None = None
) -> TorchvisionBackbone:
    """The backbone ``name`` with weights from a .safetensors file of torchvision's state dict, or at random.

    The file must fit apart from its classifier, which is dropped; its first convolution is fitted to ``in_chans`` in
    timm's way. ``pool`` None: the network's own way from the last map to features; '': the map itself. Raises BadInput.
    """
    family = _family(name)
    if pool not in (None, ""):
        raise ValueError(f"pool '{pool}'; torchvision's backbones give their own features or the map")
    network: nn.Module = getattr(torchvision.models, name.removeprefix(PREFIX))(weights=None)
    first = _FIRST_CONVOLUTION[family]
    if in_chans != 3:
        _widen(network.get_submodule(first), in_chans)
    if weights is not None:
        _load(network, name, weights, _CLASSIFIER[family], f"{first}.weight", in_chans)
    return _KINDS[family](network, mapped=pool == "")


def _family(name: str) -> str:
    bare = name.removeprefix(PREFIX)
    for family, names in _FAMILIES.items():
        if bare in names:
            return family
    known = [name for names in _FAMILIES.values() for name in names]
    near = difflib.get_close_matches(bare, known, 3) or known
    mend = f"use {PREFIX}{f' or {PREFIX}'.join(near)}, or a timm name without '{PREFIX}'"
    raise BadInput("model.backbone", f"goldfold takes no model '{bare}' from torchvision", mend)


class TorchvisionBackbone(nn.Module, ABC):
    """A torchvision network without its classifier: images (B, C, H, W) → features (B, F), or the map (B, F, h, w)."""

    matcher: ClassVar[dict[str, Any]]
    """Regular expressions of parameter names by group, from input to output, in timm's form."""

    def __init__(self, network: nn.Module, num_features: int, mapped: bool) -> None:
        super().__init__()
        for name, child in network.named_children():
            if name not in ("classifier", "fc"):
                self.add_module(name, child)
        self.num_features = num_features
        self.head_hidden_size = num_features
        self.num_classes = 0
        self.mapped = mapped

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, F, h, w)."""

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, F, h, w) → (B, F')."""
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        features = self.forward_features(images)
        return features if self.mapped else self.forward_head(features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layers from input to output, in timm's form."""
        return self.matcher

    def reset_classifier(self, num_classes: int) -> None:
        """The backbone has no classifier; only 0 classes are taken."""
        if num_classes:
            raise ValueError("a torchvision backbone has no classifier")


class AlexNet(TorchvisionBackbone):
    """Krizhevsky 2014. Its own features pass two wide layers; the map does not."""

    features: nn.Module
    avgpool: nn.Module
    classifier: nn.Module
    matcher: ClassVar[dict[str, Any]] = {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def __init__(self, network: nn.Module, mapped: bool) -> None:
        super().__init__(network, 256, mapped)
        if not mapped:
            self.classifier = network.classifier[:-1]  # type: ignore[index,assignment]
            self.head_hidden_size = 4096

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(self.avgpool(features).flatten(1))


class SqueezeNet(TorchvisionBackbone):
    """Iandola et al. 2016. Its classifier is a convolution before pooling; here the last map is pooled."""

    features: nn.Module
    matcher: ClassVar[dict[str, Any]] = {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def __init__(self, network: nn.Module, mapped: bool) -> None:
        super().__init__(network, 512, mapped)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)


class ShuffleNet(TorchvisionBackbone):
    """Ma et al. 2018."""

    conv1: nn.Module
    maxpool: nn.Module
    stage2: nn.Module
    stage3: nn.Module
    stage4: nn.Module
    conv5: nn.Module
    matcher: ClassVar[dict[str, Any]] = {"stem": r"^conv1", "blocks": r"^stage(\d+)\.(\d+)", "neck": r"^conv5"}

    def __init__(self, network: nn.Module, mapped: bool) -> None:
        super().__init__(network, network.fc.in_features, mapped)  # type: ignore[union-attr,arg-type]

    def forward_features(self, images: Tensor) -> Tensor:
        maps = self.stage2(self.maxpool(self.conv1(images)))
        return self.conv5(self.stage4(self.stage3(maps)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return self.matcher | ({"blocks": r"^stage(\d+)"} if coarse else {})


_KINDS: dict[str, Callable[..., TorchvisionBackbone]] = {
    "alexnet": AlexNet,
    "shufflenet": ShuffleNet,
    "squeezenet": SqueezeNet,
}


def _widen(conv: nn.Module, in_chans: int) -> None:
    """New random weights for ``in_chans`` channels."""
    assert isinstance(conv, nn.Conv2d)
    conv.in_channels = in_chans
    conv.weight = nn.Parameter(torch.empty(conv.out_channels, in_chans, *conv.kernel_size))
    conv.reset_parameters()


def _load(network: nn.Module, name: str, path: Path, classifier: str, first: str, in_chans: int) -> None:
    """Fill the network but its classifier from the file. Raises BadInput when a tensor is missing or does not fit."""
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(path, f"not a safetensors file ({error})", "convert the weights to .safetensors") from None
    if first in state and state[first].shape[1] == 3:
        state[first] = adapt_input_conv(in_chans, state[first])
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith(f"{classifier}.")}
    given = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    faults = [f"missing key {key}" for key in wanted if key not in given]
    faults += [f"unexpected key {key}" for key in given if key not in wanted]
    faults += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if faults:
        what = f"the weights do not fit {name} ({some(faults, 3)})"
        raise BadInput(path, what, "check model.backbone and model.weights")
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(given[key])
