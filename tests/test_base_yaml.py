"""configs/base.yaml says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.config import Config, load_config, read_yaml
from goldfold.config.schema import Competition, Section
from goldfold.paths import shipped_configs

BASE = shipped_configs() / "base.yaml"
LINES = BASE.read_text(encoding="utf-8").splitlines()
KEY = re.compile(r"^(#? *)([a-z_0-9]+):( |$)")
SECTIONS = [name for name in Config.model_fields if name not in ("name", "competition")]


def defaults(name: str) -> dict[str, Any]:
    section = Config.model_fields[name].default
    assert isinstance(section, Section)
    return section.model_dump(mode="json")


def key_lines() -> list[str]:
    return [line for line in LINES if KEY.match(line)]


def test_it_holds_every_section_and_no_other() -> None:
    assert list(read_yaml(BASE)) == ["name", *SECTIONS]
    assert read_yaml(BASE)["name"] is None


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_equals_the_schemas_defaults(name: str) -> None:
    given = read_yaml(BASE)[name]
    assert given == defaults(name)
    assert list(given) == list(defaults(name)), "in the schema's order"


def test_the_competitions_keys_stand_as_comments() -> None:
    block = [line for line in LINES if line.startswith("#")]
    start = next(row for row, line in enumerate(block) if line.startswith("# competition:"))
    shown = yaml.safe_load("\n".join(line.removeprefix("# ") for line in block[start:]))["competition"]
    assert list(shown) == list(Competition.model_fields)
    for name, field in Competition.model_fields.items():
        if field.is_required():
            assert shown[name] == "...", name
        else:
            expected = list(field.default) if isinstance(field.default, tuple) else field.default
            assert shown[name] == expected, name


def test_every_key_has_a_comment() -> None:
    assert len(key_lines()) > 80
    bare = [line for line in key_lines() if not re.search(r"\S +# \S.{5,}$", line.removeprefix("#"))]
    assert bare == []


def test_the_lines_fit_a_screen() -> None:
    assert [line for line in LINES if len(line) > 120] == []


def test_a_child_that_adds_nothing_is_the_schema_itself(tmp_path: Path) -> None:
    competition = {
        "name": "shells",
        "task": "binary",
        "metric": "auc",
        "train_csv": "train.csv",
        "image_path": "{id}.png",
    }
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"extends": str(BASE), "name": "shells", "competition": competition}))
    assert load_config(child) == Config.model_validate({"name": "shells", "competition": competition})
