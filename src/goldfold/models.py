"""A timm backbone with a head for the task; pixels in, probabilities out."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from timm.models import group_modules, group_parameters
from torch import Tensor, nn

from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput, some
from goldfold.tasks import Activation, Task


@dataclass(frozen=True)
class ModelSpec:
    """All that rebuilds a network without its training configuration; part of a bundle."""

    backbone: str
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_logits: int
    activation: Activation
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None

    @property
    def in_chans(self) -> int:
        """Grey pictures are stored as one channel and shown to the network as three."""
        return 3 if self.channels == 1 else self.channels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**known)


def make_spec(
    model: Model,
    input: Input,
    task: Task,
    target_mean: tuple[float, ...] | None = None,
    target_std: tuple[float, ...] | None = None,
) -> ModelSpec:
    """The network of an experiment. Raises BadInput on an unknown backbone or a wrong number of means."""
    defaults = backbone_defaults(model.backbone)
    in_chans = 3 if input.channels == 1 else input.channels
    mean, std = (
        _per_channel(given or defaults[name], in_chans) for name, given in (("mean", model.mean), ("std", model.std))
    )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != in_chans:
            raise BadInput(f"model.{name}", f"{len(values)} values for a network of {in_chans} channels")
    if min(std) <= 0:
        raise BadInput("model.std", "every value must be above 0")
    return ModelSpec(
        backbone=model.backbone,
        size=input.size,
        channels=input.channels,
        mean=mean,
        std=std,
        n_logits=task.n_logits,
        activation=task.activation,
        drop_rate=model.drop_rate,
        drop_path_rate=model.drop_path_rate,
        target_mean=target_mean,
        target_std=target_std,
    )


def backbone_defaults(name: str) -> dict[str, Any]:
    """timm's settings of a backbone (mean, std, input size). Raises BadInput naming near names when there is none."""
    if not timm.is_model(name):
        bare = name.split(".")[0]
        near = difflib.get_close_matches(bare, timm.list_models(), 3)
        raise BadInput(
            "model.backbone", f"timm has no model '{name}'", f"did you mean {' or '.join(near)}?" if near else ""
        )
    try:
        return dict(timm.get_pretrained_cfg(name).to_dict())
    except RuntimeError as error:  # an unknown tag after the dot
        raise BadInput(
            "model.backbone", str(error), f"known: {some(timm.list_pretrained(name.split('.')[0] + '*'))}"
        ) from None


class Classifier(nn.Module):
    """``forward``: normalised images (B, in_chans, H, W) → logits (B, L)."""

    def __init__(self, spec: ModelSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        # Families with a wide layer after pooling say so apart from num_features.
        width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.head = nn.Linear(int(width), spec.n_logits)  # type: ignore[arg-type]
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.frozen: list[nn.Module] = []
        # (x / 255 - mean) / std, with both constants scaled to pixels of 0..255 once. Not in the state: the spec has them.
        self._shift = torch.tensor(spec.mean).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(spec.std).view(1, -1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        return self.head(self.head_drop(features))

    def prepare(self, pixels: Tensor, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
        """uint8 pixels (B, H, W, C) on the device → normalised float32 images (B, in_chans, H, W)."""
        images = pixels.permute(0, 3, 1, 2).float()
        if images.shape[1] != self.spec.in_chans:
            images = images.expand(-1, self.spec.in_chans, -1, -1)
        if self._shift.device != images.device:
            self._shift, self._scale = self._shift.to(images.device), self._scale.to(images.device)
        return ((images - self._shift) * self._scale).contiguous(memory_format=memory_format)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, L) → float32 probabilities (B, C), or values in the target's units for regression."""
        logits = logits.float()
        if self.spec.activation == "softmax":
            return logits.softmax(dim=1)
        if self.spec.activation == "sigmoid":
            return logits.sigmoid()
        if self.spec.activation == "cumulative":
            return grades(logits.sigmoid())
        if self.spec.target_mean is None or self.spec.target_std is None:
            return logits
        return logits * logits.new_tensor(self.spec.target_std) + logits.new_tensor(self.spec.target_mean)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for module in self.frozen:
            module.eval()  # a frozen layer's batch-norm statistics stay as they are
        return self


def grades(above: Tensor) -> Tensor:
    """P(grade > k) (B, C-1) → P(grade = k) (B, C). Estimates that contradict their order are made monotone first."""
    above = above.cummin(dim=1).values
    edge = above.new_ones(len(above), 1)
    bounds = torch.cat([edge, above, torch.zeros_like(edge)], dim=1)
    return bounds[:, :-1] - bounds[:, 1:]


def build_model(spec: ModelSpec, *, weights: Path | None = None, hub: bool = False) -> Classifier:
    """A network with weights from a .safetensors file of the backbone, from timm's hub, or at random.

    Raises BadInput when the file does not fit the backbone or the hub cannot be reached.
    """
    options: dict[str, Any] = {
        "num_classes": 0,
        "in_chans": spec.in_chans,
        "drop_path_rate": spec.drop_path_rate or None,
    }
    if backbone_defaults(spec.backbone).get("fixed_input_size"):
        options["img_size"] = spec.size
    if weights is not None:
        # timm checks a file strictly only when its classifier fits; so the network is made with the file's own number of
        # classes, and the classifier is dropped afterwards. Another network's file would be loaded in part otherwise.
        options["num_classes"] = _classes_in(weights, backbone_defaults(spec.backbone))
        overlay = {"file": str(weights), "num_classes": options["num_classes"], "label_offset": 0}
        options["pretrained_cfg_overlay"] = overlay
    where = weights if weights is not None else "model.pretrained"
    try:
        backbone = timm.create_model(spec.backbone, pretrained=weights is not None or hub, **options)
        backbone.reset_classifier(0)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if weights is not None:
            raise BadInput(
                weights,
                f"the weights do not fit {spec.backbone} ({_first_lines(error)})",
                "check model.backbone and model.weights",
            ) from None
        if hub:
            raise BadInput(
                where,
                f"{spec.backbone} cannot be had from the hub ({_first_lines(error)})",
                "name a file in model.weights, or set model.pretrained=false",
            ) from None
        raise BadInput("model", f"{spec.backbone} cannot be built ({_first_lines(error)})") from None
    except Exception as error:
        # The hub's client has exceptions of its own for a network that is down.
        if not hub:
            raise
        raise BadInput(
            where,
            f"{spec.backbone} cannot be had from the hub ({_first_lines(error)})",
            "name a file in model.weights, or set model.pretrained=false",
        ) from None
    return Classifier(spec, backbone)


def _classes_in(weights: Path, defaults: dict[str, Any]) -> int:
    """The number of classes of the classifier in a weights file; 0 when it holds none. Raises BadInput."""
    names = check_weights_file(weights)
    classifier = defaults.get("classifier") or ()
    first = classifier if isinstance(classifier, str) else next(iter(classifier), "")
    if f"{first}.weight" not in names:
        return 0
    with safetensors.safe_open(weights, framework="pt") as file:
        return int(file.get_slice(f"{first}.weight").get_shape()[0])


def freeze_stages(model: Classifier, stages: int) -> None:
    """Fix the first ``stages`` groups of layers (1: the stem), batch-norm statistics included.

    The groups are timm's own coarse stages. Raises BadInput when the backbone has fewer.
    """
    if not stages:
        return
    matcher = model.backbone.group_matcher(coarse=True)  # type: ignore[operator]
    parameters = group_parameters(model.backbone, matcher)
    if stages >= len(parameters):
        raise BadInput(
            "model.freeze_stages",
            f"{model.spec.backbone} has {len(parameters)} groups of layers",
            f"use at most {len(parameters) - 1}",
        )
    first = sorted(parameters)[:stages]
    by_name = dict(model.backbone.named_parameters())
    for group in first:
        for name in parameters[group]:
            by_name[name].requires_grad_(False)
    modules = dict(model.backbone.named_modules())
    layers = group_modules(model.backbone, matcher)
    model.frozen = [modules[name] for group in first for name in layers.get(group, [])]
    model.train(model.training)


def check_weights_file(path: Path) -> list[str]:
    """The tensor names of a .safetensors file. Raises BadInput when it is missing or of another kind."""
    if not path.is_file():
        raise BadInput(
            path,
            "the weights file does not exist",
            "set model.weights to a .safetensors file, or model.pretrained=false",
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(path, f"not a safetensors file ({error})", "convert the weights to .safetensors") from None


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A backbone's three means for four channels: the fourth gets their average."""
    if len(values) == 3 and channels == 4:
        return (*values, sum(values) / 3)
    return tuple(values)


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
