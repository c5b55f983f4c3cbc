"""What describes a network: enough to build it again without its training configuration."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import timm

from goldfold.config.schema import Input, Model
from goldfold.config.sections import Colour
from goldfold.errors import BadInput, some
from goldfold.models.torchvision import PREFIX, torchvision_defaults
from goldfold.tasks import Activation, Task


@dataclass(frozen=True)
class HeadSpec:
    """From joined features to logits."""

    kind: Literal["linear", "arcface"] = "linear"
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropouts: int = 1
    scale: float = 30.0


@dataclass(frozen=True)
class MetadataShape:
    """The layout of encoded metadata (B, M): ``numeric`` columns as (scaled value, missing flag) pairs, then one-hot groups
    of the widths ``categories``."""

    numeric: int
    categories: tuple[int, ...]

    @property
    def width(self) -> int:
        """M, the number of encoded columns."""
        return 2 * self.numeric + sum(self.categories)


@dataclass(frozen=True)
class MetadataSpec(MetadataShape):
    """The metadata branch: an embedding a category column, then layers of the widths ``hidden``."""

    embeddings: tuple[int, ...]
    hidden: tuple[int, ...]
    drop_rate: float


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
    colour: Colour = "rgb"
    local_mean: Literal["none", "subtract", "hsv_blur"] = "none"
    normalise: Literal["fixed", "image", "image_per_channel"] = "fixed"
    pool: Literal["avg", "max", "concat", "gem"] | None = None
    reduce: int | None = None
    head: HeadSpec = HeadSpec()
    backbone_activation: str | None = None
    output_stride: int | None = None
    stem_kernel: int | None = None
    metadata: MetadataSpec | None = None

    @property
    def in_chans(self) -> int:
        """Grey pictures are stored as one channel and shown to the network as three."""
        return 3 if self.channels == 1 else self.channels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The inverse of ``to_dict``, through JSON or not; keys that an older bundle lacks have their defaults.

        Raises TypeError on an unknown key or a missing one.
        """
        known = _tuples(values)
        if "head" in known:
            known["head"] = HeadSpec(**_tuples(known["head"]))
        if known.get("metadata") is not None:
            known["metadata"] = MetadataSpec(**_tuples(known["metadata"]))
        return cls(**known)


def make_spec(
    model: Model,
    input: Input,
    task: Task,
    target_mean: tuple[float, ...] | None = None,
    target_std: tuple[float, ...] | None = None,
    *,
    metadata: MetadataShape | None = None,
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> ModelSpec:
    """The network of an experiment.

    ``pixel_stats``: mean and deviation in 0..1 of the pixels that the network will see, taken where ``model.mean`` or
    ``model.std`` is null; None: the backbone's. Raises BadInput on an unknown backbone, a wrong number of means, and
    settings that would do nothing.
    """
    _refuse_idle(model, input)
    defaults = backbone_defaults(model.backbone)
    in_chans = 3 if input.channels == 1 else input.channels
    own_mean, own_std = pixel_stats or (defaults["mean"], defaults["std"])
    mean, std = _per_channel(model.mean or own_mean, in_chans), _per_channel(model.std or own_std, in_chans)
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
        colour=input.colour,
        local_mean=input.local_mean,
        normalise=input.normalise,
        pool=model.pool,
        reduce=model.reduce,
        head=HeadSpec(model.head.kind, model.head.hidden, model.head.activation, model.head.dropouts, model.head.scale),
        backbone_activation=model.activation,
        output_stride=model.output_stride,
        stem_kernel=model.stem_kernel,
        metadata=_metadata(model, metadata),
    )


def _refuse_idle(model: Model, input: Input) -> None:
    """Refuse settings that others leave without effect."""
    if model.reduce is not None and model.pool is None:
        raise BadInput("model.reduce", "the backbone's own pooling leaves no map to reduce", "set model.pool to avg")
    if model.head.dropouts > 1 and not model.drop_rate:
        raise BadInput("model.head.dropouts", "the masks are all alike without dropout", "set model.drop_rate, as 0.5")
    if input.normalise != "fixed" and (model.mean or model.std):
        what = f"input.normalise '{input.normalise}' takes each image's own mean and deviation"
        raise BadInput("model.mean" if model.mean else "model.std", what, "set it to null")


def _metadata(model: Model, shape: MetadataShape | None) -> MetadataSpec | None:
    settings = model.metadata
    given = (0, 0) if shape is None else (shape.numeric, len(shape.categories))
    if given != (len(settings.numeric), len(settings.categorical)):
        raise ValueError(f"encoded metadata of {given} columns for model.metadata of others")
    if shape is None or not shape.width:
        return None
    # The rule of thumb of fastai's first tabular models.
    embeddings = tuple(settings.embedding or min(50, (n + 1) // 2) for n in shape.categories)
    return MetadataSpec(shape.numeric, shape.categories, embeddings, settings.hidden, settings.drop_rate)


def backbone_defaults(name: str) -> dict[str, Any]:
    """A backbone's mean, std and input size, by timm or torchvision. Raises BadInput naming near names when there is none."""
    if name.startswith(PREFIX):
        return torchvision_defaults(name)
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


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A backbone's three means for four channels: the fourth gets their average."""
    if len(values) == 3 and channels == 4:
        return (*values, sum(values) / 3)
    return tuple(values)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
