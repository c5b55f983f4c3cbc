"""The optimizer, by timm."""

from __future__ import annotations

import difflib

import torch
from timm.optim import create_optimizer_v2, list_optimizers

from goldfold.config.schema import Optim
from goldfold.errors import BadInput
from goldfold.models import Classifier


def make_optimizer(settings: Optim, model: Classifier) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters.

    Biases and norms (all one-dimensional parameters) have no weight decay (He et al. 2019); each group carries
    ``lr_scale``, which ``set_rate`` honours. Raises BadInput on an unknown name.
    """
    known = list_optimizers()
    name = settings.name.lower()
    bare = name.removeprefix("lookahead_")
    if bare not in known:
        near = difflib.get_close_matches(bare, known, 3)
        raise BadInput(
            "optim.name",
            f"timm has no optimizer '{settings.name}'",
            f"did you mean {' or '.join(near)}?" if near else "",
        )
    groups = []
    for part, scale in ((model.backbone, 1.0), (model.head, settings.head_lr_scale)):
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        plain = [parameter for parameter in trained if parameter.ndim <= 1]
        for parameters, decay in ((decayed, settings.weight_decay), (plain, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "lr_scale": scale})
    try:
        return create_optimizer_v2(
            groups, opt=settings.name, lr=settings.lr, weight_decay=settings.weight_decay, momentum=settings.momentum
        )
    except (ValueError, TypeError, ImportError) as error:  # a value that it does not take, or a package that it needs
        raise BadInput("optim", f"{settings.name} cannot be made ({error})") from error


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
