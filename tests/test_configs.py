"""Every configuration that ships with Goldfold loads and names things that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold import tricks
from goldfold.config import Config, is_pipeline, load_config, load_pipeline, read_yaml
from goldfold.config.schema import EnsembleRound, PseudoLabelRound, Round, SubmitRound, TrainRound
from goldfold.paths import shipped_configs

CONFIGS = shipped_configs()
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
SHIPPED = sorted(
    path for path in CONFIGS.rglob("*.yaml") if path.name not in ("base.yaml", "sweep.yaml") and path not in RECIPES
)
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
        "elpv/student.yaml",
        "elpv/distillation.yaml",
        "elpv-few/competition.yaml",
        "elpv-few/lite0.yaml",
        "elpv-few/noisy.yaml",
        "elpv-few/pipeline.yaml",
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
            assert set(getattr(item, "teachers", ())) <= runs | sources
            runs.add(run)
        elif isinstance(item, EnsembleRound):
            assert set(item.members) <= runs
            sources.add(item.name)
        elif isinstance(item, SubmitRound):
            assert item.source in runs | sources


# --- recipes -----------------------------------------------------------------------------------------------------------


def composed(recipe: Path, folder: Path, **competition: object) -> Config:
    """An experiment that is a competition and the recipe, nothing else."""
    described = {
        "name": "shells",
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": "train.csv",
        "image_path": "{id}.png",
    }
    parent = {"extends": str(CONFIGS / "base.yaml"), "competition": described | competition}
    (folder / "competition.yaml").write_text(yaml.safe_dump(parent))
    child = folder / f"{recipe.stem}.yaml"
    child.write_text(yaml.safe_dump({"extends": ["competition.yaml", str(recipe)]}))
    return load_config(child)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def test_the_recipes_are_there() -> None:
    names = {"bag-of-tricks", "fastai", "adam-then-sgd", "vit-finetune", "small-data", "kaggle-classic"}
    names.add("noisy-student")
    assert names == {path.stem for path in RECIPES} == set(tricks.RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "ordinal"])
def test_a_recipe_changes_a_competition_as_it_says_and_nothing_else(recipe: Path, task: str, tmp_path: Path) -> None:
    target = {"target": ["a", "b"]} if task == "multilabel" else {}
    config = composed(recipe, tmp_path, task=task, **target)
    assert config.name == f"shells-{recipe.stem}"
    assert (config.competition.name, config.competition.task) == ("shells", task)
    given = leaves(read_yaml(recipe))
    assert not [key for key in given if key.split(".")[0] in ("competition", "folds", "name", "extends")]
    plain = leaves(load_config(tmp_path / "competition.yaml").model_dump(mode="json"))
    found = leaves(config.model_dump(mode="json"))
    changed = {key for key in found if found[key] != plain.get(key) and key != "name"}
    assert changed <= set(given)
    assert changed, "a recipe that changes nothing"


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_every_line_of_a_recipe_says_what_it_is_for(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("#")
    assert f"extends: [competition.yaml, ../recipes/{recipe.name}]" in text
    assert [line for line in text.splitlines() if len(line) > 120] == []
    assert text.count("#") >= 8
    assert len(text.splitlines()) <= 100


def test_the_recipes_hold_what_their_authors_say(tmp_path: Path) -> None:
    made = {path.stem: composed(path, tmp_path) for path in RECIPES}
    bag = made["bag-of-tricks"]
    assert bag.model.backbone == "resnet50d"
    assert bag.model.zero_init_last
    assert not bag.model.pretrained
    assert (bag.optim.lr_scaling, bag.optim.decay_all, bag.train.precision) == ("linear", False, "auto")
    assert (bag.schedule.name, bag.schedule.warmup_epochs, bag.loss.smoothing, bag.mix.mixup) == ("cosine", 5, 0.1, 0.2)
    assert bag.train.batch_size * bag.train.accumulate > 256
    fastai = made["fastai"]
    sizes = [phase.size or fastai.input.size for phase in fastai.train.phases]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert fastai.train.phases[0].frozen == "all"
    assert fastai.train.phases[-1].frozen == 0
    assert (fastai.schedule.name, fastai.mix.mixup) == ("one_cycle", 0.1)
    assert fastai.schedule.momentum_cycle is not None
    assert fastai.optim.layer_decay < 1
    two = made["adam-then-sgd"]
    assert two.optim.name == "adam"
    assert isinstance(two.train.phases[-1].optimizer, dict)
    assert two.train.phases[-1].optimizer["name"] == "sgd"
    vit = made["vit-finetune"]
    assert vit.optim.layer_decay == 0.75
    assert min(vit.model.drop_path_rate, vit.mix.mixup, vit.mix.cutmix, vit.train.ema.decay) > 0
    small = made["small-data"]
    assert small.model.freeze.batch_norm
    assert (small.augment.preset, small.model.head.dropouts) == ("heavy", 5)
    assert small.model.drop_rate > 0
    noisy = made["noisy-student"]
    assert (noisy.model.drop_rate, noisy.model.drop_path_rate) == (0.5, 0.2)
    assert any("RandAugment" in item for item in noisy.augment.add)
    classic = made["kaggle-classic"]
    assert any("CoarseDropout" in item for item in classic.augment.train or ())
    assert (classic.schedule.name, classic.schedule.warmup_epochs, classic.model.head.dropouts) == ("cosine", 1, 5)


def pipeline_of(recipe: str, folder: Path) -> tuple[Round, ...]:
    """The rounds that a recipe's comment shows."""
    lines = (CONFIGS / f"recipes/{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("# rounds:")
    end = next(row for row in range(start, len(lines)) if not lines[row].startswith("#"))
    path = folder / "pipeline.yaml"
    path.write_text("\n".join(line.removeprefix("# ") for line in lines[start:end]))
    return load_pipeline(path).rounds


def test_the_noisy_students_rounds_teach_each_other(tmp_path: Path) -> None:
    first, *students, _ = pipeline_of("noisy-student", tmp_path)
    for teacher, student in zip([first, *students], students, strict=False):
        assert isinstance(student, PseudoLabelRound)
        assert student.teachers == (teacher.name,)  # type: ignore[union-attr]


def test_the_classic_recipes_rank_mean_is_a_pipeline(tmp_path: Path) -> None:
    rounds = pipeline_of("kaggle-classic", tmp_path)
    assert isinstance(rounds[2], EnsembleRound)
    assert rounds[2].method == "rank_mean"
    assert set(rounds[2].members) == {item.name for item in rounds[:2]}


# --- what they name ----------------------------------------------------------------------------------------------------


def any_config(path: Path, folder: Path) -> Config:
    return composed(path, folder) if path in RECIPES else load_config(path)


@pytest.mark.parametrize("path", [*EXPERIMENTS, *RECIPES], ids=name)
def test_the_backbone_is_known_to_timm(path: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    assert timm.is_model(any_config(path, tmp_path).model.backbone)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("path", [*EXPERIMENTS, *RECIPES], ids=name)
def test_augmentations_and_views_can_be_made(path: Path, channels: int, tmp_path: Path) -> None:
    from goldfold.augment import try_augmenter

    ttach = pytest.importorskip("ttach")
    config = any_config(path, tmp_path)
    try_augmenter(config.augment, 32, 40, channels)
    if not isinstance(config.tta.views, str):
        for item in config.tta.views:
            for transform, arguments in item.items():
                getattr(ttach, transform)(**(arguments or {}))
