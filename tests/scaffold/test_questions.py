"""copier.yml asks what it should, offers what the code knows, and refuses what could not work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold.metrics import METRICS, get_metric
from goldfold.submission.shape import SHAPES
from goldfold.tasks import ACTIVATIONS
from tests.scaffold.conftest import ROOT, render

pytest.importorskip("copier", reason="needs: pip install copier")

ANSWERS = "{{ _copier_conf.answers_file }}.jinja"
QUESTIONS: dict[str, dict[str, Any]] = {
    name: question
    for name, question in yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8")).items()
    if not name.startswith("_")
}
ASKED = {name: question for name, question in QUESTIONS.items() if question.get("when") is not False}
FREE = {name for name, question in ASKED.items() if "choices" not in question and question["type"] != "bool"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template of the questions alone: rendering takes no time."""
    folder = tmp_path_factory.mktemp("questions")
    for name in ("copier.yml", ANSWERS):
        shutil.copy(ROOT / name, folder / name)
    return folder


def ask(questions: Path, project: Path, **answers: object) -> dict[str, Any]:
    """What copier writes down of the answers."""
    render(questions, project, **answers)
    found = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if not name.startswith("_")}


def offered(name: str, task: str) -> list[str]:
    from jinja2 import Environment

    choices = yaml.safe_load(Environment().from_string(QUESTIONS[name]["choices"]).render(task=task))
    return list(choices.values()) if isinstance(choices, dict) else list(choices)


def test_every_question_has_a_help_line_a_default_and_a_check() -> None:
    assert len(ASKED) == 21
    for name, question in ASKED.items():
        assert question["help"].strip(), name
        assert "{" in question["help"] or len(question["help"]) <= 76, f"{name}: wider than a terminal"
        assert "default" in question, name
    assert {name for name in FREE if not ASKED[name].get("validator")} == set()


def test_nothing_runs_commands() -> None:
    """A template with tasks, migrations or extensions would need ``--trust``."""
    settings = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    assert settings.keys() & {"_tasks", "_migrations", "_jinja_extensions"} == set()


@pytest.mark.parametrize("task", list(ACTIVATIONS))
def test_metrics_and_shapes_are_those_of_the_task(task: str) -> None:
    assert sorted(offered("metric", task)) == sorted(name for name in METRICS if task in get_metric(name).tasks)
    assert offered("submission", task) == ["auto", *SHAPES[task]]
    assert task in QUESTIONS["task"]["choices"].values()


@pytest.mark.parametrize("task", list(ACTIVATIONS))
def test_the_default_metric_suits(task: str, questions: Path, tmp_path: Path) -> None:
    assert task in get_metric(ask(questions, tmp_path / "comp", task=task)["metric"]).tasks


def test_the_folder_names_the_competition(questions: Path, tmp_path: Path) -> None:
    found = ask(questions, tmp_path / "Plant Spots 2")
    assert (found["slug"], found["title"]) == ("plant-spots-2", "Plant Spots 2")
    assert found["image_path"] == "images/{id}.jpg"
    assert "hours" not in found
    assert "wandb_project" not in found


def test_answers_lead_to_others(questions: Path, tmp_path: Path) -> None:
    found = ask(
        questions, tmp_path / "comp", kind="code", id="image", image_path="train_images/{image}.png", wandb_mode="auto"
    )
    assert found["test_image_path"] == "test_images/{image}.png"
    assert (found["hours"], found["pseudo_labels"]) == (9.0, False)
    assert (found["wandb_project"], found["wandb_entity"]) == ("comp", "")


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"slug": "two words"}, "Use letters, digits and single dashes"),
    ({"slug": "../up"}, "Use letters, digits and single dashes"),
    ({"title": "two\nlines"}, "one line"),
    ({"task": "clustering"}, "Invalid choice for 'task'"),
    ({"task": "regression", "metric": "auc"}, "Invalid choice for 'metric'"),
    ({"task": "multilabel", "submission": "probability"}, "Invalid choice for 'submission'"),
    ({"id": "fold"}, "fold column"),
    ({"id": "a,b"}, "one column"),
    ({"target": "a, b"}, "one target column"),
    ({"task": "multilabel", "target": "a, b, a"}, "twice"),
    ({"target": "id"}, "is the id column"),
    ({"group": "label"}, "is the id or the target"),
    ({"image_path": "images/all.jpg"}, "at least one column in braces"),
    ({"image_path": "/kaggle/input/{id}.jpg"}, "within the competition's folder"),
    ({"image_path": "train/{id}.jpg", "test_image_path": "../{id}.jpg"}, "within the competition's folder"),
    ({"folds": 1}, "2 to 100 folds"),
    ({"backbones": "resnet18"}, "two different backbones"),
    ({"backbones": "resnet18, resnet18"}, "two different backbones"),
    ({"backbones": "resnet18, ../x"}, "letters, digits, dots"),
    ({"kind": "code", "hours": 0}, "hours up to 24"),
    ({"wandb_mode": "online", "wandb_project": "a/b"}, "none of /"),
    ({"wandb_mode": "online", "wandb_entity": "a b"}, "letters, digits, dashes"),
    ({"author": " "}, "one line"),
    ({"kaggle_user": "a/b"}, "letters, digits and dashes"),
    ({"licence": "GPL"}, "Invalid choice for 'licence'"),
]


@pytest.mark.parametrize(("answers", "reason"), REFUSED, ids=[str(answers) for answers, _ in REFUSED])
def test_what_could_not_work_is_refused(
    answers: dict[str, object], reason: str, questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(questions, tmp_path / "comp", **answers)
    assert not (tmp_path / "comp").exists()


def test_every_free_answer_is_refused_once() -> None:
    assert {next(reversed(answers)) for answers, _ in REFUSED} >= FREE


def test_the_templates_own_competitions_are_no_slugs(questions: Path, tmp_path: Path) -> None:
    """Their files would come along."""
    folders = [path.name for path in (ROOT / "configs").iterdir() if path.is_dir() and "{{" not in path.name]
    assert "recipes" in folders
    for name in folders:
        with pytest.raises(ValueError, match="a name that Goldfold needs itself"):
            ask(questions, tmp_path / name, slug=name)
