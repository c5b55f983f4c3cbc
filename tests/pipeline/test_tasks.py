"""Each task from CSV files and PNGs to a scored submission, by the commands a user types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from goldfold.cli import main
from tests.pipeline.competitions import make_competition

# What a network must reach to show that it learnt from the right rows; chance in brackets.
BARS = {
    "binary": 0.9,  # auc (0.5)
    "multiclass": 0.8,  # macro F1 (0.33)
    "ordinal": 0.8,  # qwk (0)
    "regression": -2.5,  # negative rmse; the labels' deviation is 4.1
    "multilabel": 0.9,  # macro auc (0.5)
}


@pytest.mark.parametrize("task", list(BARS))
def test_a_task_from_csv_to_a_scored_submission(task: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project, task, rows=72, test_rows=24)
    overrides = ["train.epochs=12", "optim.lr=0.01"]
    assert main(["train", str(config), *overrides]) == 0
    cv = json.loads((project / "runs/tiny/cv.json").read_text())
    sign = 1 if cv["greater_is_better"] else -1
    assert sign * cv["oof"][cv["metric"]] > BARS[task]
    assert [fold["rows"] for fold in cv["folds"]] == [36, 36]

    oof = pd.read_parquet(project / "runs/tiny/oof.parquet")
    assert sorted(oof["id"]) == sorted(pd.read_csv(project / "data/tiny/train.csv", dtype=str)["id"])
    assert main(["submit", "tiny"]) == 0
    submission = pd.read_csv(project / "submissions/tiny.csv", dtype=str)
    sample = pd.read_csv(project / "data/tiny/sample_submission.csv", dtype=str)
    assert list(submission["id"]) == list(sample["id"])
    assert list(submission.columns) == list(sample.columns)

    capsys.readouterr()
    assert main(["score", "submissions/tiny.csv", "data/tiny/solution.csv", str(config), *overrides]) == 0
    scores = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert sign * float(scores[cv["metric"]]) > BARS[task]


def test_probabilities_are_probabilities(project: Path) -> None:
    config = make_competition(project, "ordinal")
    assert main(["train", str(config), "train.epochs=1"]) == 0
    for name in ("oof", "test"):
        frame = pd.read_parquet(project / f"runs/tiny/{name}.parquet").filter(like="p_")
        assert frame.to_numpy().min() >= 0
        assert np.allclose(frame.sum(axis=1), 1, atol=1e-5)
