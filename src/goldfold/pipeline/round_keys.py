"""A round's keys as overrides of its experiment: what the round says, and nothing that it leaves unsaid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from goldfold.config import merged_values
from goldfold.config.schema import Distill, DistillRound, Pseudo, PseudoLabelRound, TrainRound
from goldfold.errors import BadInput

OFF = {"labels": "none", "weight": 0.0}
"""The key that turns pseudo-labels or distillation on, and what it is where they are off."""


def round_overrides(step: TrainRound, experiment: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The overrides of a round's experiment (its file); null, lists and sections are JSON, which is YAML.

    Keys of teacher.pseudo or teacher.distill that the round leaves out stay as the experiment and ``set`` have them. Where
    those leave pseudo-labels or distillation off, the round's own ``labels`` or ``weight`` turn it on. ``overrides``: those
    of the command line, which are read and not returned. Raises BadInput for a key that both the round and ``set`` give.
    """
    given = _as_overrides(step.set | ({"name": step.name} if step.name else {}))
    if not isinstance(step, PseudoLabelRound | DistillRound):
        return given
    pseudo = isinstance(step, PseudoLabelRound)
    where, section, switch = ("teacher.pseudo", Pseudo, "labels") if pseudo else ("teacher.distill", Distill, "weight")
    said = step.model_dump(mode="json", include=set(section.model_fields) & step.model_fields_set)
    own = {f"{where}.{key}": (key, value) for key, value in said.items()}
    own["teacher.runs"] = ("teachers", list(dict.fromkeys(step.teachers)))  # the graph speaks of doubled ones
    if "leaky" in step.model_fields_set:
        own["teacher.leaky"] = ("leaky", step.leaky)
    _refuse_doubled(step.set, {key: name for key, (name, _) in own.items()})
    values = {key: value for key, (_, value) in own.items()}
    if switch not in said:
        found: Any = merged_values(experiment, [*given, *overrides])
        for part in (*where.split("."), switch):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found in (None, OFF[switch]):
            values[f"{where}.{switch}"] = getattr(step, switch)
    return [*given, *_as_overrides(values)]


def _as_overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _refuse_doubled(given: Mapping[str, Any], own: Mapping[str, str]) -> None:
    for key in _leaves(given):
        for other, name in own.items():
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise BadInput("set", f"'{key}' is given by the round's own '{name}' too", "leave one of the two out")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all that nested sections hold."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
