"""Views of an image at prediction, by ttach, and how their probabilities meet."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import ttach
from torch import Tensor
from ttach import functional
from ttach.base import BaseTransform

from goldfold.config.schema import Tta
from goldfold.errors import BadInput, some

IDENTITY = "identity"
"""The name of the view that shows the picture as it is."""

EPS = 1e-7
"""Probabilities of 0 and 1 are so far from them where logarithms are taken."""

CROP = 7 / 8
"""Side of a preset's crop over the picture's: 224 of 256 pixels, as in Krizhevsky et al. 2012."""

CROPS: dict[str, Callable[..., Tensor]] = {
    "centre": functional.center_crop,
    "top left": functional.crop_lt,
    "top right": functional.crop_rt,
    "bottom left": functional.crop_lb,
    "bottom right": functional.crop_rb,
}
CROP_PRESETS = ("five-crop", "ten-crop")

# ttach's own d4 alias already holds the identity; these do too, and each view once.
PRESETS: dict[str, tuple[dict[str, dict[str, Any]], ...]] = {
    "none": (),
    "flip": ({"HorizontalFlip": {}},),
    "flips": ({"HorizontalFlip": {}}, {"VerticalFlip": {}}),
    "d4": ({"HorizontalFlip": {}}, {"Rotate90": {"angles": [0, 90, 180, 270]}}),
    # ttach would take the nearest pixel unless told.
    "scales": ({"Scale": {"scales": [1, 0.875, 1.143], "interpolation": "bilinear"}},),
}


@dataclass(frozen=True)
class View:
    """A function of normalised images (B, C, H, W), and the name by which it is chosen and reported."""

    name: str
    apply: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images)


def make_views(settings: Tta, size: int | None = None) -> list[View]:
    """The views: the product of all transforms, the identity first where it is among them.

    With ``views: auto`` the candidates, to which the identity always belongs. ``size``: side of the network's input, to
    which a preset's crops are brought (None: the side of the picture that is cropped). Raises BadInput on an unknown
    transform or argument, and where two views are the same.
    """
    auto = settings.views == "auto"
    named = settings.candidates if auto else settings.views
    if isinstance(named, str) and named in CROP_PRESETS:
        views = _crops(size, mirrored=named == "ten-crop")
    else:
        views = _products(PRESETS[named] if isinstance(named, str) else named)
    if auto and all(view.name != IDENTITY for view in views):
        views = [View(IDENTITY, _as_it_is), *views]
    names = [view.name for view in views]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadInput("tta.views", f"gives the same view twice: {some(doubled)}", "name each once")
    return sorted(views, key=lambda view: view.name != IDENTITY)


def pick_views(settings: Tta, size: int | None, chosen: Sequence[str]) -> list[View]:
    """The views of these names among ``make_views``, in its order; the identity is always known. Raises BadInput."""
    known = {IDENTITY: View(IDENTITY, _as_it_is)} | {view.name: view for view in make_views(settings, size)}
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise BadInput("views", f"there is no view {some(unknown) or 'chosen'}", f"the views are {some(known, 20)}")
    return [view for name, view in known.items() if name in chosen]


def single_view(settings: Tta, size: int | None = None) -> View:
    """What an epoch is validated on: the picture as it is, or the centre crop where a preset shows crops only."""
    if isinstance(settings.views, str) and settings.views in CROP_PRESETS:
        return make_views(settings, size)[0]
    return View(IDENTITY, _as_it_is)


def pixel_share(view: View, side: int) -> float:
    """Pixels that the network is shown in a view of a picture of that side, over the picture's own."""
    height, width = view(torch.zeros(1, 1, side, side)).shape[2:]
    return float(height * width / side**2)


def merge(views: Sequence[Tensor], how: str, *, yes_or_no: bool = False) -> Tensor:
    """Probabilities (B, C) of each view → (B, C): ``mean``, ``gmean`` (geometric) or ``max``. Not for logits.

    ``yes_or_no``: each column is a question of its own, whose no has a geometric mean too; the two are made to sum to 1.
    Computed in float64, so that neither the batch nor the device shows in the float32 result. The caller normalises rows
    afterwards where they must sum to one.
    """
    if how == "gmean" and yes_or_no:
        return torch.stack([torch.logit(view.double(), eps=EPS) for view in views]).mean(dim=0).sigmoid().float()
    merger = ttach.base.Merger(how, len(views))
    for view in views:
        merger.append(view.double())
    return merger.result.float()


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _crops(size: int | None, *, mirrored: bool) -> list[View]:
    views = [View(f"crop({name})", partial(_crop, cut=cut, size=size)) for name, cut in CROPS.items()]
    if mirrored:
        views += [View(f"{view.name}+HorizontalFlip", partial(_mirrored, view=view)) for view in views]
    return views


def _crop(images: Tensor, cut: Callable[..., Tensor], size: int | None) -> Tensor:
    height, width = images.shape[2:]
    part = cut(images, crop_h=round(height * CROP), crop_w=round(width * CROP))
    target = (height, width) if size is None else (size, size)
    if tuple(part.shape[2:]) == target:
        return part
    return torch.nn.functional.interpolate(part, size=target, mode="bilinear", antialias=True)


def _mirrored(images: Tensor, view: View) -> Tensor:
    return functional.hflip(view(images))


def _products(items: Sequence[Mapping[str, dict[str, Any] | None]]) -> list[View]:
    transforms = [(name, _transform(name, arguments or {})) for item in items for name, arguments in item.items()]
    if not transforms:
        return [View(IDENTITY, _as_it_is)]
    compose = ttach.Compose([transform for _, transform in transforms])
    return [
        View(_view_name(transforms, parameters), transformer.augment_image)
        for transformer, parameters in zip(compose, compose.aug_transform_parameters, strict=True)
    ]


def _view_name(transforms: Sequence[tuple[str, BaseTransform]], parameters: Sequence[Any]) -> str:
    parts = []
    for (name, transform), parameter in zip(transforms, parameters, strict=True):
        if transform.identity_param is not None and parameter == transform.identity_param:
            continue
        parts.append(name if isinstance(parameter, bool) else f"{name}({_parameter_text(parameter)})")
    return "+".join(parts) or IDENTITY


def _parameter_text(parameter: Any) -> str:
    if isinstance(parameter, partial):
        cut = parameter.keywords["cut"].func
        return next(name for name, known in CROPS.items() if known is cut)
    if isinstance(parameter, (list, tuple)):
        return "x".join(map(str, parameter))
    return f"{parameter}"


def _transform(name: str, arguments: dict[str, Any]) -> BaseTransform:
    known = {
        key: value
        for key, value in vars(ttach.transforms).items()
        if inspect.isclass(value) and issubclass(value, BaseTransform) and value.__module__ == "ttach.transforms"
    }
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise BadInput(
            "tta.views", f"ttach has no transform '{name}'", f"use {near[0] if near else some(sorted(known), 20)}"
        )
    allowed = list(inspect.signature(known[name]).parameters)
    wrong = [key for key in arguments if key not in allowed]
    if wrong:
        raise BadInput("tta.views", f"{name} has no argument {some(wrong)}", f"it takes {some(allowed) or 'none'}")
    try:
        transform: Any = known[name](**arguments)
    except (TypeError, ValueError) as error:
        raise BadInput("tta.views", f"{name}: {error}", f"it takes {some(allowed) or 'none'}") from None
    if name == "FiveCrops":
        transform.params = tuple(partial(_whole_crop, cut=cut) for cut in transform.params)
    return transform  # type: ignore[no-any-return]


def _whole_crop(images: Tensor, cut: Callable[..., Tensor]) -> Tensor:
    """ttach's crop, refused where ttach would quietly give a smaller or another one."""
    height, width = cut.keywords["crop_h"], cut.keywords["crop_w"]  # type: ignore[attr-defined]
    seen = tuple(images.shape[2:])
    if not (0 < height <= seen[0] and 0 < width <= seen[1]):
        what = f"FiveCrops of {height}x{width} pixels do not fit into images of {seen[0]}x{seen[1]}"
        raise BadInput("tta.views", what, "crop less, or raise tta.size")
    return cut(images)
