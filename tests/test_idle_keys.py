"""A key that another setting leaves without effect is refused by name, and taken where it has one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from goldfold.config import Config, config_from_dict
from goldfold.errors import BadInput

COMPETITION = {
    "name": "c",
    "task": "multiclass",
    "metric": "accuracy",
    "train_csv": "train.csv",
    "image_path": "{id}.png",
}
PHASES: dict[str, Any] = {"train.epochs": 2, "train.phases": [{"epochs": 1}, {"epochs": 1}]}

# The key with another value than its default, what the line asks for, and settings that give it an effect.
IDLE: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("schedule.power", 2.0, "schedule.name polynomial", {"schedule.name": "polynomial"}),
    ("loss.gamma", 1.0, "loss.name focal", {"loss.name": "focal"}),
    ("balance.beta", 0.9, "balance.loss_weights effective", {"balance.loss_weights": "effective"}),
    ("balance.rare_below", 0.9, "balance.rare_preset", {"balance.rare_preset": "heavy"}),
    ("augment.erase.count", 3, "augment.erase.prob above 0", {"augment.erase.prob": 0.5}),
    ("optim.lr_batch", 64, "optim.lr_scaling", {"optim.lr_scaling": "linear"}),
    ("optim.clip_mode", "agc", "optim.clip above 0", {"optim.clip": 0.1}),
    ("optim.clip_mode", "agc", "optim.clip above 0", PHASES),
    ("tta.merge", "gmean", "several tta.views", {"tta.views": "flip"}),
    ("tta.merge", "gmean", "several tta.views", {"tta.views": "auto"}),
    ("mix.prob", 0.5, "mix.mixup or mix.cutmix", {"mix.mixup": 0.2}),
    ("mix.prob", 0.5, "mix.mixup or mix.cutmix", {"mix.cutmix": 1.0}),
    ("mix.prob", 0.5, "mix.mixup or mix.cutmix", PHASES),
    ("mix.switch_prob", 0.3, "both mix.mixup and mix.cutmix", {"mix.mixup": 0.2, "mix.cutmix": 1.0}),
    ("mix.switch_prob", 0.3, "both mix.mixup and mix.cutmix", PHASES),
    ("train.ema.warmup", False, "train.ema.decay above 0", {"train.ema.decay": 0.9}),
    ("train.swa.lr_factor", 0.1, "train.swa.epochs above 0", {"train.swa.epochs": 2}),
    ("train.soup.method", "greedy", "train.soup.epochs above 0", {"train.soup.epochs": 2}),
    ("train.prune.after", 2, "train.prune.amount above 0", {"train.prune.amount": 0.5}),
    (
        "train.early_stopping.min_delta",
        0.01,
        "train.early_stopping.patience or train.keep best",
        {"train.early_stopping.patience": 2},
    ),
    (
        "train.early_stopping.min_delta",
        0.01,
        "train.early_stopping.patience or train.keep best",
        {"train.keep": "best"},
    ),
]
OFF = {"tta.views": "none"}
"""What is on by default, and would give a key an effect."""


def config(settings: dict[str, Any]) -> Config:
    values: dict[str, Any] = {"competition": COMPETITION}
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = values
        for part in sections:
            node = node.setdefault(part, {})
        node[last] = value
    return config_from_dict(json.loads(json.dumps(values)), "here")


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        config(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "needs", "used"), IDLE, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_key_without_effect_is_refused_and_one_with_effect_is_taken(
    key: str, value: Any, needs: str, used: dict[str, Any]
) -> None:
    section, _, last = key.rpartition(".")
    assert refusal({**OFF, key: value}) == (
        f"here: {section}.{last} does nothing without {needs}; leave it out, or set that"
    )
    config({**OFF, **used, key: value})


@pytest.mark.parametrize("key", sorted({key for key, *_ in IDLE}))
def test_its_default_may_stand_anywhere(key: str) -> None:
    node: Any = config({})
    for part in key.split("."):
        node = getattr(node, part)
    config({**OFF, key: node})


@pytest.mark.parametrize("alone", [{"mix.mixup": 0.2}, {"mix.cutmix": 1.0}])
def test_one_kind_of_mixing_has_nothing_to_switch(alone: dict[str, Any]) -> None:
    assert "mix.switch_prob does nothing without both" in refusal({**alone, "mix.switch_prob": 0.3})


MATCHED = {"teacher.runs": ["a"], "teacher.distill.how": "online", "teacher.distill.features": 1.0}


def phases(*frozen: int | str | None) -> dict[str, Any]:
    """A phase of one epoch each; None: as model.freeze.stages."""
    given = [{"epochs": 1} if stages is None else {"epochs": 1, "frozen": stages} for stages in frozen]
    return {"train.epochs": len(given), "train.phases": given}


@pytest.mark.parametrize(
    ("stages", "frozen"), [("all", ()), (0, ("all", "all")), ("all", (None, "all")), ("all", (None, None))]
)
def test_matching_features_needs_a_backbone_that_moves_at_some_time(
    stages: int | str, frozen: Sequence[int | str | None]
) -> None:
    settings = {**MATCHED, "model.freeze.stages": stages, **(phases(*frozen) if frozen else {})}
    assert "teacher.distill.features moves the backbone, and 'all' of it is frozen" in refusal(settings)


@pytest.mark.parametrize(
    ("stages", "frozen"), [(0, ()), (2, ()), ("all", ("all", 0)), (0, (None, "all")), ("all", (2, None))]
)
def test_a_backbone_that_moves_in_one_phase_is_enough(stages: int | str, frozen: Sequence[int | str | None]) -> None:
    config({**MATCHED, "model.freeze.stages": stages, **(phases(*frozen) if frozen else {})})
