"""From YAML files and command-line overrides to a checked, frozen configuration."""

from __future__ import annotations

import copy
import difflib
import functools
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from goldfold.config.schema import (
    Config,
    DistillRound,
    EnsembleRound,
    Pipeline,
    PseudoLabelRound,
    Section,
    SubmitRound,
    TrainRound,
)
from goldfold.errors import BadInput, some

S = TypeVar("S", bound=Section)
Layer = tuple[str, dict[str, Any]]
"""Where keys came from (a file's name or the command line), and the keys."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """An experiment's configuration: the file, its ``extends`` parents beneath it, the overrides on top.

    A missing name becomes the file's name, with the folder before it: ``configs/shells/b0.yaml`` is ``shells-b0``.
    Raises BadInput naming the file, the key and the nearest valid key.
    """
    config = _load(path, overrides, Config)
    if config.name is None:
        config = config.model_copy(update={"name": _slug(f"{config.competition.name}-{path.stem}")})
    return config


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """A pipeline's rounds. Raises BadInput."""
    pipeline = _load(path, overrides, Pipeline)
    return (
        pipeline
        if pipeline.name
        else pipeline.model_copy(update={"name": _slug(f"{path.resolve().parent.name}-{path.stem}")})
    )


def merged_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What an experiment's file, its parents and the overrides say, not validated and without defaults. Raises BadInput."""
    return _merged(path, _with_overrides(path, overrides))


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file describes a pipeline and not an experiment."""
    return "rounds" in _read(path)


def config_from_dict(values: dict[str, Any], where: object) -> Config:
    """A configuration from a plain dictionary, as ``runs/<run>/config.yaml`` holds it. Raises BadInput."""
    values = spelt_out(values)
    return _validate(values, [(str(where), values)], Config)


def dump_yaml(config: Section) -> str:
    """A configuration as YAML that loads back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping by the same careful rules as a configuration file. Raises BadInput."""
    return _read(path)


def spelt_out(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a layer with ``tta: NAME`` as ``tta: {views: NAME}``, so that layers above and below merge with it."""
    return values | {"tta": {"views": values["tta"]}} if isinstance(values.get("tta"), str) else values


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys in which two configurations differ."""
    changed: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}")
    return changed


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas for editors, by file name. In a file no key is required, since a parent may give it."""
    experiment = Config.model_json_schema()
    experiment["properties"]["extends"] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Parent files, merged deeply beneath this one",
    }
    views = [
        form for form in experiment["$defs"]["Tta"]["properties"]["views"]["anyOf"] if form.get("type") == "string"
    ]
    section = {"$ref": experiment["properties"]["tta"].pop("$ref")}
    experiment["properties"]["tta"] |= {"anyOf": [*views, section], "description": "A section, or its views alone"}
    for part in (experiment, *experiment.get("$defs", {}).values()):
        part.pop("required", None)
    return {"experiment.schema.json": experiment, "pipeline.schema.json": Pipeline.model_json_schema()}


def _load(path: Path, overrides: Sequence[str], model: type[S]) -> S:
    layers = _with_overrides(path, overrides)
    return _validate(_merged(path, layers), layers, model)


def _with_overrides(path: Path, overrides: Sequence[str]) -> list[Layer]:
    layers = _layers(path, ())
    return [*layers, ("command line", _parse_overrides(overrides))] if overrides else layers


def _merged(path: Path, layers: list[Layer]) -> dict[str, Any]:
    text = json.dumps([values for _, values in layers])
    # Resolvers such as ${oc.env:NAME} may give something else the next time.
    return _merge(path, text) if "${" in text else copy.deepcopy(_merged_before(path, text))


def _merge(path: Path, layers: str) -> dict[str, Any]:
    """Of layers as JSON, so that they stay as they were read. Lists are replaced whole."""
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(values) for values in json.loads(layers)))
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise BadInput(path, f"cannot be merged ({str(error).splitlines()[0]})") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


_merged_before = functools.lru_cache(maxsize=256)(_merge)


def _layers(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    """The file and its parents, the furthest parent first."""
    real = path.resolve()
    if real in seen:
        raise BadInput(path, "extends itself", f"the chain is {' -> '.join(p.name for p in (*seen, real))}")
    values = spelt_out(_read(path))
    parents = values.pop("extends", None) or []
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise BadInput(path, "'extends' must be a file name or a list of file names")
    layers: list[Layer] = []
    for parent in parents:
        if not (path.parent / parent).is_file():
            raise BadInput(path, f"extends '{parent}', which does not exist", f"it is looked for in {path.parent}")
        layers += _layers(path.parent / parent, (*seen, real))
    return [*layers, (str(path), values)]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(path, "the configuration file does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None
    return copy.deepcopy(_parsed(path, text))


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, text: str) -> dict[str, Any]:
    """The keys of a file. A pipeline asks for the same parents again and again, and parsing is the dear part."""
    try:
        _check_yaml(path, yaml.compose(text, Loader=yaml.SafeLoader))
        loaded = OmegaConf.load(io.StringIO(text))  # reads 1e-4 as a number, where plain PyYAML reads text
        values = OmegaConf.to_container(loaded, resolve=False)
    except yaml.YAMLError as error:
        raise BadInput(path, f"not valid YAML ({' '.join(str(error).split())})") from None
    except (OmegaConfBaseException, OSError) as error:
        raise BadInput(path, f"not a valid configuration ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise BadInput(path, "must be a mapping of sections to keys")
    return {str(key): value for key, value in _named_on(values).items()}


def _named_on(values: Any) -> Any:
    """YAML 1.1 reads the key ``on`` (augment.on) as True; the other words for it are refused by ``_check_yaml``."""
    if isinstance(values, dict):
        return {"on" if key is True else key: _named_on(value) for key, value in values.items()}
    return [_named_on(value) for value in values] if isinstance(values, list) else values


def _check_yaml(path: Path, node: yaml.Node | None) -> None:
    """Refuses what YAML reads otherwise than people do: doubled keys, ``no:`` as False, ``010`` as eight."""
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str" and key.value != "on":
                raise BadInput(
                    f"{path}:{line}",
                    f"YAML does not read the key '{key.value}' as text",
                    f"write '{key.value}' in quotes",
                )
            if key.value in keys:
                raise BadInput(f"{path}:{line}", f"the key '{key.value}' stands twice in one section")
            keys.add(key.value)
            _check_yaml(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_yaml(path, item)
    elif isinstance(node, yaml.ScalarNode):
        octal = node.tag == "tag:yaml.org,2002:int" and re.fullmatch(r"[-+]?0[0-9_]+", node.value)
        if octal:
            raise BadInput(
                f"{path}:{node.start_mark.line + 1}",
                f"YAML reads {node.value} as an octal number",
                "write it in quotes or without the 0",
            )


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        if not re.match(r"^[A-Za-z_][\w.\-]*=", text):
            raise BadInput("command line", f"'{text}' is not an override", "write key.sub=value")
    try:
        # One by one first: tta=NAME is tta.views=NAME, and goes with other keys of that section.
        singly = [OmegaConf.to_container(OmegaConf.from_dotlist([text])) for text in overrides]
        views = [isinstance(value, dict) and isinstance(value.get("tta"), str) for value in singly]
        texts = [f"tta.views={t.partition('=')[2]}" if v else t for t, v in zip(overrides, views, strict=True)]
        values = OmegaConf.to_container(OmegaConf.from_dotlist(texts))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise BadInput("command line", f"cannot read an override ({' '.join(str(error).split())})") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in _named_on(values).items()}


def _validate(values: dict[str, Any], layers: list[Layer], model: type[S]) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = _one_a_place(error, values)
    (location, first), others = problems[0], len(problems) - 1
    where, key = _origin(location, layers), ".".join(str(part) for part in location)
    more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        if key in RENAMED:
            raise BadInput(where, f"the key '{key}' is now '{RENAMED[key][0]}'{more}", RENAMED[key][1])
        nearest = _nearest(location, first, model)
        raise BadInput(where, f"unknown key '{key}'{more}", f"did you mean '{nearest}'?" if nearest else "")
    if kind in ("missing", "union_tag_not_found"):
        key = key if kind == "missing" else f"{key}.kind"
        raise BadInput(where, f"the key '{key}' is missing{more}")
    if kind == "union_tag_invalid":
        raise BadInput(
            where, f"'{key}.kind': should be one of {context['expected_tags']}, got '{context['tag']}'{more}"
        )
    message = _PLAIN.get(kind) or first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], (dict, list, tuple)) else f", got {first['input']!r}"
    mend = "write it in quotes" if kind == "string_type" and isinstance(first["input"], (int, float)) else ""
    raise BadInput(where, f"'{key}': {message}{got}{more}" if key else f"{message}{more}", mend)


RENAMED = {
    "train.channels_last": ("train.memory_format", "write channels_last or contiguous there, or auto"),
}
"""Keys of older versions: what they are called now, and what to write."""

_PLAIN = {
    "model_type": "should be a section of keys",
    "model_attributes_type": "should be a section of keys",
    "dict_type": "should be a section of keys",
    "tuple_type": "should be a list",
    "too_short": "the list is too short",
}
"""pydantic's words for Python's types, in YAML's."""


def _one_a_place(error: ValidationError, values: dict[str, Any]) -> list[tuple[list[int | str], dict[str, Any]]]:
    """pydantic's problems with their keys in the file, without the echoes of one mistake.

    Every alternative of a union reports its own failure: the one that came furthest is meant. A list whose items are
    wrong is reported as too short, too.
    """
    found: dict[str, tuple[list[int | str], dict[str, Any]]] = {}
    for problem in (dict(item) for item in error.errors(include_url=False)):
        location, union = _location(problem, values)
        place = ".".join(str(part) for part in union)
        if place not in found or len(location) > len(found[place][0]):
            found[place] = (location, problem)
    echoes = {
        place
        for place, (location, problem) in found.items()
        if problem["type"] == "too_short"
        and any(len(other) > len(location) and other[: len(location)] == location for other, _ in found.values())
    }
    # A misspelt key is also a missing one; its own name says more.
    return sorted(
        (item for place, item in found.items() if place not in echoes),
        key=lambda item: item[1]["type"] != "extra_forbidden",
    )


def _location(problem: dict[str, Any], values: dict[str, Any]) -> tuple[list[int | str], list[int | str]]:
    """Where a problem is in the file, and where the union is that it is an alternative of (else the same place).

    pydantic puts the alternative's name into the location; such a part is no key of the file.
    """
    node: Any = values
    location: list[int | str] = []
    union: list[int | str] | None = None
    parts = problem["loc"]
    for index, part in enumerate(parts):
        if index == 2 and parts[0] == "rounds":
            continue  # the round's kind
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
            location.append(part)
            node = node[part]
        elif problem["type"] == "missing" and index == len(parts) - 1:
            location.append(part)
        else:
            union = union or list(location)
    return location, union or location


def _origin(location: Sequence[int | str], layers: list[Layer]) -> str:
    """The topmost layer that holds the key, or the deepest part of it that any layer holds."""
    for depth in range(len(location), 0, -1):
        for name, values in reversed(layers):
            node: Any = values
            for part in location[:depth]:
                if isinstance(node, dict) and part in node:
                    node = node[str(part)]
                elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                    node = node[part]
                else:
                    break
            else:
                return name
    return layers[-1][0] if layers[-1][0] != "command line" else layers[-2][0]


def _nearest(location: Sequence[int | str], problem: dict[str, Any], model: type[Section]) -> str | None:
    """The valid key closest to an unknown one: in its own section first, then anywhere."""
    keys = [str(part) for part in location]
    if keys[0] == "rounds" and len(keys) == 3:
        kind = next(kind for kind in _ROUNDS if problem["loc"][2] in get_args(kind.model_fields["kind"].annotation))
        near = difflib.get_close_matches(keys[-1], list(kind.model_fields), 1, 0.6)
        return near[0] if near else None
    valid = _valid_keys(model)
    siblings = [key for key in valid if key.rsplit(".", 1)[:-1] == ([".".join(keys[:-1])] if len(keys) > 1 else [])]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in reversed(valid)} | {
        key.rsplit(".", 1)[-1]: key for key in siblings
    }
    near = difflib.get_close_matches(keys[-1], [key.rsplit(".", 1)[-1] for key in siblings], 1, 0.6)
    near = near or difflib.get_close_matches(keys[-1], list(by_leaf), 1, 0.75)
    return by_leaf[near[0]] if near else None


_ROUNDS: tuple[type[Section], ...] = (TrainRound, PseudoLabelRound, DistillRound, EnsembleRound, SubmitRound)


def _valid_keys(model: type[Section], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            keys += _valid_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or some(["run"])
