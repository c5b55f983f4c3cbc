"""Rounds of teachers and students: which labels reach whom, in order, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from goldfold.cli import main
from goldfold.data import Examples
from goldfold.errors import BadInput
from goldfold.paths import Workspace
from goldfold.pipeline import stages
from goldfold.records import Floats, Predictions
from goldfold.rounds import pseudo_labels
from goldfold.tasks import Task
from goldfold.training import FoldJob

CONFIG = "configs/tiny.yaml"
SHORT = ["train.epochs=1"]
MULTI = Task("multiclass", ("a", "b", "c"))


# --- labels of the test images -----------------------------------------------------------------------------------------


def teach(root: Path, name: str, fold: str, values: list[list[float]], ids: str = "pqr", classes: str = "abc") -> None:
    folder = root / "runs" / name / fold
    folder.mkdir(parents=True)
    array = np.array(values, dtype=np.float32)
    Predictions(tuple(ids), array, tuple(classes), name).write(folder / "test.parquet", "id")
    (folder / "DONE").write_text("{}")


VALUES = [[0.8, 0.1, 0.1], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05]]
OTHERS = [[0.6, 0.3, 0.1], [0.2, 0.55, 0.25], [0.05, 0.9, 0.05]]


def label(root: Path, *names: str, task: Task = MULTI, fold: int = 0, hard: bool = False, min_prob: float = 0.0):  # type: ignore[no-untyped-def]
    teachers = [Workspace(root).run(name) for name in names]
    return pseudo_labels(teachers, fold, task, hard=hard, min_prob=min_prob, weight=0.3)


def test_labels_are_the_mean_of_the_teachers_seeds_and_runs(tmp_path: Path) -> None:
    teach(tmp_path, "one", "fold0", VALUES)
    teach(tmp_path, "one", "fold0-seed5", VALUES)
    teach(tmp_path, "two", "fold0", [OTHERS[2], OTHERS[0], OTHERS[1]], ids="rpq")
    teach(tmp_path, "one", "fold1", [[1, 0, 0]] * 3)  # of another fold: never looked at
    teach(tmp_path, "one", "fold01", [[1, 0, 0]] * 3)
    found = label(tmp_path, "one", "two")
    assert found.excluded_fold == 0
    expected = (2 * np.array(VALUES) + np.array(OTHERS)) / 3
    assert np.allclose(found.targets[found.rows(list("pqr"))], expected, atol=1e-6)
    assert found.weights.tolist() == pytest.approx([0.3] * 3)


def test_only_sure_images_are_taken_and_hard_labels_are_whole(tmp_path: Path) -> None:
    teach(tmp_path, "one", "fold0", VALUES)
    assert label(tmp_path, "one", min_prob=0.75).ids == ("p", "r")
    assert label(tmp_path, "one", min_prob=0.95).ids == ()
    assert label(tmp_path, "one", hard=True).targets.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("task", "values", "sure", "hard"),
    [
        (Task("binary", ("1",), "0", threshold=0.6), [[0.95], [0.55], [0.08]], "pr", [[1], [0], [0]]),
        (
            Task("multilabel", ("a", "b")),
            [[0.95, 0.02], [0.95, 0.55], [0.1, 0.1]],
            "pr",
            [[1, 0], [1, 1], [0, 0]],
        ),
        (Task("regression", ("y",)), [[3.5], [0.0], [-2.0]], "pqr", [[3.5], [0.0], [-2.0]]),
    ],
)
def test_sureness_and_hardness_by_task(
    task: Task, values: list[list[float]], sure: str, hard: Floats, tmp_path: Path
) -> None:
    teach(tmp_path, "one", "fold0", values, classes="".join(task.classes))
    assert label(tmp_path, "one", task=task, min_prob=0.9).ids == tuple(sure)
    assert label(tmp_path, "one", task=task, hard=True).targets.tolist() == hard


def test_a_teacher_without_the_fold_or_its_test_predictions_is_refused(tmp_path: Path) -> None:
    teach(tmp_path, "one", "fold0", VALUES)
    with pytest.raises(BadInput, match="no finished fold 1"):
        label(tmp_path, "one", fold=1)
    (tmp_path / "runs/one/fold0/test.parquet").unlink()
    with pytest.raises(BadInput, match="the teacher has no test predictions"):
        label(tmp_path, "one")
    (tmp_path / "runs/one/fold0/DONE").unlink()
    with pytest.raises(BadInput, match="no finished fold 0"):
        label(tmp_path, "one")


def test_teachers_of_different_test_images_are_refused(tmp_path: Path) -> None:
    teach(tmp_path, "one", "fold0", VALUES)
    teach(tmp_path, "two", "fold0", OTHERS, ids="pqs")
    with pytest.raises(BadInput, match="ids differ"):
        label(tmp_path, "one", "two")


# --- whole rounds ------------------------------------------------------------------------------------------------------


def write_pipeline(project: Path) -> str:
    rounds = [
        {"kind": "train", "experiment": "tiny.yaml"},
        {"kind": "pseudo_label", "experiment": "tiny.yaml", "name": "pseudo", "teachers": ["tiny"], "weight": 0.5},
        {
            "kind": "distill",
            "experiment": "tiny.yaml",
            "name": "student",
            "teachers": ["tiny", "pseudo"],
            "set": {"model.backbone": "test_resnet"},
        },
        {"kind": "ensemble", "name": "all", "members": ["tiny", "pseudo", "student"]},
        {"kind": "submit", "source": "all", "name": "final"},
    ]
    (project / "configs/pipeline.yaml").write_text(yaml.safe_dump({"rounds": rounds}))
    return "configs/pipeline.yaml"


def test_a_pipeline_runs_its_rounds_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pipeline(project)
    assert main(["check", path, *SHORT]) == 0
    capsys.readouterr()
    assert main(["run", path, *SHORT]) == 0
    captured = capsys.readouterr()
    for number, title in enumerate(
        ("train tiny", "pseudo_label pseudo", "distill student", "ensemble all", "submit all"), 1
    ):
        assert f"round {number}/5: {title}" in captured.err
    for name in ("tiny", "pseudo", "student", "all (simplex)"):
        assert name in captured.out
    assert "wrote submissions/final.csv" in captured.out
    assert not json.loads((project / "runs/student/cv.json").read_text())["leaky"]
    assert [
        member["name"] for member in json.loads((project / "ensembles/all/ensemble.json").read_text())["members"]
    ] == [
        "tiny",
        "pseudo",
        "student",
    ]
    folds = [path for path in (project / "runs").rglob("*") if path.parent.name.startswith("fold") and path.is_file()]
    kept = {path: path.stat().st_mtime_ns for path in [*folds, *(project / "ensembles").rglob("*.*")]}
    assert len(folds) == 3 * 2 * 6
    submission = (project / "submissions/final.csv").read_bytes()
    assert main(["run", path, *SHORT]) == 0
    assert capsys.readouterr().out == captured.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (project / "submissions/final.csv").read_bytes() == submission


def test_a_student_hears_only_the_teachers_of_its_own_fold(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: dict[int, Examples] = {}
    real = stages.train_fold

    def spy(job: FoldJob, *rest: object) -> object:
        heard[job.fold] = job.examples
        return real(job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "train_fold", spy)
    assert main(["train", CONFIG, *SHORT]) == 0
    alone = dict(heard)
    student = [CONFIG, *SHORT, "--run", "student", "teacher.runs=[tiny]", "teacher.test=soft", "teacher.distill=0.5"]
    teacher = project / "runs/tiny"
    # Fold 1's teacher has seen what fold 0 validates: without a file of it, fold 0's student must not miss anything.
    shutil.move(teacher / "fold1/test.parquet", project / "test.parquet")
    shutil.move(teacher / "fold1/model.safetensors", project / "model.safetensors")
    assert main(["train", *student, "--fold", "0"]) == 0
    capsys.readouterr()
    assert main(["train", *student, "--fold", "1"]) == 2
    assert "runs/tiny/fold1" in capsys.readouterr().err
    shutil.move(project / "test.parquet", teacher / "fold1/test.parquet")
    shutil.move(project / "model.safetensors", teacher / "fold1/model.safetensors")
    assert main(["train", *student]) == 0

    test_ids = pd.read_csv(project / "data/tiny/test.csv", dtype=str)["id"].tolist()
    for fold in (0, 1):
        examples, before = heard[fold], alone[fold]
        ids = [examples.images.ids[row] for row in examples.rows]
        assert sorted(ids[len(before) :]) == sorted(test_ids)
        said = Predictions.read(teacher / f"fold{fold}/test.parquet", "tiny").take(ids[len(before) :]).values
        assert np.array_equal(examples.targets[len(before) :], said)
        # Half of each training row's target is the label, half is the teacher's.
        rest = examples.targets[: len(before)] - 0.5 * before.targets
        assert np.allclose(rest.sum(axis=1), 0.5, atol=1e-5)
        assert not np.array_equal(rest, 0.5 * before.targets)
        validated = set(Predictions.read(teacher / f"fold{fold}/oof.parquet", "tiny").ids)
        assert not validated & set(ids)


def test_teachers_with_other_folds_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *SHORT]) == 0
    assert main(["folds", CONFIG, "folds.seed=9", "--remake"]) == 0
    student = [CONFIG, *SHORT, "name=student", "folds.seed=9", "teacher.runs=[tiny]", "teacher.test=hard"]
    for command in ("train", "check"):
        capsys.readouterr()
        assert main([command, *student]) == 2
        err = capsys.readouterr().err
        assert "goldfold: teacher.runs: the run 'tiny' was trained on other folds; train it again" in err
    assert not (project / "runs/student").exists()


def test_a_teacher_that_changed_is_noticed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *SHORT]) == 0
    student = [CONFIG, *SHORT, "--run", "student", "teacher.runs=[tiny]", "teacher.distill=0.5"]
    assert main(["train", *student, "--fold", "0"]) == 0
    shutil.rmtree(project / "runs/tiny")
    assert main(["train", CONFIG, *SHORT, "optim.lr=0.02"]) == 0
    capsys.readouterr()
    assert main(["train", *student]) == 2
    assert "the file behind teacher tiny" in capsys.readouterr().err


def test_an_ensemble_whose_members_changed_is_blended_again(project: Path) -> None:
    assert main(["train", CONFIG, *SHORT]) == 0
    assert main(["ensemble", "tiny", "--name", "one"]) == 0
    before = (project / "ensembles/one/test.parquet").read_bytes()
    shutil.rmtree(project / "runs/tiny")
    assert main(["train", CONFIG, *SHORT, "optim.lr=0.02"]) == 0
    assert main(["ensemble", "tiny", "--name", "one"]) == 0
    assert (project / "ensembles/one/test.parquet").read_bytes() != before


def test_a_distilled_students_images_must_be_its_teachers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *SHORT]) == 0
    capsys.readouterr()
    student = ["--run", "student", "teacher.runs=[tiny]", "teacher.distill=0.5", "input.size=32"]
    assert main(["train", CONFIG, *SHORT, *student]) == 2
    err = capsys.readouterr().err
    assert "the teacher sees images of 24 px and 3 channels" in err
