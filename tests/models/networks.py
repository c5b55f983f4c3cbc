"""Small networks with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from goldfold.config.schema import Input, Model
from goldfold.models import Classifier, MetadataShape, build_model, make_spec
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))


def build(
    backbone: str = "test_efficientnet",
    size: int = 32,
    *,
    channels: int = 3,
    task: Task = MULTI,
    input: dict[str, Any] | None = None,
    shape: MetadataShape | None = None,
    auxiliary: Sequence[int] = (),
    kaiming: bool = False,
    seed: int = 0,
    **model: Any,
) -> Classifier:
    """``model``: keys of the config's model section; ``input``: of its input section."""
    settings = Model.model_validate({"backbone": backbone, "pretrained": False, **model})
    sight = Input.model_validate({"size": size, "channels": channels, **(input or {})})
    torch.manual_seed(seed)
    return build_model(make_spec(settings, sight, task, metadata=shape), auxiliary=auxiliary, kaiming=kaiming)
