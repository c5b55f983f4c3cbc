"""How a pipeline is made small: what is lifted, what stays, and that the small one is as valid as the large one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goldfold.canary import run
from goldfold.canary.settings import EVERY_IMAGE, changes
from goldfold.config import Config
from goldfold.config.schema import Pseudo
from goldfold.paths import Workspace
from goldfold.pipeline.graph import plan_pipeline, plan_rounds
from tests.canary.textures import DAMPED, DISTIL, ONLINE, PSEUDO, TEACHER, make_textures

Shrink = Callable[..., tuple[dict[str, Config], dict[str, Any]]]


class SeenError(Exception):
    """Ends the canary where it would begin to train."""


@pytest.fixture
def shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Rounds → the canary's own experiments, as its pipeline on disk gives them, and what the report says of them."""
    monkeypatch.chdir(tmp_path)

    def shrunk(rounds: list[dict[str, Any]], *overrides: str, epochs: int = 10) -> tuple[dict[str, Config], Any]:
        found: dict[str, Config] = {}

        def look(path: Path, workspace: Workspace, kept: list[str]) -> None:
            found.update(plan_pipeline(path, kept, workspace)[1])
            raise SeenError

        monkeypatch.setattr(run, "run_pipeline", look)
        path, workspace = make_textures(tmp_path, rounds), Workspace(tmp_path)
        with pytest.raises(SeenError):
            run.run_canary(path, overrides, workspace, rows=40, epochs=epochs, size=16)
        return found, changes(plan_rounds(path, overrides, workspace), found)

    return shrunk


def test_every_key_of_pseudo_labels_is_lifted_or_tested(shrink: Shrink) -> None:
    assert EVERY_IMAGE.keys() | {"labels", "images"} == Pseudo.model_fields.keys()
    damped, teachers = {**DAMPED, "margin": 0.01}, ["teacher", "other"]  # one network would always agree with itself
    labels = [{**PSEUDO, **damped, "teachers": teachers, "name": name, "labels": name} for name in ("soft", "hard")]
    for key in ("trim", "power"):
        del labels[1][key]
    found, changed = shrink([TEACHER, {**TEACHER, "name": "other"}, *labels])
    for name in ("soft", "hard"):
        pseudo = found[name].teacher.pseudo
        assert pseudo == Pseudo(labels=name, images="all")  # type: ignore[arg-type]
    assert {f"teacher.pseudo.{key}" for key in damped} == {key for key in changed if key.startswith("teacher.")}


def test_teachers_are_heard_in_full(shrink: Shrink) -> None:
    rounds = [
        TEACHER,
        DISTIL,
        {**ONLINE, "features": 30.0},
        {**DISTIL, "name": "features", "how": "online", "weight": 0.0, "features": 0.5},
        {**DISTIL, "name": "inner", "how": "cross_fitted", "inner": 2, "weight": 0.1},
    ]
    found, changed = shrink(rounds)
    assert not found["teacher"].teacher.distill.weight
    for name in ("distil", "online", "features", "inner"):
        distill = found[name].teacher.distill
        assert (distill.weight, distill.temperature) == (0.5 if name == "inner" else 1, 1)
    assert [found[name].teacher.distill.features for name in ("distil", "online", "features")] == [0, 1, 0.5]
    assert (found["inner"].teacher.distill.how, found["inner"].teacher.distill.inner) == ("cross_fitted", 2)
    assert set(changed["teacher.distill.weight"]) == {0.5, 1}
    assert changed["teacher.distill.temperature"] == 1


def test_a_cool_down_longer_than_the_canary_is_no_mistake(shrink: Shrink) -> None:
    rounds = [TEACHER, {**PSEUDO, "cool_down": 12, "set": {"train.epochs": 20}}]
    found, changed = shrink(rounds, epochs=10)
    assert found["pseudo"].train.epochs == 10
    assert changed["teacher.pseudo.cool_down"] == 0


@pytest.mark.parametrize("overrides", [(), ("input.normalise=image",)])
def test_online_teachers_behind_stored_features_see_batches(shrink: Shrink, overrides: tuple[str, ...]) -> None:
    """Stored images may have any normalisation, and colours that are not the teachers'; batches may not."""
    stored = {"model.freeze.stages": "all", "model.freeze.cache": True, "augment.preset": "none", "mix.mixup": 0.0}
    own = {"input.normalise": "image", "input.colour": "lab"}
    rounds = [{**TEACHER, "set": {"input.local_mean": "subtract"}}, {**ONLINE, "set": {**stored, **own}}]
    found, changed = shrink(rounds, *overrides)
    student, teacher = found["online"].input, found["teacher"].input
    assert student.normalise == "fixed"
    assert teacher.normalise == ("image" if overrides else "fixed")
    assert (student.colour, student.local_mean) == (teacher.colour, teacher.local_mean) == ("rgb", "none")
    assert changed["input.normalise"] == "fixed"


def test_views_by_score_keep_all_but_their_candidates(shrink: Shrink) -> None:
    auto = {"tta.views": "auto", "tta.max_views": 3, "tta.merge": "gmean", "tta.min_gain": 0.5}
    found, _ = shrink([{**TEACHER, "set": auto}, {**TEACHER, "name": "flipped"}])
    kept = found["teacher"].tta
    assert (kept.views, kept.max_views, kept.merge) == ("auto", 3, "gmean")
    assert kept.min_gain < 1e-3
    assert "Multiply" in str(kept.candidates)
    assert found["flipped"].tta.views == "none"
