"""A backbone with a head for the task; pixels in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goldfold.errors import BadInput
from goldfold.models.heads import CosineLinear, MetadataBranch, hidden_layers, kaiming
from goldfold.models.pooling import Pooling, find_form
from goldfold.models.spec import ModelSpec

TRAINING_ONLY = ("auxiliary.", "projections.")
"""Parts that only a training has use for."""

CACHED = 1 << 18
"""Values that are normalised at a time: a megabyte, which stays in a processor's cache."""


class Classifier(nn.Module):
    """``forward``: normalised images (B, in_chans, H, W) and metadata (B, M) or None → logits (B, L).

    In training mode the logits of the auxiliary heads, ``auxiliary`` columns each, follow the L of the task, and then
    the pooled features projected to ``projections`` columns each, the widths of teachers' features.
    ``backbone`` gives features (B, W), or its last map or tokens where the spec names a pooling.
    """

    def __init__(
        self, spec: ModelSpec, backbone: nn.Module, auxiliary: Sequence[int] = (), projections: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        # Families with a wide layer after pooling say so apart from num_features.
        width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        self.pooling: Pooling | None = None
        if spec.pool is not None:
            self.pooling = Pooling(spec.pool, find_form(backbone, spec.backbone, spec.in_chans, spec.size), spec.reduce)
            width = self.pooling.width
        self.pooled_width = width
        self.metadata: MetadataBranch | None = None
        if spec.metadata is not None:
            self.metadata = MetadataBranch(spec.metadata)
            width += self.metadata.width
        head = spec.head
        self.hidden = hidden_layers(width, head.hidden, head.activation, spec.drop_rate)
        last = head.hidden[-1] if head.hidden else width
        self.head: nn.Linear = (
            CosineLinear(last, spec.n_logits, head.scale) if head.kind == "arcface" else nn.Linear(last, spec.n_logits)
        )
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.auxiliary = nn.ModuleList(nn.Linear(width, count) for count in auxiliary)
        # A linear map, so that the student's own features and no layers behind them come to hold what the teacher's do.
        self.projections = nn.ModuleList(nn.Linear(self.pooled_width, count) for count in projections)
        self.frozen: list[nn.Module] = []
        self.learnable = frozenset(name for name, value in backbone.named_parameters() if value.requires_grad)
        """Parameters of the backbone that it does not itself fix."""
        # (x / 255 - mean) / std, with both constants scaled to pixels of 0..255 once. Not in the state: the spec has them.
        self._shift = torch.tensor(spec.mean).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(spec.std).view(1, -1, 1, 1) * 255)
        self._target: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        pooled = self.pooled(images)
        if not self.training:
            return self.classify(pooled, metadata)
        features = self._join(pooled, metadata)
        # Multi-sample dropout (Inoue 2019): one pass through the backbone, the mean logits over several dropout masks.
        several = [self._all_logits(self.head_drop(features)) for _ in range(self.spec.head.dropouts)]
        logits = several[0] if len(several) == 1 else torch.stack(several).mean(dim=0)
        if not self.projections:
            return logits
        return torch.cat([logits, *(layer(pooled).to(logits.dtype) for layer in self.projections)], dim=1)

    def pooled(self, images: Tensor) -> Tensor:
        """Normalised images → the backbone's pooled features (B, ``pooled_width``), without metadata."""
        features: Tensor = self.backbone(images)
        return features if self.pooling is None else self.pooling(features)

    def classify(self, pooled: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Pooled features → logits (B, L), as in eval mode."""
        logits: Tensor = self.head(self.hidden(self._join(pooled, metadata)))
        return logits

    def _join(self, features: Tensor, metadata: Tensor | None) -> Tensor:
        width = 0 if self.spec.metadata is None else self.spec.metadata.width
        given = 0 if metadata is None else metadata.shape[1]
        if given != width:
            what = f"the network takes {width} encoded columns and got {given}"
            raise BadInput("model.metadata", what, "give the columns that it was trained with")
        if self.metadata is None:
            return features
        return torch.cat([features, self.metadata(metadata).to(features.dtype)], dim=1)

    def _all_logits(self, features: Tensor) -> Tensor:
        logits = self.head(self.hidden(features))
        if not self.auxiliary:
            return logits
        return torch.cat([logits, *(head(features).to(logits.dtype) for head in self.auxiliary)], dim=1)

    def prepare(self, pixels: Tensor, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
        """uint8 pixels (B, H, W, C) on the device → normalised float32 images (B, in_chans, H, W)."""
        if self.spec.normalise == "fixed":
            images = self._prepare_fixed(pixels)
        else:
            images = self.normalise(pixels.permute(0, 3, 1, 2).float().expand(-1, self.spec.in_chans, -1, -1))
        return images.contiguous(memory_format=memory_format)

    def _prepare_fixed(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) to (B, in_chans, H, W): ``normalise`` to the bit, with less traffic through memory."""
        shift, scale = self._constants(pixels.device)
        if pixels.device.type != "cpu":
            return (pixels.permute(0, 3, 1, 2).float() - shift).mul_(scale)
        if pixels.shape[3] != self.spec.in_chans:  # grey: of each of the 256 values what the channels make of it
            table = ((torch.arange(256.0).view(1, 1, -1, 1) - shift) * scale).reshape(self.spec.in_chans, 256).T
            return F.embedding(pixels[..., 0].int(), table.contiguous()).permute(0, 3, 1, 2)
        # A row of constants is as fast as memory; three over and over are not. A few images at a time stay in the cache.
        count, height, width, channels = pixels.shape
        row_shift, row_scale = (constant.flatten().repeat(width) for constant in (shift, scale))
        images = torch.empty(count, height, width * channels)
        step = max(CACHED // max(height * width * channels, 1), 1)
        for start in range(0, count, step):
            part = images[start : start + step]
            part.copy_(pixels[start : start + step].reshape(part.shape)).sub_(row_shift).mul_(row_scale)
        return images.view(pixels.shape).permute(0, 3, 1, 2)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) of 0..255 → what the network takes, of the same shape."""
        if self.spec.normalise != "fixed":
            return standardise(images, (2, 3) if self.spec.normalise == "image_per_channel" else (1, 2, 3))
        shift, scale = self._constants(images.device)
        return (images - shift) * scale

    def restore(self, images: Tensor) -> Tensor:
        """The inverse of ``normalise`` but for rounding. Raises ValueError where each image had constants of its own."""
        if self.spec.normalise != "fixed":
            raise ValueError(f"images normalised by '{self.spec.normalise}' cannot be restored")
        shift, scale = self._constants(images.device)
        return images / scale + shift

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._shift.device != device:
            self._shift, self._scale = self._shift.to(device), self._scale.to(device)
        return self._shift, self._scale

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
        mean, std = self._units(logits.device)
        return logits * std + mean

    def _units(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target, on the device once: a copy in each batch would make the processor wait."""
        if self._target is None or self._target[0].device != device:
            self._target = (
                torch.tensor(self.spec.target_mean, device=device),
                torch.tensor(self.spec.target_std, device=device),
            )
        return self._target

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for module in self.frozen:
            module.eval()  # a frozen layer's batch-norm statistics stay as they are
        return self

    def init_kaiming(self) -> None:
        """He et al.'s weights (2015) in all linear layers that are not the backbone's, but for embeddings."""
        branch = None if self.metadata is None else self.metadata.layers
        kaiming([self.pooling, branch, self.hidden, self.head, self.auxiliary, self.projections])

    def inference_state(self) -> dict[str, Tensor]:
        """The state dict without the auxiliary heads and projections."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(TRAINING_ONLY)}

    def load_inference_state(self, state: dict[str, Tensor]) -> None:
        """Take over an ``inference_state``; what only trains stays as it is. Raises RuntimeError when it does not fit."""
        own = self.inference_state()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise RuntimeError(f"missing keys: {missing}; unexpected keys: {unexpected}")
        self.load_state_dict(state, strict=False)


def standardise(images: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Images (B, C, H, W) in 0..255 minus their mean over their deviation, both over ``dims``."""
    std, mean = torch.std_mean(images, dim=dims, correction=0, keepdim=True)
    # No image of whole numbers deviates less, unless it is flat (TensorFlow's per_image_standardization).
    least = images[0].numel() ** -0.5 if 1 in dims else images[0, 0].numel() ** -0.5
    return (images - mean) / std.clamp(min=least)


def grades(above: Tensor) -> Tensor:
    """P(grade > k) (B, C-1) → P(grade = k) (B, C). Estimates that contradict their order are made monotone first."""
    above = above.cummin(dim=1).values
    edge = above.new_ones(len(above), 1)
    bounds = torch.cat([edge, above, torch.zeros_like(edge)], dim=1)
    return bounds[:, :-1] - bounds[:, 1:]
