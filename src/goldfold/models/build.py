"""From a description to a network, with its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from torch import nn

from goldfold.errors import BadInput
from goldfold.models.classifier import Classifier
from goldfold.models.spec import ModelSpec, backbone_defaults
from goldfold.models.surgery import fill_zero_norms, resize_stem, swap_activation, zero_last_norms
from goldfold.models.torchvision import PREFIX, make_torchvision


def build_model(
    spec: ModelSpec,
    *,
    weights: Path | None = None,
    hub: bool = False,
    auxiliary: Sequence[int] = (),
    projections: Sequence[int] = (),
    zero_init_last: bool = False,
    kaiming: bool = False,
) -> Classifier:
    """A network with weights from a .safetensors file of the backbone, from timm's hub, or at random.

    ``auxiliary``: logits of each auxiliary head; ``projections``: widths of the teachers' features that its own are
    matched with. ``zero_init_last``, ``kaiming``: how it starts where it is not pretrained.
    Raises BadInput when the file does not fit the backbone, the hub cannot be reached, or the spec asks for what the
    backbone cannot do.
    """
    if spec.backbone.startswith(PREFIX):
        backbone = _torchvision_backbone(spec, weights, hub)
    else:
        backbone = _timm_backbone(spec, weights, hub)
        if spec.output_stride is not None:
            _check_stride(spec, backbone)
        if spec.pool is not None:
            _drop_pooling(spec, backbone)
    # After the weights, which are those of the backbone as it was published.
    if spec.stem_kernel is not None:
        resize_stem(backbone, spec.stem_kernel)
    if spec.backbone_activation is not None:
        swap_activation(backbone, spec.backbone_activation)
    if zero_init_last:
        zero_last_norms(backbone)
    elif weights is None and not hub:
        fill_zero_norms(backbone)
    model = Classifier(spec, backbone, auxiliary, projections)
    if kaiming:
        model.init_kaiming()
    return model


def try_sizes(model: Classifier, sizes: Iterable[int]) -> None:
    """Show the network two blank images of each side in pixels. Raises BadInput on a side that it cannot take."""
    spec, training = model.spec, model.training
    device = next(model.parameters()).device
    metadata = None if spec.metadata is None else torch.zeros(2, spec.metadata.width, device=device)
    model.eval()
    for size in sorted(set(sizes)):
        pixels = torch.zeros(2, size, size, spec.channels, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode():
                model(model.prepare(pixels), metadata)
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            what = f"{spec.backbone} fails on images of side {size} ({_first_lines(error)})"
            raise BadInput("input.size", what, "try the size that the backbone was made for") from error
    model.train(training)


def _torchvision_backbone(spec: ModelSpec, weights: Path | None, hub: bool) -> nn.Module:
    for name in ("drop_path_rate", "output_stride"):
        if getattr(spec, name):
            raise BadInput(f"model.{name}", f"{spec.backbone} does not have it", "leave it out, or take a timm model")
    if weights is not None:
        check_weights_file(weights)
    elif hub:
        what = f"weights of {spec.backbone} come from a file only"
        raise BadInput("model.pretrained", what, "name a file in model.weights, or set model.pretrained=false")
    return make_torchvision(spec.backbone, weights, spec.in_chans, None if spec.pool is None else "")


def _timm_backbone(spec: ModelSpec, weights: Path | None, hub: bool) -> nn.Module:
    options: dict[str, Any] = {
        "num_classes": 0,
        "in_chans": spec.in_chans,
        "drop_path_rate": spec.drop_path_rate or None,
        "output_stride": spec.output_stride,
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
    except (TypeError, AssertionError, AttributeError) as error:  # an option that it does not take
        if spec.output_stride is not None and "drop_path_rate" not in str(error):
            raise _no_stride(spec, _first_lines(error)) from None
        raise BadInput("model", f"{spec.backbone} cannot be built ({_first_lines(error)})") from None
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
    _drop_classifier(spec, backbone)
    return backbone


def _drop_classifier(spec: ModelSpec, backbone: nn.Module) -> None:
    """Raises BadInput for a network that cannot be without one, such as timm's encoders for language models."""
    try:
        backbone.reset_classifier(0)  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        what = f"{spec.backbone} is not made for classes ({_first_lines(error)})"
        raise BadInput("model.backbone", what, "choose another backbone") from None


def _check_stride(spec: ModelSpec, backbone: nn.Module) -> None:
    """Whether the dilated stages are really there: some families take the argument and leave it."""
    training = backbone.training
    with torch.no_grad():
        images = torch.zeros(1, spec.in_chans, spec.size, spec.size)
        features = backbone.eval().forward_features(images)  # type: ignore[operator]
    backbone.train(training)
    if features.ndim != 4 or features.shape[2] < spec.size // (spec.output_stride or 1):
        raise _no_stride(spec, f"its last map is {'x'.join(map(str, features.shape[2:]))}")


def _no_stride(spec: ModelSpec, why: str) -> BadInput:
    what = f"{spec.backbone} cannot be given an output stride of {spec.output_stride} ({why})"
    return BadInput("model.output_stride", what, "set it to null or choose another backbone")


def _drop_pooling(spec: ModelSpec, backbone: nn.Module) -> None:
    """Let the backbone give its last map. Layers that it has after pooling stay and see each place by itself.

    Done after creation, since some families are built otherwise without pooling, and published weights would not fit.
    """
    try:
        backbone.reset_classifier(0, "")  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        what = f"{spec.backbone} cannot do without its own pooling ({_first_lines(error)})"
        raise BadInput("model.pool", what, "set it to null or choose another backbone") from None


def _classes_in(weights: Path, defaults: dict[str, Any]) -> int:
    """The number of classes of the classifier in a weights file; 0 when it holds none. Raises BadInput."""
    names = check_weights_file(weights)
    classifier = defaults.get("classifier") or ()
    first = classifier if isinstance(classifier, str) else next(iter(classifier), "")
    if f"{first}.weight" not in names:
        return 0
    with safetensors.safe_open(weights, framework="pt") as file:
        return int(file.get_slice(f"{first}.weight").get_shape()[0])


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


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
