"""What an ablation compares: from a list of tricks to rows, each a whole configuration. Pure; nothing is trained here."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from goldfold import files
from goldfold.config import Config, changed_keys, config_from_dict, spelt_out
from goldfold.config.consistency import idle_keys
from goldfold.errors import BadInput
from goldfold.pipeline.run_folder import relevant
from goldfold.tricks import find_trick

Kind = Literal["stack", "drop", "add"]
ADDED = "augment.add"
"""A list that several tricks may each add transforms to; every other key has one writer."""
FIXED = {
    "name": "the runs are named by row and seed",
    "folds": "scores of other folds cannot be compared",
    "train.seed": "--seeds gives the seeds",
    "train.seeds": "--seeds gives the seeds",
    "teacher": "an ablation trains without teachers",
    "competition": "scores of other labels cannot be compared",
}
FREE = ("competition.external",)
"""Keys inside the fixed sections that an item may change all the same."""


@dataclass(frozen=True)
class Item:
    """One switch: dotted keys and their values when it is on and when it is off; a key without an off value stays as
    the configuration has it. ``adds``: transforms that it appends to ``augment.add`` when on and removes when off."""

    name: str
    on: dict[str, Any]
    off: dict[str, Any] = field(default_factory=dict)
    adds: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of the table. ``against``: the number of the row it is compared with; ``same_as``: the name of an earlier
    row with equal settings, whose runs count for this one too; ``changes``: dotted keys that differ from CONFIG."""

    name: str
    title: str
    config: Config
    changes: dict[str, Any]
    against: int | None = None
    same_as: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the settings that shape its runs, the seed aside."""
        values = relevant(self.config.model_dump(mode="json"))
        return files.fingerprint({**values, "train": {**values["train"], "seed": None}})


def parse_items(text: str, config: Config) -> tuple[Item, ...]:
    """Items of a comma-separated list: names of tricks, ``key=value`` or ``NAME:key=value;key=value``.

    A trick that ``config`` has on already keeps the values of ``config``. Raises BadInput on unknown names, tricks that
    have no switch, unreadable overrides, names that stand twice, and keys that an ablation cannot vary.
    """
    own = config.model_dump(mode="json")
    parts = [part.strip() for part in _split(text, ",")]
    if not all(parts):
        raise BadInput(f"'{text}'", "the list of tricks has an empty item", "write names with single commas between")
    items = tuple(_override(part, own) if "=" in part else _named(part, own) for part in parts)
    seen: set[str] = set()
    for item in items:
        if item.name in ("base", "all"):
            raise BadInput(f"'{item.name}'", "is the name of the first row", "call the item otherwise")
        if item.name in seen:
            raise BadInput(f"'{item.name}'", "stands twice in the list", "name each item once, as NAME:key=value")
        seen.add(item.name)
        for key in {**item.on, **item.off}:
            _refuse_fixed(item.name, key)
    return items


def plan_rows(kind: Kind, items: Sequence[Item], config: Config) -> list[Row]:
    """The rows in order, the first one the reference.

    stack: all off, then each row adds one to the row above; add: all off, then each alone; drop: all on, then each left
    out. Raises BadInput when two items write one key differently, and where a row's settings are invalid.
    """
    if config.teacher.runs:
        raise BadInput(
            "teacher.runs",
            "an ablation trains without teachers",
            "leave the section teacher out",
        )
    _check_apart(kind, items, config.model_dump(mode="json"))
    count, rows = len(items), list[Row]()
    for number in range(count + 1):
        if kind == "stack":
            on, against = set(range(number)), number - 1
        elif kind == "add":
            on, against = {number - 1} & set(range(count)), 0
        else:
            on, against = set(range(count)) - {number - 1}, 0
        title = items[number - 1].name if number else ("all" if kind == "drop" else "base")
        name = _slug(title)
        if number:
            title = f"without {title}" if kind == "drop" else f"+ {title}"
            name = f"without-{name}" if kind == "drop" else name
        if any(row.name == name for row in rows):
            raise BadInput(f"'{title}'", "another item has the same folder name", "name it, as NAME:key=value")
        rows.append(_row(name, title, items, on, config, against if number else None, rows))
    return rows


def _row(
    name: str, title: str, items: Sequence[Item], on: set[int], config: Config, against: int | None, above: list[Row]
) -> Row:
    own = config.model_dump(mode="json")
    values = copy.deepcopy(own)
    # What is on is written last, so that a key shared by two items is on while one of them is.
    for number, item in enumerate(items):
        if number not in on:
            for key, value in item.off.items():
                _put(values, key, value)
            _remove_transforms(values, item)
    for number, item in enumerate(items):
        if number in on:
            for key, value in item.on.items():
                _put(values, key, value)
            _add_transforms(values, item)
    # What an item that is off leaves without effect would be refused; what an item sets on purpose still is.
    for key, default in _left_idle(values):
        if not any(key in items[number].on for number in on):
            _put(values, key, default)
    # Only validation rows are scored: predicting the test set would cost time and tell nothing.
    values["competition"] |= {"test_csv": None, "sample_submission": None}
    values["train"]["seeds"] = []
    changes = {key: _get(values, key) for key in changed_keys(own, values) if not key.startswith("competition.")}
    changes.pop("train.seeds", None)
    checked = config_from_dict(values, f"row '{title}'")
    row = Row(name, title, checked, changes, against)
    same = next((other.name for other in above if other.fingerprint == row.fingerprint), None)
    return Row(name, title, checked, changes, against, same)


def _left_idle(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys without effect, with their defaults; none where a section is wrong by itself, which is told later."""
    try:
        parts: dict[str, Any] = {
            name: type(field.default).model_validate(values[name])
            for name, field in Config.model_fields.items()
            if isinstance(field.default, BaseModel)
        }
    except ValidationError:
        return []
    return [(f"{name}.{key}", default) for name, key, default, _ in idle_keys(Config.model_construct(**parts))]


def _named(name: str, own: dict[str, Any]) -> Item:
    """A registered trick, with the values of the configuration where that has it on."""
    trick = find_trick(name)
    if not trick.on:
        why = f"has no one switch ({trick.note})" if trick.note else "has no one switch"
        raise BadInput(f"'{name}'", why, f"write its settings, as {name}:key=value;key=value")
    on = _leaves(_plain(trick.on), own)
    off = _leaves(_plain(trick.off), own)
    adds: tuple[dict[str, Any], ...] = ()
    if on.get(ADDED) and not off.get(ADDED):
        mine = {_transform(item): item for item in own["augment"]["add"]}
        adds = tuple(mine.get(_transform(item), item) for item in on.pop(ADDED))
        off.pop(ADDED, None)
    if _is_on(on, off, own):
        on = {key: _get(own, key) for key in on}
    return Item(name, on, off, adds)


def _is_on(on: dict[str, Any], off: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the configuration has a trick on, perhaps with other numbers than the trick's own.

    Its first key must be off no more. Words name alternatives: another word there is another trick. Without words, all
    its numbers must be off no more, as one of several may belong to another trick.
    """
    switches = [key for key, value in on.items() if key in off and value != off[key]]
    if not switches or _get(own, switches[0]) == off[switches[0]]:
        return False
    words = [
        key
        for key, value in on.items()
        if (isinstance(value, str) or isinstance(_get(own, key), str)) and value != off.get(key)
    ]
    if words:
        return all(_get(own, key) == on[key] for key in words)
    return all(_get(own, key) != off[key] for key in switches)


def _override(text: str, own: dict[str, Any]) -> Item:
    """``key=value`` or ``NAME:key=value;key=value``; off is what the configuration has."""
    found = re.match(r"^([^:=]+):(.*)$", text, re.DOTALL)
    name, rest = (found.group(1).strip(), found.group(2)) if found else (text, text)
    on: dict[str, Any] = {}
    for part in _split(rest, ";"):
        key, sign, value = part.strip().partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key.strip()):
            raise BadInput(f"'{text}'", "cannot be read", "write a trick's name, key=value or NAME:key=value;key=value")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise BadInput(f"'{text}'", f"cannot be read ({' '.join(str(error).split())})") from None
        assert isinstance(parsed, dict)
        on |= _leaves(spelt_out({key.strip(): parsed["value"]}), own)
    return Item(name, on)


def _check_apart(kind: Kind, items: Sequence[Item], own: dict[str, Any]) -> None:
    """Refuse two items whose rows would undo each other."""
    for place, second in enumerate(items):
        for first in items[:place]:
            for key in [key for key in _writes(first) if any(_overlap(key, other) for other in _writes(second))]:
                equal = _value(first, key, "off", own) == _value(second, key, "off", own)
                if kind != "add":
                    equal = equal and _value(first, key, "on", own) == _value(second, key, "on", own)
                if not equal or key not in _writes(second):
                    mend = "leave one out" if kind == "add" else "leave one out, or compare each alone with --add"
                    raise BadInput(
                        f"'{first.name}' and '{second.name}'", f"both set {key}, so one undoes the other", mend
                    )
            if (_adds_differ(first, second) and kind != "add") or _adds_to_replaced(first, second):
                raise BadInput(
                    f"'{first.name}' and '{second.name}'", f"both set {ADDED}, so one undoes the other", "leave one out"
                )


def _adds_differ(first: Item, second: Item) -> bool:
    """Whether both add one transform, with other arguments."""
    arguments = {_transform(added): added for added in first.adds}
    return any(arguments.get(_transform(added), added) != added for added in second.adds)


def _adds_to_replaced(first: Item, second: Item) -> bool:
    """Whether one adds to a list that the other replaces."""
    return any(
        adds.adds and any(_overlap(ADDED, key) for key in _writes(writes))
        for adds, writes in ((first, second), (second, first))
    )


def _writes(item: Item) -> list[str]:
    """Keys that the item sets. ``augment.add`` does not count where it only adds to that list."""
    return list({**item.on, **item.off})


def _value(item: Item, key: str, state: Literal["on", "off"], own: dict[str, Any]) -> Any:
    values = item.on if state == "on" else item.off
    return values.get(key, _get(own, key))


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _refuse_fixed(name: str, key: str) -> None:
    for fixed, why in FIXED.items():
        if _overlap(key, fixed) and not any(_overlap(key, free) and key != "competition" for free in FREE):
            raise BadInput(f"'{name}'", f"an ablation cannot vary {key}", why)


def _transform(item: dict[str, Any]) -> str:
    return next(iter(item), "")


def _remove_transforms(values: dict[str, Any], item: Item) -> None:
    names = {_transform(added) for added in item.adds}
    values["augment"]["add"] = [added for added in values["augment"]["add"] if _transform(added) not in names]


def _add_transforms(values: dict[str, Any], item: Item) -> None:
    present = {_transform(added): place for place, added in enumerate(values["augment"]["add"])}
    for added in item.adds:
        if _transform(added) in present:
            values["augment"]["add"][present[_transform(added)]] = added
        else:
            values["augment"]["add"].append(added)


def _leaves(changes: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys down to single settings, so that a whole section in one value still leaves its other keys alone."""
    out: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, dict) and value and isinstance(_get(own, key), dict):
            out |= _leaves({f"{key}.{name}": part for name, part in value.items()}, own)
        else:
            out[key] = value
    return out


_MISSING = object()


def _get(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; a marker that equals nothing else where there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _MISSING
        node = node[part]
    return node


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    if value is _MISSING:
        return
    *sections, last = key.split(".")
    node = values
    for part in sections:
        inner = node.get(part)
        if not isinstance(inner, dict):
            inner = node[part] = {}
        node = inner
    node[last] = copy.deepcopy(value)


def _plain(values: Any) -> dict[str, Any]:
    """With lists in place of tuples, as a configuration is dumped."""
    return json.loads(json.dumps(dict(values)))  # type: ignore[no-any-return]


def _split(text: str, sign: str) -> list[str]:
    """Split at ``sign`` where it stands outside brackets and quotes."""
    parts, depth, quote, current = list[str](), 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == sign and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += letter
    if depth or quote:
        raise BadInput(f"'{text}'", "brackets or quotes do not match")
    return [*parts, current]


def _slug(text: str) -> str:
    """A folder name; what is too long for one gets a digest at its end."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._") or "item"
    return plain if len(plain) <= 60 else f"{plain[:48].strip('-._')}-{files.fingerprint(text)[:8]}"
