"""Every configuration that ships with Goldfold loads and names things that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from goldfold.config import is_pipeline, load_config, load_pipeline
from goldfold.config.schema import EnsembleRound, SubmitRound, TrainRound
from goldfold.paths import shipped_configs

CONFIGS = shipped_configs()
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")
PIPELINES = [path for path in SHIPPED if is_pipeline(path)]
EXPERIMENTS = [path for path in SHIPPED if path not in PIPELINES]


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_the_demos_are_there() -> None:
    names = {name(path) for path in SHIPPED}
    assert {
        "elpv/competition.yaml",
        "elpv/lite0.yaml",
        "elpv/lite1.yaml",
        "elpv/pipeline.yaml",
        "digits/competition.yaml",
        "digits/resnet.yaml",
        "digits/efficientnet.yaml",
        "digits/pipeline.yaml",
    } <= names


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_loads(path: Path) -> None:
    config = load_config(path)
    assert config.name == f"{path.parent.name}-{path.stem}"
    assert config.competition.name == path.parent.name


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_is_a_page_of_deltas(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_a_pipeline_names_only_what_exists(path: Path) -> None:
    runs: set[str] = set()
    sources: set[str] = set()
    for item in load_pipeline(path).rounds:
        if isinstance(item, TrainRound):
            run = item.name or load_config(path.parent / item.experiment).name
            assert run is not None
            assert set(getattr(item, "teachers", ())) <= runs
            runs.add(run)
        elif isinstance(item, EnsembleRound):
            assert set(item.members) <= runs
            sources.add(item.name)
        elif isinstance(item, SubmitRound):
            assert item.source in runs | sources


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_the_backbone_is_known_to_timm(path: Path) -> None:
    timm = pytest.importorskip("timm")
    assert timm.is_model(load_config(path).model.backbone)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_augmentations_and_views_can_be_made(path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    ttach = pytest.importorskip("ttach")
    config = load_config(path)
    for item in config.augment.train or ():
        for transform, arguments in item.items():
            getattr(albumentations, transform)(**(arguments or {}))
    if not isinstance(config.tta.views, str):
        for item in config.tta.views:
            for transform, arguments in item.items():
                getattr(ttach, transform)(**(arguments or {}))
