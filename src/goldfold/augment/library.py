"""albumentations and Goldfold's own transforms by name, built from YAML; nothing wrong passes with a mere warning."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from goldfold.augment.presets import Item
from goldfold.errors import BadInput, some

_ON_DEVICE = {"Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"}
_NOT_FOR_IMAGES = {"BaseCompose", "BasicTransform", "Compose", "DualTransform", "ImageOnlyTransform", "Lambda"}
_NOT_FOR_IMAGES |= {"ReplayCompose", "Transform3D"}
_HARMLESS = "is a special case of"
"""ShiftScaleRotate warns so and does what it is asked; every other warning means that it does something else."""
_CUTS = {"RandomCrop", "CenterCrop"}


@dataclass(frozen=True)
class Sides:
    """Sides in pixels that a transform gets where its own are left out.

    ``size``: the network's input, for what resizes; ``crop``: for what cuts a window without resizing it.
    """

    size: int
    crop: int


@functools.cache
def albumentations() -> Any:
    """The library. Imported late: it takes seconds, and prediction does not need it."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for newer versions
    import albumentations

    return albumentations


@functools.cache
def known_transforms() -> dict[str, Any]:
    """Classes by the names that a list may hold."""
    from goldfold.augment.own import OWN  # imported late, as albumentations is

    library = albumentations()
    kinds = (library.BasicTransform, library.BaseCompose)
    found = {
        name: value for name, value in vars(library).items() if inspect.isclass(value) and issubclass(value, kinds)
    }
    return {name: value for name, value in found.items() if name not in _NOT_FOR_IMAGES} | OWN


def build(item: Item, sides: Sides, where: str) -> Any:
    """One transform. Raises BadInput for an unknown name or argument and for a wrong value."""
    if not isinstance(item, Mapping) or len(item) != 1:
        raise BadInput(where, f"expected one transform, got {item!r}", "write each as {Name: {argument: value}}")
    ((name, given),) = item.items()
    where = f"{where}.{name}"
    if name in _ON_DEVICE:
        raise BadInput(
            where, "Goldfold normalises on the device", "leave it out; model.mean and model.std set the values"
        )
    if name not in known_transforms():
        nearest = _nearest(str(name), known_transforms())[:1]
        raise BadInput(where, "there is no such transform", f"did you mean '{nearest[0]}'?" if nearest else "")
    kind = known_transforms()[name]
    if given is not None and not isinstance(given, Mapping):
        raise BadInput(where, f"expected arguments, got {given!r}", "write {argument: value}")
    arguments = dict(given or {})
    parameters = {key: value for key, value in inspect.signature(kind).parameters.items() if key != "strict"}
    for argument in arguments:
        if argument not in parameters:
            names = _nearest(str(argument), parameters, cutoff=0)
            raise BadInput(where, f"unknown argument '{argument}'", f"its arguments are {some(names, 12)}")
    if issubclass(kind, albumentations().BaseCompose):
        _build_choice(arguments, sides, where)
    _fill_sides(arguments, parameters, name, sides)
    return _construct(kind, arguments, where)


def always(item: Item) -> Item:
    """The transform with a chance of 1 (or 0 where it was); the members of a choice keep theirs, which are weights."""
    ((name, given),) = item.items()
    arguments = dict(given or {})
    if arguments.get("p", 1) > 0:
        arguments["p"] = 1.0
    if name == "Sequential":
        arguments["transforms"] = [always(member) for member in arguments["transforms"]]
    return {name: arguments}


def holds(item: Item, name: str) -> bool:
    """Whether the transform is ``name``, or a choice that holds it at any depth."""
    return any(
        key == name or any(holds(member, name) for member in (given or {}).get("transforms", ()))
        for key, given in item.items()
    )


def _build_choice(arguments: dict[str, Any], sides: Sides, where: str) -> None:
    """Build the nested transforms in place, and check what albumentations does not."""
    nested = arguments.get("transforms")
    if not isinstance(nested, (list, tuple)) or not nested:
        raise BadInput(where, "has no transforms", "write transforms: [{Name: {argument: value}}, ...]")
    arguments["transforms"] = [build(item, sides, f"{where}.transforms[{row}]") for row, item in enumerate(nested)]
    chance = arguments.get("p", 0.5)
    if isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance <= 1:
        raise BadInput(where, f"p should be a number from 0 to 1, got {chance!r}")


def _fill_sides(
    arguments: dict[str, Any], parameters: Mapping[str, inspect.Parameter], name: str, sides: Sides
) -> None:
    required = {key for key, value in parameters.items() if value.default is inspect.Parameter.empty}
    if name.endswith("3D"):
        return
    if "size" in required:
        arguments.setdefault("size", (sides.size, sides.size))
    if {"height", "width"} <= required and not {"height", "width"} & arguments.keys():
        side = sides.crop if name in _CUTS else sides.size
        arguments.update(height=side, width=side)


def _construct(kind: Any, arguments: dict[str, Any], where: str) -> Any:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            made = kind(**arguments)
        except Exception as error:  # pydantic's errors come wrapped; some transforms raise their own kinds
            raise BadInput(where, _in_a_line(error)) from error
    for warning in seen:
        if issubclass(warning.category, UserWarning) and _HARMLESS not in str(warning.message):
            raise BadInput(where, str(warning.message), "albumentations would only warn and do something else")
    return made


def _in_a_line(error: Exception) -> str:
    problems = getattr(error.__cause__, "errors", None)
    if problems is None:
        return str(error)
    # A union reports each alternative that failed; the first of each argument is enough.
    first = {str(problem["loc"][0]) if problem["loc"] else "arguments": problem for problem in reversed(problems())}
    lines = []
    for argument, problem in reversed(first.items()):
        got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
        lines.append(f"{argument}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _nearest(name: str, names: Mapping[str, Any], cutoff: float = 0.5) -> list[str]:
    """``names`` from the most alike to the least."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted((other for other in names if likeness(other) >= cutoff), key=likeness, reverse=True)
