"""A network cut in two: the trunk, which stays as it is, and the tail, which takes the trunk's output for images."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from goldfold.errors import BadInput
from goldfold.models.classifier import Classifier


@dataclass(frozen=True)
class Split:
    """``trunk``: images (B, C, H, W) → features (B, ...), without gradients; ``tail``: features → logits.

    The tail shares its modules with the model that was split: training the one trains the other.
    """

    trunk: Trunk
    tail: Classifier
    cut: _Cut

    def tail_of(self, model: Classifier) -> Classifier:
        """That part of another network of the same build, such as an average of this one's weights, and its modules."""
        return _tail(model, self.cut)


@dataclass(frozen=True, eq=False)
class Trunk:
    """The model up to and with the module ``place``, in eval mode and without gradients."""

    model: Classifier
    place: str

    def __call__(self, images: Tensor) -> Tensor:
        module, training = self.model.get_submodule(self.place), self.model.training
        hook = module.register_forward_hook(_stop)
        try:
            with torch.no_grad():
                self.model.eval()(images, _no_metadata(self.model, images))
        except _Reached as reached:
            return reached.output
        finally:
            hook.remove()
            self.model.train(training)
        raise RuntimeError(f"{self.place} was not reached")


def split_trunk(model: Classifier, images: Tensor) -> Split:
    """Cut the model where training begins: after the last module that finishes before anything trainable is called.

    ``images`` (B, C, H, W): two or more prepared examples of the size that will be used (another size needs another
    split); the two parts are compared with the whole on them. Raises BadInput when the model cannot be cut so.
    """
    training = model.training
    try:
        model.eval()
        for places in _cuts(model, images):
            split = _split(model, images, places)
            if _same(model, split, images):
                split.tail.train(training)
                return split
    finally:
        model.train(training)
    what = f"{model.spec.backbone} cannot be split after its frozen layers"
    raise BadInput("model.freeze.cache", what, "set model.freeze.cache to false")


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, inputs: object, output: Tensor) -> None:
    raise _Reached(output)


def _no_metadata(model: Classifier, images: Tensor) -> Tensor | None:
    metadata = model.spec.metadata
    return None if metadata is None else images.new_zeros(len(images), metadata.width)


@dataclass
class _Place:
    """A module that is called before training begins: when its last call ended, and its output's shape (if a tensor)."""

    name: str
    module: nn.Module
    end: int
    shape: torch.Size | None


def _cuts(model: Classifier, images: Tensor) -> Iterator[list[_Place]]:
    """The largest modules that finish before training begins, in the order of their ends; then without the last, ..."""
    model.train()
    active = {id(module) for module in model.modules() if module.training}
    model.eval()
    fixed = [place for place in _finished(model, images, active) if not _trains(place.module, active, deep=True)]
    names = {place.name for place in fixed}
    largest = [place for place in fixed if not any(parent in names for parent in _parents(place.name))]
    largest.sort(key=lambda place: place.end)
    while largest:
        module = largest[-1].module
        # A dropout at the end of the trunk is at work when the tail trains, so it belongs there.
        random = any(_is_random(part) and id(part) in active for part in module.modules())
        learnt = any(True for _ in module.parameters())
        if largest[-1].shape is not None and (learnt or not random):
            yield list(largest)
        largest.pop()


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _finished(model: Classifier, images: Tensor, active: set[int]) -> list[_Place]:
    """Modules of backbone and pooling whose every call ends before the first call of one that trains.

    What follows those two differs in training (dropout, heads of auxiliary labels), so it is always in the tail.
    """
    modules = {
        name: module for name, module in model.named_modules() if name.partition(".")[0] in ("backbone", "pooling")
    }
    calls: list[tuple[str, bool, torch.Size | None]] = []  # name, whether it is the call's end, shape

    def enter(name: str, module: nn.Module, inputs: object) -> None:
        calls.append((name, False, None))

    def leave(name: str, module: nn.Module, inputs: object, output: object) -> None:
        calls.append((name, True, output.shape if isinstance(output, Tensor) else None))

    hooks = []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(functools.partial(enter, name)))
        hooks.append(module.register_forward_hook(functools.partial(leave, name)))
    try:
        with torch.no_grad():
            model(images, _no_metadata(model, images))
    finally:
        for hook in hooks:
            hook.remove()
    begins = (at for at, (name, ends, _) in enumerate(calls) if not ends and _trains(modules[name], active))
    stop = next(begins, len(calls))
    late = {name for name, _, _ in calls[stop:]}
    last = {name: (at, shape) for at, (name, ends, shape) in enumerate(calls[:stop]) if ends}
    return [_Place(name, modules[name], *found) for name, found in last.items() if name not in late]


def _trains(module: nn.Module, active: set[int], deep: bool = False) -> bool:
    """Whether training changes the module: its own parameters or batch statistics, or those of its parts (``deep``)."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=deep)):
        return True
    parts = module.modules() if deep else [module]
    statistics = ("running_mean", "running_var")
    return any(
        id(part) in active and any(getattr(part, kind, None) is not None for kind in statistics) for part in parts
    )


def _is_random(module: nn.Module) -> bool:
    rate = getattr(module, "drop_prob", None) if isinstance(module, DropPath) else getattr(module, "p", None)
    return isinstance(module, DropPath | nn.modules.dropout._DropoutNd) and bool(rate)


@dataclass
class _Feed:
    """The features of the batch that the tail is at, and the shape of the images that the trunk took."""

    image: torch.Size
    layout: torch.memory_format
    features: Tensor | None = None

    def put(self, features: Tensor) -> Tensor:
        """Take the features; what goes through the tail in place of the images."""
        layout = self.layout if features.ndim == 4 else torch.contiguous_format
        # A copy: layers that work in place would change the caller's features.
        self.features = features.to(torch.float32, memory_format=layout, copy=True)
        return self.blank(self.image)

    def blank(self, shape: torch.Size) -> Tensor:
        """NaN in a shape: whatever of the trunk's inside would still reach the logits shows. It takes no memory."""
        assert self.features is not None
        # A trunk may fold other dimensions into the batch (windows of attention).
        batch = len(self.features) * shape[0] // self.image[0]
        return self.features.new_full((), math.nan).expand(batch, *shape[1:])


class _InPlaceOf(nn.Module):
    """In place of a module of the trunk. Its other attributes are the old one's, since some networks ask for them."""

    def __init__(self, old: nn.Module, feed: _Feed) -> None:
        super().__init__()
        self.feed = feed
        self.__dict__["old"] = old  # not as a part: the tail neither holds nor saves the trunk's weights

    def __getattr__(self, name: str) -> Any:
        if name == "old" or name.startswith("__"):  # a copy that is being made
            raise AttributeError(name)
        return getattr(self.old, name)


class _Blank(_InPlaceOf):
    """In place of a module inside the trunk, whose output nothing needs any more."""

    def __init__(self, old: nn.Module, feed: _Feed, shape: torch.Size | None) -> None:
        super().__init__(old, feed)
        self.shape = shape

    def forward(self, *inputs: object, **named: object) -> object:
        return inputs[0] if self.shape is None else self.feed.blank(self.shape)


class _Enter(_InPlaceOf):
    """In place of the trunk's last module: here the features come in."""

    def forward(self, *inputs: object, **named: object) -> Tensor:
        assert self.feed.features is not None
        return self.feed.features


class Tail(Classifier):
    """A Classifier that takes a trunk's features (B, ...) in place of images."""

    feed: _Feed

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        return super().forward(self.feed.put(images), metadata)


@dataclass(frozen=True)
class _Cut:
    """``places``: names and output shapes of the trunk's modules, the last one where the features come out.

    ``image``: shape of the images that it was found with; ``layout``: the features' memory format.
    """

    places: tuple[tuple[str, torch.Size | None], ...]
    image: torch.Size
    layout: torch.memory_format


def _split(model: Classifier, images: Tensor, places: list[_Place]) -> Split:
    trunk = Trunk(model, places[-1].name)
    output = trunk(images[:1])
    channels_last = output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    cut = _Cut(tuple((place.name, place.shape) for place in places), images.shape, layout)
    return Split(trunk, _tail(model, cut), cut)


def _tail(model: Classifier, cut: _Cut) -> Tail:
    feed = _Feed(cut.image, cut.layout)
    old = {name: model.get_submodule(name) for name, _ in cut.places}
    new: dict[str, nn.Module] = {name: _Blank(old[name], feed, shape) for name, shape in cut.places[:-1]}
    last = cut.places[-1][0]
    new[last] = _Enter(old[last], feed)
    copies: dict[int, nn.Module] = {}
    tail = cast(Tail, _with_replaced(model, "", new, copies))
    tail.__class__ = Tail
    tail.feed = feed
    gone = {id(module) for part in old.values() for module in part.modules()}
    tail.frozen = [copies.get(id(module), module) for module in model.frozen if id(module) not in gone]
    return tail


def _with_replaced(module: nn.Module, name: str, new: dict[str, nn.Module], copies: dict[int, nn.Module]) -> nn.Module:
    """The module, with those of ``new`` in their places; a copy that shares its parameters where that changes it."""
    if name in new:
        return new[name]
    if not any(other.startswith(f"{name}." if name else "") for other in new):
        return module
    if id(module) not in copies:
        copied = copies[id(module)] = copy.copy(module)
        parts = {
            key: None if part is None else _with_replaced(part, f"{name}.{key}" if name else key, new, copies)
            for key, part in module._modules.items()
        }
        copied._modules = parts
    return copies[id(module)]


def _same(model: Classifier, split: Split, images: Tensor) -> bool:
    """Whether trunk and tail compute what the model does, for the whole batch and for one image."""
    tail = split.tail.eval()
    try:
        with torch.no_grad():
            for batch in (images, images[:1]):
                metadata = _no_metadata(model, batch)
                whole, parts = model(batch, metadata), tail(split.trunk(batch), metadata)
                scale = float(whole.abs().max())
                if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=1e-3, atol=1e-4 * scale):
                    return False
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
        return False  # such as shapes that do not meet: this cut does not work, and an earlier one may
    return True
