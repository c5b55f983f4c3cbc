"""Every configuration that ships with Goldfold trains: two batches a phase, at its own size, with its own network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.cli import main
from goldfold.config import load_config, read_yaml
from goldfold.paths import shipped_configs
from tests.pipeline.competitions import make_competition
from tests.test_configs import EXPERIMENTS, RECIPES, name

ROWS = 12  # three folds: eight rows to train on


def two_batches(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings with batches of four rows, an epoch a phase, and random weights: nothing is downloaded."""
    train, model = values["train"], values["model"]
    phases = [{**phase, "epochs": 1, "batch_size": 4} for phase in train["phases"]]
    epochs = max(len(phases), 1)
    short = {"phases": phases, "epochs": epochs, "batch_size": 4, "validate_every": epochs, "device": "cpu"}
    return {**values, "train": {**train, **short}, "model": {**model, "pretrained": False}}


SHIPPED = [*EXPERIMENTS, *(pytest.param(path, marks=pytest.mark.slow) for path in RECIPES)]


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_a_configuration_trains_two_batches(path: Path, project: Path) -> None:
    tiny = make_competition(project, "binary" if "elpv" in path.parts else "multiclass", rows=ROWS, test_rows=2)
    small = read_yaml(tiny)
    small["folds"]["n"] = 3
    if path in RECIPES:
        parent = project / "both.yaml"
        alone = {key: small[key] for key in ("competition", "folds")}
        (project / "competition.yaml").write_text(yaml.safe_dump(alone))
        parent.write_text(yaml.safe_dump({"extends": ["competition.yaml", str(path)], "name": "tiny"}))
        values = load_config(parent).model_dump(mode="json")
    else:
        values = load_config(path).model_dump(mode="json")
        values = {**values, "competition": small["competition"], "folds": small["folds"], "name": "tiny"}
    tiny.write_text(yaml.safe_dump(two_batches(values)))
    assert main(["train", str(tiny), "--fold", "0"]) == 0
    lines = [json.loads(line) for line in (project / "runs/tiny/fold0/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)
    windows = math.ceil(2 / values["train"]["accumulate"])
    assert lines[-1]["step"] == windows * len(lines)
    kept = json.loads((project / "runs/tiny/fold0/bundle.json").read_text())
    assert kept["model"]["backbone"] == values["model"]["backbone"]
    assert kept["model"]["size"] == values["input"]["size"]


def test_every_shipped_file_is_trained_or_trains_others() -> None:
    pipelines = {path for path in shipped_configs().rglob("*.yaml") if "rounds" in read_yaml(path)}
    left = set(shipped_configs().rglob("*.yaml")) - pipelines - set(EXPERIMENTS) - set(RECIPES)
    assert {name(path) for path in left} == {"base.yaml", "sweep.yaml"}
