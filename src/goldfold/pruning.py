"""Global magnitude pruning (Han et al. 2015): the smallest weights are zero and stay zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from goldfold.errors import BadInput
from goldfold.models import Classifier


def magnitude_masks(model: Classifier, amount: float) -> dict[str, Tensor]:
    """Masks (True: kept) of the backbone's weights, by the parameter's name in the network.

    Of all trainable weights of the backbone's convolutions and linear layers together, the round(amount x n) of smallest
    magnitude go; among equal ones those of earlier layers and places. Biases, norms, embeddings and frozen layers are
    not pruned, nor is what is outside the backbone: the head, auxiliary heads and the metadata branch are small, new,
    and every answer passes through them.

    Raises BadInput when no weight may be pruned.
    """
    weights = _prunable(model)
    if not weights:
        raise BadInput(
            "train.prune.amount",
            "the backbone has no trainable convolution or linear layer",
            "set it to 0, or train more of the backbone (model.freeze)",
        )
    # On the CPU, so that a threshold never depends on the device.
    magnitudes = {name: weight.detach().abs().float().cpu() for name, weight in weights.items()}
    together = torch.cat([magnitude.flatten() for magnitude in magnitudes.values()])
    count = round(amount * len(together))
    if not count:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    threshold = together.kthvalue(count).values
    equal_ones = count - int((together < threshold).sum())  # how many of those at the threshold go too
    masks: dict[str, Tensor] = {}
    for name, magnitude in magnitudes.items():
        # Written so that NaN is kept: a broken network is not mended by hiding it.
        mask = ~(magnitude < threshold)
        places = (magnitude == threshold).nonzero()[:equal_ones]
        mask[tuple(places.T)] = False
        equal_ones -= len(places)
        masks[name] = mask.to(weights[name].device)
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a network to zero, in place: after every optimizer step, and in averaged weights.

    Raises ValueError when the network lacks a masked weight.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters.get(name)
        if weight is None or weight.shape != mask.shape:
            raise ValueError(f"the masks are another network's: {name} has no such weight")
        weight.masked_fill_(~mask.to(weight.device), 0)


@torch.no_grad()
def sparsity(model: Classifier) -> float:
    """Share of zeros among the weights that ``magnitude_masks`` would prune; 0 when there are none."""
    weights = _prunable(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)


def _prunable(model: Classifier) -> dict[str, Tensor]:
    """In the order of the network's parameters; a weight that two layers share comes once."""
    layers = [layer for layer in model.backbone.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    wanted = {id(layer.weight) for layer in layers if layer.weight.requires_grad and layer.weight.ndim > 1}
    return {name: weight for name, weight in model.named_parameters() if id(weight) in wanted}
