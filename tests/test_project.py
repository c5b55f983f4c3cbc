"""A project's own files hold together: experiments load, rounds fit, folds are whole, kernels stay offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goldfold.config import is_pipeline, load_config
from goldfold.config.schema import SubmitRound
from goldfold.folds.store import read_folds
from goldfold.metrics import get_metric, require_task
from goldfold.paths import Workspace
from goldfold.pipeline.graph import plan_rounds

ROOT = Path(__file__).parents[1]
OURS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "recipes")
PIPELINES = [path for path in OURS if is_pipeline(path)]
EXPERIMENTS = [path for path in OURS if path not in PIPELINES]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_loads(path: Path) -> None:
    settings = load_config(path).competition
    assert settings.name == path.parent.name, "the folds and the data of a competition are named after its folder"
    require_task(get_metric(settings.metric, settings.metric_direction, ROOT), settings.task)


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_a_pipelines_rounds_fit_together(path: Path) -> None:
    plan = plan_rounds(path, workspace=Workspace(ROOT))
    assert list(plan.problems) == []
    assert any(isinstance(item.step, SubmitRound) for item in plan.rounds), "nothing is submitted"


def test_there_is_a_pipeline() -> None:
    assert PIPELINES


def test_the_committed_folds_are_whole() -> None:
    for path in sorted((ROOT / "folds").glob("*.csv")):
        assert read_folds(path).tables


def test_kernels_have_no_internet() -> None:
    for path in sorted((ROOT / "inference").glob("**/kernel-metadata.json")):
        assert json.loads(path.read_text(encoding="utf-8"))["enable_internet"] is False, path
