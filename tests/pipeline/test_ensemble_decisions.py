"""Fitted decisions and calibration from ``goldfold ensemble`` to the submission and its score."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.ensemble import load_calibration, load_decisions
from goldfold.metrics import get_metric, score
from goldfold.records import Predictions
from goldfold.tasks import Task
from tests.pipeline.competitions import make_competition

TASKS = {
    "binary": (Task("binary", ("1",), "0"), "f1", "thresholds"),
    "ordinal": (Task("ordinal", ("0", "1", "2")), "qwk", "cut_points"),
    "multilabel": (Task("multilabel", ("top", "low", "both")), "macro_f1", "thresholds"),
    "multiclass": (Task("multiclass", ("cat", "dog", "fox")), "macro_f1", "multipliers"),
}


def train(root: Path, kind: str) -> str:
    """One short run called tiny; returns the configuration's path. A binary sample then wants 0 or 1."""
    torch.set_num_threads(1)
    _, metric, _ = TASKS[kind]
    config = str(make_competition(root, kind, rows=36, test_rows=12, competition={"metric": metric}))
    if kind == "binary":
        sample = root / "data/tiny/sample_submission.csv"
        sample.write_text(sample.read_text().replace("0.5", "0"))
    assert main(["train", config, "train.epochs=1"]) == 0
    return config


@pytest.mark.parametrize("kind", TASKS)
def test_decisions_reach_the_submission_and_its_score(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, metric, form = TASKS[kind]
    with contextlib.chdir(tmp_path):
        config = train(tmp_path, kind)
        capsys.readouterr()
        settings = ["--method", "mean", "--calibration", "temperature", "--decisions", "fitted"]
        assert main(["ensemble", "tiny", "--name", "cut", *settings]) == 0
        printed = capsys.readouterr().out
        assert main(["submit", "cut"]) == 0
        capsys.readouterr()
        assert main(["score", "submissions/cut.csv", "data/tiny/solution.csv", config]) == 0
        scores = capsys.readouterr().out
    folder = tmp_path / "ensembles/cut"
    record = json.loads((folder / "ensemble.json").read_text())
    assert [step["step"] for step in record["steps"]] == ["blend", "calibration", "decisions"]
    assert "optimism" in printed
    assert "then temperature" in printed
    assert "then fitted decisions" in printed
    decisions, calibration = load_decisions(folder, task), load_calibration(folder, task)
    assert decisions is not None
    assert calibration is not None
    assert decisions.kind == form

    test = Predictions.read(folder / "test.parquet", "cut")
    alone = Predictions.read(tmp_path / "runs/tiny/test.parquet", "tiny").take(test.ids)
    assert test.values == pytest.approx(calibration.apply(alone.values, task), abs=1e-6)
    answers = task.decide(test.values, decisions)
    submission = pd.read_csv(tmp_path / "submissions/cut.csv", dtype=str).set_index("id").loc[list(test.ids)]
    if kind == "multilabel":
        assert np.array_equal(submission[list(task.classes)].to_numpy(dtype=int), answers)
    else:
        assert submission["label"].tolist() == [task.labels()[int(answer)] for answer in answers]
    solution = pd.read_csv(tmp_path / "data/tiny/solution.csv", dtype=str).set_index("id").loc[list(test.ids)]
    if kind == "multilabel":
        targets = solution[list(task.classes)].to_numpy(dtype=np.float32)
    else:
        truth = np.array([task.labels().index(label) for label in solution["label"]])
        targets = task.one_hot(truth)
    expected = score(get_metric(metric), task, targets, task.one_hot(answers))
    assert f"{metric}: {expected:.6f}" in scores
    beside = json.loads((tmp_path / "submissions/cut.json").read_text())
    assert beside["score"] == record["cross_fitted"]


def test_probabilities_do_not_know_decisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A binary sample of 0.5 wants probabilities: they go in as they are, under the score that they have."""
    with contextlib.chdir(tmp_path):
        config = str(make_competition(tmp_path, "binary", rows=36, test_rows=12, competition={"metric": "f1"}))
        assert main(["train", config, "train.epochs=1"]) == 0
        assert main(["ensemble", "tiny", "--name", "cut", "--method", "mean", "--decisions", "fitted"]) == 0
        capsys.readouterr()
        assert main(["submit", "cut"]) == 0
        assert "it holds probabilities, so the fitted thresholds do not reach it" in capsys.readouterr().err
        # What would do nothing is refused.
        assert main(["ensemble", "tiny", "--name", "x", "--bags", "5"]) == 2
        assert "bags are for method 'greedy'" in capsys.readouterr().err
        assert main(["ensemble", "tiny", "--name", "x", "--method", "rank_mean", "--calibration", "temperature"]) == 2
        assert "ranks" in capsys.readouterr().err
        assert main(["ensemble", "tiny", "--name", "x", "--calibration", "class_temperature"]) == 2
        assert "one column" in capsys.readouterr().err
    test = Predictions.read(tmp_path / "ensembles/cut/test.parquet", "cut")
    submission = pd.read_csv(tmp_path / "submissions/cut.csv", dtype={"id": str}).set_index("id").loc[list(test.ids)]
    assert submission["label"].to_numpy() == pytest.approx(test.values[:, 0], abs=1e-6)
    record = json.loads((tmp_path / "ensembles/cut/ensemble.json").read_text())
    beside = json.loads((tmp_path / "submissions/cut.json").read_text())
    assert beside["score"] == record["steps"][0]["cross_fitted"]
    assert not (tmp_path / "ensembles/x").exists()


def test_a_pipeline_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_competition(tmp_path, "binary", rows=12, test_rows=3)
    rounds = [
        "{kind: train, experiment: tiny.yaml}",
        "{kind: ensemble, name: cut, members: [tiny], decisions: fitted}",
    ]
    (tmp_path / "configs/rounds.yaml").write_text("rounds:\n" + "".join(f"  - {line}\n" for line in rounds))
    assert main(["-C", str(tmp_path), "run", "configs/rounds.yaml"]) == 2
    assert "rounds.1: decisions: 'auc' judges probabilities, so fitted decisions would do nothing" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
