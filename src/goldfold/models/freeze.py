"""Layers that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from timm.models import group_parameters
from torch import nn

from goldfold.errors import BadInput
from goldfold.models.classifier import Classifier

BACKBONE = "backbone."


def set_frozen(model: Classifier, stages: int | Literal["all"], batch_norm: bool) -> None:
    """Fix layers of the backbone: their parameters, and their batch-norm statistics too.

    ``stages``: the first groups of layers by timm's coarse grouping (1: the stem); -k: all but the last k; all: the whole
    backbone. ``batch_norm``: also every layer with running statistics, with its scale. Whatever was frozen before and is
    not named now learns again. Raises BadInput when the backbone has fewer groups.
    """
    frozen = _frozen_parameters(model, stages)
    modules = list(_frozen_modules(model.backbone, frozen))
    if batch_norm:
        norms = dict(_norms(model.backbone))
        frozen |= _scales(norms)
        modules += norms.values()
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name in model.learnable and name not in frozen)
        if name in frozen:
            parameter.grad = None  # an optimizer would step with what is left there
    model.frozen = modules
    model.train(model.training)


def trainable_names(model: Classifier, stages: int | Literal["all"], batch_norm: bool) -> set[str]:
    """Names of the parameters that would train after ``set_frozen``; changes nothing. Raises BadInput as it does."""
    frozen = _frozen_parameters(model, stages)
    if batch_norm:
        frozen |= _scales(dict(_norms(model.backbone)))
    rest = {name for name, value in model.named_parameters() if not name.startswith(BACKBONE) and value.requires_grad}
    return rest | {BACKBONE + name for name in model.learnable - frozen}


def _frozen_parameters(model: Classifier, stages: int | Literal["all"]) -> set[str]:
    """Names in the backbone."""
    if stages == "all":
        return {name for name, _ in model.backbone.named_parameters()}
    if not stages:
        return set()
    groups = _groups(model)
    count = max(groups.values()) + 1
    if abs(stages) >= count:
        most = f"{count - 1} or all" if stages > 0 else f"-1 to -{count - 1}"
        raise BadInput(
            "model.freeze.stages",
            f"{model.spec.backbone} has {count} groups of layers",
            f"use at most {most}" if stages > 0 else f"use {most}, or 0 to freeze none",
        )
    fixed = stages if stages > 0 else count + stages
    return {name for name, group in groups.items() if group < fixed}


def _groups(model: Classifier) -> dict[str, int]:
    """Each parameter of the backbone with its group's number, the stem's 0."""
    backbone = model.backbone
    if not hasattr(backbone, "group_matcher"):
        what = f"{model.spec.backbone} does not say how its layers are grouped"
        raise BadInput("model.freeze.stages", what, "use 0 or all")
    matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    found: dict[str, int] = group_parameters(backbone, matcher, reverse=True)
    # timm's patterns know no learnt activations, which would end up in the last group: they go with what they follow.
    learnt = {f"{name}.weight" for name, module in backbone.named_modules() if isinstance(module, nn.PReLU)}
    groups: dict[str, int] = {}
    previous = 0
    for name, _ in backbone.named_parameters():
        groups[name] = previous if name in learnt else found[name]
        previous = groups[name]
    return groups


def _frozen_modules(backbone: nn.Module, frozen: set[str]) -> Iterator[nn.Module]:
    """The largest modules all of whose parameters are frozen: blocks as a whole, for their dropout is random too."""
    inside: str | None = None
    for name, module in backbone.named_modules():
        if inside is not None and (not inside or name.startswith(f"{inside}.")):
            continue
        prefix = f"{name}." if name else ""
        own = [prefix + parameter for parameter, _ in module.named_parameters()]
        if own and frozen.issuperset(own):
            inside = name
            yield module


def _norms(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers with running statistics."""
    for name, module in backbone.named_modules():
        if any(getattr(module, kind, None) is not None for kind in ("running_mean", "running_var")):
            yield name, module


def _scales(norms: dict[str, nn.Module]) -> set[str]:
    return {
        f"{name}.{parameter}"
        for name, module in norms.items()
        for parameter, _ in module.named_parameters(recurse=False)
    }
