"""Parts after the backbone: hidden layers, the metadata branch, a head of cosines."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from goldfold.models.spec import MetadataSpec
from goldfold.models.surgery import make_activation


class CosineLinear(nn.Linear):
    """ArcFace's head (Deng et al. 2019): ``scale`` x cosine of features (B, W) and each class's weights → (B, L) float32.

    The angular margin belongs to the loss.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        # bfloat16 knows a cosine to 2 digits, and the scale would carry the error into the logits.
        with torch.autocast(features.device.type, enabled=False):
            normal = nn.functional.normalize(features.float(), dim=1)
            return self.scale * nn.functional.linear(normal, nn.functional.normalize(self.weight.float(), dim=1))


class MetadataBranch(nn.Module):
    """Encoded metadata (B, M) → (B, W): an embedding a category column, numbers as they are, then a small MLP.

    A category is a row of weights times a one-hot group, so mixed groups get mixed embeddings.
    """

    def __init__(self, spec: MetadataSpec) -> None:
        super().__init__()
        self.spec = spec
        pairs = zip(spec.categories, spec.embeddings, strict=True)
        self.embeddings = nn.ModuleList(nn.Linear(n, width, bias=False) for n, width in pairs)
        joined = 2 * spec.numeric + sum(spec.embeddings)
        self.layers = hidden_layers(joined, spec.hidden, "relu", spec.drop_rate)
        self.width = spec.hidden[-1] if spec.hidden else joined

    def forward(self, metadata: Tensor) -> Tensor:
        numbers, *groups = torch.split(metadata, [2 * self.spec.numeric, *self.spec.categories], dim=1)
        parts = [embed(group) for embed, group in zip(self.embeddings, groups, strict=True)]
        return self.layers(torch.cat([numbers.to(parts[0].dtype) if parts else numbers, *parts], dim=1))


def hidden_layers(width: int, hidden: Iterable[int], activation: str, drop_rate: float) -> nn.Sequential:
    """A linear layer, the activation and dropout for each width in ``hidden``."""
    layers: list[nn.Module] = []
    for after in hidden:
        layers += [nn.Linear(width, after), make_activation(activation), nn.Dropout(drop_rate)]
        width = after
    return nn.Sequential(*layers)


def kaiming(parts: Iterable[nn.Module | None]) -> None:
    """Normal weights of variance 2 / inputs (He et al. 2015) and zero biases in linear layers and 1x1 convolutions."""
    for part in parts:
        for module in part.modules() if part is not None else ():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
