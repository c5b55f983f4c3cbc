"""Whole rounds through the command line: in order, once, and only with teachers that fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from goldfold.cli import main
from goldfold.data import PSEUDO
from goldfold.records import SoftLabels
from goldfold.training import FoldJob
from tests.rounds.conftest import CONFIG, SHORT

Heard = dict[str, FoldJob]
TRAIN = {"kind": "train", "experiment": "tiny.yaml"}


def write_pipeline(rounds: list[dict[str, Any]]) -> str:
    Path("configs/pipeline.yaml").write_text(yaml.safe_dump({"rounds": rounds}))
    return "configs/pipeline.yaml"


def test_a_pipeline_runs_its_rounds_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pipeline(
        [
            TRAIN,
            {**TRAIN, "kind": "pseudo_label", "name": "pseudo", "teachers": ["tiny"], "weight": 0.5},
            {"kind": "ensemble", "name": "both", "members": ["tiny", "pseudo"]},
            {
                **TRAIN,
                "kind": "distill",
                "name": "student",
                "teachers": ["both"],
                "set": {"model.backbone": "test_resnet", "input.size": 32},
            },
            {"kind": "ensemble", "name": "all", "members": ["tiny", "pseudo", "student"]},
            {"kind": "submit", "source": "all", "name": "final"},
        ]
    )
    assert main(["check", path, *SHORT]) == 0
    capsys.readouterr()
    assert main(["run", path, *SHORT]) == 0
    captured = capsys.readouterr()
    titles = ("train tiny", "pseudo_label pseudo", "ensemble both", "distill student", "ensemble all", "submit final")
    for number, title in enumerate(titles, 1):
        assert f"round {number}/6: {title}" in captured.err
    assert "wrote submissions/final.csv" in captured.out
    assert not json.loads(Path("runs/student/cv.json").read_text())["leaky"]
    folds = [path for path in Path("runs").rglob("*") if path.parent.name.startswith("fold") and path.is_file()]
    assert len(folds) == 3 * 2 * 6 + 2 * 2  # the pseudo-labels and their record
    kept = {path: path.stat().st_mtime_ns for path in [*folds, *Path("ensembles").rglob("*.*")]}
    submission = Path("submissions/final.csv").read_bytes()
    assert main(["run", path, *SHORT]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Path("submissions/final.csv").read_bytes() == submission


def test_rounds_with_rising_thresholds(project: Path) -> None:
    """Several rounds are several rounds of the pipeline: each student teaches the next, surer images only."""
    first = {**TRAIN, "kind": "pseudo_label"}
    path = write_pipeline(
        [
            TRAIN,
            {**first, "name": "one", "teachers": ["tiny"], "min_prob": 0.4},
            {**first, "name": "two", "teachers": ["one"], "min_prob": 0.45},
            {**first, "name": "three", "teachers": ["two"], "min_prob": 0.5, "labels": "hard"},
        ]
    )
    assert main(["run", path, "train.epochs=2"]) == 0
    before = "tiny"
    for name, least in (("one", 0.4), ("two", 0.45), ("three", 0.5)):
        for fold in (0, 1):
            record = json.loads(Path(f"runs/{name}/fold{fold}/labels.json").read_text())
            said = pd.read_parquet(f"runs/{before}/fold{fold}/test.parquet").set_index("id")
            sure = set(said.index[said.max(axis=1) >= least])
            assert (record["teachers"], record["taken"], record["excluded_fold"]) == ([before], len(sure), fold)
            if sure:
                assert set(SoftLabels.read(Path(f"runs/{name}/fold{fold}/labels.parquet")).ids) == sure
        before = name


def test_teachers_with_other_folds_are_refused(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["folds", CONFIG, "folds.seed=9", "--remake"]) == 0
    student = [CONFIG, *SHORT, "name=student", "folds.seed=9", "teacher.runs=[tiny]", "teacher.pseudo.labels=hard"]
    for command in ("train", "check"):
        capsys.readouterr()
        assert main([command, *student]) == 2
        err = capsys.readouterr().err
        assert "teacher.runs: the run 'tiny' was trained on other folds; train it again" in err
    assert not Path("runs/student").exists()


def test_a_teacher_that_changed_is_noticed(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = [CONFIG, *SHORT, "--run", "student", "teacher.runs=[tiny]", "teacher.distill.weight=0.5"]
    assert main(["train", *student, "--fold", "0"]) == 0
    shutil.rmtree("runs/tiny")
    assert main(["train", CONFIG, *SHORT, "optim.lr=0.02"]) == 0
    capsys.readouterr()
    assert main(["train", *student]) == 2
    assert "the file behind teacher tiny" in capsys.readouterr().err


def test_an_ensemble_that_was_fitted_for_the_purpose_teaches(teachers: Path, heard: Heard) -> None:
    """Members and weights come from ``goldfold ensemble`` itself: fold k's student gets fold k's."""
    assert main(["ensemble", "tiny", "grey", "--name", "both", "--method", "stacking"]) == 0
    command = ["train", CONFIG, *SHORT, "--run", "student", "teacher.runs=[both]", "teacher.pseudo.labels=soft"]
    assert main(command) == 0
    from goldfold.ensemble import load_blend
    from goldfold.records import Predictions

    for fold in (0, 1):
        examples = heard[f"fold{fold}"].examples
        ids = tuple(name for name, kind in zip(examples.ids, examples.kind, strict=True) if kind == PSEUDO)
        blend = load_blend(Path("ensembles/both"), fold)
        folders = {
            "tiny": [f"runs/tiny/fold{fold}", f"runs/tiny/fold{fold}-seed7"],
            "grey": [f"runs/grey/fold{fold}"],
        }
        values = {
            name: np.mean(
                [Predictions.read(Path(path) / "test.parquet", name).take(ids).values for path in paths], axis=0
            )
            for name, paths in folders.items()
        }
        expected = blend.apply([values[name].astype(np.float32) for name in blend.members], heard["fold0"].task)
        assert np.allclose(examples.targets[examples.kind == PSEUDO], expected, atol=1e-5)
