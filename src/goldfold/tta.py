"""Views of an image at prediction, by ttach, and how their probabilities meet."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import ttach
from torch import Tensor
from ttach.base import BaseTransform

from goldfold.config.schema import Tta
from goldfold.errors import BadInput, some

View = Callable[[Tensor], Tensor]

# ttach's own d4 alias already holds the identity; these do too, and each view once.
PRESETS: dict[str, tuple[dict[str, dict[str, Any]], ...]] = {
    "none": (),
    "hflip": ({"HorizontalFlip": {}},),
    "flips": ({"HorizontalFlip": {}}, {"VerticalFlip": {}}),
    "d4": ({"HorizontalFlip": {}}, {"Rotate90": {"angles": [0, 90, 180, 270]}}),
}


def make_views(settings: Tta) -> list[View]:
    """The views as functions of normalised images (B, C, H, W); the product of all transforms, the identity first.

    Raises BadInput on an unknown transform or argument.
    """
    views = PRESETS[settings.views] if isinstance(settings.views, str) else settings.views
    transforms = [_transform(name, arguments or {}) for item in views for name, arguments in item.items()]
    if not transforms:
        return [lambda images: images]
    return [transformer.augment_image for transformer in ttach.Compose(transforms)]


def merge(views: Sequence[Tensor], how: str) -> Tensor:
    """Probabilities (B, C) of each view → (B, C): ``mean``, ``gmean`` (geometric) or ``max``. Not for logits.

    The caller normalises rows afterwards where they must sum to one.
    """
    merger = ttach.base.Merger(how, len(views))
    for view in views:
        merger.append(view)
    return merger.result


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
        return known[name](**arguments)
    except (TypeError, ValueError) as error:
        raise BadInput("tta.views", f"{name}: {error}", f"it takes {some(allowed) or 'none'}") from None
